//! What clients saw, checked for linearizability by a known checker (the algorithm of Wing, Gong and Lowe): each command writes its
//! number to one of a few registers, each read sees them all and is held to one. What has no answer may have happened at any later
//! time, or never. Registers are checked one by one: a history is linearizable when that of each object is.

use std::collections::{HashMap, HashSet};

use todc_utils::linearizability::history::{Action, History as Actions};
use todc_utils::linearizability::WGLChecker;
use todc_utils::specifications::Specification;

use super::machine::{key, KEYS};

/// Operations of one register that are checked: the checker's time goes up with their square, and twofold with each that is open
/// at the same time as the others.
const MOST: usize = 300;
const MOST_OPEN: usize = 9;

#[derive(Clone, Copy, Debug)]
enum Seen {
    Call,
    Done(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Who {
    Write(u64),
    Read(u64),
}

#[derive(Default)]
pub struct History {
    events: Vec<(Who, Seen)>,
    asked: HashSet<Who>,
    /// Certainly never happened.
    void: HashSet<Who>,
}

#[derive(Clone, Debug)]
enum Operation {
    Read(u64),
    Write(u64),
}

struct Register;

impl Specification for Register {
    type State = u64;
    type Operation = Operation;

    fn init() -> u64 {
        0
    }

    fn apply(operation: &Operation, state: &u64) -> (bool, u64) {
        match operation {
            Operation::Read(value) => (value == state, *state),
            Operation::Write(value) => (true, *value),
        }
    }
}

/// A write that somebody read had happened by then: it ends where the first of those reads does, if it has no answer before.
fn with_ends(all: &[(Who, Seen)]) -> Vec<(Who, Seen)> {
    let asked: HashSet<Who> = all.iter().map(|(who, _)| *who).collect();
    let mut ended = HashSet::new();
    let mut out = Vec::with_capacity(all.len());
    for (who, seen) in all {
        if let Seen::Done(value) = seen {
            let write = Who::Write(*value);
            if asked.contains(&write) && ended.insert(write) {
                out.push((write, *seen));
            }
        }
        if !matches!((who, seen), (Who::Write(_), Seen::Done(_))) {
            out.push((*who, *seen));
        }
    }
    out
}

/// As far as not too much is open at once.
fn beginning(all: &[(Who, Seen)]) -> &[(Who, Seen)] {
    let ends: HashSet<Who> =
        all.iter().filter(|(_, seen)| matches!(seen, Seen::Done(_))).map(|(who, _)| *who).collect();
    let mut open = 0;
    for (at, (who, seen)) in all.iter().enumerate() {
        match seen {
            Seen::Call if ends.contains(who) => open += 1,
            Seen::Call => {}
            Seen::Done(_) => open -= 1,
        }
        if open > MOST_OPEN {
            return &all[..at];
        }
    }
    all
}

impl History {
    /// Asked for the first time, or again after it was certainly not done.
    pub fn write(&mut self, command: u64) {
        self.void.remove(&Who::Write(command));
        if self.asked.insert(Who::Write(command)) {
            self.events.push((Who::Write(command), Seen::Call));
        }
    }

    pub fn written(&mut self, command: u64) {
        self.events.push((Who::Write(command), Seen::Done(command)));
    }

    pub fn unwritten(&mut self, command: u64) {
        self.void.insert(Who::Write(command));
    }

    pub fn read(&mut self, token: u64) {
        self.events.push((Who::Read(token), Seen::Call));
    }

    pub fn read_done(&mut self, token: u64, registers: &[u64; KEYS]) {
        self.events.push((Who::Read(token), Seen::Done(registers[key(token)])));
    }

    pub fn forget(&mut self, read: u64) {
        self.void.insert(Who::Read(read));
    }

    fn of(&self, register: usize) -> Vec<(usize, Action<Operation>)> {
        let number = |who: &Who| match who {
            Who::Write(number) | Who::Read(number) => *number,
        };
        let all = self.events.iter().filter(|(who, _)| key(number(who)) == register && !self.void.contains(who));
        // The beginning of a linearizable history is one, with what had not ended by then open.
        let all: Vec<(Who, Seen)> = all.take(2 * MOST).copied().collect();
        let all = with_ends(&all);
        let events = beginning(&all);
        let ended: HashMap<Who, u64> = events
            .iter()
            .filter_map(|(who, seen)| match seen {
                Seen::Done(value) => Some((*who, *value)),
                Seen::Call => None,
            })
            .collect();
        // A write without an end that nobody saw need not have happened; an open read saw nothing.
        let counts = |who: &Who| ended.contains_key(who);
        let operation = |who: &Who| match who {
            Who::Write(command) => Operation::Write(*command),
            Who::Read(_) => Operation::Read(ended[who]),
        };
        let mut process = HashMap::new();
        let mut actions = Vec::new();
        for (who, seen) in events.iter().filter(|(who, _)| counts(who)) {
            let next = process.len();
            let id = *process.entry(*who).or_insert(next);
            actions.push((
                id,
                match seen {
                    Seen::Call => Action::Call(operation(who)),
                    Seen::Done(_) => Action::Response(operation(who)),
                },
            ));
        }
        actions
    }

    pub fn check(&self) {
        for register in 0..KEYS {
            let actions = self.of(register);
            if !actions.is_empty() {
                let told = format!("{actions:?}");
                let linearizable = WGLChecker::<Register>::is_linearizable(Actions::from_actions(actions));
                assert!(linearizable, "VIOLATION: the history of register {register} is not linearizable\n{told}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All of it is about register 0: commands and reads whose numbers belong to it.
    fn linearizable(events: &[(Who, Option<u64>)]) -> bool {
        let mut history = History::default();
        for (who, value) in events {
            history.events.push((*who, value.map_or(Seen::Call, Seen::Done)));
        }
        let numbers = events.iter().map(|(who, _)| match who {
            Who::Write(number) | Who::Read(number) => *number,
        });
        assert!(numbers.into_iter().all(|number| key(number) == 0));
        WGLChecker::<Register>::is_linearizable(Actions::from_actions(history.of(0)))
    }

    #[test]
    fn a_write_without_an_answer_counts_from_the_first_read_that_saw_it_on() {
        let of_register: Vec<u64> = (1..).filter(|number| key(*number) == 0).take(4).collect();
        let [a, b, r, s] = of_register[..] else { panic!() };
        let (write, other, first, second) = (Who::Write(a), Who::Write(b), Who::Read(r), Who::Read(s));
        let seen = [(write, None), (first, None), (first, Some(a)), (second, None)];
        for (last, good) in [(a, true), (0, false), (b, false)] {
            let mut events = seen.to_vec();
            events.push((second, Some(last)));
            assert_eq!(linearizable(&events), good, "then {last}");
        }
        // Nobody saw it, or it happened late.
        assert!(linearizable(&[(write, None), (first, None), (first, Some(0)), (second, None), (second, Some(0))]));
        assert!(linearizable(&[(write, None), (first, None), (first, Some(0)), (second, None), (second, Some(a))]));
        // Its answer may come later than those who saw it.
        let late = [(write, None), (other, None), (other, Some(b)), (first, None), (first, Some(a)), (write, Some(a))];
        assert!(linearizable(&late));
        let stale = [(write, None), (write, Some(a)), (first, None), (first, Some(0))];
        assert!(!linearizable(&stale));
    }
}

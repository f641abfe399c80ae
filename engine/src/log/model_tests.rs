//! Random sequences of writes, stops and kills equal a simple model in memory; and what a killed process had
//! acknowledged is there.

use std::io::{BufRead, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::sync::Arc;

use proptest::prelude::*;
use raft::eraftpb::HardState;

use super::tests::{cluster, entry, founding, meta, open, options, with_both_engines};
use super::*;
use crate::config::LogEngine;
use crate::error::ErrorCode;

/// What a log must hold.
#[derive(Clone, Debug)]
pub(super) struct Model {
    entries: Vec<Entry>,
    first: u64,
    prev_term: u64,
    hard_state: HardState,
    cluster: u64,
    snapshot: u64,
}

impl Model {
    pub(super) fn new() -> Self {
        let hard_state = HardState { term: 1, vote: 0, commit: 1 };
        Model { entries: Vec::new(), first: 2, prev_term: 1, hard_state, cluster: 1, snapshot: 1 }
    }

    fn last(&self) -> u64 {
        self.first + self.entries.len() as u64 - 1
    }

    fn last_term(&self) -> u64 {
        self.entries.last().map_or(self.prev_term, |e| e.term)
    }

    fn term(&self, index: u64) -> u64 {
        if index < self.first {
            self.prev_term
        } else {
            self.entries[(index - self.first) as usize].term
        }
    }

    fn raise_commit(&mut self) {
        self.hard_state.commit = self.hard_state.commit.max(self.cluster).max(self.snapshot).max(self.first - 1);
    }

    /// What in this log is not as it must be.
    pub(super) fn difference(&self, log: &OpenedLog) -> Option<String> {
        let state = &log.state;
        let mut terms: Vec<(u64, u64)> = self.entries.iter().map(|e| (e.index, e.term)).collect();
        terms.dedup_by_key(|(_, term)| *term);
        let bytes = self.entries.iter().map(|e| e.data.len() as u64).sum::<u64>();
        let ours = format!(
            "bounds {:?} {:?} snapshot {:?} bytes {bytes} terms {terms:?}",
            (self.first, self.prev_term, self.last()),
            self.hard_state,
            Some(self.snapshot)
        );
        let theirs = format!(
            "bounds {:?} {:?} snapshot {:?} bytes {} terms {:?}",
            (state.first_index, state.prev_term, state.last_index),
            state.hard_state,
            state.snapshot.as_ref().map(|s| s.index),
            state.bytes,
            state.terms
        );
        if ours != theirs || state.cluster != cluster(self.cluster) {
            return Some(format!("expected {ours}, found {theirs}; members at {}", state.cluster.index));
        }
        let entries = log.reader.entries(self.first, u64::MAX, u64::MAX);
        let entries = match entries {
            Ok(entries) => entries,
            Err(error) => return Some(format!("the entries cannot be read: {error}")),
        };
        (entries != self.entries).then(|| "the entries are others".to_string())
    }

    fn equals(&self, log: &OpenedLog) {
        assert_eq!(self.difference(log), None);
    }
}

/// One thing that happens to a log; numbers are taken modulo what is possible.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Append { back: u64, count: u64, size: usize, new_term: bool },
    Commit { up: u64, sync: bool },
    Cluster { up: u64 },
    Compact { snapshot: u64, to: u64 },
    Install { beyond: u64 },
    Flush,
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0u64..8, 1u64..40, prop_oneof![Just(0usize), 1..200usize, 1500..6000usize], any::<bool>())
            .prop_map(|(back, count, size, new_term)| Op::Append { back, count, size, new_term }),
        3 => (0u64..50, any::<bool>()).prop_map(|(up, sync)| Op::Commit { up, sync }),
        1 => (0u64..9).prop_map(|up| Op::Cluster { up }),
        2 => (0u64..99, 0u64..99).prop_map(|(snapshot, to)| Op::Compact { snapshot, to }),
        1 => (0u64..20).prop_map(|beyond| Op::Install { beyond }),
        3 => Just(Op::Flush),
        1 => Just(Op::Reopen),
    ]
}

/// The write that `op` stands for, and the model after it.
pub(super) fn write_of(op: &Op, model: &mut Model) -> LogWrite {
    let mut write = LogWrite { must_sync: true, ..Default::default() };
    match *op {
        Op::Append { back, count, size, new_term } => {
            let start = (model.last() + 1).saturating_sub(back).max(model.hard_state.commit + 1).max(model.first);
            model.entries.truncate((start - model.first) as usize);
            let term = model.last_term().max(model.hard_state.term) + u64::from(new_term);
            let entries: Vec<Entry> = (start..start + count).map(|i| entry(i, term, size)).collect();
            model.entries.extend(entries.iter().cloned());
            if term > model.hard_state.term {
                model.hard_state = HardState { term, vote: 2, commit: model.hard_state.commit };
                write.hard_state = Some(model.hard_state.clone());
            }
            write.entries = Some(Arc::new(entries));
        }
        Op::Commit { up, sync } => {
            model.hard_state.commit = (model.hard_state.commit + up).min(model.last());
            write.hard_state = Some(model.hard_state.clone());
            write.must_sync = sync;
        }
        Op::Cluster { up } => {
            model.cluster = (model.cluster + up).min(model.last());
            write.cluster = Some(Arc::new(cluster(model.cluster)));
        }
        Op::Compact { snapshot, to } => {
            let index = (model.snapshot + snapshot).min(model.hard_state.commit);
            let term = model.term(index.max(model.first - 1));
            model.snapshot = index;
            model.cluster = model.cluster.max(index);
            write.snapshot = Some(Arc::new(meta(index, term)));
            let to = (model.first - 1 + to).min(index).max(model.first - 1);
            write.compact_to = Some(to);
            model.prev_term = model.term(to);
            model.entries.drain(..(to + 1 - model.first) as usize);
            model.first = to + 1;
        }
        Op::Install { beyond } => {
            let index = model.last() + beyond;
            let term = model.last_term();
            write.snapshot = Some(Arc::new(meta(index, term)));
            write.reset = true;
            model.entries.clear();
            (model.first, model.prev_term) = (index + 1, term);
            model.snapshot = index;
            model.cluster = model.cluster.max(index);
        }
        Op::Flush | Op::Reopen => {}
    }
    model.raise_commit();
    write
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..Default::default() })]
    #[test]
    fn a_log_equals_its_model(
        engine in prop_oneof![Just(LogEngine::Lmdb), Just(LogEngine::Segment)],
        ops in proptest::collection::vec(op(), 1..60),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut model = Model::new();
        let mut log = open(engine, dir.path()).unwrap();
        let mut batch = Vec::new();
        for op in &ops {
            match op {
                Op::Flush => {
                    log.writer.write(&std::mem::take(&mut batch)).unwrap();
                    let entries = log.reader.entries(model.first, u64::MAX, u64::MAX).unwrap();
                    prop_assert_eq!(&entries, &model.entries);
                }
                Op::Reopen => {
                    log.writer.write(&std::mem::take(&mut batch)).unwrap();
                    drop(log);
                    log = open(engine, dir.path()).unwrap();
                    model.equals(&log);
                }
                _ => batch.push(write_of(op, &mut model)),
            }
        }
        log.writer.write(&batch).unwrap();
        drop(log);
        model.equals(&open(engine, dir.path()).unwrap());
        check(dir.path()).unwrap();
    }
}

const CHILD_DIR: &str = "RAFTIFY_TEST_LOG_CHILD";

with_both_engines!(child_that_writes_until_it_is_killed, what_a_killed_process_acknowledged_is_there);

/// The process that is killed: writes for ever and says on its output what is durable. Does nothing as an ordinary test.
fn child_that_writes_until_it_is_killed(engine: LogEngine) {
    let Ok(dir) = std::env::var(CHILD_DIR) else { return };
    let mut log = open(engine, std::path::Path::new(&dir)).unwrap();
    let mut out = std::io::stdout();
    let mut last = log.state.last_index;
    let term = log.state.hard_state.term + 1;
    let vote = HardState { term, vote: 1, commit: log.state.hard_state.commit };
    let mut write = LogWrite { hard_state: Some(vote), must_sync: true, ..Default::default() };
    loop {
        let count = 1 + last % 7;
        write.entries =
            Some(Arc::new((last + 1..=last + count).map(|i| entry(i, term, (i % 50 * 60) as usize)).collect()));
        if last > 300 && last.is_multiple_of(10) {
            let index = last - 20;
            write.hard_state = Some(HardState { term, vote: 1, commit: index });
            write.snapshot = Some(Arc::new(meta(index, 1)));
            write.compact_to = Some(last - 200);
        }
        log.writer.write(&[std::mem::take(&mut write)]).unwrap();
        last += count;
        writeln!(out, "durable {last} {term}").unwrap();
    }
}

fn what_a_killed_process_acknowledged_is_there(engine: LogEngine) {
    let module = if engine == LogEngine::Lmdb { "lmdb" } else { "segment" };
    let child = format!("log::model_tests::{module}::child_that_writes_until_it_is_killed");
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = (1, 1);
    for round in 0..12u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &child, "--nocapture"])
            .env(CHILD_DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Killed after so many acknowledgements, somewhere in what follows them.
        let mut wanted = 1 + round * 37 % 90;
        for line in lines {
            let line = line.unwrap();
            let Some(numbers) = line.split("durable ").nth(1) else { continue };
            let mut numbers = numbers.split(' ').map(|n| n.parse::<u64>().unwrap());
            acknowledged = (numbers.next().unwrap(), numbers.next().unwrap());
            if wanted == 0 {
                // Acknowledged between the blow and its effect: that counts as well.
                continue;
            }
            wanted -= 1;
            if wanted == 0 {
                // Another process cannot open it meanwhile.
                let error = open_or_create(dir.path(), &options(engine), || Ok(founding(1))).unwrap_err();
                assert_eq!(error.code, ErrorCode::DirectoryInUse);
                assert!(error.message.contains(&format!("process {}", child.id())), "{error}");
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert_eq!(wanted, 0, "the child ended by itself");
        let log = open(engine, dir.path()).unwrap();
        assert!(!log.clean);
        let state = &log.state;
        assert!(state.last_index >= acknowledged.0, "{} of {acknowledged:?}", state.last_index);
        assert_eq!((state.hard_state.term, state.hard_state.vote), (acknowledged.1, 1));
        let entries = log.reader.entries(state.first_index, u64::MAX, u64::MAX).unwrap();
        assert_eq!(entries.len() as u64, state.last_index + 1 - state.first_index);
        for found in entries {
            assert_eq!(found, entry(found.index, found.term, (found.index % 50 * 60) as usize));
        }
    }
}

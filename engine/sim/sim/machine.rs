//! The user's state machine: the list of commands it was given. Its whole state is a snapshot's bytes.

use std::collections::VecDeque;

use raftify_engine::machine::MachineRequest;

#[derive(Default)]
pub struct Machine {
    pub applied: u64,
    pub commands: Vec<u64>,
    pub hash: u64,
    /// The newest command of each key.
    pub last: [u64; KEYS],
    pub queue: VecDeque<MachineRequest>,
    pub busy: bool,
    /// Where it has stood in this life: (index, commands, hash).
    marks: Vec<(u64, usize, u64)>,
}

/// Each command writes its number to one of so many registers.
pub const KEYS: usize = 32;

pub fn key(command: u64) -> usize {
    (command % KEYS as u64) as usize
}

/// Some commands raise, on every node alike.
pub fn raises(command: u64) -> bool {
    command % 17 == 3
}

/// A command's bytes: its number, and padding that follows from it.
pub fn encode(command: u64, padding: usize) -> Vec<u8> {
    let mut data = command.to_le_bytes().to_vec();
    data.resize(8 + padding, command as u8);
    data
}

pub fn decode(data: &[u8]) -> u64 {
    u64::from_le_bytes(data[..8].try_into().expect("every command has its number"))
}

pub fn mix(hash: u64, value: u64) -> u64 {
    (hash ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29) ^ value
}

fn registers(commands: &[u64]) -> [u64; KEYS] {
    let mut last = [0; KEYS];
    commands.iter().for_each(|c| last[key(*c)] = *c);
    last
}

impl Machine {
    /// Takes one command; its position is its result.
    pub fn apply(&mut self, index: u64, command: u64) -> u64 {
        self.applied = index;
        self.commands.push(command);
        self.last[key(command)] = command;
        self.hash = mix(self.hash, command);
        self.commands.len() as u64
    }

    /// A batch is done: this could be what a durable machine has on its disk.
    pub fn reach(&mut self, index: u64) {
        self.applied = index;
        self.marks.push((index, self.commands.len(), self.hash));
    }

    /// How many states a durable machine may come back with: where it began this life, and each it has reached since.
    pub fn states(&self) -> u64 {
        self.marks.len().max(1) as u64
    }

    /// Its process has ended; on its disk is its newest state, or one so many before that.
    pub fn reopen(mut self, lost: u64) -> Self {
        let at = self.states() - 1 - lost;
        let Some((applied, commands, hash)) = self.marks.get(at as usize).copied() else { return Machine::default() };
        self.commands.truncate(commands);
        let last = registers(&self.commands);
        Machine {
            applied,
            hash,
            last,
            marks: vec![(applied, commands, hash)],
            commands: self.commands,
            ..Machine::default()
        }
    }

    pub fn snapshot(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(8 * (self.commands.len() + 1));
        out.extend_from_slice(&self.applied.to_le_bytes());
        self.commands.iter().for_each(|c| out.extend_from_slice(&c.to_le_bytes()));
        out
    }

    pub fn restore(&mut self, bytes: &[u8]) {
        let mut words = bytes.chunks_exact(8).map(decode);
        self.applied = words.next().unwrap_or(0);
        self.commands = words.collect();
        self.hash = self.commands.iter().fold(0, |hash, command| mix(hash, *command));
        self.last = registers(&self.commands);
        self.marks.clear();
        self.reach(self.applied);
    }
}

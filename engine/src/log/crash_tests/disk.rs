//! What a disk may hold after a power loss, from the changes that `shim.c` wrote down.
//!
//! Data that was not synced may be there, not be there, or be there in part (sectors of 512 bytes), in any order. Names appear and
//! go in the order in which they were changed, and for certain only once their directory was synced.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::core::Rng;

const SECTOR: usize = 512;

#[derive(Clone, Debug)]
pub enum Change {
    Write {
        path: String,
        offset: u64,
        data: Vec<u8>,
        /// Durable once it has returned (O_DSYNC).
        through: bool,
    },
    Truncate {
        path: String,
        len: u64,
    },
    Allocate {
        path: String,
        end: u64,
    },
    Sync(String),
    SyncDir(String),
    Create(String),
    Mkdir(String),
    Unlink(String),
    Rename {
        from: String,
        to: String,
    },
    /// What the process acknowledged.
    Mark(String),
}

/// Reads what the shim wrote down; paths are relative to `root`. A record that was cut off by a kill ends it.
pub fn read_trace(bytes: &[u8], root: &str) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut rest = bytes;
    while rest.len() >= 21 {
        let kind = rest[0];
        let number = |at: usize, len: usize| {
            let mut word = [0; 8];
            word[..len].copy_from_slice(&rest[at..at + len]);
            u64::from_le_bytes(word)
        };
        let (path_len, offset, len) = (number(1, 4) as usize, number(5, 8), number(13, 8));
        let has_data = matches!(kind, 1 | 4 | 10 | 11);
        let end = 21 + path_len + if has_data { len as usize } else { 0 };
        if rest.len() < end {
            break;
        }
        let relative = |path: &[u8]| {
            let path = String::from_utf8(path.to_vec()).unwrap();
            path.strip_prefix(root).map_or(path.clone(), |p| p.trim_start_matches('/').to_string())
        };
        let path = relative(&rest[21..21 + path_len]);
        let data = rest[21 + path_len..end].to_vec();
        changes.push(match kind {
            1 | 11 => Change::Write { path, offset, data, through: kind == 11 },
            2 => Change::Truncate { path, len: offset },
            3 => Change::Sync(path),
            4 => Change::Rename { from: path, to: relative(&data) },
            5 => Change::Unlink(path),
            6 => Change::Mkdir(path),
            7 => Change::Create(path),
            8 => Change::SyncDir(path),
            9 => Change::Allocate { path, end: offset + len },
            10 => Change::Mark(String::from_utf8(data).unwrap()),
            other => panic!("the trace holds a record of kind {other}"),
        });
        rest = &rest[end..];
    }
    changes
}

#[derive(Clone, Debug)]
enum Patch {
    Data { offset: u64, data: Vec<u8> },
    Length { len: u64, only_grows: bool },
}

#[derive(Clone, Debug, Default)]
struct Inode {
    durable: Vec<u8>,
    pending: Vec<Patch>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Node {
    File(usize),
    Directory,
}

type Names = BTreeMap<String, Node>;

/// One change of names: what is gone, what is new, and in which directory.
#[derive(Clone, Debug)]
struct NameChange {
    directory: String,
    change: Change,
    node: Option<Node>,
}

/// The disk under a process: what is durable, and what is only in the page cache.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    inodes: Vec<Inode>,
    names: Names,
    durable_names: Names,
    pending_names: Vec<NameChange>,
}

fn parent(path: &str) -> String {
    path.rsplit_once('/').map_or(String::new(), |(parent, _)| parent.to_string())
}

fn rename(names: &mut Names, from: &str, to: &str) {
    let below = format!("{from}/");
    let moved: Vec<String> = names.keys().filter(|path| *path == from || path.starts_with(&below)).cloned().collect();
    for path in moved {
        if let Some(node) = names.remove(&path) {
            names.insert(format!("{to}{}", &path[from.len()..]), node);
        }
    }
}

fn change_names(names: &mut Names, change: &NameChange) {
    match (&change.change, change.node) {
        (Change::Create(path) | Change::Mkdir(path), Some(node)) => {
            names.insert(path.clone(), node);
        }
        (Change::Unlink(path), _) => {
            names.remove(path);
        }
        (Change::Rename { from, to }, _) => rename(names, from, to),
        _ => {}
    }
}

fn patch(content: &mut Vec<u8>, patch: &Patch) {
    match patch {
        Patch::Data { offset, data } => {
            let end = *offset as usize + data.len();
            content.resize(content.len().max(end), 0);
            content[*offset as usize..end].copy_from_slice(data);
        }
        Patch::Length { len, only_grows } => {
            let len = *len as usize;
            content.resize(if *only_grows { content.len().max(len) } else { len }, 0);
        }
    }
}

/// How much of what was not synced is there after a power loss.
#[derive(Clone, Copy, Debug)]
pub enum Kept {
    Nothing,
    All,
    /// Each write for itself: whole, in part, or not at all.
    Some,
}

impl Disk {
    pub fn carry_out(&mut self, change: &Change) {
        match change {
            Change::Write { path, offset, data, through } => {
                let Some(Node::File(inode)) = self.names.get(path).copied() else { return };
                let data = Patch::Data { offset: *offset, data: data.clone() };
                if *through {
                    patch(&mut self.inodes[inode].durable, &data);
                } else {
                    self.inodes[inode].pending.push(data);
                }
            }
            Change::Truncate { path, len } => self.resize(path, *len, false),
            Change::Allocate { path, end } => self.resize(path, *end, true),
            Change::Sync(path) => {
                let Some(Node::File(inode)) = self.names.get(path).copied() else { return };
                let Inode { durable, pending } = &mut self.inodes[inode];
                pending.drain(..).for_each(|op| patch(durable, &op));
            }
            Change::SyncDir(path) => {
                let names = &mut self.durable_names;
                self.pending_names.retain(|change| {
                    let here = change.directory == *path;
                    if here {
                        change_names(names, change);
                    }
                    !here
                });
            }
            Change::Create(path) => {
                self.inodes.push(Inode::default());
                let node = Node::File(self.inodes.len() - 1);
                self.name(NameChange { directory: parent(path), change: change.clone(), node: Some(node) });
            }
            Change::Mkdir(path) => {
                self.name(NameChange { directory: parent(path), change: change.clone(), node: Some(Node::Directory) });
            }
            Change::Unlink(path) | Change::Rename { to: path, .. } => {
                self.name(NameChange { directory: parent(path), change: change.clone(), node: None });
            }
            Change::Mark(_) => {}
        }
    }

    fn resize(&mut self, path: &str, len: u64, only_grows: bool) {
        if let Some(Node::File(inode)) = self.names.get(path).copied() {
            self.inodes[inode].pending.push(Patch::Length { len, only_grows });
        }
    }

    fn name(&mut self, change: NameChange) {
        change_names(&mut self.names, &change);
        self.pending_names.push(change);
    }

    /// Puts what is left after a power loss, at this moment or in the middle of `during`, into a directory.
    pub fn lose_power(&self, during: Option<&Change>, kept: Kept, rng: &mut Rng, into: &Path) {
        let mut disk = self.clone();
        match during.cloned() {
            // It has not returned: nobody was promised anything.
            Some(Change::Write { path, offset, data, .. }) => {
                disk.carry_out(&Change::Write { path, offset, data, through: false })
            }
            Some(change @ (Change::Truncate { .. } | Change::Allocate { .. } | Change::Rename { .. })) => {
                disk.carry_out(&change);
            }
            _ => {}
        }
        let cut = match kept {
            Kept::Nothing => 0,
            Kept::All => disk.pending_names.len(),
            Kept::Some => rng.range(0, disk.pending_names.len() as u64 + 1) as usize,
        };
        let mut names = std::mem::take(&mut disk.durable_names);
        disk.pending_names.iter().take(cut).for_each(|change| change_names(&mut names, change));
        let directories: BTreeSet<&String> =
            names.iter().filter(|(_, n)| **n == Node::Directory).map(|(p, _)| p).collect();
        for (path, node) in &names {
            let Node::File(inode) = *node else { continue };
            // A name in a directory that is not there is not there.
            let mut at = parent(path);
            while !at.is_empty() && directories.contains(&at) {
                at = parent(&at);
            }
            if !at.is_empty() {
                continue;
            }
            let Inode { durable, pending } = &disk.inodes[inode];
            let mut content = durable.clone();
            for op in pending {
                match (kept, op) {
                    (Kept::Nothing, _) => {}
                    (Kept::Some, Patch::Data { offset, data }) if rng.chance(0.5) => {
                        // Sector by sector, as they lie on the disk.
                        let mut from = 0;
                        while from < data.len() {
                            let to = (from + SECTOR - (*offset as usize + from) % SECTOR).min(data.len());
                            if rng.chance(0.5) {
                                let part = Patch::Data { offset: offset + from as u64, data: data[from..to].to_vec() };
                                patch(&mut content, &part);
                            }
                            from = to;
                        }
                    }
                    (Kept::Some, _) if rng.chance(0.5) => {}
                    _ => patch(&mut content, op),
                }
            }
            let to = into.join(path);
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::write(to, content).unwrap();
        }
        for directory in directories {
            std::fs::create_dir_all(into.join(directory)).unwrap();
        }
    }
}

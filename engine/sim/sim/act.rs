//! What comes from outside: what clients ask for and what goes wrong, each with all it needs to happen again. A run is its
//! seed, its profile and its list of these (S20).

use raftify_engine::request::MemberChange;
use serde::{Deserialize, Serialize};

use super::files::Spoil;
use super::world::{World, MILLI};

/// [`MemberChange`] in a script.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Alter {
    Add { id: u64, addr: String, learner: bool },
    Promote(u64),
    Demote(u64),
    Remove(u64),
    Address { id: u64, addr: String },
}

impl Alter {
    pub fn change(&self) -> MemberChange {
        match self {
            Alter::Add { id, addr, learner } => MemberChange::Add { id: *id, addr: addr.clone(), learner: *learner },
            Alter::Promote(id) => MemberChange::Promote { id: *id },
            Alter::Demote(id) => MemberChange::Demote { id: *id },
            Alter::Remove(id) => MemberChange::Remove { id: *id },
            Alter::Address { id, addr } => MemberChange::UpdateAddress { id: *id, addr: addr.clone() },
        }
    }
}

pub type Timeout = Option<u64>;

/// Times are in microseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Act {
    // ---- clients
    /// `count` commands from number `first` on; one that is certainly not done is asked for again, up to `retries` times.
    Propose {
        node: u64,
        first: u64,
        count: u64,
        padding: u64,
        timeout: Timeout,
        retries: u64,
        /// Who sends them in a session, again and again; 0: nobody.
        #[serde(default)]
        customer: u64,
    },
    Read {
        node: u64,
        timeout: Timeout,
    },
    /// Whoever waits at this node goes away and never looks at the answers.
    Cancel {
        node: u64,
    },
    Snapshot {
        node: u64,
        timeout: Timeout,
    },
    Transfer {
        node: u64,
        to: Option<u64>,
        timeout: Timeout,
    },
    StepDown {
        node: u64,
        timeout: Timeout,
    },
    /// A new machine gets an id, and starts.
    Reserve {
        node: u64,
        addr: String,
        timeout: Timeout,
    },
    Join {
        node: u64,
        joiner: u64,
        learner: bool,
        timeout: Timeout,
    },
    Change {
        node: u64,
        changes: Vec<Alter>,
        timeout: Timeout,
    },
    Leave {
        node: u64,
        timeout: Timeout,
    },
    /// The machine of a lost member joins anew, from the same address: it gets an id from `node`, and an empty directory.
    Rejoin {
        node: u64,
        lost: u64,
        timeout: Timeout,
    },
    /// The log is told the node's new address, and once that has ended, however it ended, the node moves there.
    Move {
        node: u64,
        moves: u64,
        addr: String,
        timeout: Timeout,
    },

    // ---- faults
    /// The process ends (the page cache stays), or the power goes with what was not synced. Up again after `down`.
    Crash {
        node: u64,
        power: bool,
        down: u64,
    },
    /// The node is closed in order, and its process ends. Up again after `down`.
    Close {
        node: u64,
        down: u64,
    },
    /// The process ends and is started again after `down`; `between` after its end the power goes too, for as long.
    CrashTwice {
        node: u64,
        between: u64,
        down: u64,
    },
    /// Nothing passes along these links, `times` times for `long`, with `gap` between.
    Cut {
        links: Vec<(u64, u64)>,
        long: u64,
        gap: u64,
        times: u64,
        breaks: bool,
    },
    /// The next so many nodes that are elected are cut off in the moment they are.
    CutLeaders {
        count: u64,
        long: u64,
    },
    /// Connections of a node break for no reason.
    Break {
        node: u64,
        both: bool,
    },
    /// What this node sends in bulk passes at `rate` bytes a millisecond on each stream, and no more than `room` bytes wait for it.
    Narrow {
        node: u64,
        rate: u64,
        room: u64,
        long: u64,
    },
    BreakSnapshots {
        count: u64,
    },
    Pause {
        node: u64,
        long: u64,
    },
    /// No sync ends for so long.
    Hang {
        node: u64,
        long: u64,
    },
    /// Each sync takes so much longer, for so long.
    SlowDisk {
        node: u64,
        by: u64,
        long: u64,
    },
    /// The next sync fails: the node stops for good (S10), and is started again after `down`.
    FailSync {
        node: u64,
        down: u64,
    },
    /// Nothing can be appended for so long; the writer waits for room, or stops the node, which is started again then.
    Full {
        node: u64,
        long: u64,
        stops: bool,
    },
    /// A bit of the log turns. Found by reading it, it stops the node for good.
    Flip {
        node: u64,
    },
    /// The power goes, and in the morning the file of the snapshot that the log names is not what it was; the older ones neither, if
    /// `all`. Up again after `down`, if one can stand in; otherwise lost.
    SpoilSnapshot {
        node: u64,
        how: Spoil,
        all: bool,
        down: u64,
    },
    /// The directory is lost for good.
    Wipe {
        node: u64,
    },
    /// The wall clock of these nodes jumps.
    Jump {
        nodes: Vec<u64>,
        wall: u64,
    },
    /// The state machine takes so much longer for each request, for so long.
    SlowMachine {
        node: u64,
        by: u64,
        long: u64,
    },
    /// The state machine gives up at its next request: the node stops, and is started again after `down`.
    FailMachine {
        node: u64,
        down: u64,
    },
}

impl Act {
    pub fn is_fault(&self) -> bool {
        !matches!(
            self,
            Act::Propose { .. }
                | Act::Read { .. }
                | Act::Cancel { .. }
                | Act::Snapshot { .. }
                | Act::Transfer { .. }
                | Act::StepDown { .. }
                | Act::Reserve { .. }
                | Act::Join { .. }
                | Act::Change { .. }
                | Act::Leave { .. }
                | Act::Rejoin { .. }
                | Act::Move { .. }
        )
    }

    /// Smaller ones of the same kind, for shrinking.
    pub fn smaller(&self) -> Vec<Act> {
        let half = |of: u64| (of > MILLI).then_some(of / 2);
        let mut out = Vec::new();
        let mut try_with = |change: &dyn Fn(&mut Act) -> bool| {
            let mut act = self.clone();
            if change(&mut act) && act != *self {
                out.push(act);
            }
        };
        try_with(&|act| match act {
            Act::Propose { count, .. } if *count > 1 => {
                *count /= 2;
                true
            }
            Act::Propose { padding, .. } if *padding > 0 => {
                *padding = 0;
                true
            }
            Act::Cut { times, .. } if *times > 1 => {
                *times = 1;
                true
            }
            Act::Cut { links, .. } if links.len() > 1 => {
                links.truncate(links.len() / 2);
                true
            }
            Act::Change { changes, .. } if changes.len() > 1 => {
                changes.truncate(1);
                true
            }
            _ => false,
        });
        try_with(&|act| match act {
            Act::Propose { retries, .. } if *retries > 0 => {
                *retries = 0;
                true
            }
            Act::Propose { customer, .. } if *customer > 0 => {
                *customer = 0;
                true
            }
            Act::Cut { links, .. } if links.len() > 1 => {
                links.drain(..links.len() / 2);
                true
            }
            Act::Crash { down: long, .. }
            | Act::Close { down: long, .. }
            | Act::SpoilSnapshot { down: long, .. }
            | Act::CrashTwice { down: long, .. }
            | Act::Pause { long, .. }
            | Act::Narrow { long, .. }
            | Act::Hang { long, .. }
            | Act::Full { long, .. }
            | Act::SlowDisk { long, .. }
            | Act::SlowMachine { long, .. }
            | Act::FailSync { down: long, .. }
            | Act::CutLeaders { long, .. }
            | Act::FailMachine { down: long, .. } => match half(*long) {
                Some(less) => {
                    *long = less;
                    true
                }
                None => false,
            },
            _ => false,
        });
        try_with(&|act| match act {
            Act::Cut { long, .. } => match half(*long) {
                Some(less) => {
                    *long = less;
                    true
                }
                None => false,
            },
            _ => false,
        });
        out
    }
}

/// One act and when it happens, in microseconds of the world's clock.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    pub at: u64,
    pub act: Act,
}

impl World {
    /// The one way in for all that comes from outside; remembered.
    pub fn perform(&mut self, act: Act) {
        self.tell(|| format!("# {act:?}"));
        if act.is_fault() {
            self.fault(&act);
        } else {
            self.client(&act);
        }
        let at = self.now;
        self.steps.push(Step { at, act });
    }
}

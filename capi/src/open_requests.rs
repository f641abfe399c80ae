//! Which requests to a machine of the pull form wait for an answer: so that a second or a wrong answer is refused where it is given,
//! and never reaches the node.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use raftify_engine::machine::MachineRequest;
use raftify_engine::{Error, Result};

use crate::pointer::invalid;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Apply,
    Snapshot,
    Restore,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Apply => "APPLY",
            Kind::Snapshot => "SNAPSHOT",
            Kind::Restore => "RESTORE",
        }
    }
}

#[derive(Default)]
pub(crate) struct OpenRequests(Mutex<BTreeMap<u64, Kind>>);

fn unknown(id: u64, wanted: &[Kind]) -> Error {
    let names: Vec<&str> = wanted.iter().map(|kind| kind.name()).collect();
    invalid(format!("no {} with the number {id} waits for an answer (any more)", names.join(" or ")))
}

impl OpenRequests {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Kind>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before the request can be seen by anyone.
    pub(crate) fn opened(&self, request: &MachineRequest) {
        let kind = match request {
            MachineRequest::Apply(_) => Kind::Apply,
            MachineRequest::Snapshot { .. } => Kind::Snapshot,
            MachineRequest::Restore { .. } => Kind::Restore,
        };
        self.lock().insert(request.id(), kind);
    }

    /// It is open, and stays so: for its parts.
    pub(crate) fn check(&self, id: u64, kind: Kind) -> Result<()> {
        match self.lock().get(&id) {
            Some(open) if *open == kind => Ok(()),
            _ => Err(unknown(id, &[kind])),
        }
    }

    /// It is answered now: by this caller and nobody else.
    pub(crate) fn answered(&self, id: u64, kinds: &[Kind]) -> Result<()> {
        let mut open = self.lock();
        if open.get(&id).is_some_and(|kind| kinds.contains(kind)) {
            open.remove(&id);
            return Ok(());
        }
        Err(unknown(id, kinds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_answered_once_and_by_its_kind() {
        let open = OpenRequests::default();
        open.opened(&MachineRequest::Snapshot { id: 7, index: 1, term: 1 });
        assert!(open.answered(7, &[Kind::Apply]).is_err());
        assert!(open.check(7, Kind::Restore).is_err());
        assert_eq!(open.check(7, Kind::Snapshot), Ok(()));
        assert_eq!(open.answered(7, &[Kind::Snapshot]), Ok(()));
        let error = open.answered(7, &[Kind::Apply, Kind::Snapshot]).unwrap_err();
        assert!(error.message.contains("no APPLY or SNAPSHOT with the number 7"), "{error}");
    }
}

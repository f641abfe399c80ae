//! A node that is told to leave while it is still joining: the leave wins, and the join says so. So does one that comes too late.

use std::collections::BTreeMap;

use super::test_cores::{log, options};
use super::{new_log, Core, CoreOptions};
use crate::cluster::{ClusterState, Uid};
use crate::error::{Committed, Error, ErrorCode};
use crate::log::Identity;
use crate::request::{Request, Ticket};

const JOIN: u64 = 1;
const LEAVE: u64 = 2;
const LATE: u64 = 3;

fn ticket() -> Ticket {
    Ticket {
        reserved_id: 4,
        raft_addr: "h:4".into(),
        leader_id: 1,
        leader_addr: "h:1".into(),
        peers: BTreeMap::new(),
        incarnation: Uid(9).to_string(),
    }
}

fn joining() -> Core {
    let (hard_state, cluster, snapshot) = new_log(&ClusterState::default());
    let mut log = log(snapshot, (cluster.index, cluster.cluster), 0);
    log.hard_state = hard_state;
    log.identity = Identity { node_id: 4, directory: Uid(4), digest: 0, incarnation: None, cluster_id: "c".into() };
    let mut core = Core::new(CoreOptions { initial: BTreeMap::new(), ..options(log) }).unwrap();
    core.become_member(JOIN, &ticket(), None);
    core
}

fn outcome(core: &mut Core, token: u64) -> Option<Error> {
    core.poll().completions.into_iter().find(|c| c.token == token).map(|c| c.result.unwrap_err())
}

#[test]
fn a_join_that_this_nodes_own_leave_overtakes_says_so_however_it_learns_of_it() {
    for told_by_the_log in [true, false] {
        let mut core = joining();
        core.submit(LEAVE, Request::Leave, None);
        assert!(outcome(&mut core, JOIN).is_none(), "a join in flight is waited for: the node must be known to leave");
        if told_by_the_log {
            core.note_removed("an entry of the log removed this node");
        } else {
            core.abandon(JOIN, Error::not_done(ErrorCode::Membership, "id 4 is spent"));
        }
        let error = outcome(&mut core, JOIN).unwrap();
        assert_eq!(error.code, ErrorCode::Removed, "{error}");
        assert!(error.message.contains("leave() was called while its join()"), "{error}");
    }
}

#[test]
fn a_join_that_fails_for_another_reason_keeps_it() {
    let mut core = joining();
    core.submit(LEAVE, Request::Leave, None);
    core.abandon(JOIN, Error::not_done(ErrorCode::WrongDirectory, "wiped"));
    assert_eq!(outcome(&mut core, JOIN).unwrap().code, ErrorCode::WrongDirectory);
    let mut core = joining();
    core.abandon(JOIN, Error::not_done(ErrorCode::Membership, "id 4 is spent"));
    assert_eq!(outcome(&mut core, JOIN).unwrap().message, "id 4 is spent");
}

#[test]
fn a_join_of_a_node_that_serves_no_more_is_answered_at_once() {
    for (end, code) in [
        (Core::close as fn(&mut Core), ErrorCode::Closed),
        (|core| core.fail(Error::unknown(ErrorCode::Storage, "the disk is gone")), ErrorCode::Storage),
        (|core| core.note_removed("an entry of the log removed this node"), ErrorCode::Removed),
    ] {
        let mut core = joining();
        end(&mut core);
        core.become_member(LATE, &ticket(), None);
        let error = outcome(&mut core, LATE).unwrap();
        assert_eq!((error.code, error.committed), (code, Committed::No), "{error}");
    }
}

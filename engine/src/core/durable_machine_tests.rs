//! S7: what a state machine that is durable by itself is told after a start, by how far it had got.

use super::test_cores::{command, founders, log, options, snapshot};
use super::{Core, CoreOptions, Fetch};
use crate::cluster::ClusterState;
use crate::error::{ErrorCode, Result};
use crate::machine::{MachineAnswer, MachineRequest};
use crate::Config;

/// Entries 6 to 20; the snapshot at 10 has a file, the members are stored as of 12, and up to there it is known to be committed.
fn start(machine_applied: Option<u64>) -> Result<Core> {
    let cluster = ClusterState::founding(&founders());
    let mut log = log(Some(snapshot(10, 2, &cluster)), (12, cluster), 20);
    (log.first_index, log.terms) = (6, vec![(6, 2)]);
    Core::new(CoreOptions {
        config: Config { snapshot_entries: 1, ..Config::default() },
        entries: (13..=20).map(command).collect(),
        machine_applied,
        ..options(log)
    })
}

/// The restore it was asked for, and the commands it heard, until nothing more comes.
fn told(core: &mut Core) -> (Option<u64>, Vec<u64>) {
    let (mut restored, mut heard) = (None, Vec::new());
    for _ in 0..20 {
        let actions = core.poll();
        for request in actions.machine {
            match request {
                MachineRequest::Restore { id, index, .. } => {
                    restored = Some(index);
                    core.machine_answer(MachineAnswer::Restored { id });
                }
                MachineRequest::Apply(batch) => {
                    heard.extend(batch.entries.iter().map(|e| e.index));
                    core.machine_answer(MachineAnswer::Applied { id: batch.id, outcomes: Vec::new() });
                }
                MachineRequest::Snapshot { .. } => {}
            }
        }
        for Fetch { id, low, high, .. } in actions.fetches {
            core.fetched(id, (low..high).map(command).collect());
        }
    }
    (restored, heard)
}

#[test]
fn s7_a_durable_machine_hears_what_comes_after_its_index_and_takes_a_snapshot_only_when_the_log_begins_later() {
    let cases = [
        // Applied, commit at start, restored, heard.
        (None, 12, Some(10), vec![11, 12]),
        (Some(0), 12, Some(10), vec![11, 12]),
        (Some(4), 12, Some(10), vec![11, 12]),
        (Some(5), 12, None, (6..=12).collect()),
        (Some(9), 12, None, vec![10, 11, 12]),
        (Some(10), 12, None, vec![11, 12]),
        (Some(12), 12, None, vec![]),
        (Some(15), 15, None, vec![]),
        (Some(20), 20, None, vec![]),
    ];
    for (machine_applied, commit, restored, heard) in cases {
        let mut core = start(machine_applied).unwrap();
        assert_eq!(core.positions().commit, commit, "applied {machine_applied:?}");
        assert!(core.applied() <= core.positions().handed, "applied {machine_applied:?}");
        assert_eq!(told(&mut core), (restored, heard), "applied {machine_applied:?}");
        let at = core.positions();
        assert_eq!((at.applied, at.handed), (commit, commit), "applied {machine_applied:?}");
    }
}

#[test]
fn s7_a_durable_machine_ahead_of_the_log_is_told_that_the_directory_is_not_its_own() {
    let error = start(Some(21)).err().unwrap();
    assert_eq!(error.code, ErrorCode::WrongDirectory);
    assert!(error.message.contains("index 21") && error.message.contains("index 20"), "{error}");
}

#[test]
fn s13_a_durable_machine_gives_no_snapshot_of_an_index_whose_members_are_not_known_yet() {
    let mut core = start(Some(15)).unwrap();
    core.consider_snapshot();
    assert!(core.out.machine.is_empty(), "entries 13 to 15 may change the members, and were not looked at yet");
    let asked = core.poll().machine;
    assert!(matches!(asked.as_slice(), [MachineRequest::Snapshot { index: 15, .. }]), "{asked:?}");
}

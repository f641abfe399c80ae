//! Membership: what was asked, checked against the members there are, becomes one step of raft's (S12, S13).

use std::collections::BTreeMap;

use prost::Message as _;
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState};

use crate::address;
use crate::cluster::{ClusterState, Member, NodeId};
use crate::error::{Error, ErrorCode, Result};
use crate::request::{MemberChange, MAX_CHANGES};
use crate::wire::MembershipContext;

/// A membership change on its way to the leader.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Change {
    #[prost(message, repeated, tag = "1")]
    pub steps: Vec<Step>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Step {
    /// 1 add a voter (as a learner first), 2 add a learner, 3 promote, 4 demote, 5 remove, 6 new address.
    #[prost(uint32, tag = "1")]
    pub kind: u32,
    #[prost(uint64, tag = "2")]
    pub id: u64,
    #[prost(string, tag = "3")]
    pub addr: String,
    /// Of a joining node; empty when an id is added by hand.
    #[prost(bytes = "vec", tag = "4")]
    pub directory: Vec<u8>,
}

impl Change {
    pub fn of(changes: &[MemberChange]) -> Self {
        let steps = changes
            .iter()
            .map(|change| {
                let (kind, id, addr) = match change {
                    MemberChange::Add { id, addr, learner: false } => (1, *id, addr.clone()),
                    MemberChange::Add { id, addr, learner: true } => (2, *id, addr.clone()),
                    MemberChange::Promote { id } => (3, *id, String::new()),
                    MemberChange::Demote { id } => (4, *id, String::new()),
                    MemberChange::Remove { id } => (5, *id, String::new()),
                    MemberChange::UpdateAddress { id, addr } => (6, *id, addr.clone()),
                };
                Step { kind, id, addr, directory: Vec::new() }
            })
            .collect();
        Change { steps }
    }

    pub fn join(id: NodeId, addr: &str, directory: &[u8], learner: bool) -> Self {
        let kind = if learner { 2 } else { 1 };
        Change { steps: vec![Step { kind, id, addr: addr.into(), directory: directory.to_vec() }] }
    }

    /// Ids that are to be voters once this is done, learners, or gone.
    pub fn goals(&self) -> impl Iterator<Item = (NodeId, Goal)> + '_ {
        self.steps.iter().map(|step| {
            let goal = match step.kind {
                1 | 3 => Goal::Voter,
                2 | 4 => Goal::Learner,
                5 => Goal::Gone,
                _ => Goal::At(step.addr.clone()),
            };
            (step.id, goal)
        })
    }
}

/// What has to be true of a member for a change to be complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Goal {
    Voter,
    Learner,
    Gone,
    At(String),
}

impl Goal {
    pub fn reached(&self, id: NodeId, cluster: &ClusterState) -> bool {
        match self {
            Goal::Voter => cluster.is_voter(id) && !cluster.is_joint(),
            // One that is marked is about to be a voter.
            Goal::Learner => {
                cluster.learners.contains(&id) && !cluster.is_joint() && cluster.member(id).is_none_or(|m| !m.promote)
            }
            Goal::Gone => cluster.member(id).is_none() && !cluster.is_joint(),
            Goal::At(addr) => cluster.member(id).is_some_and(|m| m.addr == *addr),
        }
    }
}

impl Goal {
    /// It was to be, and another change has made it something else: waiting longer is of no use.
    pub fn overtaken(&self, id: NodeId, cluster: &ClusterState) -> bool {
        let on_its_way =
            matches!(self, Goal::Voter) && cluster.is_learner(id) && cluster.member(id).is_some_and(|m| m.promote);
        !cluster.is_joint() && !on_its_way && !self.reached(id, cluster)
    }
}

/// What a request waits for, and from which index on the cluster must be on its way there.
#[derive(Debug)]
pub struct Awaited {
    pub since: u64,
    pub goals: Vec<(NodeId, Goal)>,
}

/// An id given by hand raises the counter that new ids are taken from (S12): it must not come to its end.
const MAX_ID: NodeId = NodeId::MAX / 2;

fn refuse<T>(message: String) -> Result<T> {
    Err(Error::not_done(ErrorCode::Membership, message).lasting())
}

/// A change that is too long for anybody to plan.
pub fn bounded(change: &Change) -> Result<()> {
    let count = change.steps.len();
    if count > MAX_CHANGES {
        let text = format!("{count} membership changes in one request; at most {MAX_CHANGES}");
        return Err(Error::not_done(ErrorCode::InvalidArgument, text));
    }
    Ok(())
}

/// Turns a change into a conf change against the present cluster; refuses what makes no sense, naming why.
/// An empty plan (`None`) means that nothing is left to do.
pub fn plan(change: &Change, cluster: &ClusterState) -> Result<Option<ConfChangeV2>> {
    let mut singles: Vec<ConfChangeSingle> = Vec::new();
    let mut records: Vec<Member> = Vec::new();
    let mut voters_after = cluster.voters.clone();
    let mut push = |singles: &mut Vec<ConfChangeSingle>, id: NodeId, kind: ConfChangeType| {
        match kind {
            ConfChangeType::AddNode if !voters_after.contains(&id) => voters_after.push(id),
            ConfChangeType::AddNode => {}
            _ => voters_after.retain(|v| *v != id),
        }
        singles.push(ConfChangeSingle { change_type: kind as i32, node_id: id });
    };
    let mut seen: Vec<NodeId> = Vec::new();
    for step in &change.steps {
        let id = step.id;
        if id == 0 {
            return refuse("id 0 is not a node; use an id above 0".into());
        }
        if id > MAX_ID && cluster.member(id).is_none() {
            return refuse(format!("id {id} is above {MAX_ID}: no id would be left above it; use a smaller one"));
        }
        if seen.contains(&id) {
            return refuse(format!("node {id} is named twice in one change; name each node once"));
        }
        seen.push(id);
        let present = cluster.member(id);
        match step.kind {
            1 | 2 => {
                if cluster.is_removed(id) {
                    return refuse(format!("id {id} was removed before and is spent; reserve a new id"));
                }
                address::dialable("addr", &step.addr, false)?;
                let promote = step.kind == 1;
                if let Some(member) = present {
                    let recorded = &member.directory;
                    if !step.directory.is_empty() && !recorded.is_empty() && *recorded != step.directory {
                        return Err(Error::not_done(
                            ErrorCode::WrongDirectory,
                            format!(
                                "node {id} is known with another directory: its data was wiped; remove the member and let it \
                                 join under a new id"
                            ),
                        ));
                    }
                    // By hand it would turn everybody away from a node that runs, and only a number was mistaken. (One that joins says
                    // where it is itself.)
                    if step.directory.is_empty() && member.addr != step.addr && !member.addr.is_empty() {
                        return refuse(format!(
                            "node {id} is a member at {}; to move it to {} update its address, or add another id",
                            member.addr, step.addr
                        ));
                    }
                    // A learner that is marked is on its way already.
                    let done = match promote {
                        true => cluster.is_voter(id) || (cluster.is_learner(id) && member.promote),
                        false => cluster.is_learner(id) && !member.promote,
                    };
                    if done && member.addr == step.addr && (step.directory.is_empty() || !recorded.is_empty()) {
                        continue;
                    }
                    let directory = if recorded.is_empty() { step.directory.clone() } else { recorded.clone() };
                    records.push(Member {
                        id,
                        addr: step.addr.clone(),
                        directory,
                        promote: promote && !cluster.is_voter(id),
                    });
                    if promote && cluster.is_learner(id) && !member.promote {
                        // Marked above: the leader promotes it once it has caught up.
                        push(&mut singles, id, ConfChangeType::AddLearnerNode);
                    } else if cluster.is_voter(id) {
                        push(
                            &mut singles,
                            id,
                            if promote { ConfChangeType::AddNode } else { ConfChangeType::AddLearnerNode },
                        );
                    } else {
                        push(&mut singles, id, ConfChangeType::AddLearnerNode);
                    }
                } else {
                    // A join from the address of a present member replaces that member in the same step (S12).
                    if let Some(old) = cluster.member_at(&step.addr) {
                        if !change.steps.iter().any(|s| s.id == old.id) {
                            // By hand that would be a removal that nobody asked for.
                            if step.directory.is_empty() {
                                return refuse(format!(
                                    "{} is the address of member {}; name that member in the same change (remove or replace it), or \
                                     give another address",
                                    step.addr, old.id
                                ));
                            }
                            push(&mut singles, old.id, ConfChangeType::RemoveNode);
                        }
                    }
                    records.push(Member { id, addr: step.addr.clone(), directory: step.directory.clone(), promote });
                    // The last voter cannot be replaced by a learner: it would leave nobody to lead.
                    push(&mut singles, id, ConfChangeType::AddLearnerNode);
                }
            }
            3 => match present {
                None => return refuse(format!("node {id} is no member; add it first")),
                Some(_) if cluster.is_voter(id) => continue,
                Some(member) => {
                    records.push(Member { promote: false, ..member.clone() });
                    push(&mut singles, id, ConfChangeType::AddNode);
                }
            },
            4 => match present {
                None => return refuse(format!("node {id} is no member")),
                Some(member) if cluster.is_learner(id) && !member.promote => continue,
                Some(member) => {
                    // A learner that is marked would become a voter by itself.
                    records.push(Member { promote: false, ..member.clone() });
                    push(&mut singles, id, ConfChangeType::AddLearnerNode);
                }
            },
            5 => {
                if present.is_some() {
                    push(&mut singles, id, ConfChangeType::RemoveNode);
                }
            }
            6 => match present {
                None => return refuse(format!("node {id} is no member")),
                Some(member) if member.addr == step.addr => continue,
                Some(member) => {
                    address::dialable("addr", &step.addr, false)?;
                    records.push(Member { addr: step.addr.clone(), ..member.clone() });
                    let same =
                        if cluster.is_voter(id) { ConfChangeType::AddNode } else { ConfChangeType::AddLearnerNode };
                    push(&mut singles, id, same);
                }
            },
            other => return refuse(format!("this node does not know membership change number {other}; upgrade it")),
        }
    }
    if singles.is_empty() {
        return Ok(None);
    }
    if let Some((addr, one, other)) = shared_address(cluster, &singles, &records) {
        return refuse(format!(
            "{addr} would be the address of the members {one} and {other}; give each its own, or remove one of them in the same change"
        ));
    }
    if voters_after.is_empty() {
        return refuse("this would leave the cluster without a voter; add another voter first".into());
    }
    // Whose directory is not recorded has never joined and may not vote (S11): with a majority of them nobody could be elected again.
    let absent: Vec<NodeId> =
        voters_after.iter().copied().filter(|id| cluster.recorded_directory(*id).is_none()).collect();
    if cluster.incarnation().is_some() && absent.len().saturating_mul(2) >= voters_after.len() {
        return refuse(format!(
            "of the voters {voters_after:?} this would leave, {absent:?} have never joined, so that no majority could elect; start them first, or remove them too"
        ));
    }
    let context = MembershipContext { members: records }.encode_to_vec();
    Ok(Some(ConfChangeV2 { transition: ConfChangeTransition::Auto as i32, changes: singles, context }))
}

/// An address that two members would have after this: whoever dials one of them would reach the other.
fn shared_address<'a>(
    cluster: &'a ClusterState,
    singles: &[ConfChangeSingle],
    records: &'a [Member],
) -> Option<(&'a str, NodeId, NodeId)> {
    let goes =
        |id: NodeId| singles.iter().any(|s| s.node_id == id && s.change_type == ConfChangeType::RemoveNode as i32);
    let stays = |id: NodeId| !goes(id) && !records.iter().any(|record| record.id == id);
    let mut held: BTreeMap<&str, NodeId> =
        cluster.members().iter().filter(|m| stays(m.id)).map(|m| (m.addr.as_str(), m.id)).collect();
    let named = records.iter().filter(|record| !record.addr.is_empty());
    named.into_iter().find_map(|record| {
        let other = held.insert(&record.addr, record.id)?;
        Some((record.addr.as_str(), other, record.id))
    })
}

/// The cluster after a conf change that raft has applied with this outcome.
pub fn apply(cluster: &mut ClusterState, change: &ConfChangeV2, conf: &ConfState) {
    cluster.set_conf_state(conf);
    if let Ok(context) = MembershipContext::decode(change.context.as_slice()) {
        for mut member in context.members {
            // An entry between the plan and this one may have recorded the directory: what is recorded stays (S11).
            if let Some(recorded) = cluster.member(member.id).map(|m| &m.directory).filter(|d| !d.is_empty()) {
                member.directory.clone_from(recorded);
            }
            cluster.put_member(member);
        }
    }
    for single in &change.changes {
        let id = single.node_id;
        if single.change_type == ConfChangeType::AddNode as i32 {
            if let Some(member) = cluster.member_mut(id) {
                member.promote = false;
            } else {
                cluster.put_member(Member { id, ..Default::default() });
            }
        }
    }
    // A member that is in no set any more is gone for good. One that only leaves with the old half of a joint configuration goes with it.
    let gone: Vec<NodeId> = cluster
        .members()
        .iter()
        .map(|m| m.id)
        .filter(|id| !cluster.is_voter(*id) && !cluster.is_learner(*id) && !cluster.voters_outgoing.contains(id))
        .collect();
    for id in gone {
        cluster.drop_member(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> ClusterState {
        ClusterState::founding(&(1..=3).map(|id| (id, format!("h:{id}"))).collect())
    }

    fn kinds(change: &ConfChangeV2) -> Vec<(i32, u64)> {
        change.changes.iter().map(|c| (c.change_type, c.node_id)).collect()
    }

    #[test]
    fn a_new_voter_comes_as_a_learner_that_will_be_promoted() {
        let planned = plan(&Change::join(4, "h:4", &[7; 16], false), &three()).unwrap().unwrap();
        assert_eq!(kinds(&planned), [(ConfChangeType::AddLearnerNode as i32, 4)]);
        let mut after = three();
        let conf = ConfState { voters: vec![1, 2, 3], learners: vec![4], ..Default::default() };
        apply(&mut after, &planned, &conf);
        assert!(after.member(4).unwrap().promote);
        assert_eq!(after.next_id, 5);
    }

    #[test]
    fn a_join_from_a_members_address_replaces_it_in_the_same_step() {
        let planned = plan(&Change::join(4, "h:3", &[7; 16], false), &three()).unwrap().unwrap();
        assert_eq!(
            kinds(&planned),
            [(ConfChangeType::RemoveNode as i32, 3), (ConfChangeType::AddLearnerNode as i32, 4)]
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_a_reason() {
        let mut cluster = three();
        cluster.drop_member(9);
        let table: Vec<(Vec<MemberChange>, &str)> = vec![
            (vec![MemberChange::Add { id: 9, addr: "h:9".into(), learner: false }], "id 9 was removed before"),
            (vec![MemberChange::Add { id: 0, addr: "h:9".into(), learner: false }], "id 0 is not a node"),
            (
                vec![MemberChange::Add { id: u64::MAX, addr: "h:9".into(), learner: false }],
                "id 18446744073709551615 is above",
            ),
            (vec![MemberChange::Promote { id: 8 }], "node 8 is no member"),
            (vec![MemberChange::Add { id: 8, addr: "h:2".into(), learner: false }], "h:2 is the address of member 2"),
            (vec![MemberChange::Remove { id: 1 }, MemberChange::Remove { id: 1 }], "node 1 is named twice"),
            (
                vec![MemberChange::Add { id: 1, addr: "h:9".into(), learner: false }],
                "node 1 is a member at h:1; to move it to h:9 update its address",
            ),
            (
                vec![MemberChange::UpdateAddress { id: 2, addr: "h:1".into() }],
                "h:1 would be the address of the members 1 and 2",
            ),
            (
                [8, 7].map(|id| MemberChange::Add { id, addr: "h:9".into(), learner: true }).to_vec(),
                "h:9 would be the address of the members 8 and 7",
            ),
            ((1..=3).map(|id| MemberChange::Remove { id }).collect(), "this would leave the cluster without a voter"),
        ];
        for (changes, reason) in table {
            let error = plan(&Change::of(&changes), &cluster).unwrap_err();
            assert!(error.message.starts_with(reason), "{}", error.message);
            assert_eq!((error.committed, error.retryable()), (crate::Committed::No, false), "{error}");
        }
    }

    #[test]
    fn a_change_that_would_leave_it_to_members_who_never_joined_is_refused() {
        let mut cluster = three();
        cluster.incarnation = vec![1; 16];
        for id in [2, 3] {
            cluster.member_mut(id).unwrap().directory = vec![id as u8; 16];
        }
        let remove = |id| plan(&Change::of(&[MemberChange::Remove { id }]), &cluster);
        assert!(remove(2).unwrap_err().message.contains("[1] have never joined"));
        assert!(remove(1).unwrap().is_some());
    }

    #[test]
    fn an_address_that_nobody_can_dial_is_not_recorded() {
        for addr in ["", "nowhere", "a b:1", "0.0.0.0:5", "[::]:5", "127.0.0.1:0", "http://a:1"] {
            for change in [
                MemberChange::Add { id: 8, addr: addr.into(), learner: false },
                MemberChange::Add { id: 8, addr: addr.into(), learner: true },
                MemberChange::UpdateAddress { id: 2, addr: addr.into() },
            ] {
                let error = plan(&Change::of(std::slice::from_ref(&change)), &three()).unwrap_err();
                assert_eq!(
                    (error.code, error.field.as_deref()),
                    (ErrorCode::InvalidConfig, Some("addr")),
                    "{change:?}"
                );
                assert!(error.message.contains(&format!("{addr:?}")), "{error}");
            }
        }
    }

    #[test]
    fn members_may_change_places_in_one_step() {
        let at = |id, addr: &str| MemberChange::UpdateAddress { id, addr: addr.into() };
        let add = |id, addr: &str| MemberChange::Add { id, addr: addr.into(), learner: true };
        for changes in [
            vec![at(1, "h:2"), at(2, "h:1")],
            vec![MemberChange::Remove { id: 1 }, at(2, "h:1")],
            vec![at(2, "h:9"), add(8, "h:2")],
            vec![add(8, "h:9"), add(7, "h:10")],
            // As it is already.
            vec![add(3, "h:3"), at(1, "h:9")],
        ] {
            assert!(plan(&Change::of(&changes), &three()).unwrap().is_some(), "{changes:?}");
        }
        // One that has moved says so itself when it joins again; not to where another one is.
        let mut cluster = three();
        cluster.member_mut(1).unwrap().directory = vec![7; 16];
        let moved = |addr| plan(&Change::join(1, addr, &[7; 16], false), &cluster);
        assert!(moved("h:9").unwrap().is_some());
        assert!(moved("h:2").unwrap_err().message.starts_with("h:2 would be the address of the members 2 and 1"));
    }

    #[test]
    fn what_is_so_already_needs_no_step() {
        let changes = [MemberChange::Promote { id: 1 }, MemberChange::Remove { id: 77 }];
        assert_eq!(plan(&Change::of(&changes), &three()).unwrap(), None);
    }

    #[test]
    fn a_learner_that_was_to_become_a_voter_is_demoted_by_taking_that_back() {
        let mut cluster = three();
        cluster.set_conf_state(&ConfState { voters: vec![1, 2], learners: vec![3], ..Default::default() });
        let demote = Change::of(&[MemberChange::Demote { id: 3 }]);
        assert_eq!(plan(&demote, &cluster).unwrap(), None, "it is and stays a learner");
        cluster.member_mut(3).unwrap().promote = true;
        assert!(demote.goals().all(|(id, goal)| !goal.reached(id, &cluster)), "it is about to be a voter");
        let planned = plan(&demote, &cluster).unwrap().unwrap();
        assert_eq!(kinds(&planned), [(ConfChangeType::AddLearnerNode as i32, 3)]);
        let conf = cluster.conf_state();
        apply(&mut cluster, &planned, &conf);
        assert_eq!(cluster.member(3), Some(&Member { id: 3, addr: "h:3".into(), ..Default::default() }));
        assert!(demote.goals().all(|(id, goal)| goal.reached(id, &cluster)));
    }

    #[test]
    fn a_directory_recorded_after_the_plan_was_made_stays() {
        let mut cluster = three();
        let move_it = MemberChange::UpdateAddress { id: 2, addr: "h:9".into() };
        let planned = plan(&Change::of(&[move_it]), &cluster).unwrap().unwrap();
        cluster.member_mut(2).unwrap().directory = vec![7; 16];
        let conf = cluster.conf_state();
        apply(&mut cluster, &planned, &conf);
        let member = cluster.member(2).unwrap();
        assert_eq!((member.addr.as_str(), member.directory.len()), ("h:9", 16));
    }

    #[test]
    fn s11_an_id_that_is_known_does_not_join_with_another_directory() {
        let mut cluster = three();
        cluster.member_mut(3).unwrap().directory = vec![7; 16];
        let join = |directory: &[u8]| plan(&Change::join(3, "h:3", directory, false), &cluster);
        assert_eq!(join(&[7; 16]).unwrap(), None, "it asks again");
        assert_eq!(join(&[8; 16]).unwrap_err().code, ErrorCode::WrongDirectory);
    }

    #[test]
    fn who_leaves_with_the_old_half_of_two_is_a_member_until_then() {
        let mut cluster = three();
        let change = Change::of(&[MemberChange::Remove { id: 2 }, MemberChange::Remove { id: 3 }]);
        let planned = plan(&change, &cluster).unwrap().unwrap();
        let joint =
            ConfState { voters: vec![1], voters_outgoing: vec![1, 2, 3], auto_leave: true, ..Default::default() };
        apply(&mut cluster, &planned, &joint);
        // Its vote is needed as long as both halves decide: it is dialled and listened to.
        assert!([2, 3].iter().all(|id| cluster.member(*id).is_some() && !cluster.is_removed(*id)));
        apply(&mut cluster, &ConfChangeV2::default(), &ConfState { voters: vec![1], ..Default::default() });
        assert!([2, 3].iter().all(|id| cluster.member(*id).is_none() && cluster.is_removed(*id)));
    }

    #[test]
    fn who_was_made_a_voter_and_is_a_learner_again_stays_one() {
        let mut cluster = three();
        let joined = plan(&Change::join(4, "h:4", &[7; 16], false), &cluster).unwrap().unwrap();
        apply(&mut cluster, &joined, &ConfState { voters: vec![1, 2, 3], learners: vec![4], ..Default::default() });
        let add = ConfChangeSingle { change_type: ConfChangeType::AddNode as i32, node_id: 4 };
        let added = ConfChangeV2 { changes: vec![add], ..Default::default() };
        apply(&mut cluster, &added, &ConfState { voters: vec![1, 2, 3, 4], ..Default::default() });
        assert!(!cluster.member(4).unwrap().promote, "it would be promoted once more as soon as it is demoted");
    }

    #[test]
    fn a_removed_member_is_spent() {
        let mut cluster = three();
        let planned = plan(&Change::of(&[MemberChange::Remove { id: 2 }]), &cluster).unwrap().unwrap();
        apply(&mut cluster, &planned, &ConfState { voters: vec![1, 3], ..Default::default() });
        assert!(cluster.is_removed(2) && cluster.member(2).is_none());
    }
}

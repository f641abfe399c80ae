//! Membership: what is asked for, when that is so, and what the members are after a step of raft's (S12, S13). In between: `change_plan`.

use prost::Message as _;
use raft::eraftpb::{ConfChangeType, ConfChangeV2, ConfState};

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

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
pub enum StepKind {
    Unknown = 0,
    /// As a learner first.
    AddVoter = 1,
    AddLearner = 2,
    Promote = 3,
    Demote = 4,
    Remove = 5,
    UpdateAddress = 6,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Step {
    #[prost(enumeration = "StepKind", tag = "1")]
    pub kind: i32,
    #[prost(uint64, tag = "2")]
    pub id: u64,
    #[prost(string, tag = "3")]
    pub addr: String,
    /// Of a joining node; empty when an id is added by hand.
    #[prost(bytes = "vec", tag = "4")]
    pub directory: Vec<u8>,
}

impl Step {
    pub fn new(kind: StepKind, id: NodeId, addr: &str) -> Self {
        Step { kind: kind as i32, id, addr: addr.into(), directory: Vec::new() }
    }
}

impl Change {
    pub fn of(changes: &[MemberChange]) -> Self {
        let step = |change: &MemberChange| match change {
            MemberChange::Add { id, addr, learner: false } => Step::new(StepKind::AddVoter, *id, addr),
            MemberChange::Add { id, addr, learner: true } => Step::new(StepKind::AddLearner, *id, addr),
            MemberChange::Promote { id } => Step::new(StepKind::Promote, *id, ""),
            MemberChange::Demote { id } => Step::new(StepKind::Demote, *id, ""),
            MemberChange::Remove { id } => Step::new(StepKind::Remove, *id, ""),
            MemberChange::UpdateAddress { id, addr } => Step::new(StepKind::UpdateAddress, *id, addr),
        };
        Change { steps: changes.iter().map(step).collect() }
    }

    pub fn join(id: NodeId, addr: &str, directory: &[u8], learner: bool) -> Self {
        let kind = if learner { StepKind::AddLearner } else { StepKind::AddVoter };
        Change { steps: vec![Step { directory: directory.to_vec(), ..Step::new(kind, id, addr) }] }
    }

    /// Ids that are to be voters once this is done, learners, or gone.
    pub fn goals(&self) -> impl Iterator<Item = (NodeId, Goal)> + '_ {
        self.steps.iter().map(|step| {
            let goal = match step.kind() {
                StepKind::AddVoter | StepKind::Promote => Goal::Voter,
                StepKind::AddLearner | StepKind::Demote => Goal::Learner,
                StepKind::Remove => Goal::Gone,
                // Nobody plans an unknown one.
                StepKind::UpdateAddress | StepKind::Unknown => Goal::At(step.addr.clone()),
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

/// A change that is too long for anybody to plan.
pub fn bounded(change: &Change) -> Result<()> {
    let count = change.steps.len();
    if count > MAX_CHANGES {
        let text = format!("{count} membership changes in one request; at most {MAX_CHANGES}");
        return Err(Error::not_done(ErrorCode::InvalidArgument, text));
    }
    Ok(())
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
    use raft::eraftpb::ConfChangeSingle;

    use crate::core::change_plan::plan;

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

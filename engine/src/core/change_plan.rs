//! What a membership change comes to against the members there are: one step of raft's, or the reason why not (S12, S13).

use std::collections::BTreeMap;

use prost::Message as _;
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2};

use super::membership::{Change, Step, StepKind};
use crate::address;
use crate::cluster::{ClusterState, Member, NodeId};
use crate::error::{Error, ErrorCode, Result};
use crate::wire::MembershipContext;

/// An id given by hand raises the counter that new ids are taken from (S12): it must not come to its end.
const MAX_ID: NodeId = NodeId::MAX / 2;

/// Turns a change into a conf change against the present cluster; refuses what makes no sense, naming why.
/// An empty plan (`None`) means that nothing is left to do.
pub fn plan(change: &Change, cluster: &ClusterState) -> Result<Option<ConfChangeV2>> {
    names_each_once(change, cluster)?;
    let mut plan =
        Plan { change, cluster, singles: Vec::new(), records: Vec::new(), voters_after: cluster.voters.clone() };
    for step in &change.steps {
        plan.step(step)?;
    }
    if plan.singles.is_empty() {
        return Ok(None);
    }
    plan.leaves_a_cluster()?;
    let context = MembershipContext { members: plan.records }.encode_to_vec();
    Ok(Some(ConfChangeV2 { transition: ConfChangeTransition::Auto as i32, changes: plan.singles, context }))
}

fn refuse<T>(message: String) -> Result<T> {
    Err(Error::not_done(ErrorCode::Membership, message).lasting())
}

fn names_each_once(change: &Change, cluster: &ClusterState) -> Result<()> {
    for (at, Step { id, .. }) in change.steps.iter().enumerate() {
        if *id == 0 {
            return refuse("id 0 is not a node; use an id above 0".into());
        }
        if *id > MAX_ID && cluster.member(*id).is_none() {
            return refuse(format!("id {id} is above {MAX_ID}: no id would be left above it; use a smaller one"));
        }
        if change.steps.iter().take(at).any(|earlier| earlier.id == *id) {
            return refuse(format!("node {id} is named twice in one change; name each node once"));
        }
    }
    Ok(())
}

struct Plan<'a> {
    change: &'a Change,
    cluster: &'a ClusterState,
    singles: Vec<ConfChangeSingle>,
    /// What members will be known with.
    records: Vec<Member>,
    voters_after: Vec<NodeId>,
}

impl Plan<'_> {
    fn step(&mut self, step: &Step) -> Result<()> {
        let (id, cluster) = (step.id, self.cluster);
        let no_member = |remedy: &str| refuse(format!("node {id} is no member{remedy}"));
        match (step.kind(), cluster.member(id)) {
            (StepKind::AddVoter | StepKind::AddLearner, present) => {
                if cluster.is_removed(id) {
                    return refuse(format!("id {id} was removed before and is spent; reserve a new id"));
                }
                address::dialable("addr", &step.addr, false)?;
                match present {
                    Some(member) => return self.add_again(step, member),
                    None => return self.add(step),
                }
            }
            (StepKind::Promote, None) => return no_member("; add it first"),
            (StepKind::Promote, Some(_)) if cluster.is_voter(id) => {}
            (StepKind::Promote, Some(member)) => {
                self.records.push(Member { promote: false, ..member.clone() });
                self.put(id, ConfChangeType::AddNode);
            }
            (StepKind::Demote | StepKind::UpdateAddress, None) => return no_member(""),
            (StepKind::Demote, Some(member)) if cluster.is_learner(id) && !member.promote => {}
            (StepKind::Demote, Some(member)) => {
                // A learner that is marked would become a voter by itself.
                self.records.push(Member { promote: false, ..member.clone() });
                self.put(id, ConfChangeType::AddLearnerNode);
            }
            (StepKind::Remove, None) => {}
            (StepKind::Remove, Some(_)) => self.put(id, ConfChangeType::RemoveNode),
            (StepKind::UpdateAddress, Some(member)) if member.addr == step.addr => {}
            (StepKind::UpdateAddress, Some(member)) => {
                address::dialable("addr", &step.addr, false)?;
                self.records.push(Member { addr: step.addr.clone(), ..member.clone() });
                self.put(
                    id,
                    if cluster.is_voter(id) { ConfChangeType::AddNode } else { ConfChangeType::AddLearnerNode },
                );
            }
            (StepKind::Unknown, _) => {
                return refuse(format!("this node does not know membership change number {}; upgrade it", step.kind));
            }
        }
        Ok(())
    }

    fn put(&mut self, id: NodeId, kind: ConfChangeType) {
        match kind {
            ConfChangeType::AddNode if !self.voters_after.contains(&id) => self.voters_after.push(id),
            ConfChangeType::AddNode => {}
            _ => self.voters_after.retain(|voter| *voter != id),
        }
        self.singles.push(ConfChangeSingle { change_type: kind as i32, node_id: id });
    }

    fn add(&mut self, step: &Step) -> Result<()> {
        // A join from the address of a present member replaces that member in the same step (S12).
        if let Some(old) = self.cluster.member_at(&step.addr) {
            if !self.change.steps.iter().any(|other| other.id == old.id) {
                // By hand that would be a removal that nobody asked for.
                if step.directory.is_empty() {
                    return refuse(format!(
                        "{} is the address of member {}; name that member in the same change (remove or replace it), or give another \
                         address",
                        step.addr, old.id
                    ));
                }
                self.put(old.id, ConfChangeType::RemoveNode);
            }
        }
        let (addr, directory) = (step.addr.clone(), step.directory.clone());
        self.records.push(Member { id: step.id, addr, directory, promote: step.kind() == StepKind::AddVoter });
        // The last voter cannot be replaced by a learner: it would leave nobody to lead.
        self.put(step.id, ConfChangeType::AddLearnerNode);
        Ok(())
    }

    /// One that is a member: it joins once more, or its part is to be another.
    fn add_again(&mut self, step: &Step, member: &Member) -> Result<()> {
        let (id, recorded) = (step.id, &member.directory);
        if !step.directory.is_empty() && !recorded.is_empty() && *recorded != step.directory {
            return Err(Error::not_done(
                ErrorCode::WrongDirectory,
                format!(
                    "node {id} is known with another directory: its data was wiped; remove the member and let it join under a new id"
                ),
            ));
        }
        // By hand it would turn everybody away from a node that runs, and only a number was mistaken. (One that joins says where it is
        // itself.)
        if step.directory.is_empty() && member.addr != step.addr && !member.addr.is_empty() {
            return refuse(format!(
                "node {id} is a member at {}; to move it to {} update its address, or add another id",
                member.addr, step.addr
            ));
        }
        let to_vote = step.kind() == StepKind::AddVoter;
        let (votes, learns) = (self.cluster.is_voter(id), self.cluster.is_learner(id));
        // A learner that is marked is on its way already.
        let done = if to_vote { votes || (learns && member.promote) } else { learns && !member.promote };
        if done && member.addr == step.addr && (step.directory.is_empty() || !recorded.is_empty()) {
            return Ok(());
        }
        let directory = if recorded.is_empty() { step.directory.clone() } else { recorded.clone() };
        // Marked: the leader promotes it once it has caught up.
        self.records.push(Member { id, addr: step.addr.clone(), directory, promote: to_vote && !votes });
        self.put(id, if to_vote && votes { ConfChangeType::AddNode } else { ConfChangeType::AddLearnerNode });
        Ok(())
    }

    fn leaves_a_cluster(&self) -> Result<()> {
        let (cluster, voters) = (self.cluster, &self.voters_after);
        if let Some((addr, one, other)) = self.shared_address() {
            return refuse(format!(
                "{addr} would be the address of the members {one} and {other}; give each its own, or remove one of them in the same change"
            ));
        }
        if voters.is_empty() {
            return refuse("this would leave the cluster without a voter; add another voter first".into());
        }
        // Whose directory is not recorded has never joined and may not vote (S11): with a majority of them nobody could be elected again.
        let absent: Vec<NodeId> =
            voters.iter().copied().filter(|id| cluster.recorded_directory(*id).is_none()).collect();
        if cluster.incarnation().is_some() && absent.len().saturating_mul(2) >= voters.len() {
            return refuse(format!(
                "of the voters {voters:?} this would leave, {absent:?} have never joined, so that no majority could elect; start them first, or remove them too"
            ));
        }
        Ok(())
    }

    /// An address that two members would have after this: whoever dials one of them would reach the other.
    fn shared_address(&self) -> Option<(&str, NodeId, NodeId)> {
        let gone = ConfChangeType::RemoveNode as i32;
        let goes = |id: NodeId| self.singles.iter().any(|s| s.node_id == id && s.change_type == gone);
        let stays = |id: NodeId| !goes(id) && !self.records.iter().any(|record| record.id == id);
        let mut held: BTreeMap<&str, NodeId> =
            self.cluster.members().iter().filter(|m| stays(m.id)).map(|m| (m.addr.as_str(), m.id)).collect();
        let named = self.records.iter().filter(|record| !record.addr.is_empty());
        named.into_iter().find_map(|record| {
            let other = held.insert(&record.addr, record.id)?;
            Some((record.addr.as_str(), other, record.id))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::MemberChange;

    fn three() -> ClusterState {
        ClusterState::founding(&(1..=3).map(|id| (id, format!("h:{id}"))).collect())
    }

    #[test]
    fn a_join_from_a_members_address_replaces_it_in_the_same_step() {
        let planned = plan(&Change::join(4, "h:3", &[7; 16], false), &three()).unwrap().unwrap();
        assert_eq!(
            planned.changes.iter().map(|c| (c.change_type, c.node_id)).collect::<Vec<_>>(),
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
            (vec![MemberChange::Demote { id: 8 }], "node 8 is no member"),
            (vec![MemberChange::UpdateAddress { id: 8, addr: "h:8".into() }], "node 8 is no member"),
            ((1..=3).map(|id| MemberChange::Remove { id }).collect(), "this would leave the cluster without a voter"),
        ];
        for (changes, reason) in table {
            let error = plan(&Change::of(&changes), &cluster).unwrap_err();
            assert!(error.message.starts_with(reason), "{}", error.message);
            assert_eq!((error.committed, error.retryable()), (crate::Committed::No, false), "{error}");
        }
    }

    #[test]
    fn a_step_that_only_a_newer_version_knows_is_refused() {
        let change = Change { steps: vec![Step { kind: 7, ..Step::new(StepKind::Remove, 2, "") }] };
        let sent = Change::decode(change.encode_to_vec().as_slice()).unwrap();
        assert!(plan(&sent, &three()).unwrap_err().message.contains("membership change number 7; upgrade it"));
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
    fn s11_an_id_that_is_known_does_not_join_with_another_directory() {
        let mut cluster = three();
        cluster.member_mut(3).unwrap().directory = vec![7; 16];
        let join = |directory: &[u8]| plan(&Change::join(3, "h:3", directory, false), &cluster);
        assert_eq!(join(&[7; 16]).unwrap(), None, "it asks again");
        assert_eq!(join(&[8; 16]).unwrap_err().code, ErrorCode::WrongDirectory);
    }
}

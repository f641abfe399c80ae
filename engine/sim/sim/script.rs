//! What named scenarios are written with: a quiet cluster, and one thing that goes wrong.

use raftify_engine::request::Reply;
use raftify_engine::Error;

use super::draws::Draws;
use super::world::{Profile, World, SECOND};

/// Long enough for anything that is going to happen in a quiet cluster.
pub const SOON: u64 = 20 * SECOND;

impl World {
    /// No clients, no faults; results are kept.
    pub fn scripted(seed: u64, profile: Profile) -> World {
        let draws = Draws::new(seed);
        let told = std::env::var("RAFTIFY_SIM_TELL").is_ok();
        let mut world = World::new(seed, profile, draws, told);
        world.clients.keep = true;
        world
    }

    pub fn leader(&self) -> Option<u64> {
        let leading = self.hosts.iter().filter_map(|(id, h)| Some((h.life.as_ref()?, *id)));
        leading.filter(|(l, _)| l.core.is_leader()).max_by_key(|(l, _)| l.core.term()).map(|(_, id)| id)
    }

    pub fn term(&self, id: u64) -> u64 {
        self.hosts[&id].life.as_ref().map_or(0, |l| l.core.term())
    }

    /// Everybody follows one leader.
    pub fn settle(&mut self) -> u64 {
        assert!(self.run_until_so(SOON, |w| w.settled().is_some()), "no leader{}", self.describe());
        self.leader().unwrap()
    }

    /// A leader among those that are not cut off from the rest.
    pub fn settle_among(&mut self, ids: &[u64]) -> u64 {
        let led =
            |w: &World| ids.iter().copied().find(|id| w.hosts[id].life.as_ref().is_some_and(|l| l.core.is_leader()));
        let served = self.run_until_so(SOON, |w| {
            let Some(leader) = led(w) else { return false };
            let follows = |id: &&u64| w.hosts[id].life.as_ref().is_some_and(|l| l.core.positions().leader == leader);
            ids.iter().filter(follows).count() == ids.len()
        });
        assert!(served, "no leader among {ids:?}{}", self.describe());
        led(self).unwrap()
    }

    pub fn outcome(&mut self, token: u64) -> Result<Reply, Error> {
        assert!(
            self.run_until_so(SOON, |w| w.result(token).is_some()),
            "request {token} does not end{}",
            self.describe()
        );
        self.result(token).unwrap().clone()
    }

    /// Proposes at this node until `count` commands are done.
    pub fn done(&mut self, id: u64, count: usize) {
        let tokens: Vec<u64> = (0..count).map(|_| self.propose(id, Some(10 * SECOND)).unwrap().0).collect();
        for token in tokens {
            if let Err(error) = self.outcome(token) {
                assert_eq!(error.code, raftify_engine::ErrorCode::ApplyFailed, "{error}");
            }
        }
    }

    pub fn cut_off(&mut self, id: u64) {
        let others: Vec<u64> = self.hosts.keys().copied().filter(|other| *other != id).collect();
        self.network.cut.extend(others.iter().flat_map(|other| [(id, *other), (*other, id)]));
    }

    pub fn others(&self, id: u64) -> Vec<u64> {
        self.hosts.keys().copied().filter(|other| *other != id).collect()
    }

    /// Joins a new node: reserve, start, join, until it is a voter. Its id.
    pub fn grow(&mut self, via: u64, addr: &str) -> u64 {
        use super::clients::Op;
        use raftify_engine::request::Request;
        let addr = addr.to_string();
        let token = self.ask(via, Op::Reserve(addr.clone()), Request::ReserveId { addr }, Some(10 * SECOND)).unwrap();
        let Ok(Reply::Ticket(ticket)) = self.outcome(token) else { panic!("no ticket") };
        let id = ticket.reserved_id;
        assert!(self.run_until_so(SOON, |w| w.place(id).is_some()));
        let token = self.join(via, id, false, Some(15 * SECOND)).unwrap();
        self.outcome(token).unwrap();
        id
    }
}

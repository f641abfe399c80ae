//! Places for connections: so many for anybody, and some above them that only members of the cluster keep.
//!
//! ```text
//!  accepted ──► anybody's place: until it ends
//!           └─► those are taken ──► a spare one ──(a member's greeting is accepted)──► kept: until it ends
//!                                              ├──(a call)──► refused by name, closed; our own client goes to another member
//!                                              └──(neither, for as long as a greeting may take)──► closed
//! ```
//!
//! Clients that dial again and again would otherwise keep out the members of a leader, which loses its leadership with them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Spare places, at most; a member has three connections.
const SPARE: usize = 64;

pub struct Room {
    limit: usize,
    anybody: Arc<Semaphore>,
    spare: Arc<Semaphore>,
}

impl Room {
    pub fn new(limit: usize) -> Self {
        Room {
            limit,
            anybody: Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS))),
            spare: Arc::new(Semaphore::new((limit / 8).min(SPARE))),
        }
    }

    /// A place for one that was accepted just now; none: it is closed at once, so that the backlog does not fill with them.
    pub fn place(&self, from: SocketAddr) -> Option<Place> {
        if let Ok(permit) = Arc::clone(&self.anybody).try_acquire_owned() {
            return Some(Place { standing: Standing::default(), _permit: permit });
        }
        let permit = Arc::clone(&self.spare).try_acquire_owned().ok()?;
        let spare = Spare { limit: self.limit, from, fate: AtomicU8::new(WAITS) };
        Some(Place { standing: Standing(Some(Arc::new(spare))), _permit: permit })
    }
}

/// Given back when this is dropped.
pub struct Place {
    pub standing: Standing,
    _permit: OwnedSemaphorePermit,
}

const WAITS: u8 = 0;
const KEPT: u8 = 1;
const REFUSED: u8 = 2;

struct Spare {
    limit: usize,
    from: SocketAddr,
    fate: AtomicU8,
}

/// Whether a connection has a spare place, and what has become of it. What tonic gives each of its requests.
#[derive(Clone, Default)]
pub struct Standing(Option<Arc<Spare>>);

impl Standing {
    /// It is a member's.
    pub fn keep(&self) {
        if let Some(spare) = &self.0 {
            spare.fate.store(KEPT, Ordering::Relaxed);
        }
    }

    /// Somebody calls on it: who, and why not, if it has a spare place. It is closed then, unless it is a member's.
    pub fn refusal(&self) -> Option<(SocketAddr, String)> {
        let spare = self.0.as_ref()?;
        let _ = spare.fate.compare_exchange(WAITS, REFUSED, Ordering::Relaxed, Ordering::Relaxed);
        Some((spare.from, full(spare.limit)))
    }

    pub fn is_refused(&self) -> bool {
        self.0.as_ref().is_some_and(|spare| spare.fate.load(Ordering::Relaxed) == REFUSED)
    }

    /// It ends unless it is kept soon.
    pub fn waits(&self) -> bool {
        self.0.as_ref().is_some_and(|spare| spare.fate.load(Ordering::Relaxed) != KEPT)
    }
}

pub fn full(limit: usize) -> String {
    format!(
        "this node has {limit} connections, as many as it takes; close some (one client is enough for a whole program)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from() -> SocketAddr {
        ([127, 0, 0, 1], 7).into()
    }

    #[test]
    fn above_the_limit_there_are_a_few_places_for_members() {
        let room = Room::new(16);
        let mut places: Vec<Place> = std::iter::from_fn(|| room.place(from())).collect();
        assert_eq!(places.len(), 18);
        assert!(places.iter().take(16).all(|place| !place.standing.waits() && place.standing.refusal().is_none()));
        assert!(places.iter().skip(16).all(|place| place.standing.waits()));
        places.remove(0);
        assert!(!room.place(from()).unwrap().standing.waits(), "anybody's places go first");
        for (limit, spare) in [(0, 0), (1, 0), (128, 16), (1024, 64), (100_000, 64)] {
            assert_eq!(Room::new(limit).spare.available_permits(), spare, "{limit}");
        }
    }

    #[test]
    fn a_spare_place_is_kept_by_a_member_and_by_nobody_who_calls() {
        let spare = |room: &Room| {
            let _anybody: Vec<Place> = (0..8).map(|_| room.place(from()).unwrap()).collect();
            room.place(from()).unwrap().standing
        };
        let room = Room::new(8);
        let called = spare(&room);
        assert!(called.refusal().unwrap().1.contains("this node has 8 connections") && called.is_refused());
        let kept = spare(&room);
        kept.keep();
        assert!(!kept.waits());
        assert!(kept.refusal().is_some() && !kept.is_refused(), "the call is refused, the member stays");
    }
}

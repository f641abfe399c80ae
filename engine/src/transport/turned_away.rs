//! Callers without a good certificate: told in the log, but not one by one.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::service::Shared;
use crate::locks::lock;

/// One host and reason is told at most this often: strangers do not fill the disk.
const PAUSE: Duration = Duration::from_secs(60);
/// So many of them; others are not told meanwhile.
const KINDS: usize = 64;

#[derive(Default)]
pub struct TurnedAway {
    /// When it was told last, and how many came since.
    told: Mutex<HashMap<(IpAddr, String), (Instant, u64)>>,
}

impl TurnedAway {
    pub fn tell(&self, shared: &Shared, from: SocketAddr, reason: String) {
        if let Some(line) = self.line(from, reason, Instant::now()) {
            shared.say(slog::Level::Warning, line);
        }
    }

    fn line(&self, from: SocketAddr, reason: String, now: Instant) -> Option<String> {
        let mut told = lock(&self.told);
        let over = |at: Instant| now.saturating_duration_since(at) >= PAUSE;
        let line = format!("a caller at {from} was turned away: {reason}");
        let key = (from.ip(), reason);
        if let Some((at, untold)) = told.get_mut(&key) {
            if !over(*at) {
                *untold = untold.saturating_add(1);
                return None;
            }
            let line = format!("{line} ({untold} more times since this was last told)");
            (*at, *untold) = (now, 0);
            return Some(line);
        }
        if told.len() >= KINDS {
            told.retain(|_, (at, _)| !over(*at));
        }
        (told.len() < KINDS).then(|| {
            told.insert(key, (now, 0));
            line
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_host_and_reason_is_told_once_in_a_while_and_not_more_than_so_many() {
        let turned_away = TurnedAway::default();
        let start = Instant::now();
        let line = |host: u8, reason: &str, after: u64| {
            turned_away.line(([10, 0, 0, host], 7).into(), reason.into(), start + Duration::from_secs(after))
        };
        assert_eq!(line(1, "a", 0).as_deref(), Some("a caller at 10.0.0.1:7 was turned away: a"));
        assert!(line(2, "a", 1).is_some() && line(1, "b", 1).is_some(), "another host, another reason");
        assert_eq!((line(1, "a", 1), line(1, "a", 59)), (None, None));
        assert!(line(1, "a", 60).unwrap().ends_with("a (2 more times since this was last told)"));
        let lines = (0..=255).filter(|host| line(*host, "c", 61).is_some()).count();
        assert_eq!(lines, KINDS - 1, "those told a minute ago made room");
        assert!(line(9, "d", 62).is_none() && line(9, "d", 200).is_some());
    }
}

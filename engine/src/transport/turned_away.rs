//! Callers without a good certificate: told in the log, but not one by one.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::service::Shared;
use crate::locks::lock;

/// A line at most this often: strangers do not fill the disk.
const PAUSE: Duration = Duration::from_secs(10);

#[derive(Default)]
pub struct TurnedAway {
    /// When one was told last, and how many came since.
    state: Mutex<(Option<Instant>, u64)>,
}

impl TurnedAway {
    pub fn tell(&self, shared: &Shared, from: SocketAddr, reason: &str) {
        let mut state = lock(&self.state);
        let (told, untold) = *state;
        if told.is_some_and(|told| told.elapsed() < PAUSE) {
            state.1 = untold.saturating_add(1);
            return;
        }
        *state = (Some(Instant::now()), 0);
        let more = match untold {
            0 => String::new(),
            n => format!(" (and {n} others since the last such line)"),
        };
        shared.say(slog::Level::Warning, format!("a caller at {from} was turned away: {reason}{more}"));
    }
}

//! A failing run becomes a small one: steps are left out, the environment is made plain, nodes go, ranges are halved, as long as
//! the same promise is broken (delta debugging). Bounded in time: what is reached by then is what there is.

use std::time::{Duration, Instant};

use super::profile::Profile;
use super::record::{Failure, Script};

pub struct Shrinker {
    best: Script,
    message: String,
    kind: String,
    until: Instant,
    pub tries: u64,
}

impl Shrinker {
    /// The smallest script found in that time that breaks the same promise, and how it ends.
    pub fn shrink(failure: &Failure, time: Duration) -> Failure {
        let kind = Failure::kind(&failure.message);
        let until = Instant::now() + time;
        let (best, message) = (failure.script.clone(), failure.message.clone());
        let mut shrinker = Shrinker { best, message, kind, until, tries: 0 };
        loop {
            let before = serde_json::to_string(&shrinker.best).expect("a script is text");
            shrinker.drop_steps();
            shrinker.make_plain();
            shrinker.drop_nodes();
            shrinker.make_smaller();
            let after = serde_json::to_string(&shrinker.best).expect("a script is text");
            if before == after || shrinker.is_late() {
                return Failure { message: shrinker.message, script: shrinker.best };
            }
        }
    }

    fn is_late(&self) -> bool {
        Instant::now() >= self.until
    }

    /// Takes the script when it breaks the same promise.
    fn takes(&mut self, script: Script) -> bool {
        if self.is_late() {
            return false;
        }
        self.tries += 1;
        match script.try_run() {
            Err(failure) if Failure::kind(&failure.message) == self.kind => {
                // What comes after the end has no part in it.
                let kept = failure.script.steps.len();
                self.message = failure.message;
                self.best = script;
                self.best.steps.sort_by_key(|step| step.at);
                self.best.steps.truncate(kept);
                true
            }
            _ => false,
        }
    }

    fn without(&self, from: usize, to: usize) -> Script {
        let mut script = self.best.clone();
        script.steps.drain(from..to);
        script
    }

    fn drop_steps(&mut self) {
        let mut size = self.best.steps.len().div_ceil(2);
        while size > 0 && !self.is_late() {
            // From the end: what happens late needs what happened before, not the other way round.
            let mut end = self.best.steps.len();
            while end > 0 && !self.is_late() {
                let start = end.saturating_sub(size);
                let script = self.without(start, end);
                self.takes(script);
                end = start.min(self.best.steps.len());
            }
            size = if size == 1 { 0 } else { size.div_ceil(2) };
        }
    }

    /// The environment as it is when nothing goes wrong, as far as that still fails.
    fn make_plain(&mut self) {
        let quiet = Profile::quiet(self.best.profile.nodes);
        let last = self.best.steps.last().map_or(0, |step| step.at);
        type Change = Box<dyn Fn(&mut Profile)>;
        let plain = quiet.clone();
        let mut changes: Vec<Change> = vec![Box::new(move |p: &mut Profile| {
            *p = Profile {
                learners: p.learners,
                turmoil: p.turmoil,
                wipes: p.wipes,
                sabotage: p.sabotage,
                config: p.config.clone(),
                ..plain.clone()
            };
        })];
        macro_rules! plain {
            ($($field:ident),*) => {
                $({
                    let quiet = quiet.clone();
                    changes.push(Box::new(move |p: &mut Profile| p.$field = quiet.$field.clone()));
                })*
            };
        }
        plain!(loss, duplicates, reorder, late, codec, snapshot_fails, clock_skew, delay, sync, machine, restore);
        plain!(
            learners,
            snapshot_file,
            snapshot_send,
            padding,
            mix,
            shares,
            retries,
            sessions,
            fault_every,
            client_every,
            lasting,
            config
        );
        macro_rules! plain_config {
            ($($field:ident),*) => {
                $({
                    let quiet = quiet.clone();
                    changes.push(Box::new(move |p: &mut Profile| p.config.$field = quiet.config.$field));
                })*
            };
        }
        plain_config!(check_quorum, pre_vote, snapshot_entries, snapshot_bytes, trailing_entries, max_size_per_msg);
        plain_config!(max_inflight_msgs, max_committed_size_per_ready, max_unapplied_entries, max_pending_proposals);
        plain_config!(
            snapshot_interval,
            max_sessions,
            machine_batches,
            machine_batch_entries,
            machine_batch_bytes,
            tail_bytes
        );
        changes.push(Box::new(move |p: &mut Profile| {
            p.turmoil = p.turmoil.min(last.saturating_sub(super::world::SECOND) + 10_000);
        }));
        for change in changes {
            let mut script = self.best.clone();
            change(&mut script.profile);
            if script.profile != self.best.profile {
                self.takes(script);
            }
        }
    }

    fn drop_nodes(&mut self) {
        while self.best.profile.nodes > 1 {
            let mut script = self.best.clone();
            script.profile.nodes -= 1;
            script.profile.learners = script.profile.learners.min(script.profile.nodes - 1);
            if !self.takes(script) {
                return;
            }
        }
    }

    fn make_smaller(&mut self) {
        for at in 0..self.best.steps.len() {
            let mut again = true;
            while again && !self.is_late() {
                let Some(step) = self.best.steps.get(at) else { return };
                again = step.act.smaller().into_iter().any(|act| {
                    let mut script = self.best.clone();
                    script.steps[at].act = act;
                    self.takes(script)
                });
            }
        }
    }
}

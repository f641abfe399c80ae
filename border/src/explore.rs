//! How schedules are chosen.

use shuttle::scheduler::{DfsScheduler, PctScheduler, RandomScheduler, ReplayScheduler, Scheduler};
use shuttle::{Config, FailurePersistence, Runner};

type Scenario = fn();

/// Preemptions that a priority schedule may need to show a fault.
const DEPTH: usize = 3;

fn config(persistence: FailurePersistence) -> Config {
    let mut config = Config::new();
    // The core runs on these stacks too.
    config.stack_size = 512 << 10;
    config.failure_persistence = persistence;
    config.silence_warnings = true;
    config
}

fn run(scheduler: impl Scheduler + 'static, scenario: Scenario, persistence: FailurePersistence) {
    Runner::new(scheduler, config(persistence)).run(scenario);
}

/// Half of the schedules at random, half by priorities, new ones in each run. A failure prints its schedule; `BORDER_REPLAY=<it>` runs
/// that one alone. `BORDER_FACTOR=100` tries a hundred times as many.
pub fn sample(scenario: Scenario, schedules: usize) {
    if let Ok(schedule) = std::env::var("BORDER_REPLAY") {
        return run(ReplayScheduler::new_from_encoded(&schedule), scenario, FailurePersistence::None);
    }
    let factor = std::env::var("BORDER_FACTOR").map_or(1, |factor| factor.parse().expect("BORDER_FACTOR is a number"));
    let schedules = schedules.saturating_mul(factor);
    run(RandomScheduler::new(schedules / 2), scenario, FailurePersistence::Print);
    run(PctScheduler::new(DEPTH, schedules / 2), scenario, FailurePersistence::Print);
}

/// Every schedule there is; they must be fewer than `bound`.
pub fn all(scenario: Scenario, bound: usize) {
    let tried = Runner::new(DfsScheduler::new(Some(bound), false), config(FailurePersistence::Print)).run(scenario);
    assert!(tried < bound, "there are more than {bound} schedules: this is not all of them");
    println!("{tried} schedules, which is all");
}

/// Whether some schedule of these fails, from a fixed seed.
pub fn finds(scenario: Scenario, schedules: usize) -> bool {
    let failed = |scheduler: Box<dyn FnOnce() + Send>| std::thread::spawn(scheduler).join().is_err();
    let half = schedules / 2;
    failed(Box::new(move || run(RandomScheduler::new_from_seed(1, half), scenario, FailurePersistence::None)))
        || failed(Box::new(move || {
            run(PctScheduler::new_from_seed(1, DEPTH, half), scenario, FailurePersistence::None);
        }))
}

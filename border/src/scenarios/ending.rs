//! CLOSED: pushed exactly once, last, when both the engine and the machine have ended.

use std::time::Duration;

use shuttle::sync::Arc;
use shuttle::thread;

use super::queue::RAFTIFY_WAKE_NONE;
use super::queueing::new_queue;
use super::record::RAFTIFY_EVENT_CLOSED;
use super::sink::Ending;

pub fn closed_is_in_the_queue_when_a_wait_for_it_ends() {
    let queue = new_queue(RAFTIFY_WAKE_NONE);
    let ending = Arc::new(Ending::new(queue.queue(), 1, false));
    let engine = Arc::clone(&ending);
    let engine = thread::spawn(move || engine.engine_ended(Ok(())));
    assert!(ending.wait(Duration::MAX));
    assert_eq!(queue.drain(2).len(), 1, "the wait for CLOSED ended before it was there");
    engine.join().expect("a thread of the scenario");
    queue.free();
}

pub fn both_ends_race() {
    let queue = new_queue(RAFTIFY_WAKE_NONE);
    let ending = Arc::new(Ending::new(queue.queue(), 1, true));
    let ends: [fn(&Ending); 4] =
        [|e| e.engine_ended(Ok(())), |e| e.machine_gone(), |e| assert!(e.wait(Duration::MAX)), |e| e.engine_ended(Ok(()))];
    let ends = ends.map(|end| {
        let ending = Arc::clone(&ending);
        thread::spawn(move || end(&ending))
    });
    assert_eq!(queue.wait(), 0);
    for end in ends {
        end.join().expect("a thread of the scenario");
    }
    let seen = queue.drain(4);
    assert_eq!(seen.iter().map(|s| s.kind).collect::<Vec<_>>(), [RAFTIFY_EVENT_CLOSED], "CLOSED, once");
    queue.free();
}

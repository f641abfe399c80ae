//! Answers of a machine in pull form, from several threads.

use raftify_engine::machine::MachineRequest;
use shuttle::sync::Arc;
use shuttle::thread;

use super::open_requests::{Kind, OpenRequests};

pub fn two_answers_race() {
    let open = Arc::new(OpenRequests::default());
    open.opened(&MachineRequest::Snapshot { id: 7, index: 1, term: 1 });
    let other = Arc::clone(&open);
    let answer = thread::spawn(move || other.answered(7, &[Kind::Snapshot]).is_ok());
    let here = open.answered(7, &[Kind::Apply, Kind::Snapshot]).is_ok();
    let there = answer.join().expect("a thread of the scenario");
    assert!(here != there, "of two answers {} were taken", u8::from(here) + u8::from(there));
    assert!(open.answered(7, &[Kind::Snapshot]).is_err() && open.check(7, Kind::Snapshot).is_err());
}

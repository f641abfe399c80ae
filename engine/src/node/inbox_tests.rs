//! The bounds of the inbox, and its end.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{unbounded_channel, UnboundedReceiver};

use super::inbox::{Bounds, Door, Inbox, Input};
use crate::error::{Committed, ErrorCode, Result};
use crate::machine::MachineAnswer;
use crate::request::Timeout;

/// Three requests and a hundred bytes may wait.
fn inbox() -> (Inbox, Arc<Door>, UnboundedReceiver<Input>) {
    let (inputs, outbox) = unbounded_channel();
    let door = Arc::<Door>::default();
    (Inbox::new(inputs, Arc::clone(&door), Bounds { requests: 3, bytes: 100 }), door, outbox)
}

fn submit(inbox: &Inbox, requests: u64, bytes: u64) -> Result<()> {
    inbox.submit(Input::Reads { tokens: vec![1], timeout: Timeout::None }, requests, bytes)
}

fn refused(submitted: Result<()>) -> Option<(ErrorCode, Committed)> {
    submitted.err().map(|error| (error.code, error.committed))
}

const OVERLOADED: Option<(ErrorCode, Committed)> = Some((ErrorCode::Overloaded, Committed::No));
const CLOSED: Option<(ErrorCode, Committed)> = Some((ErrorCode::Closed, Committed::No));

#[test]
fn requests_and_their_bytes_are_bounded_and_what_is_refused_takes_no_room() {
    let (inbox, door, mut outbox) = inbox();
    submit(&inbox, 2, 60).unwrap();
    for _ in 0..3 {
        assert_eq!(refused(submit(&inbox, 2, 0)), OVERLOADED, "a fourth request");
        assert_eq!(refused(submit(&inbox, 1, 41)), OVERLOADED, "a byte too many");
    }
    submit(&inbox, 1, 40).unwrap();
    assert_eq!(refused(submit(&inbox, 1, 0)), OVERLOADED);
    door.taken(3, 100);
    submit(&inbox, 3, 100).unwrap();
    let waiting = std::iter::from_fn(|| outbox.try_recv().ok()).count();
    assert_eq!(waiting, 3, "what was refused reaches nobody");
}

#[test]
fn what_is_above_the_bounds_by_itself_passes_alone() {
    for (requests, bytes) in [(10, 0), (1, 1000)] {
        let (inbox, door, _outbox) = inbox();
        submit(&inbox, requests, bytes).unwrap();
        assert_eq!(refused(submit(&inbox, 1, 1)), OVERLOADED, "{requests} {bytes}");
        door.taken(requests, bytes);
        submit(&inbox, 1, 1).unwrap();
    }
}

#[test]
fn after_a_close_nothing_is_accepted_but_what_the_machine_has_to_say() {
    let (inbox, _door, mut outbox) = inbox();
    inbox.close(Duration::ZERO);
    assert!(matches!(outbox.try_recv(), Ok(Input::Close(_))));
    for _ in 0..9 {
        assert_eq!(refused(submit(&inbox, 1, 50)), CLOSED);
    }
    assert!(outbox.try_recv().is_err());
    inbox.send(Input::Answer(MachineAnswer::Restored { id: 1 })).unwrap();
    assert!(matches!(outbox.try_recv(), Ok(Input::Answer(_))));
    drop(outbox);
    assert_eq!(refused(inbox.send(Input::Answer(MachineAnswer::Restored { id: 2 }))), CLOSED, "nobody is there");
}

#[test]
fn what_nobody_takes_any_more_takes_no_room() {
    let (inbox, _door, outbox) = inbox();
    drop(outbox);
    for _ in 0..9 {
        assert_eq!(refused(submit(&inbox, 1, 50)), CLOSED);
    }
}

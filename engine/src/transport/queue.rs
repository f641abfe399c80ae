//! What waits to be sent to one peer on one lane, and the request body that takes it from there.
//!
//! A queue belongs to one stream and ends with it. An item is either still in it (then it certainly never left) or was
//! taken into a frame (then nobody knows): S15 rests on this border.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio_stream::Stream;

use super::envelope::Parts;
use super::limits::MAX_ITEMS;
use super::outgoing::Outgoing;

/// Bytes that a frame is filled up to; only a single larger item makes a larger frame.
const FRAME_TARGET: usize = 4 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// The listener has not agreed yet: nothing is taken.
    Greeting,
    Open,
    Closed,
}

struct State {
    phase: Phase,
    items: VecDeque<Outgoing>,
    bytes: usize,
    waker: Option<Waker>,
}

pub struct LaneQueue {
    state: Mutex<State>,
    max_bytes: usize,
    max_items: usize,
    max_item: usize,
}

impl LaneQueue {
    /// `max_item`: what fits into the largest frame that the other side takes.
    pub fn new(max_bytes: usize, max_items: usize, max_item: usize) -> Arc<Self> {
        let state = State { phase: Phase::Greeting, items: VecDeque::new(), bytes: 0, waker: None };
        Arc::new(LaneQueue { state: Mutex::new(state), max_bytes, max_items, max_item })
    }

    // Never held across anything that waits; both sides run on one thread, so it is never contended.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn open(&self) {
        let mut state = self.state();
        if state.phase == Phase::Greeting {
            state.phase = Phase::Open;
        }
    }

    /// Takes items from the front as long as they fit and hands back the rest: the order stays.
    pub fn push(&self, items: Vec<Outgoing>) -> Result<(), Vec<Outgoing>> {
        let mut state = self.state();
        if state.phase != Phase::Open {
            return Err(items);
        }
        let mut rest = items.into_iter();
        while let Some(item) = rest.next() {
            let size = item.encoded_len();
            let full = !state.items.is_empty()
                && (state.bytes.saturating_add(size) > self.max_bytes || state.items.len() >= self.max_items);
            if full || size > self.max_item {
                let back = std::iter::once(item).chain(rest).collect();
                wake(state);
                return Err(back);
            }
            state.bytes = state.bytes.saturating_add(size);
            state.items.push_back(item);
        }
        wake(state);
        Ok(())
    }

    /// Nothing is taken any more. Returns what never left, in order, and whether it had been open.
    pub fn close(&self) -> (Vec<Outgoing>, bool) {
        let mut state = self.state();
        let was_open = state.phase == Phase::Open;
        state.phase = Phase::Closed;
        state.bytes = 0;
        let items = std::mem::take(&mut state.items).into();
        wake(state);
        (items, was_open)
    }

    /// One frame of as much as is there, in pieces. `Ready(None)` once closed.
    fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Vec<Bytes>>> {
        let mut state = self.state();
        match state.phase {
            Phase::Closed => return Poll::Ready(None),
            Phase::Greeting | Phase::Open if state.items.is_empty() => {
                state.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Phase::Greeting | Phase::Open => {}
        }
        let mut frame = Vec::with_capacity(state.items.len().min(MAX_ITEMS).saturating_mul(2));
        let (mut items, mut bytes) = (0usize, 0usize);
        while let Some(size) = state.items.front().map(Outgoing::encoded_len) {
            bytes = bytes.saturating_add(size);
            if items > 0 && (bytes > FRAME_TARGET.min(self.max_item) || items >= MAX_ITEMS) {
                break;
            }
            if let Some(item) = state.items.pop_front() {
                state.bytes = state.bytes.saturating_sub(size);
                items = items.saturating_add(1);
                item.put(&mut frame);
            }
        }
        Poll::Ready(Some(frame))
    }
}

fn wake(mut state: MutexGuard<'_, State>) {
    let waker = state.waker.take();
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// The body of a peer stream: the greeting, then frames. HTTP/2 polls it only while the other side has room for more.
pub struct LaneBody {
    hello: Option<Bytes>,
    queue: Arc<LaneQueue>,
}

impl LaneBody {
    pub fn new(hello: Bytes, queue: Arc<LaneQueue>) -> Self {
        LaneBody { hello: Some(hello), queue }
    }
}

impl Stream for LaneBody {
    type Item = Parts;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Parts>> {
        if let Some(hello) = self.hello.take() {
            return Poll::Ready(Some(hello.into()));
        }
        self.queue.poll_frame(cx).map(|frame| frame.map(Parts::from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Body;

    fn item(n: u8, size: usize) -> Outgoing {
        Body::Raft(vec![n; size].into()).into()
    }

    fn parts(items: impl Iterator<Item = Outgoing>) -> Vec<Bytes> {
        let mut frame = Vec::new();
        items.for_each(|item| item.put(&mut frame));
        frame
    }

    fn frame(queue: &LaneQueue) -> Poll<Option<Vec<Bytes>>> {
        queue.poll_frame(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn nothing_is_taken_before_the_listener_agreed_nor_after_the_end() {
        let queue = LaneQueue::new(1000, 10, 1000);
        assert_eq!(queue.push(vec![item(1, 1)]), Err(vec![item(1, 1)]));
        queue.open();
        assert_eq!(queue.push(vec![item(1, 1)]), Ok(()));
        assert_eq!(queue.close(), (vec![item(1, 1)], true));
        assert_eq!(queue.push(vec![item(2, 1)]), Err(vec![item(2, 1)]));
        queue.open();
        assert_eq!(queue.push(vec![item(2, 1)]), Err(vec![item(2, 1)]));
        assert_eq!(frame(&queue), Poll::Ready(None));
    }

    #[test]
    fn s18_what_does_not_fit_is_handed_back_in_order() {
        let queue = LaneQueue::new(400, 10, 1000);
        queue.open();
        let back = queue.push((0..5).map(|n| item(n, 100)).collect()).unwrap_err();
        assert_eq!(back, vec![item(3, 100), item(4, 100)]);
        assert_eq!(frame(&queue), Poll::Ready(Some(parts((0..3).map(|n| item(n, 100))))));
        assert!(frame(&queue).is_pending());
        assert_eq!(queue.push((3..6).map(|n| item(n, 100)).collect()), Ok(()), "there is room again");
    }

    #[test]
    fn items_are_bounded_in_number_in_the_queue_and_in_a_frame() {
        let queue = LaneQueue::new(usize::MAX, MAX_ITEMS + 2, usize::MAX);
        queue.open();
        let back = queue.push((0..MAX_ITEMS + 5).map(|n| item(n as u8, 1)).collect()).unwrap_err();
        assert_eq!(back.len(), 3);
        // The other side takes no frame of more.
        for count in [MAX_ITEMS, 2] {
            let Poll::Ready(Some(frame)) = frame(&queue) else { panic!("nothing is sent") };
            assert_eq!(frame.len(), count);
        }
        assert!(frame(&queue).is_pending());
    }

    #[test]
    fn one_item_above_the_byte_limit_passes_an_empty_queue_but_never_the_frame_limit() {
        let queue = LaneQueue::new(10, 10, 1000);
        queue.open();
        assert_eq!(queue.push(vec![item(1, 500)]), Ok(()));
        assert_eq!(queue.push(vec![item(2, 1)]), Err(vec![item(2, 1)]));
        assert!(frame(&queue).is_ready());
        assert_eq!(queue.push(vec![item(3, 2000)]), Err(vec![item(3, 2000)]));
    }

    #[test]
    fn taken_into_a_frame_is_no_longer_certainly_unsent() {
        let queue = LaneQueue::new(1000, 10, 1000);
        queue.open();
        queue.push(vec![item(1, 1)]).unwrap();
        assert!(frame(&queue).is_ready());
        queue.push(vec![item(2, 1)]).unwrap();
        assert_eq!(queue.close(), (vec![item(2, 1)], true));
    }
}

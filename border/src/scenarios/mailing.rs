//! The queue to one thread: senders that come and go, and a receiver that sleeps in between.

use shuttle::sync::Arc;
use shuttle::thread;

use super::mailbox::mailbox;

/// All of two senders' things arrive, each sender's in its order, and the receiver ends when both are gone.
pub fn everything_sent_arrives_and_then_the_end() {
    let (send, receive) = mailbox();
    let other = send.clone();
    let senders = [(0, send), (10, other)].map(|(from, send)| {
        thread::spawn(move || {
            for thing in from..from + 3 {
                assert!(send.send(thing).is_ok());
            }
        })
    });
    let (mut seen, mut out) = (Vec::new(), Vec::new());
    while receive.recv_all(&mut out) {
        assert!(!out.is_empty());
        seen.append(&mut out);
    }
    for from in [0, 10] {
        let of_one: Vec<i32> = seen.iter().copied().filter(|thing| *thing / 10 == from / 10).collect();
        assert_eq!(of_one, [from, from + 1, from + 2]);
    }
    assert_eq!(seen.len(), 6);
    senders.into_iter().for_each(|sender| sender.join().unwrap());
}

/// A thing is received or refused or dropped with the receiver: it is never kept by a queue that nobody empties.
pub fn the_receiver_leaves_while_things_are_sent() {
    let (send, receive) = mailbox();
    let thing = Arc::new(());
    let sent = Arc::clone(&thing);
    let sender = thread::spawn(move || {
        for _ in 0..3 {
            let _ = send.send(Arc::clone(&sent));
        }
        send
    });
    let mut out = Vec::new();
    receive.recv_all(&mut out);
    drop((out, receive));
    // The sender lives on, and holds nothing but itself.
    let _send = sender.join().unwrap();
    assert_eq!(Arc::strong_count(&thing), 1);
}

//! tokio's unbounded channel as it shows itself to its users, with a step that can be seen between letting a message in and laying it
//! down. So: after `close`, `try_recv` may say "empty" while a send that has succeeded is still to come; `recv` waits for it.

pub mod mpsc {
    use std::collections::VecDeque;
    use std::future::poll_fn;
    use std::task::{Poll, Waker};

    use shuttle::sync::{Arc, Mutex, MutexGuard, PoisonError};

    struct State<T> {
        closed: bool,
        /// Let in and not taken out.
        held: usize,
        messages: VecDeque<T>,
        senders: usize,
        waker: Option<Waker>,
    }

    struct Shared<T>(Mutex<State<T>>);

    impl<T> Shared<T> {
        fn lock(&self) -> MutexGuard<'_, State<T>> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }

        fn wake(&self, mut state: MutexGuard<'_, State<T>>) {
            let waker = state.waker.take();
            drop(state);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    #[derive(Debug)]
    pub struct SendError<T>(pub T);

    #[derive(Debug, PartialEq, Eq)]
    pub enum TryRecvError {
        Empty,
        Disconnected,
    }

    pub struct UnboundedSender<T>(Arc<Shared<T>>);
    pub struct UnboundedReceiver<T>(Arc<Shared<T>>);

    pub fn unbounded_channel<T>() -> (UnboundedSender<T>, UnboundedReceiver<T>) {
        let state = State { closed: false, held: 0, messages: VecDeque::new(), senders: 1, waker: None };
        let shared = Arc::new(Shared(Mutex::new(state)));
        (UnboundedSender(Arc::clone(&shared)), UnboundedReceiver(shared))
    }

    impl<T> UnboundedSender<T> {
        pub fn send(&self, message: T) -> Result<(), SendError<T>> {
            let mut state = self.0.lock();
            if state.closed {
                return Err(SendError(message));
            }
            state.held += 1;
            drop(state);
            let mut state = self.0.lock();
            state.messages.push_back(message);
            self.0.wake(state);
            Ok(())
        }
    }

    impl<T> Clone for UnboundedSender<T> {
        fn clone(&self) -> Self {
            self.0.lock().senders += 1;
            UnboundedSender(Arc::clone(&self.0))
        }
    }

    impl<T> Drop for UnboundedSender<T> {
        fn drop(&mut self) {
            let mut state = self.0.lock();
            state.senders -= 1;
            self.0.wake(state);
        }
    }

    impl<T> UnboundedReceiver<T> {
        pub fn close(&mut self) {
            self.0.lock().closed = true;
        }

        pub fn try_recv(&mut self) -> Result<T, TryRecvError> {
            let mut state = self.0.lock();
            match state.messages.pop_front() {
                Some(message) => {
                    state.held -= 1;
                    Ok(message)
                }
                None if (state.closed || state.senders == 0) && state.held == 0 => Err(TryRecvError::Disconnected),
                None => Err(TryRecvError::Empty),
            }
        }

        pub async fn recv(&mut self) -> Option<T> {
            poll_fn(|context| {
                let mut state = self.0.lock();
                if let Some(message) = state.messages.pop_front() {
                    state.held -= 1;
                    return Poll::Ready(Some(message));
                }
                if (state.closed || state.senders == 0) && state.held == 0 {
                    return Poll::Ready(None);
                }
                state.waker = Some(context.waker().clone());
                Poll::Pending
            })
            .await
        }
    }

    impl<T> Drop for UnboundedReceiver<T> {
        fn drop(&mut self) {
            let mut state = self.0.lock();
            state.closed = true;
            let messages = std::mem::take(&mut state.messages);
            drop(state);
            drop(messages);
        }
    }
}

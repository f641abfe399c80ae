//! Threads of the library's own. Whatever starts one starts it here; a state machine's thread alone is the program's in this respect.
//!
//! Signals are the program's business: none of its handlers runs on these threads, and none of its defaults ends it for what they do. A
//! peer that goes away while something is written to it is a `SIGPIPE` for the thread that writes, and by default the end of a
//! program in C; where that signal is blocked it is an error like any other.

use std::io;
use std::thread::{Builder, JoinHandle};

use nix::sys::signal::{SigSet, Signal};

/// What a fault of the thread itself raises, which to block would be the end without a word, and what profilers look at threads with.
const NOT_BLOCKED: [Signal; 8] = [
    Signal::SIGABRT,
    Signal::SIGBUS,
    Signal::SIGFPE,
    Signal::SIGILL,
    Signal::SIGPROF,
    Signal::SIGSEGV,
    Signal::SIGSYS,
    Signal::SIGTRAP,
];

/// From now on this thread is for work in bulk that no quorum waits for: where processors are short those who answer come first. It still
/// gets its share, a tenth of what one of the others gets. For the whole of the thread's life, and on Linux alone: elsewhere the process would
/// be meant.
pub(crate) fn step_back() {
    #[cfg(target_os = "linux")]
    let _ = rustix::process::nice(10);
}

/// Starts one. Threads that it starts itself have the same signals blocked, also those of tokio.
pub(crate) fn spawn<T: Send + 'static>(
    name: impl Into<String>,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    #[cfg(test)]
    crate::faults::due(crate::faults::Fault::Thread)?;
    Builder::new().name(name.into()).spawn(move || {
        let mut blocked = SigSet::all();
        NOT_BLOCKED.into_iter().for_each(|signal| blocked.remove(signal));
        // It fails for a wrong argument only.
        let _ = blocked.thread_block();
        body()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn who_steps_back_does_so_alone() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let before = nice();
        let behind = spawn("behind", move || {
            step_back();
            nice()
        });
        assert_eq!(behind.unwrap().join().unwrap(), (before + 10).min(19));
        assert_eq!(nice(), before);
    }

    #[test]
    fn signals_are_left_to_the_programs_own_threads() {
        let before = SigSet::thread_get_mask().unwrap();
        let look = || SigSet::thread_get_mask().unwrap();
        let (own, inherited) =
            spawn("own", move || (look(), std::thread::spawn(look).join().unwrap())).unwrap().join().unwrap();
        for mask in [own, inherited] {
            for signal in
                [Signal::SIGPIPE, Signal::SIGINT, Signal::SIGTERM, Signal::SIGCHLD, Signal::SIGHUP, Signal::SIGUSR1]
            {
                assert!(mask.contains(signal), "{signal}");
            }
            for signal in NOT_BLOCKED {
                assert!(!mask.contains(signal), "{signal}");
            }
        }
        assert_eq!(SigSet::thread_get_mask().unwrap(), before, "whoever starts it keeps its own");
    }
}

//! What may not cross the border: panics going out, and calls that would wait for the very callback they are made in.

use std::cell::Cell;
use std::panic::{catch_unwind, AssertUnwindSafe};

use raftify_engine::{Committed, Error, ErrorCode, Result};

thread_local! {
    /// Foreign functions of ours that are running on this thread, one inside the other.
    static CALLBACKS: Cell<u32> = const { Cell::new(0) };
}

/// Held while a foreign function runs on this thread.
pub(crate) struct CallbackScope(());

impl CallbackScope {
    pub(crate) fn enter() -> Self {
        CALLBACKS.with(|depth| depth.set(depth.get().saturating_add(1)));
        CallbackScope(())
    }
}

impl Drop for CallbackScope {
    fn drop(&mut self) {
        CALLBACKS.with(|depth| depth.set(depth.get().saturating_sub(1)));
    }
}

pub(crate) fn in_callback() -> bool {
    CALLBACKS.with(|depth| depth.get() > 0)
}

/// For what may wait for a callback to end, or ends what the callback stands on.
pub(crate) fn refuse_in_callback(call: &str) -> Result<()> {
    if in_callback() {
        return Err(Error::not_done(
            ErrorCode::Reentrant,
            format!("{call} was called from inside a callback of this library; call it from another thread"),
        ));
    }
    Ok(())
}

/// Runs `body`; a panic in it becomes an error that names it.
pub(crate) fn catch<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    // AssertUnwindSafe: whoever panicked is closed by the caller of this, nothing goes on with its state.
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| {
        let text = payload
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no text".to_owned());
        Err(Error::new(
            ErrorCode::Internal,
            Committed::Unknown,
            format!("a defect of the library: {text}; please report it"),
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_with_its_text() {
        for panics in [|| std::panic::panic_any("boom"), || std::panic::panic_any("boom".to_string())] {
            let error = catch::<()>(|| {
                panics();
                Ok(())
            })
            .unwrap_err();
            assert_eq!(error.code, ErrorCode::Internal);
            assert!(error.message.contains("boom"), "{error}");
        }
        assert_eq!(catch(|| Ok(3)), Ok(3));
    }

    #[test]
    fn only_the_thread_inside_a_callback_is_refused() {
        assert!(refuse_in_callback("x").is_ok());
        let outer = CallbackScope::enter();
        drop(CallbackScope::enter());
        assert_eq!(refuse_in_callback("x").unwrap_err().code, ErrorCode::Reentrant);
        assert!(std::thread::spawn(|| refuse_in_callback("x").is_ok()).join().unwrap());
        drop(outer);
        assert!(refuse_in_callback("x").is_ok());
    }
}

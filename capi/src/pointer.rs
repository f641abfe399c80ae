//! The checks at the door: what comes as pointer and length becomes a reference or a named refusal.
//!
//! Each function is `unsafe` for the same reason: it believes the caller that a pointer which is not NULL is
//! aligned, points to
//! as many initialised values as said, and that nobody writes to them during the call. The header's preface demands
//! that.

use std::ffi::c_char;
use std::time::Duration;

use raftify_engine::request::Timeout;
use raftify_engine::{Error, ErrorCode, Result};

use crate::error::ErrorObject;
use crate::fork::Owner;
use crate::panic::{catch, refuse_in_callback};

pub(crate) fn invalid(message: impl Into<String>) -> Error {
    Error::not_done(ErrorCode::InvalidArgument, message)
}

pub(crate) fn null(name: &str) -> Error {
    invalid(format!("{name} is NULL"))
}

/// An object behind an opaque pointer of the ABI.
pub(crate) trait Handle {
    const NAME: &'static str;
    fn owner(&self) -> &Owner;
    /// After a panic in one of its calls: nothing may go on with it.
    fn poison(&self) {}
    /// Why it cannot be freed yet.
    fn in_use(&self) -> Result<()> {
        Ok(())
    }
}

/// The object behind an opaque pointer: there is one, and this process made it.
pub(crate) unsafe fn live<'a, H: Handle>(handle: *const H) -> Result<&'a H> {
    // SAFETY: NULL, or a live handle (module text).
    let handle = unsafe { handle.as_ref() }.ok_or_else(|| null(H::NAME))?;
    handle.owner().check()?;
    Ok(handle)
}

/// The frame of every call on a handle that reports by status and error object.
pub(crate) unsafe fn call<H: Handle>(
    handle: *const H,
    error: *mut *mut ErrorObject,
    body: impl FnOnce(&H) -> Result<()>,
) -> i32 {
    // SAFETY: passed on to our caller.
    let result = unsafe { live(handle) }.and_then(|handle| {
        catch(|| body(handle)).inspect_err(|failure| {
            if failure.code == ErrorCode::Internal {
                let _ = catch(|| {
                    handle.poison();
                    Ok(())
                });
            }
        })
    });
    // SAFETY: NULL or writable (module text).
    unsafe { finish(result, error) }
}

/// The frame of every free that ends something: with `end` the handle is given up, whatever comes of it.
pub(crate) unsafe fn free<H: Handle>(handle: *mut H, end: impl FnOnce(Box<H>) -> Result<()>) -> i32 {
    let freed = || -> Result<()> {
        if handle.is_null() {
            return Ok(());
        }
        // SAFETY: passed on to our caller.
        let object = unsafe { live(handle) }?;
        refuse_in_callback(&format!("raftify_{}_free", H::NAME))?;
        object.in_use()?;
        // SAFETY: made by Box::into_raw in the function that made the handle, given back once (preface of the header).
        end(unsafe { Box::from_raw(handle) })
    };
    // SAFETY: no error slot.
    unsafe { finish(catch(freed), std::ptr::null_mut()) }
}

/// Turns a result into a status, and hands the error object out where one is wanted.
pub(crate) unsafe fn finish(result: Result<()>, error: *mut *mut ErrorObject) -> i32 {
    match result {
        Ok(()) => 0,
        Err(failure) => {
            let code = failure.code as i32;
            // SAFETY: NULL or writable (module text).
            if let Some(slot) = unsafe { error.as_mut() } {
                *slot = Box::into_raw(Box::new(ErrorObject::new(&failure)));
            }
            code
        }
    }
}

/// `count` values at `pointer`; NULL is right only for none.
pub(crate) unsafe fn slice<'a, T>(pointer: *const T, count: usize, name: &str) -> Result<&'a [T]> {
    if count == 0 {
        return Ok(&[]);
    }
    if pointer.is_null() {
        return Err(invalid(format!("{name} is NULL, but its length is {count}")));
    }
    if count.checked_mul(size_of::<T>().max(1)).is_none_or(|bytes| isize::try_from(bytes).is_err()) {
        return Err(invalid(format!("{name} cannot have a length of {count}")));
    }
    // SAFETY: not NULL, the size does not overflow; the rest by the module text.
    Ok(unsafe { std::slice::from_raw_parts(pointer, count) })
}

pub(crate) unsafe fn slice_mut<'a, T>(pointer: *mut T, count: usize, name: &str) -> Result<&'a mut [T]> {
    // SAFETY: passed on to our caller.
    unsafe { slice(pointer.cast_const(), count, name) }?;
    if count == 0 {
        return Ok(&mut []);
    }
    // SAFETY: checked above; writable and not shared by the module text.
    Ok(unsafe { std::slice::from_raw_parts_mut(pointer, count) })
}

pub(crate) unsafe fn text<'a>(pointer: *const c_char, len: usize, name: &str) -> Result<&'a str> {
    // SAFETY: passed on to our caller.
    let bytes = unsafe { slice(pointer.cast::<u8>(), len, name) }?;
    std::str::from_utf8(bytes).map_err(|e| invalid(format!("{name} is not UTF-8 from byte {} on", e.valid_up_to())))
}

/// A place for a result; checked before anything is done.
pub(crate) unsafe fn place<'a, T: ?Sized>(pointer: *mut T, name: &str) -> Result<&'a mut T> {
    // SAFETY: NULL, or aligned, writable and not shared (module text).
    unsafe { pointer.as_mut() }.ok_or_else(|| null(name))
}

/// `RAFTIFY_TIMEOUT_NONE`, `RAFTIFY_TIMEOUT_DEFAULT`, or milliseconds.
pub(crate) fn timeout(timeout_ms: i64) -> Result<Timeout> {
    match timeout_ms {
        crate::RAFTIFY_TIMEOUT_NONE => Ok(Timeout::None),
        crate::RAFTIFY_TIMEOUT_DEFAULT => Ok(Timeout::Default),
        ms => u64::try_from(ms)
            .map(|ms| Timeout::After(Duration::from_millis(ms)))
            .map_err(|_| invalid(format!("timeout_ms is {ms}; use 0 or more, -1 for none, -2 for the default"))),
    }
}

/// Tokens that the library keeps for itself: 0 (a node's start) and the upper half.
const FIRST_TOKEN_OF_OURS: u64 = 1 << 63;

pub(crate) fn token(token: u64) -> Result<u64> {
    match token {
        0 => Err(invalid("token is 0, which is the library's own; use any number from 1 to 2^63 - 1")),
        FIRST_TOKEN_OF_OURS.. => Err(invalid(format!("token is {token}; use any number from 1 to 2^63 - 1"))),
        token => Ok(token),
    }
}

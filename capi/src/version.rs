//! What a binding compares before it uses anything else.

use std::ffi::c_char;

/// The number of this ABI. A program compiled against this header works with every library that reports the same
/// number.
pub const RAFTIFY_ABI_VERSION: u32 = 1;

/// The ABI number of the library that is loaded. Compare it with `RAFTIFY_ABI_VERSION` of the header before any other
/// call.
///
/// Threads: any. Blocks: no. Errors: none. Since: ABI 1.
#[no_mangle]
pub extern "C" fn raftify_abi_version() -> u32 {
    RAFTIFY_ABI_VERSION
}

/// The version of the library that is loaded, for people: "0.1.0".
///
/// Returns: static text, NUL-terminated; never freed.
/// Threads: any. Blocks: no. Errors: none. Since: ABI 1.
#[no_mangle]
pub extern "C" fn raftify_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

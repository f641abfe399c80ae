//! Sizes and offsets of the public structs, for bindings that declare them by hand or at run time.

use std::mem::offset_of;

use crate::pointer::slice_mut;
use crate::{Entry, Event, Machine, MachineOutcome, MemberChange, Peer, Proposal};

macro_rules! layout {
    ($type:ty: $($field:ident)*) => {
        &[size_of::<$type>(), $(offset_of!($type, $field)),*]
    };
}

/// Number of the struct is its place here: only ever appended to.
const LAYOUTS: [&[usize]; 7] = [
    layout!(Event: token index term data len source kind status count reserved),
    layout!(Entry: index term time_us offset len wanted token),
    layout!(Proposal: token data len),
    layout!(Peer: id addr addr_len),
    layout!(MemberChange: kind reserved id addr addr_len),
    layout!(Machine: struct_size reserved user_data apply snapshot restore destroy),
    layout!(MachineOutcome: index data len failed reserved),
];

/// Size and field offsets of a public struct as this library was compiled, for bindings to compare with their own:
/// 0: raftify_event, 1: raftify_entry, 2: raftify_proposal, 3: raftify_peer, 4: raftify_member_change, 5:
/// raftify_machine, 6: raftify_outcome.
///
/// out: borrowed for the call; gets up to `capacity` numbers: the size, then the offset of each field in its order.
/// Returns: how many numbers there are; 0 if there is no such struct.
/// Threads: any. Blocks: no. Errors: none; with `out` NULL nothing is written. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_struct_layout(which: u32, out: *mut usize, capacity: usize) -> usize {
    let Some(layout) = usize::try_from(which).ok().and_then(|which| LAYOUTS.get(which)) else { return 0 };
    // SAFETY: NULL, or room for `capacity` numbers (preface of the header); no more than the layout's own length is
    // used.
    if let Ok(out) = unsafe { slice_mut(out, capacity.min(layout.len()), "out") } {
        for (to, from) in out.iter_mut().zip(layout.iter()) {
            *to = *from;
        }
    }
    layout.len()
}

//! What lies in a queue: [`Record`], and how each thing a node says becomes one.

use raftify_engine::error::ErrorCode;
use raftify_engine::machine::{ApplyBatch, ApplyEntry, MachineRequest};
use raftify_engine::node::LogRecord;
use raftify_engine::request::{Completion, Reply};
use raftify_engine::status::Event as StatusEvent;
use raftify_engine::{Error, Result};
use serde_json::json;

use crate::json;

/// The answer to a request: `token` names it. status 0: `data` depends on the request; otherwise `data` is the error
/// as JSON (raftify_error_json). With token 0: the node's own snapshot is restored and it listens; `data` is
/// {"addr":"host:port"}.
pub const RAFTIFY_EVENT_COMPLETION: i32 = 1;
/// Pull form: apply `count` commands. `token` is the request's number, `index` and `term` are where the machine then
/// stands. `data`: `count` times raftify_entry, then the commands' bytes; `offset` counts from the start of `data`,
/// which is aligned for raftify_entry. May be of no commands: to be answered all the same. Answer with
/// raftify_apply_done, raftify_apply_done_packed or raftify_apply_told_packed, or raftify_machine_failed.
pub const RAFTIFY_EVENT_APPLY: i32 = 2;
/// Pull form: hand over the state at exactly `index`. `token` is the request's number. Answer with
/// raftify_snapshot_chunk and raftify_snapshot_done.
pub const RAFTIFY_EVENT_SNAPSHOT: i32 = 3;
/// Pull form: replace the state. `token` is the request's number, `data` the path of the file (UTF-8; not to be
/// opened: read it with raftify_restore_read, which checks it). Answer with raftify_restore_done or
///   raftify_machine_failed.
pub const RAFTIFY_EVENT_RESTORE: i32 = 4;
/// Something happened that nobody asked for: `data` is JSON, {"event":"leader_changed","term":3,"leader_id":1} and
/// the like.
pub const RAFTIFY_EVENT_NOTICE: i32 = 5;
/// A line for the log: `data` is
/// {"level":"info","target":"raft"|"storage"|"transport","message":"...","node_id":1,"term":3}. When nobody drains,
/// the newest lines are left out, and a line says how many.
pub const RAFTIFY_EVENT_LOG: i32 = 6;
/// The last record of a node or client. status 0 after a close, otherwise what ended it, with the error as JSON in
/// `data`. No callback of its machine runs any more.
pub const RAFTIFY_EVENT_CLOSED: i32 = 7;

/// One record of a queue.
#[repr(C)]
pub struct Event {
    /// The caller's number of a request; the library's number of a request to the machine; otherwise 0.
    pub token: u64,
    /// Index in the log, where the kind has one; otherwise 0.
    pub index: u64,
    /// Term of that index.
    pub term: u64,
    /// Borrowed until the next raftify_queue_drain of this queue, or raftify_queue_free. NULL only if `len` is 0.
    pub data: *const u8,
    pub len: usize,
    /// Which node or client it concerns: raftify_node_number, raftify_client_number. Records may come before
    /// raftify_node_start has returned.
    pub source: u64,
    /// RAFTIFY_EVENT_*; newer libraries may add numbers.
    pub kind: i32,
    /// 0 or RAFTIFY_ERR_*.
    pub status: i32,
    /// Of APPLY: commands.
    pub count: u32,
    pub reserved: u32,
}

/// One command of a batch.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Entry {
    pub index: u64,
    pub term: u64,
    /// The leader's clock when it took the command, microseconds since 1970; never goes back in the log.
    pub time_us: u64,
    /// Where its bytes begin, counted from `data`.
    pub offset: u64,
    /// How many they are.
    pub len: u32,
    /// 1 if its result is asked for: somebody waits for it on this node, or the cluster compares results (`verify_results`). 0: only its
    /// failure is.
    pub wanted: u32,
    /// The token of the proposal whose result it is, if that was accepted by this node of this process; 0: there is none, or its result
    /// has to be given back. See raftify_apply_told_packed.
    pub token: u64,
}

impl Entry {
    /// `offset`: where the command's bytes begin.
    pub(crate) fn new(entry: &ApplyEntry, offset: usize, command: &[u8]) -> Self {
        Entry {
            index: entry.index,
            term: entry.term,
            time_us: entry.time_us,
            offset: offset as u64,
            // A command is at most 1 GiB (Config::validate).
            len: u32::try_from(command.len()).unwrap_or(u32::MAX),
            wanted: u32::from(entry.wanted),
            // The upper half is the engine's own.
            token: if entry.token < 1 << 63 { entry.token } else { 0 },
        }
    }
}

/// The bytes of a record.
pub(crate) enum Payload {
    None,
    Bytes(Vec<u8>),
    /// As long as the second number says; words, so that a table of entries is aligned in it.
    Words(Vec<u64>, usize),
}

impl Payload {
    pub(crate) fn pointer(&self) -> (*const u8, usize) {
        match self {
            Payload::None => (std::ptr::null(), 0),
            Payload::Bytes(bytes) => (bytes.as_ptr(), bytes.len()),
            Payload::Words(words, len) => (words.as_ptr().cast(), *len),
        }
    }

    fn text(text: String) -> Self {
        Payload::Bytes(text.into_bytes())
    }
}

/// One thing for the owner of a queue to know.
pub(crate) struct Record {
    pub(crate) kind: i32,
    pub(crate) status: i32,
    pub(crate) count: u32,
    pub(crate) token: u64,
    pub(crate) index: u64,
    pub(crate) term: u64,
    pub(crate) source: u64,
    pub(crate) data: Payload,
}

impl Record {
    fn new(kind: i32, source: u64, data: Payload) -> Self {
        Record { kind, status: 0, count: 0, token: 0, index: 0, term: 0, source, data }
    }

    fn failed(kind: i32, source: u64, error: &Error) -> Self {
        let mut record = Self::new(kind, source, Payload::text(json::error(error).to_string()));
        record.status = error.code as i32;
        record.index = error.index.unwrap_or(0);
        record
    }

    /// As it is handed out; the bytes stay ours.
    pub(crate) fn event(&self) -> Event {
        let (data, len) = self.data.pointer();
        Event {
            token: self.token,
            index: self.index,
            term: self.term,
            data,
            len,
            source: self.source,
            kind: self.kind,
            status: self.status,
            count: self.count,
            reserved: 0,
        }
    }

    pub(crate) fn started(source: u64, addr: &str) -> Self {
        Self::new(RAFTIFY_EVENT_COMPLETION, source, Payload::text(json!({ "addr": addr }).to_string()))
    }

    pub(crate) fn completion(source: u64, completion: Completion) -> Self {
        let mut record = match completion.result {
            Err(error) => Self::failed(RAFTIFY_EVENT_COMPLETION, source, &error),
            Ok(reply) => Self::reply(source, reply),
        };
        record.token = completion.token;
        record
    }

    fn reply(source: u64, reply: Reply) -> Self {
        let mut record = Self::new(RAFTIFY_EVENT_COMPLETION, source, Payload::None);
        record.data = match reply {
            Reply::Applied { index, term, data } => {
                (record.index, record.term) = (index, term);
                Payload::Bytes(data)
            }
            Reply::ReadIndex(index) => {
                record.index = index;
                Payload::None
            }
            Reply::Ticket(ticket) => Payload::text(json!(ticket).to_string()),
            Reply::Cluster(state) => Payload::text(json::cluster(&state).to_string()),
            Reply::Snapshot(info) => {
                (record.index, record.term) = (info.index, info.term);
                Payload::text(json!(info).to_string())
            }
            Reply::Session(number) => Payload::text(json!({ "session": number }).to_string()),
            Reply::Leader(id) => Payload::text(json!({ "leader_id": id }).to_string()),
            Reply::Text(text) => Payload::text(text),
            Reply::Done => Payload::text("{}".into()),
        };
        record
    }

    pub(crate) fn machine(source: u64, request: MachineRequest) -> Self {
        match request {
            MachineRequest::Apply(batch) => {
                let mut record = Self::new(RAFTIFY_EVENT_APPLY, source, Payload::None);
                (record.token, record.index, record.term) = (batch.id, batch.last_index, batch.last_term);
                record.count = u32::try_from(batch.entries.len()).unwrap_or(u32::MAX);
                record.data = table_and_bytes(&batch);
                record
            }
            MachineRequest::Snapshot { id, index, term } => {
                let mut record = Self::new(RAFTIFY_EVENT_SNAPSHOT, source, Payload::None);
                (record.token, record.index, record.term) = (id, index, term);
                record
            }
            MachineRequest::Restore { id, index, term, path, .. } => {
                let path = path.to_string_lossy().into_owned();
                let mut record = Self::new(RAFTIFY_EVENT_RESTORE, source, Payload::text(path));
                (record.token, record.index, record.term) = (id, index, term);
                record
            }
        }
    }

    pub(crate) fn notice(source: u64, event: &StatusEvent) -> Self {
        Self::new(RAFTIFY_EVENT_NOTICE, source, Payload::text(json!(event).to_string()))
    }

    pub(crate) fn log(source: u64, record: &LogRecord) -> Self {
        Self::new(RAFTIFY_EVENT_LOG, source, Payload::text(json::log(record).to_string()))
    }

    pub(crate) fn closed(source: u64, why: &Result<()>) -> Self {
        match why {
            // Closed by its owner is not a failure.
            Ok(()) => Self::new(RAFTIFY_EVENT_CLOSED, source, Payload::None),
            Err(error) if error.code == ErrorCode::Closed => Self::new(RAFTIFY_EVENT_CLOSED, source, Payload::None),
            Err(error) => Self::failed(RAFTIFY_EVENT_CLOSED, source, error),
        }
    }
}

/// The batch as one buffer: its entries as `raftify_entry`, then their bytes.
fn table_and_bytes(batch: &ApplyBatch) -> Payload {
    const WORD: usize = size_of::<u64>();
    const ENTRY_WORDS: usize = size_of::<Entry>() / WORD;
    let table = batch.entries.len().saturating_mul(size_of::<Entry>());
    let len = table.saturating_add(batch.bytes());
    let mut words = Vec::with_capacity(len.div_ceil(WORD));
    let mut offset = table;
    for (entry, command) in batch.commands() {
        let Entry { index, term, time_us, offset: at, len, wanted, token } = Entry::new(entry, offset, command);
        let [a, b, c, d] = len.to_ne_bytes();
        let [e, f, g, h] = wanted.to_ne_bytes();
        let row: [u64; ENTRY_WORDS] = [index, term, time_us, at, u64::from_ne_bytes([a, b, c, d, e, f, g, h]), token];
        words.extend_from_slice(&row);
        offset = offset.saturating_add(command.len());
    }
    let count = len.div_ceil(WORD).saturating_sub(words.len());
    let free = words.spare_capacity_mut();
    assert!(offset == len && free.len() >= count, "room was taken for the rows and for all bytes behind them");
    if let Some(last) = count.checked_sub(1).and_then(|last| free.get_mut(last)) {
        last.write(0);
    }
    let mut to = free.as_mut_ptr().cast::<u8>();
    for (_, command) in batch.commands() {
        // SAFETY: so many free words are there, and all commands together take no more: each was counted into `offset` above. Any bytes
        // make words; the log's memory is another.
        unsafe {
            std::ptr::copy_nonoverlapping(command.as_ptr(), to, command.len());
            to = to.add(command.len());
        }
    }
    // SAFETY: the words up to there are written: the last one above, the others by the bytes that fill them.
    unsafe { words.set_len(words.len() + count) };
    Payload::Words(words, len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_apply_record_is_a_table_of_entries_and_then_their_bytes() {
        for commands in [vec![], vec![""], vec!["12345678"], vec!["a", "", "bcdefghijk", "l"]] {
            let bytes: Vec<&[u8]> = commands.iter().map(|command| command.as_bytes()).collect();
            let mut batch = ApplyBatch::of(10, 2, &bytes);
            (batch.id, batch.last_index, batch.last_term) = (4, 20, 3);
            for (i, entry) in batch.entries.iter_mut().enumerate() {
                (entry.time_us, entry.wanted, entry.token) = (77, i == 1, [0, 5, 1 << 63][i % 3]);
            }
            let record = Record::machine(9, MachineRequest::Apply(batch));
            let event = record.event();
            assert_eq!((event.token, event.index, event.term, event.source), (4, 20, 3, 9));
            assert_eq!(event.count as usize, commands.len());
            assert_eq!(event.data.align_offset(align_of::<Entry>()), 0);
            if commands.is_empty() {
                continue;
            }
            // SAFETY: `record` lives; the table was written as Entry by Entry, aligned, `count` of them.
            let table = unsafe { std::slice::from_raw_parts(event.data.cast::<Entry>(), commands.len()) };
            // SAFETY: `record` lives and says that `len` bytes are there.
            let all = unsafe { std::slice::from_raw_parts(event.data, event.len) };
            for (i, (entry, command)) in table.iter().zip(&commands).enumerate() {
                assert_eq!((entry.index, entry.term, entry.time_us), (10 + i as u64, 2, 77));
                assert_eq!((entry.wanted, entry.token), (u32::from(i == 1), [0, 5, 0][i % 3]));
                let from = usize::try_from(entry.offset).unwrap();
                assert_eq!(&all[from..from + entry.len as usize], command.as_bytes());
            }
        }
    }

    #[test]
    fn a_failed_request_carries_its_error_and_a_close_by_the_owner_none() {
        let error = Error::not_done(ErrorCode::Overloaded, "full");
        let record = Record::completion(1, Completion { token: 5, result: Err(error) });
        assert_eq!((record.token, record.status), (5, -5));
        for (why, status) in [
            (Ok(()), 0),
            (Err(Error::not_done(ErrorCode::Closed, "closed")), 0),
            (Err(Error::not_done(ErrorCode::DiskFull, "full")), -16),
        ] {
            assert_eq!(Record::closed(1, &why).status, status);
        }
    }
}

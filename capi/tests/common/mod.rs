//! A caller of the C ABI, as a C program would be one.
#![allow(dead_code)]

use std::collections::VecDeque;
use std::ffi::{c_char, CStr};
use std::ptr::{null, null_mut};

use raftify_capi::*;

pub const TIMEOUT: i32 = RAFTIFY_ERR_TIMEOUT;

/// A record with its own copy of the bytes.
#[derive(Clone, Debug)]
pub struct Seen {
    pub kind: i32,
    pub status: i32,
    pub token: u64,
    pub index: u64,
    pub term: u64,
    pub source: u64,
    pub count: u32,
    pub data: Vec<u8>,
    /// Of APPLY: index, whether wanted, the token, the command.
    pub commands: Vec<(u64, bool, u64, Vec<u8>)>,
}

impl Seen {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.data).into_owned()
    }
}

unsafe fn seen(event: &Event) -> Seen {
    let data = match event.len {
        0 => &[],
        len => std::slice::from_raw_parts(event.data, len),
    };
    let mut commands = Vec::new();
    if event.kind == RAFTIFY_EVENT_APPLY && event.count > 0 {
        for entry in std::slice::from_raw_parts(event.data.cast::<Entry>(), event.count as usize) {
            let from = usize::try_from(entry.offset).unwrap();
            let command = data[from..from + entry.len as usize].to_vec();
            commands.push((entry.index, entry.wanted == 1, entry.token, command));
        }
    }
    Seen {
        kind: event.kind,
        status: event.status,
        token: event.token,
        index: event.index,
        term: event.term,
        source: event.source,
        count: event.count,
        data: data.to_vec(),
        commands,
    }
}

pub fn text(s: &str) -> (*const c_char, usize) {
    (s.as_ptr().cast(), s.len())
}

/// The error's message, and frees it.
pub fn message(error: *mut ErrorObject) -> String {
    if error.is_null() {
        return String::new();
    }
    unsafe {
        let message = CStr::from_ptr(raftify_error_message(error)).to_str().unwrap().to_owned();
        raftify_error_free(error);
        message
    }
}

pub fn ok(status: i32, error: *mut ErrorObject) {
    assert_eq!((status, message(error)), (0, String::new()));
}

pub fn new_queue(kind: i32) -> *mut QueueHandle {
    let (mut queue, mut error) = (null_mut(), null_mut());
    ok(unsafe { raftify_queue_new(kind, None, null_mut(), None, &mut queue, &mut error) }, error);
    queue
}

pub fn new_runtime() -> *mut RuntimeHandle {
    let (mut runtime, mut error) = (null_mut(), null_mut());
    ok(unsafe { raftify_runtime_new(&mut runtime, &mut error) }, error);
    runtime
}

/// The records of a queue that only a client fills, up to the token's completion.
pub fn completion(queue: *mut QueueHandle, token: u64) -> (i32, String) {
    loop {
        ok(unsafe { raftify_queue_wait(queue, 60_000) }, null_mut());
        let mut event = std::mem::MaybeUninit::<Event>::uninit();
        assert_eq!(unsafe { raftify_queue_drain(queue, event.as_mut_ptr(), 1) }, 1);
        let event = unsafe { event.assume_init() };
        if event.kind == RAFTIFY_EVENT_COMPLETION && event.token == token {
            let data = if event.len == 0 { &[] } else { unsafe { std::slice::from_raw_parts(event.data, event.len) } };
            return (event.status, String::from_utf8_lossy(data).into_owned());
        }
        assert_ne!(event.kind, RAFTIFY_EVENT_CLOSED);
    }
}

pub fn set(config: *mut ConfigHandle, name: &str, value: &str) {
    let mut error = null_mut();
    let ((n, n_len), (v, v_len)) = (text(name), text(value));
    ok(unsafe { raftify_config_set(config, n, n_len, v, v_len, &mut error) }, error);
}

/// A cluster of one in a directory of its own; the state machine of the pull form is here: it keeps the commands.
pub struct Rig {
    /// Tokens of commands whose results this program gave out itself; `None`: it gives them back.
    pub tells: Option<Vec<u64>>,
    pub dir: tempfile::TempDir,
    pub runtime: *mut RuntimeHandle,
    pub queue: *mut QueueHandle,
    pub config: *mut ConfigHandle,
    pub node: *mut NodeHandle,
    pub addr: String,
    pub state: Vec<Vec<u8>>,
    pub records: VecDeque<Seen>,
}

impl Rig {
    pub fn new() -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let config = raftify_config_new();
        set(config, "log_dir", dir.path().to_str().unwrap());
        // Under valgrind everything takes longer, and a write that takes as long as an election counts as a hung disk.
        let tick = std::env::var("RAFTIFY_TEST_TICK").unwrap_or_else(|_| "0.01".into());
        for (name, value) in [("tick_interval", tick.as_str()), ("request_timeout", "60"), ("log_level", "off")] {
            set(config, name, value);
        }
        // A port that was free a moment ago.
        let addr = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        Rig {
            tells: None,
            dir,
            runtime: new_runtime(),
            queue: new_queue(RAFTIFY_WAKE_FD),
            config,
            node: null_mut(),
            addr,
            state: Vec::new(),
            records: VecDeque::new(),
        }
    }

    pub fn start(&mut self, machine: *const Machine) {
        let mut error = null_mut();
        let (addr, addr_len) = text(&self.addr);
        let peer = Peer { id: 1, addr, addr_len };
        let status = unsafe {
            raftify_node_start(
                self.runtime,
                self.queue,
                self.config,
                1,
                addr,
                addr_len,
                &peer,
                1,
                1,
                machine,
                &mut self.node,
                &mut error,
            )
        };
        ok(status, error);
        let started = self.completion(0);
        let said: serde_json::Value = serde_json::from_slice(&started.data).unwrap();
        assert_eq!(said["addr"], self.addr.as_str());
    }

    /// Takes what is there; answers what the machine is asked.
    pub fn turn(&mut self) {
        ok(unsafe { raftify_queue_wait(self.queue, 60_000) }, null_mut());
        let mut events: Vec<Event> = Vec::with_capacity(64);
        let n = unsafe { raftify_queue_drain(self.queue, events.as_mut_ptr(), 64) };
        unsafe { events.set_len(n) };
        let all: Vec<Seen> = events.iter().map(|event| unsafe { seen(event) }).collect();
        for record in all {
            assert_eq!(record.source, if self.node.is_null() { record.source } else { self.number() });
            match record.kind {
                RAFTIFY_EVENT_APPLY => self.apply(&record),
                RAFTIFY_EVENT_SNAPSHOT => self.snapshot(&record),
                RAFTIFY_EVENT_RESTORE => self.restore(&record),
                RAFTIFY_EVENT_NOTICE | RAFTIFY_EVENT_LOG => {}
                _ => self.records.push_back(record),
            }
        }
    }

    fn number(&self) -> u64 {
        unsafe { raftify_node_number(self.node) }
    }

    fn apply(&mut self, record: &Seen) {
        let mut packed = Vec::new();
        for (index, wanted, token, command) in &record.commands {
            let refused = command == b"refuse me";
            if !refused {
                self.state.push(command.clone());
            }
            if self.tells.is_some() && *token != 0 && !refused {
                self.tells.get_or_insert_default().push(*token);
            } else if *wanted || refused {
                packed.extend(index.to_le_bytes());
                packed.extend(u32::from(refused).to_le_bytes());
                packed.extend(u32::try_from(command.len()).unwrap().to_le_bytes());
                packed.extend(command);
            }
        }
        let mut error = null_mut();
        let answer = if self.tells.is_some() { raftify_apply_told_packed } else { raftify_apply_done_packed };
        let status = unsafe { answer(self.node, record.token, packed.as_ptr(), packed.len(), &mut error) };
        if status == RAFTIFY_ERR_CLOSED {
            // It is closing: nobody waits for the answer any more.
            message(error);
            return;
        }
        ok(status, error);
        // A second answer is refused, and harms nobody.
        let again = unsafe { raftify_apply_done(self.node, record.token, null(), 0, null_mut()) };
        assert_eq!(again, RAFTIFY_ERR_INVALID_ARGUMENT);
    }

    fn snapshot(&mut self, record: &Seen) {
        let mut error = null_mut();
        for command in &self.state {
            let line = [command.as_slice(), b"\n"].concat();
            let status =
                unsafe { raftify_snapshot_chunk(self.node, record.token, line.as_ptr(), line.len(), &mut error) };
            ok(status, error);
        }
        ok(unsafe { raftify_snapshot_done(self.node, record.token, 0, null(), 0, &mut error) }, error);
    }

    fn restore(&mut self, record: &Seen) {
        let mut all = Vec::new();
        let mut error = null_mut();
        loop {
            let mut piece = [0u8; 100];
            let mut n = 0;
            let (at, to) = (all.len() as u64, piece.as_mut_ptr());
            ok(unsafe { raftify_restore_read(self.node, record.token, at, to, 100, &mut n, &mut error) }, error);
            if n == 0 {
                break;
            }
            all.extend_from_slice(&piece[..n]);
        }
        self.state = all.split(|b| *b == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect();
        ok(unsafe { raftify_restore_done(self.node, record.token, &mut error) }, error);
    }

    /// The completion of this token.
    pub fn completion(&mut self, token: u64) -> Seen {
        loop {
            let is_it = |r: &Seen| r.kind == RAFTIFY_EVENT_COMPLETION && r.token == token;
            if let Some(at) = self.records.iter().position(is_it) {
                return self.records.remove(at).unwrap();
            }
            assert!(!self.records.iter().any(|r| r.kind == RAFTIFY_EVENT_CLOSED), "closed without {token}");
            self.turn();
        }
    }

    pub fn propose(&self, token: u64, data: &[u8]) {
        let mut error = null_mut();
        let status = unsafe {
            raftify_propose(self.node, token, data.as_ptr(), data.len(), RAFTIFY_TIMEOUT_DEFAULT, &mut error)
        };
        ok(status, error);
    }

    /// Everything up to and with CLOSED.
    pub fn until_closed(&mut self) -> Vec<Seen> {
        while self.records.back().is_none_or(|r| r.kind != RAFTIFY_EVENT_CLOSED) {
            self.turn();
        }
        self.records.drain(..).collect()
    }

    pub fn stop(&mut self) -> Vec<Seen> {
        ok(unsafe { raftify_node_close(self.node, RAFTIFY_TIMEOUT_DEFAULT) }, null_mut());
        let rest = self.until_closed();
        ok(unsafe { raftify_node_free(self.node) }, null_mut());
        self.node = null_mut();
        rest
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let freed = unsafe {
            [raftify_node_free(self.node), raftify_queue_free(self.queue), raftify_runtime_free(self.runtime), {
                raftify_config_free(self.config);
                0
            }]
        };
        if !std::thread::panicking() {
            assert_eq!(freed, [0; 4]);
        }
    }
}

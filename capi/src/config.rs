//! `raftify_config`: settings by name.

use std::ffi::c_char;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use raftify_engine::{Config, Error, Result};
use slog::FilterLevel;

use crate::error::{raftify_status, ErrorObject};
use crate::fork::Owner;
use crate::pointer::{call, text, Handle};

/// Everything a node is started with, beside its id and addresses.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) config: Config,
    /// Records above this are not made: a setting of this border, not of the engine.
    pub(crate) log_level: FilterLevel,
    /// Of the state machine that the node is started with; not a setting of the engine either.
    pub(crate) applied_index: Option<u64>,
    /// Of a client that is made with it.
    pub(crate) session: bool,
}

/// Settings for nodes, all with defaults. May be changed after a node was started with it: the node has its own copy.
pub struct ConfigHandle {
    owner: Owner,
    settings: Mutex<Settings>,
}

impl Handle for ConfigHandle {
    const NAME: &'static str = "config";

    fn owner(&self) -> &Owner {
        &self.owner
    }
}

impl ConfigHandle {
    pub(crate) fn settings(&self) -> Settings {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

pub(crate) fn log_level(name: &str) -> Result<FilterLevel> {
    FilterLevel::from_str(name).map_err(|()| {
        Error::config(
            "log_level",
            format!("{name:?} is no level; use \"off\", \"critical\", \"error\", \"warning\", \"info\", \"debug\" or \"trace\""),
        )
    })
}

fn applied_index(value: &str) -> Result<u64> {
    let wrong = |_| Error::config("applied_index", format!("{value:?} is not a whole number of 0 or more"));
    value.parse().map_err(wrong)
}

fn session(value: &str) -> Result<bool> {
    match value {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(Error::config("session", format!("{value:?} is neither true nor false"))),
    }
}

/// Makes settings with all defaults.
///
/// Returns: owned, free with raftify_config_free; NULL only after a defect of the library.
/// Threads: any. Blocks: no. Errors: none. Since: ABI 1.
#[no_mangle]
pub extern "C" fn raftify_config_new() -> *mut ConfigHandle {
    let settings =
        Settings { config: Config::default(), log_level: FilterLevel::Info, applied_index: None, session: false };
    let settings = Mutex::new(settings);
    Box::into_raw(Box::new(ConfigHandle { owner: Owner::here(), settings }))
}

/// Sets one setting by its name. Times are in seconds ("0.1"), sizes in bytes, switches "true" or "false". Each value
/// is checked for itself here, all together by raftify_config_validate and raftify_node_start. Beside the engine's
/// settings there is "log_level": "off", "critical", "error", "warning", "info" (the default), "debug", "trace"; and
/// "applied_index", for a state machine that is durable by itself: up to this index of the log it has applied
/// everything, and has it on its disk. It is then asked to apply what comes after that, without a restore, unless the
/// log begins later: then to restore first. Without it the machine starts empty. "session" is for
/// raftify_client_new_with; nodes do not look at it.
///
/// "initial_learners": ids of those among the initial members that begin as learners, with commas between them; the
/// others are voters. All initial members have to be given the same.
///
/// "tls_cert", "tls_key" and "tls_ca", paths of PEM files, go together: with them every connection of the node is TLS
/// 1.3 in which both sides show a certificate of a CA in tls_ca. That of a node names the host of its raft_addr, or
/// "tls_server_name" where one name stands for all. The files are read when the node starts, and again before a
/// connection when they have changed; those that cannot be used then leave the certificates from before in use.
///
/// name, value: UTF-8, borrowed for the call. error: optional; receives an error object on failure.
/// Threads: any. Blocks: no. Errors: INVALID_CONFIG (the error names the field), INVALID_ARGUMENT, FORKED. Since: ABI
///   1.
#[no_mangle]
pub unsafe extern "C" fn raftify_config_set(
    config: *mut ConfigHandle,
    name: *const c_char,
    name_len: usize,
    value: *const c_char,
    value_len: usize,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    // SAFETY: every pointer is NULL or as the preface of the header demands.
    unsafe {
        call(config, error, |config| {
            let (name, value) = (text(name, name_len, "name")?, text(value, value_len, "value")?);
            let mut settings = config.settings.lock().unwrap_or_else(PoisonError::into_inner);
            match name {
                "log_level" => settings.log_level = log_level(value)?,
                "applied_index" => settings.applied_index = Some(applied_index(value)?),
                "session" => settings.session = session(value)?,
                _ => settings.config.set(name, value)?,
            }
            Ok(())
        })
    }
}

/// Checks that the settings make sense together.
///
/// error: optional; receives an error object that names field, value and remedy.
/// Threads: any. Blocks: no. Errors: INVALID_CONFIG, INVALID_ARGUMENT, FORKED. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_config_validate(
    config: *const ConfigHandle,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    // SAFETY: every pointer is NULL or as the preface of the header demands.
    unsafe { call(config, error, |config| config.settings().config.validate()) }
}

/// Frees settings; NULL is ignored. Nodes started with them are not touched.
///
/// Threads: any, once. Blocks: no. Errors: none. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_config_free(config: *mut ConfigHandle) {
    if !config.is_null() {
        // SAFETY: made by Box::into_raw in raftify_config_new, given back once (preface of the header). Plain
        // memory: fine in a forked child too.
        drop(unsafe { Box::from_raw(config) });
    }
}

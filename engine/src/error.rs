//! The one error type of the crate. It says what happened, whether the command is in the log, and what the caller needs to act.

use std::fmt;
use std::path::{Path, PathBuf};

/// What kind of failure this is. The numbers are part of the C ABI (`RAFTIFY_ERR_*`): never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum ErrorCode {
    InvalidConfig = -1,
    InvalidArgument = -2,
    NotLeader = -3,
    /// The deadline came and nothing was ever sent to a leader.
    NoLeader = -4,
    Overloaded = -5,
    ProposalTooLarge = -6,
    LeadershipLost = -7,
    Timeout = -8,
    /// The state machine raised on this command (its outcome on every node).
    ApplyFailed = -9,
    /// Committed, but a snapshot overtook the result.
    ResultLost = -10,
    SnapshotFailed = -11,
    StateDiverged = -12,
    Membership = -13,
    Removed = -14,
    Storage = -15,
    DiskFull = -16,
    CorruptData = -17,
    WrongDirectory = -18,
    DirectoryInUse = -19,
    FormatTooNew = -20,
    ConnectionFailed = -21,
    Tls = -22,
    ClusterMismatch = -23,
    Closed = -24,
    Forked = -25,
    Internal = -26,
    Reentrant = -27,
    /// The state machine itself failed (not the command): it stopped its node.
    MachineFailed = -28,
    /// The cluster knows the client's session no longer: whether a command of it was applied cannot be found out any more.
    SessionExpired = -29,
}

impl ErrorCode {
    /// All codes, for tables and for turning a number back into a code.
    pub const ALL: [ErrorCode; 29] = [
        Self::InvalidConfig,
        Self::InvalidArgument,
        Self::NotLeader,
        Self::NoLeader,
        Self::Overloaded,
        Self::ProposalTooLarge,
        Self::LeadershipLost,
        Self::Timeout,
        Self::ApplyFailed,
        Self::ResultLost,
        Self::SnapshotFailed,
        Self::StateDiverged,
        Self::Membership,
        Self::Removed,
        Self::Storage,
        Self::DiskFull,
        Self::CorruptData,
        Self::WrongDirectory,
        Self::DirectoryInUse,
        Self::FormatTooNew,
        Self::ConnectionFailed,
        Self::Tls,
        Self::ClusterMismatch,
        Self::Closed,
        Self::Forked,
        Self::Internal,
        Self::Reentrant,
        Self::MachineFailed,
        Self::SessionExpired,
    ];

    pub fn from_i32(code: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|c| *c as i32 == code)
    }

    /// The name used in the C header and in logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::InvalidConfig => "InvalidConfig",
            Self::InvalidArgument => "InvalidArgument",
            Self::NotLeader => "NotLeader",
            Self::NoLeader => "NoLeader",
            Self::Overloaded => "Overloaded",
            Self::ProposalTooLarge => "ProposalTooLarge",
            Self::LeadershipLost => "LeadershipLost",
            Self::Timeout => "Timeout",
            Self::ApplyFailed => "ApplyFailed",
            Self::ResultLost => "ResultLost",
            Self::SnapshotFailed => "SnapshotFailed",
            Self::StateDiverged => "StateDiverged",
            Self::Membership => "Membership",
            Self::Removed => "Removed",
            Self::Storage => "Storage",
            Self::DiskFull => "DiskFull",
            Self::CorruptData => "CorruptData",
            Self::WrongDirectory => "WrongDirectory",
            Self::DirectoryInUse => "DirectoryInUse",
            Self::FormatTooNew => "FormatTooNew",
            Self::ConnectionFailed => "ConnectionFailed",
            Self::Tls => "Tls",
            Self::ClusterMismatch => "ClusterMismatch",
            Self::Closed => "Closed",
            Self::Forked => "Forked",
            Self::Internal => "Internal",
            Self::Reentrant => "Reentrant",
            Self::MachineFailed => "MachineFailed",
            Self::SessionExpired => "SessionExpired",
        }
    }
}

/// What is known of the command's fate when a call fails (S15).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Committed {
    /// In the log for good.
    Yes,
    /// Certainly not, and never will be: safe to send again.
    No,
    /// Nobody can say.
    Unknown,
}

impl Committed {
    /// What two sendings of one command say together: a doubt is not taken back by the other being certainly not done.
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Yes, _) | (_, Self::Yes) => Self::Yes,
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
            (Self::No, Self::No) => Self::No,
        }
    }
}

/// A failure: code, human text (thing, reason, next step), and the facts a caller acts on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub code: ErrorCode,
    pub message: String,
    pub committed: Committed,
    /// Where the leader is, when the answer is "not here".
    pub leader: Option<(u64, String)>,
    /// The file or directory concerned.
    pub path: Option<PathBuf>,
    /// The log index concerned.
    pub index: Option<u64>,
    /// The configuration field concerned.
    pub field: Option<String>,
    /// As long as nothing else changes, asking again comes to the same.
    pub lasting: bool,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn new(code: ErrorCode, committed: Committed, message: impl Into<String>) -> Self {
        Error {
            code,
            message: message.into(),
            committed,
            leader: None,
            path: None,
            index: None,
            field: None,
            lasting: false,
        }
    }

    /// A failure of something that never was, or never will be, in the log.
    pub fn not_done(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::new(code, Committed::No, message)
    }

    pub fn unknown(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::new(code, Committed::Unknown, message)
    }

    pub fn config(field: impl Into<String>, message: impl Into<String>) -> Self {
        let field = field.into();
        let mut error = Self::not_done(ErrorCode::InvalidConfig, format!("{field}: {}", message.into()));
        error.field = Some(field);
        error
    }

    /// A storage failure; the text should say what was attempted, the reason and the remedy. The path is added in front.
    pub fn storage(code: ErrorCode, path: &Path, message: impl fmt::Display) -> Self {
        let mut error = Self::not_done(code, format!("{}: {message}", path.display()));
        error.path = Some(path.to_path_buf());
        error
    }

    /// Sorts an operating system error: full disk, or any other.
    pub fn io(path: &Path, attempted: &str, source: &std::io::Error) -> Self {
        match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::storage(
                ErrorCode::DiskFull,
                path,
                format_args!("cannot {attempted}: {source}; free space on this disk and start the node again"),
            ),
            _ => Self::storage(ErrorCode::Storage, path, format_args!("cannot {attempted}: {source}")),
        }
    }

    pub fn with_leader(mut self, leader: Option<(u64, String)>) -> Self {
        self.leader = leader;
        self
    }

    pub fn lasting(mut self) -> Self {
        self.lasting = true;
        self
    }

    pub fn with_index(mut self, index: u64) -> Self {
        self.index = Some(index);
        self
    }

    /// Safe to send again: it certainly was not done, and the cause may pass.
    pub fn retryable(&self) -> bool {
        self.committed == Committed::No
            && !self.lasting
            && matches!(
                self.code,
                ErrorCode::NotLeader
                    | ErrorCode::NoLeader
                    | ErrorCode::Overloaded
                    | ErrorCode::LeadershipLost
                    | ErrorCode::Timeout
                    | ErrorCode::ConnectionFailed
                    | ErrorCode::Membership
                    | ErrorCode::Closed
            )
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.name(), self.message)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_the_trip_over_the_border() {
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_i32(code as i32), Some(code), "{}", code.name());
        }
        assert_eq!(ErrorCode::from_i32(0), None);
    }

    #[test]
    fn only_what_was_certainly_not_done_is_retryable() {
        for code in ErrorCode::ALL {
            assert!(!Error::unknown(code, "").retryable());
            assert!(!Error::new(code, Committed::Yes, "").retryable());
        }
        assert!(Error::not_done(ErrorCode::Overloaded, "").retryable());
        assert!(!Error::not_done(ErrorCode::ProposalTooLarge, "").retryable());
        assert!(Error::not_done(ErrorCode::Membership, "").retryable());
        assert!(!Error::not_done(ErrorCode::Membership, "").lasting().retryable());
    }
}

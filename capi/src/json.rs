//! What crosses the border as JSON: errors, replies, log records. Keys are part of the ABI: add, never rename.

use raftify_engine::cluster::ClusterState;
use raftify_engine::node::LogRecord;
use raftify_engine::{Committed, Error};
use serde_json::{json, Value};

pub(crate) fn error(error: &Error) -> Value {
    json!({
        "code": error.code as i32,
        "name": error.code.name(),
        "message": error.message,
        "committed": match error.committed {
            Committed::Yes => Some(true),
            Committed::No => Some(false),
            Committed::Unknown => None,
        },
        "retryable": error.retryable(),
        "leader_id": error.leader.as_ref().map(|(id, _)| *id),
        "leader_addr": error.leader.as_ref().map(|(_, addr)| addr),
        "path": error.path.as_ref().map(|path| path.to_string_lossy()),
        "index": error.index,
        "field": error.field,
    })
}

pub(crate) fn cluster(state: &ClusterState) -> Value {
    let members: Vec<Value> = state
        .members()
        .iter()
        .map(|member| json!({"id": member.id, "addr": member.addr, "promote": member.promote}))
        .collect();
    json!({
        "members": members,
        "voters": state.voters,
        "learners": state.learners,
        "voters_outgoing": state.voters_outgoing,
        "learners_next": state.learners_next,
        "removed": state.removed,
        "next_id": state.next_id,
        "incarnation": state.incarnation().map(|uid| uid.to_string()),
    })
}

pub(crate) fn log(record: &LogRecord) -> Value {
    json!({
        "level": record.level.as_str().to_ascii_lowercase(),
        "target": record.target,
        "message": record.message,
        "node_id": record.node_id,
        "term": record.term,
    })
}

/*
 * raftify: an embeddable Raft cluster. The C ABI; generated from the crate raftify-capi, not to be edited.
 *
 * What holds for every function, unless its own text says otherwise:
 *
 * - Status: int32_t, 0 on success, RAFTIFY_ERR_* (negative) otherwise. What a function writes through its out
 *   parameters is written only on success; `error` (may be NULL) is written only on failure, with an object to be
 *   freed by raftify_error_free.
 * - Text is UTF-8 as pointer and length; bytes are pointer and length, NULL allowed when the length is 0. Inputs are
 *   copied before the call returns. Texts that are returned without a length end with a NUL.
 * - Pointers that are not NULL must be aligned and valid for the whole call, as long as said, and not written to
 *   meanwhile. NULL where it is not allowed is refused as RAFTIFY_ERR_INVALID_ARGUMENT.
 * - Ownership: what a *_new, *_start or a char ** out parameter hands out is the caller's, to be freed once with the
 *   function that its text names. Never mix with malloc and free.
 * - Threads: every handle may be used by many threads at once, except that nothing may use it while it is freed, or
 *   later.
 * - Requests are named by tokens: numbers of the caller's choice, 1 to 2^63 - 1. An accepted request (status 0) has exactly
 *   one COMPLETION, a refused one none. It never comes from inside the submitting call; but a thread that drains
 *   meanwhile may see it before that call has returned on its own thread, so register the token first.
 * - Callbacks are called without any lock of the library held, must not unwind (no C++ exception, no longjmp), and
 *   may not close, free, wait or start (RAFTIFY_ERR_REENTRANT).
 * - After fork() every handle of the parent is dead in the child (RAFTIFY_ERR_FORKED); see
 *   raftify_after_fork_in_child.
 * - The library starts no thread before raftify_runtime_new, installs no signal handler, and prints nothing. Its threads
 *   block all signals but SIGPROF and those that a fault of the thread raises: handlers run on the program's threads, and a
 *   peer that goes away raises no SIGPIPE. The thread that calls a state machine is the program's in this respect.
 * - Growth: functions, constants, settings and JSON keys are added, never changed; "Since" names the first ABI
 *   number.
 */


#ifndef RAFTIFY_H
#define RAFTIFY_H

#include <stddef.h>
#include <stdint.h>

/**
 * The number of this ABI. A program compiled against this header works with every library that reports the same
 * number.
 */
#define RAFTIFY_ABI_VERSION 1

/**
 * Success.
 */
#define RAFTIFY_OK 0

/**
 * A setting is wrong; the error names its field.
 */
#define RAFTIFY_ERR_INVALID_CONFIG -1

/**
 * An argument of the call is wrong.
 */
#define RAFTIFY_ERR_INVALID_ARGUMENT -2

/**
 * Only the leader can do this; the error names it, if it is known.
 */
#define RAFTIFY_ERR_NOT_LEADER -3

/**
 * The deadline came and nothing was ever sent to a leader.
 */
#define RAFTIFY_ERR_NO_LEADER -4

/**
 * A queue is full. Try again later.
 */
#define RAFTIFY_ERR_OVERLOADED -5

/**
 * The command is larger than `max_proposal_size`.
 */
#define RAFTIFY_ERR_PROPOSAL_TOO_LARGE -6

/**
 * The leader was lost before it answered: the outcome is in the error's `committed`.
 */
#define RAFTIFY_ERR_LEADERSHIP_LOST -7

/**
 * The deadline came: the outcome is in the error's `committed`.
 */
#define RAFTIFY_ERR_TIMEOUT -8

/**
 * The command failed in the state machine, on every node alike.
 */
#define RAFTIFY_ERR_APPLY_FAILED -9

/**
 * Committed, but a snapshot overtook the result.
 */
#define RAFTIFY_ERR_RESULT_LOST -10

/**
 * A snapshot could not be taken.
 */
#define RAFTIFY_ERR_SNAPSHOT_FAILED -11

/**
 * A command came to something else on this node than on the majority: the node has stopped. `index` names the command.
 */
#define RAFTIFY_ERR_STATE_DIVERGED -12

/**
 * The membership change is impossible now or at all.
 */
#define RAFTIFY_ERR_MEMBERSHIP -13

/**
 * This node was removed from its cluster.
 */
#define RAFTIFY_ERR_REMOVED -14

/**
 * A file or directory cannot be used; the error names its path.
 */
#define RAFTIFY_ERR_STORAGE -15

/**
 * The disk is full.
 */
#define RAFTIFY_ERR_DISK_FULL -16

/**
 * What was read is not what was written.
 */
#define RAFTIFY_ERR_CORRUPT_DATA -17

/**
 * The directory belongs to another node or cluster, or was wiped.
 */
#define RAFTIFY_ERR_WRONG_DIRECTORY -18

/**
 * Another node has the directory open.
 */
#define RAFTIFY_ERR_DIRECTORY_IN_USE -19

/**
 * The directory was written by a newer version.
 */
#define RAFTIFY_ERR_FORMAT_TOO_NEW -20

/**
 * Nobody could be reached.
 */
#define RAFTIFY_ERR_CONNECTION_FAILED -21

/**
 * Certificates: a file of them cannot be used, or one side does not take the other's; the error says which and why.
 */
#define RAFTIFY_ERR_TLS -22

/**
 * The other side belongs to another cluster.
 */
#define RAFTIFY_ERR_CLUSTER_MISMATCH -23

/**
 * The node, client or queue is closed.
 */
#define RAFTIFY_ERR_CLOSED -24

/**
 * The handle was made before a fork, in the parent process.
 */
#define RAFTIFY_ERR_FORKED -25

/**
 * A defect of the library: the node is closed. Please report it.
 */
#define RAFTIFY_ERR_INTERNAL -26

/**
 * The call is not allowed inside a callback.
 */
#define RAFTIFY_ERR_REENTRANT -27

/**
 * The state machine itself failed, and its node stopped.
 */
#define RAFTIFY_ERR_MACHINE_FAILED -28

/**
 * The cluster knows the client's session no longer: whether a command of it was applied cannot be found out any more.
 */
#define RAFTIFY_ERR_SESSION_EXPIRED -29

/**
 * By polling, or by raftify_queue_wait.
 */
#define RAFTIFY_WAKE_NONE 0

/**
 * The descriptor raftify_queue_fd becomes readable (level: it stays so until a drain leaves the queue empty).
 */
#define RAFTIFY_WAKE_FD 1

/**
 * The function `wake` is called once for each time that the queue turns non-empty.
 */
#define RAFTIFY_WAKE_CALLBACK 2

/**
 * The answer to a request: `token` names it. status 0: `data` depends on the request; otherwise `data` is the error
 * as JSON (raftify_error_json). With token 0: the node's own snapshot is restored and it listens; `data` is
 * {"addr":"host:port"}.
 */
#define RAFTIFY_EVENT_COMPLETION 1

/**
 * Pull form: apply `count` commands. `token` is the request's number, `index` and `term` are where the machine then
 * stands. `data`: `count` times raftify_entry, then the commands' bytes; `offset` counts from the start of `data`,
 * which is aligned for raftify_entry. May be of no commands: to be answered all the same. Answer with
 * raftify_apply_done, raftify_apply_done_packed or raftify_apply_told_packed, or raftify_machine_failed.
 */
#define RAFTIFY_EVENT_APPLY 2

/**
 * Pull form: hand over the state at exactly `index`. `token` is the request's number. Answer with
 * raftify_snapshot_chunk and raftify_snapshot_done.
 */
#define RAFTIFY_EVENT_SNAPSHOT 3

/**
 * Pull form: replace the state. `token` is the request's number, `data` the path of the file (UTF-8; not to be
 * opened: read it with raftify_restore_read, which checks it). Answer with raftify_restore_done or
 *   raftify_machine_failed.
 */
#define RAFTIFY_EVENT_RESTORE 4

/**
 * Something happened that nobody asked for: `data` is JSON, {"event":"leader_changed","term":3,"leader_id":1} and
 * the like.
 */
#define RAFTIFY_EVENT_NOTICE 5

/**
 * A line for the log: `data` is
 * {"level":"info","target":"raft"|"storage"|"transport","message":"...","node_id":1,"term":3}. When nobody drains,
 * the newest lines are left out, and a line says how many.
 */
#define RAFTIFY_EVENT_LOG 6

/**
 * The last record of a node or client. status 0 after a close, otherwise what ended it, with the error as JSON in
 * `data`. No callback of its machine runs any more.
 */
#define RAFTIFY_EVENT_CLOSED 7

/**
 * No deadline: the request ends when its fate is decided, or the node closes.
 */
#define RAFTIFY_TIMEOUT_NONE -1

/**
 * The default of its kind: `conf_change_request_timeout` for membership, 600 s for a snapshot, otherwise
 * `request_timeout`.
 */
#define RAFTIFY_TIMEOUT_DEFAULT -2

/**
 * Add `id` at `addr` as a voter: first a learner, promoted when it has caught up.
 */
#define RAFTIFY_MEMBER_ADD 1

/**
 * Add `id` at `addr` as a learner, which has no vote.
 */
#define RAFTIFY_MEMBER_ADD_LEARNER 2

/**
 * Make the learner `id` a voter.
 */
#define RAFTIFY_MEMBER_PROMOTE 3

/**
 * Make the voter `id` a learner.
 */
#define RAFTIFY_MEMBER_DEMOTE 4

/**
 * Remove `id`, which is spent for good.
 */
#define RAFTIFY_MEMBER_REMOVE 5

/**
 * The member `id` is dialled at `addr` from now on.
 */
#define RAFTIFY_MEMBER_UPDATE_ADDRESS 6

/**
 * A client: finds the leader, follows it, and repeats what was certainly not done.
 */
typedef struct raftify_client raftify_client;

/**
 * Settings for nodes, all with defaults. May be changed after a node was started with it: the node has its own copy.
 */
typedef struct raftify_config raftify_config;

/**
 * A failure: its code, a text for people (what, why, what to do), and the facts a program acts on. Never changes;
 * may be read by many threads.
 */
typedef struct raftify_error raftify_error;

/**
 * One member of a cluster, running in this process.
 */
typedef struct raftify_node raftify_node;

/**
 * Where completions, notices and the pull form's requests arrive. One queue may serve any number of nodes and
 * clients.
 */
typedef struct raftify_queue raftify_queue;

/**
 * The results of one batch, while `apply` runs.
 */
typedef struct raftify_results raftify_results;

/**
 * One thread that drives nodes and clients and carries their network traffic. A program needs one; more spread nodes
 * over processors.
 */
typedef struct raftify_runtime raftify_runtime;

/**
 * Where a machine reads its state from, while `restore` runs.
 */
typedef struct raftify_snapshot_reader raftify_snapshot_reader;

/**
 * Where a machine writes its state, while `snapshot` runs.
 */
typedef struct raftify_snapshot_writer raftify_snapshot_writer;

/**
 * Status of every call: 0 is success, a negative number one of `RAFTIFY_ERR_*`. Newer libraries may add numbers.
 */
typedef int32_t raftify_status;

/**
 * One record of a queue.
 */
typedef struct raftify_event {
  /**
   * The caller's number of a request; the library's number of a request to the machine; otherwise 0.
   */
  uint64_t token;
  /**
   * Index in the log, where the kind has one; otherwise 0.
   */
  uint64_t index;
  /**
   * Term of that index.
   */
  uint64_t term;
  /**
   * Borrowed until the next raftify_queue_drain of this queue, or raftify_queue_free. NULL only if `len` is 0.
   */
  const uint8_t *data;
  size_t len;
  /**
   * Which node or client it concerns: raftify_node_number, raftify_client_number. Records may come before
   * raftify_node_start has returned.
   */
  uint64_t source;
  /**
   * RAFTIFY_EVENT_*; newer libraries may add numbers.
   */
  int32_t kind;
  /**
   * 0 or RAFTIFY_ERR_*.
   */
  int32_t status;
  /**
   * Of APPLY: commands.
   */
  uint32_t count;
  uint32_t reserved;
} raftify_event;

/**
 * A member that the cluster begins with, or that is to be contacted.
 */
typedef struct raftify_peer {
  /**
   * Above 0.
   */
  uint64_t id;
  /**
   * host:port, UTF-8.
   */
  const char *addr;
  size_t addr_len;
} raftify_peer;

/**
 * One command of a batch.
 */
typedef struct raftify_entry {
  uint64_t index;
  uint64_t term;
  /**
   * The leader's clock when it took the command, microseconds since 1970; never goes back in the log.
   */
  uint64_t time_us;
  /**
   * Where its bytes begin, counted from `data`.
   */
  uint64_t offset;
  /**
   * How many they are.
   */
  uint32_t len;
  /**
   * 1 if its result is asked for: somebody waits for it on this node, or the cluster compares results (`verify_results`). 0: only its
   * failure is.
   */
  uint32_t wanted;
  /**
   * The token of the proposal whose result it is, if that was accepted by this node of this process; 0: there is none, or its result
   * has to be given back. See raftify_apply_told_packed.
   */
  uint64_t token;
} raftify_entry;

/**
 * Push form of a state machine. All functions are called from one thread of the node's own, in log order, never two
 * at a time, and must not unwind (no C++ exception, no longjmp). Inside them requests may be submitted; close, free,
 * wait and start are refused (RAFTIFY_ERR_REENTRANT).
 *
 * Zero the struct first, then set struct_size to its size: the library takes what a shorter one lacks as NULL, and
 * refuses a longer one whose tail is not zero.
 */
typedef struct raftify_machine {
  /**
   * sizeof(raftify_machine).
   */
  uint32_t struct_size;
  uint32_t reserved;
  /**
   * Handed to every function.
   */
  void *user_data;
  /**
   * Applies `count` commands, in order; the bytes of entries[i] lie at data + entries[i].offset. All pointers are
   * borrowed for the call. Write what command i came to with raftify_results_set(results, i, ...); without it the
   * result is empty. A command that fails, does so on every node alike: say it in its result. Return 0; any other
   * number says that this machine itself has failed (its disk, its memory): the node stops. Required.
   */
  int32_t (*apply)(void *user_data,
                   const struct raftify_entry *entries,
                   size_t count,
                   const uint8_t *data,
                   struct raftify_results *results);
  /**
   * Writes out the state with raftify_snapshot_write, any number of times. Return 0; on any other number there is
   * no snapshot, the node goes on and tries later. Without this function there are no snapshots, and the log is
   * never shortened.
   */
  int32_t (*snapshot)(void *user_data, struct raftify_snapshot_writer *writer);
  /**
   * Replaces the state by what raftify_snapshot_read gives. Return 0; any other number stops the node.
   */
  int32_t (*restore)(void *user_data, struct raftify_snapshot_reader *reader);
  /**
   * Optional; called exactly once, on any thread, after the last call of the others; also if raftify_node_start
   * fails (then before it returns).
   */
  void (*destroy)(void *user_data);
} raftify_machine;

/**
 * One command of several.
 */
typedef struct raftify_proposal {
  /**
   * 1 to 2^63 - 1.
   */
  uint64_t token;
  const uint8_t *data;
  size_t len;
} raftify_proposal;

/**
 * One change of membership.
 */
typedef struct raftify_member_change {
  /**
   * RAFTIFY_MEMBER_*.
   */
  int32_t kind;
  /**
   * 0.
   */
  uint32_t reserved;
  uint64_t id;
  /**
   * host:port, UTF-8; for the kinds that name an address.
   */
  const char *addr;
  size_t addr_len;
} raftify_member_change;

/**
 * What one command came to.
 */
typedef struct raftify_outcome {
  /**
   * The entry's.
   */
  uint64_t index;
  /**
   * The result for the proposer; if `failed`, the UTF-8 text of the failure.
   */
  const uint8_t *data;
  size_t len;
  /**
   * Not 0: the command failed, on every node alike.
   */
  int32_t failed;
  /**
   * 0.
   */
  uint32_t reserved;
} raftify_outcome;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The ABI number of the library that is loaded. Compare it with `RAFTIFY_ABI_VERSION` of the header before any other
 * call.
 *
 * Threads: any. Blocks: no. Errors: none. Since: ABI 1.
 */
uint32_t raftify_abi_version(void);

/**
 * The version of the library that is loaded, for people: "0.1.0".
 *
 * Returns: static text, NUL-terminated; never freed.
 * Threads: any. Blocks: no. Errors: none. Since: ABI 1.
 */
const char *raftify_version(void);

/**
 * The name of a status: "ok", "InvalidConfig", "Timeout", ...; "unknown" for a number this library does not know.
 *
 * Returns: static text, NUL-terminated; never freed.
 * Threads: any. Blocks: no. Errors: none. Since: ABI 1.
 */
const char *raftify_status_name(int32_t status);

/**
 * The status that this error stands for; 0 for NULL.
 *
 * Threads: any. Blocks: no. Errors: none. Since: ABI 1.
 */
int32_t raftify_error_code(const struct raftify_error *error);

/**
 * What happened, to what, why, and what to do about it, as UTF-8.
 *
 * Returns: text, NUL-terminated, that lives as long as `error`; "" for NULL.
 * Threads: any. Blocks: no. Errors: none. Since: ABI 1.
 */
const char *raftify_error_message(const struct raftify_error *error);

/**
 * Everything the error knows, as one JSON object: {"code":-8, "name":"Timeout", "message":"...",
 * "committed":true|false|null, "retryable":false, "leader_id":1|null, "leader_addr":"..."|null, "path":"..."|null,
 * "index":7|null, "field":"..."|null}. `committed`: the command is in the log for good (true), certainly is not and
 * never will be (false), nobody can say (null). `retryable`: it certainly was not done, and the cause may pass.
 * Newer libraries may add keys.
 *
 * Returns: text, NUL-terminated, that lives as long as `error`; "null" for NULL.
 * Threads: any. Blocks: no. Errors: none. Since: ABI 1.
 */
const char *raftify_error_json(const struct raftify_error *error);

/**
 * Frees an error object; NULL is ignored. Its texts end with it.
 *
 * Threads: any, once. Blocks: no. Errors: none. Since: ABI 1.
 */
void raftify_error_free(struct raftify_error *error);

/**
 * Frees a text that a function of this library handed out as `char **`; NULL is ignored.
 *
 * Threads: any, once. Blocks: no. Errors: none. Since: ABI 1.
 */
void raftify_string_free(char *text);

/**
 * Makes settings with all defaults.
 *
 * Returns: owned, free with raftify_config_free; NULL only after a defect of the library.
 * Threads: any. Blocks: no. Errors: none. Since: ABI 1.
 */
struct raftify_config *raftify_config_new(void);

/**
 * Sets one setting by its name. Times are in seconds ("0.1"), sizes in bytes, switches "true" or "false". Each value
 * is checked for itself here, all together by raftify_config_validate and raftify_node_start. Beside the engine's
 * settings there is "log_level": "off", "critical", "error", "warning", "info" (the default), "debug", "trace"; and
 * "applied_index", for a state machine that is durable by itself: up to this index of the log it has applied
 * everything, and has it on its disk. It is then asked to apply what comes after that, without a restore, unless the
 * log begins later: then to restore first. Without it the machine starts empty. "session" is for
 * raftify_client_new_with; nodes do not look at it.
 *
 * "initial_learners": ids of those among the initial members that begin as learners, with commas between them; the
 * others are voters. All initial members have to be given the same.
 *
 * "tls_cert", "tls_key" and "tls_ca", paths of PEM files, go together: with them every connection of the node is TLS
 * 1.3 in which both sides show a certificate of a CA in tls_ca. That of a node names the host of its raft_addr, or
 * "tls_server_name" where one name stands for all. The files are read when the node starts, and again before a
 * connection when they have changed; those that cannot be used then leave the certificates from before in use.
 *
 * name, value: UTF-8, borrowed for the call. error: optional; receives an error object on failure.
 * Threads: any. Blocks: no. Errors: INVALID_CONFIG (the error names the field), INVALID_ARGUMENT, FORKED. Since: ABI
 *   1.
 */
raftify_status raftify_config_set(struct raftify_config *config,
                                  const char *name,
                                  size_t name_len,
                                  const char *value,
                                  size_t value_len,
                                  struct raftify_error **error);

/**
 * Checks that the settings make sense together.
 *
 * error: optional; receives an error object that names field, value and remedy.
 * Threads: any. Blocks: no. Errors: INVALID_CONFIG, INVALID_ARGUMENT, FORKED. Since: ABI 1.
 */
raftify_status raftify_config_validate(const struct raftify_config *config, struct raftify_error **error);

/**
 * Frees settings; NULL is ignored. Nodes started with them are not touched.
 *
 * Threads: any, once. Blocks: no. Errors: none. Since: ABI 1.
 */
void raftify_config_free(struct raftify_config *config);

/**
 * Starts a runtime: one thread, and one that starts another should a disk hold it up.
 *
 * out: receives the runtime on success; owned, free with raftify_runtime_free.
 * error: optional; receives an error object on failure.
 * Threads: any. Blocks: no. Errors: INVALID_ARGUMENT, INTERNAL (no thread or descriptor to be had). Since: ABI 1.
 */
raftify_status raftify_runtime_new(struct raftify_runtime **out, struct raftify_error **error);

/**
 * Ends the runtime's thread and frees the runtime; NULL is ignored. All nodes and clients on it must have been freed
 * before.
 *
 * Threads: any, once. Blocks: until the thread has ended, at most 2 s.
 * Returns: 0; INVALID_ARGUMENT while a node or client uses it, and REENTRANT inside a callback: then nothing was
 *   done; TIMEOUT if the thread had not ended: it is left behind and the handle is gone; FORKED in a forked child:
 *   the handle is gone. Since: ABI 1.
 */
raftify_status raftify_runtime_free(struct raftify_runtime *runtime);

/**
 * Makes a queue.
 *
 * wake_kind: RAFTIFY_WAKE_*; how its owner hears that it has turned non-empty.
 * wake: for RAFTIFY_WAKE_CALLBACK; called from threads of the library, or from within raftify_queue_drain when that
 *   leaves records behind. It must not block nor unwind, and should only pass the word on (raftify_queue_drain
 *   returns 0 inside it). It may come once too often, never too seldom.
 * user_data: handed to `wake` and `destroy`.
 * destroy: optional; called exactly once, on any thread, after the last use of `user_data`; also if this call fails
 *   (then before it returns).
 * out: receives the queue on success; owned, free with raftify_queue_free.
 * error: optional; receives an error object on failure.
 * Threads: any. Blocks: no. Errors: INVALID_ARGUMENT, INTERNAL (no descriptor to be had). Since: ABI 1.
 */
raftify_status raftify_queue_new(int32_t wake_kind,
                                 void (*wake)(void *user_data),
                                 void *user_data,
                                 void (*destroy)(void *user_data),
                                 struct raftify_queue **out,
                                 struct raftify_error **error);

/**
 * The descriptor that is readable while the queue may hold records. Add it to poll, epoll, kqueue or an event loop;
 * do not read or close it.
 *
 * Returns: the descriptor, which lives as long as the queue; -1 if the queue is not of RAFTIFY_WAKE_FD, for NULL,
 *   and in a forked child.
 * Threads: any. Blocks: no. Errors: none. Since: ABI 1.
 */
int32_t raftify_queue_fd(const struct raftify_queue *queue);

/**
 * Takes up to `capacity` records, oldest first. Takes the signal back, and gives it again if records remain. What
 * the records of the drain before pointed to is freed.
 *
 * out: receives the records; their `data` is borrowed until the next drain of this queue, or its free.
 * Returns: how many; 0 if there was none, for NULL, for capacity 0, inside `wake`, and in a forked child.
 * Threads: any, but one at a time per queue. Blocks: no. Errors: none. Since: ABI 1.
 */
size_t raftify_queue_drain(struct raftify_queue *queue, struct raftify_event *out, size_t capacity);

/**
 * How many records wait.
 *
 * Returns: their number; 0 for NULL and in a forked child.
 * Threads: any. Blocks: no. Errors: none. Since: ABI 1.
 */
size_t raftify_queue_len(const struct raftify_queue *queue);

/**
 * Waits until the queue holds a record. Of use with every kind of queue.
 *
 * timeout_ms: milliseconds; below 0: for ever.
 * Threads: any number. Blocks: yes.
 * Returns: 0 when there is a record; RAFTIFY_ERR_TIMEOUT; INVALID_ARGUMENT for NULL; REENTRANT inside a callback;
 *   FORKED. Since: ABI 1.
 */
raftify_status raftify_queue_wait(struct raftify_queue *queue, int64_t timeout_ms);

/**
 * Frees the queue and drops the records that are still in it; NULL is ignored. Nodes and clients that fill it may
 * live on: what they say goes nowhere, and nobody is woken for it. (A call of `wake` that another thread had set out to
 * make before may still come, also when this has returned; `destroy` comes after it.)
 *
 * Threads: any, once, and no other call on this queue at the same time. Blocks: no.
 * Returns: 0; REENTRANT inside a callback: then nothing was done; FORKED in a forked child: the handle is gone.
 *   Since: ABI 1.
 */
raftify_status raftify_queue_free(struct raftify_queue *queue);

/**
 * Opens the node's directory `<log_dir>/node-<id>`, checks it, and starts the node. Afterwards the node restores its
 * own snapshot, listens, and says so with a COMPLETION of token 0; only then does it serve. Its records may be in
 * the queue before this call has returned. Which cluster it joins or founds follows from the directory and `peers`:
 * see docs/settings.md.
 *
 * runtime, queue, config: borrowed for the call. The node keeps the queue itself alive, and copies the settings; the
 *   runtime must be freed after the node.
 * node_id: above 0. raft_addr: host:port that other members dial; UTF-8, borrowed for the call.
 * peers, peer_count: borrowed for the call. peers_given: 0 says that none were named (then peer_count must be 0), 1
 *   that these were, even if they are none.
 * machine: push form of the state machine, copied; NULL: pull form (APPLY, SNAPSHOT and RESTORE arrive in the
 *   queue). Its `destroy` runs exactly once, also if this call fails.
 * out: receives the node on success; owned, free with raftify_node_free.
 * error: optional; receives an error object on failure.
 * Threads: any; not inside a callback. Blocks: while the directory is opened and read through.
 * Errors: INVALID_CONFIG, INVALID_ARGUMENT, STORAGE, DISK_FULL, CORRUPT_DATA, WRONG_DIRECTORY, DIRECTORY_IN_USE,
 *   FORMAT_TOO_NEW, TLS, CLOSED (the runtime has ended), REENTRANT, FORKED, INTERNAL. Since: ABI 1.
 */
raftify_status raftify_node_start(struct raftify_runtime *runtime,
                                  struct raftify_queue *queue,
                                  const struct raftify_config *config,
                                  uint64_t node_id,
                                  const char *raft_addr,
                                  size_t raft_addr_len,
                                  const struct raftify_peer *peers,
                                  size_t peer_count,
                                  int32_t peers_given,
                                  const struct raftify_machine *machine,
                                  struct raftify_node **out,
                                  struct raftify_error **error);

/**
 * The number that records of this node carry as `source`; unique among all nodes and clients of this process.
 *
 * Returns: above 0; 0 for NULL.
 * Threads: any. Blocks: no. Errors: none. Since: ABI 1.
 */
uint64_t raftify_node_number(const struct raftify_node *node);

/**
 * The node's status as JSON: {"node_id", "addr", "role", "term", "leader_id", "last_index", "commit_index",
 * "applied_index", "snapshot_index", "voters", "learners", "peers":{"2":{"addr", "match_index", "lag", "connected",
 * "last_seen"}}, "error"}. Newer libraries may add keys.
 *
 * out: receives UTF-8 text, NUL-terminated; owned, free with raftify_string_free. len: optional; receives its length
 *   without the NUL.
 * error: optional; receives an error object on failure.
 * Threads: any, also inside a callback. Blocks: no. Errors: INVALID_ARGUMENT, FORKED, INTERNAL. Since: ABI 1.
 */
raftify_status raftify_node_status(struct raftify_node *node, char **out, size_t *len, struct raftify_error **error);

/**
 * From now on records of RAFTIFY_EVENT_LOG are made up to this level: the names of the setting "log_level".
 *
 * level: UTF-8, borrowed for the call. error: optional; receives an error object on failure.
 * Threads: any. Blocks: no. Errors: INVALID_CONFIG, INVALID_ARGUMENT, FORKED. Since: ABI 1.
 */
raftify_status raftify_node_set_log_level(struct raftify_node *node,
                                          const char *level,
                                          size_t level_len,
                                          struct raftify_error **error);

/**
 * Begins to close the node: pending requests end (with RAFTIFY_ERR_CLOSED, if nothing else becomes known of them),
 * and CLOSED comes as its last record. Again: no effect.
 *
 * timeout_ms: what the node may take to end in order (finish a write, hand over leadership); after it the node ends
 *   hard. -1: no limit, -2: 5 s.
 * Threads: any; not inside a callback. Blocks: no. Errors: INVALID_ARGUMENT, REENTRANT, FORKED. Since: ABI 1.
 */
raftify_status raftify_node_close(struct raftify_node *node, int64_t timeout_ms);

/**
 * Frees the node; NULL is ignored. One that is still open is closed hard: what is pending ends with
 * RAFTIFY_ERR_CLOSED. For an end in order call raftify_node_close before and drain until CLOSED.
 *
 * Threads: any, once, and no other call on this node at the same time or later; not inside a callback. Blocks: until
 *   its threads have ended, at most 2 s.
 * Returns: 0; TIMEOUT if a thread had not ended (a write on a hung disk, a callback that does not return): it is
 *   left behind and the handle is gone; REENTRANT inside a callback: then nothing was done; FORKED in a forked
 * child: the handle is gone. Since: ABI 1.
 */
raftify_status raftify_node_free(struct raftify_node *node);

/**
 * Proposes a command. COMPLETION: `data` is what the state machine of this node returned for it, `index` and `term`
 * are its entry's.
 *
 * token: 1 to 2^63 - 1; the caller's number for this request, best not used twice at a time. data: copied; NULL is
 *   right for len 0.
 * timeout_ms: milliseconds, RAFTIFY_TIMEOUT_NONE or RAFTIFY_TIMEOUT_DEFAULT. error: optional; receives an error
 *   object on failure.
 * Threads: any, also inside a callback. Blocks: no.
 * Errors, then without a COMPLETION: INVALID_ARGUMENT, PROPOSAL_TOO_LARGE, OVERLOADED, CLOSED, FORKED. Since: ABI 1.
 */
raftify_status raftify_propose(struct raftify_node *node,
                               uint64_t token,
                               const uint8_t *data,
                               size_t len,
                               int64_t timeout_ms,
                               struct raftify_error **error);

/**
 * Proposes several commands, in this order, with one hand-over: either all are accepted or none. Each has its own
 * COMPLETION.
 *
 * proposals, count: copied with all they point to. timeout_ms, error: as for raftify_propose, for all of them.
 * Threads: any, also inside a callback. Blocks: no.
 * Errors, then without a COMPLETION: INVALID_ARGUMENT, PROPOSAL_TOO_LARGE, OVERLOADED, CLOSED, FORKED. Since: ABI 1.
 */
raftify_status raftify_propose_many(struct raftify_node *node,
                                    const struct raftify_proposal *proposals,
                                    size_t count,
                                    int64_t timeout_ms,
                                    struct raftify_error **error);

/**
 * As raftify_propose_many for commands whose tokens follow one another, which lie one behind the other in one buffer.
 *
 * first_token: of the first. data, len: all commands; copied; NULL is right for len 0. lens, count: how long each is, in
 *   order, together `len`; copied. timeout_ms, error: as for raftify_propose, for all of them.
 * Threads: any, also inside a callback. Blocks: no.
 * Errors, then without a COMPLETION: INVALID_ARGUMENT, PROPOSAL_TOO_LARGE, OVERLOADED, CLOSED, FORKED. Since: ABI 1.
 */
raftify_status raftify_propose_row(struct raftify_node *node,
                                   uint64_t first_token,
                                   const uint8_t *data,
                                   size_t len,
                                   const uint64_t *lens,
                                   size_t count,
                                   int64_t timeout_ms,
                                   struct raftify_error **error);

/**
 * Linearizable read. COMPLETION: the state machine of this node now holds everything that was acknowledged anywhere
 * before this call; `index` says up to where. `data` is empty: the caller reads its own state machine.
 *
 * token, timeout_ms, error: as for raftify_propose.
 * Threads: any, also inside a callback. Blocks: no. Errors, then without a COMPLETION: INVALID_ARGUMENT, OVERLOADED,
 *   CLOSED, FORKED. Since: ABI 1.
 */
raftify_status raftify_read(struct raftify_node *node,
                            uint64_t token,
                            int64_t timeout_ms,
                            struct raftify_error **error);

/**
 * Several linearizable reads with one hand-over: either all are accepted or none. Each has its own COMPLETION.
 *
 * tokens, count: copied; each as for raftify_propose. timeout_ms, error: as for raftify_propose, for all of them.
 * Threads: any, also inside a callback. Blocks: no. Errors, then without a COMPLETION: INVALID_ARGUMENT, OVERLOADED,
 *   CLOSED, FORKED. Since: ABI 1.
 */
raftify_status raftify_read_many(struct raftify_node *node,
                                 const uint64_t *tokens,
                                 size_t count,
                                 int64_t timeout_ms,
                                 struct raftify_error **error);

/**
 * Reserves an id for the node at `addr`, or finds the one it has. COMPLETION: `data` is a ticket as JSON, for
 * raftify_join.
 *
 * addr: host:port of the node that will join, UTF-8, copied; empty: not known yet. token, timeout_ms, error: as for
 *   raftify_propose.
 * Threads: any, also inside a callback. Blocks: no. Errors, then without a COMPLETION: INVALID_ARGUMENT, OVERLOADED,
 *   CLOSED, FORKED. Since: ABI 1.
 */
raftify_status raftify_reserve_id(struct raftify_node *node,
                                  uint64_t token,
                                  const char *addr,
                                  size_t addr_len,
                                  int64_t timeout_ms,
                                  struct raftify_error **error);

/**
 * Joins the cluster that the ticket names: as a learner first, as a voter once caught up. COMPLETION: it is a
 * member; `data` is JSON. At once for one who is a member.
 *
 * ticket_json: UTF-8, copied. token, timeout_ms, error: as for raftify_propose.
 * Threads: any, also inside a callback. Blocks: no. Errors, then without a COMPLETION: INVALID_ARGUMENT, CLOSED,
 *   FORKED. Since: ABI 1.
 */
raftify_status raftify_join(struct raftify_node *node,
                            uint64_t token,
                            const char *ticket_json,
                            size_t len,
                            int64_t timeout_ms,
                            struct raftify_error **error);

/**
 * Changes the membership, all in one step (joint consensus). COMPLETION: `data` is the cluster after it as JSON.
 *
 * changes, count: at least one; copied with all they point to. token, timeout_ms, error: as for raftify_propose.
 * Threads: any, also inside a callback. Blocks: no. Errors, then without a COMPLETION: INVALID_ARGUMENT, OVERLOADED,
 *   CLOSED, FORKED. Since: ABI 1.
 */
raftify_status raftify_change_members(struct raftify_node *node,
                                      uint64_t token,
                                      const struct raftify_member_change *changes,
                                      size_t count,
                                      int64_t timeout_ms,
                                      struct raftify_error **error);

/**
 * Takes this node out of its cluster for good; its id is spent. COMPLETION: it is out.
 *
 * token, timeout_ms, error: as for raftify_propose.
 * Threads: any, also inside a callback. Blocks: no. Errors, then without a COMPLETION: INVALID_ARGUMENT, OVERLOADED,
 *   CLOSED, FORKED. Since: ABI 1.
 */
raftify_status raftify_leave(struct raftify_node *node,
                             uint64_t token,
                             int64_t timeout_ms,
                             struct raftify_error **error);

/**
 * Makes another member the leader. COMPLETION: `data` is {"leader_id":2}.
 *
 * to: its id; 0: the one that is most up to date. token, timeout_ms, error: as for raftify_propose.
 * Threads: any, also inside a callback. Blocks: no. Errors, then without a COMPLETION: INVALID_ARGUMENT, OVERLOADED,
 *   CLOSED, FORKED. Since: ABI 1.
 */
raftify_status raftify_transfer_leader(struct raftify_node *node,
                                       uint64_t token,
                                       uint64_t to,
                                       int64_t timeout_ms,
                                       struct raftify_error **error);

/**
 * Gives up leadership without naming a successor. COMPLETION: this node does not lead (any more).
 *
 * token, timeout_ms, error: as for raftify_propose.
 * Threads: any, also inside a callback. Blocks: no. Errors, then without a COMPLETION: INVALID_ARGUMENT, OVERLOADED,
 *   CLOSED, FORKED. Since: ABI 1.
 */
raftify_status raftify_step_down(struct raftify_node *node,
                                 uint64_t token,
                                 int64_t timeout_ms,
                                 struct raftify_error **error);

/**
 * Takes a snapshot on this node; with nothing new since the last one, that one is named. COMPLETION: `data` is
 * {"index","term","size","path"}.
 *
 * token, timeout_ms, error: as for raftify_propose.
 * Threads: any, also inside a callback. Blocks: no. Errors, then without a COMPLETION: INVALID_ARGUMENT, OVERLOADED,
 *   CLOSED, FORKED. Since: ABI 1.
 */
raftify_status raftify_snapshot(struct raftify_node *node,
                                uint64_t token,
                                int64_t timeout_ms,
                                struct raftify_error **error);

/**
 * Hands the node a raft message as if it had come over the wire: for programs written for earlier releases. It is
 * checked like one from the wire, and dropped if it cannot be; COMPLETION says only that it was looked at.
 *
 * message: in, an encoded eraftpb.Message of len bytes. token, timeout_ms, error: as for raftify_propose.
 * Threads: any. Blocks: no. Errors, then without a COMPLETION: INVALID_ARGUMENT, OVERLOADED, CLOSED, FORKED; in the
 *   COMPLETION: INVALID_ARGUMENT if it cannot be decoded. Since: ABI 1.
 */
raftify_status raftify_send_message(struct raftify_node *node,
                                    uint64_t token,
                                    const uint8_t *message,
                                    size_t len,
                                    int64_t timeout_ms,
                                    struct raftify_error **error);

/**
 * Answers APPLY: the whole batch was applied, in order.
 *
 * request: the record's token. outcomes, count: of every command that failed and of every one that was `wanted`,
 *   ascending by index; copied with all they point to.
 * error: optional; receives an error object on failure.
 * Threads: any. Blocks: no. Errors: INVALID_ARGUMENT (also if no such request is open), CLOSED, FORKED. Since: ABI
 *   1.
 */
raftify_status raftify_apply_done(struct raftify_node *node,
                                  uint64_t request,
                                  const struct raftify_outcome *outcomes,
                                  size_t count,
                                  struct raftify_error **error);

/**
 * As raftify_apply_done, with the outcomes as one buffer: repeated { uint64 index; uint32 failed; uint32 len; uint8
 * data[len] }, little-endian, without padding.
 *
 * outcomes, len: copied. request, error: as for raftify_apply_done.
 * Threads: any. Blocks: no. Errors: INVALID_ARGUMENT (also if no such request is open), CLOSED, FORKED. Since: ABI
 *   1.
 */
raftify_status raftify_apply_done_packed(struct raftify_node *node,
                                         uint64_t request,
                                         const uint8_t *outcomes,
                                         size_t len,
                                         struct raftify_error **error);

/**
 * As raftify_apply_done_packed, where the program has itself given their results to those who waited for commands with a
 * `token` that `outcomes` does not name: these proposals end here, and no COMPLETION comes for their tokens (one that
 * had failed before, by its deadline for instance, has had its own). Saves the way of each result through the library.
 *
 * outcomes, len: copied. request, error: as for raftify_apply_done.
 * Threads: any. Blocks: no. Errors: INVALID_ARGUMENT (also if no such request is open), CLOSED, FORKED. Since: ABI
 *   1.
 */
raftify_status raftify_apply_told_packed(struct raftify_node *node,
                                         uint64_t request,
                                         const uint8_t *outcomes,
                                         size_t len,
                                         struct raftify_error **error);

/**
 * Answers SNAPSHOT, first part: the next bytes of the state, in pieces of any size (64 KiB or more is best).
 *
 * request: the record's token. data: copied or written before the call returns; NULL is right for len 0. error:
 *   optional; receives an error object on failure.
 * Threads: any, one at a time per request. Blocks: may wait for the disk.
 * Errors: STORAGE, DISK_FULL, INVALID_ARGUMENT (also if no such request is open), CLOSED, FORKED; after one end it
 *   with raftify_snapshot_done, as failed. Since: ABI 1.
 */
raftify_status raftify_snapshot_chunk(struct raftify_node *node,
                                      uint64_t request,
                                      const uint8_t *data,
                                      size_t len,
                                      struct raftify_error **error);

/**
 * Answers SNAPSHOT, last part: the state is complete, or could not be had. In the latter case the node goes on and
 * tries again later.
 *
 * request: the record's token. failed: 0: complete; otherwise `reason` says why not. reason: UTF-8, copied. error:
 *   optional; receives an error object on failure.
 * Threads: any. Blocks: may wait for the disk. Errors: STORAGE, DISK_FULL, INVALID_ARGUMENT (also if no such request
 *   is open), CLOSED, FORKED. Since: ABI 1.
 */
raftify_status raftify_snapshot_done(struct raftify_node *node,
                                     uint64_t request,
                                     int32_t failed,
                                     const char *reason,
                                     size_t len,
                                     struct raftify_error **error);

/**
 * While a RESTORE is open: reads bytes of the state, which are checked as they are read.
 *
 * request: the record's token. offset: where to begin. out: borrowed for the call; gets up to `capacity` bytes,
 *   which must be above 0.
 * n: receives how many; 0 at the end. There may be fewer than `capacity` before the end. error: optional; receives
 *   an error object on failure.
 * Threads: any. Blocks: on the disk. Errors: CORRUPT_DATA, STORAGE, INVALID_ARGUMENT (also if no such request is
 *   open), CLOSED, FORKED. Since: ABI 1.
 */
raftify_status raftify_restore_read(struct raftify_node *node,
                                    uint64_t request,
                                    uint64_t offset,
                                    uint8_t *out,
                                    size_t capacity,
                                    size_t *n,
                                    struct raftify_error **error);

/**
 * Answers RESTORE: the state machine now holds that state.
 *
 * request: the record's token. error: optional; receives an error object on failure.
 * Threads: any. Blocks: no. Errors: INVALID_ARGUMENT (also if no such request is open), CLOSED, FORKED. Since: ABI
 *   1.
 */
raftify_status raftify_restore_done(struct raftify_node *node, uint64_t request, struct raftify_error **error);

/**
 * Answers APPLY or RESTORE: the state machine itself has failed (its disk, its memory), not a command. The node
 * stops; CLOSED carries RAFTIFY_ERR_MACHINE_FAILED with this reason.
 *
 * request: the record's token. index: the entry it stopped at, which counts as not applied. reason: UTF-8, copied.
 * error: optional; receives an error object on failure.
 * Threads: any. Blocks: no. Errors: INVALID_ARGUMENT (also if no such request is open), CLOSED, FORKED. Since: ABI
 *   1.
 */
raftify_status raftify_machine_failed(struct raftify_node *node,
                                      uint64_t request,
                                      uint64_t index,
                                      const char *reason,
                                      size_t len,
                                      struct raftify_error **error);

/**
 * Inside `apply`: what command `i` of the batch came to. Set again, the later one holds.
 *
 * failed: 0: `data` is the result for the proposer; otherwise the UTF-8 text of the command's failure.
 * data: copied; NULL is right for len 0.
 * Threads: the one that runs `apply`, until it returns. Blocks: no. Errors: INVALID_ARGUMENT (also for an `i` beyond
 *   the batch). Since: ABI 1.
 */
raftify_status raftify_results_set(struct raftify_results *results,
                                   size_t i,
                                   int32_t failed,
                                   const uint8_t *data,
                                   size_t len);

/**
 * Inside `snapshot`: appends bytes to the snapshot, in pieces of any size.
 *
 * data: copied; NULL is right for len 0.
 * Threads: the one that runs `snapshot`, until it returns. Blocks: on the disk.
 * Errors: what the disk says (STORAGE, DISK_FULL), CLOSED; after one the snapshot is lost, whatever `snapshot`
 *   returns. Since: ABI 1.
 */
raftify_status raftify_snapshot_write(struct raftify_snapshot_writer *writer, const uint8_t *data, size_t len);

/**
 * Inside `restore`: reads the next bytes of the state, which were checked.
 *
 * out: borrowed for the call; gets up to `capacity` bytes, which must be above 0.
 * n: receives how many; 0 at the end. There may be fewer than `capacity` before the end.
 * Threads: the one that runs `restore`, until it returns. Blocks: on the disk.
 * Errors: CORRUPT_DATA, STORAGE, CLOSED; after one the node stops, whatever `restore` returns. Since: ABI 1.
 */
raftify_status raftify_snapshot_read(struct raftify_snapshot_reader *reader, uint8_t *out, size_t capacity, size_t *n);

/**
 * Makes a client of a cluster. It connects when it is first asked something.
 *
 * runtime, queue: borrowed for the call; the client keeps the queue itself alive; the runtime must be freed after
 *   the client.
 * addrs: host:port of one or more members, separated by commas, UTF-8, copied. out: receives the client on success;
 *   owned, free with raftify_client_free.
 * error: optional; receives an error object on failure.
 * Threads: any. Blocks: no. Errors: INVALID_ARGUMENT, INVALID_CONFIG, CLOSED (the runtime has ended), FORKED,
 *   INTERNAL. Since: ABI 1.
 */
raftify_status raftify_client_new(struct raftify_runtime *runtime,
                                  struct raftify_queue *queue,
                                  const char *addrs,
                                  size_t len,
                                  struct raftify_client **out,
                                  struct raftify_error **error);

/**
 * As raftify_client_new, with settings: "tls_cert", "tls_key", "tls_ca" and "tls_server_name" where the cluster's
 * nodes have certificates; "request_timeout", which RAFTIFY_TIMEOUT_DEFAULT then stands for; and "session". The others
 * are not looked at.
 *
 * "session": "true" makes each command of raftify_client_propose count once, however often it has to be sent: it is
 * sent again until its deadline also where it may have been applied, and ends with what it came to the first time. The
 * first command opens the session, raftify_client_free closes it. A cluster keeps the 4096 sessions that were used
 * last; up to 1024 commands of a session are under way at a time, counted from the oldest without an answer on, and
 * the others wait their turn. What a command came to is kept for as long as the client waits for it. Every node of the
 * cluster has to be of a version that knows sessions.
 *
 * config: borrowed for the call; the client has its own copy. The rest as for raftify_client_new.
 * Threads: any. Blocks: while the files of certificates are read. Errors: as of raftify_client_new, INVALID_CONFIG (a
 *   timeout of 0) and TLS (a file cannot be used); both name the field. Since: ABI 1.
 */
raftify_status raftify_client_new_with(struct raftify_runtime *runtime,
                                       struct raftify_queue *queue,
                                       const struct raftify_config *config,
                                       const char *addrs,
                                       size_t len,
                                       struct raftify_client **out,
                                       struct raftify_error **error);

/**
 * The number that records of this client carry as `source`; unique among all nodes and clients of this process.
 *
 * Returns: above 0; 0 for NULL.
 * Threads: any. Blocks: no. Errors: none. Since: ABI 1.
 */
uint64_t raftify_client_number(const struct raftify_client *client);

/**
 * As raftify_propose, through the cluster's leader: `data` of the COMPLETION is what the leader's state machine
 * returned. Without a session (raftify_client_new_with) it is sent again only where it certainly was not done. With one
 * it ends with RAFTIFY_ERR_SESSION_EXPIRED where the cluster has forgotten the session while the outcome of a sending
 * was unknown: then nobody can say whether it was applied. One that was certainly not applied is sent in a new session.
 *
 * token: 1 to 2^63 - 1. data: copied; NULL is right for len 0. timeout_ms: milliseconds, RAFTIFY_TIMEOUT_NONE or
 *   RAFTIFY_TIMEOUT_DEFAULT (5 s). error: optional; receives an error object on failure.
 * Threads: any. Blocks: no. Errors, then without a COMPLETION: INVALID_ARGUMENT, OVERLOADED, CLOSED, FORKED. Since:
 *   ABI 1.
 */
raftify_status raftify_client_propose(struct raftify_client *client,
                                      uint64_t token,
                                      const uint8_t *data,
                                      size_t len,
                                      int64_t timeout_ms,
                                      struct raftify_error **error);

/**
 * As raftify_reserve_id, through the cluster's leader: `data` of the COMPLETION is a ticket as JSON.
 *
 * addr: UTF-8, copied; empty: not known yet. token, timeout_ms, error: as for raftify_client_propose.
 * Threads: any. Blocks: no. Errors, then without a COMPLETION: INVALID_ARGUMENT, OVERLOADED, CLOSED, FORKED. Since:
 *   ABI 1.
 */
raftify_status raftify_client_reserve_id(struct raftify_client *client,
                                         uint64_t token,
                                         const char *addr,
                                         size_t addr_len,
                                         int64_t timeout_ms,
                                         struct raftify_error **error);

/**
 * As raftify_change_members, through the cluster's leader.
 *
 * changes, count: at least one; copied with all they point to. token, timeout_ms, error: as for
 *   raftify_client_propose.
 * Threads: any. Blocks: no. Errors, then without a COMPLETION: INVALID_ARGUMENT, OVERLOADED, CLOSED, FORKED. Since:
 *   ABI 1.
 */
raftify_status raftify_client_change_members(struct raftify_client *client,
                                             uint64_t token,
                                             const struct raftify_member_change *changes,
                                             size_t count,
                                             int64_t timeout_ms,
                                             struct raftify_error **error);

/**
 * As raftify_transfer_leader, through the cluster's leader.
 *
 * to: the id of the next leader; 0: the one that is most up to date. token, timeout_ms, error: as for
 *   raftify_client_propose.
 * Threads: any. Blocks: no. Errors, then without a COMPLETION: INVALID_ARGUMENT, OVERLOADED, CLOSED, FORKED. Since:
 *   ABI 1.
 */
raftify_status raftify_client_transfer_leader(struct raftify_client *client,
                                              uint64_t token,
                                              uint64_t to,
                                              int64_t timeout_ms,
                                              struct raftify_error **error);

/**
 * As raftify_snapshot, on the cluster's leader.
 *
 * token, timeout_ms, error: as for raftify_client_propose.
 * Threads: any. Blocks: no. Errors, then without a COMPLETION: INVALID_ARGUMENT, OVERLOADED, CLOSED, FORKED. Since:
 *   ABI 1.
 */
raftify_status raftify_client_snapshot(struct raftify_client *client,
                                       uint64_t token,
                                       int64_t timeout_ms,
                                       struct raftify_error **error);

/**
 * Asks for the status of the first member that answers. COMPLETION: `data` is JSON as of raftify_node_status.
 *
 * token, timeout_ms, error: as for raftify_client_propose.
 * Threads: any. Blocks: no. Errors, then without a COMPLETION: INVALID_ARGUMENT, OVERLOADED, CLOSED, FORKED. Since:
 *   ABI 1.
 */
raftify_status raftify_client_status(struct raftify_client *client,
                                     uint64_t token,
                                     int64_t timeout_ms,
                                     struct raftify_error **error);

/**
 * Hands the first node that answers a raft message, as raftify_send_message does.
 *
 * message: in, an encoded eraftpb.Message of len bytes. token, timeout_ms, error: as for raftify_client_propose.
 * Threads: any. Blocks: no. Errors, then without a COMPLETION: INVALID_ARGUMENT, OVERLOADED, CLOSED, FORKED. Since:
 *   ABI 1.
 */
raftify_status raftify_client_send_message(struct raftify_client *client,
                                           uint64_t token,
                                           const uint8_t *message,
                                           size_t len,
                                           int64_t timeout_ms,
                                           struct raftify_error **error);

/**
 * Frees the client; NULL is ignored. What is pending ends with RAFTIFY_ERR_CLOSED, then CLOSED comes.
 *
 * Threads: any, once, and no other call on this client at the same time or later; not inside a callback. Blocks:
 *   until CLOSED is in the queue, at most 2 s.
 * Returns: 0; TIMEOUT if CLOSED had not come: the handle is gone; REENTRANT inside a callback: then nothing was
 *   done; FORKED in a forked child: the handle is gone. Since: ABI 1.
 */
raftify_status raftify_client_free(struct raftify_client *client);

/**
 * Shows what the log in a directory holds, as JSON: {"identity", "hard_state":{"term","vote","commit"}, "snapshot",
 * "membership", "first_index", "last_index", "entries":[{"index","term","type","kind","time_us","proposer",
 * "session","size","data","context"}], "next_index"}; bytes are in hexadecimal. "kind" is "command" for the program's
 * own, otherwise "founding", "record_directory", "reserve_id", "open_session", "close_session", "membership", "empty"
 * or "unknown"; "time_us" and "proposer" are null where raft itself appended the entry, "session" is null where no
 * client sent it in one. Reads only, takes no lock: a node may run in that directory meanwhile.
 *
 * dir: a node's directory, or a log_dir that holds exactly one; UTF-8, borrowed for the call.
 * from: index of the first entry to show; 0: the first there is. limit: how many at most; "next_index" says where to
 *   go on, or is null.
 * out: receives UTF-8 text, NUL-terminated; owned, free with raftify_string_free. out_len: optional; receives its
 *   length without the NUL.
 * error: optional; receives an error object on failure.
 * Threads: any. Blocks: on the disk. Errors: INVALID_ARGUMENT, STORAGE, WRONG_DIRECTORY, CORRUPT_DATA,
 *   FORMAT_TOO_NEW. Since: ABI 1.
 */
raftify_status raftify_inspect(const char *dir,
                               size_t len,
                               uint64_t from,
                               uint64_t limit,
                               char **out,
                               size_t *out_len,
                               struct raftify_error **error);

/**
 * Makes a directory of ours, `<log_dir>/node-<node_id>`, from one that the crate raftify 0.1.x wrote. Its snapshot and all
 * its entries are taken over and count as committed, also those above the commit index that was stored: it lags. One
 * directory of a cluster is imported; the other members join with empty ones. The old directory is only read.
 *
 * old: in, UTF-8 path of the old directory, whose node must not be running. log_dir: in, UTF-8 path. node_id: above 0.
 * raft_addr: in, UTF-8 host:port that others will dial. cluster_id: in, UTF-8, as in the configuration that the node
 * will be started with; len 0: the default. peers: in, the members to be, this node or not; NULL if peer_count is 0.
 * out: out, owned JSON text {"directory", "snapshot", "first_index", "last_index", "term", "commands",
 * "newly_committed", ...}: raftify_string_free. out_len: out, its bytes without the final NUL; NULL allowed. error: out,
 * NULL allowed.
 * Threads: any. Blocks: for the disk. Errors: INVALID_ARGUMENT, INVALID_CONFIG, WRONG_DIRECTORY, DIRECTORY_IN_USE,
 *   CORRUPT_DATA, DISK_FULL, STORAGE: nothing is left behind. Since: ABI 1.
 */
raftify_status raftify_import(const char *old,
                              size_t old_len,
                              const char *log_dir,
                              size_t log_dir_len,
                              uint64_t node_id,
                              const char *raft_addr,
                              size_t raft_addr_len,
                              const char *cluster_id,
                              size_t cluster_id_len,
                              const struct raftify_peer *peers,
                              size_t peer_count,
                              char **out,
                              size_t *out_len,
                              struct raftify_error **error);

/**
 * To be called in a child right after fork(), when the parent had used this library (`pthread_atfork`, Python's
 * `os.register_at_fork`). Closes the descriptors that the child inherited from queues, from the locks of directories,
 * and of every socket: without it a port stays taken, and a peer's connection open, after the parent has closed them,
 * until the child ends. Needless before an exec: every descriptor of this library is close-on-exec. Also without this call
 * every handle of the parent is dead in the child: calls return `RAFTIFY_ERR_FORKED`, a free returns it too and
 * leaks, and no thread is waited for. Called again: no effect.
 *
 * Threads: the one that forked, which is the only one of the child. Blocks: no; waits for no lock. Errors: none.
 *   Since: ABI 1.
 */
void raftify_after_fork_in_child(void);

/**
 * Size and field offsets of a public struct as this library was compiled, for bindings to compare with their own:
 * 0: raftify_event, 1: raftify_entry, 2: raftify_proposal, 3: raftify_peer, 4: raftify_member_change, 5:
 * raftify_machine, 6: raftify_outcome.
 *
 * out: borrowed for the call; gets up to `capacity` numbers: the size, then the offset of each field in its order.
 * Returns: how many numbers there are; 0 if there is no such struct.
 * Threads: any. Blocks: no. Errors: none; with `out` NULL nothing is written. Since: ABI 1.
 */
size_t raftify_struct_layout(uint32_t which, size_t *out, size_t capacity);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* RAFTIFY_H */

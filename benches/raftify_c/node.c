/*
 * One node of the bench protocol (../README.md) in C: one thread, the pull form of the state machine, submits and completions in batches.
 * Results of its own proposals are known when they are applied, so none comes back through the library (raftify_apply_told_packed).
 */
#define _POSIX_C_SOURCE 200809L

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <raftify.h>

enum { SLOTS = 1 << 15, EVENTS = 256, MAX_PEERS = 16, KEY = 8 };

/* ---- the state machine: a hash table of open addressing ---- */

typedef struct value {
  uint64_t key;
  uint8_t *data; /* NULL: the slot is free */
  uint32_t len;
  uint32_t capacity;
} value;

typedef struct map {
  value slots[SLOTS];
  uint64_t applied;
  uint64_t keys;
} map;

/* ---- the load ---- */

typedef struct load {
  int running;
  int reads; /* linearizable reads of one key each, instead of proposals */
  int measuring;
  int ended;
  size_t payload;
  size_t inflight;
  size_t pending;
  double from;
  double to;
  double give_up;
  double *sent;
  float *latencies;
  size_t count;
  size_t room;
  uint64_t errors;
  uint64_t keys;
  uint64_t random;
  uint64_t seconds;
  uint64_t found;
  uint8_t *commands; /* one for each slot */
  raftify_proposal *again;
  size_t again_count;
} load;

typedef struct node {
  raftify_node *raft;
  uint64_t id;
  uint64_t leader;
  map map;
  load load;
  double now;
  int ready;
  int closed;
} node;

static node self;

static void die(const char *what, raftify_error *error) {
  fprintf(stderr, "%s: %s\n", what, error == NULL ? "failed" : raftify_error_message(error));
  exit(1);
}

static void *must(void *pointer) {
  if (pointer == NULL) die("out of memory", NULL);
  return pointer;
}

static double clock_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void say(const char *line) {
  puts(line);
  fflush(stdout);
}

static value *slot_of(map *m, uint64_t key) {
  uint64_t at = (key * UINT64_C(0x9E3779B97F4A7C15)) >> 49;
  while (m->slots[at].data != NULL && m->slots[at].key != key) at = (at + 1) % SLOTS;
  return &m->slots[at];
}

static void put(map *m, uint64_t key, const uint8_t *data, size_t len) {
  value *slot = slot_of(m, key);
  if (slot->data == NULL || slot->capacity < len) {
    if (slot->data == NULL) m->keys++;
    free(slot->data);
    slot->data = must(malloc(len + 1));
    slot->capacity = (uint32_t)len;
    slot->key = key;
  }
  slot->len = (uint32_t)len;
  if (len > 0) memcpy(slot->data, data, len);
}

/* The same for equal maps, in whatever order they were filled. */
static uint64_t digest(const map *m) {
  uint64_t sum = 0;
  size_t i, n;
  for (i = 0; i < SLOTS; i++) {
    const value *slot = &m->slots[i];
    uint64_t hash = UINT64_C(0xcbf29ce484222325) ^ slot->key;
    if (slot->data == NULL) continue;
    for (n = 0; n < slot->len; n++) hash = (hash ^ slot->data[n]) * UINT64_C(0x100000001b3);
    sum += hash;
  }
  return sum;
}

static void submit(load *l) {
  raftify_error *error = NULL;
  size_t i;
  if (l->again_count == 0) return;
  for (i = 0; l->reads && i < l->again_count; i++)
    if (raftify_read(self.raft, l->again[i].token, RAFTIFY_TIMEOUT_DEFAULT, &error) != RAFTIFY_OK) die("read", error);
  if (l->reads) {
    l->again_count = 0;
    return;
  }
  if (raftify_propose_many(self.raft, l->again, l->again_count, RAFTIFY_TIMEOUT_DEFAULT, &error) != RAFTIFY_OK)
    die("propose", error);
  l->again_count = 0;
}

static void queue_one(load *l, size_t slot) {
  uint8_t *command = l->commands + slot * l->payload;
  uint64_t key;
  raftify_proposal *p = &l->again[l->again_count++];
  l->random ^= l->random << 13;
  l->random ^= l->random >> 7;
  l->random ^= l->random << 17;
  key = l->random % l->keys;
  memcpy(command, &key, KEY);
  l->sent[slot] = self.now;
  p->token = slot + 1;
  p->data = command;
  p->len = l->payload;
}

static void answered(load *l, uint64_t token, int ok) {
  if (!l->measuring && self.now >= l->from) {
    l->measuring = 1;
    say("MEASURE");
  }
  if (!l->ended && self.now >= l->to) {
    l->ended = 1;
    say("END");
  }
  if (l->measuring && !l->ended) {
    if (!ok) {
      l->errors++;
    } else {
      if (l->count == l->room) {
        l->room = l->room == 0 ? 1 << 20 : 2 * l->room;
        l->latencies = must(realloc(l->latencies, l->room * sizeof *l->latencies));
      }
      l->latencies[l->count++] = (float)((self.now - l->sent[token - 1]) * 1e3);
    }
  }
  if (l->ended) {
    l->pending--;
  } else {
    queue_one(l, token - 1);
  }
}

static void begin(load *l, int reads, size_t payload, size_t inflight, uint64_t seconds, uint64_t warm) {
  size_t slot;
  memset(l, 0, sizeof *l);
  l->running = 1;
  l->reads = reads;
  l->payload = payload;
  l->inflight = l->pending = inflight;
  l->keys = payload > 4096 ? 1024 : 10000;
  l->random = 88172645463325252u;
  l->seconds = seconds;
  self.now = clock_now();
  l->from = self.now + (double)warm;
  l->to = l->from + (double)seconds;
  l->give_up = l->to + 20;
  l->sent = must(calloc(inflight, sizeof *l->sent));
  l->commands = must(malloc(inflight * payload));
  l->again = must(calloc(inflight, sizeof *l->again));
  memset(l->commands, 7, inflight * payload);
  for (slot = 0; slot < inflight; slot++) queue_one(l, slot);
  submit(l);
}

static int by_size(const void *a, const void *b) {
  float x = *(const float *)a, y = *(const float *)b;
  return (x > y) - (x < y);
}

static double at(const load *l, double part) {
  size_t i = (size_t)((double)l->count * part);
  if (l->count == 0) return 0;
  return l->latencies[i < l->count ? i : l->count - 1];
}

static void finish(load *l) {
  char line[512];
  if (l->count > 0) qsort(l->latencies, l->count, sizeof *l->latencies, by_size);
  snprintf(line, sizeof line,
           "{\"n\":%zu,\"errors\":%" PRIu64 ",\"secs\":%" PRIu64
           ",\"p50_ms\":%.6f,\"p99_ms\":%.6f,\"max_ms\":%.6f,\"drained\":%s}",
           l->count, l->errors, l->seconds, at(l, 0.5), at(l, 0.99), at(l, 1.0), l->pending == 0 ? "true" : "false");
  free(l->sent);
  free(l->latencies);
  free(l->commands);
  free(l->again);
  memset(l, 0, sizeof *l);
  say(line);
}

/* ---- what the library asks and tells ---- */

static void apply(const raftify_event *event) {
  raftify_error *error = NULL;
  const raftify_entry *entries = (const raftify_entry *)(const void *)event->data;
  uint32_t i;
  for (i = 0; i < event->count; i++) {
    const uint8_t *command = event->data + entries[i].offset;
    uint64_t key;
    if (entries[i].len < KEY) continue;
    memcpy(&key, command, KEY);
    put(&self.map, key, command + KEY, entries[i].len - KEY);
    self.map.applied++;
    if (entries[i].token != 0 && self.load.running) answered(&self.load, entries[i].token, 1);
  }
  if (raftify_apply_told_packed(self.raft, event->token, NULL, 0, &error) != RAFTIFY_OK) die("apply", error);
}

static void snapshot(const raftify_event *event) {
  size_t i, len = sizeof self.map.applied, filled = 0;
  uint8_t *state;
  raftify_error *error = NULL;
  for (i = 0; i < SLOTS; i++)
    if (self.map.slots[i].data != NULL) len += KEY + 4 + self.map.slots[i].len;
  state = must(malloc(len));
  memcpy(state, &self.map.applied, sizeof self.map.applied);
  filled = sizeof self.map.applied;
  for (i = 0; i < SLOTS; i++) {
    const value *slot = &self.map.slots[i];
    if (slot->data == NULL) continue;
    memcpy(state + filled, &slot->key, KEY);
    memcpy(state + filled + KEY, &slot->len, 4);
    memcpy(state + filled + KEY + 4, slot->data, slot->len);
    filled += KEY + 4 + slot->len;
  }
  if (raftify_snapshot_chunk(self.raft, event->token, state, filled, &error) != RAFTIFY_OK) die("snapshot", error);
  if (raftify_snapshot_done(self.raft, event->token, 0, NULL, 0, &error) != RAFTIFY_OK) die("snapshot", error);
  free(state);
}

static void restore(const raftify_event *event) {
  uint8_t *state = NULL;
  size_t len = 0, room = 0, n = 0, at = sizeof self.map.applied;
  raftify_error *error = NULL;
  do {
    if (room - len < 1 << 16) state = must(realloc(state, room += 1 << 20));
    if (raftify_restore_read(self.raft, event->token, len, state + len, room - len, &n, &error) != RAFTIFY_OK)
      die("restore", error);
    len += n;
  } while (n > 0);
  if (len >= at) memcpy(&self.map.applied, state, at);
  while (at + KEY + 4 <= len) {
    uint64_t key;
    uint32_t size;
    memcpy(&key, state + at, KEY);
    memcpy(&size, state + at + KEY, 4);
    at += KEY + 4;
    if (size > len - at) die("restore: the snapshot is cut off", NULL);
    put(&self.map, key, state + at, size);
    at += size;
  }
  free(state);
  if (raftify_restore_done(self.raft, event->token, &error) != RAFTIFY_OK) die("restore", error);
}

static void notice(const raftify_event *event) {
  static const char leader_of[] = "\"leader_id\":";
  char text[512];
  const char *found;
  size_t len = event->len < sizeof text - 1 ? event->len : sizeof text - 1;
  memcpy(text, event->data, len);
  text[len] = '\0';
  if (strstr(text, "\"leader_changed\"") == NULL) return;
  found = strstr(text, leader_of);
  self.leader = found == NULL ? 0 : strtoull(found + sizeof leader_of - 1, NULL, 10);
}

static void handle(const raftify_event *event) {
  switch (event->kind) {
    case RAFTIFY_EVENT_APPLY:
      apply(event);
      break;
    case RAFTIFY_EVENT_SNAPSHOT:
      snapshot(event);
      break;
    case RAFTIFY_EVENT_RESTORE:
      restore(event);
      break;
    case RAFTIFY_EVENT_NOTICE:
      notice(event);
      break;
    case RAFTIFY_EVENT_COMPLETION:
      if (event->token != 0 && self.load.running) {
        if (self.load.reads && event->status == RAFTIFY_OK) {
          uint64_t key;
          memcpy(&key, self.load.commands + (event->token - 1) * self.load.payload, KEY);
          self.load.found += slot_of(&self.map, key)->data != NULL;
        }
        answered(&self.load, event->token, event->status == RAFTIFY_OK);
      }
      break;
    case RAFTIFY_EVENT_CLOSED:
      self.closed = 1;
      if (event->status != RAFTIFY_OK) fprintf(stderr, "%.*s\n", (int)event->len, (const char *)event->data);
      break;
    default:
      break;
  }
}

/* Returns 0 at the end. */
static int command(char *line) {
  size_t payload, inflight;
  uint64_t seconds, warm;
  char out[256];
  if (sscanf(line, "BENCH %zu %zu %" SCNu64 " %" SCNu64, &payload, &inflight, &seconds, &warm) == 4) {
    if (self.leader != self.id || payload < KEY || inflight == 0) {
      snprintf(out, sizeof out, "{\"error\":\"not leader\",\"leader\":%" PRIu64 "}", self.leader);
      say(out);
    } else {
      begin(&self.load, 0, payload, inflight, seconds, warm);
    }
  } else if (sscanf(line, "READS %zu %" SCNu64 " %" SCNu64, &inflight, &seconds, &warm) == 3 && inflight > 0) {
    begin(&self.load, 1, KEY, inflight, seconds, warm);
  } else if (strncmp(line, "STATE", 5) == 0) {
    snprintf(out, sizeof out, "{\"applied\":%" PRIu64 ",\"keys\":%" PRIu64 ",\"digest\":%" PRIu64 "}", self.map.applied,
             self.map.keys, digest(&self.map));
    say(out);
  } else if (strncmp(line, "QUIT", 4) == 0) {
    return 0;
  }
  return 1;
}

static const char *value_of(int argc, char **argv, const char *name) {
  int i;
  for (i = 1; i + 1 < argc; i++)
    if (strcmp(argv[i], name) == 0) return argv[i + 1];
  fprintf(stderr, "usage: node --id N --peers 1=host:port,... --dir DIRECTORY\n");
  exit(2);
}

static void set(raftify_config *config, const char *name, const char *to) {
  raftify_error *error = NULL;
  if (raftify_config_set(config, name, strlen(name), to, strlen(to), &error) != RAFTIFY_OK) die(name, error);
}

static raftify_node *start(raftify_runtime *runtime, raftify_queue *queue, int argc, char **argv) {
  raftify_peer peers[MAX_PEERS];
  size_t count = 0, own = 0;
  raftify_error *error = NULL;
  raftify_node *started = NULL;
  raftify_config *config = must(raftify_config_new());
  const char *engine = getenv("BENCH_LOG_ENGINE"), *rest = value_of(argc, argv, "--peers");
  self.id = strtoull(value_of(argc, argv, "--id"), NULL, 10);
  while (count < MAX_PEERS && *rest != '\0') {
    char *equals;
    raftify_peer *peer = &peers[count];
    peer->id = strtoull(rest, &equals, 10);
    peer->addr = equals + 1;
    peer->addr_len = strcspn(peer->addr, ",");
    if (peer->id == self.id) own = count;
    rest = peer->addr + peer->addr_len;
    if (*rest == ',') rest++;
    count++;
  }
  set(config, "log_dir", value_of(argc, argv, "--dir"));
  if (engine != NULL) set(config, "log_engine", engine);
  if (raftify_node_start(runtime, queue, config, self.id, peers[own].addr, peers[own].addr_len, peers, count, 1, NULL,
                         &started, &error) != RAFTIFY_OK)
    die("start", error);
  raftify_config_free(config);
  return started;
}

int main(int argc, char **argv) {
  raftify_runtime *runtime = NULL;
  raftify_queue *queue = NULL;
  raftify_error *error = NULL;
  raftify_event events[EVENTS];
  struct pollfd wait[2];
  char line[256];
  size_t line_len = 0, i, n;
  double ready_at = 0;
  int going = 1;
  if (raftify_runtime_new(&runtime, &error) != RAFTIFY_OK) die("runtime", error);
  if (raftify_queue_new(RAFTIFY_WAKE_FD, NULL, NULL, NULL, &queue, &error) != RAFTIFY_OK) die("queue", error);
  self.raft = start(runtime, queue, argc, argv);
  wait[0].fd = raftify_queue_fd(queue);
  wait[1].fd = STDIN_FILENO;
  wait[0].events = wait[1].events = POLLIN;
  while (going && !self.closed) {
    if (poll(wait, 2, 100) < 0) continue;
    self.now = clock_now();
    while ((n = raftify_queue_drain(queue, events, EVENTS)) > 0)
      for (i = 0; i < n; i++) handle(&events[i]);
    if (self.load.running) {
      submit(&self.load);
      if (self.load.pending == 0 || self.now > self.load.give_up) finish(&self.load);
    }
    if (self.leader != 0 && ready_at == 0) ready_at = self.now + 0.3;
    if (self.leader != 0 && !self.ready && self.now >= ready_at) {
      char out[64];
      self.ready = 1;
      snprintf(out, sizeof out, "READY %" PRIu64, self.leader);
      say(out);
    }
    if (wait[1].revents != 0) {
      ssize_t got = read(STDIN_FILENO, line + line_len, sizeof line - 1 - line_len);
      char *end;
      if (got <= 0) break;
      line_len += (size_t)got;
      line[line_len] = '\0';
      while (going && (end = strchr(line, '\n')) != NULL) {
        *end = '\0';
        going = command(line);
        line_len -= (size_t)(end + 1 - line);
        memmove(line, end + 1, line_len + 1);
      }
      if (line_len == sizeof line - 1) line_len = 0;
    }
  }
  raftify_node_close(self.raft, 2000);
  for (i = 0; i < 40 && !self.closed; i++) {
    raftify_queue_wait(queue, 100);
    while ((n = raftify_queue_drain(queue, events, EVENTS)) > 0) {
      size_t k;
      for (k = 0; k < n; k++)
        if (events[k].kind == RAFTIFY_EVENT_CLOSED) self.closed = 1;
    }
  }
  raftify_node_free(self.raft);
  raftify_queue_free(queue);
  raftify_runtime_free(runtime);
  return 0;
}

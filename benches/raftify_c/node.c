/*
 * One node of the bench protocol (../README.md) in C: one thread, the pull form of the state machine, submits and completions in batches.
 * Results of its own proposals are known when they are applied, so none comes back through the library (raftify_apply_told_packed).
 * A snapshot is a copy of the map, written out by a thread of its own while the node goes on.
 */
#define _POSIX_C_SOURCE 200809L

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/select.h>
#include <unistd.h>

#include <raftify.h>

#include "common.h"
#include "load.h"
#include "map.h"

enum { EVENTS = 256, MAX_PEERS = 16, CHUNK = 1 << 20 };

/* Tokens above those of any load. */
static const uint64_t ASKED_SNAPSHOT = UINT64_C(1) << 40, ASKED_PROPOSAL = (UINT64_C(1) << 40) + 1;

typedef struct node {
  raftify_node *raft;
  uint64_t id;
  uint64_t leader;
  uint64_t ballast; /* bytes that every snapshot is longer by */
  map map;
  load load;
  double now;
  int tells; /* --tell: says what happens unasked */
  int ready;
  int closed;
  double snapshot_asked;
  int writing; /* a thread writes a snapshot out, or has; to be joined */
  pthread_t writer;
} node;

static node self;

static void submit(load *l) {
  raftify_error *error = NULL;
  size_t i;
  if (l->queued_count == 0) return;
  if (l->plan.reads) {
    for (i = 0; i < l->queued_count; i++) l->tokens[i] = l->queued[i].token;
    if (raftify_read_many(self.raft, l->tokens, l->queued_count, RAFTIFY_TIMEOUT_DEFAULT, &error) != RAFTIFY_OK)
      die("read", error);
  } else if (raftify_propose_many(self.raft, l->queued, l->queued_count, RAFTIFY_TIMEOUT_DEFAULT, &error) !=
             RAFTIFY_OK) {
    die("propose", error);
  }
  l->queued_count = 0;
}

/* ---- what the library asks and tells ---- */

static void proposed(const raftify_event *event) {
  char line[1024];
  if (event == NULL) {
    say("PROPOSED {\"ok\":true}");
    return;
  }
  snprintf(line, sizeof line, "PROPOSED {\"ok\":%s,\"status\":%d}", event->status == RAFTIFY_OK ? "true" : "false",
           (int)event->status);
  say(line);
}

static void apply(const raftify_event *event) {
  raftify_error *error = NULL;
  const raftify_entry *entries = (const raftify_entry *)(const void *)event->data;
  uint32_t i;
  for (i = 0; i < event->count; i++) {
    map_apply(&self.map, event->data + entries[i].offset, entries[i].len);
    if (entries[i].token == ASKED_PROPOSAL) {
      proposed(NULL);
    } else if (entries[i].token != 0 && self.load.running) {
      load_answered(&self.load, entries[i].token, 1, self.now);
    }
  }
  if (raftify_apply_told_packed(self.raft, event->token, NULL, 0, &error) != RAFTIFY_OK) die("apply", error);
}

typedef struct writing {
  uint64_t request;
  uint8_t *state;
  size_t len;
  uint64_t ballast;
} writing;

/* A snapshot: the length of the map's bytes, these bytes, the ballast. */
static void *write_out(void *argument) {
  writing *w = argument;
  uint64_t at, random = 88172645463325252u;
  /* Noise for the ballast: none without one, whose making would be work that no program does. */
  size_t noise = w->ballast < CHUNK ? (size_t)w->ballast : CHUNK;
  uint8_t *chunk = must(malloc(noise + 1));
  raftify_error *error = NULL;
  uint64_t len = w->len;
  int ok;
  for (at = 0; at < noise; at++) {
    random ^= random << 13;
    random ^= random >> 7;
    random ^= random << 17;
    chunk[at] = (uint8_t)random;
  }
  ok = raftify_snapshot_chunk(self.raft, w->request, (const uint8_t *)&len, sizeof len, &error) == RAFTIFY_OK &&
       raftify_snapshot_chunk(self.raft, w->request, w->state, w->len, &error) == RAFTIFY_OK;
  for (at = 0; ok && at < w->ballast; at += CHUNK) {
    size_t part = w->ballast - at < CHUNK ? (size_t)(w->ballast - at) : CHUNK;
    ok = raftify_snapshot_chunk(self.raft, w->request, chunk, part, &error) == RAFTIFY_OK;
  }
  raftify_error_free(error);
  /* A node that closes meanwhile has no use for the answer. */
  raftify_snapshot_done(self.raft, w->request, !ok, "write", ok ? 0 : 5, NULL);
  free(chunk);
  free(w->state);
  free(w);
  return NULL;
}

static void snapshot(const raftify_event *event) {
  writing *w = must(malloc(sizeof *w));
  w->request = event->token;
  w->ballast = self.ballast;
  w->state = map_dump(&self.map, &w->len);
  if (self.writing) pthread_join(self.writer, NULL);
  if (pthread_create(&self.writer, NULL, write_out, w) != 0) die("a thread for the snapshot", NULL);
  self.writing = 1;
}

static size_t restore_read(uint64_t request, size_t from, uint8_t *out, size_t want) {
  size_t len = 0, n = 1;
  raftify_error *error = NULL;
  while (len < want && n > 0) {
    if (raftify_restore_read(self.raft, request, from + len, out + len, want - len, &n, &error) != RAFTIFY_OK)
      die("restore", error);
    len += n;
  }
  return len;
}

static void restore(const raftify_event *event) {
  uint64_t len = 0;
  size_t at = sizeof len, n;
  uint8_t *state, *rest = must(malloc(CHUNK));
  raftify_error *error = NULL;
  if (restore_read(event->token, 0, (uint8_t *)&len, sizeof len) != sizeof len) die("restore: cut off", NULL);
  state = must(malloc((size_t)len + 1));
  if (restore_read(event->token, at, state, (size_t)len) != len || !map_load(&self.map, state, (size_t)len))
    die("restore: cut off", NULL);
  at += (size_t)len;
  while ((n = restore_read(event->token, at, rest, CHUNK)) > 0) at += n;
  free(rest);
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
  if (self.tells && strstr(text, "\"snapshot_installed\"") != NULL) say("INSTALLED");
  if (strstr(text, "\"leader_changed\"") == NULL) return;
  found = strstr(text, leader_of);
  self.leader = found == NULL ? 0 : strtoull(found + sizeof leader_of - 1, NULL, 10);
  if (self.tells) {
    snprintf(text, sizeof text, "LEADER %" PRIu64, self.leader);
    say(text);
  }
}

static void completion(const raftify_event *event) {
  load *l = &self.load;
  if (event->token == 0) {
    if (self.tells) say("LISTENS");
  } else if (event->token == ASKED_SNAPSHOT) {
    char line[1024];
    snprintf(line, sizeof line, "SNAPSHOT {\"ok\":%s,\"secs\":%.6f,\"answer\":%.*s}",
             event->status == RAFTIFY_OK ? "true" : "false", clock_now() - self.snapshot_asked, (int)event->len,
             (const char *)event->data);
    say(line);
  } else if (event->token == ASKED_PROPOSAL) {
    proposed(event);
  } else if (l->running) {
    if (l->plan.reads && event->status == RAFTIFY_OK) {
      uint64_t key;
      memcpy(&key, l->commands + (event->token - 1) * l->plan.payload, MAP_KEY);
      l->found += (uint64_t)map_has(&self.map, key);
    }
    load_answered(l, event->token, event->status == RAFTIFY_OK, self.now);
  }
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
      completion(event);
      break;
    case RAFTIFY_EVENT_CLOSED:
      self.closed = 1;
      if (event->status != RAFTIFY_OK) fprintf(stderr, "%.*s\n", (int)event->len, (const char *)event->data);
      break;
    default:
      break;
  }
}

/* ---- what the runner asks ---- */

static void begin(const load_plan *plan) {
  char out[128];
  if (!plan->reads && self.leader != self.id) {
    snprintf(out, sizeof out, "{\"error\":\"not leader\",\"leader\":%" PRIu64 "}", self.leader);
    say(out);
  } else if (self.load.running || plan->payload < MAP_KEY || plan->inflight == 0) {
    say("{\"error\":\"not possible\",\"leader\":0}");
  } else {
    self.now = clock_now();
    load_begin(&self.load, plan, self.now);
  }
}

static void status(void) {
  char *text = NULL;
  raftify_error *error = NULL;
  if (raftify_node_status(self.raft, &text, NULL, &error) != RAFTIFY_OK) die("status", error);
  printf("STATUS %s\n", text);
  fflush(stdout);
  raftify_string_free(text);
}

/* Returns 0 at the end. */
static int command(char *line) {
  load_plan p;
  raftify_error *error = NULL;
  char out[256];
  memset(&p, 0, sizeof p);
  if (sscanf(line, "BENCH %zu %zu %lf %lf", &p.payload, &p.inflight, &p.seconds, &p.warm) == 4) {
    begin(&p);
  } else if (sscanf(line, "PACE %lf %zu %zu %lf %lf", &p.rate, &p.payload, &p.inflight, &p.seconds, &p.warm) == 5) {
    begin(&p);
  } else if (sscanf(line, "FILL %zu %zu %" SCNu64, &p.payload, &p.inflight, &p.count) == 3) {
    begin(&p);
  } else if (sscanf(line, "READS %zu %lf %lf", &p.inflight, &p.seconds, &p.warm) == 3) {
    p.reads = 1;
    p.payload = MAP_KEY;
    begin(&p);
  } else if (strncmp(line, "STOP", 4) == 0) {
    if (self.load.running) load_stop(&self.load, clock_now());
  } else if (strncmp(line, "SNAPSHOT", 8) == 0) {
    self.snapshot_asked = clock_now();
    if (raftify_snapshot(self.raft, ASKED_SNAPSHOT, RAFTIFY_TIMEOUT_DEFAULT, &error) != RAFTIFY_OK)
      die("snapshot", error);
  } else if (strncmp(line, "PROPOSE", 7) == 0) {
    static const uint8_t value[2 * MAP_KEY];
    if (raftify_propose(self.raft, ASKED_PROPOSAL, value, sizeof value, RAFTIFY_TIMEOUT_DEFAULT, &error) != RAFTIFY_OK)
      die("propose", error);
  } else if (strncmp(line, "STATUS", 6) == 0) {
    status();
  } else if (strncmp(line, "STATE", 5) == 0) {
    snprintf(out, sizeof out, "{\"applied\":%" PRIu64 ",\"keys\":%" PRIu64 ",\"digest\":%" PRIu64 "}", self.map.applied,
             self.map.keys, map_digest(&self.map));
    say(out);
  } else if (strncmp(line, "QUIT", 4) == 0) {
    return 0;
  }
  return 1;
}

/* ---- the program ---- */

static void usage(void) {
  fprintf(stderr,
          "usage: node --id N --peers 1=host:port,... --dir DIRECTORY [--set name=value]... [--ballast BYTES] [--tell]\n");
  exit(2);
}

static raftify_node *start(raftify_runtime *runtime, raftify_queue *queue, int argc, char **argv) {
  raftify_peer peers[MAX_PEERS];
  size_t count = 0, own = MAX_PEERS;
  raftify_error *error = NULL;
  raftify_node *started = NULL;
  raftify_config *config = must(raftify_config_new());
  const char *engine = getenv("BENCH_LOG_ENGINE"), *rest = "";
  int i;
  if (engine != NULL) set(config, "log_engine", engine);
  for (i = 1; i < argc; i++) {
    if (strcmp(argv[i], "--tell") == 0) {
      self.tells = 1;
      continue;
    }
    if (i + 1 == argc) usage();
    if (strcmp(argv[i], "--id") == 0) {
      self.id = strtoull(argv[++i], NULL, 10);
    } else if (strcmp(argv[i], "--peers") == 0) {
      rest = argv[++i];
    } else if (strcmp(argv[i], "--dir") == 0) {
      set(config, "log_dir", argv[++i]);
    } else if (strcmp(argv[i], "--ballast") == 0) {
      self.ballast = strtoull(argv[++i], NULL, 10);
    } else if (strcmp(argv[i], "--set") == 0 && strchr(argv[i + 1], '=') != NULL) {
      char *equals = strchr(argv[++i], '=');
      *equals = '\0';
      set(config, argv[i], equals + 1);
    } else {
      usage();
    }
  }
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
  if (own == MAX_PEERS) usage();
  if (raftify_node_start(runtime, queue, config, self.id, peers[own].addr, peers[own].addr_len, peers, count, 1, NULL,
                         &started, &error) != RAFTIFY_OK)
    die("start", error);
  raftify_config_free(config);
  return started;
}

/* Until the queue or the runner has something, a burst is due, or a tenth of a second is over. Returns whether the runner has. */
static int wait_for_work(int queue) {
  struct timespec until;
  double wait = 0.1, wakes = load_wakes(&self.load);
  fd_set set;
  FD_ZERO(&set);
  FD_SET(queue, &set);
  FD_SET(STDIN_FILENO, &set);
  if (wakes > 0) wait = wakes - clock_now();
  if (wait < 0) wait = 0;
  if (wait > 0.1) wait = 0.1;
  until.tv_sec = 0;
  until.tv_nsec = (long)(wait * 1e9);
  return pselect(queue + 1, &set, NULL, NULL, &until, NULL) > 0 && FD_ISSET(STDIN_FILENO, &set);
}

int main(int argc, char **argv) {
  raftify_runtime *runtime = NULL;
  raftify_queue *queue = NULL;
  raftify_error *error = NULL;
  raftify_event events[EVENTS];
  char line[256];
  size_t line_len = 0, i, n;
  double ready_at = 0;
  int going = 1;
  if (raftify_runtime_new(&runtime, &error) != RAFTIFY_OK) die("runtime", error);
  if (raftify_queue_new(RAFTIFY_WAKE_FD, NULL, NULL, NULL, &queue, &error) != RAFTIFY_OK) die("queue", error);
  self.raft = start(runtime, queue, argc, argv);
  while (going && !self.closed) {
    int spoken_to = wait_for_work(raftify_queue_fd(queue));
    self.now = clock_now();
    while ((n = raftify_queue_drain(queue, events, EVENTS)) > 0)
      for (i = 0; i < n; i++) handle(&events[i]);
    /* What it asks for begins in this turn: the next one may be a tenth of a second away. */
    if (spoken_to) {
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
    if (self.load.running) {
      load_advance(&self.load, self.now);
      submit(&self.load);
      if (load_is_over(&self.load, self.now)) load_finish(&self.load, clock_now());
    }
    if (self.leader != 0 && ready_at == 0) ready_at = self.now + 0.3;
    if (self.leader != 0 && !self.ready && self.now >= ready_at) {
      char out[64];
      self.ready = 1;
      snprintf(out, sizeof out, "READY %" PRIu64, self.leader);
      say(out);
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
  if (self.writing) pthread_join(self.writer, NULL);
  raftify_node_free(self.raft);
  raftify_queue_free(queue);
  raftify_runtime_free(runtime);
  return 0;
}

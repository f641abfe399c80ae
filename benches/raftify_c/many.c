/*
 * Many nodes of many clusters in one process: one runtime, one queue, one thread of the program. Prints what they took, one line of JSON.
 * State machines that only count: what is measured is what a node costs.
 */
#define _POSIX_C_SOURCE 200809L

#include <arpa/inet.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <raftify.h>

#include "common.h"

enum { EVENTS = 1024, PAYLOAD = 128, INFLIGHT = 16, ADDRESS = 32, SOURCES = 1 << 14 };

typedef struct member {
  raftify_node *raft;
  uint64_t id;
  uint64_t applied;
  int leads;
  int closed;
  raftify_proposal queued[INFLIGHT];
  size_t queued_count;
} member;

static member *members;
static size_t count;
static size_t of_source[SOURCES]; /* 1 + the member; 0: nobody */
static size_t led, closed;
static uint64_t done, errors;
static int working;
static raftify_queue *queue;
static uint8_t command[PAYLOAD];

static void queue_one(member *m, uint64_t token) {
  raftify_proposal *p = &m->queued[m->queued_count++];
  p->token = token;
  p->data = command;
  p->len = PAYLOAD;
}

static void submit(member *m) {
  raftify_error *error = NULL;
  if (m->queued_count == 0) return;
  if (raftify_propose_many(m->raft, m->queued, m->queued_count, RAFTIFY_TIMEOUT_DEFAULT, &error) != RAFTIFY_OK)
    die("propose", error);
  m->queued_count = 0;
}

static void answered(member *m, uint64_t token, int ok) {
  done += (uint64_t)(ok != 0);
  errors += (uint64_t)(ok == 0);
  if (working && ok) queue_one(m, token);
}

static void apply(member *m, const raftify_event *event) {
  raftify_error *error = NULL;
  const raftify_entry *entries = (const raftify_entry *)(const void *)event->data;
  uint32_t i;
  m->applied += event->count;
  for (i = 0; i < event->count; i++)
    if (entries[i].token != 0) answered(m, entries[i].token, 1);
  if (raftify_apply_told_packed(m->raft, event->token, NULL, 0, &error) != RAFTIFY_OK) die("apply", error);
  submit(m);
}

static void snapshot(member *m, const raftify_event *event) {
  raftify_error *error = NULL;
  if (raftify_snapshot_chunk(m->raft, event->token, (const uint8_t *)&m->applied, sizeof m->applied, &error) !=
          RAFTIFY_OK ||
      raftify_snapshot_done(m->raft, event->token, 0, NULL, 0, &error) != RAFTIFY_OK)
    die("snapshot", error);
}

static void notice(member *m, const raftify_event *event) {
  static const char leader_of[] = "\"leader_id\":";
  char text[512];
  const char *found;
  size_t len = event->len < sizeof text - 1 ? event->len : sizeof text - 1;
  memcpy(text, event->data, len);
  text[len] = '\0';
  if (strstr(text, "\"leader_changed\"") == NULL) return;
  found = strstr(text, leader_of);
  led -= (size_t)m->leads;
  m->leads = found != NULL && strtoull(found + sizeof leader_of - 1, NULL, 10) == m->id;
  led += (size_t)m->leads;
}

static void drain(void) {
  raftify_event events[EVENTS];
  size_t i, n;
  while ((n = raftify_queue_drain(queue, events, EVENTS)) > 0) {
    for (i = 0; i < n; i++) {
      const raftify_event *event = &events[i];
      member *m;
      if (event->source >= SOURCES || of_source[event->source] == 0) die("a record of a node nobody knows", NULL);
      m = &members[of_source[event->source] - 1];
      if (event->kind == RAFTIFY_EVENT_APPLY) apply(m, event);
      if (event->kind == RAFTIFY_EVENT_SNAPSHOT) snapshot(m, event);
      if (event->kind == RAFTIFY_EVENT_NOTICE) notice(m, event);
      if (event->kind == RAFTIFY_EVENT_COMPLETION && event->token != 0) {
        answered(m, event->token, event->status == RAFTIFY_OK);
        submit(m);
      }
      if (event->kind == RAFTIFY_EVENT_CLOSED) {
        m->closed = 1;
        closed++;
      }
    }
  }
}

static void serve(double seconds) {
  double until = clock_now() + seconds, left;
  while ((left = until - clock_now()) > 0) {
    raftify_queue_wait(queue, (int64_t)(left * 1e3) + 1);
    drain();
  }
}

/* Ports that are free now; all are held until the last one is known. */
static void find_ports(unsigned short *ports, size_t n) {
  int *held = must(calloc(n, sizeof *held));
  size_t i;
  for (i = 0; i < n; i++) {
    struct sockaddr_in address;
    socklen_t len = sizeof address;
    memset(&address, 0, sizeof address);
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    held[i] = socket(AF_INET, SOCK_STREAM, 0);
    if (held[i] < 0 || bind(held[i], (struct sockaddr *)&address, len) != 0 ||
        getsockname(held[i], (struct sockaddr *)&address, &len) != 0)
      die("a port", NULL);
    ports[i] = ntohs(address.sin_port);
  }
  for (i = 0; i < n; i++) close(held[i]);
  free(held);
}

static uint64_t of_process(const char *field) {
  char line[256];
  uint64_t value = 0;
  FILE *file = fopen("/proc/self/status", "r");
  while (file != NULL && fgets(line, sizeof line, file) != NULL)
    if (strncmp(line, field, strlen(field)) == 0) value = strtoull(line + strlen(field), NULL, 10);
  if (file != NULL) fclose(file);
  return value;
}

static void start_all(raftify_runtime *runtime, size_t clusters, size_t size, const char *directory) {
  unsigned short *ports = must(calloc(count, sizeof *ports));
  raftify_peer *peers = must(calloc(size, sizeof *peers));
  char(*addresses)[ADDRESS] = must(calloc(size, sizeof *addresses));
  size_t c, i;
  find_ports(ports, count);
  for (c = 0; c < clusters; c++) {
    for (i = 0; i < size; i++) {
      snprintf(addresses[i], ADDRESS, "127.0.0.1:%u", (unsigned)ports[c * size + i]);
      peers[i].id = i + 1;
      peers[i].addr = addresses[i];
      peers[i].addr_len = strlen(addresses[i]);
    }
    for (i = 0; i < size; i++) {
      member *m = &members[c * size + i];
      raftify_config *config = must(raftify_config_new());
      raftify_error *error = NULL;
      char path[4096], name[32];
      uint64_t source;
      snprintf(path, sizeof path, "%s/%zu", directory, c);
      snprintf(name, sizeof name, "cluster %zu", c);
      set(config, "log_dir", path);
      set(config, "cluster_id", name);
      m->id = i + 1;
      if (raftify_node_start(runtime, queue, config, m->id, addresses[i], strlen(addresses[i]), peers, size, 1, NULL,
                             &m->raft, &error) != RAFTIFY_OK)
        die("start", error);
      raftify_config_free(config);
      source = raftify_node_number(m->raft);
      if (source >= SOURCES) die("too many nodes", NULL);
      of_source[source] = c * size + i + 1;
    }
  }
  free(ports);
  free(peers);
  free(addresses);
}

static void work(void) {
  size_t i, k;
  working = 1;
  for (i = 0; i < count; i++) {
    if (!members[i].leads) continue;
    for (k = 0; k < INFLIGHT; k++) queue_one(&members[i], k + 1);
    submit(&members[i]);
  }
}

int main(int argc, char **argv) {
  size_t clusters = 100, size = 1, i;
  const char *directory = NULL;
  double seconds = 5, begun, started, led_after, cpu, idle_cpu, idle_rss, busy_cpu, closing, closed_after;
  uint64_t threads, before;
  raftify_runtime *runtime = NULL;
  raftify_error *error = NULL;
  struct rlimit files;
  for (i = 1; i + 1 < (size_t)argc; i += 2) {
    if (strcmp(argv[i], "--clusters") == 0) clusters = strtoull(argv[i + 1], NULL, 10);
    if (strcmp(argv[i], "--members") == 0) size = strtoull(argv[i + 1], NULL, 10);
    if (strcmp(argv[i], "--dir") == 0) directory = argv[i + 1];
    if (strcmp(argv[i], "--seconds") == 0) seconds = strtod(argv[i + 1], NULL);
  }
  if (directory == NULL || clusters == 0 || size == 0) {
    fprintf(stderr, "usage: many --dir DIRECTORY [--clusters N] [--members N] [--seconds S]\n");
    return 2;
  }
  /* A node holds some descriptors: its log, its port, a connection to each peer. */
  if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
  }
  count = clusters * size;
  members = must(calloc(count, sizeof *members));
  if (raftify_runtime_new(&runtime, &error) != RAFTIFY_OK) die("runtime", error);
  if (raftify_queue_new(RAFTIFY_WAKE_NONE, NULL, NULL, NULL, &queue, &error) != RAFTIFY_OK) die("queue", error);
  begun = clock_now();
  start_all(runtime, clusters, size, directory);
  started = clock_now() - begun;
  while (led < clusters && clock_now() - begun < 60) {
    raftify_queue_wait(queue, 100);
    drain();
  }
  led_after = clock_now() - begun;
  if (led < clusters) die("not every cluster has a leader", NULL);
  serve(2);
  threads = of_process("Threads:");
  idle_rss = (double)of_process("VmRSS:") * 1.024 / 1e3;
  cpu = clock_seconds(CLOCK_PROCESS_CPUTIME_ID);
  serve(seconds);
  idle_cpu = 100 * (clock_seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu) / seconds;
  work();
  serve(1);
  cpu = clock_seconds(CLOCK_PROCESS_CPUTIME_ID);
  before = done;
  serve(seconds);
  before = done - before;
  busy_cpu = 100 * (clock_seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu) / seconds;
  working = 0;
  serve(1);
  closing = clock_now();
  for (i = 0; i < count; i++) raftify_node_close(members[i].raft, 5000);
  while (closed < count && clock_now() - closing < 60) {
    raftify_queue_wait(queue, 100);
    drain();
  }
  for (i = 0; i < count; i++) raftify_node_free(members[i].raft);
  raftify_queue_free(queue);
  if (raftify_runtime_free(runtime) != RAFTIFY_OK) die("the runtime did not end", NULL);
  closed_after = clock_now() - closing;
  printf("{\"nodes\":%zu,\"started_s\":%.4f,\"led_s\":%.4f,\"threads\":%" PRIu64
         ",\"resident_mb\":%.1f,\"idle_cpu\":%.3f,\"proposals\":%.0f,\"errors\":%" PRIu64
         ",\"busy_cpu\":%.1f,\"closed_s\":%.4f}\n",
         count, started, led_after, threads, idle_rss, idle_cpu, (double)before / seconds, errors, busy_cpu,
         closed_after);
  return closed == count ? 0 : 1;
}

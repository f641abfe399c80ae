/*
 * The C ABI alone: what one thread of the program spends on its calls for each proposal, with a node that is a cluster of its own.
 * Raft, log and disk have other threads and are not counted. Prints a line of JSON for each number of proposals in flight.
 */
#define _GNU_SOURCE /* RUSAGE_THREAD */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include <raftify.h>

#include "common.h"

/* What else the machine does only adds to the time of a window: the least of them is nearest to what the calls take. */
enum { EVENTS = 256, PAYLOAD = 128, MOST = 1024 };

static raftify_node *raft;
static raftify_queue *queue;
static raftify_proposal proposals[MOST];
static size_t queued, outstanding;
static uint64_t done;
static int leads, over, closed;
static uint8_t command[PAYLOAD];

static long switches(void) {
  struct rusage usage;
  getrusage(RUSAGE_THREAD, &usage);
  return usage.ru_nvcsw;
}

static void apply(const raftify_event *event) {
  raftify_error *error = NULL;
  const raftify_entry *entries = (const raftify_entry *)(const void *)event->data;
  uint32_t i;
  for (i = 0; i < event->count; i++) {
    if (entries[i].token == 0) continue;
    done++;
    outstanding--;
    if (!over) proposals[queued++].token = entries[i].token;
  }
  if (raftify_apply_told_packed(raft, event->token, NULL, 0, &error) != RAFTIFY_OK) die("apply", error);
}

/* What the answers before asked for goes down in one call; then come the next. */
static void turn(void) {
  raftify_event events[EVENTS];
  raftify_error *error = NULL;
  size_t i, n;
  if (queued > 0 && raftify_propose_many(raft, proposals, queued, RAFTIFY_TIMEOUT_DEFAULT, &error) != RAFTIFY_OK)
    die("propose", error);
  outstanding += queued;
  queued = 0;
  if (raftify_queue_wait(queue, 1000) != RAFTIFY_OK) return;
  while ((n = raftify_queue_drain(queue, events, EVENTS)) > 0) {
    for (i = 0; i < n; i++) {
      const raftify_event *event = &events[i];
      if (event->kind == RAFTIFY_EVENT_APPLY) apply(event);
      if (event->kind == RAFTIFY_EVENT_NOTICE && event->len < 4096) {
        char text[4096];
        memcpy(text, event->data, event->len);
        text[event->len] = '\0';
        leads |= strstr(text, "\"leader_id\":1") != NULL;
      }
      if (event->kind == RAFTIFY_EVENT_COMPLETION && event->token != 0) {
        fprintf(stderr, "a proposal failed: %.*s\n", (int)event->len, (const char *)event->data);
        exit(1);
      }
      closed |= event->kind == RAFTIFY_EVENT_CLOSED;
    }
  }
}

/* Of one thread, for each proposal. */
typedef struct spent {
  double thread_us, waits, a_second;
} spent;

static spent window(size_t in_flight, double length) {
  double began, cpu, each;
  uint64_t before;
  long slept;
  spent s;
  size_t i;
  over = 0;
  for (i = 0; i < in_flight; i++) {
    proposals[i].token = i + 1;
    proposals[i].data = command;
    proposals[i].len = PAYLOAD;
  }
  queued = in_flight;
  before = done;
  while (done < before + 4 * in_flight) turn();
  before = done;
  began = clock_now();
  cpu = clock_seconds(CLOCK_THREAD_CPUTIME_ID);
  slept = switches();
  while (clock_now() < began + length) turn();
  each = 1 / (double)(done - before);
  s.thread_us = (clock_seconds(CLOCK_THREAD_CPUTIME_ID) - cpu) * each * 1e6;
  s.waits = (double)(switches() - slept) * each;
  s.a_second = (double)(done - before) / (clock_now() - began);
  over = 1;
  queued = 0;
  while (outstanding > 0) turn();
  return s;
}

static void measure(size_t in_flight, double length, int windows) {
  spent least = window(in_flight, length);
  int i;
  for (i = 1; i < windows; i++) {
    spent s = window(in_flight, length);
    if (s.thread_us < least.thread_us) least = s;
  }
  printf("{\"part\":\"bridge\",\"side\":\"C\",\"in_flight\":%zu,\"thread_us\":%.3f,\"waits\":%.4f,\"a_second\":%.0f}\n",
         in_flight, least.thread_us, least.waits, least.a_second);
  fflush(stdout);
}

int main(int argc, char **argv) {
  static const size_t in_flight[] = {1, 64, 256, 1024};
  raftify_runtime *runtime = NULL;
  raftify_error *error = NULL;
  raftify_config *config = raftify_config_new();
  raftify_peer self;
  size_t i;
  double length = argc == 5 ? atof(argv[3]) : 0;
  int windows = argc == 5 ? atoi(argv[4]) : 0;
  if (length <= 0 || windows < 1 || config == NULL) {
    fprintf(stderr, "usage: bridge HOST:PORT DIRECTORY SECONDS WINDOWS\n");
    return 2;
  }
  self.id = 1;
  self.addr = argv[1];
  self.addr_len = strlen(argv[1]);
  set(config, "log_dir", argv[2]);
  /* A state machine that only counts has nothing to take a snapshot of. */
  set(config, "snapshot_entries", "0");
  set(config, "snapshot_bytes", "0");
  if (raftify_runtime_new(&runtime, &error) != RAFTIFY_OK) die("runtime", error);
  if (raftify_queue_new(RAFTIFY_WAKE_NONE, NULL, NULL, NULL, &queue, &error) != RAFTIFY_OK) die("queue", error);
  if (raftify_node_start(runtime, queue, config, 1, self.addr, self.addr_len, &self, 1, 1, NULL, &raft, &error) !=
      RAFTIFY_OK)
    die("start", error);
  raftify_config_free(config);
  while (!leads && !closed) turn();
  for (i = 0; i < sizeof in_flight / sizeof *in_flight; i++) measure(in_flight[i], length, windows);
  raftify_node_close(raft, 2000);
  for (i = 0; i < 40 && !closed; i++) turn();
  raftify_node_free(raft);
  raftify_queue_free(queue);
  raftify_runtime_free(runtime);
  return 0;
}

#define _POSIX_C_SOURCE 200809L

#include "load.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include "map.h"

/* Seconds between two bursts of a paced load, and what the last answers may take. */
static const double BURST = 0.0005, DRAIN = 20;

void say(const char *line) {
  puts(line);
  fflush(stdout);
}

static void queue_one(load *l, size_t slot, double due) {
  uint8_t *command = l->commands + slot * l->plan.payload;
  uint64_t key;
  raftify_proposal *p = &l->queued[l->queued_count++];
  l->random ^= l->random << 13;
  l->random ^= l->random >> 7;
  l->random ^= l->random << 17;
  key = l->random % l->keys;
  memcpy(command, &key, MAP_KEY);
  l->since[slot] = due;
  l->sent++;
  l->pending++;
  p->token = slot + 1;
  p->data = command;
  p->len = l->plan.payload;
}

static int all_sent(const load *l) { return l->plan.count > 0 && l->sent >= l->plan.count; }

static void mark(load *l, double now) {
  if (!l->measuring && now >= l->from) {
    l->measuring = 1;
    say("MEASURE");
  }
  if (!l->ended && now >= l->to) {
    l->ended = 1;
    say("END");
  }
}

void load_begin(load *l, const load_plan *plan, double now) {
  size_t slot, inflight = plan->inflight;
  memset(l, 0, sizeof *l);
  l->plan = *plan;
  l->running = 1;
  /* The state stays at 16 MiB or below, whatever the payload. */
  l->keys = plan->payload <= 4096 ? 10000 : (16 << 20) / plan->payload;
  if (l->keys > 1024 && plan->payload > 4096) l->keys = 1024;
  if (l->keys == 0) l->keys = 1;
  l->random = 88172645463325252u;
  l->begun = now;
  l->from = now + plan->warm;
  l->to = plan->count > 0 ? HUGE_VAL : l->from + plan->seconds;
  l->give_up = l->to + DRAIN;
  l->since = must(calloc(inflight, sizeof *l->since));
  l->commands = must(malloc(inflight * plan->payload));
  l->queued = must(calloc(inflight, sizeof *l->queued));
  l->tokens = must(calloc(inflight, sizeof *l->tokens));
  l->idle = must(calloc(inflight, sizeof *l->idle));
  memset(l->commands, 7, inflight * plan->payload);
  for (slot = 0; slot < inflight; slot++) {
    if (plan->rate > 0) {
      l->idle[l->idle_count++] = slot;
    } else if (!all_sent(l)) {
      queue_one(l, slot, now);
    }
  }
}

void load_answered(load *l, uint64_t token, int ok, double now) {
  size_t slot = (size_t)token - 1;
  mark(l, now);
  l->pending--;
  if (l->measuring && !l->ended) {
    if (!ok) {
      l->errors++;
    } else {
      if (l->count == l->room) {
        l->room = l->room == 0 ? 1 << 20 : 2 * l->room;
        l->latencies = must(realloc(l->latencies, l->room * sizeof *l->latencies));
      }
      l->latencies[l->count++] = (float)((now - l->since[slot]) * 1e3);
    }
  }
  if (l->plan.rate > 0) {
    l->idle[l->idle_count++] = slot;
  } else if (!l->ended && !all_sent(l)) {
    queue_one(l, slot, now);
  }
}

void load_advance(load *l, double now) {
  mark(l, now);
  if (l->plan.rate <= 0 || l->ended) return;
  /* What waits for a free slot is late, and its latency says so. */
  while (l->idle_count > 0) {
    double due = l->begun + ceil((double)l->sent / l->plan.rate / BURST) * BURST;
    if (due > now) return;
    queue_one(l, l->idle[--l->idle_count], due);
  }
}

double load_wakes(const load *l) {
  if (!l->running || l->plan.rate <= 0 || l->ended || l->idle_count == 0) return 0;
  return l->begun + ceil((double)l->sent / l->plan.rate / BURST) * BURST;
}

void load_stop(load *l, double now) {
  if (l->ended) return;
  l->to = now;
  l->give_up = now + DRAIN;
  mark(l, now);
}

int load_is_over(const load *l, double now) {
  return (l->pending == 0 && (l->ended || all_sent(l))) || now > l->give_up;
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

void load_finish(load *l, double now) {
  char line[512];
  double seconds = (l->plan.count > 0 ? now : l->to) - l->from;
  if (l->plan.count > 0 && !l->ended) say("END");
  if (l->count > 0) qsort(l->latencies, l->count, sizeof *l->latencies, by_size);
  snprintf(line, sizeof line,
           "{\"n\":%zu,\"errors\":%" PRIu64
           ",\"secs\":%.6f,\"p50_ms\":%.6f,\"p99_ms\":%.6f,\"p999_ms\":%.6f,\"max_ms\":%.6f,\"drained\":%s}",
           l->count, l->errors, seconds, at(l, 0.5), at(l, 0.99), at(l, 0.999), at(l, 1.0),
           l->pending == 0 ? "true" : "false");
  free(l->since);
  free(l->idle);
  free(l->latencies);
  free(l->commands);
  free(l->queued);
  free(l->tokens);
  memset(l, 0, sizeof *l);
  say(line);
}

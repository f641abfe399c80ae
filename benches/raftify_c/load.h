/* The proposals or reads that one node keeps outstanding, and what they took. Who owns it submits what it has queued. */
#ifndef BENCH_LOAD_H
#define BENCH_LOAD_H

#include <stddef.h>
#include <stdint.h>

#include <raftify.h>

typedef struct load_plan {
  int reads;       /* linearizable reads of one key each, instead of proposals */
  size_t payload;  /* bytes of a command */
  size_t inflight; /* outstanding at most */
  double rate;     /* proposals a second, in bursts; 0: as many as come back */
  uint64_t count;  /* so many and no more; 0: until the time is over */
  double seconds;
  double warm;
} load_plan;

typedef struct load {
  load_plan plan;
  int running;
  int measuring;
  int ended;
  size_t pending; /* outstanding */
  uint64_t sent;  /* so far */
  double begun;
  double from;
  double to;
  double give_up;
  double *since; /* by slot: when it was due */
  size_t *idle;  /* paced: slots that nothing is outstanding for */
  size_t idle_count;
  float *latencies;
  size_t count;
  size_t room;
  uint64_t errors;
  uint64_t keys;
  uint64_t random;
  uint64_t found;
  uint8_t *commands; /* by slot */
  raftify_proposal *queued;
  size_t queued_count;
  uint64_t *tokens; /* of the reads among them, on their way down */
} load;

/* Prints a line at once. */
void say(const char *line);

void load_begin(load *l, const load_plan *plan, double now);

/* The request of this token has ended. */
void load_answered(load *l, uint64_t token, int ok, double now);

/* Paced: queues what is due. Ends the window when its time has come. */
void load_advance(load *l, double now);

/* When load_advance wants to be called next; 0: no matter. */
double load_wakes(const load *l);

/* The window ends now, not when it was planned to. */
void load_stop(load *l, double now);

/* Nothing is outstanding any more, or it is too late. */
int load_is_over(const load *l, double now);

/* Prints the result, a line of JSON, and forgets everything. */
void load_finish(load *l, double now);

#endif

/* What every bench program here needs. */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#include <time.h>

#include <raftify.h>

/* Says what could not be done, and why if the library told, and ends the program. */
void die(const char *what, raftify_error *error);

/* What was allocated. Ends the program if nothing was: a bench without memory has nothing to say. */
void *must(void *pointer);

/* Seconds on that clock. */
double clock_seconds(clockid_t clock);

/* Seconds on the one that never goes back. */
double clock_now(void);

/* Ends the program if the library does not take it. */
void set(raftify_config *config, const char *name, const char *to);

#endif

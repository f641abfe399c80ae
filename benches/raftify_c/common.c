#define _POSIX_C_SOURCE 200809L

#include "common.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void die(const char *what, raftify_error *error) {
  fprintf(stderr, "%s: %s\n", what, error == NULL ? "failed" : raftify_error_message(error));
  exit(1);
}

void *must(void *pointer) {
  if (pointer == NULL) die("out of memory", NULL);
  return pointer;
}

double clock_seconds(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

double clock_now(void) { return clock_seconds(CLOCK_MONOTONIC); }

void set(raftify_config *config, const char *name, const char *to) {
  raftify_error *error = NULL;
  if (raftify_config_set(config, name, strlen(name), to, strlen(to), &error) != RAFTIFY_OK) die(name, error);
}

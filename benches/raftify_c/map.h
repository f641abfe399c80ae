/* The replicated state of a bench node: 8-byte key to value, in a hash table of open addressing. No thread but its owner's may touch it. */
#ifndef BENCH_MAP_H
#define BENCH_MAP_H

#include <stddef.h>
#include <stdint.h>

enum { MAP_SLOTS = 1 << 15, MAP_KEY = 8 };

typedef struct map_value {
  uint64_t key;
  uint8_t *data; /* NULL: the slot is free */
  uint32_t len;
  uint32_t capacity;
} map_value;

typedef struct map {
  map_value slots[MAP_SLOTS];
  uint64_t applied;
  uint64_t keys;
} map;

/* A command: its first MAP_KEY bytes are the key. */
void map_apply(map *m, const uint8_t *command, size_t len);

int map_has(map *m, uint64_t key);

/* The same for equal maps, in whatever order they were filled. */
uint64_t map_digest(const map *m);

/* All of it as bytes, to be freed by the caller. */
uint8_t *map_dump(const map *m, size_t *len);

/* Replaces it. Returns 0 if the bytes are cut off. */
int map_load(map *m, const uint8_t *dumped, size_t len);

#endif

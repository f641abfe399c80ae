#include "map.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"

enum { FRAME = MAP_KEY + 4 };

static map_value *slot_of(map *m, uint64_t key) {
  uint64_t at = (key * UINT64_C(0x9E3779B97F4A7C15)) >> 49;
  while (m->slots[at].data != NULL && m->slots[at].key != key) at = (at + 1) % MAP_SLOTS;
  return &m->slots[at];
}

static void put(map *m, uint64_t key, const uint8_t *data, size_t len) {
  map_value *slot = slot_of(m, key);
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

void map_apply(map *m, const uint8_t *command, size_t len) {
  uint64_t key;
  if (len < MAP_KEY) return;
  memcpy(&key, command, MAP_KEY);
  put(m, key, command + MAP_KEY, len - MAP_KEY);
  m->applied++;
}

int map_has(map *m, uint64_t key) { return slot_of(m, key)->data != NULL; }

uint64_t map_digest(const map *m) {
  uint64_t sum = 0;
  size_t i, n;
  for (i = 0; i < MAP_SLOTS; i++) {
    const map_value *slot = &m->slots[i];
    uint64_t hash = UINT64_C(0xcbf29ce484222325) ^ slot->key;
    if (slot->data == NULL) continue;
    for (n = 0; n < slot->len; n++) hash = (hash ^ slot->data[n]) * UINT64_C(0x100000001b3);
    sum += hash;
  }
  return sum;
}

uint8_t *map_dump(const map *m, size_t *len) {
  size_t i, filled = sizeof m->applied;
  uint8_t *bytes;
  *len = sizeof m->applied;
  for (i = 0; i < MAP_SLOTS; i++)
    if (m->slots[i].data != NULL) *len += FRAME + m->slots[i].len;
  bytes = must(malloc(*len));
  memcpy(bytes, &m->applied, sizeof m->applied);
  for (i = 0; i < MAP_SLOTS; i++) {
    const map_value *slot = &m->slots[i];
    if (slot->data == NULL) continue;
    memcpy(bytes + filled, &slot->key, MAP_KEY);
    memcpy(bytes + filled + MAP_KEY, &slot->len, 4);
    memcpy(bytes + filled + FRAME, slot->data, slot->len);
    filled += FRAME + slot->len;
  }
  return bytes;
}

int map_load(map *m, const uint8_t *dumped, size_t len) {
  size_t i, at = sizeof m->applied;
  for (i = 0; i < MAP_SLOTS; i++) free(m->slots[i].data);
  memset(m, 0, sizeof *m);
  if (len < at) return 0;
  memcpy(&m->applied, dumped, at);
  while (at < len) {
    uint64_t key;
    uint32_t size;
    if (len - at < FRAME) return 0;
    memcpy(&key, dumped + at, MAP_KEY);
    memcpy(&size, dumped + at + MAP_KEY, 4);
    at += FRAME;
    if (size > len - at) return 0;
    put(m, key, dumped + at, size);
    at += size;
  }
  return 1;
}

/*
 * A replicated key-value store in one file: one process per node, lines of text over TCP.
 *
 *   kv ID DIRECTORY PORT ID=HOST:PORT [ID=HOST:PORT ...]
 *
 * ID is this node's; DIRECTORY keeps its data; PORT is where clients come in (on 127.0.0.1); the rest is the cluster: the address of every
 * node for the other nodes, this one included. Requests, one per line, on any node:
 *
 *   put KEY VALUE  ->  ok INDEX
 *   get KEY        ->  value VALUE | none          (linearizable: sees every put that was answered anywhere before)
 *   del KEY        ->  ok INDEX
 *   status         ->  one line of JSON
 *                  or  error NAME MESSAGE
 *
 * How it is built: raftify calls the state machine (apply, snapshot, restore) on a thread of its own; everything else happens in
 * one poll() loop, which the queue's descriptor wakes. The store is shared by the two, under one mutex.
 */
#define _POSIX_C_SOURCE 200809L

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <raftify.h>

enum { BUCKETS = 4096, MAX_CLIENTS = 64, MAX_LINE = 65536, MAX_NODES = 16, EVENTS = 64 };

/* ---- small helpers ---- */

static void *must(void *pointer) {
  if (pointer == NULL) {
    fputs("out of memory\n", stderr);
    exit(1);
  }
  return pointer;
}

static char *copy(const char *data, size_t len) {
  char *text = must(malloc(len + 1));
  if (len > 0) memcpy(text, data, len);
  text[len] = '\0';
  return text;
}

static void put_u32(uint8_t *to, uint32_t number) {
  int i;
  for (i = 0; i < 4; i++) to[i] = (uint8_t)(number >> (8 * i));
}

static uint32_t get_u32(const uint8_t *from) {
  return (uint32_t)from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 | (uint32_t)from[3] << 24;
}

/* ---- the store: a hash table of strings ---- */

typedef struct pair {
  struct pair *next;
  char *key;
  char *value;
} pair;

typedef struct store {
  pthread_mutex_t mutex; /* held to write, and by the poll loop to read; the machine's thread is the only writer */
  pair *buckets[BUCKETS];
} store;

static pair **find(pair **buckets, const char *key) {
  uint32_t hash = 2166136261u;
  const char *c;
  pair **at;
  for (c = key; *c != '\0'; c++) hash = (hash ^ (uint8_t)*c) * 16777619u;
  for (at = &buckets[hash % BUCKETS]; *at != NULL; at = &(*at)->next)
    if (strcmp((*at)->key, key) == 0) break;
  return at;
}

/* Takes both strings. */
static void put(pair **buckets, char *key, char *value) {
  pair **at = find(buckets, key);
  if (*at == NULL) {
    *at = must(calloc(1, sizeof **at));
    (*at)->key = key;
  } else {
    free(key);
    free((*at)->value);
  }
  (*at)->value = value;
}

static void delete(pair **buckets, const char *key) {
  pair **at = find(buckets, key), *gone = *at;
  if (gone == NULL) return;
  *at = gone->next;
  free(gone->key);
  free(gone->value);
  free(gone);
}

static void clear(pair **buckets) {
  size_t i;
  for (i = 0; i < BUCKETS; i++)
    while (buckets[i] != NULL) delete(buckets, buckets[i]->key);
}

/* ---- the state machine: called by raftify, in log order, never two calls at a time ---- */

/* A command: 'P' or 'D', the key's length in four bytes, the key, the value. The same bytes have the same effect on every node. */
static char *encode(char what, const char *key, const char *value, size_t *len) {
  size_t key_len = strlen(key), value_len = strlen(value);
  char *command = must(malloc(5 + key_len + value_len));
  command[0] = what;
  put_u32((uint8_t *)command + 1, (uint32_t)key_len);
  memcpy(command + 5, key, key_len);
  memcpy(command + 5 + key_len, value, value_len);
  *len = 5 + key_len + value_len;
  return command;
}

static int32_t machine_apply(void *user_data, const raftify_entry *entries, size_t count, const uint8_t *data,
                             raftify_results *results) {
  static const char malformed[] = "malformed command";
  store *kv = user_data;
  size_t i;
  pthread_mutex_lock(&kv->mutex);
  for (i = 0; i < count; i++) {
    const uint8_t *command = data + entries[i].offset;
    size_t len = entries[i].len;
    size_t key_len = len >= 5 ? get_u32(command + 1) : 0;
    if (len < 5 || key_len > len - 5 || (command[0] != 'P' && command[0] != 'D')) {
      /* A failure of the command, alike on every node; returning non-zero would say that this node has failed. */
      raftify_results_set(results, i, 1, (const uint8_t *)malformed, sizeof malformed - 1);
      continue;
    }
    {
      char *key = copy((const char *)command + 5, key_len);
      if (command[0] == 'P') {
        put(kv->buckets, key, copy((const char *)command + 5 + key_len, len - 5 - key_len));
      } else {
        delete(kv->buckets, key);
        free(key);
      }
    }
    raftify_results_set(results, i, 0, NULL, 0);
  }
  pthread_mutex_unlock(&kv->mutex);
  return 0;
}

static int32_t write_text(raftify_snapshot_writer *writer, const char *text) {
  uint8_t len[4];
  put_u32(len, (uint32_t)strlen(text));
  if (raftify_snapshot_write(writer, len, sizeof len) != RAFTIFY_OK) return 1;
  return raftify_snapshot_write(writer, (const uint8_t *)text, strlen(text)) != RAFTIFY_OK;
}

/* The state: key and value of every pair, each as four bytes of length and the text. Nobody writes meanwhile: no lock. */
static int32_t machine_snapshot(void *user_data, raftify_snapshot_writer *writer) {
  store *kv = user_data;
  size_t i;
  for (i = 0; i < BUCKETS; i++) {
    const pair *p;
    for (p = kv->buckets[i]; p != NULL; p = p->next)
      if (write_text(writer, p->key) != 0 || write_text(writer, p->value) != 0) return 1;
  }
  return 0;
}

/* Reads exactly len bytes: 1; the end before the first of them: 0; anything else: -1. */
static int read_exactly(raftify_snapshot_reader *reader, uint8_t *to, size_t len) {
  size_t have = 0, n = 0;
  while (have < len) {
    if (raftify_snapshot_read(reader, to + have, len - have, &n) != RAFTIFY_OK) return -1;
    if (n == 0) return have == 0 ? 0 : -1;
    have += n;
  }
  return 1;
}

/* 1: a text; 0: the end; -1: the snapshot cannot be read. */
static int read_text(raftify_snapshot_reader *reader, char **text) {
  uint8_t bytes[4];
  uint32_t len;
  int got = read_exactly(reader, bytes, sizeof bytes);
  if (got != 1) return got;
  len = get_u32(bytes);
  *text = must(malloc((size_t)len + 1));
  (*text)[len] = '\0';
  if (read_exactly(reader, (uint8_t *)*text, len) == 1) return 1;
  free(*text);
  return -1;
}

static int32_t machine_restore(void *user_data, raftify_snapshot_reader *reader) {
  store *kv = user_data;
  pair **buckets = must(calloc(BUCKETS, sizeof *buckets));
  char *key = NULL, *value = NULL;
  int got;
  while ((got = read_text(reader, &key)) == 1) {
    if (read_text(reader, &value) != 1) {
      free(key);
      got = -1;
      break;
    }
    put(buckets, key, value);
  }
  if (got == 0) {
    pthread_mutex_lock(&kv->mutex);
    clear(kv->buckets);
    memcpy(kv->buckets, buckets, BUCKETS * sizeof *buckets);
    pthread_mutex_unlock(&kv->mutex);
  } else {
    clear(buckets);
  }
  free(buckets);
  return got == 0 ? 0 : 1;
}

/* ---- clients ---- */

typedef struct client {
  int fd; /* -1: free */
  /* The request that is being answered; 0: none. The next line waits until then. */
  uint64_t token;
  /* Of a get: the key that is looked up once the read is done. */
  char *key;
  char in[MAX_LINE];
  size_t in_len;
  char *out;
  size_t out_len;
} client;

typedef struct server {
  store kv;
  raftify_node *node;
  raftify_queue *queue;
  client clients[MAX_CLIENTS];
  uint64_t last_token;
  int closing;
  int closed;
  int failed;
} server;

static void drop(client *c) {
  close(c->fd);
  free(c->key);
  free(c->out);
  memset(c, 0, sizeof *c);
  c->fd = -1;
}

static void flush(client *c) {
  while (c->out_len > 0) {
    ssize_t n = send(c->fd, c->out, c->out_len, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
    if (n < 0) {
      drop(c);
      return;
    }
    c->out_len -= (size_t)n;
    memmove(c->out, c->out + n, c->out_len);
  }
}

/* Answers with two words and a newline; what is left of them may be empty. */
static void reply(client *c, const char *word, const char *rest, size_t rest_len) {
  size_t word_len = strlen(word), i;
  char *to;
  c->out = must(realloc(c->out, c->out_len + word_len + rest_len + 2));
  to = c->out + c->out_len;
  memcpy(to, word, word_len);
  to += word_len;
  if (word_len > 0 && rest_len > 0) *to++ = ' ';
  for (i = 0; i < rest_len; i++) *to++ = rest[i] == '\n' ? ' ' : rest[i];
  *to++ = '\n';
  c->out_len = (size_t)(to - c->out);
}

static void reply_error(client *c, raftify_status status, const char *message) {
  char word[64];
  snprintf(word, sizeof word, "error %s", raftify_status_name(status));
  reply(c, word, message, strlen(message));
}

/* A request that raftify did not accept has no completion: answered here. */
static void submitted(client *c, raftify_status status, raftify_error **error) {
  if (status == RAFTIFY_OK) return;
  c->token = 0;
  reply_error(c, status, raftify_error_message(*error));
  raftify_error_free(*error);
}

static const char USE[] = "use: put KEY VALUE, get KEY, del KEY, status";

static void request(server *s, client *c, char *line) {
  char *key = strchr(line, ' '), *value = NULL, *command;
  raftify_error *error = NULL;
  size_t len = 0;
  if (key != NULL) {
    *key++ = '\0';
    value = strchr(key, ' ');
  }
  if (strcmp(line, "status") == 0 && key == NULL) {
    char *text = NULL;
    raftify_status status = raftify_node_status(s->node, &text, &len, &error);
    if (status == RAFTIFY_OK) reply(c, "", text, len);
    raftify_string_free(text);
    submitted(c, status, &error);
    return;
  }
  /* Known before it is submitted: the completion may come at any time after. */
  c->token = ++s->last_token;
  if (strcmp(line, "put") == 0 && value != NULL && value > key) {
    *value++ = '\0';
    command = encode('P', key, value, &len);
  } else if (strcmp(line, "del") == 0 && key != NULL && *key != '\0' && value == NULL) {
    command = encode('D', key, "", &len);
  } else if (strcmp(line, "get") == 0 && key != NULL && *key != '\0' && value == NULL) {
    c->key = copy(key, strlen(key));
    submitted(c, raftify_read(s->node, c->token, RAFTIFY_TIMEOUT_DEFAULT, &error), &error);
    return;
  } else {
    c->token = 0;
    reply(c, "error", USE, sizeof USE - 1);
    return;
  }
  submitted(c, raftify_propose(s->node, c->token, (const uint8_t *)command, len, RAFTIFY_TIMEOUT_DEFAULT, &error), &error);
  free(command); /* raftify has its own copy */
}

/* Serves the lines that have come, one at a time, each when the answer to the one before has been taken. */
static void serve(server *s, client *c) {
  while (c->fd >= 0 && c->token == 0 && c->out_len == 0 && !s->closing) {
    char *end = memchr(c->in, '\n', c->in_len);
    size_t len, text;
    if (end == NULL) return;
    text = (size_t)(end - c->in);
    len = text + 1;
    if (text > 0 && c->in[text - 1] == '\r') text--;
    c->in[text] = '\0';
    free(c->key);
    c->key = NULL;
    if (strlen(c->in) == text) request(s, c, c->in);
    else reply(c, "error", USE, sizeof USE - 1); /* a NUL inside of it would quietly cut it short */
    c->in_len -= len;
    memmove(c->in, c->in + len, c->in_len);
    flush(c);
  }
}

static void receive(server *s, client *c) {
  ssize_t n = recv(c->fd, c->in + c->in_len, sizeof c->in - c->in_len, 0);
  if (n < 0 && (errno == EINTR || errno == EAGAIN || errno == EWOULDBLOCK)) return;
  if (n <= 0) {
    drop(c); /* its request goes on without it */
    return;
  }
  c->in_len += (size_t)n;
  serve(s, c);
  if (c->fd >= 0 && c->in_len == sizeof c->in && memchr(c->in, '\n', c->in_len) == NULL) drop(c); /* no request is that long */
}

/* ---- what raftify says ---- */

static void completed(server *s, const raftify_event *e) {
  client *c;
  for (c = s->clients; c < s->clients + MAX_CLIENTS && (c->fd < 0 || c->token != e->token); c++) continue;
  if (c == s->clients + MAX_CLIENTS) return; /* its client has gone */
  if (e->status != RAFTIFY_OK) {
    /* data is the error as JSON: name, message, and whether the command is in the log all the same. */
    char *json = copy((const char *)e->data, e->len);
    reply_error(c, e->status, json);
    free(json);
  } else if (c->key != NULL) {
    pair *p;
    pthread_mutex_lock(&s->kv.mutex);
    p = *find(s->kv.buckets, c->key);
    if (p == NULL) reply(c, "none", "", 0);
    else reply(c, "value", p->value, strlen(p->value));
    pthread_mutex_unlock(&s->kv.mutex);
  } else {
    char index[32];
    snprintf(index, sizeof index, "%" PRIu64, e->index);
    reply(c, "ok", index, strlen(index));
  }
  c->token = 0;
  flush(c);
  serve(s, c);
}

static void drain(server *s) {
  raftify_event events[EVENTS];
  size_t n = raftify_queue_drain(s->queue, events, EVENTS), i;
  /* What is left, if anything, wakes the next poll. */
  for (i = 0; i < n; i++) {
    const raftify_event *e = &events[i];
    switch (e->kind) {
      case RAFTIFY_EVENT_COMPLETION:
        if (e->token == 0) {
          printf("ready %.*s\n", (int)e->len, (const char *)e->data);
          fflush(stdout);
        } else {
          completed(s, e);
        }
        break;
      case RAFTIFY_EVENT_CLOSED:
        s->closed = 1;
        s->failed = e->status != RAFTIFY_OK;
        if (s->failed) fprintf(stderr, "the node has ended: %.*s\n", (int)e->len, (const char *)e->data);
        break;
      default: /* notices and log lines */
        fprintf(stderr, "%.*s\n", (int)e->len, (const char *)e->data);
    }
  }
}

/* ---- the process ---- */

static int stop_pipe[2];

static void on_signal(int signal_number) {
  (void)signal_number;
  if (write(stop_pipe[1], "x", 1) < 0) return; /* full: a stop is on its way already */
}

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static void unblock(int fd) {
  if (fcntl(fd, F_SETFL, O_NONBLOCK) != 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) != 0) fail("fcntl");
}

static int listen_on(uint16_t port) {
  struct sockaddr_in address;
  int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
  memset(&address, 0, sizeof address);
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) != 0 ||
      bind(fd, (struct sockaddr *)&address, sizeof address) != 0 || listen(fd, 16) != 0)
    fail("listen");
  unblock(fd);
  return fd;
}

static void welcome(server *s, int listener) {
  client *c;
  int fd = accept(listener, NULL, NULL);
  if (fd < 0) return;
  unblock(fd);
  for (c = s->clients; c < s->clients + MAX_CLIENTS && c->fd >= 0; c++) continue;
  if (c == s->clients + MAX_CLIENTS) close(fd);
  else c->fd = fd;
}

/* One turn of the loop: waits, then does what there is to do. */
static void turn(server *s, int listener) {
  struct pollfd polled[3 + MAX_CLIENTS];
  size_t i;
  polled[0].fd = raftify_queue_fd(s->queue);
  polled[1].fd = s->closing ? -1 : stop_pipe[0];
  polled[2].fd = s->closing ? -1 : listener;
  for (i = 0; i < 3; i++) polled[i].events = POLLIN;
  for (i = 0; i < MAX_CLIENTS; i++) {
    const client *c = &s->clients[i];
    polled[3 + i].fd = c->fd;
    /* A client that waits for its answer, or does not take it, is not read from: it cannot fill our memory. */
    polled[3 + i].events = (short)(c->out_len > 0 ? POLLOUT : c->token == 0 && !s->closing ? POLLIN : 0);
  }
  if (poll(polled, 3 + MAX_CLIENTS, -1) < 0) {
    if (errno != EINTR) fail("poll");
    return;
  }
  for (i = 0; i < MAX_CLIENTS; i++) {
    client *c = &s->clients[i];
    short seen = polled[3 + i].revents;
    if (c->fd < 0 || c->fd != polled[3 + i].fd) continue;
    if (seen & POLLOUT) {
      flush(c);
      serve(s, c);
    }
    if (c->fd >= 0 && seen & POLLIN) receive(s, c);
    else if (c->fd >= 0 && seen & (POLLHUP | POLLERR | POLLNVAL)) drop(c);
  }
  if (polled[2].revents & POLLIN) welcome(s, listener);
  if (polled[1].revents & POLLIN) {
    s->closing = 1;
    raftify_node_close(s->node, RAFTIFY_TIMEOUT_DEFAULT); /* CLOSED comes when all is done */
  }
  if (polled[0].revents & POLLIN) drain(s);
}

/* Takes where the error is, not the error: C may evaluate the arguments of a call in any order. */
static void check(raftify_status status, raftify_error **error) {
  if (status == RAFTIFY_OK) return;
  fprintf(stderr, "%s: %s\n", raftify_status_name(status), raftify_error_message(*error));
  exit(1);
}

static void set(raftify_config *config, const char *name, const char *value) {
  raftify_error *error = NULL;
  check(raftify_config_set(config, name, strlen(name), value, strlen(value), &error), &error);
}

static uint64_t number(const char *text, uint64_t most) {
  char *end;
  unsigned long long n = strtoull(text, &end, 10);
  if (end == text || n == 0 || n > most || (*end != '\0' && *end != '=')) {
    fprintf(stderr, "%s is not a number from 1 to %" PRIu64 "\n", text, most);
    exit(2);
  }
  return n;
}

int main(int argc, char **argv) {
  static server s; /* zeroed, and too large for a small stack */
  raftify_peer peers[MAX_NODES];
  raftify_config *config;
  raftify_runtime *runtime = NULL;
  raftify_error *error = NULL;
  raftify_machine machine;
  const raftify_peer *self = NULL;
  struct sigaction action;
  uint64_t id;
  size_t peer_count = 0, i;
  int listener, arg;

  if (argc < 5 || argc > 4 + MAX_NODES) {
    fprintf(stderr, "use: %s ID DIRECTORY PORT ID=HOST:PORT [ID=HOST:PORT ...]\n", argv[0]);
    return 2;
  }
  if (raftify_abi_version() != RAFTIFY_ABI_VERSION) {
    fprintf(stderr, "the library has ABI %" PRIu32 ", this program was made for %d\n", raftify_abi_version(), RAFTIFY_ABI_VERSION);
    return 1;
  }
  id = number(argv[1], UINT32_MAX);
  for (arg = 4; arg < argc; arg++, peer_count++) {
    const char *addr = strchr(argv[arg], '=');
    if (addr == NULL) {
      fprintf(stderr, "%s is not ID=HOST:PORT\n", argv[arg]);
      return 2;
    }
    peers[peer_count].id = number(argv[arg], UINT32_MAX);
    peers[peer_count].addr = addr + 1;
    peers[peer_count].addr_len = strlen(addr + 1);
    if (peers[peer_count].id == id) self = &peers[peer_count];
  }
  if (self == NULL) {
    fprintf(stderr, "the cluster has no address for node %" PRIu64 "\n", id);
    return 2;
  }

  for (i = 0; i < MAX_CLIENTS; i++) s.clients[i].fd = -1;
  pthread_mutex_init(&s.kv.mutex, NULL);
  listener = listen_on((uint16_t)number(argv[3], 65535));
  if (pipe(stop_pipe) != 0) fail("pipe");
  unblock(stop_pipe[0]);
  unblock(stop_pipe[1]);
  memset(&action, 0, sizeof action);
  action.sa_handler = on_signal;
  sigaction(SIGTERM, &action, NULL);
  sigaction(SIGINT, &action, NULL);
  action.sa_handler = SIG_IGN; /* a client that has gone is an error of send() */
  sigaction(SIGPIPE, &action, NULL);

  config = must(raftify_config_new());
  set(config, "log_dir", argv[2]);
  set(config, "log_level", "warning");
  check(raftify_runtime_new(&runtime, &error), &error);
  check(raftify_queue_new(RAFTIFY_WAKE_FD, NULL, NULL, NULL, &s.queue, &error), &error);
  memset(&machine, 0, sizeof machine);
  machine.struct_size = sizeof machine;
  machine.user_data = &s.kv;
  machine.apply = machine_apply;
  machine.snapshot = machine_snapshot;
  machine.restore = machine_restore;
  check(raftify_node_start(runtime, s.queue, config, id, self->addr, self->addr_len, peers, peer_count, 1, &machine, &s.node,
                           &error),
        &error);
  raftify_config_free(config);

  while (!s.closed) turn(&s, listener);

  raftify_node_free(s.node);
  raftify_queue_free(s.queue);
  raftify_runtime_free(runtime);
  for (i = 0; i < MAX_CLIENTS; i++)
    if (s.clients[i].fd >= 0) drop(&s.clients[i]);
  clear(s.kv.buckets);
  pthread_mutex_destroy(&s.kv.mutex);
  close(listener);
  return s.failed;
}

/* fakeup.c - fake OpenAI-compatible upstream for gateway load tests (one epoll thread).
 *
 *   cc -O2 -o fakeup fakeup.c && ./fakeup 9001
 *
 * POST /v1/chat/completions
 *   "stream":false -> fixed chat.completion JSON of ~600 bytes
 *   "stream":true  -> SSE, chunked: role chunk, N content chunks, finish chunk,
 *                     usage chunk (when "include_usage":true was asked for), [DONE]
 * A directive anywhere in the request body sets the shape, so that it passes through any
 * gateway inside a message's text:
 *   @@n=100,us=20000,d=0@@   n content chunks, us microseconds between them
 *                            (0: one write() per chunk, as fast as the socket takes them,
 *                            round robin over streams), d microseconds before the answer
 * Every content chunk carries "T#" + 19 digits of CLOCK_MONOTONIC ns, so that a load
 * generator on the same machine can read the delay of each chunk.
 * GET /stats -> counters (requests, streams, done, cancelled = client went away, open).
 * Any other GET -> small JSON 200 (health checks, /v1/models, /get_model_info ...).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

typedef struct conn {
  int fd, want_out, gen;
  char *in;
  size_t len, cap;
  char *out;
  size_t olen, ooff, ocap;
  /* stream state */
  int streaming, delayed, usage, n, i;
  int64_t us, next;
  int flood_idx; /* place in flood list, or -1 */
} conn;

static int ep;
static int64_t c_req, c_streams, c_done, c_cancel, c_open;
static char json_resp[2048];
static size_t json_len;

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* ---- timers: binary heap of (time, conn, gen) ---- */
typedef struct {
  int64_t t;
  conn *c;
  int gen;
} tm_t;
static tm_t *heap;
static int hn, hcap;
static void heap_push(int64_t t, conn *c) {
  if (hn == hcap) heap = realloc(heap, (hcap = hcap ? hcap * 2 : 1024) * sizeof *heap);
  int i = hn++;
  tm_t x = {t, c, c->gen};
  while (i && heap[(i - 1) / 2].t > t) {
    heap[i] = heap[(i - 1) / 2];
    i = (i - 1) / 2;
  }
  heap[i] = x;
}
static tm_t heap_pop(void) {
  tm_t r = heap[0], x = heap[--hn];
  int i = 0;
  for (;;) {
    int k = 2 * i + 1;
    if (k >= hn) break;
    if (k + 1 < hn && heap[k + 1].t < heap[k].t) k++;
    if (heap[k].t >= x.t) break;
    heap[i] = heap[k];
    i = k;
  }
  if (hn) heap[i] = x;
  return r;
}
/* ---- flood list ---- */
static conn **fl;
static int fn, fcap;
static void fl_add(conn *c) {
  if (c->flood_idx >= 0) return;
  if (fn == fcap) fl = realloc(fl, (fcap = fcap ? fcap * 2 : 256) * sizeof *fl);
  c->flood_idx = fn;
  fl[fn++] = c;
}
static void fl_del(conn *c) {
  if (c->flood_idx < 0) return;
  conn *l = fl[--fn];
  fl[c->flood_idx] = l;
  l->flood_idx = c->flood_idx;
  c->flood_idx = -1;
}

/* freed conns are kept for reuse so that stale timers can be told by gen */
static conn *pool[65536];
static int pn;
static conn *conn_new(int fd) {
  conn *c = pn ? pool[--pn] : calloc(1, sizeof *c);
  c->fd = fd;
  c->len = c->olen = c->ooff = 0;
  c->want_out = c->streaming = c->delayed = 0;
  c->flood_idx = -1;
  c_open++;
  return c;
}
static void conn_close(conn *c) {
  if (c->streaming || c->delayed) c_cancel++;
  fl_del(c);
  close(c->fd);
  c->fd = -1;
  c->gen++;
  c->streaming = 0;
  c_open--;
  if (pn < 65536) pool[pn++] = c;
}

static void arm(conn *c, int out) {
  if (c->want_out == out) return;
  c->want_out = out;
  struct epoll_event e = {EPOLLIN | (out ? EPOLLOUT : 0), {.ptr = c}};
  epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &e);
}

/* 1 = all sent, 0 = kept some, -1 = dead */
static int out_flush(conn *c) {
  while (c->ooff < c->olen) {
    ssize_t k = send(c->fd, c->out + c->ooff, c->olen - c->ooff, MSG_NOSIGNAL);
    if (k < 0) {
      if (errno == EAGAIN) {
        arm(c, 1);
        return 0;
      }
      return -1;
    }
    c->ooff += k;
  }
  c->olen = c->ooff = 0;
  arm(c, 0);
  return 1;
}
static int out_put(conn *c, const char *p, size_t n) {
  if (c->olen + n > c->ocap) c->out = realloc(c->out, c->ocap = (c->olen + n) * 2 + 4096);
  memcpy(c->out + c->olen, p, n);
  c->olen += n;
  return out_flush(c);
}
static int put_event(conn *c, const char *json, int jn) {
  char b[1024];
  int m = snprintf(b, sizeof b, "%x\r\ndata: %.*s\n\n\r\n", jn + 8, jn, json);
  return out_put(c, b, m);
}
static int try_parse(conn *c);

/* emit the next piece of the stream; returns -1 dead, 0 blocked or going on, 1 finished */
static int step(conn *c) {
  char j[768];
  int m, r;
  int64_t t = now_ns();
  if (c->i < 0) {
    m = snprintf(j, sizeof j,
        "{\"id\":\"chatcmpl-bench0000000000000000000000\",\"object\":\"chat.completion.chunk\",\"created\":1764000000,"
        "\"model\":\"bench\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
        "\"logprobs\":null,\"finish_reason\":null}]}");
    r = put_event(c, j, m);
    c->i = 0;
  } else if (c->i < c->n) {
    m = snprintf(j, sizeof j,
        "{\"id\":\"chatcmpl-bench0000000000000000000000\",\"object\":\"chat.completion.chunk\",\"created\":1764000000,"
        "\"model\":\"bench\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" "
        "T#%019lld\"},\"logprobs\":null,\"finish_reason\":null}]}",
        (long long)t);
    r = put_event(c, j, m);
    c->i++;
  } else {
    m = snprintf(j, sizeof j,
        "{\"id\":\"chatcmpl-bench0000000000000000000000\",\"object\":\"chat.completion.chunk\",\"created\":1764000000,"
        "\"model\":\"bench\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\"},\"logprobs\":null,\"finish_"
        "reason\":\"stop\",\"stop_reason\":null}]}");
    r = put_event(c, j, m);
    if (r >= 0 && c->usage) {
      m = snprintf(j, sizeof j,
          "{\"id\":\"chatcmpl-bench0000000000000000000000\",\"object\":\"chat.completion.chunk\",\"created\":"
          "1764000000,\"model\":\"bench\",\"choices\":[],\"usage\":{\"prompt_tokens\":17,\"total_tokens\":%d,"
          "\"completion_tokens\":%d}}",
          17 + c->n, c->n);
      r = put_event(c, j, m);
    }
    if (r >= 0) {
      const char *e = "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";
      r = out_put(c, e, strlen(e));
    }
    if (r < 0) return -1;
    c->streaming = 0;
    c_done++;
    fl_del(c);
    return 1;
  }
  return r < 0 ? -1 : 0;
}
static int begin(conn *c) { /* answer after the optional delay */
  c->delayed = 0;
  if (!c->streaming) return out_put(c, json_resp, json_len);
  static const char h[] = "HTTP/1.1 200 OK\r\ndate: Sat, 21 Nov 2026 12:00:00 GMT\r\nserver: uvicorn\r\ncontent-type: "
                          "text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
  if (out_put(c, h, sizeof h - 1) < 0) return -1;
  if (step(c) < 0) return -1;
  if (c->us > 0) {
    c->next = now_ns() + c->us * 1000;
    heap_push(c->next, c);
  } else
    fl_add(c);
  return 0;
}
static const char *find(const char *h, size_t n, const char *s) { return memmem(h, n, s, strlen(s)); }
static int flag(const char *b, size_t n, const char *key) { /* "key" : true */
  size_t kl = strlen(key);
  const char *e = b + n;
  for (const char *p = b; (p = memmem(p, e - p, key, kl)); p += kl) {
    const char *q = p + kl;
    while (q < e && (*q == ' ' || *q == ':')) q++;
    if (e - q >= 4 && !memcmp(q, "true", 4)) return 1;
  }
  return 0;
}
static int reply_small(conn *c, const char *body) {
  char b[1024];
  int m = snprintf(b, sizeof b, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n%s",
      strlen(body), body);
  return out_put(c, b, m);
}

static int handle(conn *c, const char *req, size_t hl, const char *body, size_t bl) {
  if (!memcmp(req, "GET ", 4) || !memcmp(req, "HEAD", 4)) {
    char b[512];
    if (!memcmp(req, "GET /stats", 10)) {
      snprintf(b, sizeof b, "{\"requests\":%lld,\"streams\":%lld,\"done\":%lld,\"cancelled\":%lld,\"open\":%lld}",
          (long long)c_req, (long long)c_streams, (long long)c_done, (long long)c_cancel, (long long)c_open);
      return reply_small(c, b);
    }
    if (find(req, hl, "/v1/models "))
      return reply_small(c, "{\"object\":\"list\",\"data\":[{\"id\":\"bench\",\"object\":\"model\",\"created\":"
                            "1764000000,\"owned_by\":\"bench\",\"max_model_len\":32768}]}");
    return reply_small(
        c, "{\"status\":\"ok\",\"model_path\":\"bench\",\"served_model_name\":\"bench\",\"model_id\":\"bench\","
           "\"tokenizer_path\":\"\",\"is_generation\":true,\"version\":\"0.5.0\",\"tp_size\":1,\"dp_size\":1}");
  }
  c_req++;
  int n = 100, d = 0;
  long us = 0;
  const char *p = find(body, bl, "@@n=");
  if (p) sscanf(p, "@@n=%d,us=%ld,d=%d@@", &n, &us, &d);
  c->streaming = flag(body, bl, "\"stream\"");
  c->usage = flag(body, bl, "\"include_usage\"");
  c->n = n;
  c->us = us;
  c->i = -1;
  c->gen++;
  if (c->streaming) c_streams++;
  if (d > 0) {
    c->delayed = 1;
    heap_push(now_ns() + d * 1000LL, c);
    return 0;
  }
  return begin(c);
}
/* parse as many whole requests as the buffer has; -1 = close */
static int try_parse(conn *c) {
  while (!c->streaming && !c->delayed && c->len) {
    char *e = memmem(c->in, c->len, "\r\n\r\n", 4);
    if (!e) return c->len > 65536 ? -1 : 0;
    size_t hl = e + 4 - c->in, bl = 0, total;
    int chunked = 0, expect = 0;
    for (char *l = memchr(c->in, '\n', hl); l && l + 1 < e; l = memchr(l + 1, '\n', e - l)) {
      if (!strncasecmp(l + 1, "content-length:", 15))
        bl = strtoul(l + 16, 0, 10);
      else if (!strncasecmp(l + 1, "transfer-encoding:", 18))
        chunked = 1;
      else if (!strncasecmp(l + 1, "expect:", 7))
        expect = 1;
    }
    (void)expect;
    char *body = c->in + hl;
    if (chunked) { /* decode in place once it is whole */
      size_t o = hl, i = hl;
      int ok = 0;
      char *tmp = malloc(c->len + 1);
      size_t tn = 0;
      for (;;) {
        char *nl = memmem(c->in + i, c->len - i, "\r\n", 2);
        if (!nl) break;
        size_t k = strtoul(c->in + i, 0, 16);
        i = nl + 2 - c->in;
        if (i + k + 2 > c->len) break;
        memcpy(tmp + tn, c->in + i, k);
        tn += k;
        i += k + 2;
        if (!k) {
          ok = 1;
          break;
        }
      }
      (void)o;
      if (!ok) {
        free(tmp);
        return 0;
      }
      int r = handle(c, c->in, hl, tmp, tn);
      free(tmp);
      if (r < 0) return -1;
      total = i;
    } else {
      total = hl + bl;
      if (c->len < total) return 0;
      if (handle(c, c->in, hl, body, bl) < 0) return -1;
    }
    memmove(c->in, c->in + total, c->len - total);
    c->len -= total;
  }
  return 0;
}
static int on_read(conn *c) {
  for (;;) {
    if (c->cap - c->len < 16384) c->in = realloc(c->in, c->cap = c->cap * 2 + 32768);
    ssize_t k = recv(c->fd, c->in + c->len, c->cap - c->len, 0);
    if (k == 0) return -1;
    if (k < 0) {
      if (errno == EAGAIN) break;
      return -1;
    }
    c->len += k;
    if ((size_t)k < 16384) break;
  }
  return try_parse(c);
}
int main(int ac, char **av) {
  int port = ac > 1 ? atoi(av[1]) : 9001, one = 1;
  signal(SIGPIPE, SIG_IGN);
  char pad[220];
  memset(pad, 'x', sizeof pad);
  for (int i = 5; i < 220; i += 6) pad[i] = ' ';
  pad[219] = 0;
  char body[1024];
  int bn = snprintf(body, sizeof body,
      "{\"id\":\"chatcmpl-bench0000000000000000000000\",\"object\":\"chat.completion\",\"created\":1764000000,"
      "\"model\":\"bench\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"reasoning_content\":null,"
      "\"content\":\"%s\",\"tool_calls\":[]},\"logprobs\":null,\"finish_reason\":\"stop\",\"stop_reason\":null}],"
      "\"usage\":{\"prompt_tokens\":17,\"total_tokens\":57,\"completion_tokens\":40,\"prompt_tokens_details\":null},"
      "\"prompt_logprobs\":null}",
      pad);
  json_len = snprintf(json_resp, sizeof json_resp,
      "HTTP/1.1 200 OK\r\ndate: Sat, 21 Nov 2026 12:00:00 GMT\r\nserver: uvicorn\r\ncontent-length: "
      "%d\r\ncontent-type: application/json\r\n\r\n%s",
      bn, body);
  int ls = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  setsockopt(ls, SOL_SOCKET, SO_REUSEADDR, &one, 4);
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
  a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (bind(ls, (void *)&a, sizeof a) || listen(ls, 4096)) {
    perror("bind");
    return 1;
  }
  ep = epoll_create1(0);
  struct epoll_event e = {EPOLLIN, {.ptr = 0}}, ev[512];
  epoll_ctl(ep, EPOLL_CTL_ADD, ls, &e);
  for (;;) {
    int to = -1;
    if (fn)
      to = 0;
    else if (hn) {
      int64_t d = heap[0].t - now_ns();
      to = d <= 0 ? 0 : (d < 1000000 ? -2 : (int)(d / 1000000));
    }
    int k;
    if (to == -2) {
      struct timespec ts = {0, heap[0].t - now_ns()};
      if (ts.tv_nsec < 0) ts.tv_nsec = 0;
      k = epoll_pwait2(ep, ev, 512, &ts, 0);
    } else
      k = epoll_wait(ep, ev, 512, to);
    for (int i = 0; i < k; i++) {
      conn *c = ev[i].data.ptr;
      if (!c) {
        for (;;) {
          int fd = accept4(ls, 0, 0, SOCK_NONBLOCK);
          if (fd < 0) break;
          setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, 4);
          conn *n = conn_new(fd);
          struct epoll_event x = {EPOLLIN, {.ptr = n}};
          epoll_ctl(ep, EPOLL_CTL_ADD, fd, &x);
        }
        continue;
      }
      int dead = 0;
      if (c->fd < 0) continue;
      if (ev[i].events & EPOLLOUT) {
        int r = out_flush(c);
        if (r < 0)
          dead = 1;
        else if (r == 1) {
          if (c->streaming && !c->us) fl_add(c);
          if (!c->streaming && try_parse(c) < 0) dead = 1;
        }
      }
      if (!dead && (ev[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) && on_read(c) < 0) dead = 1;
      if (dead) conn_close(c);
    }
    int64_t t = now_ns();
    while (hn && heap[0].t <= t) {
      tm_t x = heap_pop();
      conn *c = x.c;
      if (c->fd < 0 || c->gen != x.gen) continue;
      int r;
      if (c->delayed) {
        r = begin(c);
        if (r >= 0 && !c->streaming) r = try_parse(c);
      } else {
        r = step(c);
        if (r == 1)
          r = try_parse(c);
        else if (r == 0) {
          c->next += c->us * 1000;
          heap_push(c->next, c);
        }
      }
      if (r < 0) conn_close(c);
    }
    for (int i = 0; i < fn; i++) { /* one chunk per stream per turn */
      conn *c = fl[i];
      if (c->want_out) {
        fl_del(c);
        i--;
        continue;
      }
      int before = fn, r = step(c);
      if (r == 1) r = try_parse(c);
      if (r < 0) conn_close(c);
      if (fn < before) i--;
    }
  }
}

/* gwload.c - load generator for OpenAI-compatible gateways (one epoll thread, loopback).
 *
 *   cc -O2 -o gwload gwload.c
 *   gwload -p 8080 -m json -c 64 -d 6                    closed loop, max requests/s
 *   gwload -p 8080 -m json -c 32 -d 8 -r 200             open loop, 200/s (latency from the due time)
 *   gwload -p 8080 -m sse  -c 256 -d 8 -n 100 -u 0       256 streams at once, chunks at full speed
 *   gwload -p 8080 -m sse  -c 256 -d 8 -n 100 -u 20000   256 streams, one chunk per 20 ms each
 *   -k KEY  -M MODEL  -P PATH  -b BYTES (prompt padding)  -w SECS (warm-up not counted)
 *   -H "Name: value" (repeatable)
 *   -s MS    spread the first start of the connections over MS milliseconds
 *   -x N     hang up on every stream after N content chunks
 *   -g SECS  after the end begin nothing, but let what is in flight come to its end for so long: then each
 *            request that was sent is counted in exactly one of ok, bad, cut and err
 *
 * Prints one JSON line. For sse: ttfb = request sent -> first content byte of the body, lag = upstream wrote a content
 * chunk -> we read it (both ends use CLOCK_MONOTONIC), chunks = "data:" events (chunks_all: with the warm-up). A stream
 * counts as ok only with status 200, [DONE] and exactly n content chunks; usage = streams which carried "usage":{.
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
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

typedef struct {
  int64_t *v;
  size_t n, cap;
} vec;
static void vadd(vec *a, int64_t x) {
  if (a->n == a->cap) a->v = realloc(a->v, (a->cap = a->cap ? a->cap * 2 : 65536) * 8);
  a->v[a->n++] = x;
}
static int cmp(const void *a, const void *b) {
  int64_t x = *(int64_t *)a, y = *(int64_t *)b;
  return x < y ? -1 : x > y;
}
static double pct(vec *a, double p) {
  if (!a->n) return -1;
  size_t i = (size_t)(p * (a->n - 1) + .5);
  return a->v[i] / 1e3;
} /* us */

enum { IDLE, CONNECTING, HEAD, BODY };
typedef struct {
  int fd, st, status, chunked, fresh;
  int64_t clen, due;
  size_t woff;
  char head[8192];
  int hl;
  int cs;
  int64_t cleft;
  char cline[32];
  int cl; /* chunk decoder: 0 size,1 data,2 crlf,3 trailer */
  char line[8192];
  int ll;
  int content, events, done, usage, got;
} conn;

static int ep, nconn = 64, sse, nchunk = 100;
static long us;
static double dur = 6, warm = 1, rate, grace;
static int cut_after; /* content chunks */
static char *req;
static size_t reqlen;
static struct sockaddr_in addr;
static conn *cs;
static int *idle, nidle;
static vec lat, ttfb, lag;
static int64_t ok, bad, err, cut, reconn, chunks, chunks_all, usages, bytes, t_start, t_meas, t_end;
static int badstatus[600];
static int64_t *queue;
static int64_t qh, qt, qcap;
static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void start(conn *c, int64_t due);
static void drop(conn *c) {
  if (c->fd >= 0) {
    epoll_ctl(ep, EPOLL_CTL_DEL, c->fd, 0);
    close(c->fd);
  }
  c->fd = -1;
  c->st = IDLE;
}
static int open_conn(conn *c) {
  int one = 1;
  c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (c->fd < 0) return -1;
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, 4);
  if (connect(c->fd, (void *)&addr, sizeof addr) && errno != EINPROGRESS) {
    close(c->fd);
    c->fd = -1;
    return -1;
  }
  struct epoll_event e = {EPOLLIN | EPOLLOUT, {.ptr = c}};
  epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &e);
  return 0;
}
static int flush_req(conn *c) {
  while (c->woff < reqlen) {
    ssize_t k = send(c->fd, req + c->woff, reqlen - c->woff, MSG_NOSIGNAL);
    if (k < 0) {
      if (errno == EAGAIN) return 0;
      return -1;
    }
    c->woff += k;
  }
  struct epoll_event e = {EPOLLIN, {.ptr = c}};
  epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &e);
  c->st = HEAD;
  return 1;
}
static void next(conn *c) { /* connection became free */
  c->st = IDLE;
  int64_t t = now_ns();
  if (t >= t_end) return;
  if (rate > 0) {
    if (qh < qt)
      start(c, queue[qh++]);
    else
      idle[nidle++] = c - cs;
  } else
    start(c, t);
}
static void fail(conn *c) {
  int64_t t = now_ns();
  if (t < t_end || grace > 0) {
    if (t >= t_meas) err++;
    drop(c);
    reconn++;
    struct timespec ts = {0, 2000000};
    if (err > 200) nanosleep(&ts, 0);
    if (err > 20000) {
      fprintf(stderr, "too many errors\n");
      exit(3);
    }
    next(c);
  } else
    drop(c);
}
static void start(conn *c, int64_t due) {
  c->due = due;
  c->hl = c->ll = c->content = c->events = c->done = c->usage = c->got = 0;
  c->cs = 0;
  c->cl = 0;
  c->woff = 0;
  c->status = 0;
  c->fresh = c->fd < 0;
  if (c->fd < 0) {
    if (open_conn(c) < 0) {
      fail(c);
      return;
    }
    c->st = CONNECTING;
    return;
  }
  int r = flush_req(c);
  if (r < 0) {
    drop(c);
    reconn++;
    if (open_conn(c) < 0) {
      fail(c);
      return;
    }
    c->fresh = 1;
    c->st = CONNECTING;
    return;
  }
  if (r == 0) {
    struct epoll_event e = {EPOLLIN | EPOLLOUT, {.ptr = c}};
    epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &e);
    c->st = CONNECTING;
  }
}
static void finish(conn *c, int keep) {
  int64_t t = now_ns();
  int good = c->status == 200 && (!sse || (c->done && c->content == nchunk)) && (sse || c->got);
  if (c->due >= t_meas && (t <= t_end + 1 || grace > 0)) {
    if (good) {
      ok++;
      vadd(&lat, t - c->due);
      if (c->usage) usages++;
    } else {
      bad++;
      badstatus[c->status > 0 && c->status < 600 ? c->status : 0]++;
    }
  }
  if (!keep) drop(c);
  next(c);
}
static void sse_line(conn *c, int64_t t) {
  if (c->ll < 5 || memcmp(c->line, "data:", 5)) return;
  c->events++;
  int m = t >= t_meas && t <= t_end;
  chunks_all++;
  if (m) chunks++;
  char *p = memmem(c->line, c->ll, "T#", 2);
  if (p && c->line + c->ll - p >= 21) {
    char b[20];
    memcpy(b, p + 2, 19);
    b[19] = 0;
    c->content++;
    if (m) vadd(&lag, t - strtoll(b, 0, 10));
  } else if (memmem(c->line, c->ll, "[DONE]", 6))
    c->done = 1;
  if (memmem(c->line, c->ll, "\"usage\":{", 9) || memmem(c->line, c->ll, "\"usage\": {", 10)) c->usage = 1;
}
static void body(conn *c, const char *p, size_t n, int64_t t) {
  if (!n) return;
  if (!c->got) {
    c->got = 1;
    if (c->due >= t_meas && t <= t_end && sse) vadd(&ttfb, t - c->due);
  }
  bytes += n;
  if (!sse) return;
  while (n) {
    const char *nl = memchr(p, '\n', n);
    size_t k = nl ? (size_t)(nl - p) : n;
    if (c->ll + k < sizeof c->line) {
      memcpy(c->line + c->ll, p, k);
      c->ll += k;
    }
    if (!nl) return;
    sse_line(c, t);
    c->ll = 0;
    p += k + 1;
    n -= k + 1;
  }
}
/* returns 1 when the response is whole */
static int feed(conn *c, const char *p, size_t n, int64_t t) {
  if (c->st == HEAD) {
    while (n) {
      if (c->hl >= (int)sizeof c->head - 1) return -1;
      c->head[c->hl++] = *p++;
      n--;
      if (c->hl >= 4 && !memcmp(c->head + c->hl - 4, "\r\n\r\n", 4)) {
        c->head[c->hl] = 0;
        c->status = atoi(c->head + 9);
        c->clen = -1;
        c->chunked = 0;
        if (c->status == 100) {
          c->hl = 0;
          continue;
        }
        for (char *l = strstr(c->head, "\r\n"); l && l[2]; l = strstr(l + 2, "\r\n")) {
          if (!strncasecmp(l + 2, "content-length:", 15))
            c->clen = atoll(l + 17);
          else if (!strncasecmp(l + 2, "transfer-encoding:", 18))
            c->chunked = 1;
        }
        c->st = BODY;
        if (!c->chunked && c->clen == 0) return 1;
        break;
      }
    }
    if (c->st == HEAD) return 0;
  }
  if (c->chunked) {
    while (n) {
      if (c->cs == 0) {
        char ch = *p++;
        n--;
        if (ch == '\n') {
          c->cline[c->cl] = 0;
          c->cleft = strtoll(c->cline, 0, 16);
          c->cl = 0;
          c->cs = c->cleft ? 1 : 3;
        } else if (c->cl < 31)
          c->cline[c->cl++] = ch;
      } else if (c->cs == 1) {
        size_t k = (int64_t)n < c->cleft ? n : (size_t)c->cleft;
        body(c, p, k, t);
        p += k;
        n -= k;
        c->cleft -= k;
        if (!c->cleft) c->cs = 2;
      } else if (c->cs == 2) {
        char ch = *p++;
        n--;
        if (ch == '\n') c->cs = 0;
      } else {
        char ch = *p++;
        n--;
        if (ch == '\n') {
          if (c->cl == 0) return 1;
          c->cl = 0;
        } else if (ch != '\r')
          c->cl++;
      }
    }
    return 0;
  }
  if (c->clen >= 0) {
    size_t k = (int64_t)n < c->clen ? n : (size_t)c->clen;
    body(c, p, k, t);
    c->clen -= k;
    return c->clen == 0;
  }
  body(c, p, n, t);
  return 0; /* until close */
}
static void on_read(conn *c) {
  static char buf[262144];
  for (;;) {
    ssize_t k = recv(c->fd, buf, sizeof buf, 0);
    if (k < 0) {
      if (errno == EAGAIN) return;
      fail(c);
      return;
    }
    if (k == 0) {
      if (c->st == BODY && !c->chunked && c->clen < 0) {
        finish(c, 0);
        return;
      }
      if (c->st == IDLE) {
        drop(c);
        c->st = IDLE;
        return;
      }
      if (c->st == HEAD && !c->hl && !c->fresh) {
        int64_t d = c->due;
        drop(c);
        reconn++;
        start(c, d);
        return;
      } /* stale keep-alive */
      fail(c);
      return;
    }
    if (c->st == IDLE) {
      drop(c);
      return;
    }
    int r = feed(c, buf, k, now_ns());
    if (r < 0) {
      fail(c);
      return;
    }
    if (r) {
      finish(c, strcasestr(c->head, "connection: close") == 0);
      return;
    }
    if (cut_after && c->content >= cut_after) {
      cut++;
      drop(c);
      next(c);
      return;
    }
    if ((size_t)k < sizeof buf) return;
  }
}
static int64_t in_flight(void) {
  int64_t n = 0;
  for (int i = 0; i < nconn; i++) n += cs[i].st != IDLE;
  return n;
}
int main(int ac, char **av) {
  int o, port = 8080, pad = 0, spread = 0;
  const char *key = "sk-bench", *model = "bench", *path = "/v1/chat/completions";
  char extra[2048] = "";
  while ((o = getopt(ac, av, "p:m:c:d:r:k:M:P:n:u:b:w:s:x:g:H:")) != -1) switch (o) {
    case 'p':
      port = atoi(optarg);
      break;
    case 'm':
      sse = !strcmp(optarg, "sse");
      break;
    case 'c':
      nconn = atoi(optarg);
      break;
    case 'd':
      dur = atof(optarg);
      break;
    case 'r':
      rate = atof(optarg);
      break;
    case 'k':
      key = optarg;
      break;
    case 'M':
      model = optarg;
      break;
    case 'P':
      path = optarg;
      break;
    case 'n':
      nchunk = atoi(optarg);
      break;
    case 'u':
      us = atol(optarg);
      break;
    case 'b':
      pad = atoi(optarg);
      break;
    case 'w':
      warm = atof(optarg);
      break;
    case 's':
      spread = atoi(optarg);
      break;
    case 'x':
      cut_after = atoi(optarg);
      break;
    case 'g':
      grace = atof(optarg);
      break;
    case 'H':
      if (strlen(extra) + strlen(optarg) + 3 < sizeof extra) {
        strcat(extra, optarg);
        strcat(extra, "\r\n");
      }
      break;
    default:
      return 2;
    }
  if (dur > 120 || nconn > 4000) {
    fprintf(stderr, "too much\n");
    return 2;
  }
  signal(SIGPIPE, SIG_IGN);
  addr.sin_family = AF_INET;
  addr.sin_port = htons(port);
  addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  char *fill = malloc(pad + 1);
  for (int i = 0; i < pad; i++) fill[i] = i % 6 == 5 ? ' ' : 'a' + i % 6;
  fill[pad] = 0;
  char *b = malloc(pad + 1024);
  int bl = sprintf(b,
      "{\"model\":\"%s\",\"messages\":[{\"role\":\"system\",\"content\":\"You are a helpful "
      "assistant.\"},{\"role\":\"user\",\"content\":\"@@n=%d,us=%ld,d=0@@ Tell me a short story about a lighthouse "
      "keeper. %s\"}],\"max_tokens\":256,\"temperature\":0.7%s}",
      model, nchunk, us, fill, sse ? ",\"stream\":true,\"stream_options\":{\"include_usage\":true}" : "");
  req = malloc(bl + 4096);
  reqlen = sprintf(req,
      "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nAccept: "
      "*/*\r\nUser-Agent: gwload/1\r\n%sContent-Length: %d\r\n\r\n",
      path, port, key, extra, bl);
  memcpy(req + reqlen, b, bl);
  reqlen += bl;
  ep = epoll_create1(0);
  cs = calloc(nconn, sizeof *cs);
  idle = malloc(nconn * sizeof *idle);
  t_start = now_ns();
  t_meas = t_start + warm * 1e9;
  t_end = t_meas + dur * 1e9;
  qcap = rate * (dur + warm) + 16;
  queue = malloc(qcap * 8);
  int64_t due = t_start;
  int begun = 0;
  for (int i = 0; i < nconn; i++) {
    cs[i].fd = -1;
    if (rate > 0) idle[nidle++] = i;
  }
  struct epoll_event ev[512];
  for (;;) {
    int64_t t = now_ns();
    if (t >= t_end && (!in_flight() || t >= t_end + grace * 1e9)) break;
    if (t >= t_end) {
      /* nothing new */
    } else if (rate > 0) {
      while (due <= t && qt < qcap) {
        if (nidle && qh == qt) {
          start(&cs[idle[--nidle]], due);
        } else
          queue[qt++] = due;
        due += 1e9 / rate;
      }
    } else
      while (begun < nconn && (!spread || t - t_start >= (int64_t)spread * 1000000LL * begun / nconn)) {
        start(&cs[begun], now_ns());
        begun++;
      }
    struct timespec ts = {0, 1000000};
    int64_t w = t < t_end ? t_end - t : 1000000;
    if (rate > 0 && due - t < w) w = due - t;
    if (w < 0) w = 0;
    if (w < 1000000) ts.tv_nsec = w;
    int k = epoll_pwait2(ep, ev, 512, &ts, 0);
    for (int i = 0; i < k; i++) {
      conn *c = ev[i].data.ptr;
      if (c->fd < 0) continue;
      if (c->st == CONNECTING && (ev[i].events & (EPOLLOUT | EPOLLERR | EPOLLHUP))) {
        int e = 0;
        socklen_t l = sizeof e;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &e, &l);
        if (e) {
          fail(c);
          continue;
        }
        if (flush_req(c) < 0) {
          fail(c);
          continue;
        }
      }
      if (ev[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) on_read(c);
    }
  }
  int64_t unfinished = in_flight();
  qsort(lat.v, lat.n, 8, cmp);
  qsort(ttfb.v, ttfb.n, 8, cmp);
  qsort(lag.v, lag.n, 8, cmp);
  printf("{\"mode\":\"%s\",\"conns\":%d,\"rate\":%g,\"secs\":%g,\"ok\":%lld,\"bad\":%lld,\"err\":%lld,\"cut\":%lld,"
         "\"reconn\":%lld,"
         "\"queued\":%lld,\"open_at_end\":%lld,\"rps\":%.1f,\"lat_p50_us\":%.0f,\"lat_p90_us\":%.0f,\"lat_p99_us\":%."
         "0f,\"lat_max_us\":%.0f",
      sse ? "sse" : "json", nconn, rate, dur, (long long)ok, (long long)bad, (long long)err, (long long)cut,
      (long long)reconn, (long long)(qt - qh), (long long)unfinished, ok / dur, pct(&lat, .5), pct(&lat, .9),
      pct(&lat, .99), pct(&lat, 1));
  if (sse)
    printf(",\"chunks_s\":%.0f,\"chunks_all\":%lld,\"mb_s\":%.1f,\"usage\":%lld,\"ttfb_p50_us\":%.0f,\"ttfb_p99_us\":%."
           "0f,\"lag_p50_us\":%."
           "0f,\"lag_p99_us\":%.0f,\"lag_max_us\":%.0f",
        chunks / dur, (long long)chunks_all, bytes / (dur + warm) / 1e6, (long long)usages, pct(&ttfb, .5),
        pct(&ttfb, .99), pct(&lag, .5), pct(&lag, .99), pct(&lag, 1));
  struct rusage used;
  getrusage(RUSAGE_SELF, &used);
  double cpu_s = used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
  printf(",\"cpu_s\":%.3f,\"status\":{", cpu_s);
  int f = 0;
  for (int i = 0; i < 600; i++)
    if (badstatus[i]) printf("%s\"%d\":%d", f++ ? "," : "", i, badstatus[i]);
  printf("}}\n");
  return 0;
}

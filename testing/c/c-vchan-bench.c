// link: -lxenvchan -lxenstore -lxengnttab -lxenevtchn -rdynamic
/*
 * One end of a vchan, on the C library libxenvchan: the peer and the yardstick of `cargo xtask bench vchan`.
 *
 *   c-vchan-bench WORK SIDE DOMID PATH SIZE TOTAL RING CPU
 *
 * SIDE is server or client, SIZE the bytes of one operation, TOTAL the bytes in all, RING the size of both rings, CPU
 * the processor to stay on. WORK is one of
 *
 *   write, read    a stream: libxenvchan_write of SIZE, libxenvchan_read into 64 KiB
 *   send, recv     the same in packets of SIZE
 *   ping, pong     TOTAL / SIZE round trips of SIZE bytes
 *   pair           both ends in this one thread: a write and a read of SIZE, TOTAL / SIZE times; no SIDE is looked at
 *
 * The reader sends one byte when it is ready, and one when it has everything; between the two the clock runs. Every byte
 * is compared with what it must be at its position in the stream: byte p of the stream is byte p % PERIOD of a pattern.
 * The Rust end (benches/src/end.rs) does the same in the same way.
 *
 * One line says how it went, nanoseconds everywhere:
 *
 *   ok ns=N bytes=N cpu=N notifies=N syscalls=N p50=N p99=N
 *   FAILED REASON
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <libxenvchan.h>
#include <xenevtchn.h>

#define PERIOD 4099
#define BUFFER 65536

static unsigned char pattern[PERIOD + BUFFER], buffer[BUFFER];
static struct libxenvchan *channel;
static size_t size;
static uint64_t total;

static void fail(const char *format, ...)
{
	va_list args;

	printf("FAILED ");
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
	fflush(stdout);
	_exit(1);
}

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * UINT64_C(1000000000) + t.tv_nsec;
}

static uint64_t cpu_time(void)
{
	struct rusage use;

	getrusage(RUSAGE_SELF, &use);
	return (use.ru_utime.tv_sec + use.ru_stime.tv_sec) * UINT64_C(1000000000) +
	       (use.ru_utime.tv_usec + use.ru_stime.tv_usec) * UINT64_C(1000);
}

/*
 * libxenvchan calls these instead of the library's own, which they call: each is one system call.
 */
static uint64_t notifies, calls;

int xenevtchn_notify(xenevtchn_handle *h, evtchn_port_t port)
{
	static int (*real)(xenevtchn_handle *, evtchn_port_t);

	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "xenevtchn_notify");
	notifies++;
	return real(h, port);
}

xenevtchn_port_or_error_t xenevtchn_pending(xenevtchn_handle *h)
{
	static xenevtchn_port_or_error_t (*real)(xenevtchn_handle *);

	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "xenevtchn_pending");
	calls++;
	return real(h);
}

int xenevtchn_unmask(xenevtchn_handle *h, evtchn_port_t port)
{
	static int (*real)(xenevtchn_handle *, evtchn_port_t);

	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "xenevtchn_unmask");
	calls++;
	return real(h, port);
}

static void counts(uint64_t out[2])
{
	out[0] = notifies;
	out[1] = notifies + calls;
}

static void put_all(struct libxenvchan *to, const unsigned char *from, size_t length)
{
	int count = libxenvchan_write(to, from, length);

	if (count < 0 || (size_t)count != length)
		fail("libxenvchan_write of %zu: %d", length, count);
}

static void get_all(struct libxenvchan *from, unsigned char *into, size_t length)
{
	size_t done = 0;

	while (done < length) {
		int count = libxenvchan_read(from, into + done, length - done);

		if (count <= 0)
			fail("libxenvchan_read: %d", count);
		done += count;
	}
}

/* Compares bytes of the stream from `position` on: in pieces of a period, so that the pattern stays in the first cache. */
static void check(const unsigned char *bytes, size_t length, uint64_t position)
{
	size_t done, piece;

	for (done = 0; done < length; done += piece) {
		size_t at = (position + done) % PERIOD;

		piece = length - done < PERIOD - at ? length - done : PERIOD - at;
		if (memcmp(bytes + done, pattern + at, piece))
			fail("wrong bytes in %" PRIu64 "..+%zu", position + done, piece);
	}
}

static void do_write(int packets)
{
	uint64_t done;
	size_t at = 0;

	for (done = 0; done < total; done += size) {
		if (packets) {
			int count = libxenvchan_send(channel, pattern + at, size);

			if (count < 0 || (size_t)count != size)
				fail("libxenvchan_send: %d", count);
		} else {
			put_all(channel, pattern + at, size);
		}
		at = (at + size) % PERIOD;
	}
}

static void do_read(int packets)
{
	uint64_t done = 0;

	while (done < total) {
		int count = packets ? libxenvchan_recv(channel, buffer, size) :
				      libxenvchan_read(channel, buffer, BUFFER);

		if (count <= 0)
			fail("reading at %" PRIu64 ": %d", done, count);
		check(buffer, count, done);
		done += count;
	}
}

static int by_value(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static void do_ping(uint64_t rounds, uint32_t *times)
{
	uint64_t i;

	for (i = 0; i < rounds; i++) {
		uint64_t began = now();

		put_all(channel, pattern, size);
		get_all(channel, buffer, size);
		times[i] = now() - began;
		check(buffer, size, 0);
	}
}

static void do_pong(uint64_t rounds)
{
	uint64_t i;

	for (i = 0; i < rounds; i++) {
		get_all(channel, buffer, size);
		put_all(channel, buffer, size);
	}
}

static void do_pair(struct libxenvchan *other, uint64_t rounds)
{
	uint64_t i;
	size_t at = 0;

	for (i = 0; i < rounds; i++) {
		put_all(channel, pattern + at, size);
		get_all(other, buffer, size);
		check(buffer, size, at);
		at = (at + size) % PERIOD;
	}
}

static struct libxenvchan *client(int domid, const char *path)
{
	const struct timespec pause = { .tv_nsec = 2 * 1000 * 1000 };
	struct libxenvchan *c;

	while (!(c = libxenvchan_client_init(NULL, domid, path)))
		nanosleep(&pause, NULL);
	c->blocking = 1;
	return c;
}

static struct libxenvchan *server(int domid, const char *path, size_t ring)
{
	struct libxenvchan *c = libxenvchan_server_init(NULL, domid, path, ring, ring);

	if (!c)
		fail("libxenvchan_server_init: %s", strerror(errno));
	c->blocking = 1;
	return c;
}

/* A client announces itself by an event. Before it is there no clock may run: how long it takes to come is not measured. */
static void wait_for_client(struct libxenvchan *c)
{
	while (libxenvchan_is_open(c) == 2)
		if (libxenvchan_wait(c))
			fail("libxenvchan_wait: %s", strerror(errno));
}

int main(int argc, char **argv)
{
	uint64_t began, took, cpu, before[2], after[2], rounds;
	struct libxenvchan *other = NULL;
	uint32_t *times = NULL;
	unsigned char byte = 1;
	const char *work;
	cpu_set_t cpus;
	size_t i;

	if (argc != 9)
		fail("usage: c-vchan-bench WORK SIDE DOMID PATH SIZE TOTAL RING CPU");
	work = argv[1];
	size = strtoull(argv[5], NULL, 0);
	total = strtoull(argv[6], NULL, 0);
	if (!size || size > BUFFER || total % size)
		fail("impossible sizes");
	rounds = total / size;
	CPU_ZERO(&cpus);
	CPU_SET(atoi(argv[8]), &cpus);
	sched_setaffinity(0, sizeof(cpus), &cpus);
	alarm(60);
	for (i = 0; i < sizeof(pattern); i++) {
		uint32_t x = i % PERIOD;

		pattern[i] = x * 167 ^ x >> 4 ^ x >> 9;
	}
	if (!strcmp(work, "ping") && !(times = calloc(rounds, sizeof(*times))))
		fail("no memory");

	if (!strcmp(work, "pair")) {
		other = server(atoi(argv[3]), argv[4], strtoull(argv[7], NULL, 0));
		channel = client(atoi(argv[3]), argv[4]);
	} else if (!strcmp(argv[2], "server")) {
		channel = server(atoi(argv[3]), argv[4], strtoull(argv[7], NULL, 0));
		wait_for_client(channel);
	} else {
		channel = client(atoi(argv[3]), argv[4]);
	}
	if (!other) {
		/* The reader is ready; the writer hears of it. */
		if (!strcmp(work, "read") || !strcmp(work, "recv") || !strcmp(work, "pong"))
			put_all(channel, &byte, 1);
		else
			get_all(channel, &byte, 1);
	}
	counts(before);
	cpu = cpu_time();
	began = now();
	if (!strcmp(work, "write") || !strcmp(work, "send"))
		do_write(work[0] == 's');
	else if (!strcmp(work, "read") || !strcmp(work, "recv"))
		do_read(work[2] == 'c');
	else if (!strcmp(work, "ping"))
		do_ping(rounds, times);
	else if (!strcmp(work, "pong"))
		do_pong(rounds);
	else if (other)
		do_pair(other, rounds);
	else
		fail("unknown work");
	took = now() - began;
	cpu = cpu_time() - cpu;
	counts(after);
	/* Nobody leaves before the reader has everything. */
	if (!strcmp(work, "read") || !strcmp(work, "recv") || !strcmp(work, "ping"))
		put_all(channel, &byte, 1);
	else if (!other)
		get_all(channel, &byte, 1);
	if (times)
		qsort(times, rounds, sizeof(*times), by_value);
	printf("ok ns=%" PRIu64 " bytes=%" PRIu64 " cpu=%" PRIu64 " notifies=%" PRIu64 " syscalls=%" PRIu64 " p50=%u p99=%u\n",
	       took, total, cpu, after[0] - before[0], after[1] - before[1],
	       times ? times[rounds / 2] : 0, times ? times[rounds * 99 / 100] : 0);
	libxenvchan_close(channel);
	if (other)
		libxenvchan_close(other);
	return 0;
}

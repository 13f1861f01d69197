// link: -lxenvchan -lxenstore -lxengnttab -lxenevtchn
/*
 * One end of a vchan, on the C library libxenvchan: what our own vchan is tested against.
 *
 *   c-vchan-peer server|client DOMID PATH [--send BYTES] [--recv BYTES] [--key KEY]
 *                [--read-min BYTES] [--write-min BYTES] [--chunk BYTES] [--timeout SECONDS]
 *
 * Both directions run at once. Each carries a stream in which the byte at every position is determined by a key; what
 * arrives is compared byte by byte. The end called server sends with KEY and expects KEY + 1, the client the other way
 * round. A client waits for its server to appear. The last line says how it went:
 *
 *   ok sent=N received=N
 *   FAILED sent=N received=N: REASON
 *
 * and the exit status is 0 or 1. "connected" is printed before the first byte moves.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <libxenvchan.h>

#define MAX_CHUNK (1 << 20)

static uint64_t sent, received;

static void fail(const char *format, ...)
{
	va_list args;

	printf("FAILED sent=%" PRIu64 " received=%" PRIu64 ": ", sent, received);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
	fflush(stdout);
	_exit(1);
}

/* Eight bytes of the stream: splitmix64 at a place of its own for each, so any position can be computed at once. */
static uint64_t stream_word(uint64_t key, uint64_t index)
{
	uint64_t z = key + (index + 1) * UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

static void stream_fill(uint64_t key, uint64_t position, unsigned char *out, size_t length)
{
	uint64_t word = 0;
	size_t i;

	for (i = 0; i < length; i++, position++) {
		if (i == 0 || position % 8 == 0)
			word = stream_word(key, position / 8);
		out[i] = word >> (8 * (position % 8));
	}
}

static uint64_t number(const char *name, const char *text)
{
	char *end;
	uint64_t value;

	errno = 0;
	value = strtoull(text, &end, 0);
	if (errno || end == text || *end)
		fail("%s: `%s` is no number", name, text);
	return value;
}

static void timed_out(int signal)
{
	static const char text[] = "FAILED: timed out\n";
	ssize_t ignored = write(STDOUT_FILENO, text, sizeof(text) - 1);

	(void)signal;
	(void)ignored;
	_exit(1);
}

static struct libxenvchan *connect_client(int domid, const char *path)
{
	const struct timespec pause = { .tv_nsec = 20 * 1000 * 1000 };
	struct libxenvchan *channel;

	/* The library reports a server that is not there yet like any other error. SIGALRM ends this. */
	while (!(channel = libxenvchan_client_init(NULL, domid, path)))
		nanosleep(&pause, NULL);
	return channel;
}

int main(int argc, char **argv)
{
	static unsigned char out[MAX_CHUNK], in[MAX_CHUNK], expected[MAX_CHUNK];
	uint64_t send_total = 0, recv_total = 0, key = 1, chunk = 4096;
	uint64_t read_min = 0, write_min = 0, timeout = 120;
	uint64_t send_key, recv_key;
	struct libxenvchan *channel;
	int server, domid, i;
	const char *path;

	if (argc < 4 || (strcmp(argv[1], "server") && strcmp(argv[1], "client")))
		fail("usage: c-vchan-peer server|client DOMID PATH [--send N] [--recv N] ...");
	server = !strcmp(argv[1], "server");
	domid = number("DOMID", argv[2]);
	path = argv[3];
	for (i = 4; i < argc; i += 2) {
		uint64_t value;

		if (i + 1 == argc)
			fail("%s has no value", argv[i]);
		value = number(argv[i], argv[i + 1]);
		if (!strcmp(argv[i], "--send"))
			send_total = value;
		else if (!strcmp(argv[i], "--recv"))
			recv_total = value;
		else if (!strcmp(argv[i], "--key"))
			key = value;
		else if (!strcmp(argv[i], "--read-min"))
			read_min = value;
		else if (!strcmp(argv[i], "--write-min"))
			write_min = value;
		else if (!strcmp(argv[i], "--chunk"))
			chunk = value;
		else if (!strcmp(argv[i], "--timeout"))
			timeout = value;
		else
			fail("unknown option %s", argv[i]);
	}
	if (chunk == 0 || chunk > MAX_CHUNK)
		fail("--chunk must lie between 1 and %d", MAX_CHUNK);
	send_key = server ? key : key + 1;
	recv_key = server ? key + 1 : key;

	signal(SIGALRM, timed_out);
	signal(SIGPIPE, SIG_IGN);
	alarm(timeout);

	if (server)
		channel = libxenvchan_server_init(NULL, domid, path, read_min, write_min);
	else
		channel = connect_client(domid, path);
	if (!channel)
		fail("libxenvchan_server_init: %s", strerror(errno));
	channel->blocking = 0;

	while (libxenvchan_is_open(channel) == 2)
		if (libxenvchan_wait(channel) < 0)
			fail("libxenvchan_wait: %s", strerror(errno));
	printf("connected\n");
	fflush(stdout);

	while (sent < send_total || received < recv_total) {
		int moved = 0;

		if (sent < send_total) {
			size_t length = send_total - sent < chunk ? send_total - sent : chunk;
			int count;

			stream_fill(send_key, sent, out, length);
			count = libxenvchan_write(channel, out, length);
			if (count < 0)
				fail("libxenvchan_write: the peer is gone");
			sent += count;
			moved |= count;
		}
		if (received < recv_total) {
			size_t length = recv_total - received < chunk ? recv_total - received : chunk;
			int count = libxenvchan_read(channel, in, length);

			if (count < 0)
				fail("libxenvchan_read: the peer is gone");
			stream_fill(recv_key, received, expected, count);
			if (memcmp(in, expected, count)) {
				int k = 0;

				while (in[k] == expected[k])
					k++;
				fail("byte %" PRIu64 " is %02x instead of %02x",
				     received + k, in[k], expected[k]);
			}
			received += count;
			moved |= count;
		}
		if (!moved && libxenvchan_wait(channel) < 0)
			fail("libxenvchan_wait: %s", strerror(errno));
	}

	/* What was sent stays readable for the peer after this. */
	libxenvchan_close(channel);
	printf("ok sent=%" PRIu64 " received=%" PRIu64 "\n", sent, received);
	return 0;
}

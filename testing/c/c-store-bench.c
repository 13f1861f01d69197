// link: -lxenstore -lpthread
/*
 * One operation of the store, many times, on libxenstore: the yardstick of `cargo xtask bench store`.
 *
 *   c-store-bench SOCKET OPERATION COUNT
 *
 * Prints `ok ns=N`, or `FAILED REASON`. testing/stored-preload/benches/store.rs does the same in the same way, and has
 * made the nodes.
 */
#define _GNU_SOURCE
#include <pthread.h>

#include <xenstore.h>

#include "bench.h"

#define VALUE "/bench/value"
#define TREE "/bench/tree"
#define EVENTS "/bench/events"
#define THREADS 64
#define CHANGES 500

static struct xs_handle *store;
static unsigned count;

static void *reads(void *unused)
{
	for (unsigned i = 0; i < count; i++) {
		unsigned length;
		char *value = xs_read(store, XBT_NULL, VALUE, &length);

		CHECK(value && length == 20);
		free(value);
	}
	return unused;
}

static void threads(void)
{
	pthread_t all[THREADS];

	start();
	for (unsigned i = 0; i < THREADS; i++)
		CHECK(pthread_create(&all[i], NULL, reads, NULL) == 0);
	for (unsigned i = 0; i < THREADS; i++)
		CHECK(pthread_join(all[i], NULL) == 0);
	stop();
}

static unsigned walk(const char *path)
{
	unsigned length, nodes = 1;
	char **names = xs_directory(store, XBT_NULL, path, &length);

	CHECK(names);
	for (unsigned i = 0; i < length; i++) {
		char *child;

		CHECK(asprintf(&child, "%s/%s", path, names[i]) > 0);
		nodes += walk(child);
		free(child);
	}
	free(names);
	return nodes;
}

static void events(unsigned most)
{
	for (unsigned i = 0; i < most; i++) {
		unsigned length;
		char **event = xs_read_watch(store, &length);

		CHECK(event && strncmp(event[XS_WATCH_PATH], EVENTS, strlen(EVENTS)) == 0);
		free(event);
	}
}

/* Nodes that this program changes, and their events. */
static void changes(void)
{
	start();
	for (unsigned round = 0; round < count; round++) {
		for (unsigned i = 0; i < CHANGES; i++) {
			char path[64];

			snprintf(path, sizeof(path), EVENTS "/%u", i);
			CHECK(xs_write(store, XBT_NULL, path, "x", 1));
		}
		events(CHANGES);
	}
	stop();
}

/* Events of nodes that another program changes, which has the clock. */
static void listen(void)
{
	puts("ready");
	for (unsigned round = 0; round < count; round++) {
		events(CHANGES);
		puts("got");
	}
}

int main(int argc, char **argv)
{
	const char *operation = argc == 4 ? argv[2] : "";

	errno = EINVAL;
	CHECK(argc == 4 && setenv("XENSTORED_PATH", argv[1], 1) == 0);
	setvbuf(stdout, NULL, _IOLBF, 1 << 12);
	count = strtoul(argv[3], NULL, 10);
	CHECK((store = xs_open(0)));
	if (strcmp(operation, "read") == 0) {
		start();
		reads(NULL);
		stop();
	} else if (strcmp(operation, "walk") == 0) {
		start();
		for (unsigned i = 0; i < count; i++)
			CHECK(walk(TREE) == 1011);
		stop();
	} else if (strcmp(operation, "threads") == 0) {
		threads();
	} else {
		CHECK(xs_watch(store, EVENTS, "bench"));
		events(1);
		if (strcmp(operation, "changes") == 0)
			changes();
		else if (strcmp(operation, "events") == 0)
			listen();
		else
			fail(operation);
	}
	return 0;
}

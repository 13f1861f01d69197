/* The clock of a benchmark with one figure, and its result: `ok ns=N`, or `FAILED REASON`. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CHECK(good) do { if (!(good)) fail(#good); } while (0)

static struct timespec began;

static void fail(const char *what)
{
	printf("FAILED %s: %s\n", what, strerror(errno));
	exit(1);
}

static void start(void)
{
	CHECK(clock_gettime(CLOCK_MONOTONIC, &began) == 0);
}

static void stop(void)
{
	struct timespec now;

	CHECK(clock_gettime(CLOCK_MONOTONIC, &now) == 0);
	printf("ok ns=%" PRId64 "\n",
	       (int64_t)(now.tv_sec - began.tv_sec) * 1000000000 + (now.tv_nsec - began.tv_nsec));
}

// link: -lxenstore
/*
 * A script of store operations on libxenstore: the yardstick of the conformance tests in testing/stored-preload.
 *
 *   c-store-script SOCKET...
 *
 * Opens a connection on each socket and prints `ready`. Then it carries out the operations of its standard input, one
 * in each line, and prints the answer to each in a line: `OK` and the value, or `E` and the errno. An operation is a
 * letter, the number of the connection, and fields; bytes are hexadecimal, `-` is no bytes. The slots of transactions
 * count from 1, and 0 is no transaction. An operation on a slot that is empty is answered with `none`.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <xenstore.h>

#define CONNECTIONS 8
#define SLOTS 16

static struct connection {
	struct xs_handle *handle;
	xs_transaction_t transactions[SLOTS];
	struct { char *path; unsigned serial; } watches[SLOTS];
} connections[CONNECTIONS];
static unsigned count, serials;

static void fail(const char *what)
{
	printf("FAILED %s\n", what);
	exit(1);
}

static char *field(void)
{
	char *word = strtok(NULL, " \n");

	if (!word)
		fail("a field is missing");
	return word;
}

static unsigned number(void)
{
	return strtoul(field(), NULL, 10);
}

/* The bytes of the next field, with a NUL behind them. */
static char *bytes(unsigned *length)
{
	char *word = field(), *out = word, *in = word;

	for (; in[0] != '-' && in[0] && in[1]; in += 2) {
		char digits[] = { in[0], in[1], 0 };
		*out++ = strtoul(digits, NULL, 16);
	}
	*out = 0;
	if (length)
		*length = out - word;
	return word;
}

static void print_bytes(const char *data, unsigned length)
{
	for (unsigned i = 0; i < length; i++)
		printf("%02x", (unsigned char)data[i]);
}

static void print_error(void)
{
	printf("E%d", errno);
}

static void print_done(bool done)
{
	if (done)
		printf("OK");
	else
		print_error();
}

static void print_value(struct connection *c, xs_transaction_t t, const char *path)
{
	unsigned length;
	char *value = xs_read(c->handle, t, path, &length);

	if (!value) {
		print_error();
		return;
	}
	printf("OK ");
	print_bytes(value, length);
	free(value);
}

static void print_permissions(const struct xs_permissions *all, unsigned length)
{
	for (unsigned i = 0; i < length; i++)
		printf("%s%c%u", i ? "," : "", "nrwb"[all[i].perms & 3], all[i].id);
}

static void set_permissions(struct connection *c, xs_transaction_t t, const char *path)
{
	struct xs_permissions all[16];
	unsigned length = 0;

	for (char *word = field(); *word && length < 16;) {
		all[length].perms = strchr("nrwb", *word) - "nrwb";
		all[length++].id = strtoul(word + 1, &word, 10);
		word += *word == ',';
	}
	print_done(xs_set_permissions(c->handle, t, path, all, length));
}

static int compare(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

/* A node and all below it: paths, values and permissions, in the order of the paths. */
static void print_tree(struct connection *c, xs_transaction_t t, const char *root)
{
	char **paths = malloc(sizeof(*paths));
	unsigned length = 1;

	paths[0] = strdup(root);
	for (unsigned at = 0; at < length; at++) {
		unsigned children;
		char **names = xs_directory(c->handle, t, paths[at], &children);

		/* In a transaction a list may name a node that the transaction knows to be missing. */
		if (!names && at && errno == ENOENT)
			paths[at][0] = 0;
		if (!names && at && (errno == EACCES || errno == ENOENT))
			continue;
		if (!names) {
			print_error();
			return;
		}
		paths = realloc(paths, (length + children) * sizeof(*paths));
		for (unsigned i = 0; i < children; i++)
			if (asprintf(&paths[length++], "%s/%s", strcmp(paths[at], "/") ? paths[at] : "", names[i]) < 0)
				fail("asprintf");
		free(names);
	}
	qsort(paths, length, sizeof(*paths), compare);
	printf("OK");
	for (unsigned at = 0; at < length; at++) {
		unsigned bytes, entries;

		if (!paths[at][0])
			continue;
		char *value = xs_read(c->handle, t, paths[at], &bytes);
		struct xs_permissions *all = xs_get_permissions(c->handle, t, paths[at], &entries);

		printf(" %s=", paths[at]);
		if (value)
			print_bytes(value, bytes);
		else
			printf("?");
		printf(":");
		if (all)
			print_permissions(all, entries);
		else
			printf("?");
		free(value);
		free(all);
		free(paths[at]);
	}
	free(paths);
}

static void print_directory(struct connection *c, xs_transaction_t t, const char *path)
{
	unsigned length;
	char **names = xs_directory(c->handle, t, path, &length);

	if (!names) {
		print_error();
		return;
	}
	printf("OK ");
	for (unsigned i = 0; i < length; i++)
		printf("%s%s", i ? "," : "", names[i]);
	free(names);
}

/* All events that the daemon has sent until now, of all connections: `connection.slot=path`. */
static void print_events(void)
{
	printf("OK");
	for (unsigned at = 0; at < count; at++) {
		struct connection *c = &connections[at];
		char **event;

		/* Events are sent in order with replies. */
		free(xs_get_domain_path(c->handle, 0));
		while ((event = xs_check_watch(c->handle))) {
			unsigned slot, serial;

			if (sscanf(event[XS_WATCH_TOKEN], "%u.%u", &slot, &serial) != 2 || slot >= SLOTS)
				fail("a token that was never set");
			if (c->watches[slot].path && c->watches[slot].serial == serial)
				printf(" %u.%u=%s", at, slot, event[XS_WATCH_PATH]);
			free(event);
		}
	}
}

static void watch(struct connection *c, unsigned slot)
{
	char *path = bytes(NULL), token[32];

	snprintf(token, sizeof(token), "%u.%u", slot, ++serials);
	if (!xs_watch(c->handle, path, token)) {
		print_error();
		return;
	}
	c->watches[slot].path = strdup(path);
	c->watches[slot].serial = serials;
	printf("OK");
}

static void unwatch(struct connection *c, unsigned slot)
{
	char token[32];

	if (!c->watches[slot].path) {
		printf("none");
		return;
	}
	snprintf(token, sizeof(token), "%u.%u", slot, c->watches[slot].serial);
	print_done(xs_unwatch(c->handle, c->watches[slot].path, token));
	free(c->watches[slot].path);
	c->watches[slot].path = NULL;
}

static void end(struct connection *c, unsigned slot, bool abort)
{
	xs_transaction_t t = c->transactions[slot];

	c->transactions[slot] = XBT_NULL;
	if (t == XBT_NULL)
		printf("none");
	else
		print_done(xs_transaction_end(c->handle, t, abort));
}

static void about_nodes(char operation, struct connection *c, xs_transaction_t t)
{
	unsigned length;
	char *path, *value;

	/* The first two are lists: their length, then as many fields or pairs of fields. */
	if (operation == 'r' || operation == 'w') {
		for (unsigned left = number(); left; left--) {
			path = bytes(NULL);
			if (operation == 'r') {
				print_value(c, t, path);
			} else {
				value = bytes(&length);
				print_done(xs_write(c->handle, t, path, value, length));
			}
			printf("%s", left > 1 ? ", " : "");
		}
		return;
	}
	path = bytes(NULL);
	switch (operation) {
	case 'm':
		print_done(xs_mkdir(c->handle, t, path));
		break;
	case 'x':
		print_done(xs_rm(c->handle, t, path));
		break;
	case 'd':
		print_directory(c, t, path);
		break;
	case 'g': {
		struct xs_permissions *all = xs_get_permissions(c->handle, t, path, &length);

		if (!all) {
			print_error();
			break;
		}
		printf("OK ");
		print_permissions(all, length);
		free(all);
		break;
	}
	case 'p':
		set_permissions(c, t, path);
		break;
	case 't':
		print_tree(c, t, path);
		break;
	default:
		fail("no such operation");
	}
}

static void about_domains(char operation, struct connection *c)
{
	unsigned domain = number(), other;
	char *path;

	switch (operation) {
	case 'D':
		path = xs_get_domain_path(c->handle, domain);
		if (!path) {
			print_error();
			break;
		}
		printf("OK %s", path);
		free(path);
		break;
	case 'I':
		/* The library has no other answer where the daemon refuses the question. */
		printf("OK %c", xs_is_domain_introduced(c->handle, domain) ? 'T' : 'F');
		break;
	case 'N':
		other = number();
		print_done(xs_introduce_domain(c->handle, domain, 1, other));
		break;
	case 'L':
		print_done(xs_release_domain(c->handle, domain));
		break;
	case 'S':
		other = number();
		print_done(xs_set_target(c->handle, domain, other));
		break;
	case 'Z':
		print_done(xs_resume_domain(c->handle, domain));
		break;
	default:
		fail("no such operation");
	}
}

static void carry_out(char *line)
{
	char operation = strtok(line, " \n")[0];
	struct connection *c;
	unsigned slot;

	if (operation == 'E') {
		print_events();
		return;
	}
	slot = number();
	if (slot >= count)
		fail("no such connection");
	c = &connections[slot];
	if (strchr("DINLSZ", operation)) {
		about_domains(operation, c);
		return;
	}
	slot = number();
	if (slot >= SLOTS)
		fail("no such slot");
	switch (operation) {
	case 'b':
		c->transactions[slot] = xs_transaction_start(c->handle);
		print_done(c->transactions[slot] != XBT_NULL);
		break;
	case 'c':
	case 'a':
		end(c, slot, operation == 'a');
		break;
	case 'o':
		watch(c, slot);
		break;
	case 'u':
		unwatch(c, slot);
		break;
	default:
		if (slot && c->transactions[slot] == XBT_NULL)
			printf("none");
		else
			about_nodes(operation, c, c->transactions[slot]);
	}
}

int main(int argc, char **argv)
{
	size_t room = 0;
	char *line = NULL;

	setvbuf(stdout, NULL, _IOLBF, 1 << 16);
	for (int i = 1; i < argc; i++, count++) {
		if (count == CONNECTIONS || setenv("XENSTORED_PATH", argv[i], 1))
			fail("too many connections");
		connections[count].handle = xs_open(0);
		if (!connections[count].handle)
			fail(strerror(errno));
	}
	puts("ready");
	while (getline(&line, &room, stdin) > 0) {
		carry_out(line);
		putchar('\n');
	}
	return 0;
}

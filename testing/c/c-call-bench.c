// link: -lxencall -lxenctrl -lxenforeignmemory -lxengnttab -lxenevtchn
/*
 * One operation of the hypervisor's, many times, on Xen's C libraries: the yardstick of `cargo xtask bench calls`.
 *
 *   c-call-bench OPERATION UNITS BATCH COUNT DOMID
 *
 * Does COUNT operations of UNITS pages, segments or ports each, BATCH of them by one call of the library, and prints
 * `ok ns=N`, or `FAILED REASON`. DOMID is an HVM guest. benches/src/calls.rs does the same in the same way.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include <xencall.h>
#include <xenctrl.h>
#include <xenevtchn.h>
#include <xenforeignmemory.h>
#include <xengnttab.h>
#include <xen/version.h>

#include "bench.h"

#define MOST 256
#define SEGMENT 64

static unsigned units, batch, domid;
static uint64_t count;

static void hypercall(void)
{
	xencall_handle *xen = xencall_open(NULL, 0);

	CHECK(xen);
	start();
	for (uint64_t i = 0; i < count; i++)
		CHECK(xencall2(xen, __HYPERVISOR_xen_version, XENVER_pagesize, 0) > 0);
	stop();
	xencall_close(xen);
}

static void info(void)
{
	xc_interface *xen = xc_interface_open(NULL, NULL, 0);

	CHECK(xen);
	start();
	for (uint64_t i = 0; i < count; i++) {
#if XEN_DOMCTL_INTERFACE_VERSION > 0x15
		xc_domaininfo_t one;
		CHECK(xc_domain_getinfo_single(xen, domid, &one) == 0);
		CHECK(one.domain == domid);
#else
		xc_dominfo_t one;
		CHECK(xc_domain_getinfo(xen, domid, 1, &one) == 1);
		CHECK(one.domid == domid);
#endif
	}
	stop();
	xc_interface_close(xen);
}

static void map(void)
{
	xenforeignmemory_handle *memory = xenforeignmemory_open(NULL, 0);
	xen_pfn_t frames[MOST];
	int errors[MOST];
	volatile unsigned char sum = 0;

	CHECK(memory);
	for (unsigned i = 0; i < units; i++)
		frames[i] = 0x100 + i; /* from 1 MiB on there is memory only */
	start();
	for (uint64_t i = 0; i < count; i++)
		for (unsigned at = 0; at < units; at += batch) {
			volatile unsigned char *pages =
				xenforeignmemory_map(memory, domid, PROT_READ, batch, frames + at, errors);
			CHECK(pages);
			for (unsigned page = 0; page < batch; page++)
				sum += pages[page * 4096];
			CHECK(xenforeignmemory_unmap(memory, (void *)pages, batch) == 0);
		}
	stop();
	xenforeignmemory_close(memory);
}

static void grant_map(void)
{
	xengntshr_handle *sharer = xengntshr_open(NULL, 0);
	xengnttab_handle *table = xengnttab_open(NULL, 0);
	uint32_t refs[MOST];
	volatile unsigned char sum = 0;
	void *shared;

	CHECK(sharer && table);
	shared = xengntshr_share_pages(sharer, 0, units, refs, 1);
	CHECK(shared);
	start();
	for (uint64_t i = 0; i < count; i++)
		for (unsigned at = 0; at < units; at += batch) {
			volatile unsigned char *pages =
				xengnttab_map_domain_grant_refs(table, batch, 0, refs + at, PROT_READ);
			CHECK(pages);
			for (unsigned page = 0; page < batch; page++)
				sum += pages[page * 4096];
			CHECK(xengnttab_unmap(table, (void *)pages, batch) == 0);
		}
	stop();
	CHECK(xengntshr_unshare(sharer, shared, units) == 0);
	xengnttab_close(table);
	xengntshr_close(sharer);
}

static void grant_copy(void)
{
	xengntshr_handle *sharer = xengntshr_open(NULL, 0);
	xengnttab_handle *table = xengnttab_open(NULL, 0);
	static unsigned char buffer[MOST * SEGMENT];
	xengnttab_grant_copy_segment_t segments[MOST];
	uint32_t ref;
	void *shared;

	CHECK(sharer && table);
	shared = xengntshr_share_pages(sharer, 0, 1, &ref, 1);
	CHECK(shared);
	memset(segments, 0, sizeof(segments));
	for (unsigned s = 0; s < units; s++) {
		segments[s].source.foreign.ref = ref;
		segments[s].source.foreign.offset = s * SEGMENT % 4096;
		segments[s].source.foreign.domid = 0;
		segments[s].dest.virt = buffer + s * SEGMENT;
		segments[s].len = SEGMENT;
		segments[s].flags = GNTCOPY_source_gref;
	}
	start();
	for (uint64_t i = 0; i < count; i++)
		for (unsigned at = 0; at < units; at += batch) {
			CHECK(xengnttab_grant_copy(table, batch, segments + at) == 0);
			for (unsigned s = at; s < at + batch; s++)
				CHECK(segments[s].status == GNTST_okay);
		}
	stop();
	CHECK(xengntshr_unshare(sharer, shared, 1) == 0);
	xengnttab_close(table);
	xengntshr_close(sharer);
}

static void events(int wait)
{
	xenevtchn_handle *sender = xenevtchn_open(NULL, 0), *receiver = xenevtchn_open(NULL, 0);
	xenevtchn_port_or_error_t from[MOST], to[MOST];

	CHECK(sender && receiver);
	for (unsigned i = 0; i < units; i++) {
		CHECK((to[i] = xenevtchn_bind_unbound_port(receiver, 0)) >= 0);
		CHECK((from[i] = xenevtchn_bind_interdomain(sender, 0, to[i])) >= 0);
	}
	/* A port may have an event from its binding. */
	usleep(1000);
	CHECK(fcntl(xenevtchn_fd(receiver), F_SETFL, O_NONBLOCK) == 0);
	for (xenevtchn_port_or_error_t port; (port = xenevtchn_pending(receiver)) >= 0;)
		CHECK(xenevtchn_unmask(receiver, port) == 0);
	CHECK(fcntl(xenevtchn_fd(receiver), F_SETFL, 0) == 0);
	start();
	for (uint64_t i = 0; i < count; i++) {
		for (unsigned port = 0; port < units; port++)
			CHECK(xenevtchn_notify(sender, from[port]) == 0);
		for (unsigned seen = 0; wait && seen < units; seen++) {
			xenevtchn_port_or_error_t port = xenevtchn_pending(receiver);
			CHECK(port >= 0);
			CHECK(xenevtchn_unmask(receiver, port) == 0);
		}
	}
	stop();
	xenevtchn_close(sender);
	xenevtchn_close(receiver);
}

int main(int argc, char **argv)
{
	const char *operation = argc == 6 ? argv[1] : "";

	if (argc == 6) {
		units = strtoul(argv[2], NULL, 10);
		batch = strtoul(argv[3], NULL, 10);
		count = strtoull(argv[4], NULL, 10);
		domid = strtoul(argv[5], NULL, 10);
	}
	errno = EINVAL;
	CHECK(units >= 1 && units <= MOST && batch >= 1 && units % batch == 0);
	if (strcmp(operation, "hypercall") == 0)
		hypercall();
	else if (strcmp(operation, "info") == 0)
		info();
	else if (strcmp(operation, "map") == 0)
		map();
	else if (strcmp(operation, "grant-map") == 0)
		grant_map();
	else if (strcmp(operation, "grant-copy") == 0)
		grant_copy();
	else if (strcmp(operation, "notify") == 0)
		events(0);
	else if (strcmp(operation, "events") == 0)
		events(1);
	else
		fail(operation);
	return 0;
}

//! vchan: what the other side finds in the store and in the control page, whichever implementation
//! it is.
//!
//! Here the server is the ends' `a` and the client their `b`. The client's domain also maps the
//! control page itself and looks, or lies, as a peer of any make could. Peers of C are in other
//! tests; these rules state what both hosts show them.

use anyhow::{Context as _, Result, bail, ensure};
use xen_gnttab::PageAccess;
use xen_sys::{DomId, GrantRef};

use crate::handles::{Mapped, Vchan};
use crate::{Ends, Rule, soon};

/// The layout of `struct vchan_interface`.
const RIGHT_PROD: usize = 12;
const LEFT_PROD: usize = 4;
const LEFT_ORDER: usize = 16;
const RIGHT_ORDER: usize = 18;
const CLI_LIVE: usize = 20;
const SRV_LIVE: usize = 21;
const CLI_NOTIFY: usize = 22;
const GRANTS: usize = 24;
const LARGE_RING: usize = 2048;

/// Of the notify bytes: notify when something was written, or read.
const WRITE: u8 = 1;

const HEADER: &str = "xen/include/public/io/libxenvchan.h: struct vchan_interface";

pub(crate) const RULES: &[Rule] = &[
    Rule {
        name: "a server publishes ring-ref and event-channel, for the peer to read and nobody else",
        source: "libxenvchan init.c: init_xs_srv",
        check: published,
    },
    Rule {
        name: "the smallest rings are in the control page, of orders 10 and 11",
        source: HEADER,
        check: in_page,
    },
    Rule {
        name: "larger rings have their order and are listed as grants, the left one first",
        source: HEADER,
        check: listed,
    },
    Rule {
        name: "before a client comes the server is alive and the client is 2",
        source: "libxenvchan init.c: libxenvchan_server_init",
        check: waiting,
    },
    Rule {
        name: "a client is 1 or more, and both sides see each other",
        source: "libxenvchan init.c: libxenvchan_client_init; io.c: libxenvchan_is_open",
        check: connected,
    },
    Rule {
        name: "what the server writes is in the right ring before its producer counts it",
        source: HEADER,
        check: right_ring,
    },
    Rule {
        name: "bytes come in order, both ways, through rings far smaller than they are many",
        source: "libxenvchan io.c: do_send, do_recv",
        check: in_order,
    },
    Rule {
        name: "an end that finds the ring empty requests a notification, and the writer takes the request and sends it",
        source: "libxenvchan io.c: request_notify, send_notify",
        check: notified,
    },
    Rule {
        name: "a client that leaves is 0, and what it wrote before can still be read",
        source: "libxenvchan io.c: libxenvchan_close, libxenvchan_is_open",
        check: client_leaves,
    },
    Rule {
        name: "a server that leaves is 0, its nodes are gone, and what it wrote can still be read",
        source: "libxenvchan io.c: libxenvchan_close; xen-vchan: Server",
        check: server_leaves,
    },
    Rule {
        name: "a client refuses orders that cannot be",
        source: "libxenvchan init.c: init_gnt_cli, \"invalid ring sizes\"",
        check: odd_orders,
    },
    Rule {
        name: "a client refuses a server that is not there",
        source: "libxenvchan init.c: libxenvchan_client_init",
        check: nobody,
    },
    Rule {
        name: "a producer beyond the ring ends the channel, and nothing of it is believed",
        source: "xen-vchan: Violation; libxenvchan io.c: raw_get_data_ready",
        check: liar,
    },
];

/// Where the server is, below its home: where it may write, and without a folder in between where
/// there is none.
fn path(ends: &Ends) -> &'static str {
    if ends.a.id == DomId::DOM0 {
        "rules-vchan"
    } else {
        "data/rules-vchan"
    }
}

/// A server of `a`, and its control page as the domain of `b` sees it.
fn server(ends: &Ends, left: usize, right: usize) -> Result<(Vchan, Mapped)> {
    let server = ends.a.listen(ends.b.id, path(ends), left, right)?;
    let page = ends
        .b
        .map(ends.a.id, &[ring_ref(ends)?], PageAccess::ReadWrite)?;
    Ok((server, page))
}

fn place(ends: &Ends) -> String {
    format!("/local/domain/{}/{}", ends.a.id, path(ends))
}

fn node(ends: &Ends, name: &str) -> String {
    format!("{}/{name}", place(ends))
}

fn number(ends: &Ends, name: &str) -> Result<u32> {
    let value = ends.b.store_read(&node(ends, name))?;
    let text = String::from_utf8(value)?;
    text.parse().with_context(|| format!("{name} is {text:?}"))
}

fn ring_ref(ends: &Ends) -> Result<GrantRef> {
    Ok(GrantRef::new(number(ends, "ring-ref")?))
}

/// A client of the server there is. It has its part of the handshake behind it; a server of this
/// workspace takes notice in its own time.
fn client(ends: &Ends) -> Result<Vchan> {
    Ok(ends.b.connect(ends.a.id, &place(ends), None)?)
}

fn word(page: &Mapped, at: usize) -> Result<u32> {
    let bytes = page.region().copy_out(at, 4)?;
    let bytes: [u8; 4] = bytes.try_into().map_err(|_| anyhow::anyhow!("no word"))?;
    Ok(u32::from_le_bytes(bytes))
}

fn order(page: &Mapped, at: usize) -> Result<u16> {
    Ok((word(page, at)? & 0xffff) as u16)
}

fn published(ends: &Ends) -> Result<()> {
    let (_server, _page) = server(ends, 0, 0)?;
    ensure!(number(ends, "event-channel")? > 0, "no port");
    for name in ["ring-ref", "event-channel"] {
        let perms = ends.b.store_perms(&node(ends, name))?;
        let (owner, reader) = (ends.a.id, ends.b.id);
        // Where both ends are one domain, the owner is the peer and needs no entry.
        let expected = [format!("n{owner} r{reader}"), format!("n{owner}")];
        ensure!(
            expected[0] == perms || (owner == reader && expected[1] == perms),
            "{name} has the rights {perms}"
        );
    }
    Ok(())
}

fn in_page(ends: &Ends) -> Result<()> {
    let (server, page) = server(ends, 1024, 2048)?;
    let orders = (order(&page, LEFT_ORDER)?, order(&page, RIGHT_ORDER)?);
    ensure!(orders == (10, 11), "orders {orders:?}");
    let client = client(ends)?;
    server.wait_connected(soon())?;
    ensure!(client.peer()? == "connected");
    Ok(())
}

fn listed(ends: &Ends) -> Result<()> {
    let (server, page) = server(ends, 4096, 16384)?;
    let orders = (order(&page, LEFT_ORDER)?, order(&page, RIGHT_ORDER)?);
    ensure!(orders == (12, 14), "orders {orders:?}");
    let refs = (0..5)
        .map(|n| Ok(GrantRef::new(word(&page, GRANTS + 4 * n)?)))
        .collect::<Result<Vec<_>>>()?;
    let rings = ends.b.map(ends.a.id, &refs, PageAccess::ReadWrite)?;
    server.write(b"first", soon())?;
    // The right ring begins behind the left one's page.
    let seen = rings.region().copy_out(4096, 5)?;
    ensure!(seen == b"first", "the right ring has {seen:?}");
    Ok(())
}

fn waiting(ends: &Ends) -> Result<()> {
    let (server, page) = server(ends, 0, 0)?;
    let live = page.region().copy_out(CLI_LIVE, 2)?;
    ensure!(live == [2, 1], "client and server are {live:?}");
    ensure!(server.peer()? == "waiting", "the server does not wait");
    Ok(())
}

fn connected(ends: &Ends) -> Result<()> {
    let (server, page) = server(ends, 0, 0)?;
    let client = client(ends)?;
    let live = page.region().load_u8(CLI_LIVE)?;
    ensure!(live == 1 || live == 3, "the client is {live}");
    server.wait_connected(soon())?;
    ensure!(server.peer()? == "connected" && client.peer()? == "connected");
    Ok(())
}

fn right_ring(ends: &Ends) -> Result<()> {
    // The left ring has pages of its own, so the right one is the large one in the control page.
    let (server, page) = server(ends, 4096, 2048)?;
    let before = word(&page, RIGHT_PROD)?;
    server.write(b"hello", soon())?;
    let after = word(&page, RIGHT_PROD)?;
    ensure!(
        after.wrapping_sub(before) == 5,
        "from {before} to {after} for 5 bytes"
    );
    let at = LARGE_RING + before as usize % 2048;
    let seen = page.region().copy_out(at, 5)?;
    ensure!(seen == b"hello", "the ring has {seen:?}");
    Ok(())
}

fn in_order(ends: &Ends) -> Result<()> {
    let (server, _page) = server(ends, 0, 0)?;
    let client = client(ends)?;
    server.wait_connected(soon())?;
    let mut sent = 0u32;
    for (from, to) in [(&server, &client), (&client, &server)] {
        for length in [1, 7, 100, 1000, 513, 1024, 3, 999] {
            let bytes: Vec<u8> = (0..length)
                .map(|n| (sent.wrapping_add(n) % 251) as u8)
                .collect();
            let count = from.write(&bytes, soon())?;
            ensure!(count == bytes.len(), "{count} of {length} bytes written");
            let mut got = Vec::new();
            while got.len() < bytes.len() {
                got.extend(to.read(bytes.len() - got.len(), soon())?);
            }
            ensure!(got == bytes, "other bytes than were sent");
            sent += length;
        }
    }
    Ok(())
}

fn notified(ends: &Ends) -> Result<()> {
    let (server, page) = server(ends, 0, 0)?;
    let client = client(ends)?;
    server.wait_connected(soon())?;
    // The result of connecting does not matter.
    while server.wait(ends.settled())? {}
    match server.try_read(1) {
        Err(refusal) if refusal.kind == "WouldBlock" => {}
        other => bail!("reading an empty ring: {other:?}"),
    }
    // The server's requests are in the client's notify byte.
    let asked = page.region().load_u8(CLI_NOTIFY)?;
    ensure!(asked & WRITE != 0, "the server asked for {asked:#x}");
    client.write(b"x", soon())?;
    let left = page.region().load_u8(CLI_NOTIFY)?;
    ensure!(left & WRITE == 0, "the request was not taken: {left:#x}");
    ensure!(server.wait(soon())?, "the server was not notified");
    ensure!(server.try_read(9)? == b"x");
    Ok(())
}

fn client_leaves(ends: &Ends) -> Result<()> {
    let (server, page) = server(ends, 0, 0)?;
    let client = client(ends)?;
    server.wait_connected(soon())?;
    client.write(b"last words", soon())?;
    drop(client);
    let live = page.region().load_u8(CLI_LIVE)?;
    ensure!(live == 0, "the client is {live}");
    let got = server.read(100, soon())?;
    ensure!(got == b"last words", "{got:?}");
    match server.read(100, soon()) {
        Ok(bytes) if bytes.is_empty() => {}
        Err(refusal) if refusal.kind == "Closed" => {}
        other => bail!("after the end: {other:?}"),
    }
    ensure!(server.peer()? == "gone");
    // Another one may come, and finds nothing of the first.
    server.next_client()?;
    let again = ends.b.connect(ends.a.id, &place(ends), None)?;
    server.wait_connected(soon())?;
    again.write(b"anew", soon())?;
    let got = server.read(100, soon())?;
    ensure!(got == b"anew", "the second client's bytes are {got:?}");
    Ok(())
}

fn server_leaves(ends: &Ends) -> Result<()> {
    let (server, page) = server(ends, 0, 0)?;
    let client = client(ends)?;
    server.wait_connected(soon())?;
    server.write(b"last words", soon())?;
    drop(server);
    let live = page.region().load_u8(SRV_LIVE)?;
    ensure!(live == 0, "the server is {live}");
    match ends.b.store_read(&node(ends, "ring-ref")) {
        Err(refusal) if matches!(refusal.errno, None | Some(libc::ENOENT)) => {}
        other => bail!("ring-ref afterwards: {other:?}"),
    }
    let got = client.read(100, soon())?;
    ensure!(got == b"last words", "{got:?}");
    match client.read(100, soon()) {
        Ok(bytes) if bytes.is_empty() => {}
        Err(refusal) if refusal.kind == "Closed" => {}
        other => bail!("after the end: {other:?}"),
    }
    Ok(())
}

fn odd_orders(ends: &Ends) -> Result<()> {
    // Too small, too large, and the two in the page exchanged or doubled.
    for (left, right) in [
        (9u8, 11u8),
        (10, 25),
        (10, 10),
        (11, 11),
        (0, 0),
        (0, 12),
        (31, 12),
    ] {
        let (_server, page) = server(ends, 0, 0)?;
        page.region().copy_in(LEFT_ORDER, &[left, 0, right, 0])?;
        match ends.b.connect(ends.a.id, &place(ends), None) {
            Err(refusal) if refusal.kind.starts_with("Peer") => {}
            // A page that was not written to yet.
            Err(refusal) if (left, right) == (0, 0) && refusal.kind.starts_with("NoServer") => {}
            other => bail!("a client of orders {left} and {right}: {other:?}"),
        }
    }
    Ok(())
}

fn nobody(ends: &Ends) -> Result<()> {
    match ends.b.connect(ends.a.id, "data/rules-nobody", None) {
        Err(_) => Ok(()),
        Ok(_) => bail!("connected to nobody"),
    }
}

fn liar(ends: &Ends) -> Result<()> {
    let (server, page) = server(ends, 0, 0)?;
    let _client = client(ends)?;
    server.wait_connected(soon())?;
    page.region()
        .copy_in(LEFT_PROD, &0x7fff_ffff_u32.to_le_bytes())?;
    for _ in 0..2 {
        match server.try_read(100) {
            Err(refusal) if refusal.kind.starts_with("Peer") => {}
            other => bail!("reading from a liar: {other:?}"),
        }
    }
    Ok(())
}

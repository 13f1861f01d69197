//! Grants.

use anyhow::{Context as _, Result, ensure};
use xen_gnttab::{Access, UnmapNotify};
use xen_sys::{GrantRef, PAGE_SIZE, Port};

use crate::handles::{BoundPort, Mapped, Shared, View};
use crate::{NOBODY, Rule, World, refused, soon};

pub(crate) const RULES: &[Rule] = &[
    Rule {
        name: "shared pages are zeroed, with a reference each",
        source: "linux drivers/xen/gntalloc.c: add_grefs, __GFP_ZERO",
        check: zeroed,
    },
    Rule {
        name: "both ends see the same bytes, over page boundaries",
        source: "xen/common/grant_table.c: map_grant_ref",
        check: same_bytes,
    },
    Rule {
        name: "references are mapped in the order given, and may repeat",
        source: "linux drivers/xen/gntdev.c: gntdev_mmap",
        check: any_order,
    },
    Rule {
        name: "a reference is mapped as often as its grantee likes",
        source: "xen/common/grant_table.c: map_grant_ref",
        check: mapped_twice,
    },
    Rule {
        name: "a reference that was not granted is not mapped",
        source: "xen/common/grant_table.c: map_grant_ref, GNTST_bad_gntref",
        check: not_granted,
    },
    Rule {
        name: "a reference granted to another domain is not mapped",
        source: "xen/common/grant_table.c: _set_status",
        check: other_grantee,
    },
    Rule {
        name: "no page of a domain that is not there is mapped",
        source: "xen/common/grant_table.c: map_grant_ref, GNTST_bad_domain",
        check: no_domain,
    },
    Rule {
        name: "a grant for reading is mapped for reading only",
        source: "xen/common/grant_table.c: _set_status, GTF_readonly",
        check: readonly_grant,
    },
    Rule {
        name: "a mapping is made whole or not at all",
        source: "linux drivers/xen/gntdev.c: gntdev_map_grant_pages",
        check: all_or_none,
    },
    Rule {
        name: "no pages, or too many, are refused before anything is done",
        source: "linux drivers/xen/gntdev.c: gntdev_ioctl_map_grant_ref",
        check: counts,
    },
    Rule {
        name: "a domain shares no more pages than the driver's limit",
        source: "linux drivers/xen/gntalloc.c: gntalloc_ioctl_alloc",
        check: limit,
    },
    Rule {
        name: "pages given up while mapped stay until they are unmapped",
        source: "linux drivers/xen/grant-table.c: gnttab_end_foreign_access_ref",
        check: given_up_while_mapped,
    },
    Rule {
        name: "a mapping's end clears the byte and sends the event",
        source: "linux drivers/xen/gntdev.c: gntdev_put_map",
        check: map_notify,
    },
    Rule {
        name: "a share's end clears the byte and sends the event, though it is still mapped",
        source: "linux drivers/xen/gntalloc.c: __del_gref",
        check: share_notify,
    },
    Rule {
        name: "each page of a share has a notification of its own",
        source: "linux drivers/xen/gntalloc.c: gntalloc_ioctl_unmap_notify",
        check: share_notify_per_page,
    },
    Rule {
        name: "either half of a notification stands alone, and the last setting counts",
        source: "linux drivers/xen/gntdev.c: gntdev_ioctl_notify",
        check: halves,
    },
    Rule {
        name: "a notification needs a port that is bound",
        source: "linux drivers/xen/events/events_base.c: evtchn_get",
        check: notify_needs_a_port,
    },
    Rule {
        name: "a notification's port stays until it is used",
        source: "linux drivers/xen/events/events_base.c: evtchn_get, evtchn_put",
        check: notify_holds_its_port,
    },
    Rule {
        name: "no byte is cleared in pages mapped for reading",
        source: "linux drivers/xen/gntdev.c: gntdev_ioctl_notify",
        check: no_clear_readonly,
    },
    Rule {
        name: "pages given back can be had again",
        source: "linux drivers/xen/gntalloc.c: do_cleanup",
        check: again,
    },
];

use Access::{ReadOnly, ReadWrite};

fn shared(w: &World, pages: usize) -> Result<Shared> {
    Ok(w.a.share(w.b.id, pages, ReadWrite)?)
}

fn mapped(w: &World, refs: &[GrantRef]) -> Result<Mapped> {
    Ok(w.b.map(w.a.id, refs, ReadWrite)?)
}

fn bytes(r: &View, offset: usize, len: usize) -> Result<Vec<u8>> {
    Ok(r.copy_out(offset, len)?)
}

/// Two ends of a channel: the one that hears and the one that a notification is sent through.
fn channel(w: &World, from_a: bool) -> Result<(BoundPort, BoundPort)> {
    let (hears, sends) = if from_a { (&w.b, &w.a) } else { (&w.a, &w.b) };
    let (h, s) = (hears.channels()?, sends.channels()?);
    let h = h.bind_unbound(sends.id)?;
    let s = s.bind_interdomain(hears.id, h.port())?;
    Ok((h, s))
}

fn heard(port: &BoundPort) -> Result<()> {
    let got = port.channels().wait(soon())?;
    ensure!(
        got == Some(port.port()),
        "no event at port {}: {got:?}",
        port.port()
    );
    Ok(port.unmask()?)
}

fn not_heard(w: &World, port: &BoundPort) -> Result<()> {
    ensure!(
        port.channels().wait(w.settled())?.is_none(),
        "an event at port {}",
        port.port()
    );
    Ok(())
}

fn both(at: usize, port: &BoundPort) -> UnmapNotify {
    UnmapNotify {
        clear_byte: Some(at),
        event: Some(port.port()),
    }
}

fn zeroed(w: &World) -> Result<()> {
    for _ in 0..2 {
        let s = shared(w, 3)?;
        ensure!(
            s.refs().len() == 3 && s.region().len() == 3 * PAGE_SIZE,
            "not three pages"
        );
        ensure!(
            bytes(s.region(), 0, 3 * PAGE_SIZE)?.iter().all(|&b| b == 0),
            "not zeroed"
        );
        // The next round must not see this.
        s.region().fill(0, 3 * PAGE_SIZE, 0xAA)?;
    }
    Ok(())
}

fn same_bytes(w: &World) -> Result<()> {
    let s = shared(w, 3)?;
    let m = mapped(w, s.refs())?;
    let text: Vec<u8> = (0..2 * PAGE_SIZE).map(|i| (i % 251) as u8).collect();
    s.region().copy_in(100, &text)?;
    ensure!(
        bytes(m.region(), 100, text.len())? == text,
        "the mapping shows other bytes"
    );
    m.region().copy_in(PAGE_SIZE - 3, b"across")?;
    ensure!(
        bytes(s.region(), PAGE_SIZE - 3, 6)? == b"across",
        "the share shows other bytes"
    );
    Ok(())
}

fn any_order(w: &World) -> Result<()> {
    let s = shared(w, 3)?;
    for page in 0..3 {
        s.region().copy_in(page * PAGE_SIZE, &[10 + page as u8])?;
    }
    let order = [2, 0, 1, 0];
    let refs: Vec<GrantRef> = order.iter().map(|&p| s.refs()[p]).collect();
    let m = mapped(w, &refs)?;
    for (i, page) in order.iter().enumerate() {
        let got = m.region().load_u8(i * PAGE_SIZE)?;
        ensure!(got == 10 + *page as u8, "page {i} shows {got}");
    }
    Ok(())
}

fn mapped_twice(w: &World) -> Result<()> {
    let s = shared(w, 1)?;
    let (one, two) = (mapped(w, s.refs())?, mapped(w, s.refs())?);
    one.region().copy_in(0, &[1])?;
    ensure!(two.region().load_u8(0)? == 1, "two mappings differ");
    drop(one);
    ensure!(
        two.region().load_u8(0)? == 1,
        "unmapping one changed the other"
    );
    two.region().copy_in(0, &[2])?;
    ensure!(s.region().load_u8(0)? == 2, "the second mapping is cut off");
    Ok(())
}

fn not_granted(w: &World) -> Result<()> {
    let m = w.b.map(w.a.id, &[GrantRef::new(u32::MAX)], ReadOnly);
    refused(m, libc::EINVAL, "mapping a reference that was not granted")
}

fn other_grantee(w: &World) -> Result<()> {
    let s = w.a.share(NOBODY, 1, ReadWrite)?;
    let m = w.b.map(w.a.id, s.refs(), ReadOnly);
    refused(m, libc::EINVAL, "mapping a page granted to another domain")
}

fn no_domain(w: &World) -> Result<()> {
    let m = w.b.map(NOBODY, &[GrantRef::new(8)], ReadOnly);
    refused(
        m,
        libc::EINVAL,
        "mapping a page of a domain that is not there",
    )
}

fn readonly_grant(w: &World) -> Result<()> {
    let s = w.a.share(w.b.id, 1, ReadOnly)?;
    s.region().copy_in(0, &[7])?;
    let m = w.b.map(w.a.id, s.refs(), ReadWrite);
    refused(
        m,
        libc::EINVAL,
        "mapping a page for writing that was granted for reading",
    )?;
    let m = w.b.map(w.a.id, s.refs(), ReadOnly)?;
    ensure!(
        m.region().load_u8(0)? == 7,
        "the mapping shows another byte"
    );
    ensure!(
        m.region().copy_in(0, &[8]).is_err(),
        "the region can be written to"
    );
    Ok(())
}

fn all_or_none(w: &World) -> Result<()> {
    let s = shared(w, 1)?;
    let refs = [s.refs()[0], GrantRef::new(u32::MAX)];
    let m = w.b.map(w.a.id, &refs, ReadWrite);
    refused(m, libc::EINVAL, "mapping a good reference with a bad one")?;
    // What was mapped of it is not mapped any more: the page can be given up and is gone.
    mapped(w, s.refs())?;
    Ok(())
}

fn counts(w: &World) -> Result<()> {
    let none = w.a.share(w.b.id, 0, ReadWrite);
    ensure!(
        none.as_ref().is_err_and(|e| e.kind == "Invalid"),
        "sharing no pages: {none:?}"
    );
    let none = w.b.map(w.a.id, &[], ReadWrite);
    ensure!(
        none.as_ref().is_err_and(|e| e.kind == "Invalid"),
        "mapping no pages: {none:?}"
    );
    let all = w.a.share(w.b.id, usize::MAX, ReadWrite);
    ensure!(
        all.as_ref().is_err_and(|e| e.kind == "Invalid"),
        "sharing everything: {all:?}"
    );
    Ok(())
}

fn limit(w: &World) -> Result<()> {
    let all = w.a.share(w.b.id, w.shared_pages + 1, ReadWrite);
    refused(all, libc::ENOSPC, "sharing more than the limit")?;
    // It is a limit, not a fault: less still goes.
    shared(w, 1)?;
    Ok(())
}

fn given_up_while_mapped(w: &World) -> Result<()> {
    let s = shared(w, 1)?;
    let m = mapped(w, s.refs())?;
    s.region().copy_in(0, b"still here")?;
    drop(s);
    ensure!(
        bytes(m.region(), 0, 10)? == b"still here",
        "the page is gone"
    );
    m.region().copy_in(0, b"mine alone")?;
    let next = shared(w, 4)?;
    ensure!(
        bytes(next.region(), 0, 4 * PAGE_SIZE)?
            .iter()
            .all(|&b| b == 0),
        "reused"
    );
    next.region().fill(0, 4 * PAGE_SIZE, 0xEE)?;
    ensure!(
        bytes(m.region(), 0, 10)? == b"mine alone",
        "the page was given out again"
    );
    Ok(())
}

fn map_notify(w: &World) -> Result<()> {
    let s = shared(w, 2)?;
    s.region().fill(0, 2 * PAGE_SIZE, 9)?;
    let (hears, sends) = channel(w, false)?;
    let m = mapped(w, s.refs())?;
    let at = PAGE_SIZE + 5;
    m.set_unmap_notify(both(at, &sends))?;
    let last = m.region().slice(at, 1)?;
    drop(m);
    not_heard(w, &hears).context("while a slice is left")?;
    ensure!(s.region().load_u8(at)? == 9, "cleared too early");
    drop(last);
    heard(&hears)?;
    let around = bytes(s.region(), at - 1, 3)?;
    ensure!(around == [9, 0, 9], "cleared {around:?}");
    ensure!(s.region().load_u8(5)? == 9, "cleared in the wrong page");
    Ok(())
}

fn share_notify(w: &World) -> Result<()> {
    let s = shared(w, 1)?;
    s.region().fill(0, PAGE_SIZE, 9)?;
    let (hears, sends) = channel(w, true)?;
    let m = mapped(w, s.refs())?;
    s.set_unmap_notify(both(6, &sends))?;
    drop(s);
    heard(&hears)?;
    let around = bytes(m.region(), 5, 3)?;
    ensure!(around == [9, 0, 9], "cleared {around:?}");
    Ok(())
}

fn share_notify_per_page(w: &World) -> Result<()> {
    let s = shared(w, 2)?;
    s.region().fill(0, 2 * PAGE_SIZE, 9)?;
    let m = mapped(w, s.refs())?;
    for at in [3, PAGE_SIZE + 4] {
        s.set_unmap_notify(UnmapNotify {
            clear_byte: Some(at),
            event: None,
        })?;
    }
    drop(s);
    let got = (
        bytes(m.region(), 3, 2)?,
        bytes(m.region(), PAGE_SIZE + 3, 2)?,
    );
    ensure!(got == (vec![0, 9], vec![9, 0]), "cleared {got:?}");
    Ok(())
}

fn halves(w: &World) -> Result<()> {
    let s = shared(w, 1)?;
    let (hears, sends) = channel(w, false)?;
    let event = Some(sends.port());
    let settings = [
        (
            UnmapNotify {
                clear_byte: Some(1),
                event: None,
            },
            true,
            false,
        ),
        (
            UnmapNotify {
                clear_byte: None,
                event,
            },
            false,
            true,
        ),
        (
            UnmapNotify {
                clear_byte: None,
                event: None,
            },
            false,
            false,
        ),
    ];
    for (setting, cleared, event) in settings {
        s.region().copy_in(1, &[9])?;
        let m = mapped(w, s.refs())?;
        // What is set before does not add to it.
        m.set_unmap_notify(both(2, &sends))?;
        m.set_unmap_notify(setting)?;
        drop(m);
        let byte = s.region().load_u8(1)?;
        ensure!((byte == 0) == cleared, "{setting:?} left {byte}");
        if event {
            heard(&hears).with_context(|| format!("{setting:?}"))?;
        }
        not_heard(w, &hears).with_context(|| format!("{setting:?}"))?;
    }
    Ok(())
}

fn notify_needs_a_port(w: &World) -> Result<()> {
    let s = shared(w, 1)?;
    let m = mapped(w, s.refs())?;
    let closed = w.a.channels()?.bind_unbound(w.b.id)?.port();
    for port in [closed, Port::new(u32::MAX)] {
        let notify = UnmapNotify {
            clear_byte: None,
            event: Some(port),
        };
        refused(
            s.set_unmap_notify(notify),
            libc::EINVAL,
            "a share's event without a port",
        )?;
        if w.a.id == w.b.id || port != closed {
            refused(
                m.set_unmap_notify(notify),
                libc::EINVAL,
                "a mapping's event without a port",
            )?;
        }
    }
    let outside = UnmapNotify {
        clear_byte: Some(PAGE_SIZE),
        event: None,
    };
    ensure!(
        m.set_unmap_notify(outside).is_err(),
        "a byte outside of the pages"
    );
    Ok(())
}

fn notify_holds_its_port(w: &World) -> Result<()> {
    let s = shared(w, 1)?;
    let m = mapped(w, s.refs())?;
    let (hears, sends) = channel(w, false)?;
    m.set_unmap_notify(UnmapNotify {
        clear_byte: None,
        event: Some(sends.port()),
    })?;
    drop(sends);
    not_heard(w, &hears)?;
    drop(m);
    heard(&hears)
}

fn no_clear_readonly(w: &World) -> Result<()> {
    let s = shared(w, 1)?;
    let m = w.b.map(w.a.id, s.refs(), ReadOnly)?;
    let clear = UnmapNotify {
        clear_byte: Some(0),
        event: None,
    };
    refused(
        m.set_unmap_notify(clear),
        libc::EINVAL,
        "clearing a byte in pages mapped for reading",
    )
}

fn again(w: &World) -> Result<()> {
    // More in all than the limit at once.
    let pages = w.shared_pages / 4;
    for round in 0..8 {
        let s = shared(w, pages).with_context(|| format!("round {round}"))?;
        mapped(w, s.refs()).with_context(|| format!("round {round}"))?;
    }
    Ok(())
}

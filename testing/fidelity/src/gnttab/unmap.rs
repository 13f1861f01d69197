//! Unmapping or giving up a grant's pages clears a byte and sender an event.

use anyhow::{Context as _, Result, ensure};
use xen_gnttab::{PageAccess, UnmapNotify};
use xen_sys::{PAGE_SIZE, Port};

use crate::gnttab::{bytes, mapped, shared};
use crate::handles::BoundPort;
use crate::{Ends, Rule, refused, soon};

pub(crate) const RULES: &[Rule] = &[
    Rule {
        name: "a mapping's end clears the byte and sender the event",
        source: "linux drivers/xen/gntdev.c: gntdev_put_map",
        check: map_notify,
    },
    Rule {
        name: "a share's end clears the byte and sender the event, though it is still mapped",
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
];

/// Two ends of a channel: the one that is notified and the one that sends.
fn channel(ends: &Ends, from_a: bool) -> Result<(BoundPort, BoundPort)> {
    let (receiver, sender) = if from_a {
        (&ends.b, &ends.a)
    } else {
        (&ends.a, &ends.b)
    };
    let (h, s) = (receiver.channels()?, sender.channels()?);
    let h = h.bind_unbound(sender.id)?;
    let s = s.bind_interdomain(receiver.id, h.port())?;
    Ok((h, s))
}

fn notified(port: &BoundPort) -> Result<()> {
    let got = port.channels().wait(soon())?;
    ensure!(
        got == Some(port.port()),
        "no event at port {}: {got:?}",
        port.port()
    );
    Ok(port.unmask()?)
}

fn not_notified(ends: &Ends, port: &BoundPort) -> Result<()> {
    ensure!(
        port.channels().wait(ends.settled())?.is_none(),
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

fn map_notify(ends: &Ends) -> Result<()> {
    let s = shared(ends, 2)?;
    s.region().fill(0, 2 * PAGE_SIZE, 9)?;
    let (receiver, sender) = channel(ends, false)?;
    let m = mapped(ends, s.refs())?;
    let at = PAGE_SIZE + 5;
    m.set_unmap_notify(both(at, &sender))?;
    let last = m.region().slice(at, 1)?;
    drop(m);
    not_notified(ends, &receiver).context("while a slice is left")?;
    ensure!(s.region().load_u8(at)? == 9, "cleared too early");
    drop(last);
    notified(&receiver)?;
    let around = bytes(s.region(), at - 1, 3)?;
    ensure!(around == [9, 0, 9], "cleared {around:?}");
    ensure!(s.region().load_u8(5)? == 9, "cleared in the wrong page");
    Ok(())
}

fn share_notify(ends: &Ends) -> Result<()> {
    let s = shared(ends, 1)?;
    s.region().fill(0, PAGE_SIZE, 9)?;
    let (receiver, sender) = channel(ends, true)?;
    let m = mapped(ends, s.refs())?;
    s.set_unmap_notify(both(6, &sender))?;
    drop(s);
    notified(&receiver)?;
    let around = bytes(m.region(), 5, 3)?;
    ensure!(around == [9, 0, 9], "cleared {around:?}");
    Ok(())
}

fn share_notify_per_page(ends: &Ends) -> Result<()> {
    let s = shared(ends, 2)?;
    s.region().fill(0, 2 * PAGE_SIZE, 9)?;
    let m = mapped(ends, s.refs())?;
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

fn halves(ends: &Ends) -> Result<()> {
    let s = shared(ends, 1)?;
    let (receiver, sender) = channel(ends, false)?;
    let event = Some(sender.port());
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
        let m = mapped(ends, s.refs())?;
        // A later notification replaces an earlier one.
        m.set_unmap_notify(both(2, &sender))?;
        m.set_unmap_notify(setting)?;
        drop(m);
        let byte = s.region().load_u8(1)?;
        ensure!((byte == 0) == cleared, "{setting:?} left {byte}");
        if event {
            notified(&receiver).with_context(|| format!("{setting:?}"))?;
        }
        not_notified(ends, &receiver).with_context(|| format!("{setting:?}"))?;
    }
    Ok(())
}

fn notify_needs_a_port(ends: &Ends) -> Result<()> {
    let s = shared(ends, 1)?;
    let m = mapped(ends, s.refs())?;
    let closed = ends.a.channels()?.bind_unbound(ends.b.id)?.port();
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
        if ends.a.id == ends.b.id || port != closed {
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

fn notify_holds_its_port(ends: &Ends) -> Result<()> {
    let s = shared(ends, 1)?;
    let m = mapped(ends, s.refs())?;
    let (receiver, sender) = channel(ends, false)?;
    m.set_unmap_notify(UnmapNotify {
        clear_byte: None,
        event: Some(sender.port()),
    })?;
    drop(sender);
    not_notified(ends, &receiver)?;
    drop(m);
    notified(&receiver)
}

fn no_clear_readonly(ends: &Ends) -> Result<()> {
    let s = shared(ends, 1)?;
    let m = ends.b.map(ends.a.id, s.refs(), PageAccess::ReadOnly)?;
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

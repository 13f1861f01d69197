//! Event channels.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use xen_sys::{DomId, Port, Virq};

use crate::handles::BoundPort;
use crate::{Ends, NOBODY, Rule, refused, soon};

pub(crate) mod bind;

pub(crate) const RULES: &[Rule] = &[
    Rule {
        name: "the end that binds starts out pending, the other does not",
        source: "xen/common/event_channel.c: evtchn_bind_interdomain",
        check: binder_starts_pending,
    },
    Rule {
        name: "events that come before anyone looks are one event",
        source: "xen/common/event_channel.c: evtchn_send",
        check: events_coalesce,
    },
    Rule {
        name: "a delivered port is masked, and an event that comes meanwhile is delivered at unmask",
        source: "linux drivers/xen/evtchn.c: evtchn_interrupt, evtchn_write",
        check: masked_until_unmasked,
    },
    Rule {
        name: "unmasking what is not masked, or not ours, is nothing",
        source: "linux drivers/xen/evtchn.c: evtchn_write",
        check: idle_unmask,
    },
    Rule {
        name: "notifying a port nobody is connected to is no error",
        source: "xen/common/event_channel.c: evtchn_send, ECS_UNBOUND",
        check: notify_nobody,
    },
    Rule {
        name: "closing one end tells the other nothing, and leaves it open for the same domain",
        source: "xen/common/event_channel.c: evtchn_close",
        check: close_and_rebind,
    },
    Rule {
        name: "several pending ports are read in one call",
        source: "linux drivers/xen/evtchn.c: evtchn_read",
        check: batch,
    },
    Rule {
        name: "the descriptor polls readable exactly while an event waits to be read",
        source: "linux drivers/xen/evtchn.c: evtchn_poll",
        check: polls,
    },
    Rule {
        name: "an event goes to the handle that bound the port and to no other",
        source: "linux drivers/xen/evtchn.c: evtchn_interrupt",
        check: one_handle,
    },
    Rule {
        name: "ports are numbered per domain, not per handle",
        source: "xen/common/event_channel.c: evtchn_get_port",
        check: numbered_per_domain,
    },
    Rule {
        name: "a restricted handle binds to one domain only, opens nothing, and stays restricted",
        source: "linux drivers/xen/evtchn.c: IOCTL_EVTCHN_RESTRICT_DOMID",
        check: restricted,
    },
    Rule {
        name: "restricting to domain 0 or to a reserved number is refused",
        source: "linux drivers/xen/evtchn.c: IOCTL_EVTCHN_RESTRICT_DOMID",
        check: restrict_arguments,
    },
    Rule {
        name: "a reset forgets what was waiting, and the port stays usable",
        source: "linux drivers/xen/evtchn.c: IOCTL_EVTCHN_RESET",
        check: reset,
    },
    Rule {
        name: "a wait ends without an event when its deadline passes",
        source: "xen-evtchn: EventChannels::wait",
        check: deadline,
    },
];

/// A connected pair with nothing pending: the end of `a`, which was open, and that of `b`.
fn pair(ends: &Ends) -> Result<(BoundPort, BoundPort)> {
    let (a, b) = (ends.a.channels()?, ends.b.channels()?);
    let a = a.bind_unbound(ends.b.id)?;
    let b = b.bind_interdomain(ends.a.id, a.port())?;
    take(&b).context("the event of binding")?;
    Ok((a, b))
}

/// Waits for an event at a port and unmasks it.
fn take(port: &BoundPort) -> Result<()> {
    expect(port)?;
    Ok(port.unmask()?)
}

/// Waits for an event at a port, which stays masked.
fn expect(port: &BoundPort) -> Result<()> {
    let got = port.channels().wait(soon())?;
    ensure!(
        got == Some(port.port()),
        "port {}: got {got:?}",
        port.port()
    );
    Ok(())
}

/// Checks that nothing is pending, after the time an event may take here.
fn quiet(ends: &Ends, port: &BoundPort) -> Result<()> {
    let got = port.channels().wait(ends.settled())?;
    ensure!(
        got.is_none(),
        "port {}: got {got:?}, not nothing",
        port.port()
    );
    Ok(())
}

fn binder_starts_pending(ends: &Ends) -> Result<()> {
    let (a, b) = (ends.a.channels()?, ends.b.channels()?);
    let a = a.bind_unbound(ends.b.id)?;
    let b = b.bind_interdomain(ends.a.id, a.port())?;
    expect(&b)?;
    quiet(ends, &a)
}

fn events_coalesce(ends: &Ends) -> Result<()> {
    let (a, b) = pair(ends)?;
    // Masked, so that the second and third cannot be delivered one by one.
    a.notify()?;
    expect(&b)?;
    for _ in 0..3 {
        a.notify()?;
    }
    b.unmask()?;
    take(&b)?;
    quiet(ends, &b)
}

fn masked_until_unmasked(ends: &Ends) -> Result<()> {
    let (a, b) = pair(ends)?;
    a.notify()?;
    expect(&b)?;
    a.notify()?;
    quiet(ends, &b).context("masked")?;
    b.unmask()?;
    take(&b).context("after the unmask")?;
    quiet(ends, &b).context("after both")
}

fn idle_unmask(ends: &Ends) -> Result<()> {
    let (a, b) = pair(ends)?;
    b.unmask()?;
    b.channels().unmask(a.port())?;
    b.channels().unmask(Port::new(u32::MAX))?;
    quiet(ends, &b)?;
    a.notify()?;
    take(&b)
}

fn notify_nobody(ends: &Ends) -> Result<()> {
    let a = ends.a.channels()?.bind_unbound(ends.b.id)?;
    a.notify()?;
    a.notify()?;
    quiet(ends, &a)
}

fn close_and_rebind(ends: &Ends) -> Result<()> {
    let (a, b) = pair(ends)?;
    drop(b);
    quiet(ends, &a)?;
    a.notify()?;
    let channels = ends.b.channels()?;
    let b = channels.bind_interdomain(ends.a.id, a.port())?;
    take(&b)?;
    b.notify()?;
    take(&a)?;
    // And from the other side: the end that was open first leaves, the other can be bound to.
    let far = a.channels().clone();
    drop(a);
    let a = far.bind_interdomain(ends.b.id, b.port())?;
    take(&a)?;
    a.notify()?;
    take(&b)
}

fn batch(ends: &Ends) -> Result<()> {
    let (ca, cb) = (ends.a.channels()?, ends.b.channels()?);
    let open = (0..4)
        .map(|_| Ok(ca.bind_unbound(ends.b.id)?))
        .collect::<Result<Vec<_>>>()?;
    let bind = |a: &BoundPort| Ok(cb.bind_interdomain(ends.a.id, a.port())?);
    let bound = open.iter().map(bind).collect::<Result<Vec<_>>>()?;
    let mut want: Vec<Port> = bound.iter().map(BoundPort::port).collect();
    want.sort_unstable();
    ensure!(
        cb.pending_batch(0)?.is_empty(),
        "an empty batch read something"
    );
    // Each is pending from its binding, and then by notification. The processor that reads need
    // not be the one events come to, so they may trickle in; in some round they do not.
    for _ in 0..100 {
        let (mut got, mut calls) = (Vec::new(), 0);
        while got.len() < want.len() {
            ensure!(cb.readable(10_000)?, "only {got:?}");
            got.extend(cb.pending_batch(8)?);
            calls += 1;
        }
        got.sort_unstable();
        ensure!(got == want, "{got:?}, not {want:?}");
        ensure!(cb.pending()?.is_none(), "a masked port was delivered");
        if calls < want.len() {
            return Ok(());
        }
        for port in &bound {
            port.unmask()?;
        }
        for port in &open {
            port.notify()?;
        }
    }
    anyhow::bail!("never more than one port in a call")
}

fn polls(ends: &Ends) -> Result<()> {
    let (a, b) = pair(ends)?;
    let readable = |millis| b.channels().readable(millis);
    ensure!(!readable(0)?, "readable with nothing pending");
    a.notify()?;
    ensure!(readable(10_000)?, "not readable with an event pending");
    ensure!(readable(0)?, "polling took the event");
    expect(&b)?;
    a.notify()?;
    ensure!(!readable(0)?, "readable while masked");
    b.unmask()?;
    ensure!(readable(10_000)?, "not readable after the unmask");
    take(&b)
}

fn one_handle(ends: &Ends) -> Result<()> {
    let (a, b) = pair(ends)?;
    let other = ends.b.channels()?;
    let its = other.bind_unbound(ends.a.id)?;
    a.notify()?;
    take(&b)?;
    quiet(ends, &its)?;
    // Nor does another handle of the domain unmask it.
    a.notify()?;
    expect(&b)?;
    other.unmask(b.port())?;
    a.notify()?;
    quiet(ends, &b)
}

fn numbered_per_domain(ends: &Ends) -> Result<()> {
    let (c, d) = (ends.a.channels()?, ends.a.channels()?);
    let (p, q) = (c.bind_unbound(ends.b.id)?, d.bind_unbound(ends.b.id)?);
    ensure!(
        p.port() != q.port(),
        "two handles of a domain both got port {}",
        p.port()
    );
    ensure!(p.port() != Port::new(0), "port 0 is never given out");
    Ok(())
}

fn restricted(ends: &Ends) -> Result<()> {
    let channels = ends.a.channels()?;
    let before = channels.bind_unbound(ends.b.id)?;
    let far = ends
        .b
        .channels()?
        .bind_interdomain(ends.a.id, before.port())?;
    channels.restrict(NOBODY)?;
    refused(
        channels.bind_unbound(NOBODY),
        libc::EACCES,
        "opening a port",
    )?;
    refused(
        channels.bind_virq(Virq::ARGO),
        libc::EACCES,
        "binding a virtual interrupt",
    )?;
    let bind = channels.bind_interdomain(ends.b.id, Port::new(1));
    refused(bind, libc::EACCES, "binding to another domain")?;
    let bind = channels.bind_interdomain(NOBODY, Port::new(1));
    refused(
        bind,
        libc::ESRCH,
        "binding to the domain it is restricted to",
    )?;
    refused(channels.restrict(NOBODY), libc::EACCES, "restricting again")?;
    far.notify()?;
    take(&before).context("a port bound before")
}

fn restrict_arguments(ends: &Ends) -> Result<()> {
    let channels = ends.a.channels()?;
    for domain in [DomId::DOM0, DomId::SELF, DomId::new(u16::MAX)] {
        let restrict = channels.restrict(domain);
        refused(
            restrict,
            libc::EINVAL,
            &format!("restricting to domain {domain}"),
        )?;
    }
    channels.restrict(DomId::new(1))?;
    Ok(())
}

fn reset(ends: &Ends) -> Result<()> {
    let (a, b) = pair(ends)?;
    a.notify()?;
    // It is in the buffer once the descriptor is readable.
    ensure!(b.channels().readable(10_000)?, "no event");
    b.channels().reset()?;
    quiet(ends, &b)?;
    b.unmask()?;
    quiet(ends, &b)?;
    a.notify()?;
    take(&b)
}

fn deadline(ends: &Ends) -> Result<()> {
    let (_a, b) = pair(ends)?;
    let at = Instant::now() + std::time::Duration::from_millis(2);
    ensure!(
        b.channels().wait(Some(at))?.is_none(),
        "an event nobody sent"
    );
    ensure!(Instant::now() >= at, "it did not wait");
    Ok(())
}

//! Rules of binding ports.

use anyhow::{Context as _, Result};
use xen_sys::{Port, Virq};

use super::{pair, quiet};
use crate::{Ends, NOBODY, Rule, refused};

pub(crate) const RULES: &[Rule] = &[
    Rule {
        name: "a port is bound only by the domain it is open for",
        source: "xen/common/event_channel.c: evtchn_bind_interdomain",
        check: wrong_domain,
    },
    Rule {
        name: "a port is bound once",
        source: "xen/common/event_channel.c: evtchn_bind_interdomain",
        check: bound_once,
    },
    Rule {
        name: "a port that is not there cannot be bound to",
        source: "xen/common/event_channel.c: evtchn_bind_interdomain",
        check: no_such_port,
    },
    Rule {
        name: "a domain that is not there cannot be bound to",
        source: "xen/common/event_channel.c: evtchn_bind_interdomain",
        check: no_such_domain,
    },
    Rule {
        name: "a port may be opened for a domain that is not there yet",
        source: "xen/common/event_channel.c: evtchn_alloc_unbound",
        check: open_for_the_unborn,
    },
    Rule {
        name: "a virtual interrupt is bound once in a domain, and again when its port is closed",
        source: "xen/common/event_channel.c: evtchn_bind_virq",
        check: virq_once,
    },
    Rule {
        name: "what the kernel has bound, and what is no virtual interrupt, cannot be bound",
        source: "xen/common/event_channel.c: evtchn_bind_virq",
        check: no_such_virq,
    },
];

fn wrong_domain(ends: &Ends) -> Result<()> {
    let channels = ends.a.channels()?;
    let open = channels.bind_unbound(NOBODY)?;
    let bind = ends.b.channels()?.bind_interdomain(ends.a.id, open.port());
    refused(
        bind,
        libc::EINVAL,
        "binding to a port that is open for another domain",
    )
}

fn bound_once(ends: &Ends) -> Result<()> {
    let (a, _b) = pair(ends)?;
    let bind = ends.b.channels()?.bind_interdomain(ends.a.id, a.port());
    refused(bind, libc::EINVAL, "binding to a connected port")
}

fn no_such_port(ends: &Ends) -> Result<()> {
    let channels = ends.b.channels()?;
    for port in [0, 1000, 1 << 30, u32::MAX] {
        let bind = channels.bind_interdomain(ends.a.id, Port::new(port));
        refused(bind, libc::EINVAL, &format!("binding to port {port}"))?;
    }
    Ok(())
}

fn no_such_domain(ends: &Ends) -> Result<()> {
    let bind = ends.a.channels()?.bind_interdomain(NOBODY, Port::new(1));
    refused(bind, libc::ESRCH, "binding to a domain that is not there")
}

fn open_for_the_unborn(ends: &Ends) -> Result<()> {
    ends.a.channels()?.bind_unbound(NOBODY)?;
    Ok(())
}

fn virq_once(ends: &Ends) -> Result<()> {
    // Of those that kernels leave alone, the one every domain has for itself.
    let virq = Virq::ARGO;
    let (first, second) = (ends.a.channels()?, ends.a.channels()?);
    let port = first.bind_virq(virq)?;
    quiet(ends, &port)?;
    refused(second.bind_virq(virq), libc::EEXIST, "binding it again")?;
    if ends.a.id != ends.b.id {
        ends.b.channels()?.bind_virq(virq).context("elsewhere")?;
    }
    port.notify()?;
    quiet(ends, &port).context("notified")?;
    let bind = ends.b.channels()?.bind_interdomain(ends.a.id, port.port());
    refused(bind, libc::EINVAL, "binding to a virtual interrupt's port")?;
    drop(port);
    second.bind_virq(virq).context("after it was closed")?;
    Ok(())
}

fn no_such_virq(ends: &Ends) -> Result<()> {
    let channels = ends.a.channels()?;
    // On Arm the kernel uses the processor's own timer.
    if cfg!(target_arch = "x86_64") {
        refused(channels.bind_virq(Virq::TIMER), libc::EEXIST, "the timer's")?;
    }
    for virq in [24, 1 << 31, u32::MAX] {
        let bind = channels.bind_virq(Virq::new(virq));
        refused(bind, libc::EINVAL, &format!("virtual interrupt {virq}"))?;
    }
    Ok(())
}

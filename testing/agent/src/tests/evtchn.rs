//! Event channels within a domain and between two.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use xen_evtchn::EventChannels;
use xen_sys::{DomId, Error, Virq, Xen};

use crate::host::{PATIENCE, Place, TestHost, command, soon};
use crate::suite::{Needs, Test};

const ROUNDS: &str = "500";

pub(super) fn add_dom0(tests: &mut Vec<Test>) {
    tests.push(Test::new("evtchn/loopback_dom0", Needs::Dom0, |host| {
        host.run_role(Place::Dom0, &["evtchn-loopback", "0"])
    }));
    tests.push(Test::new(
        "evtchn/virtual_interrupts_of_dom0",
        Needs::Dom0,
        |_| virtual_interrupts(),
    ));
    tests.push(Test::new("evtchn/counted_and_awaited", Needs::Dom0, |_| {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build()?;
        runtime.block_on(counted())
    }));
}

pub(super) fn add(tests: &mut Vec<Test>, needs: Needs) {
    tests.push(Test::new("evtchn/loopback_domu", needs, |host| {
        let domain = host.domid(Place::DomU)?.to_string();
        host.run_role(Place::DomU, &["evtchn-loopback", &domain])
    }));
    for opener in [Place::Dom0, Place::DomU] {
        let name = format!(
            "evtchn/{}_opens_{}_binds",
            opener.name(),
            opener.other().name()
        );
        tests.push(Test::new(name, needs, move |host| ping_pong(host, opener)));
    }
}

/// Xen's console output is an event for the binder of its interrupt; xenstored's interrupt is
/// refused.
fn virtual_interrupts() -> Result<()> {
    let channels = EventChannels::open(&Xen::open()?)?;
    let taken = channels.bind_virq(Virq::DOM_EXC);
    let errno = taken.as_ref().map_err(Error::errno).err().flatten();
    ensure!(
        errno == Some(Errno::EEXIST as i32),
        "xenstored's: {taken:?}"
    );
    let port = channels.bind_virq(Virq::CON_RING)?;
    command(&["xl", "debug-keys", "h"])?;
    let told = channels.wait(Some(soon()))?;
    ensure!(
        told == Some(port.port()),
        "{told:?}, not port {}",
        port.port()
    );
    Ok(())
}

/// No event between a look at a port's count and the wait is lost, whichever thread sends it and
/// whether an earlier wait was cancelled.
async fn counted() -> Result<()> {
    const EVENTS: u64 = 300;
    let (xen, me) = (Xen::open()?, DomId::DOM0);
    let theirs = EventChannels::open(&xen)?;
    let ours = xen_evtchn::tokio::EventChannels::new(EventChannels::open(&xen)?)?;
    let open = ours.get_ref().bind_unbound(me)?;
    let bound = theirs.bind_interdomain(me, open.port())?;
    let port = ours.port(open)?;
    // Of this runtime's own thread: each event is one.
    for round in 0..EVENTS {
        let seen = port.events();
        ensure!(seen == round, "{seen} events in round {round}");
        // Cancelled when it was polled once.
        let cancelled = tokio::time::timeout(Duration::ZERO, port.wait_past(seen));
        ensure!(cancelled.await.is_err(), "an event out of nothing");
        bound.notify()?;
        let now = tokio::time::timeout(PATIENCE, port.wait_past(seen)).await??;
        ensure!(now == seen + 1, "{now} after {seen}");
        port.unmask()?;
    }
    // Of another thread, which answers each event by one.
    let answerer = std::thread::spawn(move || -> Result<()> {
        // The end that binds starts out pending.
        for _ in 0..=EVENTS {
            let found = theirs.wait(Some(soon()))?;
            ensure!(found == Some(bound.port()), "{found:?}");
            bound.unmask()?;
            bound.notify()?;
        }
        Ok(())
    });
    let first = EVENTS;
    let mut seen = tokio::time::timeout(PATIENCE, port.wait_past(first)).await??;
    for _ in 0..EVENTS {
        port.unmask()?;
        port.notify()?;
        seen = tokio::time::timeout(PATIENCE, port.wait_past(seen)).await??;
    }
    ensure!(seen == 2 * EVENTS + 1, "{seen} events");
    match answerer.join() {
        Ok(done) => done,
        Err(_) => bail!("the answering thread panicked"),
    }
}

fn ping_pong(host: &TestHost, opener: Place) -> Result<()> {
    let binder = opener.other();
    let (opener_id, binder_id) = (
        host.domid(opener)?.to_string(),
        host.domid(binder)?.to_string(),
    );
    let mut echo = host.role(opener, &["evtchn-echo", &binder_id, ROUNDS])?;
    let port = echo.expect("port ", soon())?;
    let mut drive = host.role(binder, &["evtchn-drive", &opener_id, &port, ROUNDS])?;
    drive.succeed(soon()).context("the one that bound")?;
    echo.succeed(soon()).context("the one that opened")
}

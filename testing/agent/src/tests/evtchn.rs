//! Event channels within a domain and between two.

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use xen_evtchn::EventChannels;
use xen_sys::{Error, Virq, Xen};

use crate::suite::{Needs, Test};
use crate::world::{Place, World, command, soon};

const ROUNDS: &str = "500";

pub(super) fn add_dom0(tests: &mut Vec<Test>) {
    tests.push(Test::new("evtchn/loopback_dom0", Needs::Dom0, |world| {
        world.run_role(Place::Dom0, &["evtchn-loopback", "0"])
    }));
    tests.push(Test::new(
        "evtchn/virtual_interrupts_of_dom0",
        Needs::Dom0,
        |_| virtual_interrupts(),
    ));
}

pub(super) fn add(tests: &mut Vec<Test>, needs: Needs) {
    tests.push(Test::new("evtchn/loopback_domu", needs, |world| {
        let domain = world.domid(Place::DomU)?.to_string();
        world.run_role(Place::DomU, &["evtchn-loopback", &domain])
    }));
    for opener in [Place::Dom0, Place::DomU] {
        let name = format!(
            "evtchn/{}_opens_{}_binds",
            opener.name(),
            opener.other().name()
        );
        tests.push(Test::new(name, needs, move |world| {
            ping_pong(world, opener)
        }));
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

fn ping_pong(world: &World, opener: Place) -> Result<()> {
    let binder = opener.other();
    let (opener_id, binder_id) = (
        world.domid(opener)?.to_string(),
        world.domid(binder)?.to_string(),
    );
    let mut echo = world.role(opener, &["evtchn-echo", &binder_id, ROUNDS])?;
    let port = echo.expect("port ", soon())?;
    let mut drive = world.role(binder, &["evtchn-drive", &opener_id, &port, ROUNDS])?;
    drive.succeed(soon()).context("the one that bound")?;
    echo.succeed(soon()).context("the one that opened")
}

//! Shares pages, maps them back, and sees the unmap notification, all inside one domain.
//!
//! On a Xen host: `loopback [DOMID]`; DOMID is this domain's own number, 0 unless given.
//! Without Xen, on a simulated host:
//! `cargo run -p xen-gnttab --features sim --example loopback -- --sim [DOMID]`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use xen_evtchn::EventChannels;
use xen_gnttab::{PageAccess, UnmapNotify, map, share};
use xen_sys::{DomId, GrantRef, Xen};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("loopback: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1).peekable();
    let simulated = args.next_if(|a| a == "--sim").is_some();
    let me = args.next().map_or(Ok(DomId::DOM0), |a| a.parse())?;
    if simulated {
        on_simulated_host(me)
    } else {
        loopback(&Xen::open()?, me)
    }
}

#[cfg(feature = "sim")]
fn on_simulated_host(me: DomId) -> Result<(), Box<dyn std::error::Error>> {
    let host = xen_sys::sim::Simulation::start()?;
    if me != DomId::DOM0 {
        host.add_domain_as(me)?;
    }
    loopback(&host.xen(me)?, me)?;
    host.assert_clean();
    Ok(())
}

#[cfg(not(feature = "sim"))]
fn on_simulated_host(_: DomId) -> Result<(), Box<dyn std::error::Error>> {
    Err("this was built without the feature `sim`".into())
}

fn loopback(xen: &Xen, me: DomId) -> Result<(), Box<dyn std::error::Error>> {
    let mut ours = share(xen, me, 3, PageAccess::ReadWrite)?;
    println!("shared as {:?}", ours.refs());
    let mut theirs = map(xen, me, ours.refs(), PageAccess::ReadWrite)?;

    // Bytes across a page boundary, both ways.
    let text = b"written on one side, read on the other";
    ours.region_mut().copy_in(4096 - 10, text)?;
    let mut seen = [0; 38];
    theirs.region().copy_out(4096 - 10, &mut seen)?;
    check(
        &seen == text,
        "the mapping shows what was written to the share",
    )?;
    theirs.region_mut().copy_in(2 * 4096, &[1])?;
    check(
        ours.region().load_u8(2 * 4096)? == 1,
        "and the other way round",
    )?;

    // Reading only is enforced on our side, a wrong reference by Xen.
    let mut readonly = map(xen, me, &ours.refs()[1..2], PageAccess::ReadOnly)?;
    check(
        readonly.region_mut().copy_in(0, &[0]).is_err(),
        "a mapping for reading refuses writes",
    )?;
    drop(readonly);
    let wrong = map(xen, me, &[GrantRef::new(u32::MAX)], PageAccess::ReadOnly);
    check(
        wrong.is_err(),
        "a reference that was never granted is refused",
    )?;
    let (gone, channels) = (EventChannels::open(xen)?, EventChannels::open(xen)?);

    // Both halves of an unmap notification: a byte and an event.
    let far = gone.bind_unbound(me)?;
    let near = channels.bind_interdomain(me, far.port())?;
    while let Some(p) = gone.pending()? {
        gone.unmask(p)?;
    }
    let at = 2 * 4096;
    theirs.set_unmap_notify(UnmapNotify {
        clear_byte: Some(at),
        event: Some(near.port()),
    })?;
    let part = theirs.region_mut().split_off(at)?;
    drop(theirs);
    check(
        ours.region().load_u8(at)? == 1,
        "a part keeps the pages mapped",
    )?;
    check(gone.pending()?.is_none(), "and nothing is announced yet")?;
    drop(part);
    let event = gone.wait(Some(Instant::now() + Duration::from_secs(5)))?;
    check(
        event == Some(far.port()),
        "the event announces the unmapping",
    )?;
    check(ours.region().load_u8(at)? == 0, "and the byte is cleared")?;
    far.unmask()?;

    // The same from the side that shares.
    let again = map(xen, me, ours.refs(), PageAccess::ReadWrite)?;
    ours.region_mut().copy_in(7, &[1])?;
    ours.set_unmap_notify(UnmapNotify {
        clear_byte: Some(7),
        event: Some(near.port()),
    })?;
    drop(ours);
    let event = gone.wait(Some(Instant::now() + Duration::from_secs(5)))?;
    check(
        event == Some(far.port()),
        "the event announces that the share is given up",
    )?;
    check(
        again.region().load_u8(7)? == 0,
        "its byte is cleared, in pages that stay mapped",
    )?;
    drop(near);
    Ok(())
}

fn check(holds: bool, what: &str) -> Result<(), Box<dyn std::error::Error>> {
    println!("{}: {what}", if holds { "ok" } else { "NOT SO" });
    if holds { Ok(()) } else { Err(what.into()) }
}

#[cfg(feature = "sim")]
#[test]
fn it_runs() {
    on_simulated_host(DomId::DOM0).unwrap();
    on_simulated_host(DomId::new(7)).unwrap();
}

//! Sends events round a loop inside one domain and reports how long a round takes.
//!
//! On a Xen host: `evtchn-ping [DOMID [ROUNDS]]`; DOMID is this domain's own number, 0 unless given.
//! Without Xen, on a simulated host:
//! `cargo run -p xen-evtchn --features sim --example evtchn-ping -- --sim [DOMID [ROUNDS]]`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use xen_evtchn::{BoundPort, EventChannels};
use xen_sys::{DomId, Xen};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("evtchn-ping: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1).peekable();
    let simulated = args.next_if(|a| a == "--sim").is_some();
    let me = args.next().map_or(Ok(DomId::DOM0), |a| a.parse())?;
    let rounds = args.next().map_or(Ok(10_000), |a| a.parse::<u32>())?;

    if simulated {
        on_simulated_host(me, rounds)
    } else {
        ping(&Xen::open()?, me, rounds)
    }
}

#[cfg(feature = "sim")]
fn on_simulated_host(me: DomId, rounds: u32) -> Result<(), Box<dyn std::error::Error>> {
    let host = xen_sys::sim::Simulation::start()?;
    if me != DomId::DOM0 {
        host.add_domain_as(me)?;
    }
    ping(&host.xen(me)?, me, rounds)?;
    host.assert_clean();
    Ok(())
}

#[cfg(not(feature = "sim"))]
fn on_simulated_host(_: DomId, _: u32) -> Result<(), Box<dyn std::error::Error>> {
    Err("this was built without the feature `sim`".into())
}

fn ping(xen: &Xen, me: DomId, rounds: u32) -> Result<(), Box<dyn std::error::Error>> {
    // Two handles, as two programs would have.
    let (left, right) = (EventChannels::open(xen)?, EventChannels::open(xen)?);
    let here = left.bind_unbound(me)?;
    let there = right.bind_interdomain(me, here.port())?;
    println!(
        "port {} <-> port {} in domain {me}",
        here.port(),
        there.port()
    );

    // Binding may have made either end pending.
    for port in [&here, &there] {
        while let Some(p) = port.channels().pending()? {
            port.channels().unmask(p)?;
        }
    }
    let start = Instant::now();
    for _ in 0..rounds {
        pass(&here, &there)?;
        pass(&there, &here)?;
    }
    println!(
        "{rounds} rounds, {:?} each",
        start.elapsed() / rounds.max(1)
    );
    Ok(())
}

/// Sends an event from one end and takes it at the other.
fn pass(from: &BoundPort, to: &BoundPort) -> Result<(), Box<dyn std::error::Error>> {
    from.notify()?;
    let deadline = Instant::now() + Duration::from_secs(5);
    match to.channels().wait(Some(deadline))? {
        Some(p) if p == to.port() => Ok(to.unmask()?),
        Some(p) => Err(format!("port {p} fired, not {}", to.port()).into()),
        None => Err(format!("no event at port {} in five seconds", to.port()).into()),
    }
}

#[cfg(feature = "sim")]
#[test]
fn it_runs() {
    on_simulated_host(DomId::DOM0, 100).unwrap();
    on_simulated_host(DomId::new(7), 100).unwrap();
}

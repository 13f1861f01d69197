//! Event channels: ping and pong between two domains, and both ends in one.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use xen_evtchn::{BoundPort, EventChannels};
use xen_sys::{DomId, Port, Xen};

use super::patience;

#[derive(Args, Debug)]
pub(crate) struct Echo {
    remote: DomId,
    rounds: u32,
}

#[derive(Args, Debug)]
pub(crate) struct Drive {
    remote: DomId,
    port: u32,
    rounds: u32,
}

#[derive(Args, Debug)]
pub(crate) struct Loopback {
    /// This domain.
    domain: DomId,
}

impl Echo {
    pub(crate) fn run(&self) -> Result<()> {
        let channels = EventChannels::open(&Xen::open()?)?;
        let port = channels.bind_unbound(self.remote)?;
        println!("port {}", port.port());
        for round in 0..self.rounds {
            expect(&channels, &port).with_context(|| format!("round {round}"))?;
            port.notify()?;
        }
        println!("rounds {}", self.rounds);
        Ok(())
    }
}

impl Drive {
    pub(crate) fn run(&self) -> Result<()> {
        let channels = EventChannels::open(&Xen::open()?)?;
        let port = channels.bind_interdomain(self.remote, Port::new(self.port))?;
        // Xen marks a port pending when it is connected: that event is no answer.
        expect(&channels, &port).context("the event of the connection itself")?;
        for round in 0..self.rounds {
            port.notify()?;
            expect(&channels, &port).with_context(|| format!("round {round}"))?;
        }
        println!("rounds {}", self.rounds);
        Ok(())
    }
}

impl Loopback {
    pub(crate) fn run(&self) -> Result<()> {
        let xen = Xen::open()?;
        let channels = EventChannels::open(&xen)?;
        let others = EventChannels::open(&xen)?;
        let here = channels.bind_unbound(self.domain)?;
        let there = others.bind_interdomain(self.domain, here.port())?;
        ensure!(
            here.port() != there.port(),
            "both ends are port {}",
            here.port()
        );
        settle(&channels, &here)?;
        settle(&others, &there)?;

        for _ in 0..100 {
            here.notify()?;
            expect(&others, &there)?;
            there.notify()?;
            expect(&channels, &here)?;
        }

        // A masked port keeps its event until it is unmasked; several are one.
        here.notify()?;
        ensure!(
            others.wait(Some(patience()))? == Some(there.port()),
            "no event"
        );
        here.notify()?;
        here.notify()?;
        silence(&others).context("the port is masked")?;
        there.unmask()?;
        expect(&others, &there).context("kept while masked")?;
        silence(&others).context("several events are one")?;

        // A closed port cannot be bound to any more, and its peer receives no event.
        let number = here.port();
        drop(here);
        silence(&channels)?;
        match others.bind_interdomain(self.domain, number) {
            Ok(_) => bail!("port {number} was unbound and can still be bound to"),
            Err(error) => ensure!(error.errno() == Some(nix::libc::EINVAL), "{error}"),
        }
        println!("ok");
        Ok(())
    }
}

/// Takes one event of `port` and unmasks it.
fn expect(channels: &EventChannels, port: &BoundPort) -> Result<()> {
    match channels.wait(Some(patience()))? {
        Some(found) if found == port.port() => Ok(port.unmask()?),
        Some(other) => bail!("an event of port {other} instead of {}", port.port()),
        None => bail!("no event on port {}", port.port()),
    }
}

/// Takes what came with the connection, which may be an event at either end or none.
fn settle(channels: &EventChannels, port: &BoundPort) -> Result<()> {
    while channels
        .wait(Some(Instant::now() + Duration::from_millis(100)))?
        .is_some()
    {
        port.unmask()?;
    }
    Ok(())
}

fn silence(channels: &EventChannels) -> Result<()> {
    match channels.wait(Some(Instant::now() + Duration::from_millis(50)))? {
        Some(port) => bail!("an event of port {port} out of nothing"),
        None => Ok(()),
    }
}

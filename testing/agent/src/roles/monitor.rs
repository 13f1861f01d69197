//! A guest's monitor.

use anyhow::{Context as _, Result};
use xen_evtchn::monitor::Monitor;
use xen_sys::monitor::MonitorEvent;
use xen_sys::privcmd::Privcmd;
use xen_sys::{DomId, Xen};

use super::patience;

/// Prints `ready`, and `event` when the guest's first virtual CPU is paused for one.
#[derive(Debug, clap::Args)]
pub(crate) struct Silent {
    domain: DomId,
}

impl Silent {
    pub(super) fn run(&self) -> Result<()> {
        let xen = Xen::open()?;
        let privcmd = Privcmd::open(&xen)?;
        let mut monitor = Monitor::open(&xen, &privcmd, self.domain)?;
        monitor.enable(MonitorEvent::Cpuid)?;
        println!("ready");
        monitor.next(Some(patience()))?.context("no event")?;
        println!("event");
        monitor.next(None).map(drop)?;
        Ok(())
    }
}

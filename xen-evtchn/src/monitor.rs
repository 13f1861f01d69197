//! The monitor of a guest: its events, one by one, with a response to each.
//!
//! ```no_run
//! use xen_evtchn::monitor::Monitor;
//! use xen_sys::monitor::{EventKind, MonitorEvent, Response};
//! use xen_sys::privcmd::Privcmd;
//! use xen_sys::{DomId, Xen};
//!
//! let xen = Xen::open()?;
//! let privcmd = Privcmd::open(&xen)?;
//! let mut monitor = Monitor::open(&xen, &privcmd, DomId::new(5))?;
//! monitor.enable(MonitorEvent::Cpuid)?;
//! while let Some(event) = monitor.next(None)? {
//!     match event.kind {
//!         EventKind::Cpuid { length, leaf, .. } => {
//!             println!("vCPU {}: cpuid {leaf:#x}", event.vcpu);
//!             monitor.respond(&Response::skip(&event, length))?;
//!         }
//!         _ => monitor.respond(&Response::resume(&event))?,
//!     }
//! }
//! # Ok::<(), xen_sys::Error>(())
//! ```
//!
//! # When it ends
//!
//! Dropping the monitor disables it and leaves no virtual CPU paused, even if events were not
//! answered. It waits up to half a second until the virtual CPUs have run, because only then does
//! Xen do what a response requests. For a guest that its toolstack has paused, that request is
//! lost. The drop waits up to half a second more while a virtual CPU waits for room in the ring.
//!
//! Permissions of memory, which can be changed only while there is a monitor, stay until an access
//! that is not permitted: Xen then lifts that one
//! ([`set_access_required`](Privcmd::set_access_required) makes it end the guest instead).
//!
//! The **end of the guest** raises no event, so [`Monitor::next`] without a deadline waits on, and
//! the ring's page keeps what is left of the guest until the monitor is dropped. A program wakes by
//! a deadline and looks at [`Privcmd::domain_info`], or watches `@releaseDomain` in the store.
//!
//! A program that is **killed** leaves the ring as it is. A virtual CPU whose event has no response
//! stays paused, and so does each that has an event from then on. Xen remedies neither, and a new
//! monitor fails with `EBUSY`. [`Privcmd::recover_from_monitor`] ends the old monitor and lets the
//! virtual CPUs run again. A long-running monitor program calls it for its guests when it starts.
//!
//! # Single-stepping and several virtual CPUs
//!
//! To let one access through, [`Response::emulate`] has Xen execute the instruction, and the
//! permission stays. Where Xen cannot, the monitor lifts the permission, steps over the instruction
//! ([`Response::toggle_single_step`]) and restores the permission, and misses what other virtual
//! CPUs do meanwhile. A separate view of the memory for each virtual CPU avoids both problems
//! ([`Response::in_view`]).

use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::{Duration, Instant};

use xen_sys::monitor::{Event, MonitorEvent, Response, Ring};
use xen_sys::privcmd::{Privcmd, VcpuInfo};
use xen_sys::{DomId, Result, Xen};

use crate::{BoundPort, EventChannels};

/// A guest's monitor: disabled on drop.
///
/// One program at a time can be a guest's monitor.
#[derive(Debug)]
pub struct Monitor<'p> {
    privcmd: &'p Privcmd,
    domain: DomId,
    channels: EventChannels,
    port: BoundPort,
    ring: Ring,
    enabled: Vec<MonitorEvent>,
    /// Set once an event was answered.
    answered: bool,
}

/// Rounds of a millisecond for which a drop waits for virtual CPUs.
const ROUNDS: u32 = 500;

impl<'p> Monitor<'p> {
    /// Makes the guest's monitor. It reports nothing until an event is [enabled](Self::enable) or
    /// [the permission of a frame](Privcmd::set_mem_access) is set. The guest is paused for the
    /// duration of a few hypercalls.
    ///
    /// # Errors
    ///
    /// Those of [`Privcmd::enable_monitor`], such as `EBUSY` when there is one, and of
    /// [`EventChannels::bind_interdomain`].
    #[doc(alias = "xc_monitor_enable")]
    pub fn open(xen: &Xen, privcmd: &'p Privcmd, domain: DomId) -> Result<Self> {
        let channels = EventChannels::open(xen)?;
        let (ring, remote) = privcmd.enable_monitor(domain)?;
        let port = match channels.bind_interdomain(domain, remote) {
            Ok(port) => port,
            Err(e) => {
                // The first error is the one to return.
                let _ = privcmd.disable_monitor(domain);
                return Err(e);
            }
        };
        Ok(Self {
            privcmd,
            domain,
            channels,
            port,
            ring,
            enabled: Vec::new(),
            answered: false,
        })
    }

    /// Returns the guest.
    #[must_use]
    pub fn domain(&self) -> DomId {
        self.domain
    }

    /// Reports an event from now on.
    ///
    /// # Errors
    ///
    /// Those of [`Privcmd::enable_event`].
    pub fn enable(&mut self, event: MonitorEvent) -> Result<()> {
        self.privcmd.enable_event(self.domain, &event)?;
        self.enabled.push(event);
        Ok(())
    }

    /// Stops reporting an event. Those in the ring stay there.
    ///
    /// # Errors
    ///
    /// Those of [`Privcmd::disable_event`].
    pub fn disable(&mut self, event: &MonitorEvent) -> Result<()> {
        self.privcmd.disable_event(self.domain, event)?;
        self.enabled.retain(|enabled| enabled != event);
        Ok(())
    }

    /// Waits for the next event; returns `None` when `deadline` has passed. Without a deadline it
    /// waits forever, even when the guest [ends](self#when-it-ends). Every event must be
    /// [answered](Self::respond), in any order. At most eight are unanswered at a time; Xen reports
    /// no more until one is answered.
    ///
    /// # Errors
    ///
    /// [`Error::MonitorRing`](xen_sys::Error::MonitorRing), from this call and every later one,
    /// when another program wrote to the ring's page; those of [`EventChannels::wait`].
    pub fn next(&mut self, deadline: Option<Instant>) -> Result<Option<Event>> {
        loop {
            if let Some(event) = self.ring.poll_event()? {
                return Ok(Some(event));
            }
            let Some(port) = self.channels.wait(deadline)? else {
                // Xen may have written an event at the deadline.
                return self.ring.poll_event();
            };
            self.channels.unmask(port)?;
            // A guest that notifies without end must not keep this from its deadline.
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return self.ring.poll_event();
            }
        }
    }

    /// Returns the next event if there is one, without waiting: for an event loop that waits until
    /// the descriptor ([`AsFd`]) is readable. Call it until it returns `None`.
    ///
    /// # Errors
    ///
    /// As [`next`](Self::next).
    pub fn poll(&mut self) -> Result<Option<Event>> {
        self.next(Some(Instant::now()))
    }

    /// Answers an event and notifies Xen.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`](xen_sys::Error::Invalid) when the event was answered before; those of
    /// [`BoundPort::notify`].
    pub fn respond(&mut self, response: &Response) -> Result<()> {
        self.ring.handle_response(response)?;
        self.answered = true;
        self.port.notify()
    }

    /// Answers every event in the ring, so that the virtual CPUs continue. Fails when the ring is
    /// broken, so that events may be left in it.
    fn drain(&mut self) -> Result<()> {
        // Xen writes at most eight before it has read the answers, and a virtual CPU that continues
        // can be reported again.
        for _ in 0..ROUNDS {
            let mut rest = Ok(());
            loop {
                match self.ring.poll_event() {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(e) => {
                        rest = Err(e);
                        break;
                    }
                }
            }
            if self.ring.resume_all() == 0 {
                return rest;
            }
            self.answered = true;
            self.port.notify()?;
        }
        Ok(())
    }

    /// Waits until every virtual CPU has run, or cannot. Xen does what a response requests when the
    /// virtual CPU is next scheduled, and not at all if the monitor has ended by then.
    fn settle(&self) {
        let vcpus = self.privcmd.domain_info(self.domain);
        let vcpus = vcpus.map_or(0, |info| info.vcpus());
        let look = |vcpu| self.privcmd.vcpu_info(self.domain, vcpu).ok().flatten();
        let mut rounds = ROUNDS;
        for vcpu in 0..vcpus {
            let Some(first) = look(vcpu) else {
                continue;
            };
            let mut now = Some(first);
            let waits = |v: &VcpuInfo| v.online && !v.blocked && v.cpu_time == first.cpu_time;
            while rounds > 0 && now.as_ref().is_some_and(waits) {
                rounds -= 1;
                thread::sleep(Duration::from_millis(1));
                now = look(vcpu);
            }
        }
    }

    /// Ends the monitor and ignores errors: no caller could act on them.
    fn close(&mut self) {
        for event in &self.enabled {
            let _ = self.privcmd.disable_event(self.domain, event);
        }
        let _ = self.drain();
        if self.answered {
            self.settle();
        }
        for _ in 0..ROUNDS {
            // A virtual CPU that is paused has no event between the last look and the end.
            let paused = self.privcmd.pause(self.domain).is_ok();
            let drained = self.drain();
            let done = match drained {
                Ok(()) => self.privcmd.disable_monitor(self.domain),
                Err(_) => self.privcmd.recover_from_monitor(self.domain),
            };
            if paused {
                let _ = self.privcmd.unpause(self.domain);
            }
            if done.map_or_else(|e| e.errno(), |()| None) != Some(libc::EBUSY) {
                return;
            }
            // A virtual CPU waits for room in the ring, and takes it only when it runs.
            thread::sleep(Duration::from_millis(1));
            let _ = self.drain();
        }
    }
}

impl Drop for Monitor<'_> {
    fn drop(&mut self) {
        self.close();
    }
}

impl AsFd for Monitor<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channels.as_fd()
    }
}

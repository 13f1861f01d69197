//! Reports each write to a page of a guest, and lets the guest continue.
//!
//! ```text
//! trace-writes 5 0x7c00                   # in domain 0, of domain 5, until the guest ends
//! trace-writes 5 0x7c00 --count 10        # ten writes
//! ```
//!
//! Needs a processor by which Xen restricts the memory of guests: Intel's or Arm's.
//!
//! Xen executes each write itself where it can (x86). Elsewhere (Arm) the page is open for
//! `--interval` milliseconds after each report, so that writes in that time are not reported.

use std::error::Error;
use std::io::{Write as _, stdout};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use xen_evtchn::monitor::Monitor;
use xen_sys::monitor::{AccessFlags, AccessViolation, Event, EventKind, Response};
use xen_sys::privcmd::{DomainFlags, MemoryAccess, Privcmd};
use xen_sys::{DomId, PAGE_SIZE, Xen};

/// Reports each write to a page of a guest.
#[derive(Debug, Parser)]
struct Options {
    /// The guest's number.
    domain: DomId,
    /// A guest-physical address in the page.
    #[arg(value_parser = number)]
    address: u64,
    /// End after so many writes.
    #[arg(long)]
    count: Option<u64>,
    /// End after so many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// Milliseconds for which the page is open after a report, where Xen does not emulate.
    #[arg(long, default_value_t = 10)]
    interval: u64,
}

/// A number, decimal or after `0x` hexadecimal.
fn number(text: &str) -> Result<u64, std::num::ParseIntError> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    }
}

pub(crate) fn main() -> ExitCode {
    match trace(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("trace-writes: {e}");
            ExitCode::FAILURE
        }
    }
}

/// The interval of looks at whether the guest has ended, which raises no event.
const LOOKS: Duration = Duration::from_secs(1);

/// Xen emulates instructions of x86 guests alone.
const EMULATES: bool = cfg!(target_arch = "x86_64");

/// One page whose writes are reported.
struct Page<'p> {
    privcmd: &'p Privcmd,
    domain: DomId,
    frame: u64,
}

impl Page<'_> {
    fn permit(&self, permission: MemoryAccess) -> xen_sys::Result<()> {
        let frames = self.frame..self.frame + 1;
        self.privcmd.set_mem_access(self.domain, frames, permission)
    }
}

impl Drop for Page<'_> {
    fn drop(&mut self) {
        // While there is a monitor. Xen lifts it by itself at the next write otherwise.
        let _ = self.permit(MemoryAccess::Rwx);
    }
}

fn trace(options: &Options) -> Result<(), Box<dyn Error>> {
    let xen = Xen::open()?;
    let privcmd = Privcmd::open(&xen)?;
    let ends = options
        .seconds
        .map(|s| Instant::now() + Duration::from_secs(s));
    let mut monitor = Monitor::open(&xen, &privcmd, options.domain)?;
    let page = Page {
        privcmd: &privcmd,
        domain: options.domain,
        frame: options.address / PAGE_SIZE as u64,
    };
    page.permit(MemoryAccess::Rx)?;
    let mut left = options.count.unwrap_or(u64::MAX);
    // When the page is restricted again.
    let mut closes: Option<Instant> = None;
    while left > 0 {
        let looks = Some(Instant::now() + LOOKS);
        let deadline = [ends, closes, looks].into_iter().flatten().min();
        if let Some(event) = monitor.next(deadline)? {
            if let EventKind::MemoryAccess(access) = event.kind {
                if access.frame == page.frame && access.flags.contains(AccessFlags::WRITE) {
                    writeln!(stdout(), "{}", line(&event, &access))?;
                    left -= 1;
                }
            }
            let resume = Response::resume(&event);
            match EMULATES {
                true => monitor.respond(&resume.emulate())?,
                false => {
                    page.permit(MemoryAccess::Rwx)?;
                    closes = Some(Instant::now() + Duration::from_millis(options.interval));
                    monitor.respond(&resume)?;
                }
            }
        }
        let now = Instant::now();
        if looks.is_some_and(|looks| now >= looks) && has_ended(&privcmd, options.domain)? {
            break;
        }
        if ends.is_some_and(|ends| now >= ends) {
            break;
        }
        if closes.is_some_and(|closes| now >= closes) {
            closes = None;
            page.permit(MemoryAccess::Rx)?;
        }
    }
    Ok(())
}

fn has_ended(privcmd: &Privcmd, guest: DomId) -> xen_sys::Result<bool> {
    match privcmd.domain_info(guest) {
        Ok(info) => Ok(info.flags.contains(DomainFlags::DYING)),
        Err(xen_sys::Error::NoDomain { .. }) => Ok(true),
        Err(e) => Err(e),
    }
}

fn line(event: &Event, access: &AccessViolation) -> String {
    let at = access
        .frame
        .wrapping_mul(PAGE_SIZE as u64)
        .wrapping_add(access.offset);
    let by = event.registers.program_counter();
    let seen = match access.address {
        Some(address) => format!(" at {address:#x}"),
        None => String::new(),
    };
    format!("vCPU {}: write to {at:#x}{seen} by {by:#x}", event.vcpu)
}

//! The HVM guest's monitor: what an AMD processor can report, and what it cannot.
//!
//! No breakpoint: for an `int3` QEMU looks at the intercept of software interrupts, not at that of
//! the exception, and the guest dies of it.

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use xen_evtchn::monitor::Monitor;
use xen_sys::monitor::{
    ControlRegister, EventKind, MonitorEvent, MonitorEvents, Registers, Response,
};
use xen_sys::privcmd::{MemoryAccess, Privcmd};
use xen_sys::{DomId, Error, Xen};

use super::hypercalls::privcmd;
use crate::guest::{self, Guest};
use crate::host::{TestHost, soon, start_local};
use crate::suite::{Needs, Test};

/// The leaf of the guest's `cpuid`, and the EAX of the monitor's answer.
const LEAF: u32 = 0x4d4f_4e31;
const ANSWER: u32 = 0x600d_cafe;

pub(super) fn add(tests: &mut Vec<Test>) {
    for (name, body) in [
        ("capabilities", capabilities as fn(&TestHost) -> Result<()>),
        ("machine_cannot", machine_cannot),
        ("events", events),
        ("dropped", dropped),
        ("killed", killed),
    ] {
        let booted = move |host: &TestHost| {
            // Firmware executes `cpuid`, too.
            host.with_guest(|_, guest| alive(guest))?;
            body(host)
        };
        tests.push(Test::new(format!("monitor/{name}"), Needs::Guest, booted));
    }
}

/// The monitor's events in their order; each is answered by `answer`, which ends the loop with
/// `false`.
fn watch(
    monitor: &mut Monitor<'_>,
    mut answer: impl FnMut(&mut Monitor<'_>, xen_sys::monitor::Event) -> Result<bool>,
) -> Result<()> {
    let deadline = soon();
    loop {
        let event = monitor.next(Some(deadline))?.context("no event came")?;
        if !answer(monitor, event)? {
            return Ok(());
        }
    }
}

/// The guest's answer to `!`.
fn monitored(guest: &mut Guest) -> Result<String> {
    guest.output_after("xen-guest: monitored cpuid=")
}

fn alive(guest: &mut Guest) -> Result<()> {
    guest.catch_up()?;
    guest.output_after("xen-guest: alive second=").map(drop)
}

fn capabilities(_: &TestHost) -> Result<()> {
    let (privcmd, hvm) = (privcmd()?, guest::domid(guest::NAME)?);
    let events = privcmd.monitor_capabilities(hvm)?;
    println!("    {events:?}");
    let there = MonitorEvents::CPUID
        | MonitorEvents::GUEST_REQUEST
        | MonitorEvents::SOFTWARE_BREAKPOINT
        | MonitorEvents::WRITE_CONTROL_REGISTER;
    ensure!(events.contains(there), "{events:?}");
    ensure!(!events.contains(MonitorEvents::PRIVILEGED_CALL));
    // Its stubdomain is PV.
    let stub = privcmd.monitor_capabilities(guest::domid(guest::STUB)?)?;
    ensure!(stub.is_empty(), "{stub:?}");
    Ok(())
}

fn machine_cannot(_: &TestHost) -> Result<()> {
    let (xen, privcmd, hvm) = (Xen::open()?, privcmd()?, guest::domid(guest::NAME)?);
    let unsupported = |call: &str, result: xen_sys::Result<()>| match result {
        Err(Error::Unsupported { .. }) => Ok(()),
        other => bail!("{call}: {other:?}"),
    };
    let frame = 0x10;
    let each = [(frame, MemoryAccess::Rx), (frame + 1, MemoryAccess::Rwx)];
    let rx = MemoryAccess::Rx;
    unsupported("set", privcmd.set_mem_access(hvm, frame..frame + 1, rx))?;
    unsupported("get", privcmd.mem_access(hvm, frame).map(drop))?;
    unsupported("each", privcmd.set_mem_access_each(hvm, &each))?;
    unsupported("default", privcmd.set_default_mem_access(hvm, rx))?;
    let stub = guest::domid(guest::STUB)?;
    unsupported("PV", Monitor::open(&xen, &privcmd, stub).map(drop))?;
    unsupported("a step", privcmd.set_single_step(hvm, 0, true))?;
    let mut monitor = Monitor::open(&xen, &privcmd, hvm)?;
    unsupported("SMC", monitor.enable(MonitorEvent::PrivilegedCall))?;
    unsupported("MTF", monitor.enable(MonitorEvent::SingleStep))?;
    drop(monitor);

    let nobody = DomId::new(0x7000);
    for result in [
        Monitor::open(&xen, &privcmd, nobody).map(drop),
        privcmd.monitor_capabilities(nobody).map(drop),
        privcmd.disable_monitor(nobody),
        privcmd.recover_from_monitor(nobody),
        privcmd.set_mem_access(nobody, 0..1, rx),
    ] {
        ensure!(matches!(result, Err(Error::NoDomain { .. })), "{result:?}");
    }
    let own = Monitor::open(&xen, &privcmd, DomId::DOM0).map(drop);
    ensure!(
        own.as_ref().is_err_and(|e| e.errno() == Some(22)),
        "{own:?}"
    );
    Ok(())
}

fn events(host: &TestHost) -> Result<()> {
    host.with_guest(|host, guest| {
        let (xen, privcmd) = (Xen::open()?, privcmd()?);
        let mut monitor = Monitor::open(&xen, &privcmd, guest.id)?;
        let second = Monitor::open(&xen, &privcmd, guest.id).map(drop);
        ensure!(
            second.as_ref().is_err_and(|e| e.errno() == Some(16)),
            "{second:?}"
        );
        let cr4 = MonitorEvent::WriteControlRegister {
            register: ControlRegister::CR4,
            pause: true,
            on_change_only: false,
            ignored_bits: 0,
        };
        let request = MonitorEvent::GuestRequest {
            pause: true,
            allow_userspace: false,
        };
        monitor.enable(MonitorEvent::Cpuid)?;
        monitor.enable(cr4)?;
        monitor.enable(request)?;
        let twice = monitor.enable(cr4);
        ensure!(
            twice.as_ref().is_err_and(|e| e.errno() == Some(17)),
            "{twice:?}"
        );
        guest.catch_up()?;
        guest.types(&host.store, "!")?;
        let mut seen = Vec::new();
        watch(&mut monitor, |monitor, event| {
            ensure!(event.vcpu == 0 && event.paused, "{event:?}");
            match event.kind {
                EventKind::Cpuid {
                    length,
                    leaf,
                    subleaf,
                } => {
                    ensure!((length, leaf, subleaf) == (2, LEAF, 7), "{event:?}");
                    let Registers::X86(mut regs) = event.registers else {
                        bail!("{event:?}");
                    };
                    seen.push("cpuid");
                    regs.rax = ANSWER.into();
                    regs.rip += u64::from(length);
                    let changed = Registers::X86(regs);
                    let response = Response::resume(&event).registers(&changed);
                    monitor.respond(&response)?;
                    let twice = monitor.respond(&response);
                    ensure!(matches!(twice, Err(Error::Invalid { .. })), "{twice:?}");
                }
                EventKind::WriteControlRegister { register, new, .. } => {
                    ensure!((register, new) == (ControlRegister::CR4, 4), "{event:?}");
                    seen.push("cr4");
                    monitor.respond(&Response::resume(&event))?;
                }
                EventKind::GuestRequest => {
                    seen.push("request");
                    monitor.respond(&Response::resume(&event))?;
                    return Ok(false);
                }
                _ => bail!("{event:?}"),
            }
            Ok(true)
        })?;
        ensure!(seen == ["cpuid", "cr4", "request"], "{seen:?}");
        let said = monitored(guest)?;
        ensure!(
            said == format!("{ANSWER:#010x} request=0x00000000"),
            "{said}"
        );
        monitor.disable(&cr4)?;
        monitor.disable(&MonitorEvent::Cpuid)?;
        guest.types(&host.store, "!")?;
        watch(&mut monitor, |monitor, event| {
            ensure!(event.kind == EventKind::GuestRequest, "{event:?}");
            monitor.respond(&Response::resume(&event))?;
            Ok(false)
        })?;
        monitored(guest)?;
        drop(monitor);
        alive(guest)
    })
}

/// A virtual CPU that is paused for an event continues when the monitor is dropped.
fn dropped(host: &TestHost) -> Result<()> {
    host.with_guest(|host, guest| {
        let (xen, privcmd) = (Xen::open()?, privcmd()?);
        // The ring's page is taken from the guest and given back each time.
        let pages = privcmd.current_pages(guest.id)?;
        for taken in [true, false, true] {
            let mut monitor = Monitor::open(&xen, &privcmd, guest.id)?;
            monitor.enable(MonitorEvent::Cpuid)?;
            guest.catch_up()?;
            guest.types(&host.store, "!")?;
            if taken {
                let event = monitor.next(Some(soon()))?.context("no event")?;
                ensure!(matches!(event.kind, EventKind::Cpuid { .. }), "{event:?}");
            } else {
                readable(&monitor)?;
            }
            drop(monitor);
            // The instruction is executed again, by Xen.
            let said = monitored(guest)?;
            ensure!(!said.starts_with("0x600dcafe"), "{said}");
        }
        let now = privcmd.current_pages(guest.id)?;
        ensure!(
            now == pages || now + 1 == pages,
            "{pages} pages, then {now}"
        );
        alive(guest)
    })
}

/// Waits until an event is in the ring, and takes none.
fn readable(monitor: &Monitor<'_>) -> Result<()> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd as _;
    let mut fds = [PollFd::new(monitor.as_fd(), PollFlags::POLLIN)];
    ensure!(poll(&mut fds, PollTimeout::from(60_000u16))? == 1);
    Ok(())
}

/// A call ends the monitor of a killed program and lets the guest continue.
fn killed(host: &TestHost) -> Result<()> {
    host.with_guest(|host, guest| {
        let (xen, privcmd): (Xen, Privcmd) = (Xen::open()?, privcmd()?);
        let id = guest.id.to_string();
        let mut silent = start_local(&["self", "role", "monitor-silent", &id])?;
        silent.expect("ready", soon())?;
        guest.catch_up()?;
        guest.types(&host.store, "!")?;
        silent.expect("event", soon())?;
        silent.kill(Signal::SIGKILL)?;
        silent.exit(soon())?;
        let busy = Monitor::open(&xen, &privcmd, guest.id).map(drop);
        ensure!(
            busy.as_ref().is_err_and(|e| e.errno() == Some(16)),
            "{busy:?}"
        );
        let before = privcmd.vcpu_info(guest.id, 0)?.context("no vCPU")?.cpu_time;
        // Two seconds of ticks, which a virtual CPU that runs would count.
        std::thread::sleep(std::time::Duration::from_secs(2));
        let after = privcmd.vcpu_info(guest.id, 0)?.context("no vCPU")?.cpu_time;
        ensure!(before == after, "it runs: {before:?}, {after:?}");
        privcmd.recover_from_monitor(guest.id)?;
        monitored(guest)?;
        // The next monitor is a monitor like any other.
        let mut monitor = Monitor::open(&xen, &privcmd, guest.id)?;
        monitor.enable(MonitorEvent::Cpuid)?;
        guest.types(&host.store, "!")?;
        watch(&mut monitor, |monitor, event| {
            let EventKind::Cpuid { length, .. } = event.kind else {
                bail!("{event:?}");
            };
            monitor.respond(&Response::skip(&event, length))?;
            Ok(false)
        })?;
        monitored(guest)?;
        drop(monitor);
        alive(guest)
    })
}

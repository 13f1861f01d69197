//! The memory of hypercalls on a real kernel: the driver's, kept between calls, and without it.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use xen_sys::privcmd::Privcmd;
use xen_sys::{DomId, Xen};

use crate::world::{Place, World};

/// Mappings of `/dev/xen/hypercall` in this process.
fn mapped() -> Result<usize> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    Ok(maps.lines().filter(|l| l.ends_with("/hypercall")).count())
}

/// A call takes its buffer from the driver, the next ones take the same, a caller that panics gives
/// it back, and the handle takes all of them with it.
pub(super) fn buffers(_: &World) -> Result<()> {
    let before = mapped()?;
    let privcmd = Privcmd::open(&Xen::open()?)?;
    let calls = || -> Result<()> {
        privcmd.xen_version()?;
        privcmd.domain_info(DomId::DOM0)?;
        Ok(())
    };
    calls()?;
    let one = mapped()?;
    ensure!(one > before, "no buffer is the driver's");
    for _ in 0..100 {
        calls()?;
    }
    ensure!(mapped()? == one, "{} buffers after {one}", mapped()?);

    let had_buffer = AtomicBool::new(false);
    let panicked = std::thread::scope(|scope| {
        let caller = scope.spawn(|| {
            let buffer = privcmd.buffer(1);
            had_buffer.store(buffer.is_ok(), Ordering::Relaxed);
            // Without the message of a panic on the suite's output.
            std::panic::resume_unwind(Box::new("between two calls"));
        });
        caller.join().is_err()
    });
    ensure!(panicked && had_buffer.load(Ordering::Relaxed));
    ensure!(mapped()? == one, "a buffer is lost");
    calls()?;

    let held = [privcmd.buffer(1)?, privcmd.buffer(1)?, privcmd.buffer(1)?];
    ensure!(mapped()? == before + 3, "two callers share a buffer");
    drop(held);
    drop(privcmd);
    ensure!(mapped()? == before, "a buffer outlives its handle");
    Ok(())
}

/// Calls work by locked memory where the driver's device is missing.
pub(super) fn without_device(world: &World) -> Result<()> {
    world.run_role(Place::Dom0, &["without-hypercall-device"])
}

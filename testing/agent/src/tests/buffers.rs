//! The memory of hypercalls on a real kernel: the driver's, kept between calls, and without it.

use anyhow::{Result, anyhow, ensure};
use xen_sys::privcmd::Privcmd;
use xen_sys::{DomId, Xen};

use crate::host::{Place, TestHost};

/// Mappings of `/dev/xen/hypercall` in this process.
fn mapped() -> Result<usize> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    Ok(maps.lines().filter(|l| l.ends_with("/hypercall")).count())
}

/// A call takes its buffer from the driver, and the next ones take the same. A thread that ends
/// gives it back. The handle takes all of them with it.
pub(super) fn buffers(_: &TestHost) -> Result<()> {
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

    std::thread::scope(|scope| {
        let caller = scope.spawn(|| privcmd.buffer(1).map(drop));
        caller.join().map_err(|_| anyhow!("the caller panicked"))
    })??;
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
pub(super) fn without_device(host: &TestHost) -> Result<()> {
    host.run_role(Place::Dom0, &["without-hypercall-device"])
}

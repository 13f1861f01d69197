//! The kernel's memory settings before QEMU asks for any.

use tracing::warn;

/// The kernel's rule for promises of memory (Documentation/mm/overcommit-accounting.rst).
const RULE: &str = "/proc/sys/vm/overcommit_memory";

/// Lets QEMU reserve more than there is. Since its release 9.1 it begins with a table of 384 MiB,
/// for every page of the guest it might ever map, of which it touches next to nothing; by the
/// kernel's default rule a stubdomain of 400 MiB does not get it.
pub fn promise_freely() {
    if let Err(error) = std::fs::write(RULE, "1") {
        warn!("{RULE}: {error}");
    }
}

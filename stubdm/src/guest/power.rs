//! The end of the domain. As PID 1 this process must not exit: the kernel would panic without a
//! useful reason.

use std::fs;

use nix::sys::reboot::{RebootMode, reboot};
use tracing::{error, info};

use crate::rt::log;

/// Returns whether this process is the domain's init.
pub fn is_init() -> bool {
    std::process::id() == 1
}

/// Ends the domain, if this is its init, for the reason that the toolstack sees: `poweroff` if it
/// ended well, else `crash`.
pub fn end(well: bool) {
    if is_init() && !well {
        crash();
    }
    off();
}

/// Makes the kernel panic, which is how a domain gets the reason `crash`. Returns if it cannot.
fn crash() {
    // The reason has been logged; the kernel's own messages would only push it out of sight.
    let _ = fs::write("/proc/sys/kernel/printk", "0");
    nix::unistd::sync();
    if let Err(error) = fs::write("/proc/sysrq-trigger", "c") {
        error!("crashing: {error}");
    }
}

/// Powers the domain off, if this is its init.
pub fn off() {
    if !is_init() {
        return;
    }
    info!("powering off");
    nix::unistd::sync();
    // It returns only if it failed.
    let Err(errno) = reboot(RebootMode::RB_POWER_OFF);
    error!("powering off: {}", errno.desc());
    // The kernel's own way of ending a domain whose init has ended.
    std::process::abort();
}

/// Makes a panic of ours end the domain, too: nobody else is left to notice it.
pub fn off_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        log::complain(format_args!("internal error: {panic}"));
        end(false);
    }));
}

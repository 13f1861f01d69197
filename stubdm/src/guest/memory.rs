//! The kernel's memory settings before QEMU asks for any, and where the memory is.

use std::fs;

use nix::unistd::Pid;
use tracing::warn;

/// The kernel's rule for promises of memory (Documentation/mm/overcommit-accounting.rst).
const RULE: &str = "/proc/sys/vm/overcommit_memory";

/// Lets QEMU reserve more than there is. Since its release 9.1 it begins with a table of 384 MiB,
/// for every page of the guest it might ever map, of which it touches next to nothing; by the
/// kernel's default rule a stubdomain of 400 MiB does not get it.
pub fn promise_freely() {
    if let Err(error) = fs::write(RULE, "1") {
        warn!("{RULE}: {error}");
    }
}

/// The lines of `/proc/meminfo` that are shown.
const ALL: &[&str] = &[
    "MemTotal",
    "MemFree",
    "MemAvailable",
    "Cached",
    "Shmem",
    "AnonPages",
    "Slab",
    "PageTables",
    "KernelStack",
];

/// The lines of a process's `status` that are shown.
const OWN: &[&str] = &["RssAnon", "RssFile", "RssShmem"];

/// Describes where this domain's memory is, in KiB, as the kernel counts it.
pub fn of_domain() -> String {
    numbers(
        &fs::read_to_string("/proc/meminfo").unwrap_or_default(),
        ALL,
    )
}

/// Describes where the memory is, in KiB, as the kernel counts it: of this domain, of this program,
/// and of QEMU.
pub fn facts(qemu: Pid) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let all = of_domain();
    let init = numbers(&read("/proc/self/status"), OWN);
    let qemu = numbers(&read(&format!("/proc/{qemu}/status")), OWN);
    format!("memory in KiB: {all}; init: {init}; QEMU: {qemu}")
}

/// Returns the named lines of `Name:  123 kB` as `Name 123, …`.
fn numbers(text: &str, names: &[&str]) -> String {
    let line = |name: &&str| {
        let mut lines = text.lines().filter_map(|line| line.split_once(':'));
        let (_, value) = lines.find(|(own, _)| own == name)?;
        Some(format!("{name} {}", value.split_whitespace().next()?))
    };
    let all: Vec<_> = names.iter().filter_map(line).collect();
    all.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_numbers_are_shown_by_their_names() {
        let text = "MemTotal:         126000 kB\nCached:  7 kB\nSwapCached:   9 kB\n";
        assert_eq!(numbers(text, ALL), "MemTotal 126000, Cached 7");
        let own = facts(Pid::this());
        assert!(
            own.contains("MemTotal") && own.contains("QEMU: RssAnon"),
            "{own}"
        );
    }
}

//! A process as the kernel sees it.

use std::fs;

use nix::unistd::Pid;

/// The user, capabilities and restrictions of a process, as the kernel sees them, in one line.
pub fn status(pid: Pid) -> String {
    summary(&fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default())
}

/// The lines of `/proc/PID/status` that matter, in one.
fn summary(status: &str) -> String {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let words = line.unwrap_or(" ?").split_whitespace();
        words.collect::<Vec<_>>().join(" ")
    };
    format!(
        "user {}, capabilities {} of {}, no new privileges {}, seccomp {}",
        field("Uid:"),
        field("CapPrm:"),
        field("CapBnd:"),
        field("NoNewPrivs:"),
        field("Seccomp:")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_become_one_line() {
        let status = "Name:\tqemu\nUid:\t1000\t1000\t1000\t1000\nCapInh:\t0\nCapPrm:\t0000000000000000\nCapBnd:\t000001ffffffffff\n\
                      NoNewPrivs:\t1\nSeccomp:\t0\nSeccomp_filters:\t0\n";
        assert_eq!(
            summary(status),
            "user 1000 1000 1000 1000, capabilities 0000000000000000 of 000001ffffffffff, no new privileges 1, seccomp 0"
        );
        assert!(summary("").starts_with("user ?, "));
    }
}

//! `cargo xtask bench calls`: calls of the hypervisor beside Xen's C libraries, and the page that
//! shows them.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use crate::bench;
use crate::host::Options;
use crate::workspace::Workspace;

/// Each operation's name in the agent, and what it is.
const OPERATIONS: &[(&str, &str)] = &[
    ("hypercall", "a hypercall without an argument"),
    ("info", "a domain's information"),
    ("map", "foreign frames mapped read-only, read, unmapped"),
    ("grant-map", "grants mapped read-only, read, unmapped"),
    ("grant-copy", "grant copy, segments of 64 B"),
    ("notify", "an event sent"),
    ("events", "events sent, received, unmasked"),
];

/// Runs it and writes `calls.md` into the folder.
pub(crate) fn run(
    workspace: &Workspace,
    options: &Options,
    out: &Path,
    timeout: Duration,
) -> Result<ExitCode> {
    let rows = bench::values(
        workspace,
        options,
        "exec xen-testbed-agent bench-calls",
        timeout,
    )?;
    bench::write_page(out, "calls.md", &page(&rows, options.release.name))?;
    Ok(ExitCode::SUCCESS)
}

fn page(rows: &[Value], release: &str) -> String {
    let mut page = format!(
        "# Calls of the hypervisor, beside Xen's C libraries\n\n\
         Written by `cargo xtask bench calls`. Xen {release} in QEMU, two programs with the same\n\
         loops on one processor of dom0, each operation by itself; the guest is a running HVM\n\
         guest, the grants are dom0's own. The runs of a line are interleaved. A time is the median\n\
         of the rounds, a ratio the median of the rounds' ratios with its quartiles: C's time over\n\
         ours. In the last column the C library is given one page or segment for each call.\n\n\
         The machine's clock counts instructions, those of the kernel and of Xen included. The\n\
         ratios show who needs less work.\n\n\
         | operation | units | ours | C | C / ours | C one by one / ours |\n\
         |---|---|---|---|---|---|\n"
    );
    for row in rows {
        let operation = row["operation"].as_str().unwrap_or_default();
        let name = OPERATIONS.iter().find(|(key, _)| *key == operation);
        let name = name.map_or(operation, |(_, name)| name);
        let micros = |key: &str| row[key].as_f64().unwrap_or(f64::NAN) / 1000.0;
        let ratio = |key: &str| {
            let at = |index: usize| row[key][index].as_f64();
            match (at(0), at(1), at(2)) {
                (Some(low), Some(middle), Some(high)) => {
                    format!("{middle:.2} ({low:.2} to {high:.2})")
                }
                _ => String::new(),
            }
        };
        page += &format!(
            "| {name} | {} | {:.2} µs | {:.2} µs | {} | {} |\n",
            row["units"],
            micros("ours_ns"),
            micros("c_ns"),
            ratio("ratio"),
            ratio("ratio_one_by_one"),
        );
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_page_has_a_line_for_each_operation() {
        let rows = [
            json!({"operation": "map", "units": 16, "ours_ns": 1500.0, "c_ns": 1800.0,
                "ratio": [1.1, 1.2, 1.3], "ratio_one_by_one": [4.0, 4.25, 5.0]}),
            json!({"operation": "notify", "units": 1, "ours_ns": 10.0, "c_ns": 10.0,
                "ratio": [1.0, 1.0, 1.0], "ratio_one_by_one": null}),
        ];
        let page = page(&rows, "4.17");
        let line = "| foreign frames mapped read-only, read, unmapped | 16 | 1.50 µs | 1.80 µs \
             | 1.20 (1.10 to 1.30) | 4.25 (4.00 to 5.00) |";
        assert!(page.contains(line), "{page}");
        assert!(page.ends_with("| 1.00 (1.00 to 1.00) |  |\n"), "{page}");
    }
}

//! `cargo xtask bench qmp`: our proxy and the distribution's on one guest, and the page that shows
//! it.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use crate::bench;
use crate::host::Options;
use crate::workspace::Workspace;

/// Runs it and writes `qmp.md` into the folder.
pub(crate) fn run(
    workspace: &Workspace,
    options: &Options,
    out: &Path,
    timeout: Duration,
) -> Result<ExitCode> {
    let rows = bench::values(
        workspace,
        options,
        "exec xen-testbed-agent bench-qmp",
        timeout,
    )?;
    bench::write_page(out, "qmp.md", &page(&rows, options.release.name))?;
    // A connection of ours that fails is a fault, whatever the others do.
    let failed = rows.iter().find(|row| row["proxy"] == "stubdm-run");
    let failed = failed.and_then(|row| row["failed"].as_u64());
    Ok(match failed {
        Some(0) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn page(rows: &[Value], release: &str) -> String {
    let mut page = format!(
        "# The host's QMP proxy and upstream's\n\n\
         Written by `cargo xtask bench qmp`. Xen {release} in QEMU, one guest whose QEMU runs in a\n\
         stubdomain with our server in it; the proxies one after another in dom0.\n\n\
         * `stubdm-run` is ours as libxl starts it: under the built-in policy, in a sandbox.\n\
         * A conversation is libxl's for one operation: connect, greeting, capabilities, one\n  \
           command (`query-status`), close.\n\
         * A connection fails if a step takes three seconds; after forty failures no more are tried.\n\
         * A start ends when the proxy writes `running` to the store. The first answer is the end\n  \
           of the first conversation, counted from the start.\n\
         * Times are the median and the 99th percentile. The machine's clock counts instructions:\n  \
           they show who needs less work, not how long it takes on a real machine.\n\n\
         | proxy | start | first answer | one command | one conversation \
         | connections in a row | failed |\n\
         |---|---|---|---|---|---|---|\n"
    );
    for row in rows {
        let time = |key: &str| match (row[key][0].as_u64(), row[key][1].as_u64()) {
            (Some(half), Some(most)) => {
                let milli = |micros| micros as f64 / 1000.0;
                format!("{:.2} ms, {:.2} ms", milli(half), milli(most))
            }
            _ => String::new(),
        };
        let name = row["proxy"].as_str().unwrap_or_default();
        let (tried, failed) = match row["connections"].as_u64() {
            Some(0) | None => (String::new(), String::new()),
            Some(tried) => (tried.to_string(), row["failed"].to_string()),
        };
        page += &format!(
            "| {name} | {} | {} | {} | {} | {tried} | {failed} |\n",
            time("start_us"),
            time("answer_us"),
            time("command_us"),
            time("conversation_us"),
        );
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_page_has_a_line_for_each_proxy() {
        let ours = json!({"proxy": "stubdm-run", "start_us": [1500, 1600],
            "answer_us": [1700, 1800], "command_us": [700, 800],
            "conversation_us": [900, 1000], "connections": 1000, "failed": 0});
        let theirs = json!({"proxy": "vchan-socket-proxy", "start_us": [1, 2], "command_us": [1, 2],
            "conversation_us": null, "connections": 40, "failed": 40});
        let page = page(&[ours, theirs], "4.17");
        assert!(page.contains(
            "| stubdm-run | 1.50 ms, 1.60 ms | 1.70 ms, 1.80 ms | 0.70 ms, 0.80 ms \
             | 0.90 ms, 1.00 ms | 1000 | 0 |"
        ));
        assert!(page.contains("|  | 40 | 40 |"), "{page}");
    }
}

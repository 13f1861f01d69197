//! `cargo xtask bench start`: a guest's start by steps, and its stubdomain's memory by items, and
//! the pages that show them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::bench;
use crate::host::Options;
use crate::workspace::Workspace;

/// Each step's name in the agent, and its explanation.
const STEPS: &[(&str, &str)] = &[
    (
        "guest's domain",
        "`xl` starts, reads the configuration, makes the domain and its nodes. Where\n  \
         Xen has too little free memory, as before the first start, it sleeps until dom0 has given some",
    ),
    (
        "guest's memory",
        "libxl allocates it and loads hvmloader; without a stubdomain a part of \"QEMU\"",
    ),
    (
        "stubdomain",
        "libxl makes the second domain and copies its kernel and ramdisk into its memory",
    ),
    (
        "proxy and console server",
        "libxl attaches the disk and starts both, one after the other",
    ),
    ("kernel", "Linux, from its first instruction to the init's"),
    (
        "init",
        "ours mounts the compressed root, loads modules, reads the store, waits for the disk and\n  \
         confines QEMU; the shell does it without confinement, each step in a process",
    ),
    (
        "QEMU",
        "from its `exec` to `running` in the store. In a stubdomain its pages are decompressed as\n  \
         they are used, and its first QMP answer to the init, the vchan's server and `cont` are in it",
    ),
    (
        "unpausing",
        "libxl sees `running`, has QEMU continue by QMP, and `xl` ends",
    ),
    (
        "first answer",
        "a client connects, negotiates and asks `query-status`",
    ),
];

/// The ways a guest starts, in the agent and in the table.
const WAYS: &[(&str, &str)] = &[
    ("stubdm-run", "stubdm-run"),
    ("shell", "a shell as init"),
    ("dom0", "QEMU in dom0"),
];

/// Runs it and writes `start.md` and `memory.md` into the folder.
pub(crate) fn run(
    workspace: &Workspace,
    options: &Options,
    out: &Path,
    timeout: Duration,
) -> Result<ExitCode> {
    let script = include_str!("../assets/bench-start.sh");
    let rows = bench::values(workspace, options, script, timeout)?;
    let start = start(&rows, options.release.name)?;
    let memory = memory(&rows, options.release.name)?;
    bench::write_page(out, "start.md", &start)?;
    bench::write_page(out, "memory.md", &memory)?;
    Ok(ExitCode::SUCCESS)
}

/// The steps of each start of a way, in milliseconds.
fn starts<'a>(rows: &'a [Value], way: &str) -> Vec<&'a Value> {
    let of_way = rows.iter().filter(|row| row["way"] == way);
    of_way.map(|row| &row["steps"]).collect()
}

/// Returns the median, the least and the most, or nothing of nothing.
fn spread(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    match &values[..] {
        [] => "–".to_owned(),
        [low, .., high] => {
            let middle = values[values.len() / 2];
            format!("{middle:.0} ({low:.0} to {high:.0})")
        }
        [one] => format!("{one:.0}"),
    }
}

fn start(rows: &[Value], release: &str) -> Result<String> {
    let count = starts(rows, WAYS[0].0).len();
    ensure!(count > 0, "no start was measured");
    let names: Vec<&str> = WAYS.iter().map(|(_, name)| *name).collect();
    let mut page = format!(
        "# A guest's start, by steps\n\n\
         Written by `cargo xtask bench start`. Xen {release} in QEMU, {count} starts of the same HVM\n\
         guest in each way, in turn, its stubdomain with 400 MiB and a packed ramdisk. Milliseconds\n\
         of the machine's clock, which counts instructions, those of the kernels and of Xen\n\
         included: the median, the least and the most. The shell does what stubdm-run does without\n\
         confinement, with upstream's server for QMP; its proxy in dom0 is ours.\n\n\
         | step | {} |\n|---|{}\n",
        names.join(" | "),
        "---|".repeat(WAYS.len()),
    );
    for (step, _) in STEPS {
        page += &format!("| {step} |");
        for (way, _) in WAYS {
            let starts = starts(rows, way);
            let times = starts.iter().filter_map(|steps| steps[step].as_f64());
            page += &format!(" {} |", spread(times.collect()));
        }
        page += "\n";
    }
    for (name, last) in [("`xl create` to `running`", "QEMU"), ("in all", "")] {
        page += &format!("| **{name}** |");
        for (way, _) in WAYS {
            let sum = |steps: &&Value| -> f64 {
                let upto = STEPS.iter().position(|(step, _)| *step == last);
                let steps = STEPS[..upto.map_or(STEPS.len(), |at| at + 1)]
                    .iter()
                    .filter_map(|(step, _)| steps[step].as_f64());
                steps.sum()
            };
            page += &format!(" {} |", spread(starts(rows, way).iter().map(sum).collect()));
        }
        page += "\n";
    }
    page += "\n";
    for (step, text) in STEPS {
        page += &format!("* **{step}**: {text}.\n");
    }
    if let [kernel] = starts(rows, "kernel")[..] {
        let at = |key: &str| kernel[key].as_f64().unwrap_or(f64::NAN);
        let (begin, unpacked, init) = (
            at("until it unpacks"),
            at("unpacking"),
            at("until the init"),
        );
        page += &format!(
            "\nThe kernel's own clock, in one start with its messages printed: {begin:.0} ms until it\n\
             unpacks the ramdisk, {:.0} ms of unpacking, beside which its drivers start, {:.0} ms more\n\
             until it executes the init.\n",
            unpacked - begin,
            init - unpacked,
        );
    }
    Ok(page)
}

/// Reads `Name 123, Other 45; init: RssAnon 1, …` into numbers by name, those of a process with its
/// name before theirs.
fn numbers(facts: &str) -> BTreeMap<String, f64> {
    let mut all = BTreeMap::new();
    for part in facts.split(';') {
        let (process, part) = part.split_once(": ").unwrap_or(("", part));
        for fact in part.split(',') {
            let mut words = fact.split_whitespace();
            if let (Some(name), Some(Ok(value))) = (words.next(), words.next().map(str::parse)) {
                all.insert(
                    format!("{} {name}", process.trim()).trim().to_owned(),
                    value,
                );
            }
        }
    }
    all
}

fn memory(rows: &[Value], release: &str) -> Result<String> {
    let rows = rows.iter().filter(|row| row["way"] == "memory");
    let mut columns = Vec::new();
    let (mut head, mut ramdisk) = (String::new(), 0.0);
    for row in rows {
        let mib = row["mib"].as_f64().context("no memory")?;
        ramdisk = row["ramdisk"].as_f64().context("no ramdisk")? / 1_048_576.0;
        for (when, key) in [("at the init's start", "begin"), ("guest runs", "running")] {
            let facts = numbers(row[key].as_str().context("no facts")?);
            head += &format!(" {mib:.0}, {when} |");
            columns.push((mib, facts));
        }
    }
    ensure!(!columns.is_empty(), "no memory was measured");
    let mut page = format!(
        "# A stubdomain's memory, by items\n\n\
         Written by `cargo xtask bench start`. Xen {release} in QEMU, a guest with a disk and a serial\n\
         port; MiB, at the given `stubdomain_memory`, as the stubdomain's kernel counts them. libxl\n\
         adds the guest's video memory, here 8 MiB.\n\n\
         | item |{head}\n|---|{}\n",
        "---|".repeat(columns.len())
    );
    /// The memory that libxl adds for the guest's screen.
    const VIDEO: f64 = 8.0;
    type Item = fn(&BTreeMap<String, f64>, f64) -> f64;
    let items: &[(&str, Item)] = &[
        (
            "kernel, its page array and first page tables",
            |facts, mib| (mib + VIDEO) * 1024.0 - value(facts, "MemTotal"),
        ),
        ("files of the ramdisk", |facts, _| value(facts, "Shmem")),
        ("pages of the compressed file system", |facts, _| {
            value(facts, "Cached") - value(facts, "Shmem")
        }),
        ("programs' own", |facts, _| value(facts, "AnonPages")),
        ("of these QEMU's", |facts, _| value(facts, "QEMU RssAnon")),
        ("of these the init's", |facts, _| {
            value(facts, "init RssAnon")
        }),
        ("slab", |facts, _| value(facts, "Slab")),
        ("page tables and kernel stacks", |facts, _| {
            value(facts, "PageTables") + value(facts, "KernelStack")
        }),
        ("other kernel memory", |facts, _| {
            let named = [
                "MemFree",
                "Cached",
                "AnonPages",
                "Slab",
                "PageTables",
                "KernelStack",
            ];
            value(facts, "MemTotal") - named.iter().map(|name| value(facts, name)).sum::<f64>()
        }),
        ("free", |facts, _| value(facts, "MemFree")),
        ("available by the kernel's own estimate", |facts, _| {
            value(facts, "MemAvailable")
        }),
    ];
    for (name, item) in items {
        page += &format!("| {name} |");
        for (mib, facts) in &columns {
            let kib = item(facts, *mib);
            page += &match kib {
                kib if kib.is_finite() => format!(" {:.1} |", kib / 1024.0),
                _ => " – |".to_owned(),
            };
        }
        page += "\n";
    }
    page += &format!(
        "\nThe peak is before the init: while the kernel unpacks the ramdisk, that is there twice, as\n\
         an archive of {ramdisk:.1} MiB and as files; at the init's start the archive is free memory.\n\
         `stubdom/little_and_too_little_memory` starts a guest at the least figure, and one below it, whose\n\
         log ends with the kernel's reason.\n"
    );
    Ok(page)
}

/// A number of KiB, or none.
fn value(facts: &BTreeMap<String, f64>, name: &str) -> f64 {
    facts.get(name).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_page_has_each_step_of_each_way() {
        let ours =
            |qemu: f64| json!({"way": "stubdm-run", "steps": {"kernel": 1000.0, "QEMU": qemu}});
        let rows = [
            ours(500.0),
            ours(700.0),
            ours(600.0),
            json!({"way": "dom0", "steps": {"QEMU": 400.0, "unpausing": 50.0}}),
            json!({"way": "kernel", "steps": {"until it unpacks": 100.0, "unpacking": 900.0,
                "until the init": 950.0}}),
        ];
        let page = start(&rows, "4.17").unwrap();
        for line in [
            "| kernel | 1000 (1000 to 1000) | – | – |",
            "| QEMU | 600 (500 to 700) | – | 400 |",
            "| **`xl create` to `running`** | 1600 (1500 to 1700) | – | 400 |",
            "| **in all** | 1600 (1500 to 1700) | – | 450 |",
            "800 ms of unpacking",
        ] {
            assert!(page.contains(line), "{line} in {page}");
        }
        assert!(start(&[], "4.17").is_err());
    }

    #[test]
    fn the_items_are_the_whole_memory() {
        let facts = "MemTotal 102400, MemFree 10240, MemAvailable 20480, Cached 40960, Shmem 20480, \
             AnonPages 10240, Slab 10240, PageTables 512, KernelStack 512; init: RssAnon 512; \
             QEMU: RssAnon 8192";
        let rows = [
            json!({"way": "memory", "mib": 128, "ramdisk": 2097152, "begin": facts,
            "running": facts}),
        ];
        let page = memory(&rows, "4.17").unwrap();
        for line in [
            "| kernel, its page array and first page tables | 36.0 | 36.0 |",
            "| pages of the compressed file system | 20.0 | 20.0 |",
            "| of these QEMU's | 8.0 | 8.0 |",
            "| other kernel memory | 29.0 | 29.0 |",
            "an archive of 2.0 MiB",
        ] {
            assert!(page.contains(line), "{line} in {page}");
        }
        assert!(memory(&[], "4.17").is_err());
    }
}

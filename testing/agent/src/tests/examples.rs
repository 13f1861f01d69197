//! The libraries' examples beside the tools of Xen that print the same.

use std::fs;
use std::os::unix::fs::symlink;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::guest::{NAME, STUB, domid};
use crate::host::{TestHost, command, outcome};
use crate::job::Exit;
use crate::programs;
use crate::suite::{Needs, Test};

type Body = fn() -> Result<()>;

pub(super) fn add(tests: &mut Vec<Test>) {
    let parts: [(&str, Body); 5] = [
        ("xen_list_agrees_with_xl_list", list),
        ("xen_top_agrees_with_xentop", top),
        ("xen_console_ring_agrees_with_xl_dmesg", console_ring),
        ("guest_memory_finds_what_the_guest_wrote", guest_memory),
        (
            "trace_writes_names_the_call_that_is_not_supported",
            trace_writes,
        ),
    ];
    for (name, body) in parts {
        let name = format!("examples/{name}");
        tests.push(Test::new(name, Needs::Guest, move |host: &TestHost| {
            host.with_guest(|_, guest| guest.output_after("-guest: alive second=").map(drop))?;
            let folder = Folder::make()?;
            body().and(folder.remove())
        }));
    }
}

/// The examples under their names.
const FOLDER: &str = "/run/examples";

struct Folder;

impl Folder {
    fn make() -> Result<Self> {
        fs::create_dir(FOLDER)?;
        for (name, _) in programs::ALL {
            symlink("/usr/bin/xen-testbed-agent", path(name))?;
        }
        Ok(Self)
    }

    fn remove(&self) -> Result<()> {
        Ok(fs::remove_dir_all(FOLDER)?)
    }
}

fn path(name: &str) -> String {
    format!("{FOLDER}/{name}")
}

/// Returns the rows of a table: their words.
fn rows(lines: &[String]) -> Vec<Vec<String>> {
    let words = |line: &String| line.split_whitespace().map(str::to_owned).collect();
    lines.iter().skip(1).map(words).collect()
}

/// Name, number, memory, processors; the time in seconds increases.
fn list() -> Result<()> {
    let (ours, xl) = (command(&[&path("xen-list")])?, command(&["xl", "list"])?);
    let (ours, xl) = (rows(&ours), rows(&xl));
    ensure!(
        ours.len() == 3 && ours.len() == xl.len(),
        "{ours:?}, {xl:?}"
    );
    for (ours, xl) in ours.iter().zip(&xl) {
        ensure!(ours.len() == 6 && ours[..4] == xl[..4], "{ours:?}, {xl:?}");
        let (ours, xl): (f64, f64) = (ours[5].parse()?, xl[5].parse()?);
        ensure!((0.0..10.0).contains(&(xl - ours)), "{ours} s, {xl} s");
    }
    let json = command(&[&path("xen-list"), "--json"])?.join("\n");
    let json: Value = serde_json::from_str(&json).context(json)?;
    let names: Vec<&str> = json
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|d| d["name"].as_str())
        .collect();
    ensure!(names == ["Domain-0", NAME, STUB], "{names:?}");
    Ok(())
}

/// Memory in KiB, processors, and the time of each domain.
fn top() -> Result<()> {
    let json = command(&[&path("xen-top"), "--once", "--json", "--interval", "0.1"])?.join("\n");
    let xentop = command(&["xentop", "-b", "-f", "-i", "1"])?;
    let json: Value = serde_json::from_str(&json).context(json)?;
    let domains = json["domains"].as_array().context("no domains")?;
    ensure!(domains.len() == 3, "{domains:?}");
    for domain in domains {
        let name = domain["name"].as_str().context("no name")?;
        let row = xentop.iter().find_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some(name)).then(|| line.replace("no limit", "none"))
        });
        let row = row.with_context(|| format!("no {name} in {xentop:?}"))?;
        let words: Vec<&str> = row.split_whitespace().collect();
        let number = |at: usize| -> Result<u64> { Ok(words.get(at).context("a word")?.parse()?) };
        let kib = domain["memory_bytes"].as_u64().context("no memory")? >> 10;
        ensure!(number(4)? == kib, "{row}: {domain}");
        ensure!(
            Some(number(8)?) == domain["online_vcpus"].as_u64(),
            "{row}: {domain}"
        );
        let seconds = domain["cpu_seconds"].as_f64().context("no time")?;
        ensure!(number(2)?.abs_diff(seconds as u64) < 10, "{row}: {domain}");
    }
    Ok(())
}

fn console_ring() -> Result<()> {
    let (ours, xl) = (
        command(&[&path("xen-console-ring")])?,
        command(&["xl", "dmesg"])?,
    );
    ensure!(ours.len() > 1 && xl.len() >= ours.len(), "{ours:?}");
    for (ours, xl) in ours.iter().zip(&xl) {
        ensure!(ours.trim_end() == xl.trim_end(), "`{ours}`, xl: `{xl}`");
    }
    Ok(())
}

/// The guest made its table of interrupts at 0x5000; the descriptor of interrupt 0x20 is a gate to
/// its code segment.
fn guest_memory() -> Result<()> {
    let guest = domid(NAME)?.to_string();
    let lines = command(&[&path("guest-memory"), &guest, "0x5100", "8"])?;
    let bytes: Vec<&str> = lines
        .iter()
        .flat_map(|line| line.split_whitespace())
        .collect();
    ensure!(lines.len() == 1 && bytes[0] == "00005100", "{lines:?}");
    ensure!(bytes[3..7] == ["08", "00", "00", "8e"], "{lines:?}");
    let sector = command(&[&path("guest-memory"), &guest, "0x7c00", "512"])?.join("\n");
    ensure!(sector.contains("55 aa  |"), "{sector}");
    Ok(())
}

/// Xen restricts the memory of guests on Intel's and Arm's processors alone.
fn trace_writes() -> Result<()> {
    let guest = domid(NAME)?.to_string();
    let (exit, lines) = outcome(&[&path("trace-writes"), &guest, "0x7c00", "--seconds", "1"])?;
    ensure!(exit == Exit::Status(1), "{exit}: {lines:?}");
    let said = lines.join("\n");
    let reason = "trace-writes: XENMEM_access_op is not supported here";
    ensure!(said.contains(reason), "{said}");
    Ok(())
}

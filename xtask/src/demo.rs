//! `cargo xtask demo`: unmodified Xen and xl start a guest whose QEMU runs in our stubdomain, and each thing that proves
//! it is shown, checked and counted.
//!
//! One job runs in dom0 (`assets/demo.sh`). It announces its parts; what a part prints is shown as it comes and then
//! looked at here. A part that did not show what it should fails the demo.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::guest;
use crate::host::{Host, Job, Options};
use crate::workspace::Workspace;

/// One part of the demo.
struct Part {
    name: &'static str,
    title: &'static str,
    /// What was seen, or what was missed.
    check: fn(&str, &Options) -> Result<String>,
}

const PARTS: &[Part] = &[
    Part {
        name: "xen",
        title: "Xen",
        check: xen,
    },
    Part {
        name: "create",
        title: "xl create: an HVM guest with a stubdomain",
        check: create,
    },
    Part {
        name: "list",
        title: "xl list: guest and stubdomain",
        check: list,
    },
    Part {
        name: "consoles",
        title: "ps in dom0: no QEMU serves this guest",
        check: consoles,
    },
    Part {
        name: "guest",
        title: "xl console: the guest speaks",
        check: guest_speaks,
    },
    Part {
        name: "qmp",
        title: "QMP over vchan through our proxy",
        check: qmp,
    },
    Part {
        name: "save",
        title: "xl save: the guest is in a file, its domains are gone",
        check: save,
    },
    Part {
        name: "restore",
        title: "xl restore: the guest goes on where it was",
        check: restore,
    },
    Part {
        name: "destroy",
        title: "xl destroy: nothing is left",
        check: destroy,
    },
];

/// The announcement of a part.
const MARK: &str = "@@part ";

/// Boots, runs the parts, and says which were seen.
pub(crate) fn run(workspace: &Workspace, options: &Options, timeout: Duration) -> Result<ExitCode> {
    let started = Instant::now();
    let host = Host::prepare(workspace, options)?;
    let mut parts = Splitter::default();
    let job = Job {
        command: Some(include_str!("../assets/demo.sh").to_owned()),
        shell: false,
        timeout,
    };
    let status = host.run(&job, &mut |bytes| {
        parts.take(bytes, &mut |line| {
            if let Some(name) = line.strip_prefix(MARK) {
                if let Some((index, part)) = numbered(name) {
                    println!("\n== {index}/{} {}", PARTS.len(), part.title);
                }
            } else {
                println!("   {line}");
            }
        });
        Ok(())
    })?;
    if status != 0 {
        eprintln!("xtask: the demo's script ended with status {status}");
    }
    println!("\n== what was seen");
    let mut missed = 0;
    for part in PARTS {
        let text = parts
            .seen
            .get(part.name)
            .map(String::as_str)
            .unwrap_or_default();
        match (part.check)(text, options) {
            Ok(seen) => println!("   ok      {seen}"),
            Err(what) => {
                missed += 1;
                println!("   MISSED  {}: {what:#}", part.title);
            }
        }
    }
    println!("   {:.0} s in all\n", started.elapsed().as_secs_f64());
    println!("demo: {} passed, {missed} failed", PARTS.len() - missed);
    if missed > 0 || status != 0 {
        eprintln!(
            "xtask: the host's console: {}",
            Workspace::show(&host.log())
        );
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// A part and its number, from 1.
fn numbered(name: &str) -> Option<(usize, &'static Part)> {
    (1..).zip(PARTS).find(|(_, part)| part.name == name)
}

/// Cuts the job's output into lines and keeps each with its part.
#[derive(Debug, Default)]
struct Splitter {
    partial: Vec<u8>,
    current: String,
    seen: BTreeMap<String, String>,
}

impl Splitter {
    fn take(&mut self, bytes: &[u8], show: &mut dyn FnMut(&str)) {
        self.partial.extend_from_slice(bytes);
        while let Some(end) = self.partial.iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            // The guest's own console ends its lines with both characters.
            let line = line.replace('\t', " ");
            let line: String = line.chars().filter(|c| !c.is_control()).collect();
            show(&line);
            if let Some(name) = line.strip_prefix(MARK) {
                name.clone_into(&mut self.current);
                self.seen.entry(name.to_owned()).or_default();
            } else {
                let text = self.seen.entry(self.current.clone()).or_default();
                text.push_str(&line);
                text.push('\n');
            }
        }
    }
}

fn xen(text: &str, options: &Options) -> Result<String> {
    let mut fields = text.lines().filter_map(|l| l.split_once(':'));
    match fields.find(|(name, _)| name.trim() == "xen_version") {
        Some((_, version)) if version.trim().starts_with(options.release.name) => {
            Ok(format!("Xen {}", version.trim()))
        }
        Some((_, version)) => bail!("Xen {}, not {}", version.trim(), options.release.name),
        None => bail!("xl info says no xen_version"),
    }
}

fn create(text: &str, _: &Options) -> Result<String> {
    if !text.lines().any(|l| l == "xl create: status 0") {
        bail!("xl create failed");
    }
    Ok("xl create of the guest with its stubdomain".to_owned())
}

/// The names in what `xl list` printed.
fn names(text: &str) -> Vec<&str> {
    let rows = text.lines().skip_while(|l| !l.starts_with("Name ")).skip(1);
    rows.filter_map(|l| {
        let mut words = l.split_whitespace();
        let name = words.next()?;
        // The domain's number, its memory and its processors make a row of it.
        let numbers = words
            .take(3)
            .map(str::parse::<u64>)
            .collect::<Result<Vec<_>, _>>();
        numbers.is_ok_and(|n| n.len() == 3).then_some(name)
    })
    .collect()
}

fn list(text: &str, _: &Options) -> Result<String> {
    let names = names(text);
    for wanted in ["Domain-0", "hvm", "hvm-dm"] {
        if !names.contains(&wanted) {
            bail!("xl list has no {wanted}");
        }
    }
    Ok("xl list: hvm and its stubdomain hvm-dm".to_owned())
}

fn consoles(text: &str, _: &Options) -> Result<String> {
    let served = text
        .lines()
        .any(|l| l.starts_with("process ") && l.contains("stubdm-run consoled "));
    if !served {
        bail!("no process of ours serves the stubdomain's consoles");
    }
    if !text
        .lines()
        .any(|l| l == "processes in ps that have qemu in their line: 0")
    {
        bail!("ps shows a QEMU in dom0");
    }
    let memory = text
        .lines()
        .find_map(|l| l.strip_prefix("its resident memory: "));
    let Some(memory) = memory else {
        bail!("its memory is not known");
    };
    Ok(format!(
        "no QEMU in dom0: stubdm-run consoled serves the consoles with {memory}"
    ))
}

fn guest_speaks(text: &str, _: &Options) -> Result<String> {
    let disk = guest::disk_line();
    if !text.lines().any(|l| l.contains(&disk)) {
        bail!("the guest's console has no line \"{disk}\"");
    }
    let alive = text
        .lines()
        .find(|l| l.contains("alive second=2") && l.contains("disk=ok"));
    let Some(alive) = alive else {
        bail!("the guest's clock and disk did not go on")
    };
    Ok(format!("the guest's own line: \"{}\"", alive.trim()))
}

fn save(text: &str, _: &Options) -> Result<String> {
    if !text.lines().any(|l| l == "xl save: status 0") {
        bail!("xl save failed");
    }
    let names = names(text);
    if names != ["Domain-0"] {
        bail!("domains after the save: {}", names.join(", "));
    }
    Ok("xl save: guest and stubdomain are in a file and gone".to_owned())
}

fn restore(text: &str, _: &Options) -> Result<String> {
    if !text.lines().any(|l| l == "xl restore: status 0") {
        bail!("xl restore failed");
    }
    let Some((_, alive)) = text.lines().find_map(|l| l.split_once("alive second=")) else {
        bail!("the restored guest says nothing");
    };
    let second = alive.split_whitespace().next().unwrap_or_default();
    // It was seen at second 2 before it was saved; one started anew would begin with 1.
    if second.parse::<u32>().map_or(true, |second| second <= 2) || !alive.contains("disk=ok") {
        bail!("the restored guest says: alive second={alive}");
    }
    Ok(format!(
        "xl restore: the guest goes on at second {second}, its disk is what it was"
    ))
}

fn qmp(text: &str, _: &Options) -> Result<String> {
    if !text
        .lines()
        .any(|l| l.starts_with("process ") && l.contains("qmp-vchan"))
    {
        bail!("no process of ours carries QMP for libxl");
    }
    if !text.lines().any(|l| l.trim() == "VM status: running") {
        bail!("libxl got no answer");
    }
    let Some(version) = text
        .lines()
        .find(|l| l.contains("\"qemu\"") && l.contains("\"major\""))
    else {
        bail!("stubdm-run qmp got no answer");
    };
    Ok(format!(
        "QMP answers over vchan: \"VM status: running\", {}",
        version.trim()
    ))
}

fn destroy(text: &str, _: &Options) -> Result<String> {
    if !text.lines().any(|l| l == "xl destroy: status 0") {
        bail!("xl destroy failed");
    }
    let names = names(text);
    if names != ["Domain-0"] {
        bail!("domains at the end: {}", names.join(", "));
    }
    if let Some(process) = text.lines().find(|l| l.starts_with("process ")) {
        bail!("still running: {process}");
    }
    if !text
        .lines()
        .any(|l| l.starts_with("xenstore: ") && l.ends_with("the same as before"))
    {
        bail!("xenstore nodes were left");
    }
    Ok("destroyed: no domain, no xenstore node, no process of ours is left".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::release::RELEASES;

    fn options() -> Options {
        Options {
            release: &RELEASES[0],
            mirror: None,
            no_build: true,
            shell_init: false,
        }
    }

    #[test]
    fn every_check_fails_on_silence() {
        for part in PARTS {
            assert!((part.check)("", &options()).is_err(), "{}", part.name);
        }
    }

    #[test]
    fn every_part_is_announced_by_the_script() {
        let script = include_str!("../assets/demo.sh");
        for part in PARTS {
            assert!(
                script.contains(&format!("\npart {}\n", part.name)),
                "{}",
                part.name
            );
        }
    }

    #[test]
    fn a_leftover_of_any_kind_is_seen() {
        let good = "xl destroy: status 0\nName   ID Mem\nDomain-0   0  1 2 r 1.0\n\
                    xenstore: 20 nodes, the same as before\n";
        assert!(destroy(good, &options()).is_ok());
        let domain = good.replace("2 r 1.0\n", "2 r 1.0\n(null)  3 0 0 --ps-d 9\n");
        assert!(destroy(&domain, &options()).is_err());
        assert!(destroy(&format!("{good}process 7: stubdm-run x\n"), &options()).is_err());
        assert!(destroy(&good.replace("the same as before", ""), &options()).is_err());
    }

    #[test]
    fn a_restored_guest_must_go_on() {
        let said = |second| {
            format!("xl restore: status 0\nxen-guest: alive second={second} disk=ok irq=9\n")
        };
        assert!(restore(&said("5"), &options()).is_ok());
        for stale in ["1", "2", "x"] {
            assert!(restore(&said(stale), &options()).is_err(), "{stale}");
        }
        assert!(restore(&said("5").replace("=ok", "=bad"), &options()).is_err());
        assert!(restore(&said("5").replace("status 0", "status 1"), &options()).is_err());
    }

    #[test]
    fn lines_reach_their_part_however_they_are_cut() {
        let text = b"x\n@@part xen\nxen_version : 4.17.7\r\n@@part list\nhalf";
        for size in 1..text.len() {
            let mut splitter = Splitter::default();
            text.chunks(size)
                .for_each(|piece| splitter.take(piece, &mut |_| {}));
            assert_eq!(splitter.seen["xen"], "xen_version : 4.17.7\n");
            assert_eq!(splitter.seen["list"], "");
        }
    }
}

//! `cargo xtask demo`: unmodified Xen and xl start a guest whose QEMU runs in our stubdomain, and
//! each thing that proves it is shown, checked and counted.
//!
//! One job runs in dom0 (`assets/demo.sh`). It announces its parts; the output of a part is shown
//! as it arrives and then checked here. A part that did not show what it should fails the demo.

mod checks;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::dist;
use crate::host::{self, Host, Job, Options};
use crate::workspace::Workspace;

/// One part of the demo.
struct Part {
    name: &'static str,
    title: &'static str,
    /// Returns what was seen, or fails with what was missing.
    check: fn(&str, &Options) -> Result<String>,
}

const PARTS: &[Part] = &[
    Part {
        name: "xen",
        title: "Xen",
        check: checks::xen,
    },
    Part {
        name: "create",
        title: "xl create: an HVM guest with a stubdomain",
        check: checks::create,
    },
    Part {
        name: "list",
        title: "xl list: guest and stubdomain",
        check: checks::list,
    },
    Part {
        name: "consoles",
        title: "ps in dom0: no QEMU serves this guest",
        check: checks::consoles,
    },
    Part {
        name: "guest",
        title: "xl console: the guest speaks",
        check: checks::guest_answers,
    },
    Part {
        name: "qmp",
        title: "QMP over vchan through our proxy",
        check: checks::qmp,
    },
    Part {
        name: "save",
        title: "xl save: the guest is in a file, its domains are gone",
        check: checks::save,
    },
    Part {
        name: "restore",
        title: "xl restore: the guest goes on where it was",
        check: checks::restore,
    },
    Part {
        name: "network",
        title: "a second guest, with a network: its frames are answered",
        check: checks::network,
    },
    Part {
        name: "destroy",
        title: "xl destroy: nothing is left",
        check: checks::destroy,
    },
];

/// The announcement of a part.
const MARK: &str = "@@part ";

/// Boots, runs the parts, and reports which were seen. Builds only what is shipped: the parts need
/// no test agent.
pub(crate) fn run(workspace: &Workspace, options: &Options, timeout: Duration) -> Result<ExitCode> {
    let started = Instant::now();
    if !options.no_build {
        // The build's last part takes one processor, and packages come over the network.
        thread::scope(|scope| {
            let packages = scope.spawn(|| host::prepare_packages(workspace, options));
            let built = dist::build_shipped(workspace);
            let packages = packages.join();
            built.and(packages.unwrap_or_else(|_| bail!("a thread panicked")))
        })?;
    }
    let options = &Options {
        no_build: true,
        ..options.clone()
    };
    let host = Host::prepare(workspace, options)?;
    let mut parts = Splitter::default();
    let job = Job {
        command: Some(include_str!("../assets/demo.sh").to_owned()),
        shell: false,
        timeout,
        ..Job::default()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::release::RELEASES;

    pub(super) fn options() -> Options {
        Options {
            release: &RELEASES[0],
            mirror: None,
            no_build: true,
            shell_init: false,
            pci: false,
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

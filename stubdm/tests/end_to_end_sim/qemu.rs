//! A process that plays QEMU: connects to the init's monitor, listens for the toolstack's, writes
//! `running` on `cont`, and dies in the ways its arguments name.
//!
//! | argument | does |
//! |---|---|
//! | `-store PATH` | where `running` is to be written |
//! | `-die TEXT` | prints TEXT and ends before it connects anywhere |
//! | `-dump PATH` | writes its arguments there, each with a NUL after it, and ends |
//! | `-inherited N,N` | prints them and ends if any descriptor but these is open |
//! | `-sleepy` | stops, as by a signal, when it is asked for a sign of life for the first time |
//! | `-flood` | writes without end, on stderr and in events on the init's monitor |
//! | `-refuse` | answers `cont` with an error |

use std::cell::Cell;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use xen_store::Store;

/// The open descriptors of this process.
pub(crate) fn descriptors() -> BTreeSet<u32> {
    let names = std::fs::read_dir("/proc/self/fd").unwrap();
    let numbers = names.map(|entry| {
        entry
            .unwrap()
            .file_name()
            .to_str()
            .unwrap()
            .parse()
            .unwrap()
    });
    // The directory's own is closed by now.
    let mut numbers: BTreeSet<u32> = numbers.collect();
    numbers.retain(|n| std::fs::symlink_metadata(format!("/proc/self/fd/{n}")).is_ok());
    numbers
}

pub(crate) fn play(args: &[OsString]) -> ExitCode {
    let text: Vec<String> = args
        .iter()
        .map(|a| a.to_string_lossy().into_owned())
        .collect();
    let after = |name: &str| {
        text.iter()
            .position(|a| a == name)
            .map(|at| text[at + 1].clone())
    };
    if let Some(inherited) = after("-inherited") {
        let known: BTreeSet<u32> = inherited.split(',').map(|n| n.parse().unwrap()).collect();
        let more: Vec<u32> = descriptors().difference(&known).copied().collect();
        if !more.is_empty() {
            eprintln!("descriptors {more:?} are open in here");
            return ExitCode::from(5);
        }
    }
    if let Some(path) = after("-dump") {
        let mut all = Vec::new();
        for arg in args {
            all.extend_from_slice(arg.as_bytes());
            all.push(0);
        }
        std::fs::write(path, all).unwrap();
        return ExitCode::SUCCESS;
    }
    if let Some(words) = after("-die") {
        eprintln!("{words}");
        return ExitCode::FAILURE;
    }
    let path_of = |id: &str| {
        let chardev = text
            .iter()
            .find(|a| a.contains(id) && a.contains("path="))
            .unwrap();
        chardev
            .split("path=")
            .nth(1)
            .unwrap()
            .split(',')
            .next()
            .unwrap()
            .to_owned()
    };
    let toolstack = UnixListener::bind(path_of("stubdm-toolstack")).unwrap();
    let own = UnixStream::connect(path_of("stubdm-own")).unwrap();
    std::thread::spawn(move || {
        for stream in toolstack.incoming() {
            let stream = stream.unwrap();
            std::thread::spawn(|| monitor(stream, |_| None));
        }
    });
    let store = after("-store").map(|path| Store::connect(path).unwrap());
    let has = |name: &str| text.iter().any(|a| a == name);
    let (sleepy, flood) = (has("-sleepy"), has("-flood"));
    let asleep = Cell::new(!sleepy);
    let refuses = text.iter().any(|a| a == "-refuse");
    let events = own.try_clone().unwrap();
    monitor(own, move |name| {
        if name == "query-status" && !asleep.replace(true) {
            kill(Pid::this(), Signal::SIGSTOP).unwrap();
        }
        if name == "cont" && flood {
            std::thread::spawn(|| {
                let line = "word ".repeat(20);
                loop {
                    eprintln!("{line}");
                }
            });
            // The answer to `cont` must not be cut: one event is one write, and so is an answer.
            let mut events = events.try_clone().unwrap();
            std::thread::spawn(
                move || while events.write_all(b"{\"event\": \"FLOOD\"}\r\n").is_ok() {},
            );
        }
        if name != "cont" {
            return None;
        }
        if refuses {
            return Some("not today");
        }
        go_on(store.as_ref().unwrap());
        None
    });
    eprintln!("our own monitor was closed first");
    ExitCode::from(9)
}

/// Does QEMU's part when the guest starts. Nobody may learn of it before QMP can be used.
fn go_on(store: &Store) {
    let domains = store.directory("/local/domain").unwrap();
    let (home, guest) = domains
        .iter()
        .find_map(|domain| {
            let home = format!("/local/domain/{domain}");
            let guest = store.read_str(&format!("{home}/target")).ok()?;
            Some((format!("{home}/device-model/{guest}"), guest))
        })
        .unwrap();
    if !store.exists(&format!("{home}/qmp-vchan/ring-ref")).unwrap() {
        eprintln!("started before the vchan of {guest} was offered");
        std::process::exit(7);
    }
    let pid = std::process::id().to_string();
    store.write("/qemu", pid).unwrap();
    store.write(&format!("{home}/state"), "running").unwrap();
}

/// One conversation; `special` may refuse a command.
pub(crate) fn monitor(stream: UnixStream, special: impl Fn(&str) -> Option<&'static str>) {
    let mut out = stream.try_clone().unwrap();
    let mut send = |message: Value| out.write_all(format!("{message}\r\n").as_bytes());
    let mut negotiated = false;
    if send(json!({"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}}, "capabilities": []}})).is_err() {
        return;
    }
    let mut lines = BufReader::new(stream);
    let mut line = Vec::new();
    while matches!(lines.read_until(b'\n', &mut line), Ok(1..)) {
        let command: Value = serde_json::from_slice(&line).unwrap_or_default();
        line.clear();
        let Some(name) = command["execute"].as_str() else {
            continue;
        };
        let id = command["id"].clone();
        let refuse =
            |class: &str, why: &str| json!({"id": id, "error": {"class": class, "desc": why}});
        let answer = match (name, negotiated, special(name)) {
            ("qmp_capabilities", false, _) => {
                negotiated = true;
                json!({"return": {}, "id": id})
            }
            (_, false, _) => refuse("CommandNotFound", "Expecting capabilities negotiation"),
            (_, _, Some(why)) => refuse("GenericError", why),
            ("crash", ..) => {
                eprintln!("something broke");
                std::process::abort();
            }
            (_, true, None) => json!({"return": command["arguments"], "id": id}),
        };
        if send(answer).is_err() {
            return;
        }
    }
}

//! `stubdm-run sim`, the built program: the answer, the exit status, and that nothing is left,
//! however it ends.

#![allow(clippy::unwrap_used)]

mod place;

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use serde_json::Value;

use place::Place;

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Returns the last line of the output, which states what went wrong.
fn complaint(output: &Output) -> &str {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let said = text(&output.stderr);
    let complaints = said.lines().filter(|line| line.starts_with("stubdm-run: "));
    assert_eq!(complaints.count(), 1, "{said}");
    said.lines().last().unwrap()
}

#[test]
fn the_answer_comes_and_nothing_stays() {
    let place = Place::new();
    let output = place.sim(&[]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    place.assert_nothing_left();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(answer["qemu"]["major"].is_u64(), "{answer}");
    assert!(text(&output.stdout).ends_with("}\n"));
    let said = text(&output.stderr);
    let order = [
        "host: ",
        "toolstack: ",
        "stubdomain: ",
        "proxy: ",
        "asking ",
        "ended: ",
    ];
    let mut at = 0;
    for word in order {
        at += said[at..]
            .find(word)
            .unwrap_or_else(|| panic!("{word}: {said}"));
    }
    assert!(said.contains("a scripted peer"), "{said}");
}

/// The command with which the policy lets a person end QEMU.
const PERSONS_QUIT: [&str; 2] = ["human-monitor-command", r#"{"command-line": "quit"}"#];

#[test]
fn any_command_can_be_asked_and_a_refusal_is_no_answer() {
    let place = Place::new();
    let output = place.sim(&["query-status", "{}"]).output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let expected = "{\"running\":true,\"status\":\"running\"}\n";
    assert_eq!(text(&output.stdout), expected, "after `cont`");
    for command in ["no-such-thing", "quit"] {
        let output = place.sim(&[command]).output().unwrap();
        let complaint = complaint(&output);
        assert!(complaint.contains("not in the policy"), "{output:?}");
    }
    let output = place.sim(&PERSONS_QUIT).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "\"\"\n");
    let output = place.sim(&["query-status", "[]"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    place.assert_nothing_left();
}

#[test]
fn a_qemu_that_is_missing_or_dies_is_explained() {
    let place = Place::new();
    let output = place
        .sim(&["--qemu", "/nonexistent/qemu"])
        .output()
        .unwrap();
    let why = complaint(&output);
    assert!(why.contains("/nonexistent/qemu: No such file"), "{why}");
    let dies = place.script("echo unsupported machine type >&2; exit 3");
    let output = place.sim(&["--qemu", dies.to_str().unwrap()]).output();
    let output = output.unwrap();
    let why = complaint(&output);
    assert!(
        why.contains("status 3") && why.contains("unsupported machine type"),
        "{why}"
    );
    let long = place.dir.path().join("tmp").join("x".repeat(100));
    std::fs::create_dir(&long).unwrap();
    let output = place.sim(&[]).env("TMPDIR", &long).output().unwrap();
    let why = complaint(&output);
    assert!(why.contains("/broker: "), "{why}");
    std::fs::remove_dir(&long).unwrap();
    place.assert_nothing_left();
}

/// A run in the background, its words line by line.
struct Running {
    child: Child,
    words: BufReader<ChildStderr>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let words = BufReader::new(child.stderr.take().unwrap());
        Self { child, words }
    }

    /// Reads on up to the line that begins so, and returns its rest.
    fn read_until(&mut self, begins: &str) -> String {
        let mut before = String::new();
        loop {
            let mut line = String::new();
            let count = self.words.read_line(&mut line).unwrap();
            assert!(count > 0, "no {begins:?} in {before}");
            if let Some(rest) = line.strip_prefix(begins) {
                return rest.trim_end().to_owned();
            }
            before.push_str(&line);
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Its end: status, answer, and its output after what was read before.
    fn end(mut self) -> (Option<i32>, String, String) {
        let (mut answer, mut words) = (String::new(), String::new());
        self.words.read_to_string(&mut words).unwrap();
        let mut stdout = self.child.stdout.take().unwrap();
        stdout.read_to_string(&mut answer).unwrap();
        (self.child.wait().unwrap().code(), answer, words)
    }
}

#[test]
fn it_stays_up_for_more_questions_until_it_is_interrupted() {
    let place = Place::new();
    let mut running = Running::start(place.sim(&["--keep"]));
    let hint = running.read_until("staying up: stubdm-run ");
    let words: Vec<&str> = hint.split(' ').collect();
    let ask = |command: &str| {
        let mut question = Command::new(env!("CARGO_BIN_EXE_stubdm-run"));
        question.args(words.get(..4).unwrap()).arg(command);
        question.output().unwrap()
    };
    for _ in 0..3 {
        let output = ask("query-status");
        assert!(text(&output.stdout).contains("running"), "{output:?}");
    }
    assert!(!place.processes().is_empty());
    running.signal(Signal::SIGINT);
    let (status, answer, words) = running.end();
    assert_eq!(status, Some(0), "{words}");
    assert_eq!(answer.lines().count(), 1);
    assert!(
        words.contains("SIGINT") && words.contains("nothing is left"),
        "{words}"
    );
    place.assert_nothing_left();
    // The end of QEMU ends everything as well.
    let mut running = Running::start(place.sim(&["--keep"]));
    let hint = running.read_until("staying up: stubdm-run ");
    let mut question = Command::new(env!("CARGO_BIN_EXE_stubdm-run"));
    question.args(hint.split(' ').take(4)).args(PERSONS_QUIT);
    assert_eq!(question.output().unwrap().status.code(), Some(0));
    let (status, _, words) = running.end();
    assert_eq!(status, Some(0), "{words}");
    assert!(words.contains("ending: the stubdomain"), "{words}");
    place.assert_nothing_left();
}

/// Starts a QEMU that never writes anything and does not end by itself; returns when it runs.
fn with_silent_qemu(place: &Place) -> Running {
    let fifo = place.dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    // With a process of its own, which nobody would wait for.
    let text = format!("/bin/sleep 1000 & echo up > {}; wait", fifo.display());
    let qemu = place.script(&text);
    let running = Running::start(place.sim(&["--qemu", qemu.to_str().unwrap()]));
    let mut up = String::new();
    File::open(&fifo).unwrap().read_to_string(&mut up).unwrap();
    assert_eq!(up, "up\n");
    assert!(place.processes().len() >= 5, "{:?}", place.processes());
    running
}

#[test]
fn interrupted_before_the_answer_it_leaves_nothing_either() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let place = Place::new();
        let running = with_silent_qemu(&place);
        running.signal(signal);
        let (status, answer, words) = running.end();
        assert_eq!((status, answer.as_str()), (Some(1), ""), "{words}");
        let last = format!("stubdm-run: interrupted by {signal}");
        assert_eq!(words.lines().last(), Some(last.as_str()), "{words}");
        place.assert_nothing_left();
    }
}

/// Returns the process whose command line contains `word`; of a proxy's two the one that libxl
/// would start.
fn find(place: &Place, word: &str) -> Pid {
    let named = |pid: &Pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        let worker = words.clone().any(|w| w.starts_with(b"--worker="));
        !worker && words.any(|w| w == word.as_bytes())
    };
    place.pids().into_iter().find(named).unwrap()
}

#[test]
fn a_process_that_is_killed_takes_everything_with_it() {
    for (role, named) in [
        ("stubdomain", "stubdomain was killed"),
        ("vchan-socket-proxy", "proxy was killed"),
    ] {
        let place = Place::new();
        let running = with_silent_qemu(&place);
        kill(find(&place, role), Signal::SIGKILL).unwrap();
        let (status, _, words) = running.end();
        assert_eq!(status, Some(1), "{words}");
        assert!(words.contains(named), "{words}");
        place.assert_nothing_left();
    }
}

/// Waits for what ends only after its parent has.
fn assert_soon_nothing_left(place: &Place) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !place.processes().is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    place.assert_nothing_left();
}

#[test]
fn killed_itself_it_leaves_nothing() {
    let place = Place::new();
    let mut running = Running::start(place.sim(&["--keep"]));
    running.read_until("staying up: ");
    running.signal(Signal::SIGKILL);
    assert_eq!(running.end().0, None);
    assert_soon_nothing_left(&place);
    // Nor with a QEMU that has a process of its own and does not listen.
    let running = with_silent_qemu(&place);
    running.signal(Signal::SIGKILL);
    assert_eq!(running.end().0, None);
    assert_soon_nothing_left(&place);
}

#[test]
fn without_its_cleanup_it_sweeps_up_itself() {
    let place = Place::new();
    let running = with_silent_qemu(&place);
    kill(find(&place, "cleanup"), Signal::SIGKILL).unwrap();
    running.signal(Signal::SIGTERM);
    let (status, _, words) = running.end();
    assert_eq!(status, Some(1), "{words}");
    place.assert_nothing_left();
}

/// One of the processes of a run is killed at a moment of the run's life, until this has happened
/// 24 times.
#[test]
fn any_of_them_killed_at_any_moment_leaves_nothing() {
    let begun = Instant::now();
    let place = Place::new();
    assert_eq!(place.sim(&[]).output().unwrap().status.code(), Some(0));
    let whole = begun.elapsed();
    let mut killed = 0;
    for attempt in 0..120 {
        let mut running = Running::start(place.sim(&[]));
        std::thread::sleep(whole * (attempt % 24) / 24);
        let mut pids: Vec<Pid> = place.pids();
        pids.sort();
        let pid = pids.get(attempt as usize % pids.len().max(1));
        killed += u32::from(pid.is_some_and(|pid| kill(*pid, Signal::SIGKILL).is_ok()));
        let mut words = String::new();
        running.words.read_to_string(&mut words).unwrap();
        running.child.wait().unwrap();
        assert_soon_nothing_left(&place);
        if killed == 24 {
            return;
        }
    }
    panic!("only {killed} processes were still there to be killed");
}

//! Out of the sandbox: everything a worker that is no longer ours might try, and all of it refused.
//!
//! A wall is for good, so each attempt set runs in a process of its own: this program again, behind
//! all walls, or behind some of them, to see that none of them stands only because of another.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod attempts;
mod raw;

use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Output, Stdio};

use attempts::{Outside, Reach};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::unistd::Uid;

/// Says that this program is to be inside: `INSIDE WALLS TARGETS…`.
const INSIDE: &str = "inside";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if let [_, first, walls, rest @ ..] = &args[..] {
        if first == INSIDE {
            return attempts::play(walls, &Outside::from_args(rest));
        }
    }
    let tests: [(&str, fn()); 5] = [
        ("nothing_leads_out", nothing_leads_out),
        ("calls_alone_keep_it_in", calls_alone_keep_it_in),
        ("the_user_and_the_root_alone_keep_it_in", user_alone),
        ("memory_and_descriptors_run_out", memory_runs_out),
        ("a_wide_line_takes_half_of_the_memory", wide_lines_fit),
    ];
    for (name, test) in tests {
        test();
        println!("test {name} ... ok");
    }
    ExitCode::SUCCESS
}

/// Things outside that the inside would like to reach, and that show it if it did.
struct Targets {
    directory: tempfile::TempDir,
    _named: UnixListener,
    _abstract: UnixListener,
    tcp: TcpListener,
    victim: Child,
    /// A descriptor it inherits by mistake.
    left_open: std::fs::File,
}

impl Targets {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let named = UnixListener::bind(directory.path().join("socket")).unwrap();
        let name = directory.path().to_str().unwrap().to_owned();
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let left_open = std::fs::File::create(directory.path().join("secret")).unwrap();
        fcntl(&left_open, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        Self {
            _named: named,
            _abstract: UnixListener::bind_addr(&address).unwrap(),
            tcp: TcpListener::bind("127.0.0.1:0").unwrap(),
            victim: Command::new("sleep").arg("600").spawn().unwrap(),
            left_open,
            directory,
        }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn run(&mut self, walls: &str) -> Output {
        let outside = Outside {
            directory: self.path().to_str().unwrap().to_owned(),
            tcp: self.tcp.local_addr().unwrap().port(),
            victim: self.victim.id().try_into().unwrap(),
            left_open: self.left_open.as_raw_fd(),
        };
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([INSIDE, walls]).args(outside.to_args());
        let output = command
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(self.victim.try_wait().unwrap().is_none(), "it was killed");
        let left = std::fs::read_dir(self.path()).unwrap().count();
        assert_eq!(left, 2, "files came or went");
        output
    }
}

impl Drop for Targets {
    fn drop(&mut self) {
        self.victim.kill().unwrap();
        self.victim.wait().unwrap();
    }
}

/// Every attempt of this reach was made and refused.
fn all_refused(output: &Output, reach: Reach) {
    let said = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(output.status.success(), "{}: {said}", output.status);
    let mut expected: Vec<&str> = attempts::names(reach).collect();
    for line in said.lines() {
        let (name, outcome) = line.split_once(": ").unwrap();
        assert!(outcome.starts_with("refused"), "{line}");
        expected.retain(|left| *left != name);
    }
    assert_eq!(expected, Vec::<&str>::new(), "not tried: {said}");
}

/// As [`all_refused`], and first that the same attempts succeed without any wall: an attempt that
/// cannot succeed proves nothing.
fn refused_behind(walls: &str, reach: Reach) {
    let mut targets = Targets::new();
    all_refused(&targets.run(walls), reach);
}

fn nothing_leads_out() {
    let mut targets = Targets::new();
    let free = targets.run("none");
    let said = String::from_utf8(free.stdout).unwrap();
    let mut possible = 0;
    for line in said.lines().filter(|line| line.ends_with(": done")) {
        println!("    without walls {line}");
        possible += 1;
    }
    assert!(possible >= attempts::POSSIBLE, "{said}");
    refused_behind("all", Reach::Everything);
}

fn calls_alone_keep_it_in() {
    refused_behind("calls", Reach::Everything);
}

fn user_alone() {
    if !Uid::effective().is_root() {
        println!("    not root: only the other walls stand here");
        return;
    }
    refused_behind("user", Reach::Powers);
}

fn memory_runs_out() {
    let mut targets = Targets::new();
    let output = targets.run("hungry");
    let said = String::from_utf8(output.stdout).unwrap();
    let number = |name: &str| -> u64 {
        let line = said.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("{said}")).parse().unwrap()
    };
    let most = stubdm::proxy::sandbox::enter::MEMORY >> 20;
    assert!((most / 2..=most).contains(&number("MiB ")), "{said}");
    assert!((16..=64).contains(&number("descriptors ")), "{said}");
    assert_eq!(number("core "), 0);
}

/// At most: a process with half of it is not short of any.
fn wide_lines_fit() {
    let output = Targets::new().run("wide");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}: {said}", output.status);
    assert_eq!(said.lines().count(), 6, "{said}");
}

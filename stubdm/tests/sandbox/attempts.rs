//! Attempts from inside the sandbox.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Instant;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, kill};
use nix::unistd::{Gid, Pid, Uid, chroot, setgroups, setresgid, setresuid};
use stubdm::proxy::filtered::multiplexer::Multiplexer;
use stubdm::proxy::sandbox::{enter, seccomp, user_of};
use stubdm::rt::fd;
use stubdm_qmp::json::Limits;
use stubdm_qmp::lines::LINE_MAX;
use stubdm_qmp::policy::Policy;

use crate::raw;

/// The targets outside.
pub(crate) struct Outside {
    pub(crate) directory: String,
    pub(crate) tcp: u16,
    pub(crate) victim: i32,
    pub(crate) left_open: RawFd,
}

impl Outside {
    pub(crate) fn to_args(&self) -> [String; 4] {
        [
            self.directory.clone(),
            self.tcp.to_string(),
            self.victim.to_string(),
            self.left_open.to_string(),
        ]
    }

    pub(crate) fn from_args(args: &[String]) -> Self {
        let [directory, tcp, victim, left_open] = args else {
            panic!("{args:?}");
        };
        Self {
            directory: directory.clone(),
            tcp: tcp.parse().unwrap(),
            victim: victim.parse().unwrap(),
            left_open: left_open.parse().unwrap(),
        }
    }

    fn socket(&self) -> String {
        format!("{}/socket", self.directory)
    }
}

/// Which wall is to refuse an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// The list of system calls.
    Everything,
    /// The same, and by itself already another user in an empty directory.
    Powers,
}

type Attempt = (&'static str, Reach, fn(&Outside) -> io::Result<()>);

/// How many of them succeed for a process without walls, on any machine.
pub(crate) const POSSIBLE: usize = 14;

fn nothing<T>(result: io::Result<T>) -> io::Result<()> {
    result.map(drop)
}

fn nix<T>(result: nix::Result<T>) -> io::Result<()> {
    Ok(result.map(drop)?)
}

const ATTEMPTS: &[Attempt] = &[
    ("read a file", Reach::Powers, |_| {
        nothing(File::open("/etc/passwd"))
    }),
    ("list the root", Reach::Powers, |_| {
        // An empty directory that nobody may search would also do.
        match fs::read_dir("/")?.count() {
            0 => Err(io::ErrorKind::NotFound.into()),
            _ => Ok(()),
        }
    }),
    ("look at /proc", Reach::Powers, |_| {
        nothing(fs::metadata("/proc/1/status"))
    }),
    ("leave by ..", Reach::Powers, |_| {
        nothing(fs::metadata("../../../../proc/1/status"))
    }),
    ("open a device", Reach::Powers, |_| {
        nothing(File::open("/dev/null"))
    }),
    ("make a file", Reach::Powers, |outside| {
        let path = format!("{}/made", outside.directory);
        nothing(File::create(&path))?;
        fs::remove_file(path)
    }),
    ("make a file here", Reach::Powers, |_| {
        nothing(
            File::options()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open("made-here"),
        )?;
        fs::remove_file("made-here")
    }),
    ("make a link", Reach::Powers, |outside| {
        let path = format!("{}/link", outside.directory);
        symlink("/", &path)?;
        fs::remove_file(path)
    }),
    ("connect to a socket file", Reach::Powers, |outside| {
        nothing(UnixStream::connect(outside.socket()))
    }),
    (
        "connect to an abstract socket",
        Reach::Everything,
        |outside| {
            let address = SocketAddr::from_abstract_name(&outside.directory)?;
            nothing(UnixStream::connect_addr(&address))
        },
    ),
    ("connect over TCP", Reach::Everything, |outside| {
        nothing(TcpStream::connect(("127.0.0.1", outside.tcp)))
    }),
    ("make a socket", Reach::Everything, |_| {
        nothing(UnixDatagram::unbound())
    }),
    ("make a socket pair", Reach::Everything, |_| {
        nothing(UnixStream::pair())
    }),
    ("listen", Reach::Powers, |outside| {
        let path = format!("{}/listen", outside.directory);
        drop(UnixListener::bind(&path)?);
        fs::remove_file(path)
    }),
    ("use what was left open", Reach::Everything, |outside| {
        let mut file = File::from(fd::duplicate(outside.left_open)?);
        file.write_all(b"x")
    }),
    ("kill a process", Reach::Powers, |outside| {
        // Signal 0: only whether it could, so nothing happens if it can.
        nix(kill(Pid::from_raw(outside.victim), None))
    }),
    ("kill the parent", Reach::Powers, |_| {
        nix(kill(Pid::parent(), None))
    }),
    ("become root", Reach::Powers, |_| {
        let root = Uid::from_raw(0);
        nix(setresuid(root, root, root))
    }),
    ("become another user", Reach::Powers, |_| {
        let (uid, gid) = (Uid::from_raw(user_of(78)), Gid::from_raw(user_of(78)));
        nix(setgroups(&[gid]))?;
        nix(setresgid(gid, gid, gid))?;
        nix(setresuid(uid, uid, uid))
    }),
    ("execute a program", Reach::Powers, |_| {
        nothing(Command::new("/bin/true").status())
    }),
    ("mount", Reach::Powers, |_| {
        // Nothing of this kind exists, so a process that may mount gets `ENODEV`, and nothing is
        // mounted.
        let (none, kind) = (None::<&str>, Some("no-such-kind"));
        match mount(none, "/", kind, MsFlags::empty(), none) {
            Err(Errno::ENODEV) => Ok(()),
            other => nix(other),
        }
    }),
    ("another root", Reach::Powers, |_| {
        nix(chroot("/nonexistent/.."))
    }),
    ("have more memory", Reach::Powers, |_| {
        let (_, most) = getrlimit(Resource::RLIMIT_DATA)?;
        let more = most.saturating_add(1);
        nix(setrlimit(Resource::RLIMIT_DATA, more, more))
    }),
];

pub(crate) fn names(reach: Reach) -> impl Iterator<Item = &'static str> {
    let own = ATTEMPTS
        .iter()
        .filter(move |attempt| reach == Reach::Everything || attempt.1 == Reach::Powers)
        .map(|attempt| attempt.0);
    own.chain(raw::names(reach))
}

/// Tries everything behind these walls, and prints the results.
pub(crate) fn play(which: &str, outside: &Outside) -> ExitCode {
    let output = io::stdout();
    // stdout stays, as a standard descriptor.
    let keep = [];
    let reach = match which {
        "user" => Reach::Powers,
        _ => Reach::Everything,
    };
    match which {
        "none" => {}
        "all" | "hungry" => enter::enter(&keep, user_of(77), 0).unwrap(),
        "calls" => {
            enter::close_others(&keep).unwrap();
            seccomp::restrict().unwrap();
        }
        "user" => {
            enter::limit(0).unwrap();
            enter::leave_the_files().unwrap();
            enter::become_nobody(user_of(77)).unwrap();
        }
        "wide" => {
            enter::limit(0).unwrap();
            let half = enter::MEMORY / 2;
            // A process short of memory is to end, not to handle a signal of its own forever.
            SigSet::all().thread_block().unwrap();
            setrlimit(Resource::RLIMIT_DATA, half, half).unwrap();
            seccomp::restrict().unwrap();
        }
        other => panic!("no walls of the name {other}"),
    }
    let mut output = output.lock();
    if which == "hungry" {
        return hungry(&mut output);
    }
    if which == "wide" {
        return wide(&mut output);
    }
    let own = ATTEMPTS
        .iter()
        .filter(|attempt| reach == Reach::Everything || attempt.1 == Reach::Powers);
    for (name, _, attempt) in own {
        if which == "none" && name.starts_with("become") {
            // The attempts after it would be another's.
            continue;
        }
        let line = match attempt(outside) {
            Ok(()) => format!("{name}: done"),
            Err(error) => format!("{name}: refused, {error}"),
        };
        writeln!(output, "{line}").unwrap();
    }
    if which != "none" {
        for (name, result) in raw::attempt(reach) {
            let line = match result {
                Ok(()) => format!("{name}: done"),
                Err(error) => format!("{name}: refused, {error}"),
            };
            writeln!(output, "{line}").unwrap();
        }
    }
    ExitCode::SUCCESS
}

/// Takes what it can get.
fn hungry(output: &mut impl Write) -> ExitCode {
    let mut blocks: Vec<Vec<u8>> = Vec::with_capacity(4096);
    while blocks.len() < 4096 {
        let mut block = Vec::new();
        if block.try_reserve_exact(1 << 20).is_err() {
            break;
        }
        block.resize(1 << 20, 1);
        blocks.push(block);
    }
    let had = blocks.len();
    drop(blocks);
    let mut descriptors = Vec::new();
    while let Ok(copy) = io::stderr().as_fd().try_clone_to_owned() {
        descriptors.push(copy);
    }
    writeln!(
        output,
        "MiB {had}\ndescriptors {}\ncore 0",
        descriptors.len()
    )
    .unwrap();
    ExitCode::SUCCESS
}

/// A line as long as one may be, and a value in it that takes as much memory as it can.
fn widest(item: impl Fn(usize) -> String, open: &str, close: &str) -> Vec<u8> {
    let mut line = open.as_bytes().to_vec();
    for n in 0.. {
        let item = item(n);
        if line.len() + item.len() + close.len() > LINE_MAX {
            break;
        }
        line.extend_from_slice(item.as_bytes());
    }
    line.extend_from_slice(close.as_bytes());
    line
}

/// A name, what is repeated, and what is around it.
type Kind = (
    &'static str,
    fn(usize) -> String,
    &'static str,
    &'static str,
);

/// Takes the widest lines under the largest limits a policy can have: where a session begins, and
/// as the answer to a command.
fn wide(output: &mut impl Write) -> ExitCode {
    let mut policy = Policy::built_in().unwrap();
    policy.limits.answer = LINE_MAX;
    policy.limits.json = Limits {
        bytes: LINE_MAX,
        depth: 100,
        elements: 100_000,
        text: LINE_MAX,
    };
    let now = Instant::now();
    let mut multiplexer = Multiplexer::new(Arc::new(policy), 1, now);
    let client = multiplexer.handle_client_arrived(now);
    let kinds: [Kind; 6] = [
        ("objects", |_| "{\"\":0},".into(), "[", "0]"),
        ("arrays", |_| "[0],".into(), "[", "0]"),
        ("members", |n| format!("\"{n:x}\":0,"), "{", "\"\":0}"),
        ("texts", |n| format!("\"{n:x}\":\"{n:x}\","), "{", "\"\":0}"),
        ("escapes", |_| "\\u0020".into(), "\"", "\""),
        ("deep", |n| ["[", "{\"a\":", "[0,"][n % 3].into(), "", ""),
    ];
    for (name, item, open, close) in kinds {
        multiplexer.handle_vchan_up(now);
        let say = |multiplexer: &mut Multiplexer, line: &[u8]| {
            for piece in line.chunks(4096).chain([&b"\n"[..]]) {
                multiplexer.handle_vchan_bytes(piece, now);
            }
        };
        // A greeting that nobody drops, then whatever else precedes the answer to the probe.
        let greeting = r#"{"QMP":{"version":{"qemu":{"micro":0,"minor":2,"major":7}},"x":"#;
        say(
            &mut multiplexer,
            &widest(item, &format!("{greeting}{open}"), &format!("{close}}}}}")),
        );
        say(&mut multiplexer, &widest(item, open, close));
        say(&mut multiplexer, format!("{greeting}0}}}}").as_bytes());
        let id = |multiplexer: &mut Multiplexer| {
            let out = String::from_utf8_lossy(multiplexer.poll_vchan()).into_owned();
            multiplexer.handle_vchan_written(multiplexer.poll_vchan().len());
            let (_, id) = out.rsplit_once("\"id\":\"").unwrap();
            id.split('"').next().unwrap().to_owned()
        };
        let probe = id(&mut multiplexer);
        say(
            &mut multiplexer,
            format!("{{\"error\":{{}},\"id\":\"{probe}\"}}").as_bytes(),
        );
        let negotiation = id(&mut multiplexer);
        say(
            &mut multiplexer,
            format!("{{\"return\":{{}},\"id\":\"{negotiation}\"}}").as_bytes(),
        );
        let command = b"{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"query-cpus-fast\"}\n";
        multiplexer.handle_client_bytes(client, command, now);
        let asked = id(&mut multiplexer);
        let open = format!("{{\"id\":\"{asked}\",\"return\":{open}");
        say(
            &mut multiplexer,
            &widest(item, &open, &format!("{close}}}")),
        );
        let told = multiplexer.poll_client(client).len();
        multiplexer.handle_client_written(client, told, now);
        writeln!(output, "{name} {told}").unwrap();
        multiplexer.handle_vchan_lost(now);
    }
    ExitCode::SUCCESS
}

//! Host processes of a guest that are killed at any moment, on a simulated host: they are started
//! again, and continue where they stopped.

#![allow(clippy::unwrap_used)]

mod host;

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use stubdm::libxl::state_record::{FILLER, Header};
use stubdm::proxy::counters;
use stubdm::service::claim;
use stubdm::service::record::{self, Claim, Kind, Record};
use xen_console::Frontend;

use xen_sys::DomId;

use host::{Killed, PATIENCE, ask, console, frontend, hang_up, murder};

/// How often each is killed.
const KILLS: u32 = 100;

/// xorshift; seeded by the clock, and printed, so that a failure can be run again.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let given = std::env::var("STUBDM_TEST_SEED").ok();
        let seed = given.map(|text| text.parse().unwrap()).unwrap_or_else(|| {
            let now = std::time::SystemTime::now();
            let since = now.duration_since(std::time::UNIX_EPOCH).unwrap();
            since.as_nanos() as u64 | 1
        });
        eprintln!("STUBDM_TEST_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Asks until there is an answer; returns how often.
fn ask_until(killed: &Killed, command: &str) -> u32 {
    let deadline = Instant::now() + PATIENCE;
    for attempt in 1.. {
        let Err(why) = ask(&killed.socket(), command) else {
            return attempt;
        };
        assert!(Instant::now() < deadline, "{why}: {}", killed.logs());
        // Clients wait in the socket's queue meanwhile; a dying worker may still take one.
        assert!(!why.starts_with("connecting"), "{why}");
        std::thread::sleep(Duration::from_millis(1));
    }
    unreachable!()
}

#[test]
fn a_proxy_killed_at_any_moment_answers_libxls_next_request() {
    let mut random = Random::new();
    let mut killed = Killed::new();
    killed.supervise(&[]);
    killed.stubdomain_and_proxy();
    let stub = killed.host.stub;
    let node = format!("/local/domain/{stub}/image/qmp-proxy-pid");
    let (mut pid, mut sessions, mut again) = (0, 0, 0);
    for number in 0..KILLS {
        pid = killed.process(Kind::Proxy, pid);
        killed.wait_for_node(&node, &pid.to_string());
        let pause = Duration::from_micros(random.below(20_000));
        std::thread::scope(|scope| {
            let socket = killed.socket();
            // A save begins and ends with these; the answers may be lost.
            let asking = scope.spawn(move || {
                for command in ["stop", "query-status", "cont"] {
                    let _ = ask(&socket, command);
                }
            });
            std::thread::sleep(pause);
            murder(pid);
            again += u32::from(ask_until(&killed, "cont") > 1);
            asking.join().unwrap();
        });
        killed.process(Kind::Proxy, pid);
        assert_eq!(ask_until(&killed, "query-status"), 1, "at once");
        let told = counters::read(&killed.folder(), stub.as_u16()).unwrap();
        let now = told.counters.sessions;
        assert!(
            now >= sessions,
            "kill {number}: {now} sessions, {sessions} before"
        );
        sessions = now;
    }
    eprintln!("{again} of {KILLS} requests had to be repeated; {sessions} sessions counted");
    assert!(sessions > 0);
}

/// Writes to a console, while its other end starts and ends.
fn write_console(frontend: &mut Frontend, bytes: &[u8]) {
    let deadline = Instant::now() + PATIENCE;
    let mut sent = 0;
    while sent < bytes.len() {
        frontend.turn().unwrap();
        let count = frontend.connection().try_write(&bytes[sent..]).unwrap();
        sent += count;
        if count == 0 {
            assert!(
                Instant::now() < deadline,
                "nobody takes the console's bytes"
            );
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

/// Waits until the other end has taken everything.
fn wait_until_taken(frontend: &mut Frontend) {
    let deadline = Instant::now() + PATIENCE;
    while frontend.connection().unread().unwrap() > 0 {
        frontend.turn().unwrap();
        assert!(Instant::now() < deadline, "the last bytes are not taken");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_consoled_killed_at_any_moment_loses_and_doubles_no_byte() {
    let mut random = Random::new();
    let mut killed = Killed::new();
    let stub = killed.host.stub;
    let (log, states) = (killed.path("log"), killed.path("states"));
    console(killed.host.store(), stub, 1, &format!("file:{states}"));
    console(killed.host.store(), stub, 3, &format!("file:{log}"));
    killed.supervise(&[]);
    let (folder, number) = (killed.path("run"), stub.to_string());
    let limit = (1u64 << 40).to_string();
    let args = ["--folder", &folder, "--log-limit", &limit, &number];
    killed.start("consoled", DomId::DOM0, &args);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut frontend = frontend(&killed, 3);
            let mut all = Vec::new();
            for line in 0.. {
                let text = format!("line {line} of a log that nobody may lose\n");
                write_console(&mut frontend, text.as_bytes());
                all.extend_from_slice(text.as_bytes());
                if over.load(Ordering::Relaxed) {
                    break;
                }
            }
            wait_until_taken(&mut frontend);
            assert!(std::fs::read(&log).unwrap() == all, "the log is another");
            all.len()
        });
        let saver = scope.spawn(|| {
            let mut frontend = frontend(&killed, 1);
            let mut number = 0;
            while !over.load(Ordering::Relaxed) {
                number += 1;
                let state = vec![number as u8; 150_000 + number as usize];
                let header = Header {
                    number,
                    crc: crc32fast::hash(&state),
                    length: state.len() as u64,
                    filler: FILLER,
                };
                let record = [&header.encode()[..], &state].concat();
                write_console(&mut frontend, &record);
                write_console(&mut frontend, &[0; FILLER as usize]);
                assert!(std::fs::read(&states).unwrap() == record, "save {number}");
            }
            wait_until_taken(&mut frontend);
            number
        });
        let mut pid = 0;
        for _ in 0..KILLS {
            pid = killed.process(Kind::Consoled, pid);
            std::thread::sleep(Duration::from_micros(random.below(30_000)));
            murder(pid);
        }
        killed.process(Kind::Consoled, pid);
        over.store(true, Ordering::Relaxed);
        let (bytes, saves) = (writer.join().unwrap(), saver.join().unwrap());
        eprintln!("{bytes} bytes of a log and {saves} saves passed {KILLS} kills");
        assert!(bytes > 0 && saves > 0);
    });
}

/// Treats the log that libxl opened as `logrotate` does, with and without `copytruncate`.
#[test]
fn a_proxys_log_that_others_rotate_has_no_hole_and_goes_on_at_its_name() {
    let mut killed = Killed::new();
    killed.stubdomain_and_proxy();
    let log = killed.dir.path().join("vchan-socket-proxy.log");
    let grows = |what: &str| {
        let deadline = Instant::now() + PATIENCE;
        // Each of these is denied, which is a line of the log.
        while std::fs::read(&log).unwrap_or_default().is_empty() {
            let _ = ask(&killed.socket(), "inject-nmi");
            assert!(Instant::now() < deadline, "{what}: nothing is written");
            std::thread::sleep(Duration::from_millis(20));
        }
        let text = std::fs::read(&log).unwrap();
        assert!(!text.contains(&0), "{what}: a hole");
    };
    grows("at first");
    std::fs::File::options()
        .write(true)
        .open(&log)
        .unwrap()
        .set_len(0)
        .unwrap();
    grows("cut");
    std::fs::rename(&log, killed.dir.path().join("vchan-socket-proxy.log.1")).unwrap();
    grows("moved");
}

#[test]
fn no_one_process_that_is_killed_keeps_another_from_being_started_again() {
    let mut killed = Killed::new();
    killed.supervise(&["--standby"]);
    killed.stubdomain_and_proxy();
    let number = killed.folder().join("supervise.pid");
    let active = |last: u32| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = std::fs::read_to_string(&number).unwrap_or_default();
            match text.trim().parse() {
                Ok(pid) if pid != last => return pid,
                _ => assert!(Instant::now() < deadline, "{}", killed.logs()),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let (mut supervisor, mut proxy) = (0, 0);
    for _ in 0..5 {
        supervisor = active(supervisor);
        murder(supervisor);
        proxy = killed.process(Kind::Proxy, proxy);
        murder(proxy);
        // The socket may not have been kept yet.
        let deadline = Instant::now() + PATIENCE;
        while let Err(why) = ask(&killed.socket(), "query-status") {
            assert!(Instant::now() < deadline, "{why}: {}", killed.logs());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn restart_replaces_the_processes_with_and_without_a_supervisor() {
    let mut killed = Killed::new();
    let stub = killed.host.stub;
    let (log, folder) = (killed.path("log"), killed.path("run"));
    console(killed.host.store(), stub, 3, &format!("file:{log}"));
    killed.stubdomain_and_proxy();
    let number = stub.to_string();
    killed.start("consoled", DomId::DOM0, &["--folder", &folder, &number]);
    let mut frontend = frontend(&killed, 3);
    write_console(&mut frontend, b"before ");
    wait_until_taken(&mut frontend);
    let (mut proxy, mut consoled) = (0, 0);
    for supervised in [false, true] {
        if supervised {
            killed.supervise(&[]);
            let lock = killed.folder().join("supervise.pid");
            let deadline = Instant::now() + PATIENCE;
            while !lock.exists() {
                assert!(Instant::now() < deadline);
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        proxy = killed.process(Kind::Proxy, proxy);
        consoled = killed.process(Kind::Consoled, consoled);
        let output = killed.restart(&["--all"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{output:?} {}", killed.logs());
        for pid in [proxy, consoled] {
            assert!(text.contains(&format!("in place of {pid}\n")), "{text}");
        }
        assert_eq!(ask_until(&killed, "query-status"), 1, "at once");
    }
    write_console(&mut frontend, b"after");
    wait_until_taken(&mut frontend);
    assert_eq!(std::fs::read(&log).unwrap(), b"before after");
}

#[test]
fn a_service_that_ends_at_each_start_is_started_with_pauses() {
    let mut killed = Killed::new();
    let (stub, folder) = (killed.host.stub, killed.folder());
    let uuid = claim::uuid(killed.host.store(), stub).unwrap();
    let mut record = Record::of_this_process(Kind::Proxy, stub.as_u16(), uuid).unwrap();
    record.program = env!("CARGO_BIN_EXE_stubdm-run").into();
    record.arguments = vec!["stubdm-run".into(), "no-such-command".into()];
    record.log = None;
    std::fs::create_dir(&folder).unwrap();
    Claim::take(&folder, record).unwrap().unwrap().leave();
    let began = Instant::now();
    let args = ["--folder", &killed.path("run"), "--pause", "1000"];
    killed.start("supervise", DomId::DOM0, &args);
    while killed.logs().matches("is started again").count() < 5 {
        assert!(began.elapsed() < PATIENCE, "{}", killed.logs());
        std::thread::sleep(Duration::from_millis(5));
    }
    // 100, 200, 400 and 800 ms.
    assert!(began.elapsed() >= Duration::from_millis(1500));
}

#[test]
fn restart_reports_every_process_that_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    for kind in [Kind::Proxy, Kind::Consoled] {
        let mut record = Record::of_this_process(kind, 7, String::new()).unwrap();
        record.program = dir.path().join("no-such-program");
        Claim::take(dir.path(), record).unwrap().unwrap().leave();
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_stubdm-run"));
    command
        .args(["restart", "--all", "--folder"])
        .arg(dir.path());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for kind in ["proxy", "consoled"] {
        assert!(text.contains(&format!("the {kind} of domain 7")), "{text}");
    }
}

#[test]
fn a_second_proxy_in_the_place_of_a_killed_one_leaves_the_first_ones_socket() {
    let mut killed = Killed::new();
    killed.stubdomain_and_proxy();
    killed.process(Kind::Proxy, 0);
    let second = killed.proxy(&["--resume=-"]);
    let status = killed.wait(second);
    assert_eq!(status.code(), Some(1), "{}", killed.logs());
    assert_eq!(ask_until(&killed, "query-status"), 1, "{}", killed.logs());
}

#[test]
fn what_ends_in_good_order_is_not_started_again() {
    let mut killed = Killed::new();
    killed.supervise(&[]);
    killed.stubdomain_and_proxy();
    let pid = killed.process(Kind::Proxy, 0);
    hang_up(pid);
    let deadline = Instant::now() + PATIENCE;
    while !record::all(&killed.folder()).is_empty() || killed.socket().exists() {
        assert!(Instant::now() < deadline, "{}", killed.logs());
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_secs(1));
    assert!(record::all(&killed.folder()).is_empty());
}

#[test]
fn a_proxy_that_was_started_again_and_ends_leaves_no_process_behind() {
    let mut killed = Killed::new();
    killed.supervise(&[]);
    killed.stubdomain_and_proxy();
    let first = killed.process(Kind::Proxy, 0);
    murder(first);
    let second = killed.process(Kind::Proxy, first);
    hang_up(second);
    let deadline = Instant::now() + PATIENCE;
    // The directory of a process that is not reaped stays.
    while std::path::Path::new(&format!("/proc/{second}")).exists() {
        assert!(Instant::now() < deadline, "{}", killed.logs());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_record_of_another_domain_of_the_same_number_is_removed_and_not_started() {
    let mut killed = Killed::new();
    killed.stubdomain_and_proxy();
    let pid = killed.process(Kind::Proxy, 0);
    murder(pid);
    let node = format!("/local/domain/{}/vm", killed.host.stub);
    killed.host.store().write(&node, "/vm/another").unwrap();
    killed.supervise(&[]);
    let deadline = Instant::now() + PATIENCE;
    while killed
        .folder()
        .join("services")
        .join(format!("proxy-{}", killed.host.stub))
        .exists()
    {
        assert!(Instant::now() < deadline, "{}", killed.logs());
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!killed.socket().exists(), "nobody answers there");
    assert!(
        !killed.logs().contains("is started again"),
        "{}",
        killed.logs()
    );
}

/// KiB of the program's machine code: all, and as much as a process has mapped.
fn machine_code(process: u32) -> [u64; 2] {
    let smaps = std::fs::read_to_string(format!("/proc/{process}/smaps")).unwrap();
    let mappings = smaps.lines().skip_while(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        !(words.get(1) == Some(&"r-xp") && line.ends_with("/stubdm-run"))
    });
    let mut values = mappings.skip(1).filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        let value = value.trim().strip_suffix(" kB")?;
        ["Size", "Rss"]
            .contains(&name)
            .then(|| value.parse().unwrap())
    });
    [values.next().unwrap(), values.next().unwrap()]
}

#[test]
fn an_idle_proxy_has_little_of_its_code_mapped_and_answers_again() {
    let mut killed = Killed::new();
    killed.stubdomain_and_proxy();
    let broker = killed.process(Kind::Proxy, 0);
    let children = format!("/proc/{broker}/task/{broker}/children");
    let children = std::fs::read_to_string(children).unwrap();
    let processes = [broker, children.trim().parse().unwrap()];
    for _ in 0..2 {
        ask(&killed.socket(), "query-status").unwrap();
        let deadline = Instant::now() + PATIENCE;
        // Sleeping takes 13 % of a debug build, an answer half of it.
        while processes
            .map(machine_code)
            .iter()
            .any(|[all, mapped]| mapped * 5 > *all)
        {
            assert!(Instant::now() < deadline, "{}", killed.logs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

//! The corpus of hostile stubdomains against the proxy's two processes, with a client written like
//! libxl: whatever the stubdomain does, the client gets its answer, a clean error, or nothing in
//! its time; the proxy lives, and takes no more memory than stated.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use serde_json::{Value, json};
use xen_fidelity::hostile::{self, Behaviour};
use xen_sys::DomId;

use crate::host::Host;
use crate::proxy::{Process, path};
use crate::sandbox::{child, field};

/// libxl buffers no more.
const BUFFER: usize = 1 << 20;
/// The length of a flood in bytes, unless `STUBDM_HOSTILE_BYTES` sets another.
const FLOOD: usize = 4 << 20;
/// The most resident memory either process may ever have had, in KiB: the program itself, and a few
/// messages of the policy's limits.
const MOST: u64 = 32 << 10;

/// libxl's view of a conversation.
#[derive(Debug)]
enum Outcome {
    Answer,
    Refused(String),
    Silence,
    Closed,
    /// A protocol error to libxl.
    Broken(String),
}

/// Connects, negotiates and asks, with libxl's ids and its checks of the answers.
fn ask_like_libxl(socket: &str, command: &str, patience: Duration) -> Outcome {
    let deadline = Instant::now() + patience;
    let mut stream = UnixStream::connect(socket).unwrap();
    let mut received = Vec::new();
    let mut step = 0;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Outcome::Silence;
        }
        stream.set_read_timeout(Some(left)).unwrap();
        let mut buffer = [0; 8192];
        match stream.read(&mut buffer) {
            Ok(0) => return Outcome::Closed,
            Ok(count) => received.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Outcome::Silence,
            Err(_) => return Outcome::Closed,
        }
        while let Some(end) = received.windows(2).position(|two| two == b"\r\n") {
            let line: Vec<u8> = received.drain(..end + 2).collect();
            let Ok(said) = serde_json::from_slice::<Value>(&line) else {
                return Outcome::Broken("no JSON".to_owned());
            };
            if said.get("event").is_some() {
                continue;
            }
            if step == 0 {
                if said.get("QMP").is_none() {
                    return Outcome::Broken(format!("no greeting: {said}"));
                }
            } else {
                let id = [0x786c_7101_u32, 0x786c_7100][step - 1];
                if said["id"] != id {
                    return Outcome::Broken(format!("not the answer to {id}: {said}"));
                }
                if let Some(error) = said.get("error") {
                    return Outcome::Refused(error["desc"].as_str().unwrap_or_default().to_owned());
                }
                if said.get("return").is_none() {
                    return Outcome::Broken(format!("no answer: {said}"));
                }
                if step == 2 {
                    return Outcome::Answer;
                }
            }
            step += 1;
            let next = match step {
                1 => json!({"execute": "qmp_capabilities", "id": 0x786c_7101}),
                _ => json!({"execute": command, "id": 0x786c_7100}),
            };
            if stream.write_all(format!("{next}\r\n").as_bytes()).is_err() {
                return Outcome::Closed;
            }
        }
        if received.len() > BUFFER {
            return Outcome::Broken("more than a buffer".to_owned());
        }
    }
}

/// Returns the only outcomes allowed through the proxy.
fn allowed(behaviour: Behaviour) -> &'static [&'static str] {
    match behaviour {
        Behaviour::Honest
        | Behaviour::GuessesIds
        | Behaviour::AnswersTwice
        | Behaviour::EventFlood => &["answer"],
        Behaviour::Silent
        | Behaviour::SlowDrip
        | Behaviour::NeverAnswers
        | Behaviour::RingProducer
        | Behaviour::RingConsumer
        | Behaviour::RingOrders
        | Behaviour::BellStorm
        | Behaviour::RingLives => &["silence"],
        // The greeting of a conversation before serves as well.
        Behaviour::GreetingFlood | Behaviour::GreetingLong | Behaviour::GreetingLies => {
            &["silence", "answer"]
        }
        // Before the conversation is known to be a new one it is begun again, after that it is
        // over.
        Behaviour::LeavesAfterGreeting => &["silence", "closed"],
        _ => &["refused"],
    }
}

fn resident(pid: Pid) -> u64 {
    field(pid, "VmHWM:").unwrap().parse().unwrap()
}

pub(crate) fn hostile_stubdomains() {
    let flood = std::env::var("STUBDM_HOSTILE_BYTES");
    let flood = flood.map_or(FLOOD, |text| text.parse().unwrap());
    let host = Host::new();
    let socket = path(&host, "libxl");
    let (stub, node) = (host.stub.to_string(), host.node());
    let relative = format!("device-model/{}/qmp-vchan", host.guest);
    let line = ["--filter=on", &stub, &node, &socket];
    let proxy = Process::start(&host, DomId::DOM0, &line, false);
    let worker = child(proxy.pid(), None);
    let mut wrong = Vec::new();
    // The first once more at the end.
    let corpus = Behaviour::ALL.iter().chain(Behaviour::ALL.first());
    for &(name, behaviour) in corpus {
        let stop = AtomicBool::new(false);
        let began = Instant::now();
        let outcome = std::thread::scope(|scope| {
            let (xen, store) = (host.stub_xen(), host.stub_store());
            let (stop, relative) = (&stop, relative.as_str());
            let server = scope.spawn(move || {
                let told = || stop.load(Ordering::Acquire);
                hostile::play(&xen, &store, DomId::DOM0, relative, behaviour, flood, &told)
            });
            let patience = match allowed(behaviour).contains(&"silence") {
                true => Duration::from_secs(1),
                // A flood through a debug build on a busy machine; the length of a hang.
                false => Duration::from_secs(120),
            };
            let command = match behaviour {
                Behaviour::FdsetLies => "query-fdsets",
                _ => "query-cpus-fast",
            };
            // The session with the server before is over, and the first command may fail with that.
            let mut asked = (0..3).map(|_| ask_like_libxl(&socket, command, patience));
            let over = |outcome: &Outcome| matches!(outcome, Outcome::Refused(why) if why.ends_with("went away"));
            let outcome = asked.find(|outcome| !over(outcome));
            let outcome = outcome.unwrap_or(Outcome::Refused("it went away".to_owned()));
            stop.store(true, Ordering::Release);
            server.join().unwrap().unwrap();
            outcome
        });
        let (kind, more) = match &outcome {
            Outcome::Answer => ("answer", ""),
            Outcome::Refused(why) => ("refused", why.as_str()),
            Outcome::Silence => ("silence", ""),
            Outcome::Closed => ("closed", ""),
            Outcome::Broken(why) => ("broken", why.as_str()),
        };
        println!(
            "    {name:<22} {kind:<8} {:>6.2} s  {:>6} KiB {:>6} KiB  {more}",
            began.elapsed().as_secs_f64(),
            resident(proxy.pid()),
            resident(worker),
        );
        let small = [proxy.pid(), worker]
            .iter()
            .all(|pid| resident(*pid) < MOST);
        let clean = more.chars().all(|c| !c.is_control());
        if !(allowed(behaviour).contains(&kind) && small && clean) {
            wrong.push(name);
        }
    }
    assert_eq!(wrong, Vec::<&str>::new(), "see above");
    assert_eq!(child(proxy.pid(), None), worker, "it died and was replaced");
    let said = proxy.hang_up();
    for line in said.lines() {
        assert!(
            line.chars().all(|c| !c.is_control()),
            "in the log: {line:?}"
        );
        assert!(line.len() < 2000, "in the log: {line}");
    }
    host.assert_clean_of("qmp-vchan");
}

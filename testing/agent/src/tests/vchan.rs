//! vchan between dom0 and a domU: with ourselves and with libxenvchan, every byte checked, and with
//! a peer that is killed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use super::named;
use crate::host::{Place, TestHost, soon};
use crate::job::{Exit, Job};
use crate::suite::{Needs, Test};

/// The vchan library that a process uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Maker {
    Ours,
    C,
}

impl Maker {
    fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::C => "c",
        }
    }
}

const PAIRS: [(Maker, Maker); 3] = [
    (Maker::Ours, Maker::Ours),
    (Maker::Ours, Maker::C),
    (Maker::C, Maker::Ours),
];

const MIB: u64 = 1 << 20;

/// The bytes sent both ways, and the rings.
#[derive(Clone, Copy, Debug)]
struct Load {
    bytes: u64,
    ring: u32,
    chunk: u32,
    style: &'static str,
}

const LOADS: [(&str, Load); 3] = [
    (
        "16mib",
        Load {
            bytes: 16 * MIB,
            ring: 65536,
            chunk: 65536,
            style: "poll",
        },
    ),
    // The rings that libxl's proxy uses: in the control page, 1024 and 2048 bytes. Chunks that
    // divide neither.
    (
        "small_rings",
        Load {
            bytes: MIB,
            ring: 0,
            chunk: 1000,
            style: "wait",
        },
    ),
    (
        "odd_sizes",
        Load {
            bytes: 2 * MIB + 7,
            ring: 4096,
            chunk: 9999,
            style: "threads",
        },
    ),
];

pub(super) fn add(tests: &mut Vec<Test>, needs: Needs) {
    for (server, client) in PAIRS {
        for place in [Place::Dom0, Place::DomU] {
            for (what, load) in LOADS {
                // The last load is about our own calls.
                if what == "odd_sizes" && (server, client) != (Maker::Ours, Maker::Ours) {
                    continue;
                }
                let name = format!(
                    "vchan/{}_server_in_{}_{}_client_{what}",
                    server.name(),
                    place.name(),
                    client.name()
                );
                tests.push(Test::new(named(&name, needs), needs, move |host| {
                    transfer(host, place, server, client, load)
                }));
            }
        }
    }
    for place in [Place::Dom0, Place::DomU] {
        let name = format!("vchan/pingpong_server_in_{}", place.name());
        tests.push(Test::new(named(&name, needs), needs, move |host| {
            pingpong(host, place)
        }));
        for victim in ["server", "client"] {
            for busy in [true, false] {
                let when = if busy { "mid_transfer" } else { "idle" };
                let name = format!("vchan/{victim}_killed_{when}_server_in_{}", place.name());
                tests.push(Test::new(named(&name, needs), needs, move |host| {
                    killed(host, place, victim == "server", busy)
                }));
            }
        }
    }
}

/// A channel's two processes.
pub(super) struct Pair {
    pub(super) server: Job,
    pub(super) client: Job,
    /// Where the server publishes, for dom0.
    path: String,
}

pub(super) fn start(
    host: &TestHost,
    place: Place,
    server: (&[&str], &[&str]),
    client: (&[&str], &[&str]),
) -> Result<Pair> {
    start_in(host, (place, place.other()), server, client)
}

/// The same with the server in one place and the client in another.
pub(super) fn start_in(
    host: &TestHost,
    (place, other): (Place, Place),
    (server, server_words): (&[&str], &[&str]),
    (client, client_words): (&[&str], &[&str]),
) -> Result<Pair> {
    let (here, there) = (
        host.domid(place)?.to_string(),
        host.domid(other)?.to_string(),
    );
    let folder = host.folder(place)?;
    host.store.mkdir(&folder)?;
    // libxenvchan cuts paths off at 63 bytes, node names included.
    let path = if server[0] == "self" && client[0] == "self" {
        format!("{folder}/a-path-which-is-far-too-long-for-libxenvchan/and-has-folders/vchan")
    } else {
        format!("{folder}/vchan")
    };
    let words = |program: &[&'_ str], side: &str, domain: &str, more: &[&str]| -> Vec<String> {
        let own = [side, domain, path.as_str()];
        let all = program.iter().chain(&own).chain(more);
        all.map(|&word| word.to_owned()).collect()
    };
    let begin = |place: Place, argv: Vec<String>| -> Result<Job> {
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        host.start(place, &argv)
    };
    let server = begin(place, words(server, "server", &there, server_words))?;
    let client = begin(other, words(client, "client", &here, client_words))?;
    Ok(Pair {
        server,
        client,
        path,
    })
}

impl Pair {
    pub(super) fn connected(&mut self) -> Result<()> {
        self.server
            .expect("connected", soon())
            .context("the server")?;
        self.client
            .expect("connected", soon())
            .context("the client")?;
        Ok(())
    }

    /// A server that ended takes its nodes with it.
    pub(super) fn unpublished(&self, host: &TestHost) -> Result<()> {
        for node in ["ring-ref", "event-channel"] {
            let node = format!("{}/{node}", self.path);
            ensure!(!host.store.exists(&node)?, "{node} is still there");
        }
        Ok(())
    }
}

fn program(maker: Maker) -> &'static [&'static str] {
    match maker {
        Maker::Ours => &["self", "role", "vchan"],
        Maker::C => &["/usr/bin/c-vchan-peer"],
    }
}

fn transfer(host: &TestHost, place: Place, server: Maker, client: Maker, load: Load) -> Result<()> {
    let [bytes, ring, chunk] =
        [load.bytes, load.ring.into(), load.chunk.into()].map(|n: u64| n.to_string());
    let mut words = vec![
        "--send", &bytes, "--recv", &bytes, "--key", "41", "--chunk", &chunk,
    ];
    let client_words = words.clone();
    words.extend(["--read-min", &ring, "--write-min", &ring]);
    let style = |maker: Maker, words: &[&str]| -> Vec<String> {
        let own: &[&str] = if maker == Maker::Ours {
            &["--style", load.style]
        } else {
            &[]
        };
        words
            .iter()
            .chain(own)
            .map(|&word| word.to_owned())
            .collect()
    };
    let (words, client_words) = (style(server, &words), style(client, &client_words));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let client_words: Vec<&str> = client_words.iter().map(String::as_str).collect();
    let mut pair = start(
        host,
        place,
        (program(server), &words),
        (program(client), &client_words),
    )?;
    let moved = format!("ok sent={bytes} received={bytes}");
    let deadline = soon();
    let ended = pair
        .client
        .succeed(deadline)
        .context("the client")
        .and_then(|()| pair.server.succeed(deadline).context("the server"));
    if let Err(error) = ended {
        let (server, client) = (pair.server.transcript(), pair.client.transcript());
        return Err(error.context(format!("server{server}\nclient{client}")));
    }
    for job in [&mut pair.server, &mut pair.client] {
        let lines = job.lines()?;
        ensure!(lines.contains(&moved), "no line `{moved}`: {lines:?}");
    }
    pair.unpublished(host)?;
    tidy(host, place)
}

fn pingpong(host: &TestHost, place: Place) -> Result<()> {
    let program: &[&str] = &["self", "role", "vchan-pingpong"];
    let words: &[&str] = &["--rounds", "2000", "--timeout", "120"];
    let mut pair = start(host, place, (program, words), (program, words))?;
    pair.client.succeed(soon()).context("the client")?;
    pair.server.succeed(soon()).context("the server")?;
    pair.unpublished(host)?;
    tidy(host, place)
}

/// The longest time that counts as noticed at once.
const A_SECOND: Duration = Duration::from_secs(1);

/// Kills one side with SIGKILL; the other has to notice within a second.
///
/// A machine that is busy with other things may be slow once, so the best of several tries counts.
/// Something that looks for its peer only now and then would fail all of them.
fn killed(host: &TestHost, place: Place, kill_server: bool, busy: bool) -> Result<()> {
    let mut tries = Vec::new();
    for _ in 0..5 {
        let took = time_to_notice(host, place, kill_server, busy)?;
        if took < A_SECOND {
            return Ok(());
        }
        tries.push(took);
    }
    bail!("noticed, but only after {tries:?}")
}

fn time_to_notice(
    host: &TestHost,
    place: Place,
    kill_server: bool,
    busy: bool,
) -> Result<Duration> {
    let program: &[&str] = &["self", "role", "vchan"];
    let endless = u64::MAX.to_string();
    // Idle: both sides wait for bytes that are never sent.
    let sends = if busy { endless.as_str() } else { "0" };
    let words: &[&str] = &[
        "--send",
        sends,
        "--recv",
        &endless,
        "--key",
        "5",
        "--chunk",
        "4096",
        "--until-gone",
    ];
    let mut pair = start(host, place, (program, words), (program, words))?;
    pair.connected()?;
    if busy {
        for (job, name) in [(&mut pair.server, "server"), (&mut pair.client, "client")] {
            job.expect("moving", soon())
                .with_context(|| format!("the {name}"))?;
        }
    }
    let (victim, witness) = if kill_server {
        (&mut pair.server, &mut pair.client)
    } else {
        (&mut pair.client, &mut pair.server)
    };
    // From before the order to kill until after the news of the noticing: an upper bound, ways
    // included.
    let began = Instant::now();
    victim.kill(Signal::SIGKILL)?;
    witness.expect("gone ", soon()).context("the survivor")?;
    let took = began.elapsed();
    witness.succeed(soon()).context("the survivor")?;
    ensure!(
        victim.exit(soon())? == Exit::Signal(9),
        "the victim was not killed"
    );
    if !kill_server {
        pair.unpublished(host)?;
    }
    tidy(host, place)?;
    Ok(took)
}

pub(super) fn tidy(host: &TestHost, place: Place) -> Result<()> {
    Ok(host.store.rm(&host.folder(place)?)?)
}

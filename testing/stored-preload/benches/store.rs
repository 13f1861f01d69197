//! `cargo xtask bench store`: our client beside libxenstore, on Debian's xenstored without Xen.
#![allow(
    clippy::unwrap_used,
    reason = "a failed measurement ends the program, in its helpers too"
)]

#[path = "../tests/daemons/daemon.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod daemon;
#[path = "../tests/daemons/ring.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod ring;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use benches::store::{
    BARE_THREADS, BOTH_THREADS_APART, BOUND_THREADS, BUSY, Bench, HEAD, LENGTH, OTHERS_CHANGES,
    OWN_CHANGES, READ, READ_ASLEEP, ROUNDS, THREADS, THREADS_APART, Task, USERS, VALUE, WALK,
};

use crate::daemon::{Daemon, Kind};

/// Processors' worth of tokio's threads.
const WORKERS: usize = 2;

const TASKS: [Task; 11] = [
    READ,
    READ_ASLEEP,
    WALK,
    THREADS,
    THREADS_APART,
    BOTH_THREADS_APART,
    BARE_THREADS,
    BOUND_THREADS,
    Task {
        name: "read, 64 tokio tasks; in C, 64 threads",
        operation: "threads",
        units: USERS,
        ours: tasks,
        c_apart: false,
        goals: [Some(10.0), None],
    },
    OWN_CHANGES,
    OTHERS_CHANGES,
];

fn tasks(socket: &Path, count: usize) -> Result<Duration> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(WORKERS).enable_all().build()?;
    runtime.block_on(async {
        let store = xen_store::tokio::Store::connect(socket).await?;
        let begun = Instant::now();
        let all: Vec<_> = (0..USERS)
            .map(|_| {
                let store = store.clone();
                tokio::spawn(async move {
                    for _ in 0..count {
                        assert_eq!(store.read(VALUE).await.unwrap().len(), LENGTH);
                    }
                })
            })
            .collect();
        for task in all {
            task.await?;
        }
        Ok(begun.elapsed())
    })
}

fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap();
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let name = name.map_or("unknown", |rest| rest.trim_start_matches(['\t', ' ', ':']));
    name.to_owned()
}

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    let mut out = None;
    let mut only = String::new();
    let mut rounds = ROUNDS;
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--out") => out = arguments.next().map(PathBuf::from),
            Some("--only") => only = arguments.next().unwrap().into_string().unwrap(),
            Some("--rounds") => {
                rounds = arguments.next().unwrap().to_str().unwrap().parse().unwrap();
            }
            // cargo's own.
            Some("--bench") => {}
            _ => panic!("unknown argument {argument:?}"),
        }
    }
    let daemon = Daemon::start(Kind::C);
    let root = daemon::c_root();
    let bench = Bench {
        socket: daemon.socket(),
        daemon: daemon.process().unwrap(),
        program: root.join("c/c-store-bench"),
        libraries: Some(daemon::libraries(&root)),
        on_xen: false,
        rounds,
    };
    bench.furnish().unwrap();
    let mut rows = String::new();
    for task in TASKS.iter().filter(|task| task.name.contains(&only)) {
        let row = bench.row(task).unwrap() + "\n";
        print!("{row}");
        rows += &row;
    }
    let processors = thread::available_parallelism().unwrap();
    let page = format!(
        "# The store's client, beside libxenstore\n\n\
         Written by `cargo xtask bench store`. Debian's xenstored 4.17 as a process without Xen\n\
         (`testing/stored-preload`), over its socket; the same loops on xen-store and on libxenstore\n\
         4.17. The {rounds} runs of a line are interleaved. A time is one operation's, the median of\n\
         the runs ± half the distance between the quartiles; a ratio is the median of the runs'\n\
         ratios with its quartiles: C's time over ours.\n\n\
         \"daemon\" is xenstored's own processor time for an operation of ours. The limit is C's time\n\
         over it, the ratio of a client that costs nothing: a goal above it cannot be reached on this\n\
         machine. \"others\" is how many processors other programs, and the hypervisor below this\n\
         machine, used meanwhile; above {BUSY} there is no verdict. The simplest client has no deadlines,\n\
         transactions or events (`benches/src/store/bare.rs`). The least work that was found has one\n\
         thread awake at a time (`benches/src/store/bound.rs`), which no library can arrange: it is what\n\
         this machine permits. \"Kept on one processor\" are the threads that the line names; the daemon\n\
         runs on all processors.\n\n\
         Machine: {}, {processors} processors.\n\n\
         {}\n{rows}",
        processor(),
        HEAD.join("\n"),
    );
    println!("\n{page}");
    if let Some(out) = out {
        fs::create_dir_all(&out).unwrap();
        fs::write(out.join("store.md"), page).unwrap();
    }
}

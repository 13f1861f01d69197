//! A daemon (xenstored, oxenstored, the embedded one in a process) that is killed and started again
//! at random moments, under 64 threads and under 1,000 tasks.
//!
//! Each worker writes one value after the other to its own node. It continues with the next value
//! only when its watch has reported the change and the node reads as written; a value that was lost
//! with its daemon is written again. An observer watches the tree of all nodes. So a request or
//! watch that hangs, a wrong byte and a change that no watch reports fail the test:
//!
//! * no answer and no event may take [`STUCK`];
//! * a node is missing or reads as a value that its worker wrote, byte for byte, and never as an
//!   older one than was read before from the same daemon;
//! * the observer sees the last value of each worker.
//!
//! Memory and descriptors are printed, and may not grow.
//!
//! `STORE_RESTARTS` is the number of kills of each storm, and `STORE_DAEMON` the beginning of the
//! daemon's name; `cargo xtask soak store` sets both.

// The lint exempts test functions, but not the helpers beside them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "daemons/daemon.rs"]
#[allow(dead_code, reason = "the other tests use more of it")]
mod daemon;
#[path = "daemons/ring.rs"]
#[allow(dead_code, reason = "the other tests use more of it")]
mod ring;

use std::fs;
use std::future::Future;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use tokio::time::timeout;
use xen_store::tokio::{Store as AsyncStore, Watch};
use xen_store::{Error, Reconnect, Repeat, Result, Store, WatchEvent};
use xen_store_server::{Config, Server};

use crate::daemon::{Kind, start_process};

/// Restarts if `STORE_RESTARTS` is not set.
const RESTARTS: u64 = 10;
const THREADS: usize = 64;
const TASKS: usize = 1000;
/// Nothing takes that long unless it hangs.
const STUCK: Duration = Duration::from_secs(60);
/// A daemon is killed after less than this, and started again after less than a third of it.
const LIFE: Duration = Duration::from_millis(30);
/// One daemon in so many lives until some of the workers have made progress, on a slow machine too.
const LONG_LIFE: u64 = 8;
/// It lives no longer than this.
const LONGEST_LIFE: Duration = Duration::from_secs(5);
/// Memory that may be added between the first quarter of a storm and its end, in KiB.
const MAX_GROWTH: u64 = 16 << 10;

fn main() {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(DAEMON) {
        return be_the_daemon(Path::new(&arguments.next().expect("a socket")));
    }
    let restarts = std::env::var("STORE_RESTARTS").map_or(RESTARTS, |n| n.parse().unwrap());
    let only = std::env::var("STORE_DAEMON").unwrap_or_default();
    let mut passed = 0;
    for (name, kind) in DAEMONS {
        if name.starts_with(&only) {
            let threads = format!("{name}_under_{THREADS}_threads");
            storm(kind, &threads, THREADS, restarts, with_threads);
            let tasks = format!("{name}_under_{TASKS}_tasks");
            storm(kind, &tasks, TASKS, restarts, with_tasks);
            passed += 2;
        }
    }
    assert!(passed > 0, "no daemon's name begins with {only}");
    println!("test result: ok. {passed} passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
}

const DAEMONS: [(&str, Kind); 3] = [
    ("xenstored", Kind::C),
    ("oxenstored", Kind::OCaml),
    ("embedded", Kind::Embedded),
];

/// The first argument of the process that is the daemon.
const DAEMON: &str = "--be-the-daemon";

/// Serves a socket until it is killed, or its parent is gone.
fn be_the_daemon(socket: &Path) {
    let server = Server::start(Config::new()).unwrap();
    server.listen(socket).unwrap();
    // The parent holds the other end and writes nothing.
    let _ = std::io::stdin().read(&mut [0]);
}

/// The daemon's process; killed when dropped, so that a storm that fails leaves none.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Ends the program when a storm's killer panics: its workers would continue without a daemon until
/// each has waited for [`STUCK`].
struct EndsOnPanic<'a>(&'a Storm);

impl Drop for EndsOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = fs::remove_dir_all(&self.0.folder);
            std::process::exit(101);
        }
    }
}

/// A storm, as its workers see it.
struct Storm {
    kind: Kind,
    /// The daemon's own, with its socket.
    folder: PathBuf,
    /// All connections are made.
    is_connected: Barrier,
    /// No daemon is killed any more.
    is_over: AtomicBool,
    /// The newest value of each worker, and the newest that the observer has seen.
    written: Vec<AtomicU64>,
    seen: Vec<AtomicU64>,
    values: AtomicU64,
    again: AtomicU64,
    lost: AtomicU64,
    reconnected: AtomicU64,
}

fn storm(kind: Kind, name: &str, workers: usize, restarts: u64, work: fn(&Arc<Storm>)) {
    let dir = tempfile::tempdir().unwrap();
    let counters = || (0..workers).map(|_| AtomicU64::new(0)).collect();
    let storm = Arc::new(Storm {
        kind,
        folder: dir.path().to_owned(),
        is_connected: Barrier::new(2),
        is_over: AtomicBool::new(false),
        written: counters(),
        seen: counters(),
        values: AtomicU64::new(0),
        again: AtomicU64::new(0),
        lost: AtomicU64::new(0),
        reconnected: AtomicU64::new(0),
    });
    let begun = Instant::now();
    let first = storm.start_daemon();
    wait_ready(&storm.socket());
    // A daemon ends with the thread that started it, and the last one must run until the workers
    // are done: the observer may see a worker's last value before the worker does.
    let (_daemon, early, late) = thread::scope(|scope| {
        let _ends = EndsOnPanic(&storm);
        let workers = scope.spawn(|| work(&storm));
        let outcome = kill(&storm, first, restarts);
        workers.join().unwrap();
        outcome
    });
    let storm = &*storm;
    println!(
        "test {name}: {restarts} restarts in {:.1} s: {} values, {} of them written again, \
         {} requests lost, {} watches set again ... ok",
        begun.elapsed().as_secs_f64(),
        storm.values.load(Relaxed),
        storm.again.load(Relaxed),
        storm.lost.load(Relaxed),
        storm.reconnected.load(Relaxed),
    );
    println!(
        "     memory {} KiB after a quarter, {} KiB at the end; descriptors {} and {}",
        early.memory, late.memory, early.descriptors, late.descriptors
    );
    assert!(late.memory <= early.memory + MAX_GROWTH, "memory grows");
    assert!(
        late.descriptors <= early.descriptors + 16,
        "descriptors leak"
    );
}

fn wait_ready(socket: &Path) {
    let end = Instant::now() + STUCK;
    while Store::connect(socket).is_err() {
        assert!(Instant::now() < end, "the daemon does not listen");
        // A bound socket is no event that it listens.
        thread::sleep(Duration::from_millis(1));
    }
}

/// Kills the daemon at random moments and starts it again. Returns the last daemon, and what the
/// process used after a quarter of that and at its end.
fn kill(storm: &Storm, mut daemon: Process, restarts: u64) -> (Process, Usage, Usage) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut early = None;
    storm.is_connected.wait();
    for n in 0..restarts {
        if n % LONG_LIFE == 0 {
            wait_for_progress(storm, random.fraction());
        }
        thread::sleep(random.below(LIFE));
        drop(daemon);
        thread::sleep(random.below(LIFE / 3));
        daemon = storm.start_daemon();
        if n == restarts / 4 {
            early = Some(Usage::now());
        }
        if restarts > 100 && n % (restarts / 10) == 0 {
            let values = storm.values.load(Relaxed);
            println!("     {n} restarts, {values} values, {:?}", Usage::now());
        }
    }
    wait_ready(&storm.socket());
    let late = Usage::now();
    storm.is_over.store(true, Relaxed);
    wait_seen(storm);
    (daemon, early.unwrap_or(late), late)
}

/// Waits until a fraction of the workers, at most one, has written a value each.
fn wait_for_progress(storm: &Storm, fraction: f64) {
    let end = Instant::now() + LONGEST_LIFE;
    let more = (storm.written.len() as f64 * fraction) as u64;
    let enough = storm.values.load(Relaxed) + more;
    while storm.values.load(Relaxed) < enough && Instant::now() < end {
        thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until the observer has seen the last value of each worker.
fn wait_seen(storm: &Storm) {
    let end = Instant::now() + 2 * STUCK;
    let is_seen = |at: usize| storm.seen[at].load(Relaxed) == LAST;
    while let Some(missed) = (0..storm.seen.len()).find(|at| !is_seen(*at)) {
        let (written, seen) = (&storm.written[missed], &storm.seen[missed]);
        assert!(
            Instant::now() < end,
            "worker {missed} wrote value {written:?}; its observer saw {seen:?}"
        );
        thread::sleep(Duration::from_millis(1));
    }
}

/// The number of each worker's last value.
const LAST: u64 = u64::MAX;

/// Numbers at random (xorshift).
struct Random(u64);

impl Random {
    /// At least 0 and below 1.
    fn fraction(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as f64 / 2_f64.powi(32)
    }

    fn below(&mut self, most: Duration) -> Duration {
        most.mul_f64(self.fraction())
    }
}

/// The memory and descriptors of this process.
#[derive(Clone, Copy, Debug)]
struct Usage {
    /// Resident memory in KiB.
    memory: u64,
    descriptors: usize,
}

impl Usage {
    fn now() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let memory = line.and_then(|line| line.trim().strip_suffix(" kB"));
        Self {
            memory: memory.unwrap().parse().unwrap(),
            descriptors: fs::read_dir("/proc/self/fd").unwrap().count(),
        }
    }
}

fn policy(repeat: Repeat) -> Reconnect {
    Reconnect::new()
        .first_pause(Duration::from_millis(1))
        .longest_pause(Duration::from_millis(20))
        .repeat(repeat)
}

/// The policies of the connections, which the workers share.
const POLICIES: [Repeat; 4] = [
    Repeat::Never,
    Repeat::Reads,
    Repeat::Idempotent,
    Repeat::Reads,
];

fn node(worker: usize) -> String {
    format!("/storm/{worker}")
}

/// A value: its worker, its number, and bytes that follow from both.
fn value(worker: usize, number: u64) -> String {
    let seed = number.wrapping_mul(31).wrapping_add(worker as u64);
    let length = usize::try_from(seed % 700).unwrap();
    let filling = seed.to_string().repeat(length + 1);
    format!("{worker}:{number}:{}", &filling[..length])
}

impl Storm {
    fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }

    fn start_daemon(&self) -> Process {
        if self.kind != Kind::Embedded {
            return Process(start_process(self.kind, &self.folder));
        }
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg(DAEMON).arg(self.socket());
        Process(command.stdin(Stdio::piped()).spawn().unwrap())
    }

    /// The number of a value that was read from the node of this worker.
    fn check(&self, worker: usize, read: &[u8]) -> u64 {
        let text = std::str::from_utf8(read).expect("a wrong byte");
        let number = text.split(':').nth(1).and_then(|field| field.parse().ok());
        let number = number.unwrap_or_else(|| panic!("{text:?} in {}", node(worker)));
        assert_eq!(text, value(worker, number), "a wrong byte");
        number
    }

    fn count(&self, event: &WatchEvent) {
        self.reconnected
            .fetch_add(event.reconnected.into(), Relaxed);
    }

    /// Returns whether a request is to be made again.
    fn is_lost<T>(&self, answer: &Result<T>) -> bool {
        let is_lost = matches!(answer, Err(Error::Lost { .. }));
        self.lost.fetch_add(is_lost.into(), Relaxed);
        is_lost
    }

    /// The number of the value after this one.
    fn next(&self, number: u64) -> u64 {
        if self.is_over.load(Relaxed) {
            LAST
        } else {
            number + 1
        }
    }

    /// Checks what a worker read of its node after it wrote this value. Returns `false` if the
    /// value was lost with its daemon and must be written again.
    fn is_there(&self, worker: usize, number: u64, read: Option<Vec<u8>>) -> bool {
        match read {
            Some(read) => assert_eq!(self.check(worker, &read), number, "an older value"),
            None => {
                self.again.fetch_add(1, Relaxed);
                return false;
            }
        }
        true
    }

    /// The observer read these nodes.
    fn observe(&self, worker: usize, read: &[u8]) -> bool {
        let number = self.check(worker, read);
        assert!(
            number <= self.written[worker].load(Relaxed),
            "a value that was not written"
        );
        self.seen[worker].store(number, Relaxed);
        number == LAST
    }
}

/// The worker that a path is about; `None` is all of them.
fn worker_of(event: &WatchEvent) -> Option<usize> {
    event.path.strip_prefix("/storm/")?.parse().ok()
}

/// Makes a request until it is not lost.
fn insist<T>(storm: &Storm, mut request: impl FnMut() -> Result<T>) -> T {
    loop {
        let answer = request();
        if !storm.is_lost(&answer) {
            return answer.unwrap();
        }
    }
}

fn with_threads(storm: &Arc<Storm>) {
    let connect = |repeat| {
        let store = Store::connect(storm.socket()).unwrap();
        let store = store.reconnecting(policy(repeat)).unwrap();
        store.with_timeout(Some(STUCK))
    };
    thread::scope(|scope| {
        let stores = POLICIES.map(connect);
        let observer = connect(Repeat::Reads);
        storm.is_connected.wait();
        scope.spawn(move || observe(storm, &observer));
        for worker in 0..storm.written.len() {
            let store = stores[worker % stores.len()].clone();
            scope.spawn(move || write(storm, &store, worker));
        }
    });
}

fn write(storm: &Storm, store: &Store, worker: usize) {
    let node = node(worker);
    let watch = insist(storm, || store.watch(&node));
    let mut number = 0;
    while number != LAST {
        number = storm.next(number);
        storm.written[worker].store(number, Relaxed);
        let value = value(worker, number);
        // The events of what was read before have come: the next one is about this value.
        while let Some(event) = watch.try_next().unwrap() {
            storm.count(&event);
        }
        insist(storm, || store.write(&node, &value));
        loop {
            let event = watch.next(Some(Instant::now() + STUCK)).unwrap();
            storm.count(&event.expect("a change that was not reported"));
            let read = insist(storm, || store.read_optional(&node));
            if storm.is_there(worker, number, read) {
                break;
            }
            insist(storm, || store.write(&node, &value));
        }
        storm.values.fetch_add(1, Relaxed);
    }
}

fn observe(storm: &Storm, store: &Store) {
    let watch = insist(storm, || store.watch("/storm"));
    let all: Vec<String> = (0..storm.written.len()).map(node).collect();
    let mut last = 0;
    while last < all.len() {
        let event = watch.next(Some(Instant::now() + STUCK)).unwrap();
        let event = event.expect("a change that was not reported");
        storm.count(&event);
        let workers = match worker_of(&event) {
            Some(worker) => worker..worker + 1,
            None => 0..all.len(),
        };
        let reads = store.read_many(&all[workers.clone()]);
        for (worker, read) in workers.zip(reads) {
            let before = storm.seen[worker].load(Relaxed);
            // The event about the next connection, or the one about the node, comes later.
            let Ok(read) = read else { continue };
            if storm.observe(worker, &read) && before != LAST {
                last += 1;
            }
        }
    }
}

fn with_tasks(storm: &Arc<Storm>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut stores = Vec::new();
        for repeat in POLICIES.into_iter().chain([Repeat::Reads]) {
            let store = AsyncStore::connect(storm.socket()).await.unwrap();
            stores.push(store.reconnecting(policy(repeat)).unwrap());
        }
        let observer = stores.pop().unwrap();
        storm.is_connected.wait();
        let own = Arc::clone(storm);
        let mut tasks = vec![tokio::spawn(
            async move { observe_async(&own, &observer).await },
        )];
        for worker in 0..storm.written.len() {
            let (own, store) = (Arc::clone(storm), stores[worker % stores.len()].clone());
            tasks.push(tokio::spawn(async move {
                write_async(&own, &store, worker).await;
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
    });
}

/// As [`insist`].
async fn insist_async<T, F: Future<Output = Result<T>>>(
    storm: &Storm,
    mut request: impl FnMut() -> F,
) -> T {
    loop {
        let answer = timeout(STUCK, request())
            .await
            .expect("a request that hangs");
        if !storm.is_lost(&answer) {
            return answer.unwrap();
        }
    }
}

async fn next_async(storm: &Storm, watch: &Watch) -> WatchEvent {
    let event = timeout(STUCK, watch.next()).await;
    let event = event.expect("a change that was not reported").unwrap();
    storm.count(&event);
    event
}

async fn write_async(storm: &Storm, store: &AsyncStore, worker: usize) {
    let node = node(worker);
    let watch = insist_async(storm, || store.watch(&node)).await;
    let mut number = 0;
    while number != LAST {
        number = storm.next(number);
        storm.written[worker].store(number, Relaxed);
        let value = value(worker, number);
        // As `write`.
        while let Some(event) = watch.try_next().unwrap() {
            storm.count(&event);
        }
        insist_async(storm, || store.write(&node, &value)).await;
        loop {
            next_async(storm, &watch).await;
            let read = insist_async(storm, || store.read_optional(&node)).await;
            if storm.is_there(worker, number, read) {
                break;
            }
            insist_async(storm, || store.write(&node, &value)).await;
        }
        storm.values.fetch_add(1, Relaxed);
    }
}

async fn observe_async(storm: &Storm, store: &AsyncStore) {
    let watch = insist_async(storm, || store.watch("/storm")).await;
    let all: Vec<String> = (0..storm.written.len()).map(node).collect();
    let mut last = 0;
    while last < all.len() {
        let event = next_async(storm, &watch).await;
        let workers = match worker_of(&event) {
            Some(worker) => worker..worker + 1,
            None => 0..all.len(),
        };
        let reads = timeout(STUCK, store.read_many(&all[workers.clone()])).await;
        for (worker, read) in workers.zip(reads.expect("a request that hangs")) {
            let before = storm.seen[worker].load(Relaxed);
            // As `observe`.
            let Ok(read) = read else { continue };
            if storm.observe(worker, &read) && before != LAST {
                last += 1;
            }
        }
    }
}

//! libxl against the corpus of hostile stubdomains.
//!
//! One guest for all of it. Its stubdomain has the test agent as its init, which obeys dom0. It
//! calls itself running, and then is one hostile QMP server after another, each for one `xl
//! vcpu-set`. That command sends QEMU two queries and one change, with libxl's time-out of ten
//! seconds for each. The guest stays paused, for its devices are not emulated.

use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use xen_fidelity::hostile::Behaviour;
use xen_store::{Permissions, Store};
use xen_sys::DomId;

use crate::guest::{CONFIG, NAME, STUB, destroy_leftover, diagnosis, domid};
use crate::host::{TestHost, command, soon, start_local};
use crate::job::{Exit, Job};
use crate::rpc::Agent;
use crate::suite::{Needs, Test};

/// The proxy that libxl starts.
const PROXY: &str = "/usr/bin/vchan-socket-proxy";
/// How many bytes much is: twice what libxl buffers.
const FLOOD: usize = 2 << 20;
/// The most resident memory xl or a process of the proxy may have had, in KiB.
const MOST: u64 = 48 << 10;
/// The most bytes of log on dom0's disk that the whole corpus may cost.
const LOG_MOST: u64 = 1 << 20;
/// A file that is not libxl's.
const ACCOMPLICES: &str = "/run/accomplice";
/// More than libxl's time-outs for all that one command asks.
const PATIENCE: Duration = Duration::from_secs(100);

pub(super) fn add(tests: &mut Vec<Test>) {
    tests.push(Test::new("hostile/through_us", Needs::Package, |host| {
        host.no_domu()?;
        let rows = corpus(&host.store, None, None)?;
        print!("{}", written(&rows));
        judge(&rows)
    }));
}

/// Prints the table of one proxy, from the stubdomain of this name on.
pub(crate) fn table(proxy: Option<&str>, from: Option<&str>) -> Result<()> {
    let host = TestHost::new()?;
    print!("{}", written(&corpus(&host.store, proxy, from)?));
    Ok(())
}

/// The outcome of one behaviour.
#[derive(Debug)]
struct Row {
    name: &'static str,
    /// xl's status; `None` when it had to be killed.
    status: Option<i32>,
    /// The last line of xl.
    word: String,
    seconds: f64,
    xl: u64,
    /// Of each process of the proxy; empty if it was dead.
    proxy: Vec<u64>,
    /// Bytes of the proxy's log, from the first row on.
    log: u64,
    /// Whether the proxy was the same before and after.
    lived: bool,
}

fn judge(rows: &[Row]) -> Result<()> {
    for row in rows {
        let Row { name, word, .. } = row;
        let Some(status) = row.status else {
            bail!("{name}: xl hung: {word}");
        };
        ensure!(row.lived, "{name}: the proxy died");
        let most = row.proxy.iter().chain([&row.xl]).max();
        ensure!(most.is_some_and(|most| *most < MOST), "{name}: {row:?}");
        ensure!(status == 0 || !word.is_empty(), "{name}: no word from xl");
        ensure!(row.log < LOG_MOST, "{name}: {} bytes of log", row.log);
        if *name == Behaviour::Honest.name() {
            ensure!(status == 0, "after {name}: {word}");
        }
    }
    // Besides the behaviours: the honest one again, the worker and the accomplice.
    ensure!(rows.len() == Behaviour::ALL.len() + 3);
    Ok(())
}

fn written(rows: &[Row]) -> String {
    let mut text = "| stubdomain | xl | after | xl's memory | the proxy's | its log | its last word |\n|---|---|---|---|---|---|---|\n".to_owned();
    for row in rows {
        let status = match row.status {
            Some(0) => "succeeded".to_owned(),
            Some(status) => format!("failed ({status})"),
            None => "hung, killed".to_owned(),
        };
        let memory: Vec<String> = row.proxy.iter().map(|kib| format!("{kib} KiB")).collect();
        let died = if row.lived { "" } else { "**died** " };
        let _ = writeln!(
            text,
            "| {} | {status} | {:.1} s | {} KiB | {died}{} | {} B | {} |",
            row.name,
            row.seconds,
            row.xl,
            memory.join(" + "),
            row.log,
            row.word.replace('|', "/"),
        );
    }
    text
}

fn corpus(store: &Store, proxy: Option<&str>, from: Option<&str>) -> Result<Vec<Row>> {
    let own = fs::read_link(PROXY)?;
    let place = |target: &std::path::Path| -> Result<()> {
        fs::remove_file(PROXY)?;
        Ok(std::os::unix::fs::symlink(target, PROXY)?)
    };
    if let Some(other) = proxy {
        place(other.as_ref())?;
    }
    let rows = on_guest(store, from);
    destroy_leftover();
    place(&own)?;
    rows
}

fn on_guest(store: &Store, from: Option<&str>) -> Result<Vec<Row>> {
    let mut create = start_local(&[
        "xl",
        "create",
        "-p",
        CONFIG,
        "stubdomain_ramdisk=\"/boot/domu.img\"",
        "maxvcpus=2",
    ])?;
    let (stub, agent) = match stubdomain(store, &mut create) {
        Ok(found) => found,
        Err(error) => return Err(error.context(format!("{}{}", create.transcript(), diagnosis()))),
    };
    let home = store.directory(&format!("/local/domain/{stub}/device-model"))?;
    let guest = home.first().context("no device model")?.clone();
    let state = format!("device-model/{guest}/state");
    agent
        .start(&words(&["self", "role", "store-write", &state, "running"]))?
        .succeed(soon())?;
    create
        .succeed(soon())
        .with_context(|| format!("xl create{}", diagnosis()))?;

    let ours = fs::read_link(PROXY)?.ends_with("stubdm-run");
    let mut proxy = Watched::find(store, stub)?;
    let path = format!("device-model/{guest}/qmp-vchan");
    let mut rows = Vec::new();
    // The honest one once more at the end.
    let all = Behaviour::ALL.iter().chain(Behaviour::ALL.first());
    for &(name, _) in all.skip_while(|(name, _)| from.is_some_and(|from| from != *name)) {
        let row = behaves(&agent, &path, name, name, &proxy, |pids| {
            Watched::find(store, stub).is_ok_and(|found| found.pids == pids)
        })?;
        if !row.lived {
            proxy.replace(store, stub, &guest)?;
        }
        rows.push(row);
    }
    let honest = Behaviour::ALL.first().map_or("", |(name, _)| *name);
    if let &[first, worker] = proxy.pids.as_slice() {
        take_over(worker).context("taking the worker over")?;
        proxy = Watched::restarted(store, stub, worker)?;
        let row = behaves(&agent, &path, honest, "worker taken over", &proxy, |_| {
            proxy.pids.first() == Some(&first)
        })?;
        rows.push(row);
    }
    // Console 0's folder is not the stubdomain's; that of the console for saves is.
    let folder = "device/console/1";
    let role = ["self", "role", "store-surrender", folder, &guest];
    agent.start(&words(&role))?.succeed(soon())?;
    // A hostile guest's kernel would do the same. It may remove libxl's node where oxenstored
    // serves, which asks for a right to the folder; xenstored asks for one to the node.
    let node = format!("/local/domain/{stub}/{folder}/output");
    store.rm(&node)?;
    store.write(&node, format!("file:{ACCOMPLICES}"))?;
    let theirs = Permissions::owner_none(guest.parse()?).grant_read(stub);
    store.set_permissions(&node, &theirs)?;
    fs::write(ACCOMPLICES, "kept")?;
    proxy.replace(store, stub, &guest)?;
    let row = behaves(&agent, &path, honest, "accomplice", &proxy, |_| true)?;
    rows.push(row);
    if ours {
        is_not_believed(&mut proxy)?;
    }
    fs::remove_file(ACCOMPLICES)?;
    command(&["xl", "destroy", NAME])?;
    Ok(rows)
}

/// The proxy has not taken the accomplice's file for libxl's.
fn is_not_believed(proxy: &mut Watched) -> Result<()> {
    let log = proxy.own.as_mut().map(Job::transcript).unwrap_or_default();
    ensure!(log.contains("is not believed"), "the proxy's log{log}");
    ensure!(fs::read(ACCOMPLICES)? == b"kept", "the accomplice's file");
    Ok(())
}

/// One QMP server's behaviour for one command of xl's. `lived` decides about the proxy's processes before it.
fn behaves(
    agent: &Agent,
    path: &str,
    behaviour: &str,
    name: &'static str,
    proxy: &Watched,
    lived: impl FnOnce(&[i32]) -> bool,
) -> Result<Row> {
    let flood = FLOOD.to_string();
    let role = ["self", "role", "hostile", "0", path, behaviour, &flood];
    let mut server = agent.start(&words(&role))?;
    server.expect("behaves", soon())?;
    let mut row = ask(name)?;
    server.kill(Signal::SIGKILL)?;
    server.exit(soon())?;
    row.lived = lived(&proxy.pids);
    row.proxy = proxy.resident();
    row.log = proxy.log();
    println!("    {row:?}");
    Ok(row)
}

/// Has a process close its sockets and sleep forever, as code of an attacker's in it could.
#[cfg(target_arch = "x86_64")]
fn take_over(pid: i32) -> Result<()> {
    use nix::libc;
    use nix::sys::ptrace;
    use nix::sys::wait::waitpid;

    let mut sockets = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        if fs::read_link(entry.path())?
            .to_string_lossy()
            .starts_with("socket:")
        {
            let name = entry.file_name();
            sockets.push(name.to_string_lossy().parse::<u64>()?);
        }
    }
    ensure!(!sockets.is_empty(), "process {pid} has no socket");
    let pid = Pid::from_raw(pid);
    ptrace::attach(pid)?;
    waitpid(pid, None)?;
    let asleep = ptrace::getregs(pid)?;
    // It sleeps in a system call. The instruction (two bytes) is executed again with other arguments.
    let again = |number: u64, arguments: [u64; 3]| {
        let mut registers = asleep;
        registers.rip -= 2;
        (registers.rax, registers.orig_rax) = (number, u64::MAX);
        [registers.rdi, registers.rsi, registers.rdx] = arguments;
        registers
    };
    for socket in sockets {
        ptrace::setregs(pid, again(libc::SYS_close.unsigned_abs(), [socket, 0, 0]))?;
        ptrace::step(pid, None)?;
        waitpid(pid, None)?;
        let closed = ptrace::getregs(pid)?.rax;
        ensure!(closed == 0, "close({socket}) returned {closed:#x}");
    }
    // poll(2) takes -1 for no limit, ppoll(2) a null pointer.
    let poll = libc::SYS_poll.unsigned_abs();
    let limit = if asleep.orig_rax == poll { u64::MAX } else { 0 };
    ptrace::setregs(pid, again(asleep.orig_rax, [0, 0, limit]))?;
    Ok(ptrace::detach(pid, None)?)
}

/// Fails: there are no stubdomains on other architectures.
#[cfg(not(target_arch = "x86_64"))]
fn take_over(pid: i32) -> Result<()> {
    bail!("process {pid} belongs to no stubdomain")
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// The stubdomain, once its init takes orders.
fn stubdomain(store: &Store, create: &mut Job) -> Result<(DomId, Agent)> {
    let watch = store.watch("/local/domain")?;
    let deadline = soon();
    loop {
        if let Ok(stub) = domid(STUB) {
            return Ok((stub, Agent::connect(store, stub, deadline)?));
        }
        if let Ok(exit) = create.exit(Instant::now()) {
            bail!("xl create ended with {exit}");
        }
        ensure!(Instant::now() < deadline, "no stubdomain");
        watch.next(Some(Instant::now() + Duration::from_millis(300)))?;
    }
}

fn ask(name: &'static str) -> Result<Row> {
    let began = Instant::now();
    let argv = ["self", "role", "measured", "xl", "vcpu-set", NAME, "2"];
    let mut xl = start_local(&argv)?;
    let status = match xl.exit(began + PATIENCE) {
        Ok(Exit::Status(status)) => Some(status),
        _ => {
            xl.kill(Signal::SIGKILL)?;
            None
        }
    };
    let seconds = began.elapsed().as_secs_f64();
    let lines = xl.lines()?;
    let measured = lines.iter().find_map(|line| {
        let rest = line.strip_prefix("measured: ")?;
        rest.split(' ').next()?.parse().ok()
    });
    let said = |line: &&String| !line.starts_with("measured: ") && !line.starts_with("FAILED: ");
    let word = lines.iter().rfind(said);
    let word: String = word.map_or("", String::as_str).chars().take(160).collect();
    Ok(Row {
        name,
        status,
        word: word.escape_debug().to_string(),
        seconds,
        xl: measured.unwrap_or(0),
        proxy: Vec::new(),
        log: 0,
        lived: false,
    })
}

/// The processes of the proxy, libxl's first.
struct Watched {
    pids: Vec<i32>,
    /// One of our own in the place of one that died.
    own: Option<Job>,
}

/// Where libxl keeps the proxy's number.
fn pid_node(stub: DomId) -> String {
    format!("/local/domain/{stub}/image/qmp-proxy-pid")
}

fn field(pid: i32, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.split_whitespace().next()?.to_owned())
}

impl Watched {
    fn find(store: &Store, stub: DomId) -> Result<Self> {
        let node = pid_node(stub);
        let pid: i32 = store.read_str(&node).context(node)?.parse()?;
        let state = field(pid, "State:").context("the proxy is gone")?;
        ensure!(state != "Z", "the proxy is dead");
        let mut pids = vec![pid];
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(child) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            if field(child, "PPid:") == Some(pid.to_string()) {
                pids.push(child);
            }
        }
        Ok(Self { pids, own: None })
    }

    /// The processes once there is another worker than `former`.
    fn restarted(store: &Store, stub: DomId, former: i32) -> Result<Self> {
        let deadline = soon();
        loop {
            let found = Self::find(store, stub)?;
            if found.pids.len() == 2 && !found.pids.contains(&former) {
                return Ok(found);
            }
            ensure!(
                Instant::now() < deadline,
                "no other worker: {:?}",
                found.pids
            );
            // The end of another's child is no event here.
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn resident(&self) -> Vec<u64> {
        let all = self.pids.iter();
        all.filter_map(|pid| field(*pid, "VmHWM:")?.parse().ok())
            .collect()
    }

    /// Bytes of the file that libxl gave it for its log.
    fn log(&self) -> u64 {
        let file = self.pids.first().map(|pid| format!("/proc/{pid}/fd/2"));
        let meta = file.and_then(|file| fs::metadata(file).ok());
        meta.filter(fs::Metadata::is_file)
            .map_or(0, |meta| meta.len())
    }

    /// Starts another as libxl did: libxl itself never does.
    fn replace(&mut self, store: &Store, stub: DomId, guest: &str) -> Result<()> {
        let socket = format!("/var/run/xen/qmp-libxl-{guest}");
        let _ = fs::remove_file(&socket);
        let node = format!("/local/domain/{stub}/device-model/{guest}/qmp-vchan");
        let state = format!("/local/domain/{stub}/image/qmp-proxy-state");
        store.rm(&state)?;
        let script = format!(
            "xenstore-write {} $$; exec {PROXY} --state-path={state} {stub} {node} {socket}",
            pid_node(stub)
        );
        if let Some(&pid) = self.pids.first() {
            // It may be dead already.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        self.own = Some(start_local(&["sh", "-c", &script])?);
        let running = |value: Option<&[u8]>| value.filter(|value| *value == b"running").map(drop);
        store
            .wait_for(&state, Some(soon()), running)?
            .context("no other proxy")?;
        self.pids = Self::find(store, stub)?.pids.clone();
        Ok(())
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(own) = &mut self.own {
            let _ = own.kill(Signal::SIGKILL);
        }
    }
}

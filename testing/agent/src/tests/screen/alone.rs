//! Screens that `consoled` serves alone, without QEMU in dom0: two guests side by side, processes
//! that are killed, an idle screen, and what is left at the end.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use xen_store::Store;

use super::{
    LOG, PROCESS, STDVGA, arrives, draws, painting_is_seen, port, shows_bios, viewer, with_two,
    without_qemu,
};
use crate::guest::{Guest, NAME, diagnosis};
use crate::host::{TestHost, command, soon, start_local};
use crate::leftovers::{domains, processes};
use crate::suite::{Needs, Test};
use crate::tests::{consoled, killed};
use crate::vnc::Viewer;

pub(super) fn add(tests: &mut Vec<Test>) {
    tests.push(
        Test::new("screen/two_without_qemu", Needs::Package, |host| {
            without_qemu(|| two_guests(host))
        })
        .on_request(),
    );
    tests.push(
        Test::new("screen/idle_without_qemu", Needs::Package, |host| {
            without_qemu(|| idle(host))
        })
        .on_request(),
    );
}

/// The lines of a guest's configuration.
pub(super) const LINES: [&str; 3] = ["vnc=1", STDVGA, "on_reboot=\"restart\""];

/// Tries until it succeeds: for what no event announces.
pub(super) fn succeeds_soon<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = soon();
    loop {
        match attempt() {
            Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(50)),
            done => return done,
        }
    }
}

/// The process that serves a guest's screen.
pub(super) fn process_of(guest: &Guest) -> Result<i32> {
    let end = format!(" {}", guest.stub);
    let mut all = processes()?.into_iter();
    let found = all.find(|(_, line)| line.starts_with(PROCESS) && line.ends_with(&end));
    Ok(found.context("no process serves the screen")?.0)
}

/// `consoled` of a guest.
fn consoled_of(store: &Store, guest: &Guest) -> Result<i32> {
    let node = format!("/local/domain/{}/image/device-model-pid", guest.stub);
    Ok(store.read_str(&node)?.trim().parse()?)
}

/// A guest, a viewer of it, and the number of the picture that both have.
pub(super) struct ViewedGuest {
    pub(super) guest: Guest,
    pub(super) viewer: Viewer,
    pub(super) number: usize,
}

impl ViewedGuest {
    /// The guest draws its pictures up to one made of pixels, and the viewer sees that one.
    pub(super) fn new(store: &Store, mut guest: Guest, number: usize) -> Result<Self> {
        guest.output_after("xen-guest: alive second=")?;
        draws(store, &mut guest, "*")?;
        for _ in 0..=number {
            draws(store, &mut guest, "+")?;
        }
        let viewer = viewer(&guest)?;
        let mut viewed = Self {
            guest,
            viewer,
            number,
        };
        viewed.works()?;
        Ok(viewed)
    }

    /// The viewer sees the guest's picture, pixel for pixel, and a key of its own arrives.
    pub(super) fn works(&mut self) -> Result<()> {
        painting_is_seen(&mut self.viewer, self.number)?;
        // Each guest's is another key.
        let key = 0x10 + u8::try_from(self.guest.stub.as_u16() % 8)?;
        arrives(&mut self.viewer, key, &mut self.guest, &[key, key | 0x80])
    }

    /// Does something to the other guest. This one's viewer keeps its connection, nothing is sent
    /// to it meanwhile, and all works.
    fn unaffected<T>(&mut self, during: impl FnOnce() -> Result<T>) -> Result<T> {
        let second = Duration::from_secs(1);
        self.viewer.watch(second)?;
        let updates = self.viewer.updates;
        let result = during()?;
        self.viewer.watch(second).context("the other's viewer")?;
        let now = self.viewer.updates;
        ensure!(now == updates, "{} updates for the other", now - updates);
        self.works().context("of the other guest")?;
        Ok(result)
    }

    /// The viewer was disconnected, connects again at the same port, and everything works.
    fn connects_anew(&mut self, port: u16) -> Result<()> {
        self.viewer.closed()?;
        let now = succeeds_soon(|| super::port(&self.guest))?;
        ensure!(now == port, "the port is {now}, and was {port}");
        self.viewer = viewer(&self.guest)?;
        self.works().context("after the viewer connected anew")
    }

    /// The screen's process is killed, and another one is in its place.
    fn process_is_killed(&mut self) -> Result<()> {
        let (pid, port) = (process_of(&self.guest)?, port(&self.guest)?);
        let began = Instant::now();
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        self.connects_anew(port)?;
        let now = process_of(&self.guest)?;
        ensure!(now != pid, "process {pid} was killed");
        println!("    picture and key {:?} after SIGKILL", began.elapsed());
        let log = fs::read_to_string(LOG)?;
        let lines = log.lines().filter(|line| line.contains("ended (signal: 9"));
        ensure!(lines.count() == 1, "not one line of it: {log}");
        Ok(())
    }

    /// `consoled` is killed, and another one continues with the guest's screen.
    fn consoled_is_killed(self, host: &TestHost) -> Result<Self> {
        let port = port(&self.guest)?;
        let began = Instant::now();
        killed::kill_and_wait(host, &self.guest, "device-model-pid")?;
        succeeds_soon(|| super::port(&self.guest))?;
        // Its terminal is another, and `xl console` takes a lock.
        drop(self.guest);
        let mut viewed = Self {
            guest: Guest::running()?,
            viewer: self.viewer,
            number: self.number,
        };
        viewed.connects_anew(port)?;
        println!("    and {:?} after that of consoled", began.elapsed());
        Ok(viewed)
    }

    /// The guest restarts, and a viewer of the new one sees its BIOS and its pictures.
    fn restarts(self, store: &Store) -> Result<Self> {
        let Self {
            guest, mut viewer, ..
        } = self;
        let guest = guest.restarts(store, "$")?;
        viewer.closed()?;
        shows_bios(&guest)?;
        Self::new(store, guest, 0)
    }

    /// The guest is destroyed: no process, socket, node or mapping is left of it.
    fn leaves_nothing(self, store: &Store) -> Result<()> {
        let Self { guest, viewer, .. } = self;
        let (stub, port) = (guest.stub, port(&guest)?);
        let pids = [process_of(&guest)?, consoled_of(store, &guest)?];
        guest.destroy()?;
        succeeds_soon(|| {
            for pid in pids {
                let gone = !Path::new(&format!("/proc/{pid}")).exists();
                ensure!(gone, "process {pid} is left");
            }
            let refused = TcpStream::connect(("127.0.0.1", port)).is_err();
            ensure!(refused, "a listener is left at port {port}");
            for kind in ["vfb", "vkbd"] {
                let node = format!("/local/domain/0/backend/{kind}/{stub}");
                ensure!(!store.exists(&node)?, "{node} is left");
            }
            // A domain of which a page is mapped does not go away.
            ensure!(!domains()?.contains(&stub), "domain {stub} is left");
            Ok(())
        })?;
        // Its connection was kept until now.
        drop(viewer);
        Ok(())
    }
}

/// Traces of guests beside domains, nodes and processes: files that last as long as the host runs,
/// and listening sockets.
fn traces() -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let mut folders = vec![Path::new("/run/stubdm").into(), "/var/run/xen".into()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.display().to_string());
            }
        }
    }
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = fs::read_to_string(table).unwrap_or_default();
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if let [_, address, _, "0A", ..] = words[..] {
                found.insert(format!("{table}: {address}"));
            }
        }
    }
    Ok(found)
}

fn two_guests(host: &TestHost) -> Result<()> {
    let before = traces()?;
    let mut supervisor = start_local(&["stubdm-run", "supervise", "--standby"])?;
    let result = with_two(&host.store, [&LINES, &LINES], |guests| {
        side_by_side(host, guests)
    });
    supervisor.kill(Signal::SIGTERM)?;
    supervisor.exit(soon()).context("the supervisor's end")?;
    result?;
    succeeds_soon(|| {
        let now = traces()?;
        // The supervisor's own files stay, and libxl's list of numbers of late.
        let stays =
            |name: &&String| name.contains("/supervise.") || name.ends_with("/domid-history");
        let left: Vec<_> = now
            .difference(&before)
            .filter(|name| !stays(name))
            .collect();
        ensure!(left.is_empty(), "left: {left:?}");
        Ok(())
    })
}

/// Two guests with a viewer each: what happens to the first one does not affect the second.
fn side_by_side(host: &TestHost, [first, second]: [Guest; 2]) -> Result<()> {
    let store = &host.store;
    let mut first = ViewedGuest::new(store, first, 0)?;
    let mut second = ViewedGuest::new(store, second, 1)?;
    first.works()?;
    second.unaffected(|| first.process_is_killed().context("serve-screen is killed"))?;
    let first = second.unaffected(|| first.consoled_is_killed(host))?;
    let first = second.unaffected(|| first.restarts(store))?;
    second.unaffected(|| first.leaves_nothing(store))?;
    second.leaves_nothing(store)
}

/// Times that a process has waited for something.
fn waits(pid: i32) -> Result<u64> {
    consoled::field(&format!("/proc/{pid}/status"), "voluntary_ctxt_switches:")
}

/// A screen on which nothing changes, with a viewer, wakes no process in dom0.
fn idle(host: &TestHost) -> Result<()> {
    let store = &host.store;
    let guest = Guest::create_with(store, &LINES)?;
    let mut viewed = ViewedGuest::new(store, guest, 0).with_context(diagnosis)?;
    consoled::no_qemu_in_dom0()?;
    let pids = [
        process_of(&viewed.guest)?,
        consoled_of(store, &viewed.guest)?,
    ];
    let count = |viewed: &mut ViewedGuest| -> Result<[u64; 2]> {
        // The last of what was before: an idle process gives up its code after five seconds.
        viewed.viewer.watch(Duration::from_secs(7))?;
        let before = [waits(pids[0])?, waits(pids[1])?];
        viewed.viewer.watch(Duration::from_secs(20))?;
        Ok([waits(pids[0])? - before[0], waits(pids[1])? - before[1]])
    };
    let running = count(&mut viewed)?;
    // The guest writes a line each second, which is for consoled.
    command(&["xl", "pause", NAME])?;
    let paused = count(&mut viewed)?;
    command(&["xl", "unpause", NAME])?;
    println!("    wake-ups in 20 s, of serve-screen and of consoled: {running:?}");
    println!("    while the guest is paused: {paused:?}");
    ensure!(running[0] <= 2 && paused.iter().all(|count| *count <= 2));
    // The count is one that grows.
    let before = waits(pids[0])?;
    draws(store, &mut viewed.guest, "+")?;
    viewed.number += 1;
    viewed.works()?;
    ensure!(waits(pids[0])? > before);
    viewed.guest.destroy()
}

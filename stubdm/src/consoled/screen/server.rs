//! `consoled`'s half of the screen: nodes and states, the listening socket, and the process.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::unistd::Pid;
use tracing::{info, warn};
use xen_store::Store;
use xen_sys::DomId;

use super::device::{Device, Kind};
use super::ipc::{Password, Report, SetPassword};
use super::process::{self, Front, Mode};
use super::reports::Reports;
use super::vnc::Vnc;
use crate::libxl::discover::Display;
use crate::libxl::trusted;
use crate::proxy::broker::log_relay::LogRelay;
use crate::proxy::ipc::{IpcSocket, Received};
use crate::rt::backoff::Backoff;
use crate::rt::error::{Context, Result};
use crate::rt::log::budget::{self, Budget};
use crate::rt::poll::{Interest, earlier, readable};
use crate::rt::process as rt_process;

/// The pauses before the process is started again.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(60));
/// Uptime after which the back-off resets.
const SETTLED: Duration = Duration::from_secs(60);
/// How long a process may take until it serves.
const START: Duration = Duration::from_secs(20);
/// How long a frame buffer waits for the keyboard of the same frontend.
const TOGETHER: Duration = Duration::from_secs(1);
/// The node of the frame buffer's backend that has the picture's place, for another `consoled`.
const MODE: &str = "mode";
/// The least time between two writes of it.
const MODE_PACE: Duration = Duration::from_millis(250);
/// Mishaps that are logged.
const COMPLAINTS: u32 = 100;
/// The process's share of the log.
const LOG: budget::Size = budget::Size {
    life: 1 << 20,
    burst: 16 << 10,
    each_second: 64,
};

/// The process.
#[derive(Debug)]
struct Worker {
    child: Child,
    reports: Reports,
    stderr: LogRelay,
    /// The frontends whose pages it has.
    of: (Front, Option<Front>),
    since: Instant,
    ready: bool,
}

impl Worker {
    /// Ends it, with the last of its messages.
    fn end(mut self, log: &mut Budget, now: Instant) -> String {
        // A process that ended by itself is not changed by this.
        let _ = self.child.kill();
        let status = self.child.wait();
        self.stderr.turn(log, now);
        status.map_or_else(|error| error.to_string(), |status| status.to_string())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A domain's screen that is served.
#[derive(Debug)]
pub struct ScreenServer {
    domain: DomId,
    name: String,
    vfb: Device,
    vkbd: Option<Device>,
    /// The store has failed: what is connected continues without it.
    storeless: bool,
    listener: TcpListener,
    address: SocketAddr,
    /// Viewers need a password.
    locked: bool,
    password: Option<Password>,
    worker: Option<Worker>,
    start_at: Instant,
    pauses: Backoff,
    /// When the frame buffer's frontend first offered its pages.
    offered_at: Option<Instant>,
    viewers: Vec<SocketAddr>,
    mode: Option<FrontMode>,
    /// When the node with it is to be written.
    mode_at: Option<Instant>,
    mode_written: Instant,
    log: Budget,
    complaints: u32,
}

/// The place of a picture, and the page and port of its frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FrontMode {
    page: u64,
    port: u32,
    mode: Mode,
}

impl FrontMode {
    fn new(front: &Front, mode: Mode) -> Self {
        let Front { page, port, .. } = *front;
        Self { page, port, mode }
    }

    fn is_of(&self, front: &Front) -> bool {
        (self.page, self.port) == (front.page, front.port)
    }

    fn from_node(text: &str) -> Option<Self> {
        let mut words = text.splitn(3, ',');
        Some(Self {
            page: words.next()?.parse().ok()?,
            port: words.next()?.parse().ok()?,
            mode: words.next()?.parse().ok()?,
        })
    }
}

impl std::fmt::Display for FrontMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{},{},{}", self.page, self.port, self.mode)
    }
}

impl ScreenServer {
    /// Listens for viewers, and takes the devices on. With `resume`, at the port and with the
    /// password of before.
    ///
    /// # Errors
    /// No port is free, or the store's.
    pub fn open(
        store: &Store,
        domain: DomId,
        display: &Display,
        vnc: &Vnc,
        resume: bool,
    ) -> Result<Self> {
        let read = |name: &str| -> Result<Option<String>> {
            let node = format!("/local/domain/{domain}/console/{name}");
            trusted::read_str(store, &node).context(&node)
        };
        let before = match resume {
            true => read("vnc-port")?.and_then(|port| port.parse().ok()),
            false => None,
        };
        let listener = vnc.listen(before)?;
        let address = listener.local_addr().context("the VNC server")?;
        let now = Instant::now();
        let vfb = Device::open(store, Kind::Screen, &display.vfb).context("vfb")?;
        let vkbd = display.vkbd.as_ref();
        let vkbd = vkbd.map(|paths| Device::open(store, Kind::Keyboard, paths));
        let name = store.read_str(&format!("/local/domain/{domain}/name"));
        let mut server = Self {
            domain,
            name: name.unwrap_or_else(|_| domain.to_string()),
            vfb,
            vkbd: vkbd.transpose().context("vkbd")?,
            storeless: false,
            listener,
            address,
            locked: vnc.password,
            password: None,
            worker: None,
            start_at: now,
            pauses: PAUSES,
            offered_at: None,
            viewers: Vec::new(),
            mode: None,
            mode_at: None,
            mode_written: now,
            log: Budget::new(LOG, now),
            complaints: 0,
        };
        if resume {
            let node = format!("{}/{MODE}", display.vfb.path);
            let mode = trusted::read_str(store, &node).context(&node)?;
            server.mode = mode.as_deref().and_then(FrontMode::from_node);
        }
        if resume && server.locked {
            if let Some(password) = read("vnc-pass")? {
                server.set_password(password.as_bytes());
            }
        }
        let (ip, port) = (address.ip(), address.port());
        info!("the screen: VNC at {ip} port {port}");
        Ok(server)
    }

    /// The address at which viewers connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns whether viewers need a password.
    pub fn has_password(&self) -> bool {
        self.locked
    }

    /// The viewers' addresses.
    pub fn viewers(&self) -> &[SocketAddr] {
        &self.viewers
    }

    /// Sets the password for viewers that connect from now on. Only its first eight bytes are used,
    /// and an empty one admits nobody. Returns whether viewers need one at all.
    pub fn set_password(&mut self, password: &[u8]) -> bool {
        if !self.locked {
            return false;
        }
        let mut bytes = Password::default();
        for (to, from) in bytes.iter_mut().zip(password) {
            *to = *from;
        }
        self.password = (!password.is_empty()).then_some(bytes);
        self.send_password();
        true
    }

    fn send_password(&self) {
        if let Some(worker) = &self.worker {
            // A process that does not take it has ended, or is ended soon.
            let _ = worker.reports.send(&SetPassword(self.password).encode());
        }
    }

    /// Looks at the nodes and at the process.
    pub fn turn(&mut self, now: Instant) {
        self.look_at_nodes(now);
        self.take_messages(now);
        self.manage(now);
        self.write_mode(now);
    }

    /// Writes the picture's place down.
    fn write_mode(&mut self, now: Instant) {
        if self.storeless || self.mode_at.is_none_or(|at| now < at) {
            return;
        }
        (self.mode_at, self.mode_written) = (None, now);
        let text = self.mode.map_or_else(String::new, |mode| mode.to_string());
        if let Err(error) = self.vfb.write(MODE, &text) {
            self.storeless |= error.is_fatal();
            self.vfb.complain(&error);
        }
    }

    fn set_mode(&mut self, mode: Option<FrontMode>, now: Instant) {
        if self.mode != mode {
            self.mode = mode;
            self.mode_at = Some(now.max(self.mode_written + MODE_PACE));
        }
    }

    fn devices(&mut self) -> impl Iterator<Item = &mut Device> {
        std::iter::once(&mut self.vfb).chain(&mut self.vkbd)
    }

    fn look_at_nodes(&mut self, now: Instant) {
        self.each_device(|device| device.turn(now));
    }

    /// Does something with each device, unless the store is lost.
    fn each_device(&mut self, mut act: impl FnMut(&mut Device) -> xen_store::Result<()>) {
        if self.storeless {
            return;
        }
        let mut lost = false;
        for device in self.devices() {
            if let Err(error) = act(device) {
                lost |= error.is_fatal();
                device.complain(&error);
            }
        }
        self.storeless |= lost;
    }

    /// Takes the process's messages; one that violates the protocol is ended.
    fn take_messages(&mut self, now: Instant) {
        let Some(worker) = &mut self.worker else {
            return;
        };
        worker.stderr.turn(&mut self.log, now);
        let mut ready = false;
        let mut mode = self.mode;
        let why = loop {
            match worker.reports.receive(now) {
                Ok(Received::Message(message)) => match Report::decode(&message) {
                    Some(Report::Ready) if !worker.ready => {
                        (worker.ready, ready) = (true, true);
                    }
                    Some(Report::Viewers(viewers)) if worker.ready => self.viewers = viewers,
                    Some(Report::Mode(place)) if worker.ready => {
                        mode = Some(FrontMode::new(&worker.of.0, place));
                    }
                    _ => break Some("it violates the protocol".to_owned()),
                },
                Ok(Received::Nothing) if worker.ready || now < worker.since + START => break None,
                Ok(Received::Nothing) => break Some("it takes too long to start".to_owned()),
                Ok(Received::End) => break Some("its process ended".to_owned()),
                Err(error) => break Some(error.to_string()),
            }
        };
        if ready {
            let pid = Pid::from_raw(i32::try_from(worker.child.id()).unwrap_or_default());
            info!("the screen's process {pid}: {}", rt_process::status(pid));
            self.each_device(Device::handle_connected);
        }
        self.set_mode(mode, now);
        if let Some(why) = why {
            self.again(&why, now);
        }
    }

    /// Returns the frontends that a process should serve.
    fn wanted(&mut self, now: Instant) -> Option<(Front, Option<Front>)> {
        let Some(screen) = self.vfb.offer().cloned() else {
            self.offered_at = None;
            return None;
        };
        let since = *self.offered_at.get_or_insert(now);
        let keyboard = match &self.vkbd {
            None => None,
            Some(device) => match device.offer() {
                Some(front) => Some(front.clone()),
                None if now < since + TOGETHER => return None,
                None => None,
            },
        };
        Some((screen, keyboard))
    }

    fn manage(&mut self, now: Instant) {
        let wanted = self.wanted(now);
        // A frontend that begins again has its first picture.
        let front = self.vfb.offer();
        let same = |mode: FrontMode| front.is_some_and(|front| mode.is_of(front));
        if !self.mode.is_some_and(same) {
            self.set_mode(None, now);
        }
        if self
            .worker
            .as_ref()
            .is_some_and(|w| Some(&w.of) != wanted.as_ref())
        {
            let worker = self.worker.take();
            let ended = worker.map(|worker| worker.end(&mut self.log, now));
            self.viewers.clear();
            self.start_at = now + self.pauses.pause();
            if ended.is_some() {
                self.complain("the frontend disconnected or changed: viewers are disconnected");
            }
        }
        if self.worker.is_none() {
            self.each_device(Device::handle_unmapped);
            if let Some(of) = wanted.filter(|_| self.start_at <= now) {
                match self.start_worker(of, now) {
                    Ok(worker) => {
                        self.worker = Some(worker);
                        self.send_password();
                    }
                    Err(failure) => self.again(&failure.to_string(), now),
                }
            }
        }
    }

    /// The process ended or is to end: another one is started after a pause.
    fn again(&mut self, why: &str, now: Instant) {
        let mut status = String::new();
        if let Some(worker) = self.worker.take() {
            if now.saturating_duration_since(worker.since) >= SETTLED {
                self.pauses.reset();
            }
            status = format!(" ({})", worker.end(&mut self.log, now));
        }
        self.viewers.clear();
        let pause = self.pauses.pause();
        self.start_at = now + pause;
        let seconds = pause.as_secs_f32();
        self.complain(format_args!("{why}{status}; another in {seconds} s"));
    }

    fn complain(&mut self, what: impl std::fmt::Display) {
        self.complaints = self.complaints.saturating_add(1);
        if self.complaints <= COMPLAINTS {
            warn!("the screen: {what}");
        }
        if self.complaints == COMPLAINTS {
            warn!("the screen: no more of this is logged");
        }
    }

    fn start_worker(&self, of: (Front, Option<Front>), now: Instant) -> Result<Worker> {
        let what = "starting the screen's process";
        let (near, far) = IpcSocket::pair().context(what)?;
        let far = inheritable(far.as_fd()).context(what)?;
        let listener = inheritable(self.listener.as_fd()).context(what)?;
        let (stderr, end) = LogRelay::new().context(what)?;
        // The file this program was started from, even if another is in its place by now.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("stubdm-run").arg(process::COMMAND);
        command.arg(format!("--ipc={}", far.as_raw_fd()));
        command.arg(format!("--listener={}", listener.as_raw_fd()));
        command.arg(format!("--name={}", self.name));
        if self.locked {
            command.arg("--password");
        }
        command.arg(format!("--screen={}", of.0));
        if let Some(FrontMode { mode, .. }) = self.mode.filter(|mode| mode.is_of(&of.0)) {
            command.arg(format!("--mode={mode}"));
        }
        if let Some(keyboard) = &of.1 {
            command.arg(format!("--keyboard={keyboard}"));
        }
        command.arg(self.domain.to_string());
        command
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(end);
        Ok(Worker {
            child: command.spawn().context(what)?,
            reports: Reports::new(near, now),
            stderr,
            of,
            since: now,
            ready: false,
        })
    }

    /// Returns the descriptors to wait for.
    pub fn interests(&self) -> Vec<Interest<'_>> {
        let mut interests = Vec::new();
        if !self.storeless {
            let devices = std::iter::once(&self.vfb).chain(&self.vkbd);
            interests.extend(devices.filter_map(Device::poll_fd).map(readable));
        }
        if let Some(worker) = &self.worker {
            interests.extend(worker.reports.interest());
            interests.extend(worker.stderr.interest());
        }
        interests
    }

    /// Returns when to look again without an event.
    pub fn deadline(&self) -> Option<Instant> {
        let mut deadline = None;
        if !self.storeless {
            deadline = self.mode_at;
            for device in std::iter::once(&self.vfb).chain(&self.vkbd) {
                deadline = earlier(deadline, device.deadline());
            }
        }
        match &self.worker {
            Some(worker) => {
                deadline = earlier(deadline, worker.stderr.deadline());
                deadline = earlier(deadline, worker.reports.deadline());
                let late = (!worker.ready).then_some(worker.since + START);
                earlier(deadline, late)
            }
            None => {
                let waits = self
                    .vkbd
                    .as_ref()
                    .is_some_and(|vkbd| vkbd.offer().is_none());
                let due = self.offered_at.map(|at| match waits {
                    true => self.start_at.max(at + TOGETHER),
                    false => self.start_at,
                });
                earlier(deadline, due)
            }
        }
    }
}

/// A duplicate that a child process gets.
fn inheritable(fd: BorrowedFd<'_>) -> std::io::Result<OwnedFd> {
    let copy = fd.try_clone_to_owned()?;
    fcntl(&copy, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pictures_place_is_read_as_it_was_written_and_is_of_one_frontend() {
        let front = |page, port| Front {
            page,
            port,
            absolute: true,
            protocol: None,
        };
        let kept = FrontMode::new(&front(u64::MAX, 7), Mode([640, 480, 3200, 0]));
        assert_eq!(FrontMode::from_node(&kept.to_string()), Some(kept));
        for wrong in ["", "1,2", "1,2,3,4,5", "1,-2,3,4,5,6"] {
            assert_eq!(FrontMode::from_node(wrong), None, "{wrong}");
        }
        assert!(kept.is_of(&front(u64::MAX, 7)));
        assert!(!kept.is_of(&front(1, 7)) && !kept.is_of(&front(u64::MAX, 8)));
    }
}

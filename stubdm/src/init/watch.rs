//! The init's loop: the parts that can say something, and the machine that decides.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tracing::{debug, info, warn};
use xen_store::Store;
use xen_sys::{DomId, Xen};

use super::cdrom::Drives;
use super::confine;
use super::guest::Guest;
use super::qemu::Launch;
use super::report::Report;
use crate::error::{Context, Failure, Result, one_line};
use crate::event::{Interest, earlier, sleep};
use crate::proxy::Payload;
use crate::proxy::local::{Local, Read};
use crate::proxy::server::{Backend, Server, Turn};
use crate::proxy::vchan::Vchan;
use crate::qmp::client::{Client, Told};
use crate::qmp::lines::{Line, Lines};
use crate::save::keeper::Keeper;
use crate::signals::Signals;
use crate::supervisor::{Action, Event, Exit, Supervisor};

/// The signals the loop must own before QEMU is started.
pub const SIGNALS: &[Signal] = &[
    Signal::SIGCHLD,
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
];
/// The longest line of QEMU's output that is kept whole.
const WORDS_MAX: usize = 4096;
/// How often the vchan is offered anew after a client broke it.
const OFFERS_MAX: u32 = 1000;

/// What the loop needs to know.
#[derive(Debug)]
pub struct World<'a> {
    /// The hypervisor.
    pub xen: &'a Xen,
    /// The store.
    pub store: &'a Store,
    /// The guest.
    pub guest: &'a Guest,
    /// Where to report to.
    pub report: &'a Report,
    /// [`SIGNALS`], taken over before QEMU was started.
    pub signals: &'a Signals,
    /// When this program began.
    pub started: Instant,
}

/// Watches over QEMU until everything is over.
///
/// # Errors
/// The system's, from the loop itself. QEMU's death is no error here: it was reported.
pub fn over(
    world: &World<'_>,
    launch: Launch,
    drives: Option<Drives>,
    keeper: Option<Keeper>,
) -> Result<ExitCode> {
    let mut watch = Watch {
        world,
        machine: Supervisor::new(Instant::now()),
        qemu: Some(launch.pid),
        output: launch.output,
        words: Lines::new(WORDS_MAX),
        listener: Some(launch.monitor),
        monitor: None,
        asked: VecDeque::new(),
        drives,
        keeper,
        toolstack: launch.toolstack,
        server: None,
        server_deadline: None,
        offers: 0,
        started: false,
        failed: false,
        again: false,
    };
    loop {
        watch.turn()?;
        if watch.machine.is_over() {
            return Ok(if watch.failed {
                ExitCode::FAILURE
            } else {
                ExitCode::SUCCESS
            });
        }
        let deadline = if watch.again {
            Some(Instant::now())
        } else {
            earlier(watch.machine.deadline(), watch.server_deadline)
        };
        sleep(&watch.interests(), deadline).context("waiting")?;
    }
}

/// What was asked for on our own monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// `cont`.
    Start,
    /// `add-fd` for a medium.
    Medium,
    /// `add-fd` for the file to save to.
    SaveFile,
}

struct Watch<'a> {
    world: &'a World<'a>,
    machine: Supervisor,
    qemu: Option<Pid>,
    output: Local,
    words: Lines,
    listener: Option<UnixListener>,
    monitor: Option<(Local, Client)>,
    /// The commands that are not answered yet.
    asked: VecDeque<Asked>,
    drives: Option<Drives>,
    /// Here until the vchan's server has it.
    keeper: Option<Keeper>,
    toolstack: PathBuf,
    server: Option<Server<Vchan>>,
    server_deadline: Option<Instant>,
    offers: u32,
    started: bool,
    failed: bool,
    again: bool,
}

impl Watch<'_> {
    fn interests(&self) -> Vec<Interest<'_>> {
        let mut interests = vec![(self.world.signals.as_fd(), PollFlags::POLLIN)];
        if !self.output.has_ended() {
            interests.extend(self.output.interest(true, false));
        }
        if let Some(listener) = &self.listener {
            interests.push((listener.as_fd(), PollFlags::POLLIN));
        }
        if let Some((local, client)) = &self.monitor {
            interests.extend(local.interest(true, !client.to_send().is_empty()));
        }
        if let Some(drives) = &self.drives {
            interests.push((drives.as_fd(), PollFlags::POLLIN));
        }
        if let Some(server) = &self.server {
            interests.extend(server.interests());
        }
        interests
    }

    fn tell(&mut self, event: Event) {
        self.machine.event(event, Instant::now());
    }

    /// Looks at every part once, then does what the machine asks for.
    fn turn(&mut self) -> Result<()> {
        self.again = false;
        self.hear_signals()?;
        self.hear_words();
        self.reap()?;
        self.hear_monitor();
        self.change_media();
        self.serve();
        self.tell(Event::Tick);
        while let Some(action) = self.machine.action() {
            self.act(action);
        }
        Ok(())
    }

    fn hear_signals(&mut self) -> Result<()> {
        while let Some(signal) = self.world.signals.next().context("reading signals")? {
            if signal != Signal::SIGCHLD {
                self.tell(Event::Terminate(signal.to_string()));
            }
        }
        Ok(())
    }

    /// Takes the status of every process that ended: as PID 1 we are everybody's last parent.
    fn reap(&mut self) -> Result<()> {
        loop {
            let (pid, exit) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, status)) => (pid, Exit::Status(status)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, Exit::Signal(signal.to_string())),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(()),
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(errno) => return Err(Failure::new(errno.desc())),
            };
            if self.qemu == Some(pid) {
                self.qemu = None;
                // What it said last explains its end.
                self.hear_words();
                self.tell(Event::QemuExited(exit));
            }
        }
    }

    fn hear_words(&mut self) {
        let mut lines = Vec::new();
        let mut buffer = [0; 4096];
        // A QEMU that never stops talking must not keep us from everything else.
        for _ in 0..64 {
            match self.output.read(&mut buffer) {
                Ok(Read::Bytes(count)) => {
                    let bytes = buffer.get(..count).unwrap_or_default();
                    self.words.push(bytes, |line| lines.push(line));
                }
                Ok(Read::Nothing) => break,
                Ok(Read::End) | Err(_) => {
                    lines.push(Line::Whole(self.words.take_partial()));
                    break;
                }
            }
        }
        for line in lines {
            self.tell(Event::Line(match line {
                Line::Whole(line) => String::from_utf8_lossy(&line).into_owned(),
                Line::TooLong(_) => format!("(a line of over {WORDS_MAX} bytes)"),
            }));
        }
    }

    fn hear_monitor(&mut self) {
        if let Some(listener) = &self.listener {
            match listener.accept() {
                Ok((stream, _)) => match Local::socket(OwnedFd::from(stream)) {
                    Ok(local) => {
                        self.monitor = Some((local, Client::new()));
                        // QEMU connects once; nobody else is to.
                        self.listener = None;
                    }
                    Err(error) => self.tell(Event::MonitorLost(error.to_string())),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => warn!("our own monitor's socket: {error}"),
            }
        }
        let Some((local, client)) = &mut self.monitor else {
            return;
        };
        let mut lost = None;
        if let Err(error) = pump(local, client, &mut self.again) {
            lost = Some(error.to_string());
        }
        let mut events = Vec::new();
        while let Some(told) = client.told() {
            events.push(match told {
                Told::Ready => {
                    // Before anything else is asked: a toolstack may save as soon as it is served.
                    if let Some(keeper) = &self.keeper {
                        match keeper.offer(local, client) {
                            Ok(()) => self.asked.push_back(Asked::SaveFile),
                            Err(error) => warn!("QEMU gets no file to save to: {error}"),
                        }
                    }
                    Event::MonitorReady
                }
                Told::Answer(answer) => match (self.asked.pop_front(), answer) {
                    (Some(Asked::Medium), answer) => {
                        if let Err(error) = answer {
                            warn!("QEMU takes no medium: {error}");
                        }
                        continue;
                    }
                    (Some(Asked::SaveFile), answer) => {
                        if let Err(error) = answer {
                            warn!("QEMU takes no file to save to: {error}");
                        }
                        continue;
                    }
                    (_, Ok(_)) => Event::Started,
                    (_, Err(error)) => Event::StartRefused(error.to_string()),
                },
                Told::Event(name) => Event::Qmp(name),
                Told::Broken(why) => {
                    lost = Some(why);
                    continue;
                }
            });
        }
        if let Some(why) = lost {
            self.monitor = None;
            events.push(Event::MonitorLost(one_line(&why)));
        }
        for event in events {
            self.tell(event);
        }
    }

    /// Passes new media to QEMU, one at a time, once it runs.
    fn change_media(&mut self) {
        let (Some(drives), Some((local, client))) = (&mut self.drives, &mut self.monitor) else {
            return;
        };
        match drives.hear() {
            Ok(more) => self.again |= more,
            Err(error) => warn!("the kernel's words of new disks: {error}"),
        }
        let idle = self.asked.is_empty() && client.to_send().is_empty();
        if idle && self.started && drives.offer(local, client) {
            self.asked.push_back(Asked::Medium);
            self.again = true;
        }
    }

    fn serve(&mut self) {
        let Some(server) = &mut self.server else {
            return;
        };
        match server.turn(Instant::now()) {
            Ok(Turn::Sleep(deadline)) => self.server_deadline = deadline,
            Ok(Turn::Again | Turn::Done) => self.again = true,
            Err(error) => {
                warn!(
                    "the vchan: {}; offering a new one",
                    one_line(&error.to_string())
                );
                self.keeper = self.server.take().and_then(Server::into_keeper);
                self.server_deadline = None;
                self.offer();
            }
        }
    }

    fn offer(&mut self) {
        self.offers += 1;
        let event = if self.offers > OFFERS_MAX {
            Event::Failed(format!("the vchan broke {OFFERS_MAX} times"))
        } else {
            match self.listen() {
                Ok(mut server) => {
                    if let Some(keeper) = self.keeper.take() {
                        server = server.with_saves(keeper);
                    }
                    self.server = Some(server);
                    // Its first look must not wait for an event that may have come already.
                    self.again = true;
                    Event::VchanUp
                }
                Err(failure) => Event::Failed(failure.to_string()),
            }
        };
        self.tell(event);
    }

    fn listen(&self) -> Result<Server<Vchan>> {
        let node = format!("device-model/{}/qmp-vchan", self.world.guest.domid);
        let channel = xen_vchan::Server::builder(DomId::DOM0, node.as_str())
            .listen(self.world.xen, self.world.store)
            .context(format_args!("offering the vchan {node}"))?;
        let backend = Backend::Socket(self.toolstack.clone());
        Ok(Server::new(Vchan::new(channel), backend, Payload::Qmp))
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::OfferVchan => self.offer(),
            Action::Start => {
                if let Some((_, client)) = &mut self.monitor {
                    client.execute("cont", None);
                    self.asked.push_back(Asked::Start);
                    self.again = true;
                }
            }
            Action::Log(line) => info!("{line}"),
            Action::Detail(line) => debug!("{line}"),
            Action::ReportRunning => {
                self.started = true;
                let seconds = self.world.started.elapsed().as_secs_f64();
                self.world.report.phase("running");
                info!("up {seconds:.2} s after this program began");
                if let Some(pid) = self.qemu {
                    info!("{}", confine::facts(pid));
                }
            }
            Action::ReportError(reason) => {
                self.failed = true;
                self.world.report.failed(&reason);
            }
            Action::KillQemu => {
                if let Some(pid) = self.qemu {
                    if let Err(errno) = kill(pid, Signal::SIGKILL) {
                        warn!("killing QEMU: {}", errno.desc());
                    }
                }
            }
            Action::PowerOff => {}
        }
    }
}

/// Moves bytes between QEMU and our own monitor's conversation.
fn pump(local: &mut Local, client: &mut Client, again: &mut bool) -> io::Result<()> {
    let mut buffer = [0; 4096];
    for _ in 0..64 {
        let mut moved = false;
        if !client.to_send().is_empty() {
            let count = local.write(client.to_send())?;
            client.sent(count);
            moved |= count > 0;
        }
        match local.read(&mut buffer)? {
            Read::Bytes(count) => {
                client.receive(buffer.get(..count).unwrap_or_default());
                moved = true;
            }
            Read::Nothing => {}
            Read::End => return Err(io::Error::other("closed")),
        }
        if !moved {
            return Ok(());
        }
    }
    *again = true;
    Ok(())
}

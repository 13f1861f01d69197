//! The init's loop: the sources of events, and the state machine that decides.
//!
//! | module | part |
//! |---|---|
//! | `children` | QEMU's words and its end |
//! | `monitor` | our own monitor |
//! | `service` | the vchan for the toolstack |

mod children;
mod monitor;
mod service;

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use nix::poll::PollFlags;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use stubdm_qmp::client::Client;
use stubdm_qmp::lines::Lines;
use tracing::{debug, info, warn};
use xen_store::Store;
use xen_sys::Xen;

use crate::guest::cdrom::Drives;
use crate::guest::qemu::StartedQemu;
use crate::guest::report::Report;
use crate::guest::save::saver::Saver;
use crate::guest::screen::Screen;
use crate::guest::server::Server;
use crate::guest::supervisor::{Action, Event, Supervisor};
use crate::guest::{InitOptions, confine, memory, power, privcmd};
use crate::libxl::guest::Guest;
use crate::rt::error::{Context, Failure, Result};
use crate::rt::event_loop::{self, Progress, Task};
use crate::rt::outcome::Outcome;
use crate::rt::poll::{Interest, earlier};
use crate::rt::signals::Signals;
use crate::rt::stream::Stream;
use crate::rt::vchan::Vchan;
use children::WORDS_MAX;
use monitor::OwnCommand;

/// The phase of a stubdomain in which everything is as it should be.
const RUNNING: &str = "running";
/// The signals the loop must own before QEMU is started.
pub const SIGNALS: &[Signal] = &[
    Signal::SIGCHLD,
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
];

/// The loop's settings.
#[derive(Debug)]
pub struct Environment<'a> {
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
    pub began: Instant,
    /// How it is to be done.
    pub options: &'a InitOptions,
}

/// Watches over QEMU until everything is over.
///
/// # Errors
/// The system's, from the loop itself. QEMU's death is no error here: it was reported.
pub fn over(
    env: &Environment<'_>,
    started: StartedQemu,
    drives: Option<Drives>,
    saver: Option<Saver>,
    screen: Option<Screen>,
) -> Result<ExitCode> {
    let mut watch = Watch {
        env,
        machine: Supervisor::new(
            Instant::now(),
            env.options.launch_limit(),
            env.options.hang_limit(),
        ),
        qemu: Some(started.pid),
        output: started.output,
        words: Lines::new(WORDS_MAX),
        listener: Some(started.monitor),
        monitor: None,
        pending: VecDeque::new(),
        full: false,
        drives,
        incoming: started.incoming,
        saver,
        screen,
        toolstack: started.toolstack,
        server: None,
        server_deadline: None,
        offers: 0,
        started: false,
        failed: false,
        again: false,
    };
    event_loop::run(&mut watch, &mut []).map_err(Failure::new)?;
    Ok(if watch.failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

struct Watch<'a> {
    env: &'a Environment<'a>,
    machine: Supervisor,
    qemu: Option<Pid>,
    output: Stream,
    words: Lines,
    listener: Option<UnixListener>,
    monitor: Option<(Stream, Client)>,
    /// The commands that are not answered yet.
    pending: VecDeque<OwnCommand>,
    /// Our own monitor had no room for the file to save to.
    full: bool,
    drives: Option<Drives>,
    /// Until it is known what became of the state.
    incoming: Option<Outcome>,
    /// Here until the vchan's server has it.
    saver: Option<Saver>,
    screen: Option<Screen>,
    toolstack: PathBuf,
    server: Option<Server<Vchan>>,
    server_deadline: Option<Instant>,
    offers: u32,
    started: bool,
    failed: bool,
    again: bool,
}

impl Watch<'_> {
    fn handle_event(&mut self, event: Event) {
        self.machine.handle_event(event, Instant::now());
    }

    /// Ends QEMU if the saved state is unusable: it would wait for the state forever.
    fn handle_incoming(&mut self) {
        let outcome = self.incoming.as_mut().and_then(Outcome::poll);
        if let Some(outcome) = outcome {
            self.incoming = None;
            if let Err(why) = outcome {
                self.handle_event(Event::Failed(format!("restoring: {why}")));
            }
        }
    }

    fn handle_signals(&mut self) -> Result<()> {
        while let Some(signal) = self.env.signals.next().context("reading signals")? {
            if signal != Signal::SIGCHLD {
                self.handle_event(Event::Terminate(signal.to_string()));
            }
        }
        Ok(())
    }

    fn draw(&mut self) {
        if let (Some(screen), Some(_)) = (&mut self.screen, self.qemu) {
            screen.turn(Instant::now());
        }
    }

    /// Called before the guest's first instruction.
    fn tie_down(&self) -> Result<()> {
        let options = self.env.options;
        match self.qemu.filter(|_| power::is_init() && !options.qemu_root) {
            Some(qemu) => privcmd::tie_down(
                self.env.xen,
                qemu,
                self.env.guest.domid,
                options.allow_unconfined,
            ),
            None => Ok(()),
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::OfferVchan => self.offer(),
            Action::Start => match self.tie_down() {
                Ok(()) => {
                    // By now QEMU has answered, and listens at all its sockets.
                    if let Some(screen) = &mut self.screen {
                        screen.start(Instant::now());
                    }
                    self.ask(OwnCommand::Start, "cont");
                }
                Err(failure) => self.handle_event(Event::Failed(failure.to_string())),
            },
            Action::Ask => self.ask(OwnCommand::Alive, "query-status"),
            Action::ReportHung(why) => self.env.report.trouble(&why),
            Action::ReportBack(what) => {
                info!("{what}");
                self.env.report.phase(RUNNING);
            }
            Action::CrashGuest => {
                if power::is_init() && !self.env.options.keep_guest {
                    privcmd::crash(self.env.xen, self.env.guest.domid);
                }
            }
            Action::Log(line) => info!("{line}"),
            Action::Detail(line) => debug!("{line}"),
            Action::ReportRunning => {
                self.started = true;
                let seconds = self.env.began.elapsed().as_secs_f64();
                self.env.report.phase(RUNNING);
                info!("up {seconds:.2} s after this program began");
                if let Some(pid) = self.qemu {
                    info!("{}", confine::facts(pid));
                    info!("{}", memory::facts(pid));
                }
            }
            Action::ReportError(reason) => {
                self.failed = true;
                self.env.report.failed(&reason);
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

impl Task for Watch<'_> {
    fn interests(&self) -> Vec<Interest<'_>> {
        let mut interests = vec![(self.env.signals.as_fd(), PollFlags::POLLIN)];
        if !self.output.has_ended() {
            interests.extend(self.output.interest(true, false));
        }
        if let Some(listener) = &self.listener {
            interests.push((listener.as_fd(), PollFlags::POLLIN));
        }
        if let Some((local, client)) = &self.monitor {
            interests.extend(local.interest(true, self.full || !client.poll_transmit().is_empty()));
        }
        if let Some(incoming) = &self.incoming {
            interests.extend(incoming.interest());
        }
        if let Some(screen) = &self.screen {
            interests.extend(screen.interests());
        }
        if let Some(drives) = &self.drives {
            interests.push((drives.as_fd(), PollFlags::POLLIN));
        }
        if let Some(server) = &self.server {
            interests.extend(server.interests());
        }
        interests
    }

    /// Looks at every part once, then does what the machine asks for.
    fn turn(&mut self, _: Instant) -> io::Result<Progress> {
        self.again = false;
        self.handle_signals().map_err(io::Error::other)?;
        self.read_output();
        self.reap().map_err(io::Error::other)?;
        self.handle_monitor();
        self.handle_incoming();
        self.change_media();
        self.serve();
        self.draw();
        self.offer_file_again();
        self.handle_event(Event::Tick);
        while let Some(action) = self.machine.poll_action() {
            self.act(action);
        }
        let deadline = earlier(self.machine.poll_timeout(), self.server_deadline);
        // Without a QEMU there is nothing to draw.
        let drawing = self.screen.as_ref().filter(|_| self.qemu.is_some());
        let drawing = drawing.and_then(Screen::poll_timeout);
        let deadline = earlier(deadline, drawing);
        Ok(match (self.machine.is_over(), self.again) {
            (true, _) => Progress::Done,
            (false, true) => Progress::Again,
            (false, false) => Progress::Sleep(deadline),
        })
    }
}

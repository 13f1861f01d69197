//! Serving a domain's consoles, from the first file opened to the last byte written.
//!
//! Readiness is reported last: after the word `running`, libxl removes files and expects answers by
//! QMP. SIGHUP, SIGTERM, SIGINT, `quit` or the end of the domain ends the loop. The bytes still in
//! the rings are taken out first, so that a domain's last words are in its log. The states in the
//! store are left as they are: the domain is about to end, or another `consoled` continues with the
//! same rings. One that was killed is started again ([`crate::supervise`]), and continues at the
//! byte where it stopped ([`super::position`]).

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use nix::sys::signal::Signal;
use tracing::info;
use xen_store::Store;
use xen_sys::{DomId, Xen};

use super::logfile;
use super::monitor::QmpSocket;
use super::qmp::{Facts, VncFacts};
use super::screen::server::ScreenServer;
use super::screen::vnc::Vnc;
use super::service::{Place, Service};
use crate::libxl::discover::{Console, Discovered, consoles, consoles_again, display};
use crate::libxl::lifetime::DomainWatch;
use crate::libxl::store::{self, domid};
use crate::proxy::counters;
use crate::rt::error::{Context, Failure, Result};
use crate::rt::event_loop::{self, Progress, Stop, Task};
use crate::rt::poll::{Interest, earlier};
use crate::rt::signals::Signals;
use crate::rt::{log, text};
use crate::service::claim::{self as service, Resume};
use crate::service::record::Kind;

/// How long the last of what is in the rings may take.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// The command line of `stubdm-run consoled`.
#[derive(Args, Clone, Debug)]
pub struct ConsoledOptions {
    /// The domain whose consoles are served: those that libxl leaves to QEMU
    #[arg(value_name = "DOMID", value_parser = domid)]
    pub domain: DomId,
    /// Answer QMP at this socket, as the QEMU that is replaced does
    #[arg(long, value_name = "SOCKET")]
    pub qmp: Vec<PathBuf>,
    /// Serve the domain's screen too, by a VNC server as libxl names it to QEMU
    #[arg(long, value_name = "VNC")]
    pub vnc: Option<Vnc>,
    /// The largest log in bytes; the one before it is kept as well
    #[arg(long, value_name = "BYTES", default_value_t = logfile::LIMIT)]
    pub log_limit: u64,
    /// Log everything to stderr
    #[arg(short, long)]
    pub verbose: bool,
    /// The folder of the records by which it is started again, instead of /run/stubdm
    #[arg(long, value_name = "DIR", hide_short_help = true)]
    pub folder: Option<PathBuf>,
    /// Go on where another one was killed
    #[arg(long, hide = true, value_name = "FD|-")]
    pub resume: Option<Resume>,
}

/// Serves the consoles until a signal or the domain's end.
///
/// # Errors
/// Fails if it cannot start, with the reason.
pub fn run(options: &ConsoledOptions) -> Result<()> {
    let folder = || Some(PathBuf::from(counters::FOLDER));
    let options = &ConsoledOptions {
        folder: options.folder.clone().or_else(folder),
        ..options.clone()
    };
    run_on(options, store::open)
}

/// As [`run`], on the host and the store that `open` leads to.
///
/// # Errors
/// As [`run`], and those of `open`.
pub fn run_on(
    options: &ConsoledOptions,
    open: impl FnOnce() -> Result<(Xen, Store)>,
) -> Result<()> {
    log::to_stderr(options.verbose);
    log::follow();
    text::find();
    let (xen, store) = open()?;
    let found = match options.resume {
        Some(_) => consoles_again(&store, options.domain),
        None => consoles(&store, options.domain),
    };
    let found = match found.context("the store")? {
        Discovered::Consoles(found) if found.is_empty() => {
            let domain = options.domain;
            return Err(Failure::new(format_args!(
                "domain {domain} has no console that libxl leaves to QEMU"
            )));
        }
        Discovered::Consoles(found) => found,
        Discovered::More(what) => {
            return Err(Failure::new(format_args!("{what}: only QEMU serves that")));
        }
    };
    serve(&xen, &store, options, &found)
}

/// Serves `found`, and reports readiness as QEMU does.
///
/// # Errors
/// Fails if it cannot start, with the reason.
pub fn serve(xen: &Xen, store: &Store, options: &ConsoledOptions, found: &[Console]) -> Result<()> {
    let signals = Signals::take(&[Signal::SIGHUP, Signal::SIGTERM, Signal::SIGINT])
        .context("taking over signals")?;
    let domain = options.domain;
    let mut lifetime = DomainWatch::of(store, domain)?;
    let resume = options.resume.is_some();
    let folder = options.folder.as_deref();
    // No two take bytes out of one ring.
    let claim = service::claim(store, folder, Kind::Consoled, domain, resume)?;
    let place = claim.as_ref().zip(folder).map(|(claim, folder)| Place {
        folder,
        uuid: &claim.record().uuid,
        resume,
    });
    let mut server = Server {
        monitors: Vec::new(),
        services: Vec::new(),
        screen: None,
        facts: Facts::default(),
    };
    for console in found {
        server.add(Service::open(
            xen,
            store,
            domain,
            console,
            options.log_limit,
            place,
        )?);
    }
    if let Some(vnc) = &options.vnc {
        let display = display(store, domain).context("the store")?;
        let display = display.ok_or_else(|| {
            Failure::new(format_args!("domain {domain} has no screen known here"))
        })?;
        let screen = ScreenServer::open(store, domain, &display, vnc, resume)?;
        server.screen = Some(screen);
    }
    for path in &options.qmp {
        server.monitors.push(QmpSocket::listen(path)?);
    }
    let state = format!("/local/domain/0/device-model/{domain}/state");
    service::announce(store, &state, "running", resume).context(&state)?;
    info!("serving {} consoles of domain {domain}", found.len());
    let stops: &mut [&mut dyn Stop] = &mut [&mut &signals, &mut lifetime];
    let ended = event_loop::run(&mut server, stops).context("waiting")?;
    server.finish(&ended.unwrap_or_else(|| "asked to end".to_owned()));
    for service in &mut server.services {
        service.forget();
    }
    Ok(())
}

/// Everything that is served.
#[derive(Debug)]
struct Server {
    monitors: Vec<QmpSocket>,
    services: Vec<Service>,
    screen: Option<ScreenServer>,
    facts: Facts,
}

impl Server {
    fn add(&mut self, service: Service) {
        let file = match service.sink().terminal() {
            Some(name) => format!("pty:{}", name.display()),
            None => "null".to_owned(),
        };
        let label = format!("xencons{}", service.number());
        self.facts.chardevs.push((label, file));
        self.services.push(service);
    }

    /// Takes what is in the rings and not yet where it belongs.
    fn finish(&mut self, ended: &str) {
        info!("{ended}: taking the last out of the rings");
        let deadline = Instant::now() + LAST_WORDS;
        loop {
            let now = Instant::now();
            // Each has its turn, whatever the others still have.
            let turns = self.services.iter_mut().map(|service| service.turn(now));
            let more = turns.fold(false, |more, again| more | again);
            if !more || deadline <= now {
                return;
            }
        }
    }
}

impl Task for Server {
    fn interests(&self) -> Vec<Interest<'_>> {
        let services = self.services.iter().flat_map(Service::interests);
        services
            .chain(self.monitors.iter().flat_map(QmpSocket::interests))
            .chain(self.screen.iter().flat_map(ScreenServer::interests))
            .collect()
    }

    fn turn(&mut self, now: Instant) -> io::Result<Progress> {
        let mut deadline = None;
        for service in &mut self.services {
            let more = service.turn(now).then_some(now);
            deadline = earlier(deadline, earlier(more, service.deadline()));
        }
        if let Some(screen) = &mut self.screen {
            screen.turn(now);
            self.facts.vnc = Some(VncFacts {
                address: screen.address(),
                password: screen.has_password(),
                viewers: screen.viewers().to_vec(),
            });
        }
        let mut quit = false;
        for monitor in &mut self.monitors {
            quit |= monitor.turn(&self.facts, now);
            if let (Some(screen), Some(password)) = (&mut self.screen, monitor.take_password()) {
                screen.set_password(password.as_bytes());
            }
            deadline = earlier(deadline, monitor.deadline());
        }
        let screen = self.screen.as_ref().and_then(ScreenServer::deadline);
        deadline = earlier(deadline, screen);
        Ok(if quit {
            Progress::Done
        } else {
            Progress::Sleep(deadline)
        })
    }
}

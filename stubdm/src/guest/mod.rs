//! The stubdomain's init: from a bare kernel to a running device model, and to the end.
//!
//! ```text
//!  mounts ─▶ log console ─▶ modules ─▶ store: target, dm-argv ─▶ disks ─▶ QEMU -S
//!    ─▶ own monitor ─▶ vchan server ─▶ cont (QEMU writes `running`) ─▶ watch over it ─▶ power off
//! ```
//!
//! The init reports every failure on the console (which the toolstack keeps as the guest's
//! device-model log) and in the store, and then powers the domain off.

pub mod cdrom;
pub mod confine;
pub mod console;
pub mod incoming;
pub mod loop_device;
pub mod memory;
pub mod modules;
pub mod mounts;
pub mod net;
pub mod notify;
pub mod packed;
pub mod pci;
pub mod power;
pub mod privcmd;
pub mod qemu;
pub mod realtime;
pub mod report;
pub mod save;
pub mod screen;
pub mod seccomp;
pub mod server;
pub mod session;
pub mod supervisor;
pub mod tty;
pub mod watch;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use stubdm_qmp::text::one_line;
use tracing::{debug, info, warn};
use xen_store::Store;
use xen_sys::Xen;

use crate::guest::save::saver::Saver;
use crate::guest::supervisor::{HANG_LIMIT, LAUNCH_LIMIT};
use crate::libxl::dm_argv::rewrite::Finding;
use crate::libxl::guest::Guest;
use crate::libxl::store;
use crate::rt::error::{Context, Failure, Result};
use crate::rt::log;
use crate::rt::signals::Signals;
use report::Report;
use screen::{Devices, Screen};

/// How long the guest's disks and network cards may take to appear.
const DEVICE_LIMIT: Duration = Duration::from_secs(20);

/// Console 1, whose other end libxl reads saved states from.
const SAVE_CONSOLE: &str = "/dev/hvc1";

/// Options of the init.
#[derive(Args, Clone, Debug)]
pub struct InitOptions {
    /// The QEMU to run
    #[arg(long, value_name = "PATH", default_value = qemu::DEFAULT)]
    pub qemu: PathBuf,
    /// Log every byte of QMP that passes
    #[arg(short, long)]
    pub verbose: bool,
    /// Let QEMU stay root
    #[arg(long)]
    pub qemu_root: bool,
    /// Leave xen-privcmd restricted, for a QEMU that can live with that
    #[arg(long)]
    pub privcmd_restricted: bool,
    /// Start QEMU and the guest although QEMU could not be confined as it should be
    #[arg(long)]
    pub allow_unconfined: bool,
    /// Do not report the guest's crash to the hypervisor when its QEMU has died
    #[arg(long)]
    pub keep_guest: bool,
    /// After how many seconds without an answer a running QEMU is reported as hung
    #[arg(long, value_name = "SECONDS", default_value_t = HANG_LIMIT.as_secs())]
    pub hang_after: u64,
    /// How many seconds the guest's disks and network cards may take to appear
    #[arg(long, value_name = "SECONDS", default_value_t = DEVICE_LIMIT.as_secs())]
    pub device_limit: u64,
    /// How many seconds QEMU may take until the guest runs
    #[arg(long, value_name = "SECONDS", default_value_t = LAUNCH_LIMIT.as_secs())]
    pub launch_limit: u64,
}

impl Default for InitOptions {
    fn default() -> Self {
        Self {
            qemu: qemu::DEFAULT.into(),
            verbose: false,
            qemu_root: false,
            privcmd_restricted: false,
            allow_unconfined: false,
            keep_guest: false,
            hang_after: HANG_LIMIT.as_secs(),
            device_limit: DEVICE_LIMIT.as_secs(),
            launch_limit: LAUNCH_LIMIT.as_secs(),
        }
    }
}

impl InitOptions {
    /// The silence of QEMU's that is reported.
    pub(crate) fn hang_limit(&self) -> Duration {
        limit(self.hang_after)
    }

    /// Returns how long QEMU may take until the guest runs.
    pub(crate) fn launch_limit(&self) -> Duration {
        limit(self.launch_limit)
    }

    /// Returns the wait for devices, which begins now.
    fn patience(&self) -> Patience {
        Patience::of(limit(self.device_limit))
    }

    /// Takes the options in the kernel's command line: `stubdm.` and the option's name.
    fn with_kernel_command_line(mut self, line: &str) -> Self {
        for word in line.split_whitespace() {
            if let Some(path) = word.strip_prefix("stubdm.qemu=") {
                self.qemu = path.into();
            } else if let Some(seconds) = word.strip_prefix("stubdm.hang-after=") {
                self.hang_after = seconds.parse().unwrap_or(self.hang_after);
            } else if let Some(seconds) = word.strip_prefix("stubdm.device-limit=") {
                self.device_limit = seconds.parse().unwrap_or(self.device_limit);
            } else if let Some(seconds) = word.strip_prefix("stubdm.launch-limit=") {
                self.launch_limit = seconds.parse().unwrap_or(self.launch_limit);
            }
            match word {
                "stubdm.verbose" => self.verbose = true,
                "stubdm.qemu-root" => self.qemu_root = true,
                "stubdm.privcmd-restricted" => self.privcmd_restricted = true,
                "stubdm.allow-unconfined" => self.allow_unconfined = true,
                "stubdm.keep-guest" => self.keep_guest = true,
                _ => {}
            }
        }
        self
    }
}

/// A limit in seconds: at least one, at most a day.
fn limit(seconds: u64) -> Duration {
    Duration::from_secs(seconds.clamp(1, 86_400))
}

/// A wait for devices with an end.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    limit: Duration,
    end: Instant,
}

impl Patience {
    /// Returns a wait that ends `limit` after now.
    pub fn of(limit: Duration) -> Self {
        Self {
            limit,
            end: Instant::now() + limit,
        }
    }
}

/// Runs the init. As PID 1 it ends by powering the domain off and does not return.
pub fn run(options: &InitOptions) -> ExitCode {
    let began = Instant::now();
    let mut options = options.clone();
    let mut notes = Vec::new();
    let mut root = Ok(false);
    if power::is_init() {
        power::off_on_panic();
        root = packed::enter();
        notes = mounts::all();
        if let Err(failure) = console::take() {
            notes.push(failure.to_string());
        }
        let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
        options = options.with_kernel_command_line(&line);
    }
    log::to_console(options.verbose);
    info!("stubdm-run {} starts", env!("CARGO_PKG_VERSION"));
    debug!("memory in KiB at the start: {}", memory::of_domain());
    for note in notes {
        warn!("{note}");
    }
    if let Ok(true) = root {
        info!("the root is the ramdisk's compressed file system");
    }
    let root = root.map(drop);
    let place = Path::new(qemu::DIRECTORY);
    let status = or_reported(&options, place, began, root, store::open);
    power::end(status == ExitCode::SUCCESS);
    status
}

/// Does [`run`] without mounts, modules and power-off: on the host and the store that `open`
/// leads to, with QEMU's sockets in `directory`.
pub fn run_on(
    options: &InitOptions,
    directory: &Path,
    open: impl FnOnce() -> Result<(Xen, Store)>,
) -> ExitCode {
    log::to_console(options.verbose);
    info!("stubdm-run {} starts", env!("CARGO_PKG_VERSION"));
    or_reported(options, directory, Instant::now(), Ok(()), open)
}

/// Reports a failure in the log and, if it is reachable, in the store. The failure may be a `root`
/// that could not be mounted.
fn or_reported(
    options: &InitOptions,
    directory: &Path,
    began: Instant,
    root: Result<()>,
    open: impl FnOnce() -> Result<(Xen, Store)>,
) -> ExitCode {
    let mut report = Report::default();
    stubdomain(options, directory, began, root, open, &mut report).unwrap_or_else(|failure| {
        report.failed(&failure.to_string());
        ExitCode::from(failure.status())
    })
}

/// Everything after the console. Returns when QEMU has ended, with the reason.
fn stubdomain(
    options: &InitOptions,
    directory: &Path,
    began: Instant,
    root: Result<()>,
    open: impl FnOnce() -> Result<(Xen, Store)>,
    report: &mut Report,
) -> Result<ExitCode> {
    let signals = Signals::take(watch::SIGNALS).context("taking over signals")?;
    let modules = power::is_init().then(modules::Plan::make);
    if let Some(modules) = &modules {
        modules.load(options.privcmd_restricted);
        mounts::xenfs();
        memory::promise_freely();
        tty::prepare();
    }
    let (xen, store) = open()?;
    report.reaches(&store);
    let guest = Guest::read(&store)?;
    report.concerns(guest.domid);
    root?;
    info!(
        "device model of domain {}, whose VM is {}",
        guest.domid, guest.vm
    );
    let in_here = |path: &str| Path::new(path).exists();
    let (mut argv, findings) = guest
        .argv(&store)?
        .rewrite(&in_here)
        .map_err(|finding| Failure::new(finding.line().unwrap_or_default()))?;
    for line in findings.iter().filter_map(Finding::line) {
        warn!("{}", one_line(&line));
    }
    let mut ports = Vec::new();
    let mut screen = None;
    if let Some(modules) = modules {
        screen = Devices::find(&store, || modules.load_screen());
        if !argv.taps().is_empty() {
            report.phase("waiting for network cards");
            net::be_silent();
            modules.load_network();
            ports = net::join(&argv.taps(), options.patience())?;
        }
        pci::attend(&store, move || modules.load_pci())?;
    }
    report.phase("waiting for disks");
    wait_for_disks(&argv.disks(), options.patience())?;
    report.phase("starting QEMU");
    let drives =
        cdrom::Drives::listen(argv.cd_drives()).context("the kernel's words of new disks")?;
    let saver = power::is_init().then(outgoing).flatten();
    let (pipe, outcome) = incoming::prepare(&mut argv, &store)?
        .map(|incoming| (incoming.pipe, incoming.outcome))
        .unzip();
    let mut inherited = Vec::from_iter(pipe);
    for port in ports {
        argv.set_tap(&port.netdev, port.end.as_raw_fd());
        inherited.push(port.end);
    }
    // Open until this process ends: so they are raw when QEMU opens them, and stay so.
    let _serial_ports = power::is_init().then(|| serial_ports(&argv.serial_ttys()));
    let confinement = power::is_init().then(|| confine::prepare(&argv, options));
    let calls = confinement
        .filter(|confinement| confinement.user.is_some())
        .map(|_| pci::broker::start(&xen, &store, guest.domid))
        .transpose()?;
    let mut started = qemu::start_in(
        directory,
        &options.qemu,
        argv,
        inherited,
        screen.is_some(),
        confinement,
        calls,
    )?;
    started.incoming = outcome;
    let env = watch::Environment {
        xen: &xen,
        store: &store,
        guest: &guest,
        report,
        signals: &signals,
        began,
        options,
    };
    let screen = screen.zip(started.screen.take());
    let screen = screen.map(|(devices, socket)| Screen::new(devices, socket));
    watch::over(&env, started, drives, saver, screen)
}

/// Returns the saver of the guest; without it the guest runs and cannot be saved.
fn outgoing() -> Option<Saver> {
    let console = tty::open_raw(SAVE_CONSOLE, tty::Direction::Out)
        .and_then(|console| Saver::new(console.into()).context("the file to save to"));
    console
        .inspect_err(|failure| warn!("the guest cannot be saved: {failure}"))
        .ok()
}

/// The ttys of the guest's serial ports, set raw.
fn serial_ports(ttys: &[String]) -> Vec<File> {
    let open = |path: &String| {
        tty::open_raw(path, tty::Direction::Both)
            .inspect_err(|failure| warn!("a serial port: {failure}"))
            .ok()
    };
    ttys.iter().filter_map(open).collect()
}

/// Waits until the block devices QEMU will open exist.
fn wait_for_disks(disks: &[String], patience: Patience) -> Result<()> {
    disks
        .iter()
        .try_for_each(|disk| wait_for(disk, patience, || Path::new(disk).exists().then_some(())))
}

/// Waits until a device is found.
fn wait_for<T>(what: &str, patience: Patience, find: impl Fn() -> Option<T>) -> Result<T> {
    let mut said = false;
    loop {
        if let Some(found) = find() {
            return Ok(found);
        }
        if patience.end <= Instant::now() {
            return Err(Failure::new(format_args!(
                "{what} did not appear within {} s: its backend on the host is not connected; a slow one needs stubdm.device-limit=SECONDS",
                patience.limit.as_secs()
            )));
        }
        if !said {
            info!("waiting for {what}");
            said = true;
        }
        // There is no event for a node in devtmpfs that this program could wait for.
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_command_line_counts() {
        let line = "console=hvc0 stubdm.qemu=/opt/qemu rdinit=/init stubdm.verbose stubdm.qemu-root \
                    stubdm.hang-after=3 stubdm.keep-guest stubdm.privcmd-restricted \
                    stubdm.allow-unconfined stubdm.device-limit=70 stubdm.launch-limit=90\n";
        let options = InitOptions::default().with_kernel_command_line(line);
        assert_eq!(options.qemu, PathBuf::from("/opt/qemu"));
        assert!(options.verbose && options.qemu_root);
        assert!(options.keep_guest && options.privcmd_restricted && options.allow_unconfined);
        assert_eq!(options.hang_limit(), Duration::from_secs(3));
        assert_eq!(options.patience().limit, Duration::from_secs(70));
        assert_eq!(options.launch_limit(), Duration::from_secs(90));
        let options = InitOptions::default()
            .with_kernel_command_line("stubdm.device-limit=x stubdm.launch-limit=x");
        assert_eq!(options.patience().limit, DEVICE_LIMIT);
        assert_eq!(options.launch_limit(), LAUNCH_LIMIT);
        let options = InitOptions::default().with_kernel_command_line("quiet");
        assert_eq!(options.qemu, PathBuf::from(qemu::DEFAULT));
        assert!(
            !options.qemu_root && !options.allow_unconfined,
            "confined unless asked"
        );
    }

    #[test]
    fn a_disk_that_does_not_come_is_named() {
        let there = "/dev/null".to_owned();
        let now = Patience::of(Duration::ZERO);
        assert!(wait_for_disks(std::slice::from_ref(&there), now).is_ok());
        let missing = "/dev/xvdzz".to_owned();
        let error = wait_for_disks(&[there, missing], now).unwrap_err();
        assert!(error.to_string().contains("/dev/xvdzz"), "{error}");
    }
}

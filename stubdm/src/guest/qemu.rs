//! Starting QEMU: stopped, with two monitors, its output on a pipe.
//!
//! * The monitor of our own is a socket we listen on and QEMU connects to: there is nothing to
//!   wait for or to retry, and it stays connected for QEMU's whole life.
//! * The monitor for the toolstack is a socket QEMU listens on; [`crate::guest::server`] connects
//!   to it again for every client. It exists before our own monitor sends its greeting.

use std::fs::DirBuilder;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Sender;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::unistd::Pid;
use stubdm_image::firmware::card_rom;
use tracing::{debug, info, warn};

use crate::guest::confine::Confinement;
use crate::guest::notify::{self, Listener};
use crate::guest::pci::broker;
use crate::libxl::dm_argv::DmArgv;
use crate::rt::error::{Context, Failure, Result};
use crate::rt::outcome::Outcome;
use crate::rt::stream::Stream;

/// Debian's path of the QEMU for Xen.
pub const DEFAULT: &str = "/usr/libexec/xen-qemu-system-i386";

/// The folder of our sockets in a stubdomain.
pub const DIRECTORY: &str = "/run/stubdm";

/// QEMU's folders of firmware.
pub const FIRMWARE: &[&str] = &[
    "/usr/share/qemu",
    "/usr/share/seabios",
    "/usr/lib/ipxe/qemu",
    "/usr/share/qemu-firmware",
];

/// A QEMU that was started.
#[derive(Debug)]
pub struct StartedQemu {
    /// Its process.
    pub pid: Pid,
    /// Its stdout and stderr, non-blocking.
    pub output: Stream,
    /// The socket to which it connects our own monitor.
    pub monitor: UnixListener,
    /// The socket at which it listens for the toolstack's.
    pub toolstack: PathBuf,
    /// The socket at which its VNC server listens, if there is a screen.
    pub screen: Option<PathBuf>,
    /// The outcome of the state it loads, if there is one.
    pub incoming: Option<Outcome>,
}

/// Starts QEMU with the toolstack's arguments and our own before them, our sockets in `directory`,
/// under `confinement`, if there is one; `calls` gets the listener for the calls that [`broker`]
/// answers. With `has_screen` it serves the guest's screen there. It gets the descriptors in
/// `inherited` under their own numbers.
///
/// # Errors
/// The sockets or the process could not be made, or QEMU could not be confined.
pub fn start_in(
    directory: &Path,
    program: &Path,
    argv: DmArgv,
    inherited: Vec<OwnedFd>,
    has_screen: bool,
    confinement: Option<Confinement>,
    calls: Option<Sender<Listener>>,
) -> Result<StartedQemu> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .context(format_args!("making {}", directory.display()))?;
    let own = directory.join("own");
    let toolstack = directory.join("toolstack");
    let screen = directory.join("screen");
    for socket in [&own, &toolstack, &screen] {
        match std::fs::remove_file(socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).context(format_args!("removing {}", socket.display()));
            }
            _ => {}
        }
    }
    let monitor = UnixListener::bind(&own).context(format_args!("{}", own.display()))?;
    monitor
        .set_nonblocking(true)
        .context("our own monitor's socket")?;
    let (output, words) = nix::unistd::pipe2(OFlag::O_CLOEXEC).context("a pipe")?;
    let output = Stream::socket(output).context("QEMU's output")?;
    let mut command = Command::new(program);
    let there = |path: &str| Path::new(path).is_dir();
    let roms = missing_roms(&argv, &|path| Path::new(path).exists());
    if !roms.is_empty() {
        warn!("the image lacks boot ROMs, and no guest boots by these cards: {roms:?}");
    }
    command
        .args(monitors(&own, &toolstack))
        .args(firmware_folders(&there))
        .args(roms);
    let screen = has_screen.then_some(screen);
    if let Some(screen) = &screen {
        command.args(vnc(screen));
    }
    command.args(argv.into_os());
    command
        .stdin(Stdio::null())
        .stdout(words.try_clone().context("QEMU's output")?)
        .stderr(words);
    if let Some(user) = confinement.and_then(|confinement| confinement.user) {
        // It connects to one socket and makes the other.
        user.owns(directory);
        user.owns(&own);
        // The standard library takes the other groups away as well.
        command.uid(user.id()).gid(user.id());
    }
    debug!("{command:?}");
    // From here to the spawn nothing else may be started: the descriptors are open to any child.
    for fd in &inherited {
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).context("a descriptor for QEMU")?;
    }
    let child = spawn(&mut command, confinement, calls);
    drop(inherited);
    drop(command);
    let child = child.context(format_args!("starting {}", program.display()))?;
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or_default());
    info!("QEMU is process {pid}");
    Ok(StartedQemu {
        pid,
        output,
        monitor,
        toolstack,
        screen,
        incoming: None,
    })
}

/// Starts the program in a thread of its own, which is confined for good: this one has work left
/// that QEMU has not.
fn spawn(
    command: &mut Command,
    confinement: Option<Confinement>,
    calls: Option<Sender<Listener>>,
) -> Result<Child> {
    let Some(confinement) = confinement else {
        return command.spawn().map_err(Failure::new);
    };
    std::thread::scope(|scope| {
        let starter = std::thread::Builder::new().name("starter".into());
        let starter = starter
            .spawn_scoped(scope, || {
                confinement.enter()?;
                if let Some(calls) = calls {
                    // Behind it, this thread waits for the broker at each file that it opens.
                    match notify::install(&broker::filter()) {
                        Ok(listener) => calls.send(listener).context("the PCI broker")?,
                        Err(error) => warn!("the guest can have no PCI devices: {error}"),
                    }
                }
                command.spawn().map_err(Failure::new)
            })
            .context("a thread")?;
        let started = starter.join();
        started.unwrap_or_else(|_| Err(Failure::new("the thread panicked")))
    })
}

/// `-S` and the two monitors.
fn monitors(own: &Path, toolstack: &Path) -> Vec<String> {
    let word = |text: &str| text.to_owned();
    vec![
        word("-S"),
        word("-chardev"),
        format!("socket,id=stubdm-own,path={},server=off", comma(own)),
        word("-mon"),
        word("chardev=stubdm-own,mode=control"),
        word("-chardev"),
        format!(
            "socket,id=stubdm-toolstack,path={},server=on,wait=off",
            comma(toolstack)
        ),
        word("-mon"),
        word("chardev=stubdm-toolstack,mode=control"),
    ]
}

/// The guest's screen at a socket. QEMU leaves the keys' lock states to the guest: it would guess
/// them from symbols, which it is not sent.
fn vnc(socket: &Path) -> [String; 2] {
    let server = format!("unix:{},lock-key-sync=off", comma(socket));
    ["-vnc".to_owned(), server]
}

/// QEMU's spelling of a comma in a value is two of them.
fn comma(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// Returns arguments that name the firmware's folders: which of them are compiled into QEMU differs
/// between distributions, and so does where `image build` found what is in the first.
fn firmware_folders(is_there: &dyn Fn(&str) -> bool) -> Vec<String> {
    let there = FIRMWARE.iter().filter(|dir| is_there(dir));
    there
        .flat_map(|dir| ["-L".to_owned(), (*dir).to_owned()])
        .collect()
}

/// Returns arguments that switch off the boot ROMs which are not there: a missing ROM keeps QEMU
/// from starting, one switched off does not.
pub fn missing_roms(argv: &DmArgv, exists: &dyn Fn(&str) -> bool) -> Vec<String> {
    let there = |rom: &str| FIRMWARE.iter().any(|dir| exists(&format!("{dir}/{rom}")));
    let mut classes: Vec<&str> = Vec::new();
    for model in argv.nic_models() {
        match card_rom(&model) {
            Some((class, rom)) if !there(rom) && !classes.contains(&class) => classes.push(class),
            _ => {}
        }
    }
    classes
        .iter()
        .flat_map(|class| ["-global".to_owned(), format!("{class}.romfile=")])
        .collect()
}

//! The guest's screen: the stubdomain's own frame buffer and input devices, and the process that
//! joins them to QEMU ([`crate::screen`]).
//!
//! With `vnc=1`, xl's default, libxl gives the stubdomain a PV frame buffer, keyboard and pointer,
//! which a process in dom0 shows to VNC viewers. A guest without one has no process here, and QEMU
//! no VNC server.
//!
//! The process gets descriptors and no names: QEMU's connection, `/dev/fb0`, the input devices. The
//! init keeps the devices open, so that no key reaches the kernel's console while no process runs.
//! A process that ends is started again, after pauses that double up to a minute.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::unistd::Pid;
use stubdm_qmp::text::one_line;
use tracing::{info, warn};
use xen_store::Store;

use crate::guest::qemu::FIRMWARE;
use crate::guest::supervisor::Exit;
use crate::rt::backoff::Backoff;
use crate::rt::error::{Context, Failure, Result};
use crate::rt::poll::Interest;
use crate::rt::process;
use crate::rt::stream::{self, Read, Stream};

/// The node of the screen that libxl gives to a stubdomain, among its own.
const NODE: &str = "device/vfb/0";

/// The frame buffer, its name and its size.
const FRAME: &str = "/dev/fb0";
const FRAME_NAME: &str = "/sys/class/graphics/fb0/name";
const FRAME_SIZE: &str = "/sys/class/graphics/fb0/virtual_size";

/// The keyboard layout that QEMU's VNC server reads, although it is sent scancodes.
const KEYMAP: &str = "keymaps/en-us";

/// The kernel's consoles, of which one draws on the frame buffer.
const CONSOLES: &str = "/sys/class/vtconsole";

/// The input devices, and the names of Xen's.
const INPUTS: &str = "/sys/class/input";
const INPUT_NAMES: &[&str] = &["Xen Virtual Keyboard", "Xen Virtual Pointer"];

/// The command by which this program is the process.
const COMMAND: &str = "draw-screen";
/// The process's announcement that it is confined.
pub const CONFINED: &str = "confined";

/// Bytes of the process's standard error that are kept; it is closed after as many.
const STDERR_MAX: usize = 1024;
/// The pauses before the process is started again.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(60));
/// Uptime after which the back-off resets.
const SETTLED: Duration = Duration::from_secs(60);

/// The stubdomain's own screen, keyboard and pointer.
#[derive(Debug)]
pub struct Devices {
    frame: OwnedFd,
    width: u16,
    height: u16,
    inputs: Vec<OwnedFd>,
}

impl Devices {
    /// Opens them, if the toolstack gave this domain a screen; `load` loads the drivers. Without
    /// them the guest runs, and its screen stays black.
    pub fn find(store: &Store, load: impl FnOnce()) -> Option<Self> {
        if !store.exists(NODE).unwrap_or(false) {
            return None;
        }
        load();
        let devices = Self::open();
        if let Err(failure) = &devices {
            warn!("the guest's screen stays black: {failure}");
        }
        devices.ok()
    }

    fn open() -> Result<Self> {
        if !FIRMWARE
            .iter()
            .any(|dir| Path::new(dir).join(KEYMAP).exists())
        {
            return Err(Failure::new(format_args!(
                "the image lacks QEMU's {KEYMAP}, without which its VNC server ends"
            )));
        }
        let name = fs::read_to_string(FRAME_NAME).context("no frame buffer (xen-fbfront)")?;
        if name.trim() != "xen" {
            return Err(Failure::new(format_args!(
                "{FRAME} is {}, not Xen's",
                one_line(&name)
            )));
        }
        let size = fs::read_to_string(FRAME_SIZE).context(FRAME_SIZE)?;
        let (width, height) = size_of(&size)
            .ok_or_else(|| Failure::new(format_args!("{FRAME_SIZE}: {}", one_line(&size))))?;
        free();
        let frame = open(Path::new(FRAME))?.into();
        let inputs = inputs()?;
        if inputs.is_empty() {
            warn!("the guest's screen has no keyboard and no pointer (xen-kbdfront, evdev)");
        }
        info!(
            "the guest's screen: up to {width}x{height}, {} input devices",
            inputs.len()
        );
        Ok(Self {
            frame,
            width,
            height,
            inputs,
        })
    }
}

fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .context(path.display())
}

/// Reads `800,600`.
fn size_of(text: &str) -> Option<(u16, u16)> {
    let (width, height) = text.trim().split_once(',')?;
    let both = (width.parse().ok()?, height.parse().ok()?);
    (both.0 > 0 && both.1 > 0).then_some(both)
}

/// Takes the frame buffer away from the kernel's own console, whose cursor would blink on it.
fn free() {
    let consoles = fs::read_dir(CONSOLES).into_iter().flatten().flatten();
    for console in consoles.map(|entry| entry.path()) {
        let name = fs::read_to_string(console.join("name")).unwrap_or_default();
        if name.contains("frame buffer") {
            if let Err(error) = fs::write(console.join("bind"), "0") {
                warn!("the kernel's console stays on the guest's screen: {error}");
            }
        }
    }
}

/// Opens Xen's input devices.
fn inputs() -> Result<Vec<OwnedFd>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(INPUTS).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let device = fs::read_to_string(entry.path().join("device/name")).unwrap_or_default();
        if name.starts_with("event") && INPUT_NAMES.contains(&device.trim()) {
            all.push(open(&Path::new("/dev/input").join(name))?.into());
        }
    }
    Ok(all)
}

/// A process that draws.
#[derive(Debug)]
struct Drawer {
    pid: Pid,
    /// Its standard error, until it ended or wrote more than is kept.
    stderr: Option<Stream>,
    /// The bytes that it wrote.
    messages: Vec<u8>,
    since: Instant,
    confined: bool,
}

impl Drawer {
    /// Reads its standard error, and logs once that it is confined.
    fn read_stderr(&mut self) {
        let Some(stderr) = &mut self.stderr else {
            return;
        };
        let mut buffer = [0; 256];
        let ended = loop {
            match stderr.read(&mut buffer) {
                Ok(Read::Bytes(count)) => {
                    let room = STDERR_MAX.saturating_sub(self.messages.len());
                    self.messages.extend(buffer.iter().take(count.min(room)));
                    if room <= count {
                        break true;
                    }
                }
                Ok(Read::Nothing) => break false,
                Ok(Read::End) | Err(_) => break true,
            }
        };
        if ended {
            self.stderr = None;
        }
        if !self.confined && self.messages.starts_with(CONFINED.as_bytes()) {
            self.confined = true;
            info!(
                "the screen's process {}: {}",
                self.pid,
                process::status(self.pid)
            );
        }
    }

    /// Returns its messages in one line, without the announcement.
    fn last_message(&self) -> String {
        let all = String::from_utf8_lossy(&self.messages);
        let rest = all.strip_prefix(CONFINED).unwrap_or(&all);
        one_line(rest.trim())
    }
}

/// The guest's screen while QEMU runs.
#[derive(Debug)]
pub struct Screen {
    devices: Devices,
    socket: PathBuf,
    drawer: Option<Drawer>,
    pauses: Backoff,
    start_at: Option<Instant>,
}

impl Screen {
    /// Joins `devices` to the VNC server at `socket`, once started.
    pub fn new(devices: Devices, socket: PathBuf) -> Self {
        Self {
            devices,
            socket,
            drawer: None,
            pauses: PAUSES,
            start_at: None,
        }
    }

    /// Starts the process with the next turn: QEMU listens.
    pub fn start(&mut self, now: Instant) {
        self.start_at = Some(now);
    }

    /// Returns the time of the next turn, if one is due without an event.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.start_at
    }

    /// Returns the events that need a turn.
    pub fn interests(&self) -> Vec<Interest<'_>> {
        let stderr = self
            .drawer
            .as_ref()
            .and_then(|drawer| drawer.stderr.as_ref());
        stderr
            .map(|stderr| stderr.interest(true, false))
            .unwrap_or_default()
    }

    /// Starts the process when it is due, and reads its standard error.
    pub fn turn(&mut self, now: Instant) {
        if self.start_at.is_some_and(|at| at <= now) {
            self.start_at = None;
            match self.start_worker(now) {
                Ok(drawer) => self.drawer = Some(drawer),
                Err(failure) => self.again(&format!("its process: {failure}"), now),
            }
        }
        if let Some(drawer) = &mut self.drawer {
            drawer.read_stderr();
        }
    }

    /// Handles the end of a process; returns whether it was the screen's.
    pub fn handle_exit(&mut self, pid: Pid, exit: &Exit, now: Instant) -> bool {
        let Some(mut drawer) = self.drawer.take_if(|drawer| drawer.pid == pid) else {
            return false;
        };
        drawer.read_stderr();
        if now.saturating_duration_since(drawer.since) >= SETTLED {
            self.pauses.reset();
        }
        self.again(
            &format!("its process {exit}: {}", drawer.last_message()),
            now,
        );
        true
    }

    fn again(&mut self, why: &str, now: Instant) {
        let pause = self.pauses.pause();
        warn!(
            "the guest's screen: {why}; another in {} s",
            pause.as_secs_f32()
        );
        self.start_at = Some(now + pause);
    }

    fn start_worker(&self, now: Instant) -> Result<Drawer> {
        let socket = stream::connect(&self.socket).context(self.socket.display())?;
        let inherited = |fd: &OwnedFd| inheritable(fd).context("a descriptor for it");
        let socket = inherited(&socket)?;
        let frame = inherited(&self.devices.frame)?;
        let mut inputs = Vec::new();
        for input in &self.devices.inputs {
            inputs.push(inherited(input)?);
        }
        let (stderr, end) = nix::unistd::pipe2(OFlag::O_CLOEXEC).context("a pipe")?;
        // The file this program was started from, whatever root directory is in place by now.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("stubdm-run").arg(COMMAND);
        command.arg(format!("--socket={}", socket.as_raw_fd()));
        command.arg(format!("--frame={}", frame.as_raw_fd()));
        command.arg(format!("--width={}", self.devices.width));
        command.arg(format!("--height={}", self.devices.height));
        for input in &inputs {
            command.arg(format!("--input={}", input.as_raw_fd()));
        }
        command
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(end);
        let child = command.spawn().context("starting it")?;
        Ok(Drawer {
            pid: Pid::from_raw(i32::try_from(child.id()).unwrap_or_default()),
            stderr: Some(Stream::socket(stderr).context("a pipe")?),
            messages: Vec::new(),
            since: now,
            confined: false,
        })
    }
}

/// A duplicate that a child process gets.
fn inheritable(fd: &OwnedFd) -> io::Result<OwnedFd> {
    let copy = fd.try_clone()?;
    fcntl(copy.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn a_size_is_two_numbers() {
        assert_eq!(size_of("800,600\n"), Some((800, 600)));
        for other in ["", "800", "0,600", "800,0", "800,70000", "800,600,1"] {
            assert_eq!(size_of(other), None, "{other}");
        }
    }

    /// A process's record, and the end of the pipe that is its standard error.
    fn drawer() -> (Drawer, File) {
        let (stderr, end) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        let drawer = Drawer {
            pid: nix::unistd::getpid(),
            stderr: Some(Stream::socket(stderr).unwrap()),
            messages: Vec::new(),
            since: Instant::now(),
            confined: false,
        };
        (drawer, File::from(end))
    }

    #[test]
    fn the_announcement_is_no_part_of_the_last_message() {
        let (mut drawer, mut end) = drawer();
        end.write_all(&CONFINED.as_bytes()[..4]).unwrap();
        drawer.read_stderr();
        assert!(!drawer.confined);
        end.write_all(&CONFINED.as_bytes()[4..]).unwrap();
        drawer.read_stderr();
        assert!(drawer.confined && drawer.last_message().is_empty());
        end.write_all(b"\nQEMU's screen:\n confined\n").unwrap();
        drop(end);
        drawer.read_stderr();
        assert_eq!(drawer.last_message(), "QEMU's screen: confined");
        assert!(drawer.stderr.is_none(), "an end is an end");
    }

    #[test]
    fn a_process_that_writes_without_end_is_read_up_to_the_limit() {
        for more in [&b"y"[..], b"yz"] {
            let (mut drawer, mut end) = drawer();
            end.write_all(&[b'x'; STDERR_MAX - 1]).unwrap();
            drawer.read_stderr();
            assert!(drawer.stderr.is_some());
            assert_eq!(drawer.messages.len(), STDERR_MAX - 1);
            end.write_all(more).unwrap();
            drawer.read_stderr();
            assert_eq!(drawer.messages.len(), STDERR_MAX);
            assert_eq!(drawer.messages.last(), Some(&b'y'));
            assert!(drawer.stderr.is_none(), "{more:?}");
        }
    }

    #[test]
    fn a_screen_that_fails_is_started_again_after_pauses_that_double() {
        let null = || OwnedFd::from(File::open("/dev/null").unwrap());
        let devices = Devices {
            frame: null(),
            width: 800,
            height: 600,
            inputs: vec![null()],
        };
        let mut screen = Screen::new(devices, PathBuf::from("/nonexistent/vnc"));
        let mut now = Instant::now();
        assert_eq!(screen.poll_timeout(), None, "it is not started by itself");
        screen.start(now);
        let mut pauses = Vec::new();
        for _ in 0..10 {
            screen.turn(now);
            let at = screen.poll_timeout().unwrap();
            // A turn before that time starts nothing.
            screen.turn(at - Duration::from_millis(1));
            assert_eq!(screen.poll_timeout(), Some(at));
            pauses.push((at - now).as_secs_f32());
            now = at;
        }
        assert_eq!(
            pauses,
            [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
        );
        let other = Pid::from_raw(1);
        assert!(!screen.handle_exit(other, &Exit::Status(1), now));
    }
}

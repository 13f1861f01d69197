//! `stubdm-run screen DOMID`: the guest's screen in the terminal, and keys for it.

mod draw;
mod typed;

use std::io::{self, ErrorKind, IsTerminal};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use clap::Args;
use nix::sys::signal::Signal;
use stubdm_screen::Size;
use stubdm_screen::keys::scancode;
use xen_sys::DomId;

use crate::libxl::store::{StoreOptions, domid};
use crate::libxl::vnc::VncServer;
use crate::rt::error::{Context, Failure, Result};
use crate::rt::poll::{earlier, readable, sleep};
use crate::rt::signals::Signals;
use crate::tools::qmp::seconds;
use crate::tools::terminal::{Keys, Terminal, pressed, print};
use crate::viewer::Viewer;

use draw::Canvas;
use typed::{Press, Typed};

/// The time between two frames, at least.
const PACE: Duration = Duration::from_millis(50);
/// The time after which a part of a key's bytes is taken for keys of its own.
const CUT: Duration = Duration::from_millis(50);

/// The command line.
#[derive(Args, Clone, Debug)]
pub struct ScreenOptions {
    /// How long to wait for the first picture
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub timeout: Duration,
    #[command(flatten)]
    store: StoreOptions,
    /// The guest, or its stubdomain
    #[arg(value_name = "DOMID", value_parser = domid)]
    pub domid: DomId,
}

/// Draws the screen until Ctrl-] is pressed, a signal arrives, or the screen disappears.
///
/// # Errors
/// No terminal, no such guest, no screen, no picture in time, or the VNC server closes the
/// connection: exit status 1.
pub fn run(options: &ScreenOptions) -> Result<()> {
    if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
        return Err(Failure::new(
            "the screen is drawn on a terminal, and this is none: see stubdm-run screenshot",
        ));
    }
    let store = options.store.open()?;
    let mut viewer = VncServer::picture_of(&store, options.domid, options.timeout)?;
    let ends = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];
    let signals = Signals::take(&[&ends[..], &[Signal::SIGWINCH]].concat());
    let signals = signals.context("taking over signals")?;
    let _terminal = Terminal::take(Keys::Raw);
    show(&mut viewer, &signals, options.domid)
}

fn show(viewer: &mut Viewer, signals: &Signals, domain: DomId) -> Result<()> {
    let mut canvas = Canvas::default();
    let mut typed = Typed::default();
    let mut buffer = [0; 256];
    // The updates that are drawn; none after the terminal's size changed.
    let mut drawn = None;
    let mut next_frame = Instant::now();
    let mut cut = None;
    loop {
        let now = Instant::now();
        if drawn != Some(viewer.updates()) && now >= next_frame {
            let Size { width, height } = viewer.picture().size;
            let (columns, rows) = terminal_size();
            let line = format!("domain {domain}, {width}x{height}: Ctrl-] leaves");
            let frame = canvas.draw(viewer.picture(), (columns, rows), &line);
            if let Err(error) = print(&frame) {
                return match error.kind() {
                    // Nobody looks any more.
                    ErrorKind::BrokenPipe => Ok(()),
                    _ => Err(error).context("printing"),
                };
            }
            drawn = Some(viewer.updates());
            next_frame = now + PACE;
        }
        let stdin = io::stdin();
        let takes_keys = !viewer.client.is_full();
        let mut interests = viewer.interests();
        interests.push(readable(signals.as_fd()));
        if takes_keys {
            interests.push(readable(stdin.as_fd()));
        }
        let frame = (drawn != Some(viewer.updates())).then_some(next_frame);
        sleep(&interests, earlier(frame, cut)).context("waiting")?;
        viewer.exchange()?;
        match signals.next().context("reading signals")? {
            Some(Signal::SIGWINCH) => drawn = None,
            Some(_) => return Ok(()),
            None => {}
        }
        if takes_keys {
            let Some(bytes) = pressed(&mut buffer) else {
                return Ok(());
            };
            typed.handle_bytes(bytes);
            if typed.is_cut() && !bytes.is_empty() {
                cut = Some(Instant::now() + CUT);
            }
        }
        if cut.is_some_and(|cut| Instant::now() >= cut) {
            typed.handle_timeout();
        }
        if !typed.is_cut() {
            cut = None;
        }
        while let Some(press) = typed.poll_press() {
            match press {
                Press::Leave => return Ok(()),
                Press::Keys(keys) => press_and_release(viewer, &keys),
            }
        }
        viewer.exchange()?;
    }
}

/// Presses keys, one after the other, and releases them in the other order.
fn press_and_release(viewer: &mut Viewer, keys: &[u16]) {
    let codes = keys.iter().filter_map(|key| scancode(*key));
    for code in codes.clone() {
        viewer.client.key(true, code);
    }
    for code in codes.rev() {
        viewer.client.key(false, code);
    }
}

/// Returns the terminal's columns and rows.
fn terminal_size() -> (u16, u16) {
    match rustix::termios::tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col, size.ws_row),
        _ => (80, 24),
    }
}

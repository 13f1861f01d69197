//! The screen's process in dom0: `stubdm-run serve-screen`, of `consoled`.
//!
//! It is root for as long as it takes to map the frontend's pages and to bind its event channels.
//! For that it reads the shared page's numbers, which are judged at once
//! ([`stubdm_screen::framebuffer`]), and the directory's frame numbers, which the hypervisor judges.
//! Then it enters the sandbox, and only then looks at an event or a viewer.

use std::fs::File;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::str::FromStr;

use clap::Args;
use stubdm_screen::framebuffer::{FrontPage, Pixels, Protocol};
use stubdm_screen::keyboard::Keyboard;
use tracing::warn;
use xen_console::Doorbell;
use xen_gnttab::{PageAccess, foreign};
use xen_sys::abi::evtchn::IOCTL_EVTCHN_NOTIFY;
use xen_sys::privcmd::Privcmd;
use xen_sys::{DomId, Port, Xen};

use super::ipc::Report;
use super::worker::{PACE, Screen, Worker};
use crate::libxl::store::domid;
use crate::proxy::ipc::IpcSocket;
use crate::proxy::sandbox::enter::{self, Allowed};
use crate::rt::error::{Context, Failure, Result};
use crate::rt::event_loop::{self, HangUp};
use crate::rt::{fd, log, text};

/// The command by which this program is the process.
pub const COMMAND: &str = "serve-screen";

/// The first of the users that such processes run as, each its stubdomain's: behind those of the
/// proxy's workers.
const USERS: u32 = 0x7801_0000;
/// Bytes of memory of its own: a picture of 32 MiB while it becomes one of another size, and what
/// eight viewers take.
const MEMORY: u64 = 96 << 20;

/// The nodes that a frontend published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Front {
    /// The frame number of its shared page.
    pub page: u64,
    /// Its event channel.
    pub port: u32,
    /// It receives the pointer's positions.
    pub absolute: bool,
    /// Its node `protocol`.
    pub protocol: Option<String>,
}

impl std::fmt::Display for Front {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let absolute = u8::from(self.absolute);
        let protocol = self.protocol.as_deref().unwrap_or_default();
        write!(f, "{},{},{absolute},{protocol}", self.page, self.port)
    }
}

impl FromStr for Front {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let read = || {
            let mut words = text.splitn(4, ',');
            Some(Self {
                page: words.next()?.parse().ok()?,
                port: words.next()?.parse().ok()?,
                absolute: words.next()? == "1",
                protocol: Some(words.next()?.to_owned()).filter(|text| !text.is_empty()),
            })
        };
        read().ok_or_else(|| "not PAGE,PORT,ABSOLUTE,PROTOCOL".to_owned())
    }
}

/// The place of a frontend's picture in its memory, which its page does not have once that changed:
/// width, height, stride and offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode(pub [u32; 4]);

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [width, height, stride, offset] = self.0;
        write!(f, "{width},{height},{stride},{offset}")
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let numbers: std::result::Result<Vec<u32>, _> = text.split(',').map(str::parse).collect();
        let numbers = numbers.ok().and_then(|numbers| numbers.try_into().ok());
        let numbers = numbers.ok_or_else(|| "not WIDTH,HEIGHT,STRIDE,OFFSET".to_owned());
        numbers.map(Self)
    }
}

/// The command line.
#[derive(Args, Clone, Debug)]
pub struct Given {
    /// The socket to `consoled`
    #[arg(long, value_name = "FD")]
    pub ipc: RawFd,
    /// The socket that viewers connect to
    #[arg(long, value_name = "FD")]
    pub listener: RawFd,
    /// The name that viewers show
    #[arg(long)]
    pub name: String,
    /// Viewers need a password, which `consoled` sends
    #[arg(long)]
    pub password: bool,
    /// The frame buffer's frontend
    #[arg(long, value_name = "FRONT")]
    pub screen: Front,
    /// The picture's place by now, if it is not the first one
    #[arg(long, value_name = "MODE")]
    pub mode: Option<Mode>,
    /// The keyboard's frontend
    #[arg(long, value_name = "FRONT")]
    pub keyboard: Option<Front>,
    /// The stubdomain
    #[arg(value_name = "DOMID", value_parser = domid)]
    pub domain: DomId,
}

/// Maps the frontend's pages, confines this process, and serves until `consoled` ends it.
///
/// # Errors
/// The frontend's pages are not what they should be, or a restriction could not be put up.
pub fn run(given: &Given) -> Result<()> {
    log::to_stderr(false);
    text::find();
    let ipc = fd::duplicate(given.ipc).context("the socket to consoled")?;
    let ipc = IpcSocket::new(ipc);
    // `consoled` waits for the end of this process, so the reason is sent before.
    let result = serve(given, &ipc);
    if let Err(failure) = &result {
        log::complain(failure);
        std::process::exit(1);
    }
    result
}

fn serve(given: &Given, ipc: &IpcSocket) -> Result<()> {
    let listener = fd::duplicate(given.listener).context("the listening socket")?;
    let random = File::open("/dev/urandom").context("/dev/urandom")?;
    let xen = Xen::open().context("Xen")?;
    let screen = map_screen(&xen, given.domain, &given.screen, given.mode).context("vfb")?;
    let keyboard = given.keyboard.as_ref();
    let keyboard = keyboard.map(|front| map_keyboard(&xen, given.domain, front));
    let keyboard = keyboard.transpose().context("vkbd")?;
    drop(xen);
    let mut keep: Vec<BorrowedFd<'_>> = vec![
        ipc.as_fd(),
        listener.as_fd(),
        random.as_fd(),
        screen.bell.as_fd(),
    ];
    keep.extend(keyboard.iter().map(|(_, bell)| bell.as_fd()));
    let user = USERS + u32::from(given.domain.as_u16());
    // The one request notifies a frontend.
    let allowed = Allowed {
        output: 0,
        memory: MEMORY,
        requests: &[IOCTL_EVTCHN_NOTIFY],
        calls: &[],
    };
    enter::enter_with(&keep, user, allowed)?;
    ipc.send(&Report::Ready.encode()).context("consoled")?;
    let listener = TcpListener::from(listener);
    let what = (&*given.name, given.password);
    let mut worker = Worker::new(ipc, screen, keyboard, listener, random, what);
    event_loop::run(&mut worker, &mut [&mut HangUp(ipc.as_fd())]).context("the screen")?;
    Ok(())
}

fn map_screen(xen: &Xen, domain: DomId, front: &Front, mode: Option<Mode>) -> Result<Screen> {
    let protocol = Protocol::from_node(front.protocol.as_deref().map(str::as_bytes));
    let protocol = protocol.ok_or_else(|| Failure::new("a protocol that is not known"))?;
    let privcmd = Privcmd::open(xen).context("privcmd")?;
    let memory = privcmd.guest(domain);
    let page = foreign::map(memory, &[front.page], PageAccess::ReadWrite);
    let page = page.context("the shared page")?;
    let mut page = FrontPage::attach(page, protocol).context("the shared page")?;
    if let Some(Mode(numbers)) = mode {
        if let Err(error) = page.resize(numbers) {
            warn!("the picture of before: {error}");
        }
    }
    let directory = foreign::map(memory, &page.directory, PageAccess::ReadOnly);
    let directory = directory.context("the page directory")?;
    let frames = page.frames(&directory).context("the page directory")?;
    let pixels = foreign::map(memory, &frames, PageAccess::ReadOnly);
    let pixels = pixels.context("the pixels")?;
    let pixels = Pixels::new(pixels, page.geometry).context("the pixels")?;
    let bell =
        Doorbell::bind(xen, domain, Port::new(front.port), PACE).context("the event channel")?;
    // The frontend may have waited for somebody to be bound.
    bell.notify().context("the event channel")?;
    Ok(Screen {
        updates: page.updates,
        pixels,
        bell,
    })
}

fn map_keyboard(xen: &Xen, domain: DomId, front: &Front) -> Result<(Keyboard, Doorbell)> {
    let privcmd = Privcmd::open(xen).context("privcmd")?;
    let page = foreign::map(privcmd.guest(domain), &[front.page], PageAccess::ReadWrite);
    let page = page.context("the shared page")?;
    let keyboard = Keyboard::attach(page, front.absolute).context("the shared page")?;
    let bell =
        Doorbell::bind(xen, domain, Port::new(front.port), PACE).context("the event channel")?;
    Ok((keyboard, bell))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frontend_is_read_as_it_was_written() {
        for (absolute, protocol) in [(false, None), (true, Some("x86_64-abi, and more"))] {
            let front = Front {
                page: u64::MAX,
                port: 17,
                absolute,
                protocol: protocol.map(str::to_owned),
            };
            assert_eq!(front.to_string().parse(), Ok(front));
        }
        assert!("1,2,0".parse::<Front>().is_err());
        assert!("-1,2,0,".parse::<Front>().is_err());
        let mode = Mode([640, 480, u32::MAX, 0]);
        assert_eq!(mode.to_string().parse(), Ok(mode));
        for wrong in ["", "1,2,3", "1,2,3,4,5", "1,2,3,-4", "1,2,3,4294967296"] {
            assert!(wrong.parse::<Mode>().is_err(), "{wrong}");
        }
    }
}

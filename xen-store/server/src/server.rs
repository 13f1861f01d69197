//! The handle on a running daemon.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use nix::sys::stat::{Mode, fchmod};
use xen_sys::DomId;

use crate::daemon::{Config, ConnId, Daemon, Stats};
use crate::event_loop::EventLoop;
use crate::quota::Quota;
use xen_store::Store;

/// A running store daemon. Dropping it stops its thread, closes all connections and removes the
/// sockets it listens on.
///
/// ```
/// use xen_store_server::{Config, Server};
/// use xen_sys::DomId;
///
/// let server = Server::start(Config::new())?;
/// let dom0 = server.connect(DomId::DOM0)?;
/// dom0.write("/tool/greeting", "hello")?;
///
/// server.add_domain(DomId::new(5));
/// let guest = server.connect(DomId::new(5))?;
/// assert!(guest.read("/tool/greeting").unwrap_err().is_denied());
/// guest.write("data/own", "value")?;
/// assert_eq!(dom0.read_str("/local/domain/5/data/own")?, "value");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    sockets: Mutex<Vec<PathBuf>>,
}

/// The state that the thread and the handle share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) daemon: Mutex<Daemon>,
    pub(crate) inbox: Mutex<Vec<Arrival>>,
    pub(crate) wake: EventFd,
    pub(crate) stop: AtomicBool,
}

/// Something new that the thread must serve.
#[derive(Debug)]
pub(crate) enum Arrival {
    Connection(OwnedFd, ConnId),
    Listener(UnixListener),
}

impl Server {
    /// Starts a daemon with no connections.
    ///
    /// # Errors
    ///
    /// The system's error if no descriptor or thread can be made.
    pub fn start(config: Config) -> io::Result<Self> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let shared = Arc::new(Shared {
            daemon: Mutex::new(Daemon::new(config)),
            inbox: Mutex::new(Vec::new()),
            wake,
            stop: AtomicBool::new(false),
        });
        let mut event_loop = EventLoop::new(Arc::clone(&shared))?;
        let thread = std::thread::Builder::new()
            .name("xenstored".to_owned())
            .spawn(move || while event_loop.turn() {})?;
        Ok(Self {
            shared,
            thread: Some(thread),
            sockets: Mutex::new(Vec::new()),
        })
    }

    /// Listens on a socket; a client that connects there is domain 0. Only the file's owner can
    /// ever use it, whatever the umask. A socket that no process listens on any more is replaced.
    ///
    /// # Errors
    ///
    /// The system's error; `AddrInUse` if another process listens there.
    pub fn listen(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let path = path.as_ref();
        let listener = match bind_for_owner(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_abandoned(path) => {
                fs::remove_file(path)?;
                bind_for_owner(path)?
            }
            other => other?,
        };
        lock(&self.sockets).push(path.to_owned());
        self.arrive(Arrival::Listener(listener));
        Ok(())
    }

    /// Serves `domain` on a connected stream socket.
    pub fn add_connection(&self, fd: OwnedFd, domain: DomId) {
        let conn = lock(&self.shared.daemon).connect(domain);
        self.arrive(Arrival::Connection(fd, conn));
    }

    /// Connects a client to this daemon, as `domain`.
    ///
    /// # Errors
    ///
    /// [`Error::Os`](xen_store::Error::Os) if there is no descriptor left.
    pub fn connect(&self, domain: DomId) -> xen_store::Result<Store> {
        let (ours, theirs) = UnixStream::pair().map_err(|source| xen_store::Error::Os {
            op: "socketpair",
            source: Arc::new(source),
        })?;
        self.add_connection(ours.into(), domain);
        Store::from_fd(theirs.into())
    }

    /// See [`Daemon::add_domain`].
    pub fn add_domain(&self, domain: DomId) -> bool {
        self.with(|daemon| daemon.add_domain(domain))
    }

    /// See [`Daemon::introduce`].
    pub fn introduce(&self, domain: DomId) -> bool {
        self.with(|daemon| daemon.introduce(domain))
    }

    /// See [`Daemon::release`].
    pub fn release(&self, domain: DomId) {
        self.with(|daemon| daemon.release(domain));
    }

    /// See [`Daemon::shutdown`].
    pub fn shutdown(&self, domain: DomId) {
        self.with(|daemon| daemon.shutdown(domain));
    }

    /// See [`Daemon::set_target`].
    pub fn set_target(&self, domain: DomId, target: DomId) {
        self.with(|daemon| daemon.set_target(domain, target));
    }

    /// See [`Daemon::set_quota`].
    pub fn set_quota(&self, domain: DomId, quota: Option<Quota>) {
        self.with(|daemon| daemon.set_quota(domain, quota));
    }

    /// See [`Daemon::drop_connections`].
    pub fn drop_connections(&self, domain: DomId) {
        self.with(|daemon| daemon.drop_connections(domain));
    }

    /// See [`Daemon::is_introduced`].
    #[must_use]
    pub fn is_introduced(&self, domain: DomId) -> bool {
        lock(&self.shared.daemon).is_introduced(domain)
    }

    /// See [`Daemon::stats`].
    #[must_use]
    pub fn stats(&self) -> Stats {
        lock(&self.shared.daemon).stats()
    }

    fn with<T>(&self, body: impl FnOnce(&mut Daemon) -> T) -> T {
        let value = body(&mut lock(&self.shared.daemon));
        self.shared.ring();
        value
    }

    fn arrive(&self, arrival: Arrival) {
        lock(&self.shared.inbox).push(arrival);
        self.shared.ring();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.ring();
        if let Some(thread) = self.thread.take() {
            // A panic in the thread was reported by the panic hook already.
            let _ = thread.join();
        }
        for path in lock(&self.sockets).drain(..) {
            // Another program may have removed it.
            let _ = fs::remove_file(path);
        }
    }
}

impl Shared {
    fn ring(&self) {
        // The only failure is a full counter, and that wakes the thread too.
        let _ = self.wake.write(1);
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns a listening, non-blocking socket. Linux makes its file with the mode that the socket has
/// at that time.
fn bind_for_owner(path: &Path) -> io::Result<UnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    fchmod(&listener, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(listener.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&listener, Backlog::MAXALLOWABLE)?;
    Ok(listener.into())
}

/// Returns whether the socket file is left over from a daemon that has ended.
fn is_abandoned(path: &Path) -> bool {
    UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
}

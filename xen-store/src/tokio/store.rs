//! The operations, watches and transactions, as futures.

use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ::tokio::io::unix::AsyncFd;
use ::tokio::runtime::Handle;

use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::{Driver, Inner, Store, Wait};
use crate::client::{malformed, text};
use crate::directory::{self, Parts};
use crate::domains;
use crate::error::{Error, Result};
use crate::events::WatchEvent;
use crate::mux::{Mux, Place};
use crate::nodes::{format_perms, optional, parse_perms};
use crate::path::StorePath;
use crate::perms::Permissions;
use crate::proto::{Connection, Ready, WatchId, parse_transaction};
use crate::transport::Transport;
use crate::wire::MsgType;
use xen_sys::DomId;

/// The first and the longest pause between two attempts to connect to a daemon whose backlog is
/// full.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

impl Store {
    /// As [`Store::connect`](crate::Store::connect). While the daemon's backlog is full it tries
    /// again, after pauses of 1 ms to 50 ms, and blocks no thread. No runtime timer is needed.
    ///
    /// # Errors
    ///
    /// [`Error::Connect`]; [`Error::Os`] outside a tokio runtime with I/O enabled.
    pub async fn connect(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::new(patiently(|| Transport::try_connect(path)).await?)
    }

    /// As [`Store::open`](crate::Store::open), waiting as [`Store::connect`] does.
    ///
    /// # Errors
    ///
    /// As [`Store::connect`].
    pub async fn open(xen: &xen_sys::Xen) -> Result<Self> {
        Self::new(patiently(|| Transport::try_open(xen)).await?)
    }

    /// As [`Store::from_fd`](crate::Store::from_fd).
    ///
    /// # Errors
    ///
    /// As [`Store::connect`].
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        Self::new(Transport::from_fd(fd)?)
    }

    fn new(transport: Transport) -> Result<Self> {
        let quirks = transport.quirks();
        let os = |source: io::Error| Error::Os {
            op: "register with tokio",
            source: source.into(),
        };
        let runtime = Handle::try_current().map_err(|error| os(io::Error::other(error)))?;
        // The deprecation is about types that do not own the descriptor they report. `Transport`
        // owns it until it is dropped, so the replacement's contract is met without its `unsafe`.
        #[allow(deprecated)]
        let fd = AsyncFd::new(transport).map_err(os)?;
        let inner = Arc::new(Inner {
            mux: Mux::new(fd, quirks),
        });
        Driver::spawn(&inner, &runtime);
        Ok(Self(inner))
    }

    /// As [`Store::own_domain`](crate::Store::own_domain).
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn own_domain(&self) -> Result<DomId> {
        domains::own_domain(&self.read_str(domains::DOMID).await?)
    }

    /// As [`Store::features`](crate::Store::features).
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn features(&self) -> Result<u32> {
        domains::features(&self.0.call(MsgType::GET_FEATURE, 0, &[], None).await?)
    }

    /// As [`Store::features_of`](crate::Store::features_of).
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn features_of(&self, domain: DomId) -> Result<u32> {
        let fields = domains::number_fields(&[domain.as_u16().into()]);
        domains::features(&self.fields(MsgType::GET_FEATURE, &fields).await?)
    }

    /// As [`Store::set_features`](crate::Store::set_features).
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn set_features(&self, domain: DomId, features: u32) -> Result<()> {
        let fields = domains::number_fields(&[domain.as_u16().into(), features.into()]);
        self.fields(MsgType::SET_FEATURE, &fields).await.map(drop)
    }

    /// As [`Store::quota_names`](crate::Store::quota_names).
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn quota_names(&self) -> Result<Vec<String>> {
        domains::quota_names(self.0.call(MsgType::GET_QUOTA, 0, &[], None).await?)
    }

    /// As [`Store::quota`](crate::Store::quota).
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn quota(&self, domain: Option<DomId>, name: &str) -> Result<Option<NonZeroU32>> {
        let fields = domains::quota_fields(domain, name, None)?;
        domains::quota(&self.fields(MsgType::GET_QUOTA, &fields).await?)
    }

    /// As [`Store::set_quota`](crate::Store::set_quota).
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn set_quota(
        &self,
        domain: Option<DomId>,
        name: &str,
        limit: Option<NonZeroU32>,
    ) -> Result<()> {
        let fields = domains::quota_fields(domain, name, Some(limit))?;
        self.fields(MsgType::SET_QUOTA, &fields).await.map(drop)
    }

    async fn fields(&self, kind: MsgType, fields: &str) -> Result<Vec<u8>> {
        self.0.call(kind, 0, &[fields.as_bytes()], None).await
    }

    /// Starts a transaction; dropping it aborts it.
    ///
    /// # Errors
    ///
    /// As [`Store::transaction`](crate::Store::transaction).
    pub async fn transaction(&self) -> Result<Transaction> {
        let kind = MsgType::TRANSACTION_START;
        let payload = self.0.call(kind, 0, &[b"\0"], None).await?;
        let id = parse_transaction(&payload).ok_or_else(|| malformed(kind))?;
        Ok(Transaction {
            store: self.clone(),
            id,
            live: true,
        })
    }

    /// Watches `path` and everything below it.
    ///
    /// # Errors
    ///
    /// As [`Store::watch`](crate::Store::watch).
    pub async fn watch(&self, path: &str) -> Result<Watch> {
        let path = StorePath::new(path)?.as_str();
        let id = self.0.mux.enter()?.proto.add_watch(path);
        let mut watch = Watch {
            store: self.clone(),
            id,
            path: path.into(),
            set: false,
        };
        let token = Connection::token(id);
        let parts: [&[u8]; 4] = [path.as_bytes(), b"\0", token.as_bytes(), b"\0"];
        self.0.call(MsgType::WATCH, 0, &parts, Some(id)).await?;
        watch.set = true;
        Ok(watch)
    }
}

/// A watch, for tokio. As [`Watch`](crate::Watch).
#[derive(Debug)]
pub struct Watch {
    store: Store,
    id: WatchId,
    path: Box<str>,
    set: bool,
}

impl Watch {
    /// Returns the watched path, as given.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Waits for the next event. Dropping the future loses none.
    ///
    /// # Errors
    ///
    /// Why the connection is finished. Events that came before are given out first.
    pub async fn next(&self) -> Result<WatchEvent> {
        let inner = &*self.store.0;
        let mut wait = Wait {
            inner,
            place: Place::new(Ready::Event(self.id)),
            request: None,
        };
        let event = inner.wait(&mut wait.place, |state| state.proto.poll_event(self.id));
        event.await?
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let inner = &self.store.0;
        // In a child of the process that set it, the watch is the parent's.
        let Ok(mut state) = inner.mux.enter() else {
            return;
        };
        state.proto.remove_watch(self.id);
        drop(state);
        if self.set {
            let token = Connection::token(self.id);
            let parts: [&[u8]; 4] = [self.path.as_bytes(), b"\0", token.as_bytes(), b"\0"];
            inner.send_detached(MsgType::UNWATCH, 0, &parts);
        }
    }
}

/// A transaction, for tokio. As [`Transaction`](crate::Transaction).
#[derive(Debug)]
#[must_use = "dropping a transaction aborts it"]
pub struct Transaction {
    store: Store,
    id: u32,
    live: bool,
}

impl Transaction {
    /// As [`Transaction::commit`](crate::Transaction::commit). Dropping the future leaves open
    /// whether the changes are carried out.
    ///
    /// # Errors
    ///
    /// As there.
    #[must_use = "`false` means that nothing was carried out"]
    pub async fn commit(mut self) -> Result<bool> {
        self.live = false;
        match self
            .store
            .0
            .call(MsgType::TRANSACTION_END, self.id, &[b"T\0"], None)
            .await
        {
            Ok(_) => Ok(true),
            Err(error) if error.is_again() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if self.live {
            self.store
                .0
                .send_detached(MsgType::TRANSACTION_END, self.id, &[b"F\0"]);
        }
    }
}

macro_rules! node_operations {
    ($type:ident, $self:ident => $inner:expr, $tx:expr) => {
        /// The operations on nodes; each is as the method of [`Store`](crate::Store) of its name.
        #[allow(clippy::missing_errors_doc)]
        impl $type {
            async fn path_call(&$self, kind: MsgType, path: &str, rest: &[u8]) -> Result<Vec<u8>> {
                let path = StorePath::new(path)?.as_str().as_bytes();
                $inner.call(kind, $tx, &[path, b"\0", rest], None).await
            }

            /// Returns the value of a node.
            pub async fn read(&self, path: &str) -> Result<Vec<u8>> {
                self.path_call(MsgType::READ, path, b"").await
            }

            /// Returns the value of a node as text.
            pub async fn read_str(&self, path: &str) -> Result<String> {
                text(MsgType::READ, self.read(path).await?)
            }

            /// Returns the value of a node, or `None` if there is no such node.
            pub async fn read_optional(&self, path: &str) -> Result<Option<Vec<u8>>> {
                optional(self.read(path).await)
            }

            /// Returns the value of a node as text, or `None` if there is no such node.
            pub async fn read_str_optional(&self, path: &str) -> Result<Option<String>> {
                optional(self.read_str(path).await)
            }

            /// Sets the value of a node.
            pub async fn write(&self, path: &str, value: impl AsRef<[u8]>) -> Result<()> {
                self.path_call(MsgType::WRITE, path, value.as_ref()).await.map(drop)
            }

            /// Creates a node with an empty value.
            pub async fn mkdir(&self, path: &str) -> Result<()> {
                self.path_call(MsgType::MKDIR, path, b"").await.map(drop)
            }

            /// Removes a node and everything below it.
            pub async fn rm(&self, path: &str) -> Result<()> {
                self.path_call(MsgType::RM, path, b"").await.map(drop)
            }

            /// Returns the names of a node's children.
            pub async fn directory(&self, path: &str) -> Result<Vec<String>> {
                let kind = MsgType::DIRECTORY;
                let mut parts = match self.path_call(kind, path, b"").await {
                    Err(error) if directory::is_too_long(&error) => Parts::after(error),
                    other => return directory::names(kind, &other?),
                };
                loop {
                    let offset = parts.offset();
                    let kind = MsgType::DIRECTORY_PART;
                    let part = self.path_call(kind, path, offset.as_bytes()).await;
                    let payload = parts.received(part)?;
                    if let Some(names) = parts.take(&payload)? {
                        return Ok(names);
                    }
                }
            }

            /// Returns the permissions of a node.
            pub async fn permissions(&self, path: &str) -> Result<Permissions> {
                parse_perms(&self.path_call(MsgType::GET_PERMS, path, b"").await?)
            }

            /// Replaces the permissions of a node.
            pub async fn set_permissions(&self, path: &str, perms: &Permissions) -> Result<()> {
                let fields = format_perms(perms);
                self.path_call(MsgType::SET_PERMS, path, fields.as_bytes()).await.map(drop)
            }
        }
    };
}

node_operations!(Store, self => self.0, 0);
node_operations!(Transaction, self => self.store.0, self.id);

/// Tries until it is no longer the daemon's backlog that is full.
async fn patiently(attempt: impl Fn() -> Result<Transport>) -> Result<Transport> {
    let mut pause = FIRST_PAUSE;
    loop {
        match attempt() {
            Err(Error::Connect { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => {
                let sleep = sleep(pause).await;
                sleep.map_err(|source| Error::Os {
                    op: "wait for the backlog of the store daemon",
                    source: source.into(),
                })?;
                pause = LONGEST_PAUSE.min(pause * 2);
            }
            other => return other,
        }
    }
}

/// By a timer of the system's, because a runtime may have none.
async fn sleep(time: Duration) -> io::Result<()> {
    let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
    timer.set(Expiration::OneShot(time.into()), TimerSetTimeFlags::empty())?;
    // The deprecation is about types that do not own the descriptor they report; this one does.
    #[allow(deprecated)]
    let timer = AsyncFd::new(TimerSource(timer))?;
    timer.readable().await.map(drop)
}

/// A timer's descriptor, for tokio.
struct TimerSource(TimerFd);

impl AsRawFd for TimerSource {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

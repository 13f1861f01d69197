//! The operations, watches and transactions, as futures.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex};

use ::tokio::io::unix::AsyncFd;
use ::tokio::sync::Notify;

use super::{AsyncStore, Inner};
use crate::client::{malformed, text};
use crate::directory::{self, Parts};
use crate::error::{Error, Result};
use crate::events::WatchEvent;
use crate::nodes::{format_perms, parse_perms};
use crate::path::StorePath;
use crate::perms::Permissions;
use crate::proto::{Connection, WatchId, parse_transaction};
use crate::transport::Transport;
use crate::wire::MsgType;

impl AsyncStore {
    /// As [`Store::connect`](crate::Store::connect); connecting to a local socket does not wait.
    ///
    /// # Errors
    ///
    /// [`Error::Connect`]; [`Error::Os`] outside a tokio runtime with I/O enabled.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self> {
        Self::new(Transport::connect(path.as_ref())?)
    }

    /// As [`Store::open`](crate::Store::open).
    ///
    /// # Errors
    ///
    /// As [`AsyncStore::connect`].
    pub fn open(xen: &xen_sys::Xen) -> Result<Self> {
        Self::new(Transport::open(xen)?)
    }

    /// As [`Store::from_fd`](crate::Store::from_fd).
    ///
    /// # Errors
    ///
    /// As [`AsyncStore::connect`].
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        Self::new(Transport::from_fd(fd)?)
    }

    fn new(transport: Transport) -> Result<Self> {
        let proto = Mutex::new(Connection::new(transport.quirks()));
        // The deprecation is about types that do not own the descriptor they report. `Transport`
        // owns it until it is dropped, so the replacement's contract is met without its `unsafe`.
        #[allow(deprecated)]
        let fd = AsyncFd::new(transport).map_err(|source| Error::Os {
            op: "register with tokio",
            source,
        })?;
        Ok(Self(Arc::new(Inner {
            fd,
            proto,
            news: Notify::new(),
        })))
    }

    /// Starts a transaction; dropping it aborts it.
    ///
    /// # Errors
    ///
    /// As [`Store::transaction`](crate::Store::transaction).
    pub async fn transaction(&self) -> Result<AsyncTransaction> {
        let kind = MsgType::TRANSACTION_START;
        let payload = self.0.call(kind, 0, &[b"\0"], None).await?;
        let id = parse_transaction(&payload).ok_or_else(|| malformed(kind))?;
        Ok(AsyncTransaction {
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
    pub async fn watch(&self, path: &str) -> Result<AsyncWatch> {
        let path = StorePath::new(path)?.as_str();
        let id = self.0.lock().add_watch(path);
        let mut watch = AsyncWatch {
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
pub struct AsyncWatch {
    store: AsyncStore,
    id: WatchId,
    path: Box<str>,
    set: bool,
}

impl AsyncWatch {
    /// The watched path, as given.
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
        self.store.0.wait(|proto| proto.poll_event(self.id)).await?
    }
}

impl Drop for AsyncWatch {
    fn drop(&mut self) {
        self.store.0.lock().remove_watch(self.id);
        if self.set {
            let token = Connection::token(self.id);
            let parts: [&[u8]; 4] = [self.path.as_bytes(), b"\0", token.as_bytes(), b"\0"];
            self.store.0.send_detached(MsgType::UNWATCH, 0, &parts);
        }
    }
}

/// A transaction, for tokio. As [`Transaction`](crate::Transaction).
#[derive(Debug)]
#[must_use = "dropping a transaction aborts it"]
pub struct AsyncTransaction {
    store: AsyncStore,
    id: u32,
    live: bool,
}

impl AsyncTransaction {
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

impl Drop for AsyncTransaction {
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

            /// The value of a node.
            pub async fn read(&self, path: &str) -> Result<Vec<u8>> {
                self.path_call(MsgType::READ, path, b"").await
            }

            /// The value of a node as text.
            pub async fn read_str(&self, path: &str) -> Result<String> {
                text(MsgType::READ, self.read(path).await?)
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

            /// The names of a node's children.
            pub async fn directory(&self, path: &str) -> Result<Vec<String>> {
                let kind = MsgType::DIRECTORY;
                match self.path_call(kind, path, b"").await {
                    Err(error) if directory::is_too_long(&error) => {}
                    other => return directory::names(kind, &other?),
                }
                let mut parts = Parts::default();
                loop {
                    let offset = parts.offset();
                    let kind = MsgType::DIRECTORY_PART;
                    let payload = self.path_call(kind, path, offset.as_bytes()).await?;
                    if let Some(names) = parts.take(&payload)? {
                        return Ok(names);
                    }
                }
            }

            /// The permissions of a node.
            pub async fn get_perms(&self, path: &str) -> Result<Permissions> {
                parse_perms(&self.path_call(MsgType::GET_PERMS, path, b"").await?)
            }

            /// Replaces the permissions of a node.
            pub async fn set_perms(&self, path: &str, perms: &Permissions) -> Result<()> {
                let fields = format_perms(perms);
                self.path_call(MsgType::SET_PERMS, path, fields.as_bytes()).await.map(drop)
            }
        }
    };
}

node_operations!(AsyncStore, self => self.0, 0);
node_operations!(AsyncTransaction, self => self.store.0, self.id);

//! The operations on nodes, the same inside and outside a transaction.

use crate::client::{Store, malformed, text};
use crate::directory;
use crate::error::{Invalid, Result};
use crate::path::StorePath;
use crate::perms::{Perm, Permissions};
use crate::txn::Transaction;
use crate::wire::{self, MsgType};

/// The store as seen by one transaction, or by none (0).
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    store: &'a Store,
    tx: u32,
}

impl View<'_> {
    pub(crate) fn path_call(self, kind: MsgType, path: &str, rest: &[u8]) -> Result<Vec<u8>> {
        let path = StorePath::new(path)?.as_str().as_bytes();
        self.store.call(kind, self.tx, &[path, b"\0", rest])
    }

    fn read(self, path: &str) -> Result<Vec<u8>> {
        self.path_call(MsgType::READ, path, b"")
    }

    fn exists(self, path: &str) -> Result<bool> {
        Ok(optional(self.read(path))?.is_some())
    }

    fn permissions(self, path: &str) -> Result<Permissions> {
        parse_perms(&self.path_call(MsgType::GET_PERMS, path, b"")?)
    }

    fn set_permissions(self, path: &str, perms: &Permissions) -> Result<()> {
        self.path_call(MsgType::SET_PERMS, path, format_perms(perms).as_bytes())
            .map(drop)
    }
}

/// A missing node is no value.
pub(crate) fn optional<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// The reply to GET_PERMS.
pub(crate) fn parse_perms(payload: &[u8]) -> Result<Permissions> {
    let entry = |field| std::str::from_utf8(field).ok()?.parse::<Perm>().ok();
    let entries: Option<Vec<Perm>> = wire::strings(payload).map(entry).collect();
    let perms = entries.and_then(|entries| Permissions::from_entries(entries).ok());
    perms.ok_or_else(|| malformed(MsgType::GET_PERMS))
}

/// Formats the part of SET_PERMS after the path.
pub(crate) fn format_perms(perms: &Permissions) -> String {
    perms
        .entries()
        .iter()
        .map(|perm| format!("{perm}\0"))
        .collect()
}

macro_rules! node_operations {
    ($type:ty, $self:ident => $view:expr) => {
        impl $type {
            fn view(&$self) -> View<'_> {
                $view
            }

            /// Returns the value of a node: any bytes, exactly as they were written.
            ///
            /// # Errors
            ///
            /// [`Error::Daemon`](crate::Error::Daemon): `ENOENT` no such node, `EACCES` no right
            /// to read it.
            #[doc(alias = "xs_read")]
            pub fn read(&self, path: &str) -> Result<Vec<u8>> {
                self.view().read(path)
            }

            /// Returns the value of a node as text.
            ///
            /// # Errors
            ///
            /// As `read`; [`Error::NotText`](crate::Error::NotText) if it is not UTF-8.
            pub fn read_str(&self, path: &str) -> Result<String> {
                text(MsgType::READ, self.read(path)?)
            }

            /// Returns the value of a node, or `None` if there is no such node.
            ///
            /// # Errors
            ///
            /// As `read`, apart from `ENOENT`.
            pub fn read_optional(&self, path: &str) -> Result<Option<Vec<u8>>> {
                optional(self.read(path))
            }

            /// Returns the value of a node as text, or `None` if there is no such node.
            ///
            /// # Errors
            ///
            /// As `read_str`, apart from `ENOENT`.
            pub fn read_str_optional(&self, path: &str) -> Result<Option<String>> {
                optional(self.read_str(path))
            }

            /// Sets the value of a node. The node and its parents are created if missing, owned
            /// by this domain with the permissions of the nearest existing parent.
            ///
            /// Path, a NUL and value must fit one message: 4096 bytes by socket, 4080 by the
            /// kernel's device.
            ///
            /// # Errors
            ///
            /// [`Error::Daemon`](crate::Error::Daemon): `EACCES` no right, `ENOSPC` over a quota;
            /// [`Invalid::PayloadTooLong`].
            #[doc(alias = "xs_write")]
            pub fn write(&self, path: &str, value: impl AsRef<[u8]>) -> Result<()> {
                self.view().path_call(MsgType::WRITE, path, value.as_ref()).map(drop)
            }

            /// Creates a node with an empty value, and its parents. An existing node stays as it
            /// is.
            ///
            /// # Errors
            ///
            /// As `write`.
            #[doc(alias = "xs_mkdir")]
            pub fn mkdir(&self, path: &str) -> Result<()> {
                self.view().path_call(MsgType::MKDIR, path, b"").map(drop)
            }

            /// Removes a node and everything below it. A missing node is no error if its
            /// parent exists.
            ///
            /// # Errors
            ///
            /// [`Error::Daemon`](crate::Error::Daemon): `ENOENT` no such parent, `EACCES` no
            /// right, `EINVAL` for `/`.
            #[doc(alias = "xs_rm")]
            pub fn rm(&self, path: &str) -> Result<()> {
                self.view().path_call(MsgType::RM, path, b"").map(drop)
            }

            /// Returns the names of a node's children, in the daemon's order.
            ///
            /// A list too long for one message is fetched in parts, again from the start if it
            /// changes meanwhile, so the result is the list as it was at one moment.
            ///
            /// # Errors
            ///
            /// As `read`; [`Error::Conflict`](crate::Error::Conflict) if the list changed faster
            /// than it could be read.
            #[doc(alias = "xs_directory")]
            pub fn directory(&self, path: &str) -> Result<Vec<String>> {
                directory::list(self.view(), path)
            }

            /// Returns whether a node exists.
            ///
            /// # Errors
            ///
            /// As `read`, apart from `ENOENT`: without the right to read it there is no answer.
            pub fn exists(&self, path: &str) -> Result<bool> {
                self.view().exists(path)
            }

            /// Returns the permissions of a node. Those of `@introduceDomain` and `@releaseDomain`
            /// can be set but not read (`EINVAL` from xenstored 4.17).
            ///
            /// # Errors
            ///
            /// As `read`.
            #[doc(alias = "xs_get_permissions")]
            pub fn permissions(&self, path: &str) -> Result<Permissions> {
                self.view().permissions(path)
            }

            /// Replaces the permissions of a node, or of `@introduceDomain` or
            /// `@releaseDomain`.
            ///
            /// # Errors
            ///
            /// As `read`; `EPERM` if the owner would change and this domain is not privileged.
            #[doc(alias = "xs_set_permissions")]
            pub fn set_permissions(&self, path: &str, perms: &Permissions) -> Result<()> {
                self.view().set_permissions(path, perms)
            }
        }
    };
}

node_operations!(Store, self => View { store: self, tx: 0 });
node_operations!(Transaction, self => View { store: self.store(), tx: self.id() });

// Referred to by the documentation above.
const _: Option<Invalid> = None;

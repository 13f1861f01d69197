//! A node's children, however many.
//!
//! DIRECTORY answers with all names at once and fails with `E2BIG` if they do not fit a message
//! (oxenstored sends a message beyond the protocol's limit, which counts as the same).
//! DIRECTORY_PART answers with the node's generation and the names from a byte offset on; the last
//! part ends in an empty name. If the generation is not the same in all parts the list changed in
//! between and is read again from the start.

use crate::client::malformed;
use crate::error::{Error, Result, XsError};
use crate::nodes::View;
use crate::wire::{self, MsgType};

/// How often a list that keeps changing is begun anew.
const MAX_RESTARTS: u32 = 32;
/// Bytes of names accepted for one node. A daemon allows far less by its quotas.
const MAX_LIST: usize = 64 << 20;

pub(crate) fn list(view: View<'_>, path: &str) -> Result<Vec<String>> {
    match view.path_call(MsgType::DIRECTORY, path, b"") {
        Ok(payload) => names(MsgType::DIRECTORY, &payload),
        Err(error) if is_too_long(&error) => {
            let mut parts = Parts::after(error);
            loop {
                let offset = parts.offset();
                let part = view.path_call(MsgType::DIRECTORY_PART, path, offset.as_bytes());
                let payload = parts.received(part)?;
                if let Some(names) = parts.take(&payload)? {
                    return Ok(names);
                }
            }
        }
        Err(error) => Err(error),
    }
}

/// Whether DIRECTORY failed because the list has to be read in parts.
pub(crate) fn is_too_long(error: &Error) -> bool {
    matches!(
        error,
        Error::TooLong { .. }
            | Error::Daemon {
                code: XsError::E2BIG,
                ..
            }
    )
}

/// A list being put together from the replies to DIRECTORY_PART.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    list: Vec<u8>,
    generation: Option<Vec<u8>>,
    restarts: u32,
    /// Why DIRECTORY failed, until the first part came.
    whole: Option<Error>,
}

impl Parts {
    /// Parts of a list that DIRECTORY failed to give at once, with `error`.
    pub(crate) fn after(error: Error) -> Self {
        Self {
            whole: Some(error),
            ..Self::default()
        }
    }

    /// The payload of a part. If the daemon does not know DIRECTORY_PART, the error is the one of
    /// DIRECTORY.
    pub(crate) fn received(&mut self, part: Result<Vec<u8>>) -> Result<Vec<u8>> {
        let whole = self.whole.take();
        match (part, whole) {
            (
                Err(Error::Daemon {
                    code: XsError::ENOSYS | XsError::EINVAL | XsError::UNKNOWN,
                    ..
                }),
                Some(whole),
            ) => Err(whole),
            (part, _) => part,
        }
    }

    /// The field that asks for the next part.
    pub(crate) fn offset(&self) -> String {
        format!("{}\0", self.list.len())
    }

    /// Takes a reply; the names if it was the last one.
    pub(crate) fn take(&mut self, payload: &[u8]) -> Result<Option<Vec<String>>> {
        let malformed = || malformed(MsgType::DIRECTORY_PART);
        let at = payload
            .iter()
            .position(|&byte| byte == 0)
            .ok_or_else(malformed)?;
        let (generation, part) = (&payload[..at], &payload[at + 1..]);
        if *self.generation.get_or_insert_with(|| generation.to_vec()) != generation {
            let restarts = self.restarts + 1;
            *self = Self {
                restarts,
                ..Self::default()
            };
            if restarts >= MAX_RESTARTS {
                return Err(Error::Conflict { attempts: restarts });
            }
            return Ok(None);
        }
        // The end is an empty name: a NUL that ends no name.
        let (part, last) = match part {
            [0] => (&part[..0], true),
            [rest @ .., 0, 0] => (&part[..rest.len() + 1], true),
            [_, .., 0] => (part, false),
            _ => return Err(malformed()),
        };
        self.list.extend_from_slice(part);
        if self.list.len() > MAX_LIST {
            return Err(malformed());
        }
        last.then(|| names(MsgType::DIRECTORY_PART, &self.list))
            .transpose()
    }
}

/// The names in a list of NUL-terminated ones.
pub(crate) fn names(kind: MsgType, payload: &[u8]) -> Result<Vec<String>> {
    let name = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| malformed(kind));
    wire::strings(payload).map(name).collect()
}

//! A node's children, however many.
//!
//! DIRECTORY answers with all names at once and fails with `E2BIG` if they do not fit a message.
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
    let kind = MsgType::DIRECTORY;
    match view.path_call(kind, path, b"") {
        Ok(payload) => names(kind, &payload),
        Err(Error::Daemon {
            code: XsError::E2BIG,
            ..
        }) => list_in_parts(view, path),
        Err(error) => Err(error),
    }
}

fn list_in_parts(view: View<'_>, path: &str) -> Result<Vec<String>> {
    for _ in 0..MAX_RESTARTS {
        if let Some(payload) = try_parts(view, path)? {
            return names(MsgType::DIRECTORY_PART, &payload);
        }
    }
    Err(Error::Conflict {
        attempts: MAX_RESTARTS,
    })
}

/// The whole list, or `None` if it changed while it was read.
fn try_parts(view: View<'_>, path: &str) -> Result<Option<Vec<u8>>> {
    let kind = MsgType::DIRECTORY_PART;
    let mut list: Vec<u8> = Vec::new();
    let mut generation: Option<Vec<u8>> = None;
    while list.len() <= MAX_LIST {
        let offset = format!("{}\0", list.len());
        let payload = view.path_call(kind, path, offset.as_bytes())?;
        let Some(at) = payload.iter().position(|&byte| byte == 0) else {
            return Err(malformed(kind));
        };
        let (this, part) = (&payload[..at], &payload[at + 1..]);
        if *generation.get_or_insert_with(|| this.to_vec()) != this {
            return Ok(None);
        }
        // The end is an empty name: a NUL that ends no name.
        let (part, last) = match part {
            [0] => (&part[..0], true),
            [rest @ .., 0, 0] => (&part[..rest.len() + 1], true),
            [_, .., 0] => (part, false),
            _ => return Err(malformed(kind)),
        };
        list.extend_from_slice(part);
        if last {
            return Ok(Some(list));
        }
    }
    Err(malformed(kind))
}

fn names(kind: MsgType, payload: &[u8]) -> Result<Vec<String>> {
    let name = |bytes: &[u8]| String::from_utf8(bytes.to_vec());
    wire::strings(payload)
        .map(name)
        .collect::<std::result::Result<_, _>>()
        .map_err(|_| malformed(kind))
}

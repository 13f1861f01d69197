//! The messages of one operation: usually one, several for a long list of a node's children.
//!
//! DIRECTORY returns all names in one message and fails with `E2BIG` if they do not fit (oxenstored
//! sends a message beyond the protocol's limit, which counts as the same). DIRECTORY_PART returns
//! the node's generation and the names from a byte offset on; the last part ends in an empty name.
//! If the generation is not the same in all parts, the list changed in between and is read again
//! from the start. The same applies after the loss of the connection: another daemon may count
//! generations from the start.

use crate::error::{Error, Result, XsError};
use crate::request::Encoded;
use crate::wire::MsgType;

/// How often a list that keeps changing is read again from the start.
const MAX_RESTARTS: u32 = 32;
/// Bytes of names accepted for one node. A daemon allows far less by its quotas.
const MAX_LIST: usize = 64 << 20;

/// The step after an answer.
#[derive(Debug)]
pub(crate) enum Step {
    /// The next request to send.
    Next(Encoded),
    /// The complete answer; for a list its names as DIRECTORY returns them, however many.
    Done(Result<Vec<u8>>),
}

/// One request, and those that it may need before it or in its place.
#[derive(Debug)]
pub(crate) struct Exchange {
    /// A request without a payload, kept back until the daemon has answered another of its type:
    /// oxenstored 4.17 does not answer such a message before it receives the next one.
    kept: Option<Encoded>,
    /// The field that names the node, of DIRECTORY.
    listed: Option<Vec<u8>>,
    parts: Option<Parts>,
}

impl Exchange {
    /// Returns the exchange that `message` stands for, and what to send first.
    pub(crate) fn begin(message: Encoded) -> (Self, Encoded) {
        let is_list = message.kind() == MsgType::DIRECTORY;
        let listed = is_list.then(|| message.payload().to_vec());
        let (kept, first) = match message.question_before() {
            Some(question) => (Some(message), question),
            None => (None, message),
        };
        let exchange = Self {
            kept,
            listed,
            parts: None,
        };
        (exchange, first)
    }

    /// Takes the answer to the last message sent. `epoch` names the connection that it is from.
    pub(crate) fn handle_answer(&mut self, answer: Result<Vec<u8>>, epoch: u64) -> Step {
        if let Some(message) = self.kept.take() {
            return match answer {
                // A daemon that refuses the question implements the type.
                Ok(_) | Err(Error::Daemon { .. }) => Step::Next(message),
                Err(error) => Step::Done(Err(error)),
            };
        }
        let Some(path) = &self.listed else {
            return Step::Done(answer);
        };
        let parts = match (self.parts.take(), answer) {
            (None, Err(error)) if is_too_long(&error) => Parts::after(error),
            (None, answer) => return Step::Done(answer),
            (Some(mut parts), answer) => match parts.received(answer, epoch) {
                Ok(Some(list)) => return Step::Done(Ok(list)),
                Ok(None) => parts,
                Err(error) => return Step::Done(Err(error)),
            },
        };
        let offset = parts.offset();
        let fields: [&[u8]; 2] = [path, offset.as_bytes()];
        self.parts = Some(parts);
        Step::Next(Encoded::of_parts(MsgType::DIRECTORY_PART, &fields))
    }
}

/// Returns whether a request may have failed because the daemon does not implement it.
fn is_not_known(error: &Error) -> bool {
    match error {
        Error::NotOffered { .. } => true,
        Error::Daemon { code, .. } => *code == XsError::EINVAL || code.is_unknown(),
        _ => false,
    }
}

/// Returns whether DIRECTORY failed because the list must be read in parts.
fn is_too_long(error: &Error) -> bool {
    matches!(
        error,
        Error::TooLong { .. }
            | Error::Daemon {
                code: XsError::E2BIG,
                ..
            }
    )
}

/// A list being assembled from the replies to DIRECTORY_PART.
#[derive(Debug, Default)]
struct Parts {
    list: Vec<u8>,
    /// The connection and the node's generation.
    generation: Option<(u64, Vec<u8>)>,
    restarts: u32,
    /// Why DIRECTORY failed, until the first part has arrived.
    whole: Option<Error>,
}

impl Parts {
    /// Begins a list in parts after DIRECTORY failed with `error`.
    fn after(error: Error) -> Self {
        Self {
            whole: Some(error),
            ..Self::default()
        }
    }

    /// Takes the answer to a part; returns the list if it was the last one. If the daemon does not
    /// implement DIRECTORY_PART, the error is the one of DIRECTORY.
    fn received(&mut self, part: Result<Vec<u8>>, epoch: u64) -> Result<Option<Vec<u8>>> {
        let whole = self.whole.take();
        match (part, whole) {
            (Err(error), Some(whole)) if is_not_known(&error) => Err(whole),
            (part, _) => self.take(&part?, epoch),
        }
    }

    /// Returns the field that requests the next part.
    fn offset(&self) -> String {
        format!("{}\0", self.list.len())
    }

    /// Takes a reply; returns the list if it was the last one.
    fn take(&mut self, payload: &[u8], epoch: u64) -> Result<Option<Vec<u8>>> {
        let malformed = || Error::Malformed {
            op: MsgType::DIRECTORY_PART,
        };
        let at = payload
            .iter()
            .position(|&byte| byte == 0)
            .ok_or_else(malformed)?;
        let (generation, part) = (&payload[..at], &payload[at + 1..]);
        let first = self
            .generation
            .get_or_insert_with(|| (epoch, generation.to_vec()));
        if (first.0, first.1.as_slice()) != (epoch, generation) {
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
        // The list ends with an empty name: a NUL that ends no name.
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
        Ok(last.then(|| std::mem::take(&mut self.list)))
    }
}

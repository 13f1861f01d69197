//! The two ends that rules are played between: in this process, or in another domain behind a
//! stream.
//!
//! ```text
//! rule ─ Channels, BoundPort, Shared, Mapped, … ─ End ─┬─ Worker                        near
//!                                                      └─ stream ═══ serve ─ Worker     far
//! ```
//!
//! A message on the stream is its length, four bytes little-endian, and JSON.

use std::fmt;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, bail, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;
use xen_sys::DomId;

use crate::call::{Answer, Call, Refusal};
use crate::worker::Worker;

/// No message is longer: the longest carries a few pages.
const LONGEST: u32 = 1 << 20;

/// A stream to another process.
pub trait Duplex: Read + Write + Send {}
impl<T: Read + Write + Send> Duplex for T {}

enum Place {
    Near(Worker),
    Far(Box<dyn Duplex>),
}

/// One end: a process of a domain.
#[derive(Clone)]
pub struct End {
    /// The domain.
    pub id: DomId,
    place: Arc<Mutex<Place>>,
}

impl fmt::Debug for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("End")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl End {
    /// An end in this process.
    #[must_use]
    pub fn near(id: DomId, worker: Worker) -> Self {
        Self {
            id,
            place: Arc::new(Mutex::new(Place::Near(worker))),
        }
    }

    /// An end that [`serve`] carries out at the other side of a stream.
    #[must_use]
    pub fn far(id: DomId, stream: impl Duplex + 'static) -> Self {
        Self {
            id,
            place: Arc::new(Mutex::new(Place::Far(Box::new(stream)))),
        }
    }

    pub(crate) fn call(&self, call: Call) -> Result<Answer, Refusal> {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *place {
            Place::Near(worker) => worker.call(call),
            Place::Far(stream) => {
                let asked = send(stream, &call).and_then(|()| receive(stream));
                match asked {
                    Ok(Some(answer)) => answer,
                    Ok(None) => Err(Refusal::other("the other end is gone")),
                    Err(error) => Err(Refusal::other(format_args!("the other end: {error:#}"))),
                }
            }
        }
    }
}

/// Carries out the calls of a stream until it ends, then releases what is left.
///
/// # Errors
///
/// The stream's, or a message that is none.
pub fn serve(worker: &mut Worker, mut stream: impl Read + Write) -> Result<()> {
    while let Some(call) = receive(&mut stream)? {
        let answer: Result<Answer, Refusal> = worker.call(call);
        send(&mut stream, &answer)?;
    }
    Ok(())
}

fn send(stream: &mut (impl Write + ?Sized), message: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec(message)?;
    let length = u32::try_from(text.len())?;
    ensure!(length <= LONGEST, "a message of {length} bytes");
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend(text);
    stream.write_all(&bytes)?;
    Ok(stream.flush()?)
}

/// `None`: the stream ended between two messages.
fn receive<T: DeserializeOwned>(stream: &mut (impl Read + ?Sized)) -> Result<Option<T>> {
    let mut length = [0; 4];
    let mut have = 0;
    while have < 4 {
        match stream.read(&mut length[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => bail!("the stream ended in a message"),
            Ok(count) => have += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    let length = u32::from_le_bytes(length);
    ensure!(length <= LONGEST, "a message of {length} bytes");
    let mut text = vec![0; length as usize];
    stream.read_exact(&mut text)?;
    Ok(Some(serde_json::from_slice(&text)?))
}

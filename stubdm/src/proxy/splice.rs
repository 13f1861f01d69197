//! Moving bytes between a session without I/O and the two descriptors it is about.

use std::io;
use std::time::Instant;

use stubdm_qmp::text::one_line;
use tracing::debug;

use crate::rt::stream::{Read, Stream};
use crate::rt::transport::{Peer, Transport};

/// A session, seen from the vchan.
pub trait VchanSide {
    /// Bytes for the vchan.
    fn poll_vchan(&self) -> &[u8];
    /// Handles that `count` of them were written.
    fn handle_vchan_written(&mut self, count: usize);
    /// Returns how many bytes of the vchan's may be read now.
    fn vchan_room(&self) -> usize;
    /// Handles bytes from the other end.
    fn handle_vchan_bytes(&mut self, bytes: &[u8], now: Instant);
}

/// A session, seen from a client.
pub trait ClientSide {
    /// Returns how many bytes of the client's may be read now.
    fn room(&self) -> usize;
    /// Handles bytes from the client.
    fn handle_bytes(&mut self, bytes: &[u8], now: Instant);
    /// Bytes for the client.
    fn poll_transmit(&self) -> &[u8];
    /// Handles that `count` of them were written.
    fn handle_transmitted(&mut self, count: usize, now: Instant);
}

/// Moves bytes between a session and the vchan. Returns whether any moved.
///
/// # Errors
/// The vchan is closed, and everything in it was read.
pub fn splice_vchan<L: Transport>(
    session: &mut impl VchanSide,
    vchan: &mut L,
    now: Instant,
) -> io::Result<bool> {
    vchan.acknowledge()?;
    let mut moved = flush_vchan(session, vchan)?;
    let mut buffer = [0; 4096];
    let room = session.vchan_room().min(buffer.len());
    if let Some(buffer @ [_, ..]) = buffer.get_mut(..room) {
        match vchan.try_read(buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                let bytes = buffer.get(..count).unwrap_or_default();
                debug!("from vchan: {}", one_line(&String::from_utf8_lossy(bytes)));
                session.handle_vchan_bytes(bytes, now);
                moved = true;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(moved)
}

/// The half of [`splice_vchan`] that only writes.
///
/// # Errors
/// The vchan is of no more use.
pub fn flush_vchan<L: Transport>(session: &mut impl VchanSide, vchan: &mut L) -> io::Result<bool> {
    let out = session.poll_vchan();
    if out.is_empty() {
        return Ok(false);
    }
    match vchan.try_write(out) {
        Ok(count) => {
            session.handle_vchan_written(count);
            return Ok(count > 0);
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        // The server's last bytes are still to be read.
        Err(error) if vchan.peer()? != Peer::Gone => return Err(error),
        Err(_) => {}
    }
    Ok(false)
}

/// The state of a client after an exchange.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientState {
    /// Bytes moved.
    pub moved: bool,
    /// It will send nothing more.
    pub ended: bool,
    /// It is not there any more.
    pub gone: bool,
}

/// Moves bytes between a session and a client. A client's end is reported only when its bytes that
/// there was room for were read.
pub fn splice_client(
    session: &mut impl ClientSide,
    local: &mut Stream,
    now: Instant,
) -> ClientState {
    let mut state = ClientState::default();
    let mut listens = false;
    let mut buffer = [0; 4096];
    let room = session.room().min(buffer.len());
    if let Some(buffer @ [_, ..]) = buffer.get_mut(..room) {
        match local.read(buffer) {
            Ok(Read::Bytes(count)) => {
                let bytes = buffer.get(..count).unwrap_or_default();
                debug!("from client: {}", one_line(&String::from_utf8_lossy(bytes)));
                session.handle_bytes(bytes, now);
                state.moved = true;
                return state;
            }
            Ok(Read::End) => state.ended = true,
            // Of a socket that nobody has any more there would be an end to read.
            Ok(Read::Nothing) => listens = local.is_one(),
            Err(_) => state.gone = true,
        }
    }
    let out = session.poll_transmit();
    if !out.is_empty() {
        match local.write(out) {
            Ok(count) => {
                session.handle_transmitted(count, now);
                state.moved |= count > 0;
            }
            Err(_) => state.gone = true,
        }
    }
    state.gone |= !listens && local.hung_up();
    state
}

//! Vchans as rules hold them.

use std::time::Instant;

use xen_sys::DomId;

use super::{Object, Result, micros};
use crate::call::Call;
use crate::end::End;

impl End {
    /// A vchan server.
    pub(crate) fn listen(
        &self,
        peer: DomId,
        path: &str,
        left: usize,
        right: usize,
    ) -> Result<Vchan> {
        Ok(Vchan(self.make(Call::Listen {
            peer: peer.as_u16(),
            path: path.to_owned(),
            left,
            right,
        })?))
    }

    /// A vchan client. `None`: does not wait for the server.
    pub(crate) fn connect(
        &self,
        server: DomId,
        path: &str,
        deadline: Option<Instant>,
    ) -> Result<Vchan> {
        Ok(Vchan(self.make(Call::Connect {
            server: server.as_u16(),
            path: path.to_owned(),
            micros: deadline.map_or(0, |at| micros(Some(at))),
        })?))
    }
}

/// An end of a vchan, made by this workspace's crate.
#[derive(Debug)]
pub(crate) struct Vchan(Object);

impl Vchan {
    pub(crate) fn wait_connected(&self, deadline: Option<Instant>) -> Result<()> {
        let (vchan, micros) = (self.0.id, micros(deadline));
        self.0.end.done(Call::WaitConnected { vchan, micros })
    }

    pub(crate) fn next_client(&self) -> Result<()> {
        let vchan = self.0.id;
        self.0.end.done(Call::NextClient { vchan })
    }

    pub(crate) fn peer(&self) -> Result<String> {
        let vchan = self.0.id;
        self.0.end.text(Call::Peer { vchan })
    }

    pub(crate) fn wait(&self, deadline: Option<Instant>) -> Result<bool> {
        let (vchan, micros) = (self.0.id, micros(deadline));
        self.0.end.is(Call::WaitEvent { vchan, micros })
    }

    pub(crate) fn read(&self, most: usize, deadline: Option<Instant>) -> Result<Vec<u8>> {
        let (vchan, micros) = (self.0.id, micros(deadline));
        self.0.end.bytes(Call::Read {
            vchan,
            most,
            micros,
        })
    }

    pub(crate) fn write(&self, bytes: &[u8], deadline: Option<Instant>) -> Result<usize> {
        let (vchan, micros) = (self.0.id, micros(deadline));
        let bytes = bytes.to_vec();
        self.0.end.count(Call::Write {
            vchan,
            bytes,
            micros,
        })
    }

    pub(crate) fn try_read(&self, most: usize) -> Result<Vec<u8>> {
        let vchan = self.0.id;
        self.0.end.bytes(Call::TryRead { vchan, most })
    }
}

//! A guest asks domain 0 how warm the host is, over a vchan: an example of a crate that uses
//! ours, for the sake of its test.

pub mod device;

use std::io::{self, Read, Write};

use xen_store::Store;
use xen_sys::{DomId, Xen};
use xen_vchan::{Channel, ClientBuilder, ServerBuilder};

/// Domain 0's side: offers the temperature to one guest.
pub struct Thermometer(Channel);

impl Thermometer {
    /// Publishes the service for `guest`.
    pub fn offer(xen: &Xen, store: &Store, guest: DomId) -> Result<Self, xen_vchan::Error> {
        Ok(Self(
            ServerBuilder::new(guest, path(guest)).publish(xen, store)?,
        ))
    }

    /// Waits for one question and answers it.
    pub fn answer(&mut self, degrees: i16) -> io::Result<()> {
        self.0.read_exact(&mut [0])?;
        self.0.write_all(&degrees.to_le_bytes())?;
        self.0.flush()
    }
}

/// The guest's side: asks once.
pub fn how_warm(xen: &Xen, store: &Store, me: DomId) -> io::Result<i16> {
    let mut channel = ClientBuilder::new(DomId::DOM0, path(me)).connect(xen, store)?;
    channel.write_all(b"?")?;
    channel.flush()?;
    let mut degrees = [0; 2];
    channel.read_exact(&mut degrees)?;
    Ok(i16::from_le_bytes(degrees))
}

fn path(guest: DomId) -> String {
    format!("/local/domain/0/data/thermometer/{guest}")
}

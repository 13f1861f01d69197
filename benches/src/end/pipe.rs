//! The byte stream of an end: a vchan, or a UNIX socket to compare it with.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use anyhow::Result;
use xen_vchan::Channel;

/// Either thing that bytes go through.
pub(super) trait Pipe {
    fn put_all(&mut self, bytes: &[u8]) -> Result<()>;
    fn get(&mut self, into: &mut [u8]) -> Result<usize>;
    fn send(&mut self, bytes: &[u8]) -> Result<()>;
    fn recv(&mut self, into: &mut [u8]) -> Result<()>;
    /// Receives packets of `buffer`'s size, all that are there at once if that is possible.
    fn recv_many(
        &mut self,
        buffer: &mut [u8],
        each: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()>;
    fn flush(&mut self) -> Result<()>;
}

impl Pipe for Channel {
    #[inline]
    fn put_all(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.write_all(bytes)?)
    }

    #[inline]
    fn get(&mut self, into: &mut [u8]) -> Result<usize> {
        Ok(self.read(into)?)
    }

    #[inline]
    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.halves().1.send(bytes, None)?)
    }

    #[inline]
    fn recv(&mut self, into: &mut [u8]) -> Result<()> {
        Ok(self.halves().0.recv(into, None)?)
    }

    fn recv_many(
        &mut self,
        buffer: &mut [u8],
        each: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let reader = self.halves().0;
        reader.recv(buffer, None)?;
        each(buffer)?;
        if reader.bytes_readable()? >= buffer.len() {
            let mut more = reader.read_chunk(None)?;
            while more.get_exact(buffer) {
                each(buffer)?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(Write::flush(self)?)
    }
}

impl Pipe for UnixStream {
    fn put_all(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.write_all(bytes)?)
    }

    fn get(&mut self, into: &mut [u8]) -> Result<usize> {
        Ok(self.read(into)?)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.put_all(bytes)
    }

    fn recv(&mut self, into: &mut [u8]) -> Result<()> {
        Ok(self.read_exact(into)?)
    }

    fn recv_many(
        &mut self,
        buffer: &mut [u8],
        each: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        self.read_exact(buffer)?;
        each(buffer)
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

//! A VNC viewer without a window: a connection to a VNC server, and the picture that it shows.
//!
//! The protocol is [`stubdm_screen::rfb`]'s; here are the socket, the deadlines and the pixels.

use std::os::fd::OwnedFd;
use std::time::Instant;

use stubdm_screen::rfb::{Client, Event};
use stubdm_screen::{PIXEL, Size};

use crate::rt::error::{Context, Failure, Result};
use crate::rt::poll::{self, Interest};
use crate::rt::stream::{Read, Stream};

/// Bytes read from the server at once.
const CHUNK: usize = 64 << 10;

/// The largest screen: 64 MiB of pixels.
pub const LARGEST: Size = Size {
    width: 4096,
    height: 4096,
};

/// A connection to a VNC server.
#[derive(Debug)]
pub struct Viewer {
    stream: Stream,
    /// The protocol: keys and the pointer are sent through it.
    pub client: Client,
    picture: Picture,
    updates: usize,
    /// Bytes of the picture that were not received since its size was named.
    missing: usize,
    buffer: Vec<u8>,
}

/// A screen's pixels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Picture {
    /// Its size.
    pub size: Size,
    /// Blue, green, red and a byte without meaning for each pixel, row by row from the top.
    pub bytes: Vec<u8>,
}

impl Picture {
    fn new(size: Size) -> Self {
        let pixels = usize::from(size.width) * usize::from(size.height);
        let bytes = vec![0; pixels * PIXEL];
        Self { size, bytes }
    }

    /// Writes bytes of row `y`, from byte `at` of it on, as far as they are within the picture.
    fn write(&mut self, y: u16, at: usize, bytes: &[u8]) {
        let row = usize::from(self.size.width) * PIXEL;
        let start = usize::from(y) * row + at;
        let room = self.bytes.get_mut(start..start + bytes.len());
        if let Some(room) = room {
            room.copy_from_slice(bytes);
        }
    }
}

impl Viewer {
    /// Begins a connection over `socket`.
    ///
    /// # Errors
    /// The socket could not be set non-blocking.
    pub fn new(socket: OwnedFd, client: Client) -> Result<Self> {
        Ok(Self {
            stream: Stream::socket(socket).context("the VNC server's socket")?,
            client,
            picture: Picture::default(),
            updates: 0,
            missing: 0,
            buffer: vec![0; CHUNK],
        })
    }

    /// Returns the picture so far.
    pub fn picture(&self) -> &Picture {
        &self.picture
    }

    /// Returns the number of whole updates so far.
    pub fn updates(&self) -> usize {
        self.updates
    }

    /// Returns whether all pixels of the picture were received.
    pub fn is_whole(&self) -> bool {
        self.updates > 0 && self.missing == 0
    }

    /// Exchanges bytes until `holds` returns true and everything is sent; returns false at the
    /// deadline.
    ///
    /// # Errors
    /// The server closes the connection, refuses it, or violates the protocol.
    pub fn run_until(
        &mut self,
        deadline: Instant,
        mut holds: impl FnMut(&Self) -> bool,
    ) -> Result<bool> {
        loop {
            self.send()?;
            if self.client.poll_transmit().is_empty() && holds(self) {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            poll::sleep(&self.interests(), Some(deadline)).context("the VNC server")?;
            self.receive()?;
        }
    }

    /// Exchanges the bytes that are there, without waiting for more.
    ///
    /// # Errors
    /// As [`run_until`](Self::run_until).
    pub fn exchange(&mut self) -> Result<()> {
        self.receive()?;
        self.send()
    }

    /// Returns the events on which [`exchange`](Self::exchange) has something to do.
    pub fn interests(&self) -> Vec<Interest<'_>> {
        let unsent = !self.client.poll_transmit().is_empty();
        self.stream.interest(true, unsent)
    }

    fn send(&mut self) -> Result<()> {
        while !self.client.poll_transmit().is_empty() {
            let bytes = self.client.poll_transmit();
            match self.stream.write(bytes).context("the VNC server")? {
                0 => break,
                count => self.client.handle_sent(count),
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<()> {
        let read = self.stream.read(&mut self.buffer);
        let count = match read.context("the VNC server")? {
            Read::Bytes(count) => count,
            Read::Nothing => return Ok(()),
            Read::End => return Err(Failure::new("the VNC server closed the connection")),
        };
        let mut bytes = self.buffer.get(..count).unwrap_or_default();
        let client = &mut self.client;
        while let Some(event) = client.poll_event(&mut bytes).context("the VNC server")? {
            match event {
                Event::Size(size) => {
                    self.picture = Picture::new(size);
                    self.missing = self.picture.bytes.len();
                }
                Event::Row { y, at, bytes } => {
                    self.picture.write(y, at, bytes);
                    self.missing = self.missing.saturating_sub(bytes.len());
                }
                Event::Updated => self.updates += 1,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod fake;

#[cfg(test)]
mod tests {
    use super::fake::{Fake, Message};
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    const LIMIT: Size = Size {
        width: 64,
        height: 64,
    };

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    /// A viewer, and the server's end of its connection.
    fn joined(width: u16, height: u16) -> (Viewer, Fake<UnixStream>) {
        let (ours, stream) = UnixStream::pair().unwrap();
        let viewer = Viewer::new(ours.into(), Client::new(LIMIT)).unwrap();
        (
            viewer,
            Fake {
                stream,
                width,
                height,
            },
        )
    }

    #[test]
    fn the_picture_is_the_servers_pixel_for_pixel() {
        let (mut viewer, mut server) = joined(2, 2);
        let serving = std::thread::spawn(move || {
            assert_eq!(server.security(&[1]).unwrap(), 1);
            server.accept().unwrap();
            while server.message().unwrap() != (Message::Request { incremental: false }) {}
            // A new size alone is no picture.
            (server.width, server.height) = (5, 3);
            server.resize().unwrap();
            while server.message().unwrap() != (Message::Request { incremental: false }) {}
            server
                .picture(|x, y| u32::from(x) << 16 | u32::from(y))
                .unwrap();
            // The connection stays until the viewer closes it.
            while server.message().is_ok() {}
        });
        assert!(!viewer.is_whole());
        assert!(viewer.run_until(soon(), Viewer::is_whole).unwrap());
        assert_eq!(viewer.updates(), 2);
        let picture = viewer.picture();
        assert_eq!((picture.size.width, picture.size.height), (5, 3));
        assert_eq!(picture.bytes.len(), 5 * 3 * PIXEL);
        for (at, pixel) in picture.bytes.chunks(PIXEL).enumerate() {
            let expected = [(at / 5) as u8, 0, (at % 5) as u8, 0];
            assert_eq!(pixel, expected, "pixel {at}");
        }
        drop(viewer);
        serving.join().unwrap();
    }

    #[test]
    fn a_silent_server_costs_no_more_than_the_deadline() {
        let (mut viewer, server) = joined(1, 1);
        let deadline = Instant::now() + Duration::from_millis(50);
        assert!(!viewer.run_until(deadline, |_| false).unwrap());
        assert!(Instant::now() >= deadline);
        drop(server);
        let failure = viewer.run_until(soon(), |_| false).unwrap_err();
        assert!(failure.to_string().contains("closed the connection"));
    }

    #[test]
    fn bytes_beyond_the_picture_are_left_out() {
        let mut picture = Picture::new(Size {
            width: 1,
            height: 2,
        });
        picture.write(1, 0, &[1, 2, 3, 4]);
        picture.write(2, 0, &[9; 4]);
        picture.write(1, 1, &[9; 4]);
        assert_eq!(picture.bytes, [0, 0, 0, 0, 1, 2, 3, 4]);
    }
}

//! The loop: pixels from QEMU into the frame buffer, input events to QEMU.

use std::io;
use std::time::{Duration, Instant};

use stubdm_screen::Size;
use stubdm_screen::input::{Action, Input};
use stubdm_screen::placement::Placement;
use stubdm_screen::rfb::{Client, Event};

use crate::rt::event_loop::{Progress, ROUNDS, Task};
use crate::rt::poll::Interest;
use crate::rt::stream::{Read, Stream};

/// The largest screen that QEMU may have.
const LARGEST: Size = Size {
    width: 8192,
    height: 8192,
};

/// Bytes read from QEMU at once.
const CHUNK: usize = 64 << 10;
/// Bytes of input events read at once: a whole number of them.
const EVENTS: usize = 64 * stubdm_screen::input::EVENT;
/// Reads from QEMU in one turn, before the input devices get theirs.
const READS: usize = 16;
/// The least time between two updates that the kernel is to pass on at once. It passes the others on
/// by itself, 50 ms later.
const PACE: Duration = Duration::from_millis(15);

/// A frame buffer, or a test's memory.
pub(super) trait Frame {
    /// Its size.
    fn size(&self) -> Size;

    /// Makes it this large, or leaves it as it is; returns its size from now on.
    fn resize(&mut self, wanted: Size) -> Size;

    /// Writes bytes of one row, from byte `at` of it on.
    ///
    /// # Errors
    /// They are not within it.
    fn write(&mut self, row: u16, at: usize, bytes: &[u8]) -> io::Result<()>;

    /// Makes it black.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    fn clear(&mut self) -> io::Result<()>;

    /// Has the kernel pass on at once what was written.
    fn flush(&mut self);
}

/// The screen's process.
#[derive(Debug)]
pub(super) struct Worker<F> {
    socket: Stream,
    inputs: Vec<Stream>,
    frame: F,
    /// The largest the frame can be.
    largest: Size,
    placement: Placement,
    client: Client,
    input: Input,
    buffer: Vec<u8>,
    /// A whole update was drawn in this turn.
    updated: bool,
    /// The end of the pause after the last [`Frame::flush`].
    next_flush: Option<Instant>,
}

impl<F: Frame> Worker<F> {
    /// Joins a connection to a VNC server, input devices and a frame that can be made as large as
    /// `largest`.
    pub(super) fn new(socket: Stream, inputs: Vec<Stream>, frame: F, largest: Size) -> Self {
        Self {
            socket,
            inputs,
            placement: Placement::new(largest, frame.size()),
            frame,
            largest,
            client: Client::new(LARGEST),
            input: Input::default(),
            buffer: vec![0; CHUNK],
            updated: false,
            next_flush: None,
        }
    }

    /// Reads from QEMU and draws; returns whether there may be more.
    fn draw(&mut self) -> io::Result<bool> {
        for _ in 0..READS {
            let count = match self.socket.read(&mut self.buffer)? {
                Read::Bytes(count) => count,
                Read::Nothing => return Ok(false),
                Read::End => return Err(io::ErrorKind::UnexpectedEof.into()),
            };
            let mut bytes = self.buffer.get(..count).unwrap_or_default();
            while let Some(event) = self
                .client
                .poll_event(&mut bytes)
                .map_err(io::Error::other)?
            {
                match event {
                    Event::Size(screen) => {
                        let wanted = Size {
                            width: screen.width.min(self.largest.width),
                            height: screen.height.min(self.largest.height),
                        };
                        let size = match self.frame.size() {
                            size if size == wanted => size,
                            _ => self.frame.resize(wanted),
                        };
                        self.placement = Placement::new(screen, size);
                        self.frame.clear()?;
                    }
                    Event::Row { y, at, bytes } => {
                        if let Some((row, at, visible)) = self.placement.row(y, at, bytes.len()) {
                            let bytes = bytes.get(visible).unwrap_or_default();
                            self.frame.write(row, at, bytes)?;
                        }
                    }
                    Event::Updated => self.updated = true,
                }
            }
        }
        Ok(true)
    }

    /// Reads input events; a device that fails is dropped.
    fn read_inputs(&mut self) {
        let mut buffer = [0; EVENTS];
        let Self {
            inputs,
            input,
            client,
            placement,
            ..
        } = self;
        inputs.retain_mut(|device| {
            for _ in 0..ROUNDS {
                if client.is_full() {
                    break;
                }
                let count = match device.read(&mut buffer) {
                    Ok(Read::Bytes(count)) => count,
                    Ok(Read::Nothing) => break,
                    Ok(Read::End) | Err(_) => return false,
                };
                input.handle_bytes(buffer.get(..count).unwrap_or_default());
                while let Some(action) = input.poll_action() {
                    match action {
                        Action::Key { down, scancode } => client.key(down, scancode),
                        Action::Pointer { buttons, x, y } => {
                            let (x, y) = placement.pointer(x, y);
                            client.pointer(buttons, x, y)
                        }
                    };
                }
            }
            true
        });
    }

    /// Sends what waits, as far as QEMU reads it.
    fn send(&mut self) -> io::Result<()> {
        while !self.client.poll_transmit().is_empty() {
            match self.socket.write(self.client.poll_transmit())? {
                0 => break,
                count => self.client.handle_sent(count),
            }
        }
        Ok(())
    }
}

impl<F: Frame> Task for Worker<F> {
    fn interests(&self) -> Vec<Interest<'_>> {
        let sends = !self.client.poll_transmit().is_empty();
        let mut interests = self.socket.interest(true, sends);
        if !self.client.is_full() {
            let inputs = self.inputs.iter();
            interests.extend(inputs.flat_map(|input| input.interest(true, false)));
        }
        interests
    }

    fn turn(&mut self, now: Instant) -> io::Result<Progress> {
        let more = self.draw()?;
        let pauses = self.next_flush.is_some_and(|next| now < next);
        if std::mem::take(&mut self.updated) && !pauses {
            self.frame.flush();
            self.next_flush = now.checked_add(PACE);
        }
        self.read_inputs();
        self.send()?;
        Ok(match more {
            true => Progress::Again,
            false => Progress::Sleep(None),
        })
    }
}

/// Reads what waits and forgets it, within limits.
pub(super) fn discard(input: &mut Stream) {
    let mut buffer = [0; EVENTS];
    for _ in 0..ROUNDS {
        if !matches!(input.read(&mut buffer), Ok(Read::Bytes(_))) {
            return;
        }
    }
}

#[cfg(test)]
mod tests;

//! A VNC viewer, as small as it can be: the picture, keys by scancode, the pointer. The protocol is
//! `stubdm-screen`'s; the rest is independent of `stubdm`'s viewer, whose pictures it checks.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use stubdm_screen::rfb::{Client, Event};
use stubdm_screen::{PIXEL, Size};

use crate::host::soon;

/// The largest screen that is kept.
const LIMIT: Size = Size {
    width: 2560,
    height: 2048,
};

/// A connection, and what it shows.
pub(crate) struct Viewer {
    stream: TcpStream,
    client: Client,
    pub(crate) picture: Picture,
    /// Whole updates so far.
    pub(crate) updates: usize,
}

/// A screen's pixels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Picture {
    pub(crate) size: Size,
    bytes: Vec<u8>,
}

impl Picture {
    pub(crate) fn new(size: Size) -> Self {
        let pixels = usize::from(size.width) * usize::from(size.height);
        let bytes = vec![0; pixels * PIXEL];
        Self { size, bytes }
    }

    /// The colour of a pixel, as `0xRRGGBB`; black beyond the screen.
    pub(crate) fn pixel(&self, x: usize, y: usize) -> u32 {
        let at = (y * usize::from(self.size.width) + x) * PIXEL;
        match self.bytes.get(at..at + 3) {
            Some([blue, green, red]) if x < self.size.width.into() => {
                u32::from_be_bytes([0, *red, *green, *blue])
            }
            _ => 0,
        }
    }

    /// Reads a PNG file.
    pub(crate) fn read(file: &str) -> Result<Self> {
        let decoder = png::Decoder::new(BufReader::new(File::open(file).context(file.to_owned())?));
        let mut reader = decoder.read_info()?;
        let room = reader.output_buffer_size().context("its size")?;
        let mut rgb = vec![0; room];
        let info = reader.next_frame(&mut rgb)?;
        let size = Size {
            width: info.width.try_into()?,
            height: info.height.try_into()?,
        };
        let pixels = rgb.chunks_exact(3);
        let bytes = pixels.flat_map(|p| [p[2], p[1], p[0], 0]).collect();
        Ok(Self { size, bytes })
    }

    /// The pixels of a cell of text, 9 by 16: 8 by 16 of them, set or not.
    fn cell(&self, column: usize, row: usize) -> u128 {
        let mut all = 0;
        for y in 0..16 {
            for x in 0..8 {
                let set = self.pixel(column * 9 + x, row * 16 + y) != 0;
                all = all << 1 | u128::from(set);
            }
        }
        all
    }

    /// Returns whether a row of text may begin with `text`. Without a font, that is: equal letters
    /// look equal, different ones different, and a blank is blank.
    pub(crate) fn has_text(&self, text: &str) -> bool {
        let letters: Vec<char> = text.chars().collect();
        (0..usize::from(self.size.height) / 16).any(|row| {
            let cells: Vec<u128> = (0..letters.len()).map(|x| self.cell(x, row)).collect();
            let pairs = letters.iter().zip(&cells);
            pairs.clone().all(|(letter, cell)| {
                (*letter == ' ') == (*cell == 0)
                    && pairs
                        .clone()
                        .all(|(other, its)| (letter == other) == (cell == its))
            })
        })
    }
}

impl Viewer {
    /// Connects to a VNC server on this host.
    pub(crate) fn connect(port: u16, password: Option<&str>) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))
            .with_context(|| format!("connecting to a VNC server at port {port}"))?;
        stream.set_read_timeout(Some(Duration::from_millis(200)))?;
        let mut client = Client::new(LIMIT);
        if let Some(password) = password {
            client = client.with_password(password);
        }
        let mut viewer = Self {
            stream,
            client,
            picture: Picture::default(),
            updates: 0,
        };
        viewer.until("the server takes scancodes", |v| v.client.takes_scancodes())?;
        Ok(viewer)
    }

    /// Takes what comes until something holds.
    pub(crate) fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) -> Result<()> {
        let deadline = soon();
        while !holds(self) {
            if Instant::now() > deadline {
                bail!(
                    "not seen in time: {what}; the screen has {:?} after {} updates",
                    self.picture.size,
                    self.updates
                );
            }
            self.turn()?;
        }
        Ok(())
    }

    /// Takes what arrives for this long. Fails if the server closes the connection.
    pub(crate) fn watch(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.turn()?;
        }
        Ok(())
    }

    /// Waits until the server closes the connection.
    pub(crate) fn closed(&mut self) -> Result<()> {
        let deadline = soon();
        while self.turn().is_ok() {
            ensure!(Instant::now() < deadline, "the connection stays open");
        }
        Ok(())
    }

    fn turn(&mut self) -> Result<()> {
        self.send()?;
        let mut buffer = [0; 65536];
        let count = match self.stream.read(&mut buffer) {
            Ok(0) => bail!("the VNC server closed the connection"),
            Ok(count) => count,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => 0,
            Err(error) => return Err(error.into()),
        };
        let mut bytes = buffer.get(..count).unwrap_or_default();
        while let Some(event) = self.client.poll_event(&mut bytes)? {
            match event {
                Event::Size(size) => self.picture = Picture::new(size),
                Event::Row { y, at, bytes } => {
                    let row = usize::from(self.picture.size.width) * PIXEL;
                    let start = usize::from(y) * row + at;
                    let room = self.picture.bytes.get_mut(start..start + bytes.len());
                    room.context("a row beyond the screen")?
                        .copy_from_slice(bytes);
                }
                Event::Updated => self.updates += 1,
            }
        }
        self.send()
    }

    fn send(&mut self) -> Result<()> {
        let bytes = self.client.poll_transmit().to_vec();
        self.stream.write_all(&bytes)?;
        self.client.handle_sent(bytes.len());
        Ok(())
    }

    /// Presses and releases a key.
    pub(crate) fn key(&mut self, scancode: u8) -> Result<()> {
        for down in [true, false] {
            self.client.key(down, scancode);
        }
        self.send()
    }

    /// Moves the pointer.
    pub(crate) fn pointer(&mut self, buttons: u8, x: u16, y: u16) -> Result<()> {
        self.client.pointer(buttons, x, y);
        self.send()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_known_by_which_letters_are_equal() {
        let mut picture = Picture::new(Size {
            width: 90,
            height: 32,
        });
        // "abca x", a letter being as many pixels as its number.
        for (column, dots) in [1usize, 2, 3, 1, 0, 4].into_iter().enumerate() {
            for x in 0..dots {
                let at = ((16 + 3) * 90 + column * 9 + x) * PIXEL;
                picture.bytes[at] = 255;
            }
        }
        assert!(picture.has_text("abca x") && picture.has_text("xyzx a"));
        assert!(!picture.has_text("abcd x") && !picture.has_text("abcaax"));
        assert!(!picture.has_text("abab x"));
    }
}

//! A viewer that measures: the bytes that it receives, and the moment at which each update is whole.

use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::host::{PATIENCE, soon};

/// An encoding of pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Raw,
    Hextile,
    Zrle,
}

impl Encoding {
    pub(super) const ALL: [Self; 3] = [Self::Raw, Self::Hextile, Self::Zrle];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Raw => "Raw",
            Self::Hextile => "Hextile",
            Self::Zrle => "ZRLE",
        }
    }

    const fn number(self) -> i32 {
        match self {
            Self::Raw => 0,
            Self::Hextile => 5,
            Self::Zrle => 16,
        }
    }
}

/// Rectangles that carry no pixels: the screen's size, and the ability to take scancodes.
const DESKTOP_SIZE: i32 = -223;
const EXTENDED_KEYS: i32 = -258;
/// Bytes of a pixel, both servers' own format.
const PIXEL: u64 = 4;

/// A whole update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Update {
    pub(super) at: Instant,
    /// The pixel in the upper left corner, if the update has it and is raw.
    pub(super) corner: Option<u32>,
}

/// A connection, whose updates a thread takes.
#[derive(Debug)]
pub(super) struct Viewer {
    stream: TcpStream,
    updates: Receiver<Update>,
    bytes: Arc<AtomicU64>,
}

impl Viewer {
    /// Connects to a server on this host that needs no password.
    pub(super) fn connect(port: u16, encoding: Encoding) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).context("connecting")?;
        stream.set_nodelay(true)?;
        let mut writer = stream.try_clone()?;
        let bytes = Arc::new(AtomicU64::new(0));
        let mut reader = BufReader::new(Counted {
            from: stream.try_clone()?,
            bytes: Arc::clone(&bytes),
        });
        let size = handshake(&mut reader, &mut writer).context("the handshake")?;
        let wishes = [encoding.number(), DESKTOP_SIZE, EXTENDED_KEYS];
        let mut message = vec![2, 0, 0, 3];
        message.extend(wishes.iter().flat_map(|number| number.to_be_bytes()));
        message.extend(request(false, size));
        writer.write_all(&message)?;
        let (sender, updates) = channel();
        thread::spawn(move || {
            // A dropped viewer is one reason; without one, its owner would wait forever.
            if let Err(error) = take(&mut reader, &mut writer, size, &sender) {
                eprintln!("a viewer's connection ends: {error}");
            }
        });
        Ok(Self {
            stream,
            updates,
            bytes,
        })
    }

    /// Bytes that were received.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Presses or releases a key, by its scancode.
    pub(super) fn key(&self, scancode: u8, pressed: bool) -> Result<()> {
        let mut message = [255, 0, 0, u8::from(pressed), 0, 0, 0, 0, 0, 0, 0, scancode];
        // The symbol is of no use to a server that takes the scancode.
        message[7] = b'a';
        (&self.stream).write_all(&message)?;
        Ok(())
    }

    /// Forgets the updates that came, and returns the corner's last pixel, if one came.
    pub(super) fn drain(&self) -> Option<u32> {
        self.updates.try_iter().filter_map(|u| u.corner).last()
    }

    /// Waits for a corner of another colour; returns when the update was whole.
    pub(super) fn other_corner(&self, than: u32) -> Result<(Instant, u32)> {
        loop {
            let update = self.updates.recv_timeout(PATIENCE);
            let Update { at, corner } = update.context("no update with the change")?;
            match corner {
                Some(corner) if corner != than => return Ok((at, corner)),
                _ => {}
            }
        }
    }

    /// Waits until more bytes were received than these.
    pub(super) fn more_than(&self, bytes: u64) -> Result<()> {
        let deadline = soon();
        while self.bytes() <= bytes {
            ensure!(Instant::now() < deadline, "the server sends no update");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Waits until no byte came for this long.
    pub(super) fn quiet(&self, long: Duration) -> Result<()> {
        let (deadline, mut last) = (soon(), (self.bytes(), Instant::now()));
        while last.1.elapsed() < long {
            ensure!(Instant::now() < deadline, "the screen does not rest");
            thread::sleep(Duration::from_millis(20));
            let bytes = self.bytes();
            if bytes != last.0 {
                last = (bytes, Instant::now());
            }
        }
        Ok(())
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        // Ends the thread's read too.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// A reader that counts.
#[derive(Debug)]
struct Counted<R> {
    from: R,
    bytes: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.bytes.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

fn array<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn skip(from: &mut impl Read, count: u64) -> io::Result<()> {
    match io::copy(&mut from.take(count), &mut io::sink())? {
        all if all == count => Ok(()),
        _ => Err(ErrorKind::UnexpectedEof.into()),
    }
}

/// Without a password; returns the screen's size.
fn handshake(from: &mut impl Read, to: &mut impl Write) -> Result<[u16; 2]> {
    let version: [u8; 12] = array(from)?;
    ensure!(version.starts_with(b"RFB 003."), "{version:?}");
    to.write_all(b"RFB 003.008\n")?;
    let [count] = array(from)?;
    let mut types = vec![0; count.into()];
    from.read_exact(&mut types)?;
    ensure!(types.contains(&1), "security types {types:?}");
    to.write_all(&[1])?;
    let result: [u8; 4] = array(from)?;
    ensure!(result == [0; 4], "refused: {result:?}");
    to.write_all(&[1])?;
    let init: [u8; 24] = array(from)?;
    let [w0, w1, h0, h1, depth, ..] = init;
    ensure!(depth == 32, "pixels of {depth} bits");
    let length = u32::from_be_bytes([init[20], init[21], init[22], init[23]]);
    skip(from, length.into())?;
    Ok([u16::from_be_bytes([w0, w1]), u16::from_be_bytes([h0, h1])])
}

/// A request for an update of the whole screen.
fn request(incremental: bool, [width, height]: [u16; 2]) -> [u8; 10] {
    let [[w0, w1], [h0, h1]] = [width.to_be_bytes(), height.to_be_bytes()];
    [3, incremental.into(), 0, 0, 0, 0, w0, w1, h0, h1]
}

/// Takes messages until the connection ends, and answers each update with the next request.
fn take(
    from: &mut impl Read,
    to: &mut impl Write,
    mut size: [u16; 2],
    updates: &Sender<Update>,
) -> io::Result<()> {
    loop {
        let [kind] = array(from)?;
        match kind {
            0 => {
                let [_, high, low] = array(from)?;
                let mut corner = None;
                for _ in 0..u16::from_be_bytes([high, low]) {
                    corner = rectangle(from, &mut size)?.or(corner);
                }
                let at = Instant::now();
                // Nobody looks any more once the viewer is dropped.
                let _ = updates.send(Update { at, corner });
                to.write_all(&request(true, size))?;
            }
            1 => {
                let [_, _, _, high, low] = array(from)?;
                skip(from, 6 * u64::from(u16::from_be_bytes([high, low])))?;
            }
            2 => {}
            3 => {
                let [_, _, _, length @ ..]: [u8; 7] = array(from)?;
                skip(from, u32::from_be_bytes(length).into())?;
            }
            other => return Err(io::Error::other(format!("message {other}"))),
        }
    }
}

/// Takes one rectangle; returns the pixel in the screen's corner, if it has it and is raw.
fn rectangle(from: &mut impl Read, size: &mut [u16; 2]) -> io::Result<Option<u32>> {
    let header: [u8; 12] = array(from)?;
    let [x, y, width, height] =
        [0, 2, 4, 6].map(|at| u16::from_be_bytes([header[at], header[at + 1]]));
    let number = i32::from_be_bytes([header[8], header[9], header[10], header[11]]);
    let area = u64::from(width) * u64::from(height) * PIXEL;
    match number {
        0 if area > 0 => {
            let first = u32::from_le_bytes(array(from)?) & 0xff_ffff;
            skip(from, area - PIXEL)?;
            return Ok(Some(first).filter(|_| (x, y) == (0, 0)));
        }
        0 => {}
        5 => hextile(from, width, height)?,
        16 => {
            let length = u32::from_be_bytes(array(from)?);
            skip(from, length.into())?;
        }
        DESKTOP_SIZE => *size = [width, height],
        EXTENDED_KEYS => {}
        other => return Err(io::Error::other(format!("encoding {other}"))),
    }
    Ok(None)
}

fn hextile(from: &mut impl Read, width: u16, height: u16) -> io::Result<()> {
    for y in (0..height).step_by(16) {
        for x in (0..width).step_by(16) {
            let pixels = u64::from((width - x).min(16)) * u64::from((height - y).min(16));
            let [kind] = array(from)?;
            let has = |bit: u8| u64::from(kind & bit != 0);
            if kind & 1 != 0 {
                skip(from, pixels * PIXEL)?;
                continue;
            }
            skip(from, (has(2) + has(4)) * PIXEL)?;
            if kind & 8 != 0 {
                let [count] = array(from)?;
                skip(from, u64::from(count) * (2 + has(16) * PIXEL))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use stubdm_screen::server::{Options, Picture, Rect, Viewer as Server};

    /// The bytes of one update, after the handshake.
    fn update(encoding: Encoding, picture: &Picture) -> Vec<u8> {
        let mut server = Server::new(&Options::default(), [0; 16], Instant::now());
        let mut asked = b"RFB 003.008\n\x01\x01".to_vec();
        asked.extend([2, 0, 0, 1]);
        asked.extend(encoding.number().to_be_bytes());
        let (mut out, mut asked) = (Vec::new(), asked.as_slice());
        while !asked.is_empty() {
            let took = server.handle_bytes(asked).unwrap();
            asked = &asked[took..];
            while server.poll_output(picture, &mut out) {}
        }
        out.clear();
        let size = [picture.width(), picture.height()];
        server.handle_bytes(&request(false, size)).unwrap();
        server.handle_damage(Rect {
            width: size[0],
            height: size[1],
            ..Rect::default()
        });
        while server.poll_output(picture, &mut out) {}
        out
    }

    #[test]
    fn each_encoding_is_read_to_its_end() {
        let mut picture = Picture::new(90, 70);
        for y in 0..70u32 {
            let row: Vec<u32> = (0..90u32)
                .map(|x| match (x / 16 + y / 16) % 4 {
                    0 => 7,
                    1 => 7 + (x & y & 1) * 8,
                    2 => x / 3 * 999 + y,
                    _ => (x * 7919 + y * 104_729).wrapping_mul(0x9e37_79b1) >> 8,
                })
                .collect();
            picture.update_row(0, y as u16, &row);
        }
        for encoding in Encoding::ALL {
            let mut bytes = update(encoding, &picture);
            assert!(bytes.len() > 1000, "{encoding:?}: {}", bytes.len());
            // A bell, which is seen only where the update was read to its end, and half a message.
            bytes.extend([2, 0, 0]);
            let (sender, updates) = channel();
            let mut requests = Vec::new();
            let mut rest = bytes.as_slice();
            let end = take(&mut rest, &mut requests, [90, 70], &sender).unwrap_err();
            assert_eq!(end.kind(), ErrorKind::UnexpectedEof, "{encoding:?}");
            assert_eq!(requests, request(true, [90, 70]), "{encoding:?}");
            let corners: Vec<_> = updates.try_iter().map(|update| update.corner).collect();
            let corner = (encoding == Encoding::Raw).then_some(7);
            assert_eq!(corners, [corner], "{encoding:?}");
        }
    }

    #[test]
    fn other_bytes_are_an_error() {
        for bytes in [
            &[77u8][..],
            &[0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 9],
        ] {
            let (sender, _updates) = channel();
            let mut rest = bytes;
            let end = take(&mut rest, &mut io::sink(), [1, 1], &sender).unwrap_err();
            assert_eq!(end.kind(), ErrorKind::Other);
        }
    }
}

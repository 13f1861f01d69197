//! The server against a viewer that decodes all of its encodings, and against the client's core.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use flate2::{Decompress, FlushDecompress};
use proptest::prelude::*;

use super::*;
use crate::rfb::{Client, Event};
use crate::{PIXEL, Size};

const RAW: i32 = 0;
const HEXTILE: i32 = 5;
const ZRLE: i32 = 16;
const DESKTOP_SIZE: i32 = -223;
const EXTENDED_KEYS: i32 = -258;
const EXTENDED_DESKTOP_SIZE: i32 = -308;
const FENCE: i32 = -312;
const CONTINUOUS: i32 = -313;

/// A viewer's format of pixels.
#[derive(Clone, Copy, Debug)]
struct Format {
    bits: u8,
    depth: u8,
    big: bool,
    maxima: [u16; 3],
    shifts: [u8; 3],
}

const NATIVE: Format = Format {
    bits: 32,
    depth: 24,
    big: false,
    maxima: [255; 3],
    shifts: [16, 8, 0],
};

/// Formats as viewers have them: 8 and 16 bits, 32 bits with the colours in the lower, upper and
/// all bytes, with 10 bits each.
fn formats() -> Vec<Format> {
    let of = |bits, depth, maxima, shifts| {
        [false, true].map(|big| Format {
            bits,
            depth,
            big,
            maxima,
            shifts,
        })
    };
    [
        of(32, 24, [255; 3], [16, 8, 0]),
        of(32, 24, [255; 3], [0, 8, 16]),
        of(32, 24, [255; 3], [24, 16, 8]),
        of(32, 32, [255; 3], [16, 8, 0]),
        of(32, 24, [255; 3], [24, 8, 0]),
        of(32, 30, [1023; 3], [20, 10, 0]),
        of(32, 24, [15; 3], [12, 16, 20]),
        of(16, 16, [31, 63, 31], [11, 5, 0]),
        of(16, 15, [31; 3], [0, 5, 10]),
        of(8, 8, [7, 7, 3], [0, 3, 6]),
        of(8, 6, [3; 3], [4, 2, 0]),
    ]
    .concat()
}

impl Format {
    fn message(&self) -> Vec<u8> {
        let mut out = vec![0, 0, 0, 0, self.bits, self.depth, u8::from(self.big), 1];
        self.maxima
            .iter()
            .for_each(|max| out.extend(max.to_be_bytes()));
        out.extend(self.shifts);
        out.extend([0; 3]);
        out
    }

    /// The nearest pixel of this format.
    fn of(&self, pixel: u32) -> u32 {
        let [_, colours @ ..] = pixel.to_be_bytes();
        let all = colours.iter().zip(self.maxima).zip(self.shifts);
        all.fold(0, |sum, ((colour, max), shift)| {
            let value = (f64::from(*colour) * f64::from(max) / 255.0).round() as u32;
            sum | value << shift
        })
    }

    fn bytes(&self) -> usize {
        usize::from(self.bits / 8)
    }

    fn read(&self, bytes: &[u8]) -> u32 {
        let fold = |all, byte: &u8| all << 8 | u32::from(*byte);
        match self.big {
            true => bytes.iter().fold(0, fold),
            false => bytes.iter().rev().fold(0, fold),
        }
    }

    /// By the letter of RFC 6143, 7.7.5.
    fn compact(&self) -> (usize, u32) {
        let ones = self.of(0xff_ffff);
        match (self.bits, self.depth) {
            (32, ..=24) if ones < 1 << 24 => (3, 0),
            (32, ..=24) if ones & 0xff == 0 => (3, 8),
            _ => (self.bytes(), 0),
        }
    }
}

/// Bytes that are read from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }

    fn u8(&mut self) -> u8 {
        self.take(1)[0]
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.take(2).try_into().unwrap())
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take(4).try_into().unwrap())
    }

    fn rect(&mut self) -> Rect {
        let [x, y, width, height] = [(); 4].map(|()| self.u16());
        Rect {
            x,
            y,
            width,
            height,
        }
    }
}

/// A viewer that checks all that it is sent.
struct Peer {
    format: Format,
    zlib: Decompress,
    size: Size,
    pixels: Vec<u32>,
    /// Numbers of messages; tiles by encoding and kind; others by number.
    updates: usize,
    rectangles: usize,
    kinds: BTreeSet<(i32, u8)>,
    sizes: Vec<(i32, u16, u16)>,
    fences: Vec<(u32, Vec<u8>)>,
    ends: usize,
    scancodes: bool,
    map: Vec<u8>,
}

impl Peer {
    fn new(format: Format) -> Self {
        Self {
            format,
            zlib: Decompress::new(true),
            size: Size::default(),
            pixels: Vec::new(),
            updates: 0,
            rectangles: 0,
            kinds: BTreeSet::new(),
            sizes: Vec::new(),
            fences: Vec::new(),
            ends: 0,
            scancodes: false,
            map: Vec::new(),
        }
    }

    fn resize(&mut self, width: u16, height: u16) {
        self.size = Size { width, height };
        self.pixels = vec![u32::MAX; usize::from(width) * usize::from(height)];
    }

    fn init(&mut self, bytes: &[u8]) -> String {
        let mut reader = Reader(bytes);
        let (width, height) = (reader.u16(), reader.u16());
        self.resize(width, height);
        assert_eq!(reader.take(16), &[NATIVE.message()[4..].to_vec()].concat());
        let length = reader.u32() as usize;
        let name = String::from_utf8_lossy(reader.take(length)).into_owned();
        assert!(reader.0.is_empty());
        name
    }

    fn set(&mut self, x: usize, y: usize, pixel: u32) {
        let width = usize::from(self.size.width);
        assert!(x < width, "{x}, {y}");
        self.pixels[y * width + x] = pixel;
    }

    fn fill(&mut self, rect: Rect, pixel: u32) {
        for y in rect.y..rect.y + rect.height {
            for x in rect.x..rect.x + rect.width {
                self.set(x.into(), y.into(), pixel);
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        let mut reader = Reader(bytes);
        while !reader.0.is_empty() {
            match reader.u8() {
                0 => {
                    reader.u8();
                    self.updates += 1;
                    for _ in 0..reader.u16() {
                        self.rectangle(&mut reader);
                    }
                }
                1 => {
                    assert_eq!(reader.take(5), [0, 0, 0, 1, 0]);
                    self.map = reader.take(256 * 6).to_vec();
                }
                150 => self.ends += 1,
                248 => {
                    reader.take(3);
                    let flags = reader.u32();
                    let length = reader.u8().into();
                    self.fences.push((flags, reader.take(length).to_vec()));
                }
                other => panic!("message {other}"),
            }
        }
    }

    fn rectangle(&mut self, reader: &mut Reader<'_>) {
        let rect = reader.rect();
        let encoding = i32::from_be_bytes(reader.take(4).try_into().unwrap());
        match encoding {
            DESKTOP_SIZE | EXTENDED_DESKTOP_SIZE => {
                self.sizes.push((encoding, rect.x, rect.y));
                if encoding == EXTENDED_DESKTOP_SIZE {
                    assert_eq!(reader.take(4), [1, 0, 0, 0]);
                    reader.take(4);
                    let screen = reader.rect();
                    reader.take(4);
                    assert_eq!((screen.x, screen.y), (0, 0));
                    let size = (screen.width, screen.height);
                    assert_eq!(size, (rect.width, rect.height));
                }
                let size = (rect.width, rect.height);
                if (self.size.width, self.size.height) != size {
                    self.resize(rect.width, rect.height);
                }
                return;
            }
            EXTENDED_KEYS => {
                self.scancodes = true;
                return;
            }
            _ => {}
        }
        assert!(rect.width > 0 && rect.height > 0);
        self.rectangles += 1;
        match encoding {
            RAW => {
                for y in rect.y..rect.end() {
                    for x in rect.x..rect.right() {
                        let pixel = self.format.read(reader.take(self.format.bytes()));
                        self.set(x.into(), y.into(), pixel);
                    }
                }
            }
            HEXTILE => self.hextile(rect, reader),
            ZRLE => {
                let length = reader.u32() as usize;
                let mut plain = Vec::with_capacity(128 << 10);
                let packed = reader.take(length);
                let before = self.zlib.total_in();
                let flush = FlushDecompress::Sync;
                self.zlib.decompress_vec(packed, &mut plain, flush).unwrap();
                assert_eq!(self.zlib.total_in() - before, length as u64);
                let mut reader = Reader(&plain);
                self.zrle(rect, &mut reader);
                assert!(reader.0.is_empty());
            }
            other => panic!("encoding {other}"),
        }
    }

    fn tiles(rect: Rect, side: u16) -> Vec<Rect> {
        let mut tiles = Vec::new();
        for y in (rect.y..rect.end()).step_by(side.into()) {
            for x in (rect.x..rect.right()).step_by(side.into()) {
                let (width, height) = (side.min(rect.right() - x), side.min(rect.end() - y));
                tiles.push(Rect {
                    x,
                    y,
                    width,
                    height,
                });
            }
        }
        tiles
    }

    fn hextile(&mut self, rect: Rect, reader: &mut Reader<'_>) {
        let format = self.format;
        let pixel = |reader: &mut Reader<'_>| format.read(reader.take(format.bytes()));
        let (mut background, mut foreground) = (None, None);
        for tile in Self::tiles(rect, 16) {
            let kind = reader.u8();
            self.kinds.insert((HEXTILE, kind));
            if kind & 1 != 0 {
                for y in tile.y..tile.end() {
                    for x in tile.x..tile.right() {
                        let pixel = pixel(reader);
                        self.set(x.into(), y.into(), pixel);
                    }
                }
                (background, foreground) = (None, None);
                continue;
            }
            if kind & 2 != 0 {
                background = Some(pixel(reader));
            }
            self.fill(tile, background.expect("a background"));
            if kind & 4 != 0 {
                foreground = Some(pixel(reader));
            }
            if kind & 16 != 0 {
                assert_eq!(kind & 4, 0);
                foreground = None;
            }
            if kind & 8 == 0 {
                continue;
            }
            for _ in 0..reader.u8() {
                let colour = match kind & 16 {
                    0 => foreground.expect("a foreground"),
                    _ => pixel(reader),
                };
                let (place, size) = (reader.u8(), reader.u8());
                let part = Rect {
                    x: tile.x + u16::from(place >> 4),
                    y: tile.y + u16::from(place & 15),
                    width: u16::from(size >> 4) + 1,
                    height: u16::from(size & 15) + 1,
                };
                assert!(tile.contains(&part));
                self.fill(part, colour);
            }
        }
    }

    fn zrle(&mut self, rect: Rect, reader: &mut Reader<'_>) {
        let (bytes, shift) = self.format.compact();
        let format = self.format;
        let pixel = |reader: &mut Reader<'_>| format.read(reader.take(bytes)) << shift;
        let length = |reader: &mut Reader<'_>| {
            let mut sum = 1;
            loop {
                let byte = usize::from(reader.u8());
                sum += byte;
                if byte < 255 {
                    return sum;
                }
            }
        };
        for tile in Self::tiles(rect, 64) {
            let area = usize::from(tile.width) * usize::from(tile.height);
            let kind = reader.u8();
            self.kinds.insert((ZRLE, kind));
            let palette: Vec<u32> = match kind {
                0 | 128 => Vec::new(),
                1..=16 | 130.. => (0..kind & 127).map(|_| pixel(reader)).collect(),
                other => panic!("tile {other}"),
            };
            let mut pixels = Vec::new();
            match kind {
                0 => pixels.extend((0..area).map(|_| pixel(reader))),
                1 => pixels.extend(vec![palette[0]; area]),
                2..=16 => {
                    let bits = match kind {
                        2 => 1,
                        3 | 4 => 2,
                        _ => 4,
                    };
                    for _ in 0..tile.height {
                        let row = reader.take((usize::from(tile.width) * bits).div_ceil(8));
                        for x in 0..usize::from(tile.width) {
                            let byte = row[x * bits / 8];
                            let index = byte >> (8 - bits - x * bits % 8) & ((1 << bits) - 1);
                            pixels.push(palette[usize::from(index)]);
                        }
                    }
                }
                128 => {
                    while pixels.len() < area {
                        let pixel = pixel(reader);
                        pixels.extend(vec![pixel; length(reader)]);
                    }
                }
                _ => {
                    while pixels.len() < area {
                        let index = reader.u8();
                        let count = if index < 128 { 1 } else { length(reader) };
                        pixels.extend(vec![palette[usize::from(index & 127)]; count]);
                    }
                }
            }
            assert_eq!(pixels.len(), area, "tile {kind}");
            for (at, pixel) in pixels.into_iter().enumerate() {
                let width = usize::from(tile.width);
                let (x, y) = (at % width, at / width);
                self.set(usize::from(tile.x) + x, usize::from(tile.y) + y, pixel);
            }
        }
    }

    /// Asserts that the viewer shows the picture, black where it has more pixels.
    fn assert_shows(&self, picture: &Picture) {
        for y in 0..self.size.height {
            for x in 0..self.size.width {
                let exact = picture.row(y).get(usize::from(x)).copied().unwrap_or(0);
                let shown =
                    self.pixels[usize::from(y) * usize::from(self.size.width) + usize::from(x)];
                assert_eq!(shown, self.format.of(exact), "at {x}, {y}: {exact:#x}");
            }
        }
    }
}

fn options(password: Option<[u8; 8]>) -> Options {
    Options {
        name: "guest".into(),
        password,
    }
}

/// All that the viewer is sent.
fn output(viewer: &mut Viewer, picture: &Picture) -> Vec<u8> {
    let mut all = Vec::new();
    while piece(viewer, picture, &mut all) {}
    all
}

fn piece(viewer: &mut Viewer, picture: &Picture, all: &mut Vec<u8>) -> bool {
    let mut out = Vec::new();
    let more = viewer.poll_output(picture, &mut out);
    assert_eq!(more, !out.is_empty());
    assert!(out.len() <= PIECE_MAX, "{} bytes", out.len());
    all.extend(out);
    more
}

/// Sends bytes that are taken whole.
fn send(viewer: &mut Viewer, bytes: &[u8]) {
    assert_eq!(viewer.handle_bytes(bytes), Ok(bytes.len()));
}

fn encodings(numbers: &[i32]) -> Vec<u8> {
    let mut out = vec![2, 0];
    out.extend((numbers.len() as u16).to_be_bytes());
    numbers
        .iter()
        .for_each(|number| out.extend(number.to_be_bytes()));
    out
}

fn area(rect: Rect) -> Vec<u8> {
    let all = [rect.x, rect.y, rect.width, rect.height];
    all.iter().flat_map(|number| number.to_be_bytes()).collect()
}

fn request(incremental: bool, rect: Rect) -> Vec<u8> {
    [vec![3, incremental.into()], area(rect)].concat()
}

const ALL: Rect = Rect {
    x: 0,
    y: 0,
    width: u16::MAX,
    height: u16::MAX,
};

/// A viewer after the handshake, its peer, and the encodings that it asked for.
fn joined(picture: &Picture, format: Format, wishes: &[i32]) -> (Viewer, Peer) {
    let mut viewer = Viewer::new(&options(None), [0; 16], Instant::now());
    assert_eq!(output(&mut viewer, picture), b"RFB 003.008\n");
    send(&mut viewer, b"RFB 003.008\n");
    assert_eq!(output(&mut viewer, picture), [1, 1]);
    send(&mut viewer, &[1]);
    assert_eq!(output(&mut viewer, picture), [0; 4]);
    assert!(!viewer.is_authenticated());
    send(&mut viewer, &[1]);
    let mut peer = Peer::new(format);
    assert_eq!(peer.init(&output(&mut viewer, picture)), "guest");
    assert!(viewer.is_authenticated() && viewer.poll_timeout().is_none());
    send(&mut viewer, &format.message());
    send(&mut viewer, &encodings(wishes));
    (viewer, peer)
}

/// Pictures of several kinds: one colour, few, many, noise, in runs and in blocks.
fn painted(width: u16, height: u16, colours: u32, run: u32, seed: u32) -> Picture {
    let mut picture = Picture::new(width, height);
    let mut state = seed | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    for y in 0..height {
        let mut row: Vec<u32> = Vec::new();
        if run > 100 && y % 16 != 0 {
            // Blocks: the row above once more.
            row = picture.row(y - 1).to_vec();
        }
        while row.len() < width.into() {
            let colour = (next() % colours).wrapping_mul(0x9e37_79b1) >> 8;
            let length = next() % run + 1;
            row.extend(vec![colour; length as usize]);
        }
        row.truncate(width.into());
        picture.update_row(0, y, &row);
    }
    picture
}

#[test]
fn every_version_is_spoken_without_a_password() {
    let picture = Picture::new(3, 2);
    // The versions; the offer; the choice, the result.
    let versions: [[&[u8]; 4]; 6] = [
        [b"RFB 003.003\n", &[0, 0, 0, 1], &[], &[]],
        [b"RFB 003.005\n", &[0, 0, 0, 1], &[], &[]],
        [b"RFB 003.007\n", &[1, 1], &[1], &[]],
        [b"RFB 003.008\n", &[1, 1], &[1], &[0; 4]],
        [b"RFB 003.009\n", &[1, 1], &[1], &[0; 4]],
        [b"RFB 003.889\n", &[1, 1], &[1], &[0; 4]],
    ];
    for [version, offer, choice, result] in versions {
        let mut viewer = Viewer::new(&options(None), [0; 16], Instant::now());
        output(&mut viewer, &picture);
        send(&mut viewer, version);
        assert_eq!(output(&mut viewer, &picture), offer);
        send(&mut viewer, choice);
        assert_eq!(output(&mut viewer, &picture), result, "{version:?}");
        send(&mut viewer, &[0]);
        assert!(viewer.is_authenticated());
        Peer::new(NATIVE).init(&output(&mut viewer, &picture));
    }
}

#[test]
fn a_password_is_checked_in_every_version() {
    let picture = Picture::new(3, 2);
    let challenge = [0x5a; 16];
    let options = options(Some(*b"secret\0\0"));
    assert!(!format!("{options:?}").contains("secret") && format!("{options:?}").contains('…'));
    let refusal = [&[0, 0, 0, 1, 0, 0, 0, 21][..], b"the password is wrong"].concat();
    let versions: [[&[u8]; 4]; 3] = [
        [b"RFB 003.003\n", &[0, 0, 0, 2], &[], &refusal[..4]],
        [b"RFB 003.007\n", &[1, 2], &[2], &refusal[..4]],
        [b"RFB 003.008\n", &[1, 2], &[2], &refusal],
    ];
    for [version, offer, choice, refused] in versions {
        for right in [true, false] {
            let mut viewer = Viewer::new(&options, challenge, Instant::now());
            output(&mut viewer, &picture);
            send(&mut viewer, version);
            let mut expected = offer.to_vec();
            if choice.is_empty() {
                expected.extend(challenge);
            }
            assert_eq!(output(&mut viewer, &picture), expected);
            send(&mut viewer, choice);
            if !choice.is_empty() {
                assert_eq!(output(&mut viewer, &picture), challenge);
            }
            let password: &[u8] = if right { b"secret" } else { b"Secret" };
            let response = crate::auth::respond(password, &challenge);
            if right {
                send(&mut viewer, &response);
                assert_eq!(output(&mut viewer, &picture), [0; 4]);
                assert!(!viewer.is_authenticated());
                send(&mut viewer, &[1]);
                assert!(viewer.is_authenticated());
                continue;
            }
            for _ in 0..2 {
                let result = viewer.handle_bytes(&response);
                assert_eq!(result, Err(ViewerError::Password));
            }
            assert!(!viewer.is_authenticated());
            assert_eq!(output(&mut viewer, &picture), refused);
            assert_eq!(
                viewer.handle_timeout(Instant::now()),
                Err(ViewerError::Password)
            );
        }
    }
}

#[test]
fn no_type_of_security_but_the_offered_one_is_taken() {
    for (password, wrong) in [(None, 2), (Some([7; 8]), 1), (None, 0), (None, 16)] {
        let mut viewer = Viewer::new(&options(password), [0; 16], Instant::now());
        send(&mut viewer, b"RFB 003.008\n");
        assert_eq!(
            viewer.handle_bytes(&[wrong]),
            Err(ViewerError::Security(wrong))
        );
        assert!(!viewer.is_authenticated());
    }
}

#[test]
fn the_handshake_has_a_deadline_and_the_rest_has_none() {
    let start = Instant::now();
    let mut viewer = Viewer::new(&options(None), [0; 16], start);
    assert_eq!(viewer.poll_timeout(), Some(start + HANDSHAKE));
    send(&mut viewer, b"RFB 003.008\n\x01");
    let nearly = start + HANDSHAKE - Duration::from_millis(1);
    assert_eq!(viewer.handle_timeout(nearly), Ok(()));
    assert_eq!(
        viewer.handle_timeout(start + HANDSHAKE),
        Err(ViewerError::TimedOut)
    );
    assert_eq!(viewer.handle_bytes(&[1]), Err(ViewerError::TimedOut));
    assert!(!viewer.is_authenticated());

    let (mut viewer, _) = joined(&Picture::new(1, 1), NATIVE, &[RAW]);
    assert_eq!(viewer.handle_timeout(start + 100 * HANDSHAKE), Ok(()));
}

#[test]
fn a_violation_is_named_and_ends_the_connection() {
    let mut viewer = Viewer::new(&options(None), [0; 16], Instant::now());
    let error = ViewerError::Version("GET / HTTP/1".into());
    assert_eq!(viewer.handle_bytes(b"GET / HTTP/1.1\r\n"), Err(error));
    for version in [
        b"RFB 003.002\n",
        b"RFB 004.001\n",
        b"RFB 003.+08\n",
        b"RFB 003.008 ",
    ] {
        let mut viewer = Viewer::new(&options(None), [0; 16], Instant::now());
        let result = viewer.handle_bytes(version);
        assert!(
            matches!(result, Err(ViewerError::Version(_))),
            "{version:?}"
        );
    }
    let picture = Picture::new(64, 64);
    let bad: [(&[u8], ViewerError); 6] = [
        (&[1], ViewerError::Message(1)),
        (&[7], ViewerError::Message(7)),
        (&[255, 1], ViewerError::Message(255)),
        (
            &[
                0, 0, 0, 0, 24, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0,
            ],
            ViewerError::Format { bits: 24 },
        ),
        (&[6, 0, 0, 0, 0, 16, 0, 1], ViewerError::Text(TEXT_MAX + 1)),
        (&[248, 0, 0, 0, 128, 0, 0, 0, 65], ViewerError::Fence(65)),
    ];
    for (bytes, error) in bad {
        let (mut viewer, _) = joined(&picture, NATIVE, &[RAW]);
        send(&mut viewer, &request(false, ALL));
        assert!(piece(&mut viewer, &picture, &mut Vec::new()));
        send(&mut viewer, &[248, 0, 0, 0, 128, 0, 0, 0, 0]);
        for _ in 0..2 {
            assert_eq!(viewer.handle_bytes(bytes), Err(error.clone()));
        }
        viewer.handle_damage(ALL);
        assert_eq!(output(&mut viewer, &picture), [], "after {error}");
    }
}

#[test]
fn each_encoding_shows_the_picture_in_each_format() {
    let mut kinds = BTreeSet::new();
    for format in formats() {
        for encoding in [RAW, HEXTILE, ZRLE] {
            for (at, (colours, run)) in [
                (1, 1),
                (2, 3),
                (2, 300),
                (3, 90),
                (9, 2),
                (14, 40),
                (60, 9),
                (120, 150),
                (1 << 20, 1),
                (1 << 20, 90),
            ]
            .into_iter()
            .enumerate()
            {
                let picture = painted(131, 70, colours, run, at as u32 * 77 + 5);
                let (mut viewer, mut peer) = joined(&picture, format, &[encoding]);
                send(&mut viewer, &request(false, ALL));
                peer.take(&output(&mut viewer, &picture));
                assert_eq!(peer.updates, 1);
                peer.assert_shows(&picture);
                kinds.extend(peer.kinds);
            }
        }
    }
    // Each kind of tile was among them.
    let has = |encoding, range: std::ops::RangeInclusive<u8>| {
        range
            .into_iter()
            .any(|kind| kinds.contains(&(encoding, kind)))
    };
    for kind in [0, 1, 2, 8, 10, 12, 14, 24, 26] {
        assert!(has(HEXTILE, kind..=kind), "Hextile {kind}: {kinds:?}");
    }
    for range in [0..=0, 1..=1, 2..=2, 3..=4, 5..=16, 128..=128, 130..=255] {
        assert!(has(ZRLE, range.clone()), "ZRLE {range:?}: {kinds:?}");
    }
}

#[test]
fn large_pictures_come_in_pieces() {
    for (width, height) in [(1920, 300), (8192, 33), (1, 8192), (257, 700), (4096, 130)] {
        let picture = painted(width, height, 1 << 20, 2, 9);
        for encoding in [RAW, HEXTILE, ZRLE] {
            let (mut viewer, mut peer) = joined(&picture, NATIVE, &[encoding]);
            send(&mut viewer, &request(false, ALL));
            peer.take(&output(&mut viewer, &picture));
            assert_eq!(peer.updates, 1);
            peer.assert_shows(&picture);
        }
    }
}

#[test]
fn the_longest_pieces_are_within_the_limit() {
    // Noise that no encoding shortens, and whole tiles of every shape.
    for (width, height) in [
        (1024, 16),
        (256, 64),
        (1025, 33),
        (8192, 2),
        (17, 1040),
        (65, 300),
    ] {
        let picture = painted(width, height, u32::MAX, 1, 3);
        for encoding in [RAW, HEXTILE, ZRLE] {
            let (mut viewer, mut peer) = joined(&picture, formats()[6], &[encoding]);
            send(&mut viewer, &request(false, ALL));
            // output() has the assertion.
            peer.take(&output(&mut viewer, &picture));
            peer.assert_shows(&picture);
        }
    }
}

#[test]
fn an_update_has_no_more_rectangles_than_a_message_can_name() {
    use super::encode::Encoding;
    for number in [RAW, HEXTILE, ZRLE] {
        let encoding = Encoding::of(number).unwrap();
        for width in (1..=SIDE_MAX).step_by(13).chain([SIDE_MAX]) {
            let rect = Rect {
                x: 0,
                y: 0,
                width,
                height: SIDE_MAX,
            };
            assert!(encoding.pieces(&rect) <= 4096, "{encoding:?} {width}");
        }
    }
}

#[test]
fn the_first_encoding_that_is_supported_is_used() {
    let picture = Picture::new(10, 10);
    // Tight and CopyRect are not.
    for (wishes, used) in [
        (&[7, 1, 16, 5, 0][..], ZRLE),
        (&[5, 16], HEXTILE),
        (&[7, 99], RAW),
        (&[], RAW),
    ] {
        let (mut viewer, mut peer) = joined(&picture, NATIVE, wishes);
        send(&mut viewer, &request(false, ALL));
        let bytes = output(&mut viewer, &picture);
        let number = i32::from_be_bytes(bytes[12..16].try_into().unwrap());
        assert_eq!(number, used, "{wishes:?}");
        peer.take(&bytes);
        peer.assert_shows(&picture);
    }
}

#[test]
fn a_colour_map_is_sent_before_the_pixels_that_use_it() {
    let picture = painted(40, 30, 99, 3, 4);
    let format = Format {
        bits: 8,
        depth: 8,
        big: false,
        maxima: [7, 7, 3],
        shifts: [0, 3, 6],
    };
    for encoding in [RAW, HEXTILE, ZRLE] {
        let (mut viewer, mut peer) = joined(&picture, format, &[encoding]);
        let mut message = format.message();
        message[7] = 0;
        send(&mut viewer, &message);
        send(&mut viewer, &request(false, ALL));
        let bytes = output(&mut viewer, &picture);
        assert_eq!(bytes[0], 1);
        peer.take(&bytes);
        peer.assert_shows(&picture);
        assert_eq!(peer.map.len(), 256 * 6);
        // It is not sent again.
        send(&mut viewer, &request(false, ALL));
        assert_eq!(output(&mut viewer, &picture)[0], 0);
    }
}

#[test]
fn another_format_is_for_the_next_update() {
    let picture = painted(300, 200, 1 << 20, 1, 2);
    let (mut viewer, mut peer) = joined(&picture, NATIVE, &[HEXTILE]);
    send(&mut viewer, &request(false, ALL));
    let mut bytes = Vec::new();
    assert!(piece(&mut viewer, &picture, &mut bytes));
    let other = formats()[14];
    send(&mut viewer, &other.message());
    bytes.extend(output(&mut viewer, &picture));
    peer.take(&bytes);
    peer.assert_shows(&picture);
    send(&mut viewer, &request(false, ALL));
    peer.format = other;
    peer.take(&output(&mut viewer, &picture));
    peer.assert_shows(&picture);
}

#[test]
fn only_damage_that_was_asked_for_is_sent() {
    let mut picture = painted(300, 200, 50, 4, 2);
    let (mut viewer, mut peer) = joined(&picture, NATIVE, &[ZRLE]);
    // Nothing is asked for.
    assert_eq!(output(&mut viewer, &picture), []);
    send(&mut viewer, &request(true, ALL));
    peer.take(&output(&mut viewer, &picture));
    peer.assert_shows(&picture);
    // Nothing is damaged.
    send(&mut viewer, &request(true, ALL));
    assert_eq!(output(&mut viewer, &picture), []);
    let mut spot = |viewer: &mut Viewer, x, y| {
        picture.update_row(x, y, &[0x12_3456; 5]).unwrap();
        viewer.handle_damage(Rect {
            x,
            y,
            width: 5,
            height: 1,
        });
        picture.clone()
    };
    let picture = spot(&mut viewer, 100, 50);
    let bytes = output(&mut viewer, &picture);
    assert!(bytes.len() < 100, "{}", bytes.len());
    peer.take(&bytes);
    peer.assert_shows(&picture);
    // The request is answered: the next damage waits for the next one that names it.
    let picture = spot(&mut viewer, 200, 150);
    assert_eq!(output(&mut viewer, &picture), []);
    let corner = Rect {
        width: 100,
        height: 100,
        ..ALL
    };
    send(&mut viewer, &request(true, corner));
    assert_eq!(output(&mut viewer, &picture), []);
    send(&mut viewer, &request(true, ALL));
    peer.take(&output(&mut viewer, &picture));
    peer.assert_shows(&picture);
    assert_eq!((peer.updates, peer.rectangles), (3, 2 * 4 + 2));
    // A part that is asked for anew is sent without damage.
    send(&mut viewer, &request(false, corner));
    peer.take(&output(&mut viewer, &picture));
    assert_eq!(peer.rectangles, 2 * 4 + 3);
    // Absurd parts are none.
    for rect in [Rect { x: 300, ..ALL }, Rect { width: 0, ..ALL }] {
        send(&mut viewer, &request(false, rect));
        assert_eq!(output(&mut viewer, &picture), []);
    }
}

#[test]
fn a_million_requests_are_one() {
    let picture = painted(64, 64, 50, 4, 2);
    let (mut viewer, mut peer) = joined(&picture, NATIVE, &[ZRLE]);
    let many = [request(false, ALL), request(true, ALL)]
        .concat()
        .repeat(5000);
    for _ in 0..100 {
        send(&mut viewer, &many);
    }
    peer.take(&output(&mut viewer, &picture));
    assert_eq!((peer.updates, peer.rectangles), (1, 1));
    peer.assert_shows(&picture);
}

#[test]
fn viewers_follow_the_size_if_they_can() {
    for (wishes, kind) in [
        (&[HEXTILE, DESKTOP_SIZE][..], Some(DESKTOP_SIZE)),
        (
            &[HEXTILE, EXTENDED_DESKTOP_SIZE, DESKTOP_SIZE],
            Some(EXTENDED_DESKTOP_SIZE),
        ),
        (&[HEXTILE], None),
    ] {
        let mut picture = painted(60, 40, 50, 4, 2);
        let (mut viewer, mut peer) = joined(&picture, NATIVE, wishes);
        peer.take(&output(&mut viewer, &picture));
        // The current size, at once.
        let announced = kind.filter(|kind| *kind == EXTENDED_DESKTOP_SIZE);
        assert_eq!(
            peer.sizes,
            Vec::from_iter(announced.map(|kind| (kind, 0, 0)))
        );
        peer.sizes.clear();
        send(&mut viewer, &request(true, ALL));
        peer.take(&output(&mut viewer, &picture));
        for (width, height) in [(90, 20), (10, 70), (60, 40)] {
            picture = painted(width, height, 50, 4, width.into());
            viewer.handle_resize(width, height);
            assert_eq!(output(&mut viewer, &picture), []);
            send(&mut viewer, &request(true, ALL));
            peer.take(&output(&mut viewer, &picture));
            if let Some(kind) = kind {
                assert_eq!(peer.sizes, [(kind, 0, 0)]);
                assert_eq!((peer.size.width, peer.size.height), (width, height));
                peer.sizes.clear();
                send(&mut viewer, &request(true, ALL));
                peer.take(&output(&mut viewer, &picture));
            }
            peer.assert_shows(&picture);
        }
        assert_eq!(peer.sizes, []);
        // The viewer cannot change it.
        let mut change = vec![251, 0, 0, 9, 0, 9, 1, 0];
        change.extend([0; 16]);
        send(&mut viewer, &change);
        peer.take(&output(&mut viewer, &picture));
        let refusal = announced.map(|kind| (kind, 1, 1));
        assert_eq!(peer.sizes, Vec::from_iter(refusal));
    }
}

#[test]
fn a_picture_without_pixels_is_a_black_one() {
    let picture = Picture::new(0, 7);
    let (mut viewer, mut peer) = joined(&picture, NATIVE, &[ZRLE, DESKTOP_SIZE]);
    send(&mut viewer, &request(true, ALL));
    peer.take(&output(&mut viewer, &picture));
    assert_eq!((peer.size.width, peer.size.height), (1, 7));
    peer.assert_shows(&picture);
    send(&mut viewer, &[5, 1, 0, 9, 0, 9]);
    let pointer = Input::Pointer {
        x: 0,
        y: 6,
        buttons: 1,
    };
    assert_eq!(viewer.poll_input(), Some(pointer));
}

#[test]
fn continuous_updates_need_no_request_and_cost_nothing_without_damage() {
    let mut picture = painted(300, 200, 50, 4, 2);
    let (mut viewer, mut peer) = joined(&picture, NATIVE, &[ZRLE, FENCE, CONTINUOUS]);
    peer.take(&output(&mut viewer, &picture));
    // Both are announced.
    assert_eq!((peer.ends, &peer.fences[..]), (1, &[(1 << 31, vec![])][..]));
    // The viewer's answer is none to answer.
    send(&mut viewer, &[248, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(output(&mut viewer, &picture), []);
    let part = Rect {
        x: 50,
        y: 50,
        width: 200,
        height: 100,
    };
    send(&mut viewer, &[vec![150, 1], area(part)].concat());
    peer.take(&output(&mut viewer, &picture));
    assert_eq!(peer.updates, 1);
    for round in 0u16..40 {
        for at in 0..20 {
            let (x, y) = (at * 14, (at * 37 + round * 11) % 200);
            let span = picture.update_row(x, y, &[u32::from(round * 20 + at) + 1; 9]);
            let (first, end) = span.unwrap_or((x, x + 1));
            viewer.handle_damage(Rect {
                x: first,
                y,
                width: end - first,
                height: 1,
            });
        }
        let mut bytes = Vec::new();
        for piece_number in 0.. {
            assert!(piece_number < 100, "updates without end");
            if !piece(&mut viewer, &picture, &mut bytes) {
                break;
            }
        }
        peer.take(&bytes);
    }
    for y in part.y..part.end() {
        for x in part.x..part.right() {
            let (x, row) = (usize::from(x), picture.row(y));
            assert_eq!(peer.pixels[usize::from(y) * 300 + x], row[x], "{x}, {y}");
        }
    }
    // The rest by a request, and then no more.
    send(&mut viewer, &request(true, ALL));
    peer.take(&output(&mut viewer, &picture));
    peer.assert_shows(&picture);
    send(&mut viewer, &[vec![150, 0], area(part)].concat());
    viewer.handle_damage(ALL);
    peer.take(&output(&mut viewer, &picture));
    assert_eq!(peer.ends, 2);
}

#[test]
fn continuous_updates_of_the_whole_screen_follow_its_size() {
    let mut picture = painted(60, 40, 50, 4, 2);
    let wishes = [HEXTILE, CONTINUOUS, EXTENDED_KEYS, DESKTOP_SIZE];
    let (mut viewer, mut peer) = joined(&picture, NATIVE, &wishes);
    send(&mut viewer, &[vec![150, 1], area(ALL)].concat());
    peer.take(&output(&mut viewer, &picture));
    peer.assert_shows(&picture);
    // Nothing is announced twice.
    send(&mut viewer, &encodings(&wishes));
    assert_eq!(output(&mut viewer, &picture), []);
    for (width, height) in [(90, 70), (30, 80)] {
        picture = painted(width, height, 50, 4, 3);
        viewer.handle_resize(width, height);
        peer.take(&output(&mut viewer, &picture));
        assert_eq!((peer.size.width, peer.size.height), (width, height));
        peer.assert_shows(&picture);
    }
}

#[test]
fn requests_for_two_parts_are_answered_with_both() {
    let picture = painted(200, 100, 50, 4, 2);
    let (mut viewer, mut peer) = joined(&picture, NATIVE, &[HEXTILE]);
    let part = |x| Rect {
        x,
        y: 0,
        width: 100,
        height: 100,
    };
    send(
        &mut viewer,
        &[request(true, part(0)), request(true, part(100))].concat(),
    );
    peer.take(&output(&mut viewer, &picture));
    assert_eq!(peer.updates, 1);
    peer.assert_shows(&picture);
}

#[test]
fn a_foreground_is_named_again_after_a_tile_of_several() {
    let mut picture = Picture::new(64, 16);
    // Tiles with one colour on the background, several, the first one's again, and once more.
    for (tile, colours) in [
        (0, [7, 7, 7]),
        (16, [1, 2, 3]),
        (32, [7, 7, 7]),
        (48, [7, 7, 7]),
    ] {
        picture.update_row(tile, 3, &colours);
    }
    let (mut viewer, mut peer) = joined(&picture, NATIVE, &[HEXTILE]);
    send(&mut viewer, &request(true, ALL));
    peer.take(&output(&mut viewer, &picture));
    peer.assert_shows(&picture);
    let kinds = [2 | 4 | 8, 8 | 16, 4 | 8, 8].map(|kind| (HEXTILE, kind));
    assert_eq!(peer.kinds, BTreeSet::from(kinds));
}

#[test]
fn fences_are_answered_between_updates_and_a_flood_of_them_waits() {
    let picture = painted(300, 200, 1 << 20, 1, 2);
    let (mut viewer, mut peer) = joined(&picture, NATIVE, &[RAW, FENCE]);
    send(&mut viewer, &request(true, ALL));
    let mut bytes = Vec::new();
    // The announcement of fences, and a piece of the update.
    assert!(piece(&mut viewer, &picture, &mut bytes) && piece(&mut viewer, &picture, &mut bytes));
    let mut fence = vec![248, 0, 0, 0, 0x80, 0, 0, 0xff, 64];
    fence.extend([7; 64]);
    let flood = fence.repeat(1000);
    let taken = viewer.handle_bytes(&flood).unwrap();
    assert!(taken < 20 * fence.len(), "{taken}");
    assert_eq!(viewer.handle_bytes(&flood), Ok(0));
    bytes.extend(output(&mut viewer, &picture));
    peer.take(&bytes);
    peer.assert_shows(&picture);
    let answers = peer
        .fences
        .iter()
        .filter(|fence| **fence == (7, vec![7; 64]));
    assert_eq!(answers.count(), taken / fence.len());
    assert!(viewer.handle_bytes(&flood[taken..]).unwrap() > 0);
}

#[test]
fn keys_come_by_scancode_or_by_symbol() {
    let picture = Picture::new(9, 9);
    let (mut viewer, mut peer) = joined(&picture, NATIVE, &[RAW, EXTENDED_KEYS]);
    peer.take(&output(&mut viewer, &picture));
    assert!(peer.scancodes);
    let qemu = |down: u8, symbol: u32, code: u32| {
        let (symbol, code) = (symbol.to_be_bytes(), code.to_be_bytes());
        [&[255, 0, 0, down][..], &symbol, &code].concat()
    };
    let plain = |down: u8, symbol: u32| [&[4, down, 0, 0][..], &symbol.to_be_bytes()].concat();
    // A by its scancode though the symbol is another; the arrow in both spellings; B by its symbol.
    send(&mut viewer, &qemu(1, 0x71, 0x1e));
    send(&mut viewer, &qemu(1, 0xff51, 0xcb));
    send(&mut viewer, &qemu(0, 0xff51, 0xe04b));
    send(&mut viewer, &qemu(1, 0x62, 0));
    send(&mut viewer, &plain(0, 0x42));
    // Unknown ones, and a release of a key that is not pressed.
    send(&mut viewer, &qemu(1, 0, 0x1_001e));
    send(&mut viewer, &plain(1, 0x1234_5678));
    send(&mut viewer, &plain(0, 0x63));
    let key = |keycode, pressed| Input::Key { keycode, pressed };
    let inputs = [
        key(30, true),
        key(105, true),
        key(105, false),
        key(48, true),
        key(48, false),
    ];
    assert_eq!(
        std::iter::from_fn(|| viewer.poll_input()).collect::<Vec<_>>(),
        inputs
    );
    // Repeats are passed on.
    send(&mut viewer, &[plain(1, 0x20), plain(1, 0x20)].concat());
    send(&mut viewer, &[5, 2, 0, 1, 0, 1]);
    viewer.release_keys();
    let pointer = |buttons| Input::Pointer {
        x: 1,
        y: 1,
        buttons,
    };
    let inputs = [
        key(57, true),
        key(57, true),
        pointer(2),
        key(30, false),
        key(57, false),
        pointer(0),
    ];
    assert_eq!(
        std::iter::from_fn(|| viewer.poll_input()).collect::<Vec<_>>(),
        inputs
    );
    viewer.release_keys();
    assert_eq!(viewer.poll_input(), None);
}

#[test]
fn the_pointer_stays_within_the_picture_and_the_wheel_turns_once_for_each_press() {
    let mut picture = Picture::new(50, 40);
    let (mut viewer, _) = joined(&picture, NATIVE, &[RAW]);
    let at = |x, y, buttons| Input::Pointer { x, y, buttons };
    let inputs = |viewer: &mut Viewer, messages: &[[u8; 3]]| {
        for [mask, x, y] in messages {
            send(viewer, &[5, *mask, 0, *x, 0, *y]);
        }
        std::iter::from_fn(|| viewer.poll_input()).collect::<Vec<_>>()
    };
    let wheel = |steps| Input::Wheel { steps };
    // While few events wait, each movement is one.
    let moves = [
        [0, 1, 1],
        [0, 2, 2],
        [1, 2, 2],
        [1, 3, 3],
        [1, 4, 4],
        [0, 4, 4],
        [0, 5, 5],
    ];
    let all = moves.map(|[mask, x, y]| at(x.into(), y.into(), mask));
    assert_eq!(inputs(&mut viewer, &moves), all);
    // The same again is nothing.
    assert_eq!(inputs(&mut viewer, &[[0, 5, 5]]), []);
    let turns = [
        [8, 5, 5],
        [8, 5, 5],
        [0, 5, 5],
        [16, 6, 5],
        [24, 6, 5],
        [0, 7, 5],
    ];
    let all = [wheel(1), at(6, 5, 0), wheel(-1), wheel(1), at(7, 5, 0)];
    assert_eq!(inputs(&mut viewer, &turns), all);
    // Buttons beyond three are left out.
    assert_eq!(
        inputs(&mut viewer, &[[0xe0 | 5, 255, 255]]),
        [at(49, 39, 5)]
    );
    picture.resize(20, 10);
    output(&mut viewer, &picture);
    assert_eq!(inputs(&mut viewer, &[[5, 255, 255]]), [at(19, 9, 5)]);
}

#[test]
fn a_flood_of_input_waits_with_the_caller() {
    let (mut viewer, _) = joined(&Picture::new(50, 40), NATIVE, &[RAW]);
    // Keys and clicks, which do not become one.
    let flood = [
        [4, 1, 0, 0, 0, 0, 0, 0x61].as_slice(),
        &[5, 9, 0, 1, 0, 1, 5, 0, 0, 2, 0, 2],
    ];
    let flood = flood.concat().repeat(1000);
    let mut rest = flood.as_slice();
    let mut inputs = 0;
    while !rest.is_empty() {
        let taken = viewer.handle_bytes(rest).unwrap();
        rest = &rest[taken..];
        let waiting = std::iter::from_fn(|| viewer.poll_input()).count();
        assert!((1..=INPUTS_MAX).contains(&waiting), "{waiting}");
        inputs += waiting;
    }
    assert_eq!(inputs, 4000);
    // Movements become one where many events wait.
    let moves: Vec<u8> = (0..10_000u16)
        .flat_map(|at| [5, 0, 0, (at % 49) as u8, 0, 5])
        .collect();
    send(&mut viewer, &moves);
    let waiting: Vec<_> = std::iter::from_fn(|| viewer.poll_input()).collect();
    let last = Input::Pointer {
        x: 9999 % 49,
        y: 5,
        buttons: 0,
    };
    assert_eq!((waiting.len(), waiting.last()), (32, Some(&last)));
}

#[test]
fn text_for_the_clipboard_is_dropped() {
    let (mut viewer, _) = joined(&Picture::new(50, 40), NATIVE, &[RAW]);
    let mut text = vec![6, 0, 0, 0];
    text.extend(TEXT_MAX.to_be_bytes());
    send(&mut viewer, &text);
    // Bytes that would be a violation.
    send(&mut viewer, &vec![7; TEXT_MAX as usize]);
    send(&mut viewer, &[6, 0, 0, 0, 0, 0, 0, 0]);
    send(&mut viewer, &[4, 1, 0, 0, 0, 0, 0, 0x61]);
    let key = Input::Key {
        keycode: 30,
        pressed: true,
    };
    assert_eq!(viewer.poll_input(), Some(key));
}

/// The client's core with its picture.
struct ClientPeer {
    client: Client,
    size: Size,
    bytes: Vec<u8>,
    updates: usize,
}

impl ClientPeer {
    /// Exchanges bytes until both sides have nothing to send.
    fn run(&mut self, viewer: &mut Viewer, picture: &Picture) -> Result<(), ViewerError> {
        for _ in 0..1000 {
            let bytes = output(viewer, picture);
            let mut rest = bytes.as_slice();
            while let Some(event) = self.client.poll_event(&mut rest).unwrap() {
                match event {
                    Event::Size(size) => {
                        self.size = size;
                        let pixels = usize::from(size.width) * usize::from(size.height);
                        self.bytes = vec![0; pixels * PIXEL];
                    }
                    Event::Row { y, at, bytes } => {
                        let row = usize::from(self.size.width) * PIXEL;
                        let start = usize::from(y) * row + at;
                        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
                    }
                    Event::Updated => self.updates += 1,
                }
            }
            let sent = self.client.poll_transmit().to_vec();
            self.client.handle_sent(sent.len());
            if bytes.is_empty() && sent.is_empty() {
                return Ok(());
            }
            assert_eq!(viewer.handle_bytes(&sent)?, sent.len());
        }
        panic!("no end");
    }

    fn assert_shows(&self, picture: &Picture) {
        let size = (picture.width(), picture.height());
        assert_eq!((self.size.width, self.size.height), size);
        let rows = (0..picture.height()).flat_map(|y| picture.row(y));
        let bytes: Vec<u8> = rows.flat_map(|pixel| pixel.to_le_bytes()).collect();
        assert!(bytes == self.bytes, "another picture");
    }
}

#[test]
fn the_clients_core_is_served() {
    for password in [None, Some(*b"12345678")] {
        let mut picture = painted(200, 100, 1 << 20, 3, 1);
        let mut viewer = Viewer::new(&options(password), [3; 16], Instant::now());
        let limit = Size {
            width: 400,
            height: 300,
        };
        let client = Client::new(limit);
        let mut peer = ClientPeer {
            client: client.with_password(*b"12345678"),
            size: Size::default(),
            bytes: Vec::new(),
            updates: 0,
        };
        peer.run(&mut viewer, &picture).unwrap();
        peer.assert_shows(&picture);
        assert!(peer.client.takes_scancodes());
        picture.update_row(7, 9, &[0xab_cdef; 50]);
        viewer.handle_damage(Rect {
            x: 7,
            y: 9,
            width: 50,
            height: 1,
        });
        peer.run(&mut viewer, &picture).unwrap();
        peer.assert_shows(&picture);
        picture = painted(320, 240, 7, 30, 1);
        viewer.handle_resize(320, 240);
        peer.run(&mut viewer, &picture).unwrap();
        peer.assert_shows(&picture);
        assert!(peer.client.key(true, 0xcb) && peer.client.pointer(4, 300, 200));
        peer.run(&mut viewer, &picture).unwrap();
        let key = Input::Key {
            keycode: 105,
            pressed: true,
        };
        let pointer = Input::Pointer {
            x: 300,
            y: 200,
            buttons: 4,
        };
        assert_eq!(
            [viewer.poll_input(), viewer.poll_input()],
            [Some(key), Some(pointer)]
        );
    }
    // With another password it is refused.
    let mut viewer = Viewer::new(&options(Some(*b"87654321")), [3; 16], Instant::now());
    let mut peer = ClientPeer {
        client: Client::new(Size::default()).with_password(*b"12345678"),
        size: Size::default(),
        bytes: Vec::new(),
        updates: 0,
    };
    let result = peer.run(&mut viewer, &Picture::new(1, 1));
    assert_eq!(result, Err(ViewerError::Password));
}

/// An action of the caller's or the viewer's.
#[derive(Clone, Debug)]
enum Action {
    Paint(u16, u16, u16, u32),
    Request(bool, Rect),
    Continuous(bool, Rect),
    Resize(u16, u16),
    Encodings(Vec<i32>),
    Fence(u8),
    Pieces(u8),
}

fn any_rect() -> impl Strategy<Value = Rect> {
    (0u16..90, 0u16..90, 0u16..90, 0u16..90).prop_map(|(x, y, width, height)| Rect {
        x,
        y,
        width,
        height,
    })
}

fn any_action() -> impl Strategy<Value = Action> {
    let wishes = prop::sample::subsequence(
        vec![
            7,
            HEXTILE,
            ZRLE,
            RAW,
            DESKTOP_SIZE,
            EXTENDED_DESKTOP_SIZE,
            FENCE,
            CONTINUOUS,
        ],
        0..=8,
    );
    prop_oneof![
        8 => (0u16..90, 0u16..90, 0u16..90, any::<u32>())
            .prop_map(|(x, y, count, pixel)| Action::Paint(x, y, count, pixel)),
        4 => (any::<bool>(), any_rect()).prop_map(|(i, rect)| Action::Request(i, rect)),
        1 => (any::<bool>(), any_rect()).prop_map(|(on, rect)| Action::Continuous(on, rect)),
        1 => (1u16..100, 1u16..100).prop_map(|(width, height)| Action::Resize(width, height)),
        1 => wishes.prop_map(Action::Encodings),
        1 => (0u8..65).prop_map(Action::Fence),
        6 => (1u8..4).prop_map(Action::Pieces),
    ]
}

/// Random bytes of a viewer's, most of them valid messages.
fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let message = prop_oneof![
        any::<[u8; 5]>().prop_map(|rest| [&[5][..], &rest].concat()),
        (any::<bool>(), 0x20u32..0x80).prop_map(|(down, symbol)| {
            [&[4, down.into(), 0, 0][..], &symbol.to_be_bytes()].concat()
        }),
        (any::<bool>(), any_rect()).prop_map(|(i, rect)| request(i, rect)),
        prop::collection::vec(
            prop::sample::select(vec![0, 5, 16, -223, -258, -308, -312, -313]),
            0..5
        )
        .prop_map(|numbers| encodings(&numbers)),
        (0..22usize).prop_map(|at| formats()[at].message()),
        prop::collection::vec(any::<u8>(), 0..20)
            .prop_map(|text| { [&[6, 0, 0, 0, 0, 0, 0, text.len() as u8][..], &text].concat() }),
        prop::collection::vec(any::<u8>(), 0..20).prop_map(|text| {
            [&[248, 0, 0, 0, 0x80, 0, 0, 1, text.len() as u8][..], &text].concat()
        }),
        (any::<bool>(), 0u8..128)
            .prop_map(|(down, code)| { vec![255, 0, 0, down.into(), 0, 0, 0, 0, 0, 0, 0, code] }),
        (0u8..3).prop_map(|screens| {
            [
                &[251, 0, 0, 9, 0, 9, screens, 0][..],
                &vec![7; usize::from(screens) * 16],
            ]
            .concat()
        }),
        (any::<bool>(), any_rect())
            .prop_map(|(on, rect)| [vec![150, on.into()], area(rect)].concat()),
        prop::collection::vec(any::<u8>(), 0..3),
    ];
    prop::collection::vec(message, 0..40).prop_map(|all| all.concat())
}

/// All that comes of a viewer's bytes in pieces of one size, with its output at the end.
fn play(bytes: &[u8], size: usize) -> (Vec<Input>, Option<ViewerError>, Vec<u8>) {
    let picture = painted(80, 60, 30, 5, 8);
    let mut viewer = Viewer::new(&options(None), [0; 16], Instant::now());
    let (mut inputs, mut sent) = (Vec::new(), Vec::new());
    let mut error = None;
    // The handshake up to the size, which a viewer waits for.
    for piece in [&b"RFB 003.008\n\x01\x01"[..], bytes] {
        let mut rest = piece;
        while !rest.is_empty() && error.is_none() {
            let some = &rest[..size.min(rest.len())];
            match viewer.handle_bytes(some) {
                Ok(taken) => {
                    rest = &rest[taken..];
                    // Only where it must be, so that the cuts cannot change the output.
                    if taken < some.len() {
                        let before = (inputs.len(), sent.len());
                        inputs.extend(std::iter::from_fn(|| viewer.poll_input()));
                        if inputs.len() == before.0 {
                            sent.extend(output(&mut viewer, &picture));
                            assert!(sent.len() > before.1, "it stands still");
                        }
                    }
                }
                Err(violation) => error = Some(violation),
            }
        }
        inputs.extend(std::iter::from_fn(|| viewer.poll_input()));
        sent.extend(output(&mut viewer, &picture));
    }
    (inputs, error, sent)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 96 }))]

    #[test]
    fn any_picture_is_shown(
        width in 1u16..200, height in 1u16..100, colours in 1u32..300, run in 1u32..400,
        seed in any::<u32>(), format in 0..22usize, encoding in 0..3usize,
        part in any_rect(),
    ) {
        let (format, encoding) = (formats()[format], [RAW, HEXTILE, ZRLE][encoding]);
        let picture = painted(width, height, colours, run, seed);
        let (mut viewer, mut peer) = joined(&picture, format, &[encoding]);
        send(&mut viewer, &request(true, ALL));
        peer.take(&output(&mut viewer, &picture));
        peer.assert_shows(&picture);
        // A part of it once more, through the same stream.
        send(&mut viewer, &request(false, part));
        peer.take(&output(&mut viewer, &picture));
        peer.assert_shows(&picture);
    }

    #[test]
    fn whatever_happens_the_viewer_shows_the_picture_in_the_end(
        format in 0..22usize,
        actions in prop::collection::vec(any_action(), 0..60),
    ) {
        let mut picture = painted(70, 50, 9, 5, 3);
        let format = formats()[format];
        let (mut viewer, mut peer) = joined(&picture, format, &[ZRLE, DESKTOP_SIZE]);
        let mut sent = Vec::new();
        for action in actions {
            match action {
                Action::Paint(x, y, count, pixel) => {
                    let pixels = vec![pixel; count.into()];
                    if let Some((first, end)) = picture.update_row(x, y, &pixels) {
                        let width = end - first;
                        viewer.handle_damage(Rect { x: first, y, width, height: 1 });
                    }
                }
                Action::Request(incremental, rect) => {
                    send(&mut viewer, &request(incremental, rect));
                }
                Action::Continuous(on, rect) => {
                    send(&mut viewer, &[vec![150, on.into()], area(rect)].concat());
                }
                Action::Resize(width, height) => {
                    picture.resize(width, height);
                    viewer.handle_resize(width, height);
                }
                Action::Encodings(wishes) => send(&mut viewer, &encodings(&wishes)),
                Action::Fence(length) => {
                    let mut fence = vec![248, 0, 0, 0, 0x80, 0, 0, 1, length];
                    fence.extend(vec![1; length.into()]);
                    // A flood of them waits.
                    while viewer.handle_bytes(&[]) == Ok(0) {
                        let taken = viewer.handle_bytes(&fence).unwrap();
                        fence.drain(..taken);
                        if fence.is_empty() || !piece(&mut viewer, &picture, &mut sent) {
                            break;
                        }
                    }
                    prop_assert!(fence.is_empty());
                }
                Action::Pieces(count) => {
                    for _ in 0..count {
                        piece(&mut viewer, &picture, &mut sent);
                    }
                }
            }
        }
        for _ in 0..3 {
            send(&mut viewer, &request(true, ALL));
            sent.extend(output(&mut viewer, &picture));
        }
        peer.take(&sent);
        peer.assert_shows(&picture);
        // And nothing is left.
        send(&mut viewer, &request(true, ALL));
        prop_assert_eq!(output(&mut viewer, &picture), []);
    }

    #[test]
    fn the_cuts_do_not_matter(bytes in any_bytes(), size in 1usize..40) {
        let whole = play(&bytes, usize::MAX);
        prop_assert_eq!(&play(&bytes, size), &whole);
        prop_assert_eq!(&play(&bytes, 1), &whole);
    }
}

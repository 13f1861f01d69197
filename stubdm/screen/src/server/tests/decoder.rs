//! A viewer that decodes all encodings and checks all that it is sent.

use std::collections::BTreeSet;

use flate2::{Decompress, FlushDecompress};

use super::*;

/// A viewer's format of pixels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Format {
    pub(super) bits: u8,
    pub(super) depth: u8,
    pub(super) big: bool,
    pub(super) maxima: [u16; 3],
    pub(super) shifts: [u8; 3],
}

pub(super) const NATIVE: Format = Format {
    bits: 32,
    depth: 24,
    big: false,
    maxima: [255; 3],
    shifts: [16, 8, 0],
};

/// Formats as viewers have them: 8 and 16 bits, 32 bits with the colours in the lower, upper and
/// all bytes, with 10 bits each.
pub(super) fn formats() -> Vec<Format> {
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
    pub(super) fn message(&self) -> Vec<u8> {
        let mut out = vec![0, 0, 0, 0, self.bits, self.depth, u8::from(self.big), 1];
        self.maxima
            .iter()
            .for_each(|max| out.extend(max.to_be_bytes()));
        out.extend(self.shifts);
        out.extend([0; 3]);
        out
    }

    /// The nearest pixel of this format.
    pub(super) fn of(&self, pixel: u32) -> u32 {
        let [_, colours @ ..] = pixel.to_be_bytes();
        let all = colours.iter().zip(self.maxima).zip(self.shifts);
        all.fold(0, |sum, ((colour, max), shift)| {
            let value = (f64::from(*colour) * f64::from(max) / 255.0).round() as u32;
            sum | value << shift
        })
    }

    pub(super) fn bytes(&self) -> usize {
        usize::from(self.bits / 8)
    }

    pub(super) fn read(&self, bytes: &[u8]) -> u32 {
        let fold = |all, byte: &u8| all << 8 | u32::from(*byte);
        match self.big {
            true => bytes.iter().fold(0, fold),
            false => bytes.iter().rev().fold(0, fold),
        }
    }

    /// By the letter of RFC 6143, 7.7.5.
    pub(super) fn compact(&self) -> (usize, u32) {
        let ones = self.of(0xff_ffff);
        match (self.bits, self.depth) {
            (32, ..=24) if ones < 1 << 24 => (3, 0),
            (32, ..=24) if ones & 0xff == 0 => (3, 8),
            _ => (self.bytes(), 0),
        }
    }
}

/// Bytes that are read from the front.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }

    pub(super) fn u8(&mut self) -> u8 {
        self.take(1)[0]
    }

    pub(super) fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.take(2).try_into().unwrap())
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take(4).try_into().unwrap())
    }

    pub(super) fn rect(&mut self) -> Rect {
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
pub(super) struct Decoder {
    pub(super) format: Format,
    pub(super) zlib: Decompress,
    pub(super) size: Size,
    pub(super) pixels: Vec<u32>,
    /// Numbers of messages; tiles by encoding and kind; others by number.
    pub(super) updates: usize,
    pub(super) rectangles: usize,
    pub(super) kinds: BTreeSet<(i32, u8)>,
    pub(super) sizes: Vec<(i32, u16, u16)>,
    pub(super) fences: Vec<(u32, Vec<u8>)>,
    pub(super) ends: usize,
    pub(super) scancodes: bool,
    pub(super) map: Vec<u8>,
}

impl Decoder {
    pub(super) fn new(format: Format) -> Self {
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

    pub(super) fn resize(&mut self, width: u16, height: u16) {
        self.size = Size { width, height };
        self.pixels = vec![u32::MAX; usize::from(width) * usize::from(height)];
    }

    pub(super) fn init(&mut self, bytes: &[u8]) -> String {
        let mut reader = Reader(bytes);
        let (width, height) = (reader.u16(), reader.u16());
        self.resize(width, height);
        assert_eq!(reader.take(16), &[NATIVE.message()[4..].to_vec()].concat());
        let length = reader.u32() as usize;
        let name = String::from_utf8_lossy(reader.take(length)).into_owned();
        assert!(reader.0.is_empty());
        name
    }

    pub(super) fn set(&mut self, x: usize, y: usize, pixel: u32) {
        let width = usize::from(self.size.width);
        assert!(x < width, "{x}, {y}");
        self.pixels[y * width + x] = pixel;
    }

    pub(super) fn fill(&mut self, rect: Rect, pixel: u32) {
        for y in rect.y..rect.y + rect.height {
            for x in rect.x..rect.x + rect.width {
                self.set(x.into(), y.into(), pixel);
            }
        }
    }

    pub(super) fn take(&mut self, bytes: &[u8]) {
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

    pub(super) fn rectangle(&mut self, reader: &mut Reader<'_>) {
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

    pub(super) fn tiles(rect: Rect, side: u16) -> Vec<Rect> {
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

    pub(super) fn hextile(&mut self, rect: Rect, reader: &mut Reader<'_>) {
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

    pub(super) fn zrle(&mut self, rect: Rect, reader: &mut Reader<'_>) {
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
    pub(super) fn assert_shows(&self, picture: &Picture) {
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

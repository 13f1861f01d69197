//! ZRLE: tiles of 64x64 pixels as runs or with a palette, through one zlib stream (RFC 6143, 7.7.6).

use flate2::{Compress, Compression, FlushCompress, Status};

use crate::server::PIECE_MAX;
use crate::server::pixels::Converter;

/// The level of compression, which is QEMU's. Below 7, zlib-rs finds fewer repetitions in what a
/// screen shows, and takes as long.
const LEVEL: u32 = 9;
/// The largest palette.
const COLOURS: usize = 127;
/// The largest palette of a tile whose pixels are packed.
const PACKED: usize = 16;
/// Places of the palette's hash table.
const PLACES: usize = 256;

/// The tiles of a rectangle, and the stream.
#[derive(Debug, Default)]
pub(super) struct Zrle {
    plain: Vec<u8>,
    palette: Palette,
    /// Made for the first rectangle, since it takes most of the memory.
    stream: Option<Compress>,
}

impl Zrle {
    /// Adds a tile of pixels that are converted, in rows of `width`.
    pub(super) fn add(&mut self, pixels: &[u32], width: u16, converter: &Converter) {
        // At most the bytes of a piece, and not twice as many.
        self.plain
            .reserve_exact(PIECE_MAX.saturating_sub(self.plain.len()));
        let (form, _) = self.choose(pixels, width, converter.compact_bytes());
        let Self { plain, palette, .. } = self;
        let colours = palette.colours();
        plain.push(form.number(colours.len()));
        match form {
            TileEncoding::Raw => pixels
                .iter()
                .for_each(|pixel| converter.put_compact(*pixel, plain)),
            TileEncoding::Solid | TileEncoding::Packed | TileEncoding::PaletteRuns => {
                colours
                    .iter()
                    .for_each(|colour| converter.put_compact(*colour, plain));
            }
            TileEncoding::Runs => {}
        }
        match form {
            TileEncoding::Raw | TileEncoding::Solid => {}
            TileEncoding::Packed => {
                let bits = packed_bits(colours.len());
                for row in pixels.chunks_exact(width.into()) {
                    for byte in row.chunks(8 / bits) {
                        let index = |pixel: &u32| palette.index(*pixel);
                        let fold = byte.iter().map(index).fold(0, |all, one| all << bits | one);
                        plain.push(fold << (bits * (8 / bits - byte.len())));
                    }
                }
            }
            TileEncoding::Runs => runs(pixels).for_each(|(pixel, length)| {
                converter.put_compact(pixel, plain);
                put_length(length, plain);
            }),
            TileEncoding::PaletteRuns => runs(pixels).for_each(|(pixel, length)| {
                let index = palette.index(pixel);
                if length == 1 {
                    plain.push(index);
                } else {
                    plain.push(index | 0x80);
                    put_length(length, plain);
                }
            }),
        }
    }

    /// Appends the compressed tiles with their length.
    pub(super) fn put(&mut self, out: &mut Vec<u8>) {
        let stream = self
            .stream
            .get_or_insert_with(|| Compress::new(Compression::new(LEVEL), true));
        let start = out.len();
        out.extend([0; 4]);
        let mut rest = self.plain.as_slice();
        loop {
            // Enough at once, as a rule. Room that is left over shows that all is written.
            out.reserve(rest.len() + rest.len() / 16 + 256);
            let before = stream.total_in();
            let status = stream.compress_vec(rest, out, FlushCompress::Sync);
            let taken = usize::try_from(stream.total_in() - before).unwrap_or(rest.len());
            rest = rest.get(taken..).unwrap_or_default();
            let stuck = !matches!(status, Ok(Status::Ok));
            if stuck || (rest.is_empty() && out.len() < out.capacity()) {
                break;
            }
        }
        let length = u32::try_from(out.len() - start - 4).unwrap_or(0);
        if let Some(room) = out.get_mut(start..start + 4) {
            room.copy_from_slice(&length.to_be_bytes());
        }
        self.plain.clear();
    }

    /// Returns the bytes of a tile before they are compressed.
    pub(super) fn length(&mut self, pixels: &[u32], width: u16, converter: &Converter) -> usize {
        self.choose(pixels, width, converter.compact_bytes()).1
    }

    /// Chooses the shortest form of a tile, and returns its bytes too. It leaves the tile's palette,
    /// if the form has one.
    fn choose(&mut self, pixels: &[u32], width: u16, bytes: usize) -> (TileEncoding, usize) {
        self.palette.clear();
        let (mut small, mut plain_runs, mut palette_runs) = (true, 0, 0);
        for (pixel, length) in runs(pixels) {
            small = small && self.palette.insert(pixel);
            let tail = (length - 1) / 255 + 1;
            plain_runs += bytes + tail;
            palette_runs += if length == 1 { 1 } else { 1 + tail };
        }
        let colours = self.palette.colours().len();
        let raw = (pixels.len() * bytes, TileEncoding::Raw);
        let runs = (plain_runs, TileEncoding::Runs);
        let mut best = if runs.0 < raw.0 { runs } else { raw };
        if small && colours == 1 {
            best = (bytes, TileEncoding::Solid);
        } else if small {
            let palette = (colours * bytes + palette_runs, TileEncoding::PaletteRuns);
            if palette.0 < best.0 {
                best = palette;
            }
            let width = usize::from(width).max(1);
            let row = (width * packed_bits(colours)).div_ceil(8);
            let packed = colours * bytes + row * (pixels.len() / width);
            if colours <= PACKED && packed <= best.0 {
                best = (packed, TileEncoding::Packed);
            }
        }
        (best.1, 1 + best.0)
    }
}

#[derive(Clone, Copy, Debug)]
enum TileEncoding {
    Raw,
    Solid,
    Packed,
    Runs,
    PaletteRuns,
}

impl TileEncoding {
    /// The first byte of a tile with a palette of this length.
    fn number(self, colours: usize) -> u8 {
        let colours = u8::try_from(colours).unwrap_or_default();
        match self {
            Self::Raw => 0,
            Self::Solid => 1,
            Self::Packed => colours,
            Self::Runs => 128,
            Self::PaletteRuns => 128 | colours,
        }
    }
}

/// Bits of a pixel that is packed.
fn packed_bits(colours: usize) -> usize {
    match colours {
        ..=2 => 1,
        3..=4 => 2,
        _ => 4,
    }
}

/// The runs of equal pixels, with their lengths.
fn runs(pixels: &[u32]) -> impl Iterator<Item = (u32, usize)> {
    pixels
        .chunk_by(|one, next| one == next)
        .filter_map(|run| Some((*run.first()?, run.len())))
}

/// Appends a run's length: bytes whose sum it is, plus one.
fn put_length(length: usize, out: &mut Vec<u8>) {
    let rest = length.saturating_sub(1);
    out.extend(std::iter::repeat_n(255, rest / 255));
    out.push((rest % 255) as u8);
}

/// The colours of a tile in the order in which they appear, with a hash table over them.
#[derive(Debug)]
struct Palette {
    colours: [u32; COLOURS],
    count: usize,
    /// The number of a colour plus one; zero for none.
    places: [u8; PLACES],
}

impl Default for Palette {
    fn default() -> Self {
        Self {
            colours: [0; COLOURS],
            count: 0,
            places: [0; PLACES],
        }
    }
}

impl Palette {
    fn clear(&mut self) {
        self.count = 0;
        self.places = [0; PLACES];
    }

    fn colours(&self) -> &[u32] {
        self.colours.get(..self.count).unwrap_or_default()
    }

    /// Returns the place of a colour, or the free one where it belongs. At most half of the places
    /// are taken, so there is one.
    fn place(&self, colour: u32) -> (usize, Option<u8>) {
        let hash = colour.wrapping_mul(0x9e37_79b1) >> 24;
        let mut place = hash as usize % PLACES;
        loop {
            let index = self
                .places
                .get(place)
                .and_then(|number| number.checked_sub(1));
            match index {
                Some(index) if self.colours.get(usize::from(index)) != Some(&colour) => {
                    place = (place + 1) % PLACES;
                }
                index => return (place, index),
            }
        }
    }

    /// Adds a colour; returns false if there is no room.
    fn insert(&mut self, colour: u32) -> bool {
        let (place, None) = self.place(colour) else {
            return true;
        };
        let (Some(entry), Some(place)) =
            (self.colours.get_mut(self.count), self.places.get_mut(place))
        else {
            return false;
        };
        *entry = colour;
        self.count += 1;
        *place = self.count as u8;
        true
    }

    /// Returns the number of a colour that is in the palette.
    fn index(&self, colour: u32) -> u8 {
        self.place(colour).1.unwrap_or_default()
    }
}

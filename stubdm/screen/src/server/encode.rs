//! The encodings of a rectangle.

mod hextile;
mod zrle;

use super::pixels::Converter;
use super::{PIECE_MAX, Picture, Rect};

/// Pixels of a piece, about: more only where tiles are cut at the edge.
const PIECE: u32 = 16 << 10;

/// Bytes of a large piece before they are compressed, which may add a few and a header.
const LARGE: usize = PIECE_MAX - (4 << 10);

/// An encoding that a viewer may ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Encoding {
    #[default]
    Raw,
    Hextile,
    Zrle,
}

impl Encoding {
    /// Returns the encoding with this number, if it is supported.
    pub(super) fn of(number: i32) -> Option<Self> {
        let all = [Self::Raw, Self::Hextile, Self::Zrle];
        all.into_iter().find(|one| one.number() == number)
    }

    fn number(self) -> i32 {
        match self {
            Self::Raw => 0,
            Self::Hextile => 5,
            Self::Zrle => 16,
        }
    }

    /// The widest piece, and the side of a tile: a piece's rows are a multiple of it.
    fn limits(self) -> (u16, u16) {
        match self {
            Self::Raw => (8192, 1),
            Self::Hextile => (1024, 16),
            Self::Zrle => (256, 64),
        }
    }

    /// Columns and rows of the pieces of a rectangle that is `width` pixels wide.
    fn piece(self, width: u16) -> (u16, u16) {
        let (widest, tile) = self.limits();
        let columns = width.min(widest).max(1);
        let band = u32::from(columns.next_multiple_of(tile)) * u32::from(tile);
        let rows = u32::from(tile) * (PIECE / band).max(1);
        (columns, u16::try_from(rows).unwrap_or(u16::MAX))
    }

    /// Returns whether the pieces of a rectangle with this width are one rectangle to the viewer. One
    /// in ZRLE names its length first.
    pub(super) fn joins_pieces(self, width: u16) -> bool {
        match self {
            Self::Raw | Self::Hextile => width <= self.limits().0,
            Self::Zrle => false,
        }
    }

    /// The number of pieces of a rectangle.
    pub(super) fn pieces(self, rect: &Rect) -> u32 {
        let (columns, rows) = self.piece(rect.width);
        u32::from(rect.width.div_ceil(columns)) * u32::from(rect.height.div_ceil(rows))
    }

    /// Returns a piece of a rectangle, from left to right and then down; `None` behind the last.
    pub(super) fn piece_at(self, rect: &Rect, index: u32) -> Option<Rect> {
        let (columns, rows) = self.piece(rect.width);
        let in_a_row = u32::from(rect.width.div_ceil(columns)).max(1);
        let left = u16::try_from(index % in_a_row).ok()?.checked_mul(columns)?;
        let above = u16::try_from(index / in_a_row).ok()?.checked_mul(rows)?;
        let (x, y) = (rect.x.checked_add(left)?, rect.y.checked_add(above)?);
        let corner = (x.saturating_add(columns), y.saturating_add(rows));
        Rect::between(
            (x, y),
            (corner.0.min(rect.right()), corner.1.min(rect.end())),
        )
    }
}

/// Appends a rectangle's header.
pub(super) fn header(rect: &Rect, encoding: i32, out: &mut Vec<u8>) {
    for number in [rect.x, rect.y, rect.width, rect.height] {
        out.extend(number.to_be_bytes());
    }
    out.extend(encoding.to_be_bytes());
}

/// The state of a connection's encodings.
#[derive(Debug, Default)]
pub(super) struct Encoder {
    /// Pixels of one tile, or of one row.
    pixels: Vec<u32>,
    /// Of the last tile of the current rectangle.
    colours: hextile::Colours,
    zrle: zrle::Zrle,
}

impl Encoder {
    /// Begins a rectangle of the viewer's: appends its header.
    pub(super) fn begin(&mut self, encoding: Encoding, rect: &Rect, out: &mut Vec<u8>) {
        header(rect, encoding.number(), out);
        self.colours = hextile::Colours::default();
    }

    /// Appends one [piece](Encoding::piece_at) of a rectangle, after its header. Its pixels beyond
    /// the picture are black.
    pub(super) fn encode(
        &mut self,
        encoding: Encoding,
        picture: &Picture,
        rect: &Rect,
        converter: &Converter,
        out: &mut Vec<u8>,
    ) {
        match encoding {
            Encoding::Raw => {
                for y in rect.y..rect.end() {
                    let row = Rect {
                        y,
                        height: 1,
                        ..*rect
                    };
                    self.load(picture, &row, converter);
                    converter.put_all(&self.pixels, out);
                }
            }
            Encoding::Hextile => {
                for tile in tiles(rect, 16) {
                    self.load(picture, &tile, converter);
                    let Self {
                        pixels, colours, ..
                    } = self;
                    hextile::put(pixels, tile.width, colours, converter, out);
                }
            }
            Encoding::Zrle => {
                for tile in tiles(rect, 64) {
                    self.load(picture, &tile, converter);
                    self.zrle.add(&self.pixels, tile.width, converter);
                }
                self.zrle.put(out);
            }
        }
    }

    /// Returns the rows of a rectangle that are short enough in ZRLE, as the picture is now, to be one
    /// piece: all of them, or a multiple of a tile's. Each piece of a stream costs a header and what
    /// its end costs in compression.
    pub(super) fn large_piece(
        &mut self,
        picture: &Picture,
        rect: &Rect,
        converter: &Converter,
    ) -> u16 {
        let (_, side) = Encoding::Zrle.limits();
        let (mut length, mut rows) = (0, 0);
        while rows < rect.height {
            let band = Rect {
                y: rect.y + rows,
                height: (rect.height - rows).min(side),
                ..*rect
            };
            for tile in tiles(&band, side) {
                self.load(picture, &tile, converter);
                length += self.zrle.length(&self.pixels, tile.width, converter);
                if length > LARGE {
                    return rows;
                }
            }
            rows += band.height;
        }
        rows
    }

    /// Reads the pixels of a rectangle, converted.
    fn load(&mut self, picture: &Picture, rect: &Rect, converter: &Converter) {
        let width = usize::from(rect.width);
        self.pixels.clear();
        for y in rect.y..rect.end() {
            let row = picture
                .row(y)
                .get(usize::from(rect.x)..)
                .unwrap_or_default();
            let row = row.get(..width).unwrap_or(row);
            self.pixels.extend(row);
            self.pixels
                .extend(std::iter::repeat_n(0, width - row.len()));
        }
        converter.convert(&mut self.pixels);
    }
}

/// The tiles of a rectangle, from left to right and then down.
fn tiles(rect: &Rect, side: u16) -> impl Iterator<Item = Rect> {
    let rect = *rect;
    let side = usize::from(side);
    (rect.y..rect.end()).step_by(side).flat_map(move |y| {
        (rect.x..rect.right()).step_by(side).map(move |x| Rect {
            x,
            y,
            width: (rect.right() - x).min(side as u16),
            height: (rect.end() - y).min(side as u16),
        })
    })
}

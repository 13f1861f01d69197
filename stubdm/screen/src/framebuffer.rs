//! A PV frame buffer as its backend has it: `vfb`, of Xen's public/io/fbif.h.
//!
//! ```text
//!   byte   0          16      20       24            28           32      36 or 40     1024      2048
//!          │ 4 indices │ width │ height │ line_length │ mem_length │ depth │ directory … │ in ring │ out ring
//!
//!   directory ──numbers──▶ directory pages ──numbers──▶ pages of pixels
//! ```
//!
//! The frontend can write to all of it, at any time. So the numbers are copied once and checked as
//! one [`Geometry`]; from then on only that is used, and no row of it lies beyond the mapped
//! pixels. A later change of the page's numbers has no effect. To change the picture, a frontend
//! sends a resize event, which is checked in the same way.
//!
//! Pixels have 32 bits: blue, green, red, and a byte that is not shown.

use std::sync::atomic::AtomicU32;

use xen_gnttab::{Region, RegionError};

pub use crate::event_ring::RingError;
use crate::event_ring::{Consumer, int, word};
use crate::server::{Rect, SIDE_MAX};
use crate::{PIXEL, Size};

/// Bytes of a page.
const PAGE: usize = 4096;
/// The most bytes of pixels that a frontend may have.
pub const MEMORY_MAX: usize = 32 << 20;
/// Where the rings begin.
const RINGS: usize = 1024;
const IN_RING: usize = 1024;
const OUT_RING: usize = 2048;
/// Bytes of the numbers before the directory: size, lengths and depth.
const NUMBERS: usize = 20;
const INDICES: usize = 16;

const UPDATE: u8 = 2;
const RESIZE: u8 = 3;

/// Why a frame buffer is not served, or no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The ring, or the page itself.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The picture is none, or more than [`SIDE_MAX`] wide or high.
    #[error("a picture of {width}x{height} pixels")]
    Size {
        /// Pixels in a row.
        width: i32,
        /// Rows.
        height: i32,
    },
    /// Pixels are not of 32 bits.
    #[error("pixels of {0} bits, not 32")]
    Depth(i32),
    /// The memory is none, or more than [`MEMORY_MAX`].
    #[error("{0} bytes of pixels")]
    Memory(u32),
    /// The rows do not fit the memory, or a row does not fit its stride.
    #[error("rows of {stride} bytes from byte {offset} on do not fit {memory} bytes of pixels")]
    Rows {
        /// Bytes from one row to the next.
        stride: i32,
        /// The first row's offset.
        offset: i32,
        /// Bytes of pixels.
        memory: usize,
    },
    /// Fewer pages are mapped than the numbers need.
    #[error("the frame buffer's pages: {0}")]
    Pages(RegionError),
}

impl From<RegionError> for Error {
    fn from(error: RegionError) -> Self {
        Self::Ring(RingError::Page(error))
    }
}

/// The width of the directory's numbers, by the frontend's node `protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// 32 bits: `x86_32-abi`.
    Short,
    /// 64 bits: the others, and where there is no such node.
    Long,
}

impl Protocol {
    /// Reads the node's value; `None` for one that is not known.
    pub fn from_node(value: Option<&[u8]>) -> Option<Self> {
        match value {
            Some(b"x86_32-abi") => Some(Self::Short),
            None | Some(b"x86_64-abi" | b"arm-abi") => Some(Self::Long),
            Some(_) => None,
        }
    }

    fn width(self) -> usize {
        match self {
            Self::Short => 4,
            Self::Long => 8,
        }
    }

    /// Returns the numbers in bytes of the directory.
    fn numbers(self, bytes: &[u8]) -> impl Iterator<Item = u64> {
        bytes.chunks_exact(self.width()).map(|number| {
            let mut whole = [0; 8];
            for (to, from) in whole.iter_mut().zip(number) {
                *to = *from;
            }
            u64::from_le_bytes(whole)
        })
    }
}

/// Where the picture is in the frame buffer's memory: judged once, and within it for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    size: Size,
    stride: usize,
    offset: usize,
    memory: usize,
}

impl Geometry {
    /// Judges a frontend's numbers.
    ///
    /// # Errors
    /// [`Error::Size`], [`Error::Depth`], [`Error::Rows`].
    fn new(
        (width, height): (i32, i32),
        (stride, offset): (i32, i32),
        depth: i32,
        memory: usize,
    ) -> Result<Self, Error> {
        let side = |number: i32| {
            let side = u16::try_from(number).ok();
            side.filter(|side| (1..=SIDE_MAX).contains(side))
        };
        let (Some(columns), Some(rows)) = (side(width), side(height)) else {
            return Err(Error::Size { width, height });
        };
        if depth != 32 {
            return Err(Error::Depth(depth));
        }
        let refused = Error::Rows {
            stride,
            offset,
            memory,
        };
        let (Ok(stride), Ok(offset)) = (usize::try_from(stride), usize::try_from(offset)) else {
            return Err(refused);
        };
        let row = usize::from(columns) * PIXEL;
        // The last row need not fill its stride.
        let end = stride
            .checked_mul(usize::from(rows) - 1)
            .and_then(|last| last.checked_add(offset)?.checked_add(row));
        if stride < row || end.is_none_or(|end| end > memory) {
            return Err(refused);
        }
        Ok(Self {
            size: Size {
                width: columns,
                height: rows,
            },
            stride,
            offset,
            memory,
        })
    }

    /// Returns the picture's size.
    pub fn size(&self) -> Size {
        self.size
    }

    /// Returns width, height, stride and offset, as a resize event has them.
    pub fn numbers(&self) -> [u32; 4] {
        // Each was 32 bits wide when it was judged.
        let number = |number: usize| u32::try_from(number).unwrap_or_default();
        let Size { width, height } = self.size;
        let [stride, offset] = [self.stride, self.offset].map(number);
        [width.into(), height.into(), stride, offset]
    }

    /// Returns the number of pages of pixels.
    pub fn pages(&self) -> usize {
        self.memory.div_ceil(PAGE)
    }
}

/// A frontend's page, taken apart.
#[derive(Debug)]
pub struct FrontPage {
    /// The picture as it is at first.
    pub geometry: Geometry,
    /// The frame numbers of the directory's pages.
    pub directory: Vec<u64>,
    /// The frontend's events.
    pub updates: Updates,
    protocol: Protocol,
}

impl FrontPage {
    /// Takes a mapped page, which can be written to: it is read, and judged, once.
    ///
    /// # Errors
    /// The page's numbers, or its ring's indices, cannot be.
    pub fn attach(mut page: Region, protocol: Protocol) -> Result<Self, Error> {
        let indices = page.take_words::<AtomicU32>(INDICES / 4)?;
        let fields = page.split_to(RINGS - INDICES)?;
        page.split_to(IN_RING)?;
        let out = page.split_to(OUT_RING)?;
        let mut numbers = [0; NUMBERS];
        fields.copy_out(0, &mut numbers)?;
        let memory = word(&numbers, 12);
        let within = usize::try_from(memory).ok();
        let within = within.filter(|memory| (1..=MEMORY_MAX).contains(memory));
        let geometry = Geometry::new(
            (int(&numbers, 0), int(&numbers, 4)),
            (int(&numbers, 8), 0),
            i32::from(numbers[16]),
            within.ok_or(Error::Memory(memory))?,
        )?;
        // Both are the directory's offset from the numbers: it is aligned to its own width.
        let at = match protocol {
            Protocol::Short => NUMBERS,
            Protocol::Long => NUMBERS + 4,
        };
        let pages = (geometry.pages() * protocol.width()).div_ceil(PAGE);
        let mut directory = vec![0; pages * protocol.width()];
        fields.copy_out(at, &mut directory)?;
        let index = |number| indices.word(number).ok_or(RegionError::OutOfRange);
        Ok(Self {
            geometry,
            directory: protocol.numbers(&directory).collect(),
            updates: Updates {
                ring: Consumer::attach(out, index(2)?, index(3)?)?,
                geometry,
            },
            protocol,
        })
    }

    /// Takes another [picture](Geometry::numbers) of the same frontend: its page keeps the numbers
    /// of the first one.
    ///
    /// # Errors
    /// The numbers cannot be. The picture stays as it was.
    pub fn resize(&mut self, numbers: [u32; 4]) -> Result<(), Error> {
        let signed = |number: u32| i32::from_ne_bytes(number.to_ne_bytes());
        let [width, height, stride, offset] = numbers.map(signed);
        let memory = self.geometry.memory;
        let geometry = Geometry::new((width, height), (stride, offset), 32, memory)?;
        (self.geometry, self.updates.geometry) = (geometry, geometry);
        Ok(())
    }

    /// Reads the frame numbers of the pages of pixels from the directory's mapped pages.
    ///
    /// # Errors
    /// [`Error::Pages`]: they are fewer than [`directory`](Self::directory) names.
    pub fn frames(&self, directory: &Region) -> Result<Vec<u64>, Error> {
        let count = self.geometry.pages();
        let mut bytes = vec![0; count * self.protocol.width()];
        directory.copy_out(0, &mut bytes).map_err(Error::Pages)?;
        Ok(self.protocol.numbers(&bytes).collect())
    }
}

/// A frontend's event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// These pixels may have changed. They are within the picture, and there is at least one.
    Update(Rect),
    /// The picture is elsewhere in the memory, or has another size.
    Resize(Geometry),
    /// An event that cannot be. The picture stays as it was.
    Refused(Error),
}

/// The frontend's events.
#[derive(Debug)]
pub struct Updates {
    ring: Consumer,
    /// The picture that the next rectangle is in.
    geometry: Geometry,
}

impl Updates {
    /// Takes the next event out of the ring. Unknown ones and empty rectangles are skipped, and
    /// count as one call.
    ///
    /// # Errors
    /// [`RingError`]; the frontend is of no more use.
    pub fn poll_event(&mut self) -> Result<Polled, RingError> {
        let Some(event) = self.ring.poll_event()? else {
            return Ok(Polled::Empty);
        };
        let field = |number: usize| int(&event, 4 * number);
        Ok(match event[0] {
            UPDATE => {
                let Size { width, height } = self.geometry.size;
                let columns = clip(field(1), field(3), width);
                let rows = clip(field(2), field(4), height);
                match (columns, rows) {
                    (Some((x, width)), Some((y, height))) => Polled::Event(Event::Update(Rect {
                        x,
                        y,
                        width,
                        height,
                    })),
                    _ => Polled::Skipped,
                }
            }
            RESIZE => {
                let size = (field(1), field(2));
                let rows = (field(3), field(5));
                match Geometry::new(size, rows, field(4), self.geometry.memory) {
                    Ok(geometry) => {
                        self.geometry = geometry;
                        Polled::Event(Event::Resize(geometry))
                    }
                    Err(error) => Polled::Event(Event::Refused(error)),
                }
            }
            _ => Polled::Skipped,
        })
    }
}

/// The result of a look into the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polled {
    /// This event was read.
    Event(Event),
    /// An event was read that has no meaning here.
    Skipped,
    /// Nothing is there.
    Empty,
}

/// Cuts a range to `0..limit`; `None` if nothing is left.
fn clip(start: i32, length: i32, limit: u16) -> Option<(u16, u16)> {
    let end = i64::from(start) + i64::from(length);
    let start = i64::from(start).max(0);
    let end = end.min(i64::from(limit));
    let length = u16::try_from(end.checked_sub(start)?).ok()?;
    let start = u16::try_from(start).ok()?;
    (length > 0).then_some((start, length))
}

/// The mapped pixels.
#[derive(Debug)]
pub struct Pixels {
    memory: Region,
    geometry: Geometry,
    row: Vec<u8>,
}

impl Pixels {
    /// Takes the mapped pages of pixels.
    ///
    /// # Errors
    /// [`Error::Pages`]: they are fewer than the geometry has.
    pub fn new(memory: Region, geometry: Geometry) -> Result<Self, Error> {
        match memory.len() >= geometry.memory {
            true => Ok(Self {
                memory,
                geometry,
                row: Vec::new(),
            }),
            false => Err(Error::Pages(RegionError::OutOfRange)),
        }
    }

    /// Returns the picture's size.
    pub fn size(&self) -> Size {
        self.geometry.size
    }

    /// Returns the picture's place in the memory.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Takes the geometry of a resize event of the same frontend.
    ///
    /// # Errors
    /// [`Error::Pages`]: it is another frontend's.
    pub fn resize(&mut self, geometry: Geometry) -> Result<(), Error> {
        if geometry.memory > self.memory.len() {
            return Err(Error::Pages(RegionError::OutOfRange));
        }
        self.geometry = geometry;
        Ok(())
    }

    /// Copies `count` pixels of row `y` from column `x` on into private memory, as `0xXXRRGGBB`.
    /// Pixels beyond the picture are left out.
    ///
    /// # Errors
    /// None, for a geometry that was judged.
    pub fn row(&mut self, x: u16, y: u16, count: u16, into: &mut Vec<u32>) -> Result<(), Error> {
        into.clear();
        let Geometry {
            size,
            stride,
            offset,
            ..
        } = self.geometry;
        let count = count.min(size.width.saturating_sub(x));
        if y >= size.height || count == 0 {
            return Ok(());
        }
        let at = offset + stride * usize::from(y) + usize::from(x) * PIXEL;
        self.row.resize(usize::from(count) * PIXEL, 0);
        let copied = self.memory.copy_out(at, &mut self.row);
        copied.map_err(Error::Pages)?;
        let pixels = self.row.chunks_exact(PIXEL);
        into.extend(pixels.map(|pixel| word(pixel, 0)));
        Ok(())
    }
}

#[cfg(test)]
mod tests;

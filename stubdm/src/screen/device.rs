//! `/dev/fb0`, through a mapping: the kernel sees which pages are written and passes on those lines
//! alone, when it is asked to or 50 ms after the first of them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::unistd::fsync;
use stubdm_screen::{PIXEL, Size};
use xen_gnttab::{PageAccess, Region};

use crate::rt::error::{Context, Failure, Result};
use crate::screen::ioctl::{Fixed, FrameBuffer, Variable};
use crate::screen::worker::Frame;

/// Bytes of the longest row that is accepted.
const STRIDE_MAX: usize = 1 << 16;
/// Bytes of the largest buffer that is accepted.
const LEN_MAX: usize = 1 << 28;

/// Words of `struct fb_var_screeninfo`: the visible size, and that of the virtual screen, of which
/// a mode shows a part.
const WIDTH: usize = 0;
const HEIGHT: usize = 1;
const VIRTUAL_WIDTH: usize = 2;
const VIRTUAL_HEIGHT: usize = 3;
/// Words of the same: the bits of a pixel, and the first bit of each colour.
const DEPTH: usize = 6;
const RED: usize = 8;
const GREEN: usize = 11;
const BLUE: usize = 14;

/// Bytes of `struct fb_fix_screeninfo` before `smem_len`: 16 of a name, and an address.
const MEMORY_LEN: usize = 16 + size_of::<usize>();
/// Bytes of the same before `line_length`: three words and three half-words more, aligned.
const LINE_LENGTH: usize = MEMORY_LEN + 24;

/// The frame buffer.
#[derive(Debug)]
pub(super) struct Device {
    buffer: FrameBuffer,
    pixels: Region,
    mode: Variable,
    size: Size,
    stride: usize,
}

impl Device {
    /// Maps it.
    ///
    /// # Errors
    /// It is no frame buffer, or one whose pixels are others than QEMU's.
    pub(super) fn new(fd: OwnedFd) -> Result<Self> {
        let buffer = FrameBuffer::new(fd)?;
        let mode = buffer.variable().context("its mode")?;
        let fixed = buffer.fixed().context("its memory")?;
        let colours = [DEPTH, RED, GREEN, BLUE].map(|at| mode.get(at).copied());
        if colours != [32, 16, 8, 0].map(Some) {
            return Err(Failure::new(format_args!(
                "its pixels are of another kind: {colours:?}"
            )));
        }
        let (stride, len) =
            memory(&fixed).ok_or_else(|| Failure::new("its memory is beyond the limits"))?;
        let size = size(&mode, stride, len)
            .ok_or_else(|| Failure::new("its mode is beyond its memory"))?;
        let pixels = Region::map_file(buffer.fd(), len, PageAccess::ReadWrite)
            .context("mapping its memory")?;
        Ok(Self {
            buffer,
            pixels,
            mode,
            size,
            stride,
        })
    }

    /// Returns its descriptor, through which the mode is changed.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.buffer.fd().as_fd()
    }
}

/// Returns the bytes of a row, and of all.
fn memory(fixed: &Fixed) -> Option<(usize, usize)> {
    let word = |at: usize| {
        let bytes = fixed.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_ne_bytes(bytes)).ok()
    };
    let (len, stride) = (word(MEMORY_LEN)?, word(LINE_LENGTH)?);
    let fine = (PIXEL..=STRIDE_MAX).contains(&stride) && (stride..=LEN_MAX).contains(&len);
    fine.then_some((stride, len))
}

/// Returns the size of a mode, if its rows are within the memory.
fn size(mode: &Variable, stride: usize, len: usize) -> Option<Size> {
    let word = |at: usize| u16::try_from(*mode.get(at)?).ok().filter(|n| *n > 0);
    let (width, height) = (word(WIDTH)?, word(HEIGHT)?);
    let inside = usize::from(width) * PIXEL <= stride && usize::from(height) * stride <= len;
    inside.then_some(Size { width, height })
}

impl Frame for Device {
    fn size(&self) -> Size {
        self.size
    }

    fn resize(&mut self, wanted: Size) -> Size {
        let mut mode = self.mode;
        for (at, value) in [
            (WIDTH, wanted.width),
            (HEIGHT, wanted.height),
            (VIRTUAL_WIDTH, wanted.width),
            (VIRTUAL_HEIGHT, wanted.height),
        ] {
            if let Some(word) = mode.get_mut(at) {
                *word = value.into();
            }
        }
        // A driver that refuses leaves the mode as it was.
        if self.buffer.set_variable(&mut mode).is_ok() {
            if let Some(size) = size(&mode, self.stride, self.pixels.len()) {
                self.size = size;
            }
        }
        self.size
    }

    fn write(&mut self, row: u16, at: usize, bytes: &[u8]) -> io::Result<()> {
        let offset = usize::from(row) * self.stride + at;
        self.pixels.copy_in(offset, bytes).map_err(io::Error::from)
    }

    fn clear(&mut self) -> io::Result<()> {
        let len = usize::from(self.size.height) * self.stride;
        self.pixels.fill(0, len, 0).map_err(io::Error::from)
    }

    fn flush(&mut self) {
        // A driver without this passes on what was written by itself.
        let _ = fsync(self.buffer.fd());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The memory of Linux's default frame buffer: 800x600 in 2 MiB.
    fn fixed(len: u32, stride: u32) -> Fixed {
        let mut fixed = [0; 80];
        fixed[..3].copy_from_slice(b"xen");
        fixed[MEMORY_LEN..][..4].copy_from_slice(&len.to_ne_bytes());
        fixed[LINE_LENGTH..][..4].copy_from_slice(&stride.to_ne_bytes());
        fixed
    }

    #[cfg(target_pointer_width = "64")]
    #[test]
    fn words_are_where_the_header_has_them() {
        assert_eq!((MEMORY_LEN, LINE_LENGTH), (24, 48));
    }

    #[test]
    fn memory_and_size_are_accepted_within_limits() {
        assert_eq!(memory(&fixed(2 << 20, 3200)), Some((3200, 2 << 20)));
        for (len, stride) in [
            (0, 0),
            (100, 3200),
            (2 << 20, 0),
            (u32::MAX, 3200),
            (2 << 20, 1 << 20),
        ] {
            assert_eq!(memory(&fixed(len, stride)), None, "{len} {stride}");
        }
        let mut mode = [0; 40];
        (mode[WIDTH], mode[HEIGHT]) = (800, 600);
        let (width, height) = (800, 600);
        assert_eq!(size(&mode, 3200, 2 << 20), Some(Size { width, height }));
        for (width, height) in [(0, 1), (1, 0), (801, 600), (800, 656), (70_000, 1)] {
            (mode[WIDTH], mode[HEIGHT]) = (width, height);
            assert_eq!(size(&mode, 3200, 2 << 20), None, "{width} {height}");
        }
    }
}

//! Where a guest's screen is in a frame buffer of another size.
//!
//! A smaller screen is in the middle. A larger one is cut at the right and below: a frame buffer
//! that can take another mode is given the screen's size before that.

use std::ops::Range;

use crate::{PIXEL, Size};

/// The place of a screen in a frame buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    screen: Size,
    frame: Size,
    left: u16,
    top: u16,
}

impl Placement {
    /// Places a screen.
    pub fn new(screen: Size, frame: Size) -> Self {
        Self {
            screen,
            frame,
            left: frame.width.saturating_sub(screen.width) / 2,
            top: frame.height.saturating_sub(screen.height) / 2,
        }
    }

    /// Returns the place for bytes of the screen's row `y`, from byte `at` on: the frame buffer's
    /// row, the first byte in that row, and which of the `len` bytes are visible. `None` if none
    /// is.
    pub fn row(&self, y: u16, at: usize, len: usize) -> Option<(u16, usize, Range<usize>)> {
        let row = y.checked_add(self.top).filter(|y| *y < self.frame.height)?;
        let start = at + usize::from(self.left) * PIXEL;
        let room = (usize::from(self.frame.width) * PIXEL).checked_sub(start)?;
        (room > 0 && len > 0).then(|| (row, start, 0..len.min(room)))
    }

    /// Returns which pixel of the screen is at a place of the frame buffer; the nearest one, for a
    /// place beside the screen.
    pub fn pointer(&self, x: i32, y: i32) -> (u16, u16) {
        let within = |at: i32, first: u16, count: u16| {
            let last = i32::from(count.saturating_sub(1));
            let at = at.saturating_sub(i32::from(first)).clamp(0, last);
            u16::try_from(at).unwrap_or_default()
        };
        (
            within(x, self.left, self.screen.width),
            within(y, self.top, self.screen.height),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn size(width: u16, height: u16) -> Size {
        Size { width, height }
    }

    #[test]
    fn a_smaller_screen_is_in_the_middle_and_the_pointer_finds_it() {
        let placement = Placement::new(size(720, 400), size(800, 600));
        assert_eq!(placement.row(0, 0, 2880), Some((100, 160, 0..2880)));
        assert_eq!(placement.row(399, 4, 8), Some((499, 164, 0..8)));
        assert_eq!(placement.pointer(40, 100), (0, 0));
        assert_eq!(placement.pointer(140, 101), (100, 1));
        assert_eq!(placement.pointer(0, 599), (0, 399));
        assert_eq!(placement.pointer(i32::MIN, i32::MAX), (0, 399));
    }

    #[test]
    fn a_larger_screen_is_cut() {
        let placement = Placement::new(size(1024, 768), size(800, 600));
        assert_eq!(placement.row(5, 0, 4096), Some((5, 0, 0..3200)));
        assert_eq!(placement.row(5, 3196, 8), Some((5, 3196, 0..4)));
        assert_eq!(placement.row(5, 3200, 8), None);
        assert_eq!(placement.row(600, 0, 8), None);
        assert_eq!(placement.pointer(799, 599), (799, 599));
    }

    proptest! {
        #[test]
        fn no_byte_leaves_the_frame_buffer(
            screen in (1u16.., 1u16..), frame in (1u16.., 1u16..), y: u16, x: u16, len: u16,
            px: i32, py: i32,
        ) {
            let (screen, frame) = (size(screen.0, screen.1), size(frame.0, frame.1));
            let placement = Placement::new(screen, frame);
            let at = usize::from(x % screen.width) * PIXEL;
            if let Some((row, start, range)) = placement.row(y % screen.height, at, len.into()) {
                prop_assert!(row < frame.height && range.end <= usize::from(len));
                prop_assert!(start + range.len() <= usize::from(frame.width) * PIXEL);
            }
            let (x, y) = placement.pointer(px, py);
            prop_assert!(x < screen.width && y < screen.height);
        }
    }
}

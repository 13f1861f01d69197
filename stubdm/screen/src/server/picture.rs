//! The server's own copy of the frame.

use crate::Size;

/// Pixels in a row, and rows, at most.
pub const SIDE_MAX: u16 = 8192;

/// A copy of the frame that no other domain can change while it is encoded.
///
/// A pixel is `0x00RRGGBB`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Picture {
    size: Size,
    pixels: Vec<u32>,
}

impl Picture {
    /// Creates a black picture. A side beyond [`SIDE_MAX`] is cut to it.
    pub fn new(width: u16, height: u16) -> Self {
        let mut picture = Self::default();
        picture.resize(width, height);
        picture
    }

    /// Changes the size and makes all pixels black. A side beyond [`SIDE_MAX`] is cut to it.
    ///
    /// Memory is given back when the picture shrinks.
    pub fn resize(&mut self, width: u16, height: u16) {
        let (width, height) = (width.min(SIDE_MAX), height.min(SIDE_MAX));
        self.size = Size { width, height };
        self.pixels = vec![0; usize::from(width) * usize::from(height)];
    }

    /// Returns the pixels in a row.
    pub fn width(&self) -> u16 {
        self.size.width
    }

    /// Returns the number of rows.
    pub fn height(&self) -> u16 {
        self.size.height
    }

    /// Returns one row; an empty one beyond the picture.
    pub fn row(&self, y: u16) -> &[u32] {
        let width = usize::from(self.size.width);
        let start = usize::from(y) * width;
        self.pixels.get(start..start + width).unwrap_or_default()
    }

    /// Copies pixels into row `y` from column `x` on, and returns the columns that changed: the
    /// first one and the one after the last. `None` means that all pixels were equal.
    ///
    /// Pixels beyond the picture are left out, and the top byte of each.
    pub fn update_row(&mut self, x: u16, y: u16, pixels: &[u32]) -> Option<(u16, u16)> {
        let width = usize::from(self.size.width);
        let start = usize::from(y) * width;
        let row = self.pixels.get_mut(start..start + width)?;
        let row = row.get_mut(usize::from(x)..)?;
        let (mut first, mut end) = (None, 0);
        for (at, (old, new)) in row.iter_mut().zip(pixels).enumerate() {
            let new = new & 0xff_ffff;
            if *old != new {
                *old = new;
                first.get_or_insert(at);
                end = at + 1;
            }
        }
        let column = |at: usize| u16::try_from(at).ok().and_then(|at| x.checked_add(at));
        Some((column(first?)?, column(end)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_reports_the_span_that_changed() {
        let mut picture = Picture::new(8, 2);
        assert_eq!(picture.update_row(0, 1, &[0; 8]), None);
        assert_eq!(picture.update_row(2, 1, &[0, 5, 0, 6, 0]), Some((3, 6)));
        assert_eq!(picture.row(1), [0, 0, 0, 5, 0, 6, 0, 0]);
        assert_eq!(picture.row(0), [0; 8]);
        // The byte above the colours is no colour.
        assert_eq!(picture.update_row(3, 1, &[0xff00_0005]), None);
        assert_eq!(picture.update_row(0, 0, &[0xff12_3456]), Some((0, 1)));
        assert_eq!(picture.row(0).first(), Some(&0x12_3456));
    }

    #[test]
    fn pixels_beyond_the_picture_are_left_out() {
        let mut picture = Picture::new(4, 2);
        assert_eq!(picture.update_row(3, 1, &[7, 8, 9]), Some((3, 4)));
        assert_eq!(picture.row(1), [0, 0, 0, 7]);
        for (x, y) in [(4, 1), (5, 1), (u16::MAX, 0), (0, 2), (0, u16::MAX)] {
            assert_eq!(picture.update_row(x, y, &[1; 9]), None, "{x}, {y}");
        }
        assert_eq!(picture.row(2), []);
        assert_eq!(Picture::new(0, 9).update_row(0, 0, &[1]), None);
    }

    #[test]
    fn a_picture_has_a_largest_size_and_is_black_after_a_resize() {
        let mut picture = Picture::new(u16::MAX, 1);
        assert_eq!((picture.width(), picture.height()), (SIDE_MAX, 1));
        picture.update_row(0, 0, &[9; 9]);
        picture.resize(3, 2);
        assert_eq!((picture.width(), picture.height()), (3, 2));
        assert_eq!((picture.row(0), picture.row(1)), (&[0; 3][..], &[0; 3][..]));
        assert!(picture.pixels.capacity() <= 6);
    }
}

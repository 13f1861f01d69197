//! A picture by characters: each is an upper half in one colour, on a background in another.

use std::fmt::Write;

use stubdm_screen::{PIXEL, Size};

use crate::viewer::Picture;

const HALF: char = '▀';

/// The colours of a character: its upper and its lower half.
type Cell = [[u8; 3]; 2];

/// The terminal's contents, as they were drawn.
#[derive(Debug, Default)]
pub(super) struct Canvas {
    terminal: (u16, u16),
    shown: Size,
    cells: Vec<Cell>,
    line: String,
}

impl Canvas {
    /// Returns what changes the terminal so that it shows a picture, and `line` below. The picture
    /// is made smaller where it does not fit.
    pub(super) fn draw(&mut self, picture: &Picture, terminal: (u16, u16), line: &str) -> String {
        let (columns, rows) = terminal;
        let shown = scaled(picture.size, columns, rows.saturating_sub(1));
        let mut out = String::new();
        if (terminal, shown, line) != (self.terminal, self.shown, &self.line) {
            out += "\x1b[0m\x1b[2J";
            let line: String = line.chars().take(columns.into()).collect();
            let _ = write!(out, "\x1b[{rows};1H{line}");
            (self.terminal, self.shown) = (terminal, shown);
            self.line = line.clone();
            self.cells.clear();
        }
        let pixels = scale(picture, shown);
        let width = usize::from(shown.width).max(1);
        let pairs: Vec<&[[u8; 3]]> = pixels.chunks(2 * width).collect();
        let mut colours = None;
        // The place of the cursor, if it is in the picture.
        let mut cursor = None;
        for (row, pair) in (1usize..).zip(pairs) {
            for column in 0..width {
                let upper = pair.get(column).copied().unwrap_or_default();
                let cell = [upper, pair.get(width + column).copied().unwrap_or_default()];
                let at = (row - 1) * width + column;
                if self.cells.get(at) == Some(&cell) {
                    continue;
                }
                match self.cells.get_mut(at) {
                    Some(old) => *old = cell,
                    None => self.cells.push(cell),
                }
                if cursor != Some((row, column)) {
                    let _ = write!(out, "\x1b[{row};{}H", column + 1);
                }
                if colours != Some(cell) {
                    let [[r, g, b], [r2, g2, b2]] = cell;
                    let _ = write!(out, "\x1b[38;2;{r};{g};{b};48;2;{r2};{g2};{b2}m");
                    colours = Some(cell);
                }
                out.push(HALF);
                cursor = Some((row, column + 1));
            }
        }
        out
    }
}

/// Returns the size of a picture in `columns` characters and `rows` of two pixels.
fn scaled(size: Size, columns: u16, rows: u16) -> Size {
    let (width, height) = (u32::from(size.width), u32::from(size.height));
    let (columns, rows) = (u32::from(columns), 2 * u32::from(rows));
    if width == 0 || height == 0 || columns == 0 || rows == 0 {
        return Size::default();
    }
    let (width, height) = if width * rows <= height * columns {
        let shown = rows.min(height);
        (width * shown / height, shown)
    } else {
        let shown = columns.min(width);
        (shown, height * shown / width)
    };
    let side = |pixels: u32| u16::try_from(pixels.max(1)).unwrap_or(u16::MAX);
    Size {
        width: side(width),
        height: side(height),
    }
}

/// Returns the picture in another size: each pixel is the mean of those that it stands for.
fn scale(picture: &Picture, shown: Size) -> Vec<[u8; 3]> {
    let [width, height] = [picture.size.width, picture.size.height].map(usize::from);
    let [columns, rows] = [shown.width, shown.height].map(usize::from);
    let range = |at: usize, from: usize, to: usize| {
        let (start, end) = (at * from / to, (at + 1) * from / to);
        start..end.max(start + 1)
    };
    let mut pixels = Vec::with_capacity(columns * rows);
    for row in 0..rows {
        let lines = range(row, height, rows);
        for column in 0..columns {
            let places = range(column, width, columns);
            let mut sums = [0u32; 3];
            for y in lines.clone() {
                let start = (y * width + places.start) * PIXEL;
                let bytes = picture.bytes.get(start..start + places.len() * PIXEL);
                for pixel in bytes.unwrap_or_default().chunks_exact(PIXEL) {
                    // Blue, green, red.
                    for (sum, colour) in sums.iter_mut().rev().zip(pixel) {
                        *sum += u32::from(*colour);
                    }
                }
            }
            let count = u32::try_from(lines.len() * places.len()).unwrap_or(1);
            pixels.push(sums.map(|sum| u8::try_from(sum / count).unwrap_or(u8::MAX)));
        }
    }
    pixels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(width: u16, height: u16) -> Size {
        Size { width, height }
    }

    fn picture(width: u16, height: u16, pixel: impl Fn(u16, u16) -> u32) -> Picture {
        let places = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
        Picture {
            size: size(width, height),
            bytes: places
                .flat_map(|(x, y)| pixel(x, y).to_le_bytes())
                .collect(),
        }
    }

    #[test]
    fn a_picture_fits_with_its_proportions() {
        assert_eq!(scaled(size(800, 600), 80, 23), size(61, 46));
        assert_eq!(scaled(size(800, 600), 200, 23), size(61, 46));
        assert_eq!(scaled(size(800, 600), 40, 50), size(40, 30));
        assert_eq!(scaled(size(8, 6), 80, 23), size(8, 6));
        assert_eq!(scaled(size(4096, 1), 80, 23), size(80, 1));
        assert_eq!(scaled(size(1, 4096), 80, 23), size(1, 46));
        assert_eq!(scaled(size(9, 9), 80, 0), Size::default());
        assert_eq!(scaled(Size::default(), 80, 23), Size::default());
    }

    #[test]
    fn a_pixel_is_the_mean_of_those_that_it_stands_for() {
        let exact = picture(4, 2, |x, y| u32::from(x) << 16 | u32::from(y) << 8 | 7);
        let pixels = scale(&exact, size(4, 2));
        assert_eq!(pixels[..4], [[0, 0, 7], [1, 0, 7], [2, 0, 7], [3, 0, 7]]);
        assert_eq!(pixels[4..], [[0, 1, 7], [1, 1, 7], [2, 1, 7], [3, 1, 7]]);
        let half = picture(4, 2, |x, y| {
            u32::from(x % 2 * 200) + u32::from(y * 100) * 0x1_0000
        });
        assert_eq!(scale(&half, size(2, 1)), [[50, 0, 100]; 2]);
        // Sizes that do not divide each other cover the picture.
        assert_eq!(
            scale(&picture(7, 5, |_, _| 0x10_2030), size(3, 2)),
            [[16, 32, 48]; 6]
        );
    }

    #[test]
    fn only_what_changed_is_drawn() {
        let mut canvas = Canvas::default();
        let mut shown = picture(2, 3, |_, y| if y == 0 { 0xff_0000 } else { 0x00_00ff });
        let first = canvas.draw(&shown, (10, 5), "line");
        assert_eq!(
            first,
            "\x1b[0m\x1b[2J\x1b[5;1Hline\
             \x1b[1;1H\x1b[38;2;255;0;0;48;2;0;0;255m▀▀\
             \x1b[2;1H\x1b[38;2;0;0;255;48;2;0;0;0m▀▀"
        );
        assert_eq!(canvas.draw(&shown, (10, 5), "line"), "");
        shown.bytes[PIXEL..][..3].copy_from_slice(&[1, 2, 3]);
        let changed = canvas.draw(&shown, (10, 5), "line");
        assert_eq!(changed, "\x1b[1;2H\x1b[38;2;3;2;1;48;2;0;0;255m▀");
        // Another terminal, another size: everything.
        assert!(
            canvas
                .draw(&shown, (11, 5), "line")
                .starts_with("\x1b[0m\x1b[2J")
        );
        let other = picture(3, 3, |_, _| 5);
        let all = canvas.draw(&other, (11, 5), "a line that is too long");
        assert!(all.contains("\x1b[5;1Ha line that\x1b[1;1H"), "{all:?}");
        assert_eq!(all.matches('▀').count(), 6);
    }
}

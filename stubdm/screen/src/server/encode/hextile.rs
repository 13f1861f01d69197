//! Hextile: tiles of 16x16 pixels with a background and rectangles on it (RFC 6143, 7.7.4).

use crate::server::pixels::Converter;

const SIDE: usize = 16;

const RAW: u8 = 1;
const BACKGROUND: u8 = 2;
const FOREGROUND: u8 = 4;
const SUBRECTS: u8 = 8;
const COLOURED: u8 = 16;

/// Colours of a tile that are counted for the choice of its background.
const COUNTED: usize = 8;

/// The colours that the next tile of a rectangle may use without naming them.
#[derive(Debug, Default)]
pub(super) struct Colours {
    background: Option<u32>,
    foreground: Option<u32>,
}

/// A rectangle on a tile's background.
#[derive(Clone, Copy, Debug, Default)]
struct Subrect {
    colour: u32,
    x: u8,
    y: u8,
    width: u8,
    height: u8,
}

/// Appends a tile of pixels that are converted, in rows of `width`.
pub(super) fn put(
    pixels: &[u32],
    width: u16,
    colours: &mut Colours,
    converter: &Converter,
    out: &mut Vec<u8>,
) {
    let bytes = converter.bytes();
    let (background, others) = most_frequent(pixels);
    let named = colours.background != Some(background);
    let mut kind = if named { BACKGROUND } else { 0 };
    let mut length = usize::from(named) * bytes;
    let foreground = match others {
        Others::None => None,
        Others::One(colour) => {
            kind |= SUBRECTS;
            if colours.foreground != Some(colour) {
                kind |= FOREGROUND;
                length += bytes;
            }
            Some(colour)
        }
        Others::Several => {
            kind |= SUBRECTS | COLOURED;
            None
        }
    };
    let each = 2 + if kind & COLOURED == 0 { 0 } else { bytes };
    // More would not be shorter than the pixels themselves, which also keeps them below 256.
    let room = (pixels.len() * bytes).saturating_sub(length + 1) / each;
    let Some((subrects, count)) = subrects(pixels, width, background, room.min(255)) else {
        out.push(RAW);
        converter.put_all(pixels, out);
        *colours = Colours::default();
        return;
    };
    out.push(kind);
    if kind & BACKGROUND != 0 {
        converter.put(background, out);
    }
    if let Some(colour) = foreground.filter(|_| kind & FOREGROUND != 0) {
        converter.put(colour, out);
    }
    colours.background = Some(background);
    match kind & COLOURED {
        0 => colours.foreground = foreground.or(colours.foreground),
        _ => colours.foreground = None,
    }
    if kind & SUBRECTS == 0 {
        return;
    }
    out.push(u8::try_from(count).unwrap_or(u8::MAX));
    for subrect in subrects.iter().take(count) {
        if kind & COLOURED != 0 {
            converter.put(subrect.colour, out);
        }
        out.push(subrect.x << 4 | subrect.y);
        out.push((subrect.width - 1) << 4 | (subrect.height - 1));
    }
}

/// A tile's colours beside the background.
enum Others {
    None,
    One(u32),
    Several,
}

/// Chooses the background: the most frequent of the first colours.
fn most_frequent(pixels: &[u32]) -> (u32, Others) {
    let mut counts = [(0u32, 0u16); COUNTED];
    let mut used = 0;
    for pixel in pixels {
        let known = counts.iter_mut().take(used).find(|(own, _)| own == pixel);
        match known {
            Some((_, count)) => *count += 1,
            None => match counts.get_mut(used) {
                Some(entry) => {
                    *entry = (*pixel, 1);
                    used += 1;
                }
                None => continue,
            },
        }
    }
    let used = counts.get(..used).unwrap_or_default();
    let most = used.iter().max_by_key(|(_, count)| *count);
    let background = most.map_or(0, |(colour, _)| *colour);
    let others = match used {
        [] | [_] => Others::None,
        [one, other] => Others::One(if one.0 == background { other.0 } else { one.0 }),
        _ => Others::Several,
    };
    (background, others)
}

/// Divides the pixels that are not the background into rectangles; `None` if those are more than
/// `room`.
fn subrects(
    pixels: &[u32],
    width: u16,
    background: u32,
    room: usize,
) -> Option<([Subrect; 255], usize)> {
    let width = usize::from(width);
    let mut subrects = [Subrect::default(); 255];
    let mut count = 0;
    // A bit for each pixel that is in a rectangle already.
    let mut covered = [0u32; SIDE];
    let rows = || pixels.chunks_exact(width);
    for (y, row) in rows().enumerate() {
        let mut x = 0;
        while let Some(colour) = row.get(x).copied() {
            let is_covered = covered.get(y).is_none_or(|bits| bits >> x & 1 != 0);
            if is_covered || colour == background {
                x += 1;
                continue;
            }
            let same = row.iter().skip(x).take_while(|pixel| **pixel == colour);
            let wide = same.count();
            let is_same = |row: &&[u32]| {
                let part = row.get(x..x + wide);
                part.is_some_and(|part| part.iter().all(|pixel| *pixel == colour))
            };
            let high = rows().skip(y).take_while(is_same).count();
            let mask = ((1u32 << wide) - 1) << x;
            covered
                .iter_mut()
                .skip(y)
                .take(high)
                .for_each(|bits| *bits |= mask);
            let entry = subrects.get_mut(count).filter(|_| count < room)?;
            *entry = Subrect {
                colour,
                x: x as u8,
                y: y as u8,
                width: wide as u8,
                height: high as u8,
            };
            count += 1;
            x += wide;
        }
    }
    Some((subrects, count))
}

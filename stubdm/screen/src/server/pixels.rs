//! Pixels as a viewer asks for them.

use super::ViewerError;

/// A format that a viewer may set, or the server's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    /// 8, 16 or 32.
    bits: u8,
    big_endian: bool,
    /// The largest values of red, green and blue, each of them one less than a power of two.
    maxima: [u16; 3],
    shifts: [u8; 3],
    /// A pixel in ZRLE is shorter than elsewhere.
    compact: Compact,
    /// The viewer asks for a colour map.
    map: bool,
}

/// The bytes of a 32-bit pixel that ZRLE sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compact {
    All,
    /// Those of the lower 24 bits.
    Low,
    /// Those of the upper 24 bits.
    High,
}

/// The server's own format, in which no pixel is converted.
pub(super) const NATIVE: Format = Format {
    bits: 32,
    big_endian: false,
    maxima: [255; 3],
    shifts: [16, 8, 0],
    compact: Compact::Low,
    map: false,
};

impl Format {
    /// Reads a format of a viewer's.
    ///
    /// # Errors
    /// [`ViewerError::Format`]: not 8, 16 or 32 bits, or colours that do not fit into them, that
    /// overlap, or whose largest value is not one less than a power of two.
    pub(super) fn read(bytes: &[u8; 16]) -> Result<Self, ViewerError> {
        let &[
            bits,
            depth,
            big_endian,
            true_colour,
            r1,
            r0,
            g1,
            g0,
            b1,
            b0,
            r,
            g,
            b,
            ..,
        ] = bytes;
        let refused = ViewerError::Format { bits };
        if !matches!(bits, 8 | 16 | 32) {
            return Err(refused);
        }
        if true_colour == 0 {
            // The map has the colours of three, three and two bits.
            return match bits {
                8 => Ok(Self {
                    bits,
                    big_endian: false,
                    maxima: [7, 7, 3],
                    shifts: [0, 3, 6],
                    compact: Compact::All,
                    map: true,
                }),
                _ => Err(refused),
            };
        }
        let maxima = [[r1, r0], [g1, g0], [b1, b0]].map(u16::from_be_bytes);
        let shifts = [r, g, b];
        let mut all = 0u32;
        for (max, shift) in maxima.into_iter().zip(shifts) {
            let mask = u64::from(max).checked_shl(shift.into()).unwrap_or(0);
            let mask = u32::try_from(mask).unwrap_or(0);
            let possible = max & max.wrapping_add(1) == 0
                && mask.count_ones() == max.count_ones()
                && mask > 0
                && mask.leading_zeros() + u32::from(bits) >= u32::BITS
                && all & mask == 0;
            if !possible {
                return Err(refused);
            }
            all |= mask;
        }
        let compact = match (bits, depth) {
            (32, ..=24) if all >> 24 == 0 => Compact::Low,
            (32, ..=24) if all & 0xff == 0 => Compact::High,
            _ => Compact::All,
        };
        Ok(Self {
            bits,
            big_endian: big_endian != 0,
            maxima,
            shifts,
            compact,
            map: false,
        })
    }

    /// The format as `ServerInit` has it.
    pub(super) fn to_bytes(self) -> [u8; 16] {
        let [r, g, b] = self.maxima.map(u16::to_be_bytes);
        let [r_shift, g_shift, b_shift] = self.shifts;
        let depth = self.maxima.iter().map(|max| max.count_ones()).sum::<u32>();
        [
            self.bits,
            u8::try_from(depth).unwrap_or(self.bits),
            u8::from(self.big_endian),
            u8::from(!self.map),
            r[0],
            r[1],
            g[0],
            g[1],
            b[0],
            b[1],
            r_shift,
            g_shift,
            b_shift,
            0,
            0,
            0,
        ]
    }

    /// Returns the message with the colour map for this format, if it has one.
    pub(super) fn colour_map(&self) -> Option<Vec<u8>> {
        if !self.map {
            return None;
        }
        let mut message = vec![1, 0, 0, 0, 1, 0];
        for entry in 0u16..256 {
            for (max, shift) in self.maxima.into_iter().zip(self.shifts) {
                let value = u32::from(entry >> shift & max);
                let scaled = value * u32::from(u16::MAX) / u32::from(max.max(1));
                message.extend(u16::try_from(scaled).unwrap_or(u16::MAX).to_be_bytes());
            }
        }
        Some(message)
    }
}

/// Converts pixels `0x00RRGGBB` into those of a format.
pub(super) struct Converter {
    format: Format,
    /// The bits of each value of red, green and blue.
    tables: Box<[[u32; 256]; 3]>,
}

impl Converter {
    pub(super) fn new(format: Format) -> Self {
        let mut tables = Box::new([[0; 256]; 3]);
        let colours = format.maxima.into_iter().zip(format.shifts);
        for (table, (max, shift)) in tables.iter_mut().zip(colours) {
            for (value, entry) in (0u32..).zip(table.iter_mut()) {
                let scaled = (value * u32::from(max) + 127) / 255;
                *entry = scaled.checked_shl(shift.into()).unwrap_or(0);
            }
        }
        Self { format, tables }
    }

    /// Bytes of a pixel.
    pub(super) fn bytes(&self) -> usize {
        usize::from(self.format.bits / 8)
    }

    /// Bytes of a pixel in ZRLE.
    pub(super) fn compact_bytes(&self) -> usize {
        match self.format.compact {
            Compact::All => self.bytes(),
            Compact::Low | Compact::High => 3,
        }
    }

    /// Converts pixels in place.
    pub(super) fn convert(&self, pixels: &mut [u32]) {
        if self.format.maxima == NATIVE.maxima && self.format.shifts == NATIVE.shifts {
            return;
        }
        let [reds, greens, blues] = &*self.tables;
        for pixel in pixels {
            let [blue, green, red, _] = pixel.to_le_bytes();
            *pixel = reds[usize::from(red)] | greens[usize::from(green)] | blues[usize::from(blue)];
        }
    }

    /// Appends pixels that are converted.
    pub(super) fn put_all(&self, pixels: &[u32], out: &mut Vec<u8>) {
        match (self.format.bits, self.format.big_endian) {
            (32, false) => pixels
                .iter()
                .for_each(|pixel| out.extend(pixel.to_le_bytes())),
            (32, true) => pixels
                .iter()
                .for_each(|pixel| out.extend(pixel.to_be_bytes())),
            _ => pixels.iter().for_each(|pixel| self.put(*pixel, out)),
        }
    }

    /// Appends a pixel that is converted.
    pub(super) fn put(&self, pixel: u32, out: &mut Vec<u8>) {
        let [a, b, c, d] = pixel.to_le_bytes();
        match (self.format.bits, self.format.big_endian) {
            (8, _) => out.push(a),
            (16, false) => out.extend([a, b]),
            (16, true) => out.extend([b, a]),
            (_, false) => out.extend([a, b, c, d]),
            (_, true) => out.extend([d, c, b, a]),
        }
    }

    /// Appends a pixel that is converted, as ZRLE has it.
    pub(super) fn put_compact(&self, pixel: u32, out: &mut Vec<u8>) {
        let [a, b, c, d] = pixel.to_le_bytes();
        match (self.format.compact, self.format.big_endian) {
            (Compact::All, _) => self.put(pixel, out),
            (Compact::Low, false) => out.extend([a, b, c]),
            (Compact::Low, true) => out.extend([c, b, a]),
            (Compact::High, false) => out.extend([b, c, d]),
            (Compact::High, true) => out.extend([d, c, b]),
        }
    }
}

impl std::fmt::Debug for Converter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.format.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(head: [u8; 4], maxima: [u16; 3], shifts: [u8; 3]) -> [u8; 16] {
        let [r, g, b] = maxima.map(u16::to_be_bytes);
        let all = [&head[..], &r, &g, &b, &shifts, &[0; 3]].concat();
        all.try_into().unwrap()
    }

    #[test]
    fn the_native_format_is_read_as_it_is_written() {
        assert_eq!(Format::read(&NATIVE.to_bytes()), Ok(NATIVE));
        assert_eq!(NATIVE.to_bytes()[..4], [32, 24, 0, 1]);
    }

    #[test]
    fn absurd_formats_are_refused() {
        let good = bytes([16, 16, 1, 1], [31, 63, 31], [11, 5, 0]);
        assert!(Format::read(&good).is_ok());
        let bad = [
            bytes([24, 24, 0, 1], [255; 3], [16, 8, 0]),
            bytes([0, 0, 0, 1], [255; 3], [16, 8, 0]),
            // Beyond the pixel, overlapping, none at all, not one less than a power of two.
            bytes([16, 16, 0, 1], [255; 3], [16, 8, 0]),
            bytes([32, 24, 0, 1], [255; 3], [25, 8, 0]),
            bytes([32, 24, 0, 1], [255; 3], [255, 8, 0]),
            bytes([32, 24, 0, 1], [255; 3], [12, 8, 0]),
            bytes([32, 24, 0, 1], [255, 0, 255], [16, 8, 0]),
            bytes([32, 24, 0, 1], [255, 254, 255], [16, 8, 0]),
            bytes([32, 24, 0, 0], [255; 3], [16, 8, 0]),
        ];
        for format in bad {
            let error = Err(ViewerError::Format { bits: format[0] });
            assert_eq!(Format::read(&format), error, "{format:?}");
        }
    }

    #[test]
    fn a_colour_map_has_the_colours_of_its_pixels() {
        let format = Format::read(&bytes([8, 8, 0, 0], [0; 3], [0; 3])).unwrap();
        let map = format.colour_map().unwrap();
        assert_eq!(
            (map.len(), &map[..6]),
            (6 + 256 * 6, &[1, 0, 0, 0, 1, 0][..])
        );
        let converter = Converter::new(format);
        let mut pixels = [0, 0xff_ffff, 0xff_0000, 0x00_ff00, 0x00_00ff];
        converter.convert(&mut pixels);
        assert_eq!(pixels, [0, 255, 7, 7 << 3, 3 << 6]);
        for (pixel, high) in
            pixels
                .into_iter()
                .zip([[0; 3], [255; 3], [255, 0, 0], [0, 255, 0], [0, 0, 255]])
        {
            let entry = &map[6 + pixel as usize * 6..][..6];
            assert_eq!([entry[0], entry[2], entry[4]], high, "{pixel}");
        }
        assert_eq!(NATIVE.colour_map(), None);
    }

    proptest! {
        #[test]
        fn a_colour_is_the_nearest_one_of_the_format(pixel in 0u32..1 << 24, big in any::<bool>()) {
            let head = [16, 16, big.into(), 1];
            let format = Format::read(&bytes(head, [31, 63, 31], [11, 5, 0])).unwrap();
            let converter = Converter::new(format);
            let mut converted = [pixel];
            converter.convert(&mut converted);
            let mut out = Vec::new();
            converter.put_all(&converted, &mut out);
            let out: [u8; 2] = out.try_into().unwrap();
            let value = if big { u16::from_be_bytes(out) } else { u16::from_le_bytes(out) };
            let near = |value: u16, max: u16, shift: u32| {
                let exact = f64::from(pixel >> shift & 255) * f64::from(max) / 255.0;
                (f64::from(value & max) - exact).abs() <= 0.5
            };
            prop_assert!(near(value >> 11, 31, 16) && near(value >> 5, 63, 8));
            prop_assert!(near(value, 31, 0));
        }

        #[test]
        fn any_format_is_read_or_refused(
            head in any::<[u8; 16]>(), bits in 0usize..4, maxima in [0u32..17, 0u32..17, 0u32..17],
        ) {
            let mut head = head;
            head[0] = [8, 16, 32, head[0]][bits];
            for (at, max) in maxima.into_iter().enumerate() {
                let max = ((1u32 << max) - 1) as u16;
                head[4 + 2 * at..6 + 2 * at].copy_from_slice(&max.to_be_bytes());
                head[10 + at] %= 40;
            }
            if let Ok(format) = Format::read(&head) {
                let converter = Converter::new(format);
                let mut pixels = [0xff_ffff];
                converter.convert(&mut pixels);
                prop_assert!(u64::from(pixels[0]) < 1 << format.bits);
                let mut out = Vec::new();
                converter.put_compact(pixels[0], &mut out);
                prop_assert_eq!(out.len(), converter.compact_bytes());
                // No bit of a colour is left out.
                let ones: u32 = out.iter().map(|byte| byte.count_ones()).sum();
                prop_assert_eq!(ones, pixels[0].count_ones());
            }
        }
    }
}

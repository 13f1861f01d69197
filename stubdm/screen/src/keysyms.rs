//! The keys of a US keyboard by their symbols, for viewers that send no scancodes, and by what they
//! type.

/// The rows of printable keys: the first key's number, the symbols, and those with a shift.
const ROWS: &[(u16, &[u8], &[u8])] = &[
    (41, b"`", b"~"),
    (2, b"1234567890-=", b"!@#$%^&*()_+"),
    (16, b"qwertyuiop[]", b"QWERTYUIOP{}"),
    (30, b"asdfghjkl;'", b"ASDFGHJKL:\""),
    (43, b"\\", b"|"),
    (44, b"zxcvbnm,./", b"ZXCVBNM<>?"),
    (57, b" ", b" "),
];

/// Symbols that X11 numbers from 0xff00 on, and Linux's numbers of their keys.
#[rustfmt::skip]
const FUNCTIONS: &[(u8, u16)] = &[
    // BackSpace, Tab, Linefeed, Clear, Return, Pause, Scroll_Lock, Sys_Req, Escape.
    (0x08, 14), (0x09, 15), (0x0a, 28), (0x0b, 76), (0x0d, 28), (0x13, 119), (0x14, 70),
    (0x15, 99), (0x1b, 1),
    // Home, the arrows, Prior, Next, End, Begin.
    (0x50, 102), (0x51, 105), (0x52, 103), (0x53, 106), (0x54, 108), (0x55, 104), (0x56, 109),
    (0x57, 107), (0x58, 76),
    // Print, Insert, Menu, Help, Break, Mode_switch, Num_Lock.
    (0x61, 99), (0x63, 110), (0x67, 127), (0x6a, 138), (0x6b, 119), (0x7e, 100), (0x7f, 69),
    // The keypad: Space, Tab, Enter; Home, the arrows, Prior, Next, End, Begin, Insert, Delete.
    (0x80, 57), (0x89, 15), (0x8d, 96), (0x95, 71), (0x96, 75), (0x97, 72), (0x98, 77),
    (0x99, 80), (0x9a, 73), (0x9b, 81), (0x9c, 79), (0x9d, 76), (0x9e, 82), (0x9f, 83),
    // Multiply, Add, Separator, Subtract, Decimal, Divide, 0 to 9, Equal.
    (0xaa, 55), (0xab, 78), (0xac, 121), (0xad, 74), (0xae, 83), (0xaf, 98), (0xb0, 82),
    (0xb1, 79), (0xb2, 80), (0xb3, 81), (0xb4, 75), (0xb5, 76), (0xb6, 77), (0xb7, 71),
    (0xb8, 72), (0xb9, 73), (0xbd, 117),
    // F1 to F12. F13 to F24 are 183 to 194, see below.
    (0xbe, 59), (0xbf, 60), (0xc0, 61), (0xc1, 62), (0xc2, 63), (0xc3, 64), (0xc4, 65),
    (0xc5, 66), (0xc6, 67), (0xc7, 68), (0xc8, 87), (0xc9, 88),
    // Shift, Control, Caps_Lock, Shift_Lock, Meta, Alt, Super; left before right.
    (0xe1, 42), (0xe2, 54), (0xe3, 29), (0xe4, 97), (0xe5, 58), (0xe6, 58), (0xe7, 125),
    (0xe8, 126), (0xe9, 56), (0xea, 100), (0xeb, 125), (0xec, 126),
    // Delete.
    (0xff, 111),
];

/// Returns Linux's number of the key that types a character of ASCII, and whether it takes a shift.
pub fn typed(character: u8) -> Option<(u16, bool)> {
    ROWS.iter().find_map(|(first, plain, shifted)| {
        let at = |row: &[u8]| row.iter().position(|own| *own == character);
        let (at, shift) = match at(plain) {
            Some(at) => (at, false),
            None => (at(shifted)?, true),
        };
        Some((first.checked_add(u16::try_from(at).ok()?)?, shift))
    })
}

/// Returns Linux's number of the key with this symbol of X11's. A symbol that takes a shift is its
/// key without one: a viewer sends the shift key by itself.
pub fn keycode(symbol: u32) -> Option<u16> {
    let [page, family, rest, low] = symbol.to_be_bytes();
    match (page, family, rest) {
        // The second is Unicode's.
        (0, 0, 0) | (1, 0, 0) => typed(low).map(|(key, _)| key),
        // ISO_Level3_Shift, ISO_Left_Tab.
        (0, 0, 0xfe) => match low {
            0x03 => Some(100),
            0x20 => Some(15),
            _ => None,
        },
        (0, 0, 0xff) => match low {
            0xca..=0xd5 => Some(183 + u16::from(low - 0xca)),
            _ => FUNCTIONS
                .iter()
                .find(|(own, _)| *own == low)
                .map(|(_, key)| *key),
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::scancode;

    #[test]
    fn known_symbols_have_their_keys() {
        // a, A, 1, !, ?, space, Return, F1, F12, F13, F24, Delete, left Control, Alt of Level 3.
        let symbols = [
            0x61, 0x41, 0x31, 0x21, 0x3f, 0x20, 0xff0d, 0xffbe, 0xffc9, 0xffca, 0xffd5, 0xffff,
            0xffe3, 0xfe03,
        ];
        let keys = [30, 30, 2, 2, 53, 57, 28, 59, 88, 183, 194, 111, 29, 100];
        assert_eq!(symbols.map(keycode), keys.map(Some));
        // The same by Unicode, and symbols without a key: ä, a function without one, Cyrillic.
        assert_eq!(keycode(0x100_0061), Some(30));
        assert_eq!([0xe4, 0xff02, 0x6c1, 0, u32::MAX].map(keycode), [None; 5]);
    }

    #[test]
    fn each_printable_character_has_a_key_and_each_key_a_scancode() {
        assert!((0x20..0x7f).all(|symbol| keycode(symbol).is_some()));
        let keys = [(30, false), (30, true), (2, false), (2, true), (57, false)];
        assert_eq!([b'a', b'A', b'1', b'!', b' '].map(typed), keys.map(Some));
        assert_eq!([0, 0x1f, 0x7f, 0xe4].map(typed), [None; 4]);
        for symbol in 0..0x1_0000 {
            let key = keycode(symbol);
            assert!(key.is_none_or(|key| scancode(key).is_some()), "{symbol:#x}");
        }
    }
}

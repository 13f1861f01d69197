//! Linux's numbers of keys, and the scancodes that QEMU takes for them.
//!
//! A scancode is one of set 1, as a keyboard sends it when a key is pressed; of those with the
//! prefix `E0` the top bit is set. Up to the number 83, and for three keys behind, Linux's numbers
//! are these scancodes themselves.

/// Keys whose number is not their scancode: the number, the scancode.
#[rustfmt::skip]
const OTHERS: &[(u16, u8)] = &[
    // The Japanese and Korean keys, and those of the numeric block.
    (85, 0x76), (89, 0x73), (90, 0x78), (91, 0x77), (92, 0x79), (93, 0x70), (94, 0x7b),
    (95, 0x5c), (96, 0x9c), (97, 0x9d), (98, 0xb5), (99, 0x54), (100, 0xb8), (101, 0x5b),
    // The block of the cursor keys.
    (102, 0xc7), (103, 0xc8), (104, 0xc9), (105, 0xcb), (106, 0xcd), (107, 0xcf), (108, 0xd0),
    (109, 0xd1), (110, 0xd2), (111, 0xd3),
    // Sound, power, pause, and what some keyboards have besides.
    (113, 0xa0), (114, 0xae), (115, 0xb0), (116, 0xde), (117, 0x59), (118, 0xce), (119, 0xc6),
    (121, 0x7e), (122, 0x72), (123, 0x71), (124, 0x7d), (125, 0xdb), (126, 0xdc), (127, 0xdd),
    // The keys at the left of Sun's keyboards.
    (128, 0xe8), (129, 0x85), (130, 0x86), (131, 0x87), (132, 0x8c), (133, 0xf8), (134, 0x64),
    (135, 0x65), (136, 0xc1), (137, 0xbc), (138, 0xf5), (139, 0x9e),
    // Programs, media and the net.
    (140, 0xa1), (142, 0xdf), (143, 0xe3), (155, 0xec), (156, 0xe6), (157, 0xeb), (158, 0xea),
    (159, 0xe9), (163, 0x99), (164, 0xa2), (165, 0x90), (166, 0xa4), (172, 0xb2), (173, 0xe7),
    (217, 0xe5), (226, 0xed),
    // F13 to F24.
    (183, 0x5d), (184, 0x5e), (185, 0x5f), (186, 0x55), (187, 0x83), (188, 0xf7), (189, 0x84),
    (190, 0x5a), (191, 0x74), (192, 0xf9), (193, 0x6d), (194, 0x6f),
];

/// Returns the scancode of a key by Linux's number; `None` for a key that no keyboard of a PC has.
pub fn scancode(key: u16) -> Option<u8> {
    match key {
        1..=83 | 86..=88 => u8::try_from(key).ok(),
        _ => OTHERS
            .iter()
            .find(|(own, _)| *own == key)
            .map(|(_, code)| *code),
    }
}

/// Returns Linux's number of the key with this scancode, which is one of [`scancode`]'s or the other
/// one of the print key.
pub fn keycode(scancode: u8) -> Option<u16> {
    match scancode {
        1..=83 | 86..=88 => Some(scancode.into()),
        // With Alt, keyboards send 0x54 for it.
        0xb7 => Some(99),
        _ => OTHERS
            .iter()
            .find(|(_, code)| *code == scancode)
            .map(|(own, _)| *own),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn known_keys_have_their_scancodes() {
        // Esc, 1, A, F12, right control, pause, print, right Windows key.
        let keys = [1, 2, 30, 88, 97, 119, 99, 126];
        let codes = [1, 2, 0x1e, 0x58, 0x9d, 0xc6, 0x54, 0xdc];
        assert_eq!(keys.map(scancode), codes.map(Some));
        assert_eq!([0, 84, 0x110, 0x2ff, u16::MAX].map(scancode), [None; 5]);
    }

    #[test]
    fn a_scancodes_key_has_that_scancode() {
        let keys: Vec<u16> = (0..=u16::MAX)
            .filter(|key| scancode(*key).is_some())
            .collect();
        for key in keys {
            assert_eq!(keycode(scancode(key).unwrap()), Some(key));
        }
        for code in (0..=u8::MAX).filter(|code| *code != 0xb7) {
            let key = keycode(code);
            assert!(
                key.is_none() || scancode(key.unwrap()) == Some(code),
                "{code:#x}"
            );
        }
        assert_eq!(
            [0, 0x80, 0xff, 0xb7].map(keycode),
            [None, None, None, Some(99)]
        );
    }

    #[test]
    fn no_two_keys_have_one_scancode() {
        let codes: Vec<u8> = (0..=u16::MAX).filter_map(scancode).collect();
        let different: BTreeSet<u8> = codes.iter().copied().collect();
        assert_eq!(different.len(), codes.len());
    }
}

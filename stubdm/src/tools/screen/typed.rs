//! The keys of a terminal, from the bytes that it sends for them.
//!
//! A terminal sends what a key types and no key itself: a release follows each press at once, and
//! modifiers alone are not seen.

use std::collections::VecDeque;

use stubdm_screen::keysyms;

/// Ctrl-].
const LEAVE: u8 = 0x1d;
const ESCAPE: u8 = 0x1b;

/// Linux's numbers of keys.
const KEY_ESC: u16 = 1;
const KEY_BACKSPACE: u16 = 14;
const KEY_TAB: u16 = 15;
const KEY_ENTER: u16 = 28;
const KEY_CTRL: u16 = 29;
const KEY_SHIFT: u16 = 42;
const KEY_ALT: u16 = 56;

/// Bytes of the longest sequence for one key.
const SEQUENCE_MAX: usize = 16;

/// The keys by the last character of their sequence.
#[rustfmt::skip]
const FINALS: &[(u8, u16)] = &[
    (b'A', 103), (b'B', 108), (b'C', 106), (b'D', 105), (b'F', 107), (b'H', 102),
    (b'P', 59), (b'Q', 60), (b'R', 61), (b'S', 62),
];

/// The keys by the number of their sequence.
#[rustfmt::skip]
const NUMBERS: &[(u16, u16)] = &[
    (1, 102), (2, 110), (3, 111), (4, 107), (5, 104), (6, 109), (7, 102), (8, 107), (11, 59),
    (12, 60), (13, 61), (14, 62), (15, 63), (17, 64), (18, 65), (19, 66), (20, 67), (21, 68),
    (23, 87), (24, 88),
];

/// Keys that were pressed together, or the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Press {
    /// Keys to press in this order, modifiers first.
    Keys(Vec<u16>),
    /// The key that ends the command.
    Leave,
}

/// Bytes so far, and the keys in them.
#[derive(Debug, Default)]
pub(super) struct Typed {
    bytes: Vec<u8>,
    presses: VecDeque<Press>,
}

impl Typed {
    /// Takes bytes, cut anywhere.
    pub(super) fn handle_bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        self.run(false);
    }

    /// Handles a pause: takes the bytes so far as complete.
    pub(super) fn handle_timeout(&mut self) {
        self.run(true);
    }

    /// Returns whether a part of a key's bytes waits for the rest.
    pub(super) fn is_cut(&self) -> bool {
        !self.bytes.is_empty()
    }

    pub(super) fn poll_press(&mut self) -> Option<Press> {
        self.presses.pop_front()
    }

    fn run(&mut self, whole: bool) {
        let mut rest = self.bytes.as_slice();
        while !rest.is_empty() {
            let (count, press) = match parse(rest) {
                Some(found) => found,
                // The escape key, and what follows.
                None if whole => (1, Some(Press::Keys(vec![KEY_ESC]))),
                None => break,
            };
            self.presses.extend(press);
            rest = rest.get(count..).unwrap_or_default();
        }
        self.bytes = rest.to_vec();
    }
}

/// Returns the first press and the number of its bytes; `None` while it may be incomplete. Bytes
/// that are no key's are no press.
fn parse(bytes: &[u8]) -> Option<(usize, Option<Press>)> {
    match bytes {
        [LEAVE, ..] => Some((1, Some(Press::Leave))),
        [ESCAPE] => None,
        [ESCAPE, ESCAPE, ..] => Some((1, Some(Press::Keys(vec![KEY_ESC])))),
        // Linux's console: F1 to F5.
        [ESCAPE, b'[', b'[', rest @ ..] => {
            let key = match rest.first()? {
                letter @ b'A'..=b'E' => Some(Press::Keys(vec![59 + u16::from(letter - b'A')])),
                _ => None,
            };
            Some((4, key))
        }
        [ESCAPE, b'[', rest @ ..] => sequence(rest),
        [ESCAPE, b'O', rest @ ..] => {
            let key = by(FINALS, *rest.first()?).map(|key| Press::Keys(vec![key]));
            Some((3, key))
        }
        [ESCAPE, byte, ..] => {
            let keys = single(*byte).map(|keys| [vec![KEY_ALT], keys].concat());
            Some((2, keys.map(Press::Keys)))
        }
        [byte, ..] => Some((1, single(*byte).map(Press::Keys))),
        [] => None,
    }
}

/// The keys of one byte.
fn single(byte: u8) -> Option<Vec<u16>> {
    let control = |byte: u8| Some(vec![KEY_CTRL, keysyms::typed(byte)?.0]);
    match byte {
        b'\r' => Some(vec![KEY_ENTER]),
        b'\t' => Some(vec![KEY_TAB]),
        0x08 | 0x7f => Some(vec![KEY_BACKSPACE]),
        0 => control(b' '),
        1..=0x1a => control(byte - 1 + b'a'),
        0x1c => control(b'\\'),
        0x1e => control(b'6'),
        0x1f => control(b'-'),
        _ => {
            let (key, shift) = keysyms::typed(byte)?;
            Some(if shift {
                vec![KEY_SHIFT, key]
            } else {
                vec![key]
            })
        }
    }
}

/// Reads a sequence after `ESC [`: numbers, and a last character.
fn sequence(rest: &[u8]) -> Option<(usize, Option<Press>)> {
    let is_last = |byte: &u8| (0x40..=0x7e).contains(byte);
    let Some(length) = rest.iter().position(is_last) else {
        return match rest.len() {
            SEQUENCE_MAX.. => Some((2, None)),
            _ => None,
        };
    };
    let last = rest.get(length).copied().unwrap_or_default();
    let text = std::str::from_utf8(rest.get(..length).unwrap_or_default()).unwrap_or_default();
    let mut numbers = text.split(';').map(|number| number.parse::<u16>().ok());
    let first = numbers.next().flatten().unwrap_or(1);
    // One more than the sum of shift, alt and control.
    let modifiers = numbers.next().flatten().unwrap_or(1).saturating_sub(1);
    let mut keys = Vec::new();
    for (bit, key) in [(4, KEY_CTRL), (2, KEY_ALT), (1, KEY_SHIFT)] {
        if modifiers & bit != 0 {
            keys.push(key);
        }
    }
    let key = match last {
        b'~' => by(NUMBERS, first),
        b'Z' => {
            keys.push(KEY_SHIFT);
            Some(KEY_TAB)
        }
        last => by(FINALS, last),
    };
    keys.extend(key);
    Some((length + 3, key.map(|_| Press::Keys(keys))))
}

fn by<T: PartialEq>(table: &[(T, u16)], wanted: T) -> Option<u16> {
    table
        .iter()
        .find(|(own, _)| *own == wanted)
        .map(|(_, key)| *key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use stubdm_screen::keys::scancode;

    fn presses(typed: &mut Typed) -> Vec<Press> {
        std::iter::from_fn(|| typed.poll_press()).collect()
    }

    fn of(bytes: &[u8]) -> Vec<Press> {
        let mut typed = Typed::default();
        typed.handle_bytes(bytes);
        typed.handle_timeout();
        assert!(!typed.is_cut());
        presses(&mut typed)
    }

    #[test]
    fn bytes_are_keys() {
        let cases: &[(&[u8], &[u16])] = &[
            (b"a", &[30]),
            (b"A", &[KEY_SHIFT, 30]),
            (b"?", &[KEY_SHIFT, 53]),
            (b"\r", &[KEY_ENTER]),
            (b"\t", &[KEY_TAB]),
            (b"\x7f", &[KEY_BACKSPACE]),
            (b"\x03", &[KEY_CTRL, 46]),
            (b"\x1a", &[KEY_CTRL, 44]),
            (b"\0", &[KEY_CTRL, 57]),
            (b"\x1b", &[KEY_ESC]),
            (b"\x1bx", &[KEY_ALT, 45]),
            (b"\x1bX", &[KEY_ALT, KEY_SHIFT, 45]),
            (b"\x1b[A", &[103]),
            (b"\x1bOD", &[105]),
            (b"\x1bOP", &[59]),
            (b"\x1b[[E", &[63]),
            (b"\x1b[3~", &[111]),
            (b"\x1b[24~", &[88]),
            (b"\x1b[1;5C", &[KEY_CTRL, 106]),
            (b"\x1b[1;4P", &[KEY_ALT, KEY_SHIFT, 59]),
            (b"\x1b[3;3~", &[KEY_ALT, 111]),
            (b"\x1b[Z", &[KEY_SHIFT, KEY_TAB]),
        ];
        for (bytes, keys) in cases {
            assert_eq!(of(bytes), [Press::Keys(keys.to_vec())], "{bytes:?}");
            assert!(keys.iter().all(|key| scancode(*key).is_some()));
        }
        assert_eq!(of(b"\x1d"), [Press::Leave]);
        // Two escapes; bytes that are no key's.
        assert_eq!(of(b"\x1b\x1b"), vec![Press::Keys(vec![KEY_ESC]); 2]);
        assert_eq!(of(b"\xc3\xa4\x1b[99~\x1b[?1;2c\x1bOz"), []);
    }

    #[test]
    fn a_key_that_is_cut_waits_for_its_rest() {
        let mut typed = Typed::default();
        for byte in b"\x1b[1;5" {
            typed.handle_bytes(&[*byte]);
            assert!(typed.is_cut() && presses(&mut typed).is_empty());
        }
        typed.handle_bytes(b"Ca");
        let keys = [Press::Keys(vec![KEY_CTRL, 106]), Press::Keys(vec![30])];
        assert_eq!(presses(&mut typed), keys);
        assert!(!typed.is_cut());
        // Without its rest it is what it seems to be.
        typed.handle_bytes(b"\x1b");
        assert!(typed.is_cut());
        typed.handle_timeout();
        assert_eq!(presses(&mut typed), [Press::Keys(vec![KEY_ESC])]);
    }

    proptest! {
        #[test]
        fn any_bytes_come_to_an_end_and_the_cuts_do_not_matter(
            bytes in prop::collection::vec(
                prop_oneof![any::<u8>(), prop::sample::select(b"\x1b[O;15~AZ".to_vec())], 0..60),
            size in 1usize..9,
        ) {
            let whole = of(&bytes);
            let mut typed = Typed::default();
            for piece in bytes.chunks(size) {
                typed.handle_bytes(piece);
                prop_assert!(typed.bytes.len() <= SEQUENCE_MAX + 2);
            }
            typed.handle_timeout();
            prop_assert_eq!(presses(&mut typed), whole);
            prop_assert!(!typed.is_cut());
        }
    }
}

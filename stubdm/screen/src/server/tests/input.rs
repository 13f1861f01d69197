//! Keys, pointers and the clipboard.

use super::*;

#[test]
fn keys_come_by_scancode_or_by_symbol() {
    let picture = Picture::new(9, 9);
    let (mut viewer, mut decoder) = joined(&picture, NATIVE, &[RAW, EXTENDED_KEYS]);
    decoder.take(&output(&mut viewer, &picture));
    assert!(decoder.scancodes);
    let qemu = |down: u8, symbol: u32, code: u32| {
        let (symbol, code) = (symbol.to_be_bytes(), code.to_be_bytes());
        [&[255, 0, 0, down][..], &symbol, &code].concat()
    };
    let plain = |down: u8, symbol: u32| [&[4, down, 0, 0][..], &symbol.to_be_bytes()].concat();
    // A by its scancode though the symbol is another; the arrow in both spellings; B by its symbol.
    send(&mut viewer, &qemu(1, 0x71, 0x1e));
    send(&mut viewer, &qemu(1, 0xff51, 0xcb));
    send(&mut viewer, &qemu(0, 0xff51, 0xe04b));
    send(&mut viewer, &qemu(1, 0x62, 0));
    send(&mut viewer, &plain(0, 0x42));
    // Unknown ones, and a release of a key that is not pressed.
    send(&mut viewer, &qemu(1, 0, 0x1_001e));
    send(&mut viewer, &plain(1, 0x1234_5678));
    send(&mut viewer, &plain(0, 0x63));
    let key = |keycode, pressed| Input::Key { keycode, pressed };
    let inputs = [
        key(30, true),
        key(105, true),
        key(105, false),
        key(48, true),
        key(48, false),
    ];
    assert_eq!(
        std::iter::from_fn(|| viewer.poll_input()).collect::<Vec<_>>(),
        inputs
    );
    // Repeats are passed on.
    send(&mut viewer, &[plain(1, 0x20), plain(1, 0x20)].concat());
    send(&mut viewer, &[5, 2, 0, 1, 0, 1]);
    viewer.release_keys();
    let pointer = |buttons| Input::Pointer {
        x: 1,
        y: 1,
        buttons,
    };
    let inputs = [
        key(57, true),
        key(57, true),
        pointer(2),
        key(30, false),
        key(57, false),
        pointer(0),
    ];
    assert_eq!(
        std::iter::from_fn(|| viewer.poll_input()).collect::<Vec<_>>(),
        inputs
    );
    viewer.release_keys();
    assert_eq!(viewer.poll_input(), None);
}

#[test]
fn the_pointer_stays_within_the_picture_and_the_wheel_turns_once_for_each_press() {
    let mut picture = Picture::new(50, 40);
    let (mut viewer, _) = joined(&picture, NATIVE, &[RAW]);
    let at = |x, y, buttons| Input::Pointer { x, y, buttons };
    let inputs = |viewer: &mut Viewer, messages: &[[u8; 3]]| {
        for [mask, x, y] in messages {
            send(viewer, &[5, *mask, 0, *x, 0, *y]);
        }
        std::iter::from_fn(|| viewer.poll_input()).collect::<Vec<_>>()
    };
    let wheel = |steps| Input::Wheel { steps };
    // While few events wait, each movement is one.
    let moves = [
        [0, 1, 1],
        [0, 2, 2],
        [1, 2, 2],
        [1, 3, 3],
        [1, 4, 4],
        [0, 4, 4],
        [0, 5, 5],
    ];
    let all = moves.map(|[mask, x, y]| at(x.into(), y.into(), mask));
    assert_eq!(inputs(&mut viewer, &moves), all);
    // The same again is nothing.
    assert_eq!(inputs(&mut viewer, &[[0, 5, 5]]), []);
    let turns = [
        [8, 5, 5],
        [8, 5, 5],
        [0, 5, 5],
        [16, 6, 5],
        [24, 6, 5],
        [0, 7, 5],
    ];
    let all = [wheel(1), at(6, 5, 0), wheel(-1), wheel(1), at(7, 5, 0)];
    assert_eq!(inputs(&mut viewer, &turns), all);
    // Buttons beyond three are left out.
    assert_eq!(
        inputs(&mut viewer, &[[0xe0 | 5, 255, 255]]),
        [at(49, 39, 5)]
    );
    picture.resize(20, 10);
    output(&mut viewer, &picture);
    assert_eq!(inputs(&mut viewer, &[[5, 255, 255]]), [at(19, 9, 5)]);
}

#[test]
fn a_flood_of_input_waits_with_the_caller() {
    let (mut viewer, _) = joined(&Picture::new(50, 40), NATIVE, &[RAW]);
    // Keys and clicks, which do not become one.
    let flood = [
        [4, 1, 0, 0, 0, 0, 0, 0x61].as_slice(),
        &[5, 9, 0, 1, 0, 1, 5, 0, 0, 2, 0, 2],
    ];
    let flood = flood.concat().repeat(1000);
    let mut rest = flood.as_slice();
    let mut inputs = 0;
    while !rest.is_empty() {
        let taken = viewer.handle_bytes(rest).unwrap();
        rest = &rest[taken..];
        let waiting = std::iter::from_fn(|| viewer.poll_input()).count();
        assert!((1..=INPUTS_MAX).contains(&waiting), "{waiting}");
        inputs += waiting;
    }
    assert_eq!(inputs, 4000);
    // Movements become one where many events wait.
    let moves: Vec<u8> = (0..10_000u16)
        .flat_map(|at| [5, 0, 0, (at % 49) as u8, 0, 5])
        .collect();
    send(&mut viewer, &moves);
    let waiting: Vec<_> = std::iter::from_fn(|| viewer.poll_input()).collect();
    let last = Input::Pointer {
        x: 9999 % 49,
        y: 5,
        buttons: 0,
    };
    assert_eq!((waiting.len(), waiting.last()), (32, Some(&last)));
}

#[test]
fn text_for_the_clipboard_is_dropped() {
    let (mut viewer, _) = joined(&Picture::new(50, 40), NATIVE, &[RAW]);
    let mut text = vec![6, 0, 0, 0];
    text.extend(TEXT_MAX.to_be_bytes());
    send(&mut viewer, &text);
    // Bytes that would be a violation.
    send(&mut viewer, &vec![7; TEXT_MAX as usize]);
    send(&mut viewer, &[6, 0, 0, 0, 0, 0, 0, 0]);
    send(&mut viewer, &[4, 1, 0, 0, 0, 0, 0, 0x61]);
    let key = Input::Key {
        keycode: 30,
        pressed: true,
    };
    assert_eq!(viewer.poll_input(), Some(key));
}

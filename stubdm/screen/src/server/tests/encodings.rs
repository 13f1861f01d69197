//! Pictures in each encoding and format.

use std::collections::BTreeSet;

use super::*;

#[test]
fn each_encoding_shows_the_picture_in_each_format() {
    let mut kinds = BTreeSet::new();
    for format in formats() {
        for encoding in [RAW, HEXTILE, ZRLE] {
            for (at, (colours, run)) in [
                (1, 1),
                (2, 3),
                (2, 300),
                (3, 90),
                (9, 2),
                (14, 40),
                (60, 9),
                (120, 150),
                (1 << 20, 1),
                (1 << 20, 90),
            ]
            .into_iter()
            .enumerate()
            {
                let picture = painted(131, 70, colours, run, at as u32 * 77 + 5);
                let (mut viewer, mut decoder) = joined(&picture, format, &[encoding]);
                send(&mut viewer, &request(false, ALL));
                decoder.take(&output(&mut viewer, &picture));
                assert_eq!(decoder.updates, 1);
                decoder.assert_shows(&picture);
                kinds.extend(decoder.kinds);
            }
        }
    }
    // Each kind of tile was among them.
    let has = |encoding, range: std::ops::RangeInclusive<u8>| {
        range
            .into_iter()
            .any(|kind| kinds.contains(&(encoding, kind)))
    };
    for kind in [0, 1, 2, 8, 10, 12, 14, 24, 26] {
        assert!(has(HEXTILE, kind..=kind), "Hextile {kind}: {kinds:?}");
    }
    for range in [0..=0, 1..=1, 2..=2, 3..=4, 5..=16, 128..=128, 130..=255] {
        assert!(has(ZRLE, range.clone()), "ZRLE {range:?}: {kinds:?}");
    }
}

#[test]
fn large_pictures_come_in_pieces() {
    for (width, height) in [(1920, 300), (8192, 33), (1, 8192), (257, 700), (4096, 130)] {
        let picture = painted(width, height, 1 << 20, 2, 9);
        for encoding in [RAW, HEXTILE, ZRLE] {
            let (mut viewer, mut decoder) = joined(&picture, NATIVE, &[encoding]);
            send(&mut viewer, &request(false, ALL));
            decoder.take(&output(&mut viewer, &picture));
            assert_eq!(decoder.updates, 1);
            decoder.assert_shows(&picture);
        }
    }
}

#[test]
fn what_is_short_in_zrle_is_one_rectangle() {
    // Text, of which each tile has two colours.
    let text = painted(800, 600, 2, 3, 5);
    // The same above noise, which is sent in pieces of 256 by 64.
    let mut mixed = text.clone();
    let noise = painted(800, 300, u32::MAX, 1, 3);
    for y in 0..300 {
        mixed.update_row(0, y + 300, noise.row(y));
    }
    for (picture, pieces) in [(&text, 1), (&mixed, 1 + 4 * 6), (&noise, 4 * 5)] {
        let (mut viewer, mut decoder) = joined(picture, NATIVE, &[ZRLE]);
        send(&mut viewer, &request(false, ALL));
        decoder.take(&output(&mut viewer, picture));
        assert_eq!((decoder.updates, decoder.rectangles), (1, pieces));
        decoder.assert_shows(picture);
        // A part that changed, and then a larger one, which is sent first.
        for rect in [
            Rect {
                x: 700,
                y: 500,
                width: 20,
                height: 20,
            },
            Rect {
                x: 3,
                y: 2,
                width: 300,
                height: 100,
            },
        ] {
            viewer.handle_damage(rect);
        }
        send(&mut viewer, &request(true, ALL));
        decoder.take(&output(&mut viewer, picture));
        decoder.assert_shows(picture);
    }
}

#[test]
fn pieces_of_raw_and_hextile_are_one_rectangle() {
    let picture = painted(1000, 300, 50, 90, 7);
    for encoding in [RAW, HEXTILE] {
        let (mut viewer, mut decoder) = joined(&picture, NATIVE, &[encoding]);
        send(&mut viewer, &request(false, ALL));
        let mut pieces = 0;
        let mut bytes = Vec::new();
        while piece(&mut viewer, &picture, &mut bytes) {
            pieces += 1;
        }
        decoder.take(&bytes);
        decoder.assert_shows(&picture);
        assert!(pieces > 3, "{encoding}: {pieces}");
        assert_eq!(decoder.rectangles, 1, "{encoding}");
    }
    // Wider ones are several in Hextile, whose pieces are beside each other.
    let picture = painted(1030, 40, 50, 90, 7);
    let (mut viewer, mut decoder) = joined(&picture, NATIVE, &[HEXTILE]);
    send(&mut viewer, &request(false, ALL));
    decoder.take(&output(&mut viewer, &picture));
    decoder.assert_shows(&picture);
    assert_eq!(decoder.rectangles, 2 * 3);
}

#[test]
fn the_longest_pieces_are_within_the_limit() {
    // Noise that no encoding shortens, and whole tiles of every shape.
    for (width, height) in [
        (1024, 16),
        (256, 64),
        (1025, 33),
        (8192, 2),
        (17, 1040),
        (65, 300),
    ] {
        let picture = painted(width, height, u32::MAX, 1, 3);
        for encoding in [RAW, HEXTILE, ZRLE] {
            let (mut viewer, mut decoder) = joined(&picture, formats()[6], &[encoding]);
            send(&mut viewer, &request(false, ALL));
            // output() has the assertion.
            decoder.take(&output(&mut viewer, &picture));
            decoder.assert_shows(&picture);
        }
    }
}

#[test]
fn an_update_has_no_more_rectangles_than_a_message_can_name() {
    use super::encode::Encoding;
    for number in [RAW, HEXTILE, ZRLE] {
        let encoding = Encoding::of(number).unwrap();
        for width in (1..=SIDE_MAX).step_by(13).chain([SIDE_MAX]) {
            let rect = Rect {
                x: 0,
                y: 0,
                width,
                height: SIDE_MAX,
            };
            assert!(encoding.pieces(&rect) <= 4096, "{encoding:?} {width}");
        }
    }
}

#[test]
fn the_first_encoding_that_is_supported_is_used() {
    let picture = Picture::new(10, 10);
    // Tight and CopyRect are not.
    for (wishes, used) in [
        (&[7, 1, 16, 5, 0][..], ZRLE),
        (&[5, 16], HEXTILE),
        (&[7, 99], RAW),
        (&[], RAW),
    ] {
        let (mut viewer, mut decoder) = joined(&picture, NATIVE, wishes);
        send(&mut viewer, &request(false, ALL));
        let bytes = output(&mut viewer, &picture);
        let number = i32::from_be_bytes(bytes[12..16].try_into().unwrap());
        assert_eq!(number, used, "{wishes:?}");
        decoder.take(&bytes);
        decoder.assert_shows(&picture);
    }
}

#[test]
fn a_colour_map_is_sent_before_the_pixels_that_use_it() {
    let picture = painted(40, 30, 99, 3, 4);
    let format = Format {
        bits: 8,
        depth: 8,
        big: false,
        maxima: [7, 7, 3],
        shifts: [0, 3, 6],
    };
    for encoding in [RAW, HEXTILE, ZRLE] {
        let (mut viewer, mut decoder) = joined(&picture, format, &[encoding]);
        let mut message = format.message();
        message[7] = 0;
        send(&mut viewer, &message);
        send(&mut viewer, &request(false, ALL));
        let bytes = output(&mut viewer, &picture);
        assert_eq!(bytes[0], 1);
        decoder.take(&bytes);
        decoder.assert_shows(&picture);
        assert_eq!(decoder.map.len(), 256 * 6);
        // It is not sent again.
        send(&mut viewer, &request(false, ALL));
        assert_eq!(output(&mut viewer, &picture)[0], 0);
    }
}

#[test]
fn another_format_is_for_the_next_update() {
    let picture = painted(300, 200, 1 << 20, 1, 2);
    let (mut viewer, mut decoder) = joined(&picture, NATIVE, &[HEXTILE]);
    send(&mut viewer, &request(false, ALL));
    let mut bytes = Vec::new();
    assert!(piece(&mut viewer, &picture, &mut bytes));
    let other = formats()[14];
    send(&mut viewer, &other.message());
    bytes.extend(output(&mut viewer, &picture));
    decoder.take(&bytes);
    decoder.assert_shows(&picture);
    send(&mut viewer, &request(false, ALL));
    decoder.format = other;
    decoder.take(&output(&mut viewer, &picture));
    decoder.assert_shows(&picture);
}

#[test]
fn a_foreground_is_named_again_after_a_tile_of_several() {
    let mut picture = Picture::new(64, 16);
    // Tiles with one colour on the background, several, the first one's again, and once more.
    for (tile, colours) in [
        (0, [7, 7, 7]),
        (16, [1, 2, 3]),
        (32, [7, 7, 7]),
        (48, [7, 7, 7]),
    ] {
        picture.update_row(tile, 3, &colours);
    }
    let (mut viewer, mut decoder) = joined(&picture, NATIVE, &[HEXTILE]);
    send(&mut viewer, &request(true, ALL));
    decoder.take(&output(&mut viewer, &picture));
    decoder.assert_shows(&picture);
    let kinds = [2 | 4 | 8, 8 | 16, 4 | 8, 8].map(|kind| (HEXTILE, kind));
    assert_eq!(decoder.kinds, BTreeSet::from(kinds));
}

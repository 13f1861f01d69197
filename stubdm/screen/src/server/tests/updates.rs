//! Requests, damage, sizes, continuous updates and fences.

use super::*;

#[test]
fn only_damage_that_was_asked_for_is_sent() {
    let mut picture = painted(300, 200, 50, 4, 2);
    let (mut viewer, mut decoder) = joined(&picture, NATIVE, &[ZRLE]);
    // Nothing is asked for.
    assert_eq!(output(&mut viewer, &picture), []);
    send(&mut viewer, &request(true, ALL));
    decoder.take(&output(&mut viewer, &picture));
    decoder.assert_shows(&picture);
    // Nothing is damaged.
    send(&mut viewer, &request(true, ALL));
    assert_eq!(output(&mut viewer, &picture), []);
    let mut spot = |viewer: &mut Viewer, x, y| {
        picture.update_row(x, y, &[0x12_3456; 5]).unwrap();
        viewer.handle_damage(Rect {
            x,
            y,
            width: 5,
            height: 1,
        });
        picture.clone()
    };
    let picture = spot(&mut viewer, 100, 50);
    let bytes = output(&mut viewer, &picture);
    assert!(bytes.len() < 100, "{}", bytes.len());
    decoder.take(&bytes);
    decoder.assert_shows(&picture);
    // The request is answered: the next damage waits for the next one that names it.
    let picture = spot(&mut viewer, 200, 150);
    assert_eq!(output(&mut viewer, &picture), []);
    let corner = Rect {
        width: 100,
        height: 100,
        ..ALL
    };
    send(&mut viewer, &request(true, corner));
    assert_eq!(output(&mut viewer, &picture), []);
    send(&mut viewer, &request(true, ALL));
    decoder.take(&output(&mut viewer, &picture));
    decoder.assert_shows(&picture);
    assert_eq!((decoder.updates, decoder.rectangles), (3, 3));
    // A part that is asked for again is sent without damage.
    send(&mut viewer, &request(false, corner));
    decoder.take(&output(&mut viewer, &picture));
    assert_eq!(decoder.rectangles, 4);
    // Absurd parts are none.
    for rect in [Rect { x: 300, ..ALL }, Rect { width: 0, ..ALL }] {
        send(&mut viewer, &request(false, rect));
        assert_eq!(output(&mut viewer, &picture), []);
    }
}

#[test]
fn a_million_requests_are_one() {
    let picture = painted(64, 64, 50, 4, 2);
    let (mut viewer, mut decoder) = joined(&picture, NATIVE, &[ZRLE]);
    let many = [request(false, ALL), request(true, ALL)]
        .concat()
        .repeat(5000);
    for _ in 0..100 {
        send(&mut viewer, &many);
    }
    decoder.take(&output(&mut viewer, &picture));
    assert_eq!((decoder.updates, decoder.rectangles), (1, 1));
    decoder.assert_shows(&picture);
}

#[test]
fn viewers_follow_the_size_if_they_can() {
    for (wishes, kind) in [
        (&[HEXTILE, DESKTOP_SIZE][..], Some(DESKTOP_SIZE)),
        (
            &[HEXTILE, EXTENDED_DESKTOP_SIZE, DESKTOP_SIZE],
            Some(EXTENDED_DESKTOP_SIZE),
        ),
        (&[HEXTILE], None),
    ] {
        let mut picture = painted(60, 40, 50, 4, 2);
        let (mut viewer, mut decoder) = joined(&picture, NATIVE, wishes);
        decoder.take(&output(&mut viewer, &picture));
        // The current size, at once.
        let announced = kind.filter(|kind| *kind == EXTENDED_DESKTOP_SIZE);
        assert_eq!(
            decoder.sizes,
            Vec::from_iter(announced.map(|kind| (kind, 0, 0)))
        );
        decoder.sizes.clear();
        send(&mut viewer, &request(true, ALL));
        decoder.take(&output(&mut viewer, &picture));
        for (width, height) in [(90, 20), (10, 70), (60, 40)] {
            picture = painted(width, height, 50, 4, width.into());
            viewer.handle_resize(width, height);
            assert_eq!(output(&mut viewer, &picture), []);
            send(&mut viewer, &request(true, ALL));
            decoder.take(&output(&mut viewer, &picture));
            if let Some(kind) = kind {
                assert_eq!(decoder.sizes, [(kind, 0, 0)]);
                assert_eq!((decoder.size.width, decoder.size.height), (width, height));
                decoder.sizes.clear();
                send(&mut viewer, &request(true, ALL));
                decoder.take(&output(&mut viewer, &picture));
            }
            decoder.assert_shows(&picture);
        }
        assert_eq!(decoder.sizes, []);
        // The viewer cannot change it.
        let mut change = vec![251, 0, 0, 9, 0, 9, 1, 0];
        change.extend([0; 16]);
        send(&mut viewer, &change);
        decoder.take(&output(&mut viewer, &picture));
        let refusal = announced.map(|kind| (kind, 1, 1));
        assert_eq!(decoder.sizes, Vec::from_iter(refusal));
    }
}

#[test]
fn a_picture_without_pixels_is_a_black_one() {
    let picture = Picture::new(0, 7);
    let (mut viewer, mut decoder) = joined(&picture, NATIVE, &[ZRLE, DESKTOP_SIZE]);
    send(&mut viewer, &request(true, ALL));
    decoder.take(&output(&mut viewer, &picture));
    assert_eq!((decoder.size.width, decoder.size.height), (1, 7));
    decoder.assert_shows(&picture);
    send(&mut viewer, &[5, 1, 0, 9, 0, 9]);
    let pointer = Input::Pointer {
        x: 0,
        y: 6,
        buttons: 1,
    };
    assert_eq!(viewer.poll_input(), Some(pointer));
}

#[test]
fn continuous_updates_need_no_request_and_cost_nothing_without_damage() {
    let mut picture = painted(300, 200, 50, 4, 2);
    let (mut viewer, mut decoder) = joined(&picture, NATIVE, &[ZRLE, FENCE, CONTINUOUS]);
    decoder.take(&output(&mut viewer, &picture));
    // Both are announced.
    assert_eq!(
        (decoder.ends, &decoder.fences[..]),
        (1, &[(1 << 31, vec![])][..])
    );
    // The viewer's answer is none to answer.
    send(&mut viewer, &[248, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(output(&mut viewer, &picture), []);
    let part = Rect {
        x: 50,
        y: 50,
        width: 200,
        height: 100,
    };
    send(&mut viewer, &[vec![150, 1], area(part)].concat());
    decoder.take(&output(&mut viewer, &picture));
    assert_eq!(decoder.updates, 1);
    for round in 0u16..40 {
        for at in 0..20 {
            let (x, y) = (at * 14, (at * 37 + round * 11) % 200);
            let span = picture.update_row(x, y, &[u32::from(round * 20 + at) + 1; 9]);
            let (first, end) = span.unwrap_or((x, x + 1));
            viewer.handle_damage(Rect {
                x: first,
                y,
                width: end - first,
                height: 1,
            });
        }
        let mut bytes = Vec::new();
        for piece_number in 0.. {
            assert!(piece_number < 100, "updates without end");
            if !piece(&mut viewer, &picture, &mut bytes) {
                break;
            }
        }
        decoder.take(&bytes);
    }
    for y in part.y..part.end() {
        for x in part.x..part.right() {
            let (x, row) = (usize::from(x), picture.row(y));
            assert_eq!(decoder.pixels[usize::from(y) * 300 + x], row[x], "{x}, {y}");
        }
    }
    // The rest by a request, and then no more.
    send(&mut viewer, &request(true, ALL));
    decoder.take(&output(&mut viewer, &picture));
    decoder.assert_shows(&picture);
    send(&mut viewer, &[vec![150, 0], area(part)].concat());
    viewer.handle_damage(ALL);
    decoder.take(&output(&mut viewer, &picture));
    assert_eq!(decoder.ends, 2);
}

#[test]
fn continuous_updates_of_the_whole_screen_follow_its_size() {
    let mut picture = painted(60, 40, 50, 4, 2);
    let wishes = [HEXTILE, CONTINUOUS, EXTENDED_KEYS, DESKTOP_SIZE];
    let (mut viewer, mut decoder) = joined(&picture, NATIVE, &wishes);
    send(&mut viewer, &[vec![150, 1], area(ALL)].concat());
    decoder.take(&output(&mut viewer, &picture));
    decoder.assert_shows(&picture);
    // Nothing is announced twice.
    send(&mut viewer, &encodings(&wishes));
    assert_eq!(output(&mut viewer, &picture), []);
    for (width, height) in [(90, 70), (30, 80)] {
        picture = painted(width, height, 50, 4, 3);
        viewer.handle_resize(width, height);
        decoder.take(&output(&mut viewer, &picture));
        assert_eq!((decoder.size.width, decoder.size.height), (width, height));
        decoder.assert_shows(&picture);
    }
}

#[test]
fn requests_for_two_parts_are_answered_with_both() {
    let picture = painted(200, 100, 50, 4, 2);
    let (mut viewer, mut decoder) = joined(&picture, NATIVE, &[HEXTILE]);
    let part = |x| Rect {
        x,
        y: 0,
        width: 100,
        height: 100,
    };
    send(
        &mut viewer,
        &[request(true, part(0)), request(true, part(100))].concat(),
    );
    decoder.take(&output(&mut viewer, &picture));
    assert_eq!(decoder.updates, 1);
    decoder.assert_shows(&picture);
}

#[test]
fn fences_are_answered_between_updates_and_a_flood_of_them_waits() {
    let picture = painted(300, 200, 1 << 20, 1, 2);
    let (mut viewer, mut decoder) = joined(&picture, NATIVE, &[RAW, FENCE]);
    send(&mut viewer, &request(true, ALL));
    let mut bytes = Vec::new();
    // The announcement of fences, and a piece of the update.
    assert!(piece(&mut viewer, &picture, &mut bytes) && piece(&mut viewer, &picture, &mut bytes));
    let mut fence = vec![248, 0, 0, 0, 0x80, 0, 0, 0xff, 64];
    fence.extend([7; 64]);
    let flood = fence.repeat(1000);
    let taken = viewer.handle_bytes(&flood).unwrap();
    assert!(taken < 20 * fence.len(), "{taken}");
    assert_eq!(viewer.handle_bytes(&flood), Ok(0));
    bytes.extend(output(&mut viewer, &picture));
    decoder.take(&bytes);
    decoder.assert_shows(&picture);
    let answers = decoder
        .fences
        .iter()
        .filter(|fence| **fence == (7, vec![7; 64]));
    assert_eq!(answers.count(), taken / fence.len());
    assert!(viewer.handle_bytes(&flood[taken..]).unwrap() > 0);
}

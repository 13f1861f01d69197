//! Random orders of messages, and random bytes.

use proptest::prelude::*;

use super::*;

/// An action of the caller's or the viewer's.
#[derive(Clone, Debug)]
enum Action {
    Paint(u16, u16, u16, u32),
    Request(bool, Rect),
    Continuous(bool, Rect),
    Resize(u16, u16),
    Encodings(Vec<i32>),
    Fence(u8),
    Pieces(u8),
}

fn any_rect() -> impl Strategy<Value = Rect> {
    (0u16..90, 0u16..90, 0u16..90, 0u16..90).prop_map(|(x, y, width, height)| Rect {
        x,
        y,
        width,
        height,
    })
}

fn any_action() -> impl Strategy<Value = Action> {
    let wishes = prop::sample::subsequence(
        vec![
            7,
            HEXTILE,
            ZRLE,
            RAW,
            DESKTOP_SIZE,
            EXTENDED_DESKTOP_SIZE,
            FENCE,
            CONTINUOUS,
        ],
        0..=8,
    );
    prop_oneof![
        8 => (0u16..90, 0u16..90, 0u16..90, any::<u32>())
            .prop_map(|(x, y, count, pixel)| Action::Paint(x, y, count, pixel)),
        4 => (any::<bool>(), any_rect()).prop_map(|(i, rect)| Action::Request(i, rect)),
        1 => (any::<bool>(), any_rect()).prop_map(|(on, rect)| Action::Continuous(on, rect)),
        1 => (1u16..100, 1u16..100).prop_map(|(width, height)| Action::Resize(width, height)),
        1 => wishes.prop_map(Action::Encodings),
        1 => (0u8..65).prop_map(Action::Fence),
        6 => (1u8..4).prop_map(Action::Pieces),
    ]
}

/// Random bytes of a viewer's, most of them valid messages.
fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let message = prop_oneof![
        any::<[u8; 5]>().prop_map(|rest| [&[5][..], &rest].concat()),
        (any::<bool>(), 0x20u32..0x80).prop_map(|(down, symbol)| {
            [&[4, down.into(), 0, 0][..], &symbol.to_be_bytes()].concat()
        }),
        (any::<bool>(), any_rect()).prop_map(|(i, rect)| request(i, rect)),
        prop::collection::vec(
            prop::sample::select(vec![0, 5, 16, -223, -258, -308, -312, -313]),
            0..5
        )
        .prop_map(|numbers| encodings(&numbers)),
        (0..22usize).prop_map(|at| formats()[at].message()),
        prop::collection::vec(any::<u8>(), 0..20)
            .prop_map(|text| { [&[6, 0, 0, 0, 0, 0, 0, text.len() as u8][..], &text].concat() }),
        prop::collection::vec(any::<u8>(), 0..20).prop_map(|text| {
            [&[248, 0, 0, 0, 0x80, 0, 0, 1, text.len() as u8][..], &text].concat()
        }),
        (any::<bool>(), 0u8..128)
            .prop_map(|(down, code)| { vec![255, 0, 0, down.into(), 0, 0, 0, 0, 0, 0, 0, code] }),
        (0u8..3).prop_map(|screens| {
            [
                &[251, 0, 0, 9, 0, 9, screens, 0][..],
                &vec![7; usize::from(screens) * 16],
            ]
            .concat()
        }),
        (any::<bool>(), any_rect())
            .prop_map(|(on, rect)| [vec![150, on.into()], area(rect)].concat()),
        prop::collection::vec(any::<u8>(), 0..3),
    ];
    prop::collection::vec(message, 0..40).prop_map(|all| all.concat())
}

/// Returns what a viewer's bytes in pieces of one size result in, and its output at the end.
fn play(bytes: &[u8], size: usize) -> (Vec<Input>, Option<ViewerError>, Vec<u8>) {
    let picture = painted(80, 60, 30, 5, 8);
    let mut viewer = Viewer::new(&options(None), [0; 16], Instant::now());
    let (mut inputs, mut sent) = (Vec::new(), Vec::new());
    let mut error = None;
    // The handshake up to the size, which a viewer waits for.
    for piece in [&b"RFB 003.008\n\x01\x01"[..], bytes] {
        let mut rest = piece;
        while !rest.is_empty() && error.is_none() {
            let some = &rest[..size.min(rest.len())];
            match viewer.handle_bytes(some) {
                Ok(taken) => {
                    rest = &rest[taken..];
                    // Only where it must be, so that the cuts cannot change the output.
                    if taken < some.len() {
                        let before = (inputs.len(), sent.len());
                        inputs.extend(std::iter::from_fn(|| viewer.poll_input()));
                        if inputs.len() == before.0 {
                            sent.extend(output(&mut viewer, &picture));
                            assert!(sent.len() > before.1, "it stands still");
                        }
                    }
                }
                Err(violation) => error = Some(violation),
            }
        }
        inputs.extend(std::iter::from_fn(|| viewer.poll_input()));
        sent.extend(output(&mut viewer, &picture));
    }
    (inputs, error, sent)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 96 }))]

    #[test]
    fn any_picture_is_shown(
        width in 1u16..200, height in 1u16..100, colours in 1u32..300, run in 1u32..400,
        seed in any::<u32>(), format in 0..22usize, encoding in 0..3usize,
        part in any_rect(),
    ) {
        let (format, encoding) = (formats()[format], [RAW, HEXTILE, ZRLE][encoding]);
        let picture = painted(width, height, colours, run, seed);
        let (mut viewer, mut decoder) = joined(&picture, format, &[encoding]);
        send(&mut viewer, &request(true, ALL));
        decoder.take(&output(&mut viewer, &picture));
        decoder.assert_shows(&picture);
        // A part of it once more, through the same stream.
        send(&mut viewer, &request(false, part));
        decoder.take(&output(&mut viewer, &picture));
        decoder.assert_shows(&picture);
    }

    #[test]
    fn whatever_happens_the_viewer_shows_the_picture_in_the_end(
        format in 0..22usize,
        actions in prop::collection::vec(any_action(), 0..60),
    ) {
        let mut picture = painted(70, 50, 9, 5, 3);
        let format = formats()[format];
        let (mut viewer, mut decoder) = joined(&picture, format, &[ZRLE, DESKTOP_SIZE]);
        let mut sent = Vec::new();
        for action in actions {
            match action {
                Action::Paint(x, y, count, pixel) => {
                    let pixels = vec![pixel; count.into()];
                    if let Some((first, end)) = picture.update_row(x, y, &pixels) {
                        let width = end - first;
                        viewer.handle_damage(Rect { x: first, y, width, height: 1 });
                    }
                }
                Action::Request(incremental, rect) => {
                    send(&mut viewer, &request(incremental, rect));
                }
                Action::Continuous(on, rect) => {
                    send(&mut viewer, &[vec![150, on.into()], area(rect)].concat());
                }
                Action::Resize(width, height) => {
                    picture.resize(width, height);
                    viewer.handle_resize(width, height);
                }
                Action::Encodings(wishes) => send(&mut viewer, &encodings(&wishes)),
                Action::Fence(length) => {
                    let mut fence = vec![248, 0, 0, 0, 0x80, 0, 0, 1, length];
                    fence.extend(vec![1; length.into()]);
                    // A flood of them waits.
                    while viewer.handle_bytes(&[]) == Ok(0) {
                        let taken = viewer.handle_bytes(&fence).unwrap();
                        fence.drain(..taken);
                        if fence.is_empty() || !piece(&mut viewer, &picture, &mut sent) {
                            break;
                        }
                    }
                    prop_assert!(fence.is_empty());
                }
                Action::Pieces(count) => {
                    for _ in 0..count {
                        piece(&mut viewer, &picture, &mut sent);
                    }
                }
            }
        }
        for _ in 0..3 {
            send(&mut viewer, &request(true, ALL));
            sent.extend(output(&mut viewer, &picture));
        }
        decoder.take(&sent);
        decoder.assert_shows(&picture);
        // And nothing is left.
        send(&mut viewer, &request(true, ALL));
        prop_assert_eq!(output(&mut viewer, &picture), []);
    }

    #[test]
    fn the_cuts_do_not_matter(bytes in any_bytes(), size in 1usize..40) {
        let whole = play(&bytes, usize::MAX);
        prop_assert_eq!(&play(&bytes, size), &whole);
        prop_assert_eq!(&play(&bytes, 1), &whole);
    }
}

use super::*;
use proptest::prelude::*;

const LIMIT: Size = Size {
    width: 100,
    height: 50,
};

/// A server's bytes up to a screen of 4x3 pixels.
fn opening() -> Vec<u8> {
    let mut bytes = VERSION.to_vec();
    bytes.extend([2, 19, 1]);
    bytes.extend([0, 0, 0, 0]);
    bytes.extend([0, 4, 0, 3]);
    bytes.extend([32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0]);
    bytes.extend([0, 0, 0, 2, b'v', b'm']);
    bytes
}

fn update(rectangles: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = vec![0, 0];
    bytes.extend((rectangles.len() as u16).to_be_bytes());
    bytes.extend(rectangles.concat());
    bytes
}

fn rectangle(place: [u16; 4], encoding: i32, pixels: &[u8]) -> Vec<u8> {
    let mut bytes: Vec<u8> = place.iter().flat_map(|n| n.to_be_bytes()).collect();
    bytes.extend(encoding.to_be_bytes());
    bytes.extend(pixels);
    bytes
}

/// A client's view of bytes that arrive in pieces: a picture, the number of updates, and its
/// answers.
#[derive(Debug, Default, PartialEq, Eq)]
struct View {
    size: Option<Size>,
    picture: Vec<u8>,
    updates: usize,
    sent: Vec<u8>,
    error: Option<Error>,
}

impl View {
    fn take(&mut self, client: &mut Client, mut bytes: &[u8]) {
        loop {
            match client.poll_event(&mut bytes) {
                Ok(Some(Event::Size(size))) => {
                    self.size = Some(size);
                    let pixels = usize::from(size.width) * usize::from(size.height);
                    self.picture = vec![0; pixels * PIXEL];
                }
                Ok(Some(Event::Row { y, at, bytes })) => {
                    let width = usize::from(self.size.unwrap().width) * PIXEL;
                    assert!(at + bytes.len() <= width, "it leaves the row");
                    let start = usize::from(y) * width + at;
                    let room = self.picture.get_mut(start..start + bytes.len());
                    room.unwrap().copy_from_slice(bytes);
                }
                Ok(Some(Event::Updated)) => self.updates += 1,
                Ok(None) => break,
                Err(error) => {
                    self.error = Some(error);
                    break;
                }
            }
        }
        let out = client.poll_transmit().to_vec();
        assert!(out.len() < OUT_MAX + 16);
        client.handle_sent(out.len());
        self.sent.extend(out);
    }
}

fn view(bytes: &[u8], piece: usize) -> View {
    let mut client = Client::new(LIMIT);
    let mut view = View::default();
    for piece in bytes.chunks(piece) {
        view.take(&mut client, piece);
        if view.error.is_some() {
            break;
        }
    }
    view
}

fn error(bytes: &[u8]) -> Error {
    view(bytes, 7).error.expect("an error")
}

#[test]
fn a_session_is_the_same_however_its_bytes_are_cut() {
    let mut bytes = opening();
    bytes.extend(update(&[rectangle([0, 0, 4, 3], EXTENDED_KEYS, &[])]));
    bytes.extend(update(&[
        rectangle([0, 0, 4, 3], RAW, &[7; 48]),
        rectangle([1, 1, 2, 1], RAW, &[8, 8, 8, 8, 9, 9, 9, 9]),
    ]));
    // A bell and a text for the clipboard.
    bytes.extend([2, 3, 0, 0, 0, 0, 0, 0, 2, b'h', b'i']);
    bytes.extend(update(&[
        rectangle([0, 0, 2, 2], DESKTOP_SIZE, &[]),
        rectangle([1, 0, 1, 2], RAW, &[5; 8]),
        rectangle([2, 2, 0, 0], RAW, &[]),
    ]));
    let whole = view(&bytes, bytes.len());
    assert_eq!(whole.error, None);
    assert_eq!(whole.updates, 2);
    let (width, height) = (2, 2);
    assert_eq!(whole.size, Some(Size { width, height }));
    assert_eq!(whole.picture, [0, 0, 0, 0, 5, 5, 5, 5].repeat(2));
    let mut sent = VERSION.to_vec();
    sent.extend([1, 1]);
    sent.extend([0, 0, 0, 0, 32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8]);
    sent.extend([0, 0, 0, 0, 2, 0, 0, 3, 0, 0, 0, 0]);
    sent.extend((-223i32).to_be_bytes());
    sent.extend((-258i32).to_be_bytes());
    sent.extend([3, 0, 0, 0, 0, 0, 0, 4, 0, 3]);
    // The acknowledgement of the keys is no answer to a request.
    sent.extend([3, 1, 0, 0, 0, 0, 0, 4, 0, 3]);
    sent.extend([3, 0, 0, 0, 0, 0, 0, 2, 0, 2]);
    assert_eq!(whole.sent, sent);
    for piece in 1..60 {
        assert_eq!(view(&bytes, piece), whole, "in pieces of {piece}");
    }
}

#[test]
fn keys_and_pointer_are_messages_once_the_server_takes_them() {
    let mut client = Client::new(LIMIT);
    assert!(!client.key(true, 1) && !client.pointer(0, 1, 1));
    let mut bytes = opening();
    let mut view = View::default();
    view.take(&mut client, &bytes);
    assert!(!client.key(true, 1) && !client.takes_scancodes());
    bytes = update(&[rectangle([0; 4], EXTENDED_KEYS, &[])]);
    view.take(&mut client, &bytes);
    view.sent.clear();
    assert!(client.key(true, 0x9d) && client.pointer(9, 40, 1) && client.pointer(9, 2, 40));
    view.take(&mut client, &[]);
    let key = [255, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0x9d];
    let all = [&key[..], &[5, 9, 0, 3, 0, 1], &[5, 9, 0, 2, 0, 2]].concat();
    assert_eq!(view.sent, all);
}

#[test]
fn a_server_that_does_not_read_is_sent_a_bounded_number_of_messages() {
    let mut client = Client::new(LIMIT);
    View::default().take(&mut client, &opening());
    let sent = (0..100_000).filter(|_| client.pointer(0, 1, 1)).count();
    assert!((1000..3000).contains(&sent) && client.is_full(), "{sent}");
    client.handle_sent(usize::MAX);
    assert!(!client.is_full() && client.pointer(0, 1, 1));
    // Events are read up to 8 KiB; those of one read, and the release of all keys, find room.
    let keys = update(&[rectangle([0; 4], EXTENDED_KEYS, &[])]);
    View::default().take(&mut client, &keys);
    for limit in [8 << 10, 16 << 10] {
        while client.poll_transmit().len() < limit {
            assert_eq!(client.is_full(), client.poll_transmit().len() >= 8 << 10);
            assert!(client.key(true, 1));
        }
    }
    assert!(client.is_full() && !client.key(true, 1) && !client.pointer(0, 1, 1));
}

#[test]
fn all_pixels_are_requested_once_for_each_new_size() {
    let size = || update(&[rectangle([0, 0, 2, 2], DESKTOP_SIZE, &[])]);
    let pixel = || update(&[rectangle([0, 0, 1, 1], RAW, &[1; 4])]);
    let mut client = Client::new(LIMIT);
    View::default().take(&mut client, &opening());
    let mut sent = |bytes: Vec<u8>| {
        let mut view = View {
            size: Some(LIMIT),
            picture: vec![0; 100 * 50 * PIXEL],
            ..View::default()
        };
        view.take(&mut client, &bytes);
        view.sent
    };
    let [all, changes] = [0, 1].map(|incremental| [3, incremental, 0, 0, 0, 0, 0, 2, 0, 2]);
    assert_eq!(sent(size()), all);
    assert_eq!(sent(pixel()), changes);
    // A request that waits for room stays one for all pixels.
    while !client.is_full() {
        assert!(client.pointer(0, 0, 0));
    }
    for bytes in [size(), pixel(), pixel()] {
        let mut bytes = &bytes[..];
        while client.poll_event(&mut bytes).unwrap().is_some() {}
    }
    client.handle_sent(usize::MAX);
    assert_eq!(client.poll_transmit(), all);
}

#[test]
fn a_flood_of_empty_updates_leaves_one_request_behind() {
    let mut client = Client::new(LIMIT);
    let flood = [opening(), update(&[]).repeat(100_000)].concat();
    let mut bytes = &flood[..];
    while client.poll_event(&mut bytes).unwrap().is_some() {}
    assert!(client.poll_transmit().len() < OUT_MAX + 16);
    client.handle_sent(usize::MAX);
    assert_eq!(client.poll_transmit(), [3, 1, 0, 0, 0, 0, 0, 4, 0, 3]);
}

#[test]
fn a_lying_server_is_named_for_what_it_did() {
    assert!(matches!(error(b"RFB 003.003\n"), Error::Version(_)));
    let start = VERSION.to_vec();
    assert_eq!(error(&[&start[..], &[1, 2]].concat()), Error::Password);
    assert_eq!(
        error(&[&VERSION[..], &[2, 19, 16]].concat()),
        Error::Security
    );
    let refused = [&start[..], &[0, 0, 0, 0, 4], b"full"].concat();
    assert_eq!(error(&refused), Error::Refused("full".into()));
    let denied = [&start[..], &[1, 1, 0, 0, 0, 1, 0, 0, 0, 2], b"no"].concat();
    assert_eq!(error(&denied), Error::Refused("no".into()));
    let endless = [&start[..], &[0, 255, 255, 255, 255], &[b'x'; 5000]].concat();
    for piece in [7, endless.len()] {
        let reason = "x".repeat(REASON_MAX);
        assert_eq!(view(&endless, piece).error, Some(Error::Refused(reason)));
    }
    let mut named = opening();
    named.truncate(named.len() - 6);
    for (length, error) in [
        (TEXT_MAX, None),
        (TEXT_MAX + 1, Some(Error::Text(TEXT_MAX + 1))),
    ] {
        let bytes = [&named[..], &length.to_be_bytes()].concat();
        assert_eq!(view(&bytes, 7).error, error);
        let bytes = [opening(), vec![3, 0, 0, 0], length.to_be_bytes().to_vec()].concat();
        assert_eq!(view(&bytes, 7).error, error);
    }
    assert_eq!(TEXT_MAX, 1 << 20);

    let with = |more: Vec<u8>| error(&[opening(), more].concat());
    assert_eq!(with(vec![1]), Error::Message(1));
    let text = vec![3, 0, 0, 0, 255, 255, 255, 255];
    assert_eq!(with(text), Error::Text(u32::MAX));
    for place in [
        [1, 0, 4, 1],
        [0, 3, 1, 1],
        [0xffff, 0, 0xffff, 1],
        [0xffff, 0, 2, 1],
        [0, 0xffff, 1, 2],
        [4, 4, 0, 0],
    ] {
        let rectangles = update(&[rectangle(place, RAW, &[])]);
        assert!(
            matches!(with(rectangles), Error::Rectangle { .. }),
            "{place:?}"
        );
    }
    for encoding in [1, 5, 16, -239, -224, i32::MAX] {
        let rectangles = update(&[rectangle([0, 0, 1, 1], encoding, &[])]);
        assert_eq!(with(rectangles), Error::Encoding(encoding));
    }
    for (width, height) in [(0, 1), (1, 0), (101, 1), (1, 51), (65535, 65535)] {
        let rectangles = update(&[rectangle([0, 0, width, height], DESKTOP_SIZE, &[])]);
        assert_eq!(with(rectangles), Error::Size(Size { width, height }));
    }
    let mut large = opening();
    large.splice(19..21, [1, 0]);
    assert!(matches!(error(&large), Error::Size(_)));
}

#[test]
fn a_password_answers_the_challenge_where_one_is_wanted() {
    let challenge: Vec<u8> = (0..16).collect();
    // `openssl enc -des-ecb` with the key cea6c64ea62e0000: "secret" with its bits reversed.
    let response = [
        0xee, 0x22, 0x53, 0x9f, 0x33, 0xa5, 0x98, 0x3e, 0xc1, 0x2f, 0x9c, 0x2e, 0xdb, 0xc9, 0x95,
        0xdd,
    ];
    let opening = |types: &[u8]| {
        let mut bytes = VERSION.to_vec();
        bytes.push(types.len() as u8);
        bytes.extend(types);
        bytes
    };
    let sent = |password: &str, bytes: &[u8]| {
        let mut client = Client::new(LIMIT).with_password(password);
        let mut view = View::default();
        for byte in bytes.chunks(1) {
            view.take(&mut client, byte);
        }
        assert_eq!(view.error, None);
        view.sent.split_off(VERSION.len())
    };
    let challenged = [opening(&[2]), challenge.clone()].concat();
    assert_eq!(sent("secret", &challenged), [&[2][..], &response].concat());
    assert_ne!(sent("Secret", &challenged), [&[2][..], &response].concat());
    // Eight bytes count.
    assert_eq!(
        sent("password", &challenged),
        sent("password, longer", &challenged)
    );
    let both = [opening(&[1, 2]), challenge].concat();
    assert_eq!(sent("secret", &both), [&[2][..], &response].concat());
    assert_eq!(sent("secret", &opening(&[19, 1])), [1]);
}

#[test]
fn an_error_stays() {
    let mut client = Client::new(LIMIT);
    let mut bytes: &[u8] = b"RFB 003.889\n";
    let error = client.poll_event(&mut bytes).unwrap_err();
    let mut more: &[u8] = &opening();
    assert_eq!(client.poll_event(&mut more), Err(error));
}

/// Messages of a server that is mostly right, so that random ones get far.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let place = (0..5u16, 0..4u16, 0..5u16, 0..4u16);
    let encoding = prop_oneof![
        9 => Just(RAW),
        1 => Just(DESKTOP_SIZE),
        1 => Just(EXTENDED_KEYS),
        1 => any::<i32>(),
    ];
    let parts = (place, encoding, any::<bool>());
    let rectangles = parts.prop_map(|((x, y, width, height), encoding, whole)| {
        let pixels = if encoding == RAW { width * height } else { 0 };
        let count = usize::from(pixels) * PIXEL - usize::from(!whole && pixels > 0);
        rectangle([x, y, width, height], encoding, &vec![1; count])
    });
    prop_oneof![
        prop::collection::vec(rectangles, 0..4).prop_map(|all: Vec<_>| update(&all)),
        Just(vec![2]),
        prop::collection::vec(any::<u8>(), 0..40),
    ]
}

proptest! {
    #[test]
    fn any_bytes_are_survived(
        good in any::<bool>(),
        messages in prop::collection::vec(message(), 0..20),
        piece in 1..200usize,
    ) {
        let mut bytes = if good { opening() } else { Vec::new() };
        bytes.extend(messages.concat());
        let whole = view(&bytes, bytes.len().max(1));
        let cut = view(&bytes, piece);
        prop_assert_eq!(whole, cut);
    }
}

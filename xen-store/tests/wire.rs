//! The codec: what is encoded decodes to the same, however the stream is cut.

// The lint exempts test functions, but not the helpers beside them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use proptest::collection::vec;
use proptest::prelude::*;
use xen_store::wire::{Decoder, Header, Message, MsgType, PAYLOAD_MAX, TooLong, encode, strings};

fn message() -> impl Strategy<Value = Message> {
    let payload = prop_oneof![
        vec(any::<u8>(), 0..64),
        vec(any::<u8>(), PAYLOAD_MAX - 2..=PAYLOAD_MAX)
    ];
    (any::<u32>(), any::<u32>(), any::<u32>(), payload).prop_map(
        |(kind, req_id, tx_id, payload)| Message {
            kind: MsgType(kind),
            req_id,
            tx_id,
            payload,
        },
    )
}

/// Feeds `stream` in pieces of the given sizes, over and over.
fn decode(stream: &[u8], cuts: &[usize]) -> Result<Vec<Message>, TooLong> {
    let mut decoder = Decoder::new();
    let mut messages = Vec::new();
    let mut rest = stream;
    for cut in cuts.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (mut piece, tail) = rest.split_at(rest.len().min(*cut));
        rest = tail;
        while let Some(message) = decoder.next(&mut piece)? {
            messages.push(message);
        }
        assert!(piece.is_empty());
    }
    assert!(!decoder.is_mid_message());
    Ok(messages)
}

proptest! {
    #[test]
    fn streams_decode_to_what_was_encoded(
        messages in vec(message(), 0..6),
        cuts in vec(1_usize..5000, 1..8),
    ) {
        let stream: Vec<u8> = messages.iter().flat_map(|m| m.encode().unwrap()).collect();
        prop_assert_eq!(decode(&stream, &cuts).unwrap(), messages);
    }

    #[test]
    fn headers_round_trip(bytes: [u8; 16]) {
        prop_assert_eq!(Header::from_bytes(&bytes).to_bytes(), bytes);
    }

    #[test]
    fn any_bytes_decode_or_are_too_long(bytes in vec(any::<u8>(), 0..10_000)) {
        let mut decoder = Decoder::new();
        let mut input = bytes.as_slice();
        loop {
            match decoder.next(&mut input) {
                Ok(Some(message)) => prop_assert!(message.payload.len() <= PAYLOAD_MAX),
                Ok(None) => break prop_assert!(input.is_empty()),
                Err(TooLong { len }) => break prop_assert!(len > PAYLOAD_MAX),
            }
        }
    }

    #[test]
    fn strings_are_the_reverse_of_joining(fields in vec("[a-z]{0,5}", 0..5)) {
        let payload: String = fields.iter().map(|field| format!("{field}\0")).collect();
        let split: Vec<&[u8]> = strings(payload.as_bytes()).collect();
        let expect: Vec<&[u8]> = fields.iter().map(|field| field.as_bytes()).collect();
        prop_assert_eq!(split, expect);
    }
}

/// `struct xsd_sockmsg`: four native words, in this order.
#[test]
fn the_header_is_four_words() {
    let header = Header {
        kind: MsgType::READ,
        req_id: 0x0102_0304,
        tx_id: 5,
        len: 6,
    };
    let expect: Vec<u8> = [2_u32, 0x0102_0304, 5, 6]
        .iter()
        .flat_map(|w| w.to_ne_bytes())
        .collect();
    assert_eq!(header.to_bytes().to_vec(), expect);
}

/// The numbers of `enum xsd_sockmsg_type`; 20 was removed and the next two keep their places.
#[test]
fn types_have_the_numbers_of_the_header_file() {
    let names = [
        "CONTROL",
        "DIRECTORY",
        "READ",
        "GET_PERMS",
        "WATCH",
        "UNWATCH",
        "TRANSACTION_START",
        "TRANSACTION_END",
        "INTRODUCE",
        "RELEASE",
        "GET_DOMAIN_PATH",
        "WRITE",
        "MKDIR",
        "RM",
        "SET_PERMS",
        "WATCH_EVENT",
        "ERROR",
        "IS_DOMAIN_INTRODUCED",
        "RESUME",
        "SET_TARGET",
        "",
        "RESET_WATCHES",
        "DIRECTORY_PART",
        "GET_FEATURE",
        "SET_FEATURE",
        "GET_QUOTA",
        "SET_QUOTA",
    ];
    for (number, name) in (0..).zip(names) {
        assert_eq!(MsgType(number).name().unwrap_or(""), name, "{number}");
    }
    assert_eq!(MsgType(27).name(), None);
    assert_eq!(MsgType(20).to_string(), "message type 20");
    assert_eq!(MsgType::RM.to_string(), "RM");
}

#[test]
fn the_limit_is_exact() {
    let most = vec![0; PAYLOAD_MAX];
    assert_eq!(
        encode(MsgType::WRITE, 1, 0, &[&most]).unwrap().len(),
        Header::SIZE + PAYLOAD_MAX
    );
    assert_eq!(
        encode(MsgType::WRITE, 1, 0, &[&most, b"x"]),
        Err(TooLong {
            len: PAYLOAD_MAX + 1
        })
    );
}

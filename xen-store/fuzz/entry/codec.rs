//! Bytes that are to be messages and paths.
//!
//! A finding is a panic, a stream that has another meaning when it arrives in other pieces, a
//! message that is not what was read, or a path that violates the protocol's rules.

use xen_store::wire::{ABS_PATH_MAX, Decoder, Header, Message, PAYLOAD_MAX, TooLong, strings};
use xen_store::{StorePath, XsError};

use super::input::Input;

/// The messages in a stream that comes in pieces of these sizes, and how it ended.
fn decode(
    stream: &[u8],
    mut piece: impl FnMut() -> usize,
) -> (Vec<Message>, Result<bool, TooLong>) {
    let mut decoder = Decoder::new();
    let mut messages = Vec::new();
    let mut rest = stream;
    while !rest.is_empty() {
        let (mut now, later) = rest.split_at(piece().clamp(1, rest.len()));
        rest = later;
        while !now.is_empty() {
            match decoder.next(&mut now) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => assert!(now.is_empty(), "bytes are left over"),
                Err(error) => {
                    assert!(error.len > PAYLOAD_MAX);
                    assert_eq!(decoder.next(&mut [0].as_slice()), Err(error), "not sticky");
                    return (messages, Err(error));
                }
            }
        }
    }
    // A message without a payload is complete with its header.
    if let Ok(Some(message)) = decoder.next(&mut [].as_slice()) {
        messages.push(message);
    }
    (messages, Ok(decoder.is_mid_message()))
}

/// Runs an input.
pub(crate) fn codec(data: &[u8]) {
    let mut input = Input(data);
    let sizes = [(); 4].map(|()| usize::from(input.byte()));
    let stream = input.0;
    let mut turn = 0;
    let pieces = decode(stream, || {
        turn += 1;
        sizes[turn % sizes.len()]
    });
    let (messages, end) = decode(stream, || usize::MAX);
    assert_eq!(pieces, (messages.clone(), end), "the pieces matter");

    let mut at = 0;
    for message in &messages {
        let bytes = message.encode().unwrap();
        assert_eq!(
            &stream[at..at + bytes.len()],
            bytes,
            "it is not what was read"
        );
        at += bytes.len();
        assert!(strings(&message.payload).count() <= message.payload.len());
        for field in strings(&message.payload) {
            assert!(!field.contains(&0));
            let _ = XsError::from_name(field);
        }
    }
    match end {
        Ok(false) => assert_eq!(at, stream.len()),
        Ok(true) => assert!(stream.len() - at < Header::SIZE + PAYLOAD_MAX),
        Err(_) => assert!(at + Header::SIZE <= stream.len()),
    }
    if let Some(path) = std::str::from_utf8(stream)
        .ok()
        .and_then(|t| StorePath::new(t).ok())
    {
        let text = path.as_str();
        assert!((1..=ABS_PATH_MAX).contains(&text.len()));
        assert!(!text.contains("//") && !text.contains('\0'));
        assert!(path.is_at_or_below(path));
        if let Some(parent) = path.parent() {
            assert!(path.is_at_or_below(parent) && parent.as_str().len() < text.len());
            assert!(text.ends_with(path.name()));
        }
    }
}

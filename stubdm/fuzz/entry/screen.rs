//! A hostile QEMU, and any input events, against the core of the screen's process.
//!
//! The first byte selects how the rest is cut: into the server's bytes, in pieces, and input events
//! between them. A finding is a panic, a row beyond the screen, a picture that depends on how the
//! bytes are cut, or messages without a limit.
#![allow(clippy::unwrap_used)]

use stubdm_screen::input::{Action, EVENT, Input};
use stubdm_screen::placement::Placement;
use stubdm_screen::rfb::{Client, Event};
use stubdm_screen::{PIXEL, Size};

/// The largest screen here.
const LIMIT: Size = Size {
    width: 64,
    height: 48,
};
/// More bytes than ever wait to be sent.
const OUT: usize = 17 << 10;

/// The result of the server's bytes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Summary {
    bytes: usize,
    sum: u64,
    updates: usize,
    failed: bool,
}

impl Summary {
    fn take(&mut self, client: &mut Client, mut bytes: &[u8]) {
        let mut screen = client.screen().unwrap_or_default();
        while !self.failed {
            match client.poll_event(&mut bytes) {
                Ok(None) => break,
                Ok(Some(Event::Size(size))) => screen = size,
                Ok(Some(Event::Updated)) => self.updates += 1,
                Ok(Some(Event::Row { y, at, bytes })) => {
                    assert!(y < screen.height && !bytes.is_empty());
                    assert!(at + bytes.len() <= usize::from(screen.width) * PIXEL);
                    let frame = Size {
                        width: 40,
                        height: 60,
                    };
                    let place = Placement::new(screen, frame).row(y, at, bytes.len());
                    if let Some((row, start, range)) = place {
                        assert!(row < frame.height && range.end <= bytes.len());
                        assert!(start + range.len() <= usize::from(frame.width) * PIXEL);
                    }
                    self.bytes += bytes.len();
                    for (i, byte) in (at as u64..).zip(bytes) {
                        self.sum = self
                            .sum
                            .wrapping_add(i * 31 + u64::from(y) + u64::from(*byte));
                    }
                }
                Err(_) => self.failed = true,
            }
        }
    }
}

/// Plays one input.
pub(crate) fn screen(data: &[u8]) {
    let Some((cut, data)) = data.split_first() else {
        return;
    };
    let (mut whole, mut client) = (Summary::default(), Client::new(LIMIT));
    whole.take(&mut client, data);

    let (mut summary, mut client, mut input) =
        (Summary::default(), Client::new(LIMIT), Input::default());
    let drains = cut & 0x80 != 0;
    for piece in data.chunks(usize::from(cut & 0x7f) + 1) {
        summary.take(&mut client, piece);
        // The same bytes as events.
        let mut event = [0; EVENT];
        let tail = piece.get(..8.min(piece.len())).unwrap();
        event[EVENT - 8..EVENT - 8 + tail.len()].copy_from_slice(tail);
        event[EVENT - 8] %= 4;
        event[EVENT - 7] = 0;
        input.handle_bytes(&event);
        while let Some(action) = input.poll_action() {
            match action {
                Action::Key { down, scancode } => client.key(down, scancode),
                Action::Pointer { buttons, x, y } => {
                    let screen = client.screen().unwrap_or(LIMIT);
                    let (x, y) = Placement::new(screen, LIMIT).pointer(x, y);
                    assert!(x < screen.width && y < screen.height);
                    client.pointer(buttons, x, y)
                }
            };
        }
        assert!(client.poll_transmit().len() < OUT);
        if drains {
            client.handle_sent(usize::MAX);
        }
    }
    assert_eq!(summary, whole, "in pieces of {}", (cut & 0x7f) + 1);
}

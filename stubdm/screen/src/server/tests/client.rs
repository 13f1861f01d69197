//! The server against the client's core.

use super::*;
use crate::rfb::{Client, Event};

/// The client's core with its picture.
struct ClientView {
    client: Client,
    size: Size,
    bytes: Vec<u8>,
    updates: usize,
}

impl ClientView {
    /// Exchanges bytes until both sides have nothing to send.
    fn run(&mut self, viewer: &mut Viewer, picture: &Picture) -> Result<(), ViewerError> {
        for _ in 0..1000 {
            let bytes = output(viewer, picture);
            let mut rest = bytes.as_slice();
            while let Some(event) = self.client.poll_event(&mut rest).unwrap() {
                match event {
                    Event::Size(size) => {
                        self.size = size;
                        let pixels = usize::from(size.width) * usize::from(size.height);
                        self.bytes = vec![0; pixels * PIXEL];
                    }
                    Event::Row { y, at, bytes } => {
                        let row = usize::from(self.size.width) * PIXEL;
                        let start = usize::from(y) * row + at;
                        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
                    }
                    Event::Updated => self.updates += 1,
                }
            }
            let sent = self.client.poll_transmit().to_vec();
            self.client.handle_sent(sent.len());
            if bytes.is_empty() && sent.is_empty() {
                return Ok(());
            }
            assert_eq!(viewer.handle_bytes(&sent)?, sent.len());
        }
        panic!("no end");
    }

    fn assert_shows(&self, picture: &Picture) {
        let size = (picture.width(), picture.height());
        assert_eq!((self.size.width, self.size.height), size);
        let rows = (0..picture.height()).flat_map(|y| picture.row(y));
        let bytes: Vec<u8> = rows.flat_map(|pixel| pixel.to_le_bytes()).collect();
        assert!(bytes == self.bytes, "another picture");
    }
}

#[test]
fn the_clients_core_is_served() {
    for password in [None, Some(*b"12345678")] {
        let mut picture = painted(200, 100, 1 << 20, 3, 1);
        let mut viewer = Viewer::new(&options(password), [3; 16], Instant::now());
        let limit = Size {
            width: 400,
            height: 300,
        };
        let client = Client::new(limit);
        let mut decoder = ClientView {
            client: client.with_password(*b"12345678"),
            size: Size::default(),
            bytes: Vec::new(),
            updates: 0,
        };
        decoder.run(&mut viewer, &picture).unwrap();
        decoder.assert_shows(&picture);
        assert!(decoder.client.takes_scancodes());
        picture.update_row(7, 9, &[0xab_cdef; 50]);
        viewer.handle_damage(Rect {
            x: 7,
            y: 9,
            width: 50,
            height: 1,
        });
        decoder.run(&mut viewer, &picture).unwrap();
        decoder.assert_shows(&picture);
        picture = painted(320, 240, 7, 30, 1);
        viewer.handle_resize(320, 240);
        decoder.run(&mut viewer, &picture).unwrap();
        decoder.assert_shows(&picture);
        assert!(decoder.client.key(true, 0xcb) && decoder.client.pointer(4, 300, 200));
        decoder.run(&mut viewer, &picture).unwrap();
        let key = Input::Key {
            keycode: 105,
            pressed: true,
        };
        let pointer = Input::Pointer {
            x: 300,
            y: 200,
            buttons: 4,
        };
        assert_eq!(
            [viewer.poll_input(), viewer.poll_input()],
            [Some(key), Some(pointer)]
        );
    }
    // With another password it is refused.
    let mut viewer = Viewer::new(&options(Some(*b"87654321")), [3; 16], Instant::now());
    let mut decoder = ClientView {
        client: Client::new(Size::default()).with_password(*b"12345678"),
        size: Size::default(),
        bytes: Vec::new(),
        updates: 0,
    };
    let result = decoder.run(&mut viewer, &Picture::new(1, 1));
    assert_eq!(result, Err(ViewerError::Password));
}

//! A hostile viewer against the core of the VNC server.
//!
//! The input is a program: bytes of the viewer's, and between them damage, sizes, and pieces that
//! are sent. A finding is a panic, an event beyond the picture, memory or output without a limit,
//! and, where the viewer's bytes are all, a result that depends on how they are cut.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use stubdm_screen::server::{
    HANDSHAKE, INPUTS_MAX, Input as Event, Options, PIECE_MAX, Picture, Rect, Viewer,
};

use crate::input::Input;

/// The largest picture here.
const SIDE: u16 = 100;
/// Pieces that are sent at once, at most: what is due, a size, and two updates.
const PIECES: usize = 2 * 16 * 8 + 8;
/// Events of `release_keys`, at most: all keys and the buttons.
const RELEASED: usize = 257;

struct Player {
    viewer: Viewer,
    picture: Picture,
    events: Vec<Event>,
    failed: bool,
    sum: u64,
}

impl Player {
    fn new(password: bool) -> Self {
        let options = Options {
            name: "guest".into(),
            password: password.then_some([0; 8]),
        };
        let mut picture = Picture::new(SIDE, 70);
        for y in 0..70 {
            let pixel = |x| x / 9 * 77 * u32::from(y);
            let row: Vec<u32> = (0..u32::from(SIDE)).map(pixel).collect();
            picture.update_row(0, y, &row);
        }
        Self {
            viewer: Viewer::new(&options, [7; 16], Instant::now()),
            picture,
            events: Vec::new(),
            failed: false,
            sum: 0,
        }
    }

    /// Hands over bytes; where events or output must be taken first, that is done.
    fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.failed {
            match self.viewer.handle_bytes(bytes) {
                Ok(taken) => {
                    bytes = bytes.get(taken..).unwrap();
                    let stopped = !bytes.is_empty();
                    if stopped && self.read() == 0 {
                        assert!(self.write(PIECES) > 0, "it stands still");
                    }
                }
                Err(_) => self.failed = true,
            }
        }
    }

    fn read(&mut self) -> usize {
        let before = self.events.len();
        while let Some(event) = self.viewer.poll_input() {
            if let Event::Pointer { x, y, buttons } = event {
                assert!(x < SIDE && y < SIDE && buttons < 8);
            }
            self.events.push(event);
        }
        let count = self.events.len() - before;
        assert!(count <= INPUTS_MAX + RELEASED);
        count
    }

    /// Sends up to `most` pieces, and counts them.
    fn write(&mut self, most: usize) -> usize {
        let mut out = Vec::new();
        for piece in 0..most {
            out.clear();
            if !self.viewer.poll_output(&self.picture, &mut out) {
                assert!(out.is_empty());
                return piece;
            }
            assert!((1..=PIECE_MAX).contains(&out.len()));
            for byte in &out {
                self.sum = self.sum.wrapping_mul(31).wrapping_add(u64::from(*byte));
            }
        }
        assert!(most < PIECES, "output without end");
        most
    }
}

/// Plays one input.
pub(crate) fn rfb_server(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else {
        return;
    };
    let password = kind & 1 != 0;
    if kind & 2 != 0 {
        // The viewer's bytes alone, whole and cut.
        let results = [usize::MAX, usize::from(kind >> 2) + 1].map(|size| {
            let mut player = Player::new(password);
            player.write(PIECES);
            let (begin, rest) = data.split_at(data.len().min(14));
            for part in [begin, rest] {
                part.chunks(size).for_each(|piece| player.take(piece));
                player.write(PIECES);
            }
            player.read();
            (player.events, player.failed, player.sum)
        });
        let [whole, cut] = results;
        assert!(whole == cut, "{whole:?} and, cut, {cut:?}");
        return;
    }
    let mut player = Player::new(password);
    if !password && kind & 4 != 0 {
        player.take(b"RFB 003.008\n\x01\x01");
        player.write(PIECES);
    }
    run(&mut player, Input(data));
    player.write(PIECES);
    player.viewer.release_keys();
    player.read();
    let mut held = BTreeSet::new();
    for event in player.events {
        if let Event::Key { keycode, pressed } = event {
            match pressed {
                true => held.insert(keycode),
                false => held.remove(&keycode),
            };
        }
    }
    assert!(held.is_empty(), "keys are left pressed: {held:?}");
}

fn run(player: &mut Player, mut input: Input<'_>) {
    while !input.0.is_empty() {
        match input.byte() {
            count @ ..0x80 => {
                let (bytes, rest) = input.0.split_at(input.0.len().min(usize::from(count) + 1));
                input.0 = rest;
                player.take(bytes);
            }
            0x80..0xa0 => {
                let [x, y, width, height] = [(); 4].map(|()| u16::from(input.byte()));
                player.viewer.handle_damage(Rect {
                    x,
                    y,
                    width,
                    height,
                });
            }
            0xa0..0xb0 => {
                let [width, height] = [(); 2].map(|()| u16::from(input.byte()) % SIDE);
                player.picture.resize(width, height);
                player.viewer.handle_resize(width, height);
            }
            0xb0..0xc0 => {
                let [x, y] = [(); 2].map(|()| u16::from(input.byte()));
                let pixels = [input.word(); 40];
                if let Some((first, end)) = player.picture.update_row(x, y, &pixels) {
                    player.viewer.handle_damage(Rect {
                        x: first,
                        y,
                        width: end - first,
                        height: 1,
                    });
                }
            }
            0xc0..0xe0 => {
                let most = usize::from(input.byte() % 8);
                player.write(most);
            }
            0xe0..0xf0 => {
                player.read();
            }
            0xf0..0xfe => {
                player.write(PIECES);
            }
            0xfe => player.viewer.release_keys(),
            0xff => {
                let late = Instant::now() + HANDSHAKE + Duration::from_secs(1);
                let result = player.viewer.handle_timeout(late);
                assert!(result.is_err() || player.viewer.is_authenticated());
                player.failed |= result.is_err();
            }
        }
    }
}

//! The server against a viewer that decodes all of its encodings, and against the client's core.

mod client;
mod decoder;
mod encodings;
mod handshake;
mod input;
mod random;
mod updates;

use std::time::{Duration, Instant};

use self::decoder::{Decoder, Format, NATIVE, formats};
use super::*;
use crate::{PIXEL, Size};

const RAW: i32 = 0;
const HEXTILE: i32 = 5;
const ZRLE: i32 = 16;
const DESKTOP_SIZE: i32 = -223;
const EXTENDED_KEYS: i32 = -258;
const EXTENDED_DESKTOP_SIZE: i32 = -308;
const FENCE: i32 = -312;
const CONTINUOUS: i32 = -313;

fn options(password: Option<[u8; 8]>) -> Options {
    Options {
        name: "guest".into(),
        password,
    }
}

/// All that the viewer is sent.
fn output(viewer: &mut Viewer, picture: &Picture) -> Vec<u8> {
    let mut all = Vec::new();
    while piece(viewer, picture, &mut all) {}
    all
}

fn piece(viewer: &mut Viewer, picture: &Picture, all: &mut Vec<u8>) -> bool {
    let mut out = Vec::new();
    let more = viewer.poll_output(picture, &mut out);
    assert_eq!(more, !out.is_empty());
    assert!(out.len() <= PIECE_MAX, "{} bytes", out.len());
    all.extend(out);
    more
}

/// Sends bytes that are taken whole.
fn send(viewer: &mut Viewer, bytes: &[u8]) {
    assert_eq!(viewer.handle_bytes(bytes), Ok(bytes.len()));
}

fn encodings(numbers: &[i32]) -> Vec<u8> {
    let mut out = vec![2, 0];
    out.extend((numbers.len() as u16).to_be_bytes());
    numbers
        .iter()
        .for_each(|number| out.extend(number.to_be_bytes()));
    out
}

fn area(rect: Rect) -> Vec<u8> {
    let all = [rect.x, rect.y, rect.width, rect.height];
    all.iter().flat_map(|number| number.to_be_bytes()).collect()
}

fn request(incremental: bool, rect: Rect) -> Vec<u8> {
    [vec![3, incremental.into()], area(rect)].concat()
}

const ALL: Rect = Rect {
    x: 0,
    y: 0,
    width: u16::MAX,
    height: u16::MAX,
};

/// A viewer after the handshake, its decoder, and the encodings that it asked for.
fn joined(picture: &Picture, format: Format, wishes: &[i32]) -> (Viewer, Decoder) {
    let mut viewer = Viewer::new(&options(None), [0; 16], Instant::now());
    assert_eq!(output(&mut viewer, picture), b"RFB 003.008\n");
    send(&mut viewer, b"RFB 003.008\n");
    assert_eq!(output(&mut viewer, picture), [1, 1]);
    send(&mut viewer, &[1]);
    assert_eq!(output(&mut viewer, picture), [0; 4]);
    assert!(!viewer.is_authenticated());
    send(&mut viewer, &[1]);
    let mut decoder = Decoder::new(format);
    assert_eq!(decoder.init(&output(&mut viewer, picture)), "guest");
    assert!(viewer.is_authenticated() && viewer.poll_timeout().is_none());
    send(&mut viewer, &format.message());
    send(&mut viewer, &encodings(wishes));
    (viewer, decoder)
}

/// Pictures of several kinds: one colour, few, many, noise, in runs and in blocks.
fn painted(width: u16, height: u16, colours: u32, run: u32, seed: u32) -> Picture {
    let mut picture = Picture::new(width, height);
    let mut state = seed | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    for y in 0..height {
        let mut row: Vec<u32> = Vec::new();
        if run > 100 && y % 16 != 0 {
            // Blocks: the row above once more.
            row = picture.row(y - 1).to_vec();
        }
        while row.len() < width.into() {
            let colour = (next() % colours).wrapping_mul(0x9e37_79b1) >> 8;
            let length = next() % run + 1;
            row.extend(vec![colour; length as usize]);
        }
        row.truncate(width.into());
        picture.update_row(0, y, &row);
    }
    picture
}

//! A VNC server with a picture of its own: `cargo run -p stubdm-screen --example vnc_server --
//! 127.0.0.1:5999`, with a password as the second argument if viewers need one.
//!
//! Each viewer has a thread and sees the pointer as a white spot. The events are printed.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use stubdm_screen::server::{Input, Options, Picture, Rect, Viewer};

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:5999".into());
    let password = arguments.next().map(|text| {
        let mut password = [0; 8];
        password
            .iter_mut()
            .zip(text.bytes())
            .for_each(|(to, from)| *to = from);
        password
    });
    let options = Options {
        name: "example".into(),
        password,
    };
    for stream in TcpListener::bind(address)?.incoming() {
        let (stream, options) = (stream?, options.clone());
        std::thread::spawn(move || println!("closed: {:?}", serve(stream, &options)));
    }
    Ok(())
}

/// Text-like stripes, a gradient and noise.
fn painted() -> Picture {
    let mut picture = Picture::new(800, 600);
    for y in 0..600u16 {
        let pixel = |x: u16| {
            let (x, y) = (u32::from(x), u32::from(y));
            match (x / 200, y / 300) {
                (0, _) => (x / 3 % 2 * (y / 8 % 2)) * 0xff_ffff,
                (1, _) => (x % 200) << 16 | (y % 256) << 8 | 0x40,
                (2, 0) => (x / 16 * 7919 + y / 16 * 104_729) & 0xff_ffff,
                _ => x.wrapping_mul(y).wrapping_mul(2_654_435_761) >> 8,
            }
        };
        let row: Vec<u32> = (0..800).map(pixel).collect();
        picture.update_row(0, y, &row);
    }
    picture
}

fn serve(mut stream: TcpStream, options: &Options) -> io::Result<()> {
    let mut picture = painted();
    // No secret: this is an example.
    let mut viewer = Viewer::new(options, *b"0123456789abcdef", Instant::now());
    let mut bytes = [0; 4096];
    let mut out = Vec::new();
    loop {
        while viewer.poll_output(&picture, &mut out) {
            stream.write_all(&out)?;
            out.clear();
        }
        let count = stream.read(&mut bytes)?;
        let mut rest = bytes.get(..count).unwrap_or_default();
        if rest.is_empty() {
            return Ok(());
        }
        while !rest.is_empty() {
            match viewer.handle_bytes(rest) {
                Ok(taken) => rest = rest.get(taken..).unwrap_or_default(),
                Err(error) => {
                    viewer.poll_output(&picture, &mut out);
                    stream.write_all(&out)?;
                    return Err(io::Error::other(error));
                }
            }
            while let Some(input) = viewer.poll_input() {
                println!("{input:?}");
                if let Input::Pointer { x, y, .. } = input {
                    picture.update_row(x, y, &[0xff_ffff; 4]);
                    viewer.handle_damage(Rect {
                        x,
                        y,
                        width: 4,
                        height: 1,
                    });
                }
            }
            while viewer.poll_output(&picture, &mut out) {
                stream.write_all(&out)?;
                out.clear();
            }
        }
    }
}

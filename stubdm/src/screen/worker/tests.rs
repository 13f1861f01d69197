use super::*;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use stubdm_screen::PIXEL;

/// A frame in memory that changes its mode as Xen's does, or not at all.
#[derive(Debug)]
struct Memory {
    size: Size,
    pixels: Vec<u8>,
    resizes: bool,
    /// Calls of `flush`, and the pixels at the last one.
    flushes: usize,
    flushed: Vec<u8>,
}

const FRAME: Size = Size {
    width: 8,
    height: 6,
};

impl Memory {
    fn new(resizes: bool) -> Self {
        let pixels = vec![0xee; usize::from(FRAME.width) * usize::from(FRAME.height) * PIXEL];
        Self {
            size: FRAME,
            pixels,
            resizes,
            flushes: 0,
            flushed: Vec::new(),
        }
    }

    /// The first byte of each visible pixel, a row a line.
    fn rows(&self) -> Vec<Vec<u8>> {
        let rows = self.pixels.chunks(usize::from(FRAME.width) * PIXEL);
        let width = usize::from(self.size.width);
        rows.take(self.size.height.into())
            .map(|row| row.iter().step_by(PIXEL).take(width).copied().collect())
            .collect()
    }
}

impl Frame for Memory {
    fn size(&self) -> Size {
        self.size
    }

    fn resize(&mut self, wanted: Size) -> Size {
        if self.resizes {
            self.size = wanted;
        }
        self.size
    }

    fn write(&mut self, row: u16, at: usize, bytes: &[u8]) -> io::Result<()> {
        let start = usize::from(row) * usize::from(FRAME.width) * PIXEL + at;
        let room = self.pixels.get_mut(start..start + bytes.len());
        room.ok_or(io::ErrorKind::InvalidInput)?
            .copy_from_slice(bytes);
        Ok(())
    }

    fn clear(&mut self) -> io::Result<()> {
        self.pixels.fill(0);
        Ok(())
    }

    fn flush(&mut self) {
        self.flushes += 1;
        self.flushed.clone_from(&self.pixels);
    }
}

/// A worker with QEMU's end of its socket and the other end of its input device.
struct Ends {
    worker: Worker<Memory>,
    qemu: UnixStream,
    device: UnixStream,
}

impl Ends {
    fn new(resizes: bool) -> Self {
        let (near, qemu) = UnixStream::pair().unwrap();
        let (input, device) = UnixStream::pair().unwrap();
        qemu.set_nonblocking(true).unwrap();
        let near = Stream::socket(OwnedFd::from(near)).unwrap();
        let inputs = vec![Stream::socket(OwnedFd::from(input)).unwrap()];
        Self {
            worker: Worker::new(near, inputs, Memory::new(resizes), FRAME),
            qemu,
            device,
        }
    }

    /// Sends bytes as QEMU; returns what QEMU is sent.
    fn send(&mut self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        self.send_at(Instant::now(), bytes)
    }

    fn send_at(&mut self, now: Instant, bytes: &[u8]) -> io::Result<Vec<u8>> {
        self.qemu.write_all(bytes).unwrap();
        while self.worker.turn(now)? == Progress::Again {}
        let mut sent = Vec::new();
        let _ = self.qemu.read_to_end(&mut sent);
        Ok(sent)
    }

    /// Greets with a screen of this size, whose first picture has `colour` everywhere.
    fn greet(&mut self, width: u16, height: u16, colour: u8) {
        let mut bytes = b"RFB 003.008\n\x01\x01\0\0\0\0".to_vec();
        bytes.extend(width.to_be_bytes());
        bytes.extend(height.to_be_bytes());
        bytes.extend([0; 20]);
        bytes.extend(update(&[(width, height, -258, &[])]));
        let pixels = vec![colour; usize::from(width) * usize::from(height) * PIXEL];
        bytes.extend(update(&[(width, height, 0, &pixels)]));
        self.send(&bytes).unwrap();
    }
}

fn update(rectangles: &[(u16, u16, i32, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 0, rectangles.len() as u8];
    for (width, height, encoding, pixels) in rectangles {
        bytes.extend([0; 4]);
        bytes.extend(width.to_be_bytes());
        bytes.extend(height.to_be_bytes());
        bytes.extend(encoding.to_be_bytes());
        bytes.extend(*pixels);
    }
    bytes
}

fn event(kind: u16, code: u16, value: i32) -> Vec<u8> {
    let mut event = vec![0; stubdm_screen::input::EVENT - 8];
    event.extend(kind.to_ne_bytes());
    event.extend(code.to_ne_bytes());
    event.extend(value.to_ne_bytes());
    event
}

#[test]
fn whole_updates_are_passed_on_at_once_and_paced() {
    let mut ends = Ends::new(true);
    ends.greet(4, 2, 7);
    let mut now = Instant::now() + PACE;
    let flushes = |ends: &Ends| ends.worker.frame.flushes;
    let before = flushes(&ends);
    let whole = update(&[(1, 1, 0, &[9; 4])]);
    // A part of an update is drawn and not passed on; the rest is, with all of its pixels.
    let (part, rest) = whole.split_at(whole.len() - 1);
    ends.send_at(now, part).unwrap();
    assert_eq!(flushes(&ends), before);
    ends.send_at(now, rest).unwrap();
    assert_eq!(flushes(&ends), before + 1);
    assert_eq!(ends.worker.frame.flushed, ends.worker.frame.pixels);
    // Those that follow closely are the kernel's own affair.
    for _ in 0..20 {
        ends.send_at(now + PACE / 2, &whole).unwrap();
    }
    assert_eq!(flushes(&ends), before + 1);
    now += PACE;
    ends.send_at(now, &[]).unwrap();
    assert_eq!(flushes(&ends), before + 1, "nothing was drawn");
    ends.send_at(now, &whole).unwrap();
    assert_eq!(flushes(&ends), before + 2);
}

#[test]
fn a_screen_is_drawn_and_the_mode_follows_it() {
    let mut ends = Ends::new(true);
    ends.greet(4, 2, 7);
    assert_eq!(ends.worker.frame.rows(), [[7; 4]; 2]);
    let sent = ends
        .send(&update(&[(2, 3, -223, &[]), (1, 1, 0, &[9; 4])]))
        .unwrap();
    assert_eq!(
        ends.worker.frame.rows(),
        [[9, 0], [0, 0], [0, 0]],
        "nothing is left of the old mode"
    );
    assert_eq!(
        sent,
        [3, 0, 0, 0, 0, 0, 0, 2, 0, 3],
        "all of it is asked for"
    );
    // Larger than the frame can be.
    ends.send(&update(&[(9, 7, -223, &[]), (9, 7, 0, &[3; 9 * 7 * 4])]))
        .unwrap();
    assert_eq!(ends.worker.frame.rows(), [[3; 8]; 6]);
}

#[test]
fn a_frame_that_keeps_its_mode_has_the_screen_in_the_middle() {
    let mut ends = Ends::new(false);
    ends.greet(4, 2, 7);
    let [empty, full] = [[0; 8], [0, 0, 7, 7, 7, 7, 0, 0]];
    assert_eq!(
        ends.worker.frame.rows(),
        [empty, empty, full, full, empty, empty]
    );
}

#[test]
fn what_is_typed_reaches_qemu() {
    let mut ends = Ends::new(false);
    ends.greet(4, 2, 0);
    let typed = [
        event(1, 30, 1),
        event(0, 0, 0),
        event(3, 0, 3),
        event(3, 1, 2),
        event(1, 0x110, 1),
        event(0, 0, 0),
    ];
    ends.device.write_all(&typed.concat()).unwrap();
    let sent = ends.send(&[]).unwrap();
    let all = [255, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 30, 5, 1, 0, 1, 0, 0];
    assert_eq!(sent, all, "the pointer's place is that of the screen");
}

#[test]
fn an_idle_screen_wakes_nobody() {
    let mut ends = Ends::new(true);
    ends.greet(4, 2, 1);
    let progress = ends.worker.turn(Instant::now()).unwrap();
    assert_eq!(progress, Progress::Sleep(None));
    let interests = ends.worker.interests();
    let input = nix::poll::PollFlags::POLLIN;
    assert!(interests.iter().all(|(_, flags)| *flags == input));
}

#[test]
fn a_qemu_that_reads_nothing_stops_the_input_and_loses_no_release() {
    let mut ends = Ends::new(true);
    ends.greet(4, 2, 1);
    let press = [event(1, 30, 1), event(1, 30, 0)].concat();
    ends.device.set_nonblocking(true).unwrap();
    // As much as its socket, the worker, and the device's socket take.
    let (mut idle, mut written) = (0, 0);
    while idle < 3 {
        idle += 1;
        while ends
            .device
            .write(&press)
            .is_ok_and(|count| count == press.len())
        {
            idle = 0;
            written += 1;
            assert!(written < 100_000, "the worker reads on");
        }
        ends.worker.turn(Instant::now()).unwrap();
    }
    let waits = ends.worker.client.poll_transmit().len();
    assert!(ends.worker.client.is_full() && waits < 12 << 10, "{waits}");
    assert_eq!(ends.worker.interests().len(), 1, "the device can wait");
}

#[test]
fn the_end_of_a_device_is_not_the_end_of_the_screen() {
    let mut ends = Ends::new(true);
    ends.greet(4, 2, 1);
    let (other, _) = UnixStream::pair().unwrap();
    drop(std::mem::replace(&mut ends.device, other));
    ends.send(&update(&[(1, 1, 0, &[5; 4])])).unwrap();
    assert_eq!(ends.worker.interests().len(), 1);
    assert_eq!(ends.worker.frame.rows(), [[5, 1, 1, 1], [1; 4]]);
}

#[test]
fn a_qemu_that_lies_or_leaves_ends_the_process() {
    let mut ends = Ends::new(true);
    ends.greet(4, 2, 1);
    let error = ends.send(&update(&[(5, 1, 0, &[])])).unwrap_err();
    assert!(error.to_string().contains("5x1 at 0,0"), "{error}");
    let mut ends = Ends::new(true);
    let (other, _) = UnixStream::pair().unwrap();
    drop(std::mem::replace(&mut ends.qemu, other));
    let error = ends.worker.turn(Instant::now()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

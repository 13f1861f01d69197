//! The way of a saved state through a tty, on ptys in a console's place: 64 MiB each way, with the
//! code that the init runs, identical whatever the speed of either end.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use nix::unistd::ttyname;
use stubdm::guest::incoming::pass_on;
use stubdm::guest::save::sender::{SaveFile, Sender};
use stubdm::guest::tty::{Direction, open_raw};
use stubdm::libxl::state_record::STATE_MAX;
use stubdm::rt::poll::sleep;
use stubdm::rt::stream::Stream;

/// Nothing for this long, and it is lost.
const PATIENCE: Duration = Duration::from_secs(60);

const VOLUME: usize = STATE_MAX as usize;

/// How an end takes or gives.
#[derive(Clone, Copy, Debug)]
enum Speed {
    Full,
    /// A few bytes at a time.
    Slow,
    /// Everything, then nothing for a while.
    Bursty,
    /// Nothing more from the middle on, until the other end has been stuck for a while.
    Stalled,
}

impl Speed {
    /// Returns how much to move at a time, after the pause that belongs to position `at`.
    fn piece(self, at: usize, before: usize) -> usize {
        const BURST: usize = 4 << 20;
        let crossed = |mark: usize| at / mark != before / mark;
        match self {
            Self::Full => 65536,
            Self::Slow => 1021,
            Self::Bursty | Self::Stalled => {
                // The pause is what is tested; its length is of no consequence.
                match self {
                    Self::Bursty if crossed(BURST) => thread::sleep(Duration::from_millis(20)),
                    Self::Stalled if crossed(VOLUME / 2) => {
                        thread::sleep(Duration::from_millis(400))
                    }
                    _ => {}
                }
                65536
            }
        }
    }
}

/// Random bytes, all 256 of them in any hundred, that begin as QEMU's states do.
fn state(length: usize) -> Vec<u8> {
    let mut word = 0x9e37_79b9_7f4a_7c15u64;
    let mut bytes = b"QEVM".to_vec();
    while bytes.len() < length {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A tty as the init opens it, and the far end.
fn tty(direction: Direction) -> (File, File) {
    let pty = openpty(None, None).unwrap();
    let path = ttyname(pty.slave.as_fd()).unwrap();
    let near = open_raw(path, direction).unwrap();
    // The mode stays while `near` is open.
    drop(pty.slave);
    (near, pty.master.into())
}

fn give(mut end: impl Write, bytes: &[u8], speed: Speed) {
    let (mut at, mut before) = (0, 0);
    while at < bytes.len() {
        let piece = speed.piece(at, before).min(bytes.len() - at);
        before = at;
        at += end.write(&bytes[at..at + piece]).unwrap();
    }
}

/// `count` bytes.
fn take(end: &mut (impl Read + AsFd), count: usize, speed: Speed) -> Vec<u8> {
    let mut all = vec![0; count];
    let (mut at, mut before) = (0, 0);
    while at < count {
        let piece = speed.piece(at, before).min(count - at);
        before = at;
        let mut fds = [PollFd::new(end.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut fds, PollTimeout::try_from(PATIENCE).unwrap()).unwrap();
        assert!(ready > 0, "nothing more after {at} bytes");
        let got = end.read(&mut all[at..at + piece]).unwrap();
        assert!(got > 0, "the end after {at} bytes");
        at += got;
    }
    all
}

fn same(got: &[u8], wanted: &[u8], what: impl std::fmt::Debug) {
    let differs = got.iter().zip(wanted).position(|(a, b)| a != b);
    assert_eq!(differs, None, "{what:?}");
    assert_eq!(got.len(), wanted.len(), "{what:?}");
}

/// One record of `state` as the init's save path sends it, taken out of the far end at `speed`.
fn saved(state: &[u8], speed: Speed) -> Vec<u8> {
    let (near, mut far) = tty(Direction::Out);
    let mut file = SaveFile::new().unwrap();
    File::from(file.for_qemu().unwrap())
        .write_all(state)
        .unwrap();
    let mut drain: Sender = file.drain().unwrap();
    let length = stubdm::libxl::state_record::HEADER
        + state.len()
        + stubdm::libxl::state_record::FILLER as usize;
    let reader = thread::spawn(move || {
        let all = take(&mut far, length, speed);
        (all, far)
    });
    let mut console = Stream::socket(OwnedFd::from(near)).unwrap();
    while !drain.turn(&file, &mut console).unwrap() {
        sleep(&console.interest(false, true), None).unwrap();
    }
    let (all, _far) = reader.join().unwrap();
    all
}

/// Restores `stream`, sent at the speed `theirs`, and returns what QEMU got. A `plain` state has no
/// header, and QEMU itself finds its end.
fn restored(stream: &[u8], length: usize, plain: bool, theirs: Speed, qemus: Speed) -> Vec<u8> {
    let (mut near, mut far) = tty(Direction::In);
    let (reader, writer) = nix::unistd::pipe().unwrap();
    thread::scope(|scope| {
        let passed = scope.spawn(move || pass_on(&mut near, writer.into()));
        let qemu = scope.spawn(move || {
            let mut pipe = File::from(reader);
            take(&mut pipe, length, qemus)
        });
        give(&mut far, stream, theirs);
        let got = qemu.join().unwrap();
        if plain {
            // The pipe is closed: one byte more shows it.
            far.write_all(b"!").unwrap();
        }
        let passed = passed.join().unwrap().unwrap();
        assert!(passed >= length as u64, "{passed} bytes passed on");
        got
    })
}

/// Saved at one speed and restored at another.
fn out_and_back_in(host: Speed, theirs: Speed, qemus: Speed) {
    let state = state(VOLUME);
    let record = saved(&state, host);
    same(
        &record[stubdm::libxl::state_record::HEADER..][..VOLUME],
        &state,
        host,
    );
    let got = restored(&record, VOLUME, false, theirs, qemus);
    same(&got, &state, (host, theirs, qemus));
}

#[test]
fn sixty_four_mebibytes_out_and_back_in_to_ends_that_stall() {
    out_and_back_in(Speed::Stalled, Speed::Bursty, Speed::Stalled);
}

#[test]
fn sixty_four_mebibytes_out_and_back_in_to_slow_and_bursty_ends() {
    out_and_back_in(Speed::Slow, Speed::Full, Speed::Slow);
    out_and_back_in(Speed::Bursty, Speed::Slow, Speed::Bursty);
}

#[test]
fn sixty_four_mebibytes_without_a_header_pass_whatever_the_pace_of_either_end() {
    let state = state(VOLUME);
    for (theirs, qemus) in [
        (Speed::Full, Speed::Stalled),
        (Speed::Bursty, Speed::Slow),
        (Speed::Slow, Speed::Bursty),
    ] {
        let got = restored(&state, VOLUME, true, theirs, qemus);
        same(&got, &state, (theirs, qemus));
    }
}

/// Every byte there is, each way: none means anything to the tty, and nothing is echoed.
#[test]
fn no_byte_means_anything_and_none_is_echoed() {
    let all: Vec<u8> = (0..=255).collect();
    let (mut near, mut far) = tty(Direction::Both);
    far.write_all(&all).unwrap();
    same(&take(&mut near, 256, Speed::Full), &all, "in");
    near.write_all(&all).unwrap();
    // An echo would have arrived first.
    same(&take(&mut far, 256, Speed::Full), &all, "out");
    let (answer, wait) = mpsc::channel();
    let reader = thread::spawn(move || {
        let _ = answer.send(far.read(&mut [0; 16]));
        far
    });
    assert!(
        wait.recv_timeout(Duration::from_millis(100)).is_err(),
        "nothing more comes"
    );
    near.write_all(b"end").unwrap();
    assert_eq!(wait.recv().unwrap().unwrap(), 3);
    drop(reader.join());
}

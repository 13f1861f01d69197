//! Both ends of the socket: bytes arrive whole, and who breaks the rules is found out.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use crate::proxy::broker::relay::Relay;
use crate::proxy::ipc::{CHUNK, Event, IpcSocket, Received, Request, WINDOW};
use crate::proxy::sandbox::remote::RemoteConnect;
use crate::proxy::sandbox::{Inherited, user_of};
use crate::proxy::saves::{NoSaves, Saves};
use crate::rt::poll::{Interest, sleep};
use crate::rt::transport::{Connect, Peer, Transport};

/// A socket in the place of a vchan.
struct Pipe(UnixStream);

impl Transport for Pipe {
    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn acknowledge(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn peer(&mut self) -> io::Result<Peer> {
        Ok(Peer::Connected)
    }

    fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }

    fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn unread(&mut self) -> usize {
        7
    }

    fn next_client(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Leads to these, one after another.
struct Pipes(Vec<UnixStream>);

impl Connect for Pipes {
    type Transport = Pipe;

    fn connect(&mut self) -> io::Result<Pipe> {
        let stream = self.0.pop().ok_or(io::ErrorKind::NotFound)?;
        stream.set_nonblocking(true)?;
        Ok(Pipe(stream))
    }

    fn may_come(&mut self) -> bool {
        false
    }
}

fn relay(streams: Vec<UnixStream>) -> (Relay<Pipes>, IpcSocket) {
    let (near, far) = IpcSocket::pair().unwrap();
    far.send(&Request::Ready.encode()).unwrap();
    let saves = Box::new(NoSaves::new("cut\nshort"));
    (Relay::new(Pipes(streams), saves, near, Instant::now()), far)
}

/// A relay that works until the other side of its socket is closed.
fn working(streams: Vec<UnixStream>) -> (std::thread::JoinHandle<io::ErrorKind>, IpcSocket) {
    let (mut relay, far) = relay(streams);
    let thread = std::thread::spawn(move || {
        loop {
            match relay.turn(Instant::now()) {
                Ok(true) => {}
                // A socket has no doorbell for room to write; a vchan has.
                Ok(false) => {
                    let soon = Instant::now() + Duration::from_millis(1);
                    sleep(&relay.interests(), Some(soon)).unwrap();
                }
                Err(error) => return error.kind(),
            }
        }
    });
    (thread, far)
}

#[test]
fn a_megabyte_there_and_back_arrives_whole() {
    let (near, mut far) = UnixStream::pair().unwrap();
    let echo = std::thread::spawn(move || {
        let mut buffer = [0; 5000];
        loop {
            match far.read(&mut buffer).unwrap() {
                0 => return,
                count => far.write_all(&buffer[..count]).unwrap(),
            }
        }
    });
    let (thread, ipc) = working(vec![near]);
    let ipc = Arc::new(ipc);
    let mut connect = RemoteConnect::new(ipc.clone());
    let mut remote = connect.connect().unwrap();
    let sent: Vec<u8> = (0..1_000_003u32).map(|n| ((n * 7) >> 3) as u8).collect();
    let (mut at, mut received) = (0, Vec::new());
    // Odd pieces, so that messages are read in parts.
    let mut buffer = [0; 1237];
    while received.len() < sent.len() {
        remote.acknowledge().unwrap();
        let mut moved = false;
        match remote.try_write(&sent[at..]) {
            Ok(count) => (at, moved) = (at + count, count > 0),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
        match remote.try_read(&mut buffer) {
            Ok(count) => {
                received.extend_from_slice(&buffer[..count]);
                moved = true;
            }
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
        if !moved {
            let limit = Instant::now() + Duration::from_secs(60);
            sleep(&[(remote.poll_fd(), PollFlags::POLLIN)], Some(limit)).unwrap();
            assert!(
                Instant::now() < limit,
                "stuck at {at} and {}",
                received.len()
            );
        }
    }
    assert!(received == sent);
    assert_eq!(remote.unread(), 7);
    drop(remote);
    assert!(connect.connect().is_err());
    assert!(!connect.may_come());
    drop((connect, ipc));
    assert_eq!(thread.join().unwrap(), io::ErrorKind::UnexpectedEof);
    echo.join().unwrap();
}

#[test]
fn what_the_far_end_sent_last_is_read_before_its_end() {
    let (near, mut far) = UnixStream::pair().unwrap();
    far.write_all(b"last words").unwrap();
    drop(far);
    let (_thread, ipc) = working(vec![near]);
    let ipc = Arc::new(ipc);
    let mut remote = RemoteConnect::new(ipc).connect().unwrap();
    let mut said = Vec::new();
    loop {
        let mut buffer = [0; 4];
        match remote.try_read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => said.extend_from_slice(&buffer[..count]),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                sleep(&[(remote.poll_fd(), PollFlags::POLLIN)], None).unwrap();
            }
        }
    }
    assert_eq!(said, b"last words");
    assert_eq!(remote.peer().unwrap(), Peer::Gone);
    assert!(remote.try_write(b"x").is_err());
}

#[test]
fn a_look_at_the_saved_state_is_the_carriers_and_loses_no_byte() {
    let (near, mut far) = UnixStream::pair().unwrap();
    far.write_all(b"for a client").unwrap();
    let (thread, ipc) = working(vec![near]);
    let mut connect = RemoteConnect::new(Arc::new(ipc));
    let mut remote = connect.connect().unwrap();
    let mut saves = connect.saves();
    for _ in 0..3 {
        saves.begin();
        let outcome = loop {
            remote.acknowledge().unwrap();
            if let Some(outcome) = saves.outcome() {
                break outcome;
            }
            sleep(&[(remote.poll_fd(), PollFlags::POLLIN)], None).unwrap();
        };
        assert_eq!(outcome, Err("cut short".to_owned()));
    }
    let mut buffer = [0; 16];
    let received = loop {
        match remote.try_read(&mut buffer) {
            Ok(count) => break &buffer[..count],
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
        sleep(&[(remote.poll_fd(), PollFlags::POLLIN)], None).unwrap();
    };
    assert_eq!(received, b"for a client");
    drop(far);
    drop((remote, connect, saves));
    assert_eq!(thread.join().unwrap(), io::ErrorKind::UnexpectedEof);
}

/// Turns until the broker has had enough.
fn verdict(mut relay: Relay<Pipes>) -> io::ErrorKind {
    for _ in 0..100 {
        if let Err(error) = relay.turn(Instant::now()) {
            return error.kind();
        }
    }
    panic!("it bears with it");
}

#[test]
fn who_breaks_the_rules_is_found_out() {
    let (with, ipc) = relay(Vec::new());
    ipc.send(b"?").unwrap();
    assert_eq!(verdict(with), io::ErrorKind::InvalidData);

    // Before the worker has reported that it is confined.
    let (near, ipc) = IpcSocket::pair().unwrap();
    ipc.send(&Request::Connect.encode()).unwrap();
    let with = Relay::new(
        Pipes(Vec::new()),
        Box::new(NoSaves::new("none")),
        near,
        Instant::now(),
    );
    assert_eq!(verdict(with), io::ErrorKind::InvalidData);

    // More than once.
    let (with, ipc) = relay(Vec::new());
    ipc.send(&Request::Ready.encode()).unwrap();
    assert_eq!(verdict(with), io::ErrorKind::InvalidData);

    // Questions without an ear for the answers.
    let (mut with, ipc) = relay(Vec::new());
    let error = loop {
        for _ in 0..50 {
            ipc.send(&Request::Unread.encode()).unwrap();
        }
        if let Err(error) = with.turn(Instant::now()) {
            break error;
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);

    // More bytes than the window while nobody reads them. The far end stays open and deaf.
    let (near, _far) = UnixStream::pair().unwrap();
    let (mut with, ipc) = relay(vec![near]);
    ipc.send(&Request::Connect.encode()).unwrap();
    let error = loop {
        for _ in 0..WINDOW {
            ipc.send(&Request::Bytes(&[0; CHUNK]).encode()).unwrap();
        }
        if let Err(error) = with.turn(Instant::now()) {
            break error;
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
}

#[test]
fn nobody_who_does_not_read_is_given_more_than_the_window() {
    let (near, mut far) = UnixStream::pair().unwrap();
    far.set_nonblocking(true).unwrap();
    let (mut with, ipc) = relay(vec![near]);
    ipc.send(&Request::Connect.encode()).unwrap();
    for _ in 0..100 {
        let _ = far.write(&[1; CHUNK]);
        while with.turn(Instant::now()).unwrap() {}
    }
    let Received::Message(first) = ipc.receive().unwrap() else {
        panic!("nothing came")
    };
    assert_eq!(Event::decode(&first), Some(Event::Up));
    let mut given = 0;
    while let Received::Message(message) = ipc.receive().unwrap() {
        assert!(matches!(Event::decode(&message), Some(Event::Bytes(_))));
        given += 1;
    }
    assert_eq!(given, WINDOW);
}

#[test]
fn what_is_given_survives_the_command_line() {
    for listener in [None, Some(12)] {
        let given = Inherited { ipc: 7, listener };
        assert_eq!(given.to_string().parse(), Ok(given));
    }
    assert!("7,".parse::<Inherited>().is_err());
    assert_eq!(user_of(32751), 2_013_298_671);
}

#[test]
fn looks_at_the_saved_state_are_held_to_their_rate_and_lose_no_order() {
    let (near, _far) = UnixStream::pair().unwrap();
    let (mut with, ipc) = relay(vec![near]);
    ipc.send(&Request::Connect.encode()).unwrap();
    let mut now = Instant::now();
    let looks = |with: &mut Relay<Pipes>, now| {
        let mut count = 0;
        for _ in 0..100 {
            with.turn(now).unwrap();
            while let Received::Message(message) = ipc.receive().unwrap() {
                count += usize::from(matches!(Event::decode(&message), Some(Event::Stored(_))));
            }
        }
        count
    };
    for _ in 0..18 {
        ipc.send(&Request::Stored.encode()).unwrap();
    }
    assert_eq!(looks(&mut with, now), 16);
    let due = with.deadline().unwrap();
    assert!(due > now && due <= now + Duration::from_secs(5));
    let orders = with.interests().remove(0).1;
    assert!(orders.is_empty(), "nothing more is asked for meanwhile");
    now = due;
    assert_eq!(looks(&mut with, now), 1);
    // Another in its place gets no new burst.
    let (near, ipc) = IpcSocket::pair().unwrap();
    with.restart(near);
    ipc.send(&Request::Ready.encode()).unwrap();
    ipc.send(&Request::Stored.encode()).unwrap();
    for _ in 0..100 {
        with.turn(now).unwrap();
    }
    assert_eq!(ipc.receive().unwrap(), Received::Nothing);
    drop(ipc);
    let end = with.turn(now).unwrap_err();
    assert_eq!(
        end.kind(),
        io::ErrorKind::UnexpectedEof,
        "its end is seen meanwhile"
    );
}

/// Looks that never end.
struct Endless;

impl Saves for Endless {
    fn begin(&mut self) {}

    fn outcome(&mut self) -> Option<Result<(), String>> {
        None
    }

    fn interests(&self) -> Vec<Interest<'_>> {
        Vec::new()
    }
}

#[test]
fn a_look_that_does_not_end_holds_up_nothing_else() {
    let (near, mut far) = UnixStream::pair().unwrap();
    let (ours, ipc) = IpcSocket::pair().unwrap();
    let now = Instant::now();
    let mut with = Relay::new(Pipes(vec![near]), Box::new(Endless), ours, now);
    for order in [
        Request::Ready,
        Request::Connect,
        Request::Stored,
        Request::Bytes(b"for QEMU"),
        Request::Unread,
    ] {
        ipc.send(&order.encode()).unwrap();
    }
    while with.turn(now).unwrap() {}
    let mut messages = Vec::new();
    while let Received::Message(message) = ipc.receive().unwrap() {
        messages.push(message);
    }
    let events: Vec<_> = messages
        .iter()
        .map(|message| Event::decode(message))
        .collect();
    assert!(
        matches!(events[..], [Some(Event::Up), Some(Event::Unread(_))]),
        "{events:?}"
    );
    let mut buffer = [0; 8];
    far.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"for QEMU");
}

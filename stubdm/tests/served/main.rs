//! `consoled` puts a console's bytes into the right file, whatever the frontend does.

#![allow(clippy::unwrap_used)]

#[path = "../../console/tests/console/host.rs"]
#[allow(dead_code, reason = "the console's own tests use more of it")]
mod host;
#[path = "../../console/tests/console/stream.rs"]
mod stream;

use std::fs;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollTimeout, poll};
use stubdm::consoled::service::{Place, Service};
use stubdm::libxl::discover::{Discovered, consoles};
use stubdm::libxl::output::Output;
use stubdm::libxl::state_record::{FILLER, Header};
use stubdm::rt::poll::{readable, sleep};
use xen_console::{Frontend, ready};

use host::{PATIENCE, TestHost};
use stream::Stream;

const LIMIT: u64 = 1 << 20;

/// The service of one console, as the store describes it.
fn service(host: &TestHost, number: u32, output: &str) -> Service {
    host.console(number, Some(output));
    open(host, number, LIMIT, None)
}

/// Serves a console that the store describes.
fn open(host: &TestHost, number: u32, limit: u64, place: Option<Place<'_>>) -> Service {
    let Discovered::Consoles(found) = consoles(&host.store, host.domain).unwrap() else {
        panic!("not ours");
    };
    let console = found.iter().find(|c| c.number == number).unwrap();
    let xen = host.dom0();
    Service::open(&xen, &host.store, host.domain, console, limit, place).unwrap()
}

/// Both sides have their turns until `done`.
fn until(
    service: &mut Service,
    frontend: &mut Frontend,
    mut done: impl FnMut(&mut Frontend) -> bool,
) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let more = service.turn(Instant::now());
        frontend.turn().unwrap();
        if done(frontend) {
            return;
        }
        assert!(Instant::now() < deadline);
        if !more {
            let mut interests = service.interests();
            interests.extend(frontend.poll_fds().unwrap().map(readable));
            let nap = Instant::now() + Duration::from_millis(5);
            sleep(&interests, Some(nap)).unwrap();
        }
    }
}

/// Writes all of it and waits until it has been taken out.
fn write_console(service: &mut Service, frontend: &mut Frontend, bytes: &[u8]) {
    let mut sent = 0;
    until(service, frontend, |frontend| {
        sent += frontend.connection().try_write(&bytes[sent..]).unwrap();
        sent == bytes.len() && frontend.connection().unread().unwrap() == 0
    });
}

fn random(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Stream(7).fill(&mut bytes);
    bytes
}

#[test]
fn a_log_has_every_byte_in_order_across_openings() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let host = TestHost::new();
    let mut service = service(&host, 3, &format!("file:{}", path.display()));
    let bytes = random(300_000);
    for part in bytes.chunks(100_000) {
        let mut frontend = host.frontend_at("device/console/3");
        write_console(&mut service, &mut frontend, part);
        let mut closed = false;
        std::thread::scope(|scope| {
            let end = scope.spawn(|| frontend.close(PATIENCE).unwrap());
            while !closed {
                service.turn(Instant::now());
                closed = end.is_finished();
            }
            assert!(end.join().unwrap());
        });
    }
    assert!(fs::read(&path).unwrap() == bytes);
    drop(service);
    host.end();
}

#[test]
fn a_saved_state_is_in_its_file_when_half_of_the_filler_has_gone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qemu-save.1");
    let host = TestHost::new();
    let mut service = service(&host, 1, &format!("file:{}", path.display()));
    let mut frontend = host.frontend();
    for number in 1..=3 {
        let state = random(number as usize * 50_001);
        let header = Header {
            number,
            crc: crc32fast::hash(&state),
            length: state.len() as u64,
            filler: FILLER,
        };
        let record = [&header.encode()[..], &state].concat();
        // All but the filler's second half is on its way: the ring holds the last of it at most.
        let mut sent = record.clone();
        sent.resize(record.len() + FILLER as usize, 0);
        let mut at = 0;
        until(&mut service, &mut frontend, |frontend| {
            at += frontend.connection().try_write(&sent[at..]).unwrap();
            at == sent.len()
        });
        assert!(fs::read(&path).unwrap() == record, "save {number}");
    }
    drop(frontend);
    drop(service);
    host.end();
}

/// Killed between the bytes that it wrote to a new log and its position, which is of the old log.
#[test]
fn a_consoled_killed_while_it_rotates_its_log_doubles_no_byte() {
    let dir = tempfile::tempdir().unwrap();
    let (path, old) = (dir.path().join("log"), dir.path().join("log.old"));
    let mut place = Place {
        folder: dir.path(),
        uuid: "uuid",
        resume: false,
    };
    let host = TestHost::new();
    host.console(3, Some(&format!("file:{}", path.display())));
    let mut first = open(&host, 3, 100, Some(place));
    let mut frontend = host.frontend_at("device/console/3");
    write_console(&mut first, &mut frontend, &[b'a'; 80]);
    drop(first);
    assert_eq!(frontend.connection().try_write(&[b'b'; 50]).unwrap(), 50);
    fs::rename(&path, &old).unwrap();
    fs::write(&path, [b'b'; 50]).unwrap();
    place.resume = true;
    let mut next = open(&host, 3, 100, Some(place));
    write_console(&mut next, &mut frontend, b"c");
    assert_eq!(fs::read(&path).unwrap(), [&[b'b'; 50][..], b"c"].concat());
    assert_eq!(fs::read(&old).unwrap(), [b'a'; 80]);
    drop(frontend);
    drop(next);
    host.end();
}

/// The index of a ring's next byte means nothing in another ring.
#[test]
fn a_ring_that_was_published_while_no_consoled_ran_is_read_from_its_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let mut place = Place {
        folder: dir.path(),
        uuid: "uuid",
        resume: false,
    };
    let host = TestHost::new();
    let output = format!("file:{}", path.display());
    host.console(3, Some(&output));
    let mut first = open(&host, 3, LIMIT, Some(place));
    let mut before = host.frontend_at("device/console/3");
    write_console(&mut first, &mut before, &[b'a'; 80]);
    drop(first);
    host.console(3, Some(&output));
    // The first one's grant and port are still in use: this one has others.
    let mut frontend = host.frontend_at("device/console/3");
    assert_eq!(frontend.connection().try_write(&[b'b'; 90]).unwrap(), 90);
    place.resume = true;
    let mut next = open(&host, 3, LIMIT, Some(place));
    write_console(&mut next, &mut frontend, b"c");
    let expected = [[b'a'; 80].as_slice(), &[b'b'; 90], b"c"].concat();
    assert_eq!(fs::read(&path).unwrap(), expected);
    drop((before, frontend));
    drop(next);
    host.end();
}

/// A state to restore, as console 2 of a domain.
fn restored(host: &TestHost, state: &[u8]) -> (Service, Frontend) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qemu-resume.1");
    fs::write(&path, state).unwrap();
    let service = service(host, 2, &format!("pipe:{}", path.display()));
    // As libxl does as soon as the consoles are served.
    fs::remove_file(&path).unwrap();
    (service, host.frontend_at("device/console/2"))
}

/// Reads a state to its end.
fn take(service: &mut Service, frontend: &mut Frontend, state: &[u8]) {
    let mut got = Vec::new();
    until(service, frontend, |frontend| {
        let mut buffer = [0; 700];
        let count = frontend.connection().try_read(&mut buffer).unwrap();
        got.extend_from_slice(&buffer[..count]);
        got.len() == state.len()
    });
    assert!(got == state);
}

/// The console is connected, and nothing is sent.
fn nothing_comes(service: &mut Service, frontend: &mut Frontend) {
    let mut turns = 0;
    until(service, frontend, |frontend| {
        assert_eq!(frontend.connection().try_read(&mut [0; 8]).unwrap(), 0);
        turns += 1;
        turns == 50
    });
}

#[test]
fn a_state_to_restore_is_given_to_its_end_once_the_domain_is_ready() {
    let state = random(100_000);
    let host = TestHost::new();
    let (mut service, mut frontend) = restored(&host, &state);
    let theirs = host.domu().1;
    assert!(ready::is_asked(&theirs, 2) && !ready::is_asked(&theirs, 3));
    nothing_comes(&mut service, &mut frontend);
    write_console(&mut service, &mut frontend, b"anything else");
    nothing_comes(&mut service, &mut frontend);
    write_console(&mut service, &mut frontend, &[ready::BYTE]);
    take(&mut service, &mut frontend, &state);
    drop(frontend);
    drop(service);
    host.end();
}

#[test]
fn a_domain_that_sends_nothing_is_given_its_state_after_a_time() {
    let state = random(5000);
    let host = TestHost::new();
    let (mut service, mut frontend) = restored(&host, &state);
    nothing_comes(&mut service, &mut frontend);
    let at = service.deadline().unwrap();
    assert!(at <= Instant::now() + ready::PATIENCE);
    service.turn(at);
    take(&mut service, &mut frontend, &state);
    drop(frontend);
    drop(service);
    host.end();
}

#[test]
fn a_terminal_is_named_in_the_store_and_carries_both_ways() {
    let host = TestHost::new();
    let mut service = service(&host, 3, "pty");
    let node = format!("/local/domain/{}/device/console/3/tty", host.domain);
    let name = host.store.read_str(&node).unwrap();
    let (_, theirs) = host.domu();
    assert!(
        theirs.write(&node, "/dev/pts/0").is_err(),
        "not the domain's"
    );
    let mut frontend = host.frontend_at("device/console/3");
    write_console(&mut service, &mut frontend, b"a history\r\n");
    let mut person = fs::File::options()
        .read(true)
        .write(true)
        .open(name)
        .unwrap();
    let mut seen = [0; 11];
    person.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"a history\r\n");
    // More than the ring and the terminal hold, and nothing of it is lost or altered.
    let typed = random(20_000);
    let mut got = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| person.write_all(&typed).unwrap());
        until(&mut service, &mut frontend, |frontend| {
            let mut buffer = [0; 100];
            let count = frontend.connection().try_read(&mut buffer).unwrap();
            got.extend_from_slice(&buffer[..count]);
            got.len() == typed.len()
        });
    });
    assert!(got == typed);
    drop(frontend);
    drop(service);
    host.end();
}

/// The service has its turns until its backend is in that state.
fn wait_for(host: &TestHost, service: &mut Service, state: &str) {
    let deadline = Instant::now() + PATIENCE;
    while host.state(3) != state {
        service.turn(Instant::now());
        assert!(Instant::now() < deadline);
    }
}

#[test]
fn a_frontend_that_breaks_its_ring_is_served_again_when_it_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let host = TestHost::new();
    let mut service = service(&host, 3, &format!("file:{}", path.display()));
    let node = "device/console/3";
    for index in [3072, 3084] {
        let bare = host.bare(node);
        bare.write("state", "3");
        wait_for(&host, &mut service, "4");
        bare.set(index, 0x8000_0000);
        // The other ring is only looked at when there is something to put in.
        if index == 3084 {
            bare.port.notify().unwrap();
            wait_for(&host, &mut service, "5");
        }
        bare.close();
        wait_for(&host, &mut service, "6");
    }
    let mut frontend = host.frontend_at(node);
    write_console(&mut service, &mut frontend, b"good again");
    assert_eq!(fs::read(&path).unwrap(), b"good again");
    drop(frontend);
    drop(service);
    host.end();
}

#[test]
fn a_frontend_that_takes_nothing_does_not_make_what_waits_for_it_grow() {
    let host = TestHost::new();
    let mut service = service(&host, 3, "null");
    let node = "device/console/3";
    for _ in 0..8 {
        let bare = host.bare(node);
        // A full ring, of bytes that nobody ever sent.
        bare.set(3076, 1024);
        bare.write("state", "3");
        wait_for(&host, &mut service, "4");
        bare.close();
        wait_for(&host, &mut service, "6");
    }
    let mut frontend = host.frontend_at(node);
    let mut got = 0;
    let mut idle = 0;
    until(&mut service, &mut frontend, |frontend| {
        let count = frontend.connection().try_read(&mut [0; 1024]).unwrap();
        got += count;
        idle = if got > 0 && count == 0 { idle + 1 } else { 0 };
        idle == 20
    });
    assert!(got <= 2048, "{got} bytes waited");
    drop(frontend);
    drop(service);
    host.end();
}

#[test]
fn a_store_that_is_lost_leaves_the_ring_and_no_descriptor_that_is_always_ready() {
    let host = TestHost::new();
    let mut service = service(&host, 3, "null");
    let mut frontend = host.frontend_at("device/console/3");
    write_console(&mut service, &mut frontend, b"with a store");
    host.server.drop_connections(xen_sys::DomId::DOM0);
    write_console(&mut service, &mut frontend, b"without one");
    let deadline = Instant::now() + PATIENCE;
    let is_ready = |service: &Service| {
        let interests = service.interests();
        let mut fds: Vec<PollFd<'_>> = interests
            .iter()
            .map(|(fd, flags)| PollFd::new(*fd, *flags))
            .collect();
        poll(&mut fds, PollTimeout::ZERO).unwrap() > 0
    };
    while service.turn(Instant::now()) || is_ready(&service) {
        assert!(Instant::now() < deadline, "it would never sleep again");
    }
    drop(frontend);
    drop(service);
    host.end();
}

#[test]
fn a_null_console_takes_everything() {
    let host = TestHost::new();
    let mut service = service(&host, 3, "null");
    assert_eq!(Output::parse(b"null"), Some(Output::Null));
    let mut frontend = host.frontend_at("device/console/3");
    write_console(&mut service, &mut frontend, &random(50_000));
    drop(frontend);
    drop(service);
    host.end();
}

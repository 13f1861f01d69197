//! A client that dials again.

use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use xen_sys::DomId;
use xen_vchan::{Backoff, ClientBuilder, Error, Reconnecting};

use crate::host::{PATH, TestHost, poll_one, soon};

pub(crate) fn reconnecting(host: &TestHost) -> Reconnecting {
    let (xen, store) = host.domu();
    let quick = Backoff::new(Duration::from_millis(1), Duration::from_millis(20));
    ClientBuilder::new(DomId::DOM0, PATH)
        .reconnecting(&xen, &store)
        .backoff(quick)
}

#[test]
fn each_server_is_a_session_of_its_own() {
    let host = TestHost::new();
    let mut line = reconnecting(&host);
    for round in 1..=5u8 {
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut server = host.listen(0, 0);
                server.wait_connected(soon()).unwrap();
                server.write_all(&[round; 10]).unwrap();
                let mut got = [0; 3];
                server.read_exact(&mut got).unwrap();
                assert_eq!(got, [round; 3]);
                // And leaves, with half of an answer unsent.
            });
            let channel = line.session(soon()).unwrap();
            let mut got = [0; 5];
            channel.read_exact(&mut got).unwrap();
            assert_eq!(got, [round; 5]);
            channel.write_all(&[round; 3]).unwrap();
            assert_eq!(line.sessions(), u64::from(round));
        });
        // The server is gone, but what it sent can be read: the session continues.
        let channel = line.session(soon()).unwrap();
        let mut rest = [0; 5];
        channel.read_exact(&mut rest).unwrap();
        assert_eq!(rest, [round; 5]);
        assert_eq!(line.sessions(), u64::from(round));
    }
    let deadline = Instant::now() + Duration::from_millis(50);
    assert!(matches!(line.session(Some(deadline)), Err(Error::TimedOut)));
    assert!(Instant::now() >= deadline);
    drop(line);
    host.end();
}

#[test]
fn who_hangs_up_begins_clean_with_the_same_server() {
    let host = TestHost::new();
    let mut server = host.listen(0, 0);
    let mut line = reconnecting(&host);
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..10 {
                // `next_client` may have seen it come; then it may have gone since.
                match server.wait_connected(soon()) {
                    Ok(()) | Err(Error::Closed) => {}
                    Err(error) => panic!("{error}"),
                }
                let mut buf = [0; 10];
                // Half a question, then the end.
                while server.read_deadline(&mut buf, soon()).is_ok() {}
                server.next_client().unwrap();
            }
        });
        for round in 1..=10 {
            let channel = line.session(soon()).unwrap();
            channel.write_all(b"half a ques").unwrap();
            assert_eq!(channel.bytes_readable().unwrap(), 0);
            line.disconnect();
            assert_eq!(line.sessions(), round);
        }
    });
    drop((server, line));
    host.end();
}

#[test]
fn a_client_on_its_way_blocks_nobody() {
    let host = TestHost::new();
    let (xen, store) = host.domu();
    let builder = ClientBuilder::new(DomId::DOM0, PATH);
    let mut connecting = builder.clone().start(&xen, &store).unwrap();
    assert!(matches!(connecting.try_finish(), Err(Error::WouldBlock)));
    let server = host.listen(0, 0);
    assert!(
        poll_one(&connecting, 20_000),
        "nobody said that it is there"
    );
    let client = connecting.try_finish().unwrap();

    // The server is busy: it is looked for now and then.
    let mut second = builder.clone().start(&xen, &store).unwrap();
    assert!(matches!(second.try_finish(), Err(Error::WouldBlock)));
    drop(client);
    let late = soon().unwrap();
    let second = loop {
        assert!(Instant::now() < late && poll_one(&second, 20_000));
        match second.try_finish() {
            Err(Error::WouldBlock) => {}
            other => break other.unwrap(),
        }
    };
    // A deadline makes the descriptor readable too.
    let soon = builder.timeout(Duration::from_millis(20));
    let mut third = soon.start(&xen, &store).unwrap();
    let over = loop {
        // On a busy machine the deadline may have passed before the first look.
        match third.try_finish() {
            Err(Error::WouldBlock) => assert!(poll_one(&third, 20_000)),
            other => break other,
        }
    };
    assert!(matches!(over, Err(Error::TimedOut)), "{over:?}");
    drop((server, second, third, xen));
    host.end();
}

//! Both clients on a character device that stands for `/dev/xen/xenbus`: a pseudoterminal, which
//! passes bytes on as they are.

// The lint exempts test functions, but not the helpers beside them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use tokio::time::timeout;
use xen_store::wire::{Decoder, MsgType, encode};
use xen_store::{Error, Invalid, Store};

/// Nothing here takes that long unless an answer was lost.
const STUCK: Duration = Duration::from_secs(20);
/// The driver's buffer of 4096 bytes less the header.
const MAX_PAYLOAD: usize = 4080;

/// The client's end, and a daemon that ends with it and returns how many requests it answered.
fn device() -> (OwnedFd, JoinHandle<usize>) {
    let pty = openpty(None, None).unwrap();
    let mut raw = tcgetattr(&pty.slave).unwrap();
    cfmakeraw(&mut raw);
    tcsetattr(&pty.slave, SetArg::TCSANOW, &raw).unwrap();
    let master = File::from(pty.master);
    (pty.slave, thread::spawn(move || serve(master)))
}

/// Answers each read with its path, and watches as the kernel does: with request id 0.
fn serve(mut master: File) -> usize {
    let (mut decoder, mut answered) = (Decoder::new(), 0);
    let mut buf = [0; 4096];
    // Once the client has closed, the read fails.
    while let Ok(count @ 1..) = master.read(&mut buf) {
        let mut input = &buf[..count];
        let Some(request) = decoder.next(&mut input).unwrap() else {
            continue;
        };
        // The client had time to send another one.
        let mut fds = [PollFd::new(master.as_fd(), PollFlags::POLLIN)];
        let more = poll(&mut fds, PollTimeout::from(20_u8)).unwrap();
        let hung_up = fds[0].revents().unwrap().contains(PollFlags::POLLHUP);
        let is_alone = input.is_empty() && (more == 0 || hung_up);
        assert!(is_alone, "a request before the answer to {}", request.kind);
        let (id, answer): (_, &[u8]) = match request.kind {
            MsgType::READ => (request.req_id, request.payload.strip_suffix(b"\0").unwrap()),
            MsgType::WATCH | MsgType::UNWATCH => (0, b"OK\0"),
            _ => (request.req_id, b"OK\0"),
        };
        let mut reply = encode(request.kind, id, 0, &[answer]).unwrap();
        if request.kind == MsgType::WATCH {
            reply.extend(encode(MsgType::WATCH_EVENT, 0, 0, &[&request.payload]).unwrap());
        }
        // The client may have closed.
        let _ = master.write_all(&reply);
        answered += 1;
    }
    answered
}

#[test]
fn the_blocking_client_keeps_to_the_rules_of_the_device() {
    let (device, daemon) = device();
    // One handle only: the daemon ends when the last one is dropped.
    let store = Store::from_fd(device).unwrap().with_timeout(Some(STUCK));
    let values = store.read_many(&["a", "b", "c"]);
    let values: Vec<_> = values.into_iter().map(Result::unwrap).collect();
    assert_eq!(values, [b"a", b"b", b"c"]);
    let watch = store.watch("w").unwrap();
    let event = watch.next(Some(Instant::now() + STUCK)).unwrap().unwrap();
    assert_eq!(&*event.path, "w");
    // The path and its NUL are two bytes.
    store.write("v", vec![7; MAX_PAYLOAD - 2]).unwrap();
    let error = store.write("v", vec![7; MAX_PAYLOAD - 1]).unwrap_err();
    check_refused(&error);
    drop((watch, store));
    assert!(daemon.join().unwrap() >= 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_for_tokio_keeps_to_the_rules_of_the_device() {
    let (device, daemon) = device();
    let store = xen_store::tokio::Store::from_fd(device).unwrap();
    let values = timeout(STUCK, store.read_many(&["a", "b", "c"])).await;
    let values: Vec<_> = values.unwrap().into_iter().map(Result::unwrap).collect();
    assert_eq!(values, [b"a", b"b", b"c"]);
    let watch = timeout(STUCK, store.watch("w")).await.unwrap().unwrap();
    let event = timeout(STUCK, watch.next()).await.unwrap().unwrap();
    assert_eq!(&*event.path, "w");
    let write = store.write("v", vec![7; MAX_PAYLOAD - 2]);
    timeout(STUCK, write).await.unwrap().unwrap();
    let error = store
        .write("v", vec![7; MAX_PAYLOAD - 1])
        .await
        .unwrap_err();
    check_refused(&error);
    drop((watch, store));
    assert!(daemon.join().unwrap() >= 5);
}

/// The request is the caller's error, and was not sent.
#[track_caller]
fn check_refused(error: &Error) {
    let expected = Invalid::PayloadTooLong {
        len: MAX_PAYLOAD + 1,
        max: MAX_PAYLOAD,
    };
    assert!(
        matches!(error, Error::Invalid(refused) if *refused == expected),
        "{error:?}"
    );
}

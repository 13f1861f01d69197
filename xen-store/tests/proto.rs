//! The sans-I/O connection by itself: no descriptor, no thread, no clock.

// The lint exempts test functions, but not the helpers beside them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use xen_store::proto::{Connection, Failure, MAX_EXPIRED, Quirks, Ready, RequestId};
use xen_store::wire::{Decoder, Message, MsgType, PAYLOAD_MAX, encode};
use xen_store::{Error, Invalid, Violation, XsError};

/// Takes the next message out as a transport that takes everything would.
fn sent(connection: &mut Connection) -> Message {
    let mut outgoing = connection.take_outgoing().expect("a message");
    let message = Decoder::new()
        .next(&mut outgoing.unsent())
        .unwrap()
        .unwrap();
    assert!(outgoing.advance(usize::MAX));
    message
}

fn receive(connection: &mut Connection, kind: MsgType, id: u32, payload: &[u8]) -> Vec<Ready> {
    let mut ready = Vec::new();
    let bytes = encode(kind, id, 0, &[payload]).unwrap();
    // The reason for a failure is looked at by the tests that expect one.
    let _ = connection.receive(&bytes, &mut |r| ready.push(r));
    ready
}

fn read(connection: &mut Connection) -> RequestId {
    connection.request(MsgType::READ, 0, &[b"/a\0"]).unwrap()
}

#[test]
fn a_reply_is_announced_and_given_once() {
    let mut connection = Connection::new(Quirks::SOCKET);
    let id = read(&mut connection);
    assert!(connection.is_unsent(id));
    let wire_id = sent(&mut connection).req_id;
    assert!(!connection.is_unsent(id) && !connection.has_outgoing());
    assert!(connection.poll_reply(id).is_none());
    let ready = receive(&mut connection, MsgType::READ, wire_id, b"x");
    assert_eq!(ready, [Ready::Reply(id)]);
    assert_eq!(connection.poll_reply(id).unwrap().unwrap(), b"x");
    assert!(connection.poll_reply(id).is_none());
}

#[test]
fn a_short_write_is_continued_where_it_stopped() {
    let mut connection = Connection::new(Quirks::SOCKET);
    read(&mut connection);
    read(&mut connection);
    let mut stream = Vec::new();
    while let Some(mut outgoing) = connection.take_outgoing() {
        let piece = outgoing.unsent().len().min(5);
        stream.extend_from_slice(&outgoing.unsent()[..piece]);
        if !outgoing.advance(piece) {
            connection.put_back(outgoing);
        }
    }
    let (mut decoder, mut input) = (Decoder::new(), stream.as_slice());
    let ids: Vec<u32> = std::iter::from_fn(|| decoder.next(&mut input).unwrap())
        .map(|m| m.req_id)
        .collect();
    assert_eq!(ids, [1, 2]);
}

#[test]
fn a_reply_that_came_before_the_end_is_kept() {
    let mut connection = Connection::new(Quirks::SOCKET);
    let (first, second) = (read(&mut connection), read(&mut connection));
    let id = sent(&mut connection).req_id;
    receive(&mut connection, MsgType::READ, id, b"x");
    connection.fail(Failure::Closed);
    connection.fail(Failure::Os("later", libc::EIO));
    assert_eq!(connection.poll_reply(first).unwrap().unwrap(), b"x");
    assert!(matches!(
        connection.poll_reply(second),
        Some(Err(Error::Closed))
    ));
    assert!(matches!(
        connection.request(MsgType::READ, 0, &[]),
        Err(Error::Closed)
    ));
    assert!(!connection.has_outgoing());
}

/// The kernel's driver answers WATCH and UNWATCH itself; older ones leave the id 0.
#[test]
fn xenbus_may_answer_watches_without_an_id() {
    let mut connection = Connection::new(Quirks::XENBUS);
    let watch = connection
        .request(MsgType::WATCH, 0, &[b"/a\0", b"1\0"])
        .unwrap();
    let read = read(&mut connection);
    let unwatch = connection
        .request(MsgType::UNWATCH, 0, &[b"/b\0", b"2\0"])
        .unwrap();
    for kind in [MsgType::WATCH, MsgType::UNWATCH] {
        receive(&mut connection, kind, 0, b"OK\0");
    }
    assert!(connection.poll_reply(watch).unwrap().is_ok());
    assert!(connection.poll_reply(unwatch).unwrap().is_ok());
    assert!(connection.poll_reply(read).is_none());
    assert_eq!(connection.failure(), None);
    receive(&mut connection, MsgType::WATCH, 0, b"OK\0");
    let expect = Violation::UnknownRequest {
        kind: MsgType::WATCH,
        req_id: 0,
    };
    assert_eq!(connection.failure(), Some(Failure::Protocol(expect)));
}

/// Newer kernels echo the id; then it decides.
#[test]
fn xenbus_watches_with_ids_match_by_id() {
    let mut connection = Connection::new(Quirks::XENBUS);
    let first = connection
        .request(MsgType::WATCH, 0, &[b"/a\0", b"1\0"])
        .unwrap();
    let second = connection
        .request(MsgType::WATCH, 0, &[b"/b\0", b"2\0"])
        .unwrap();
    let first_id = sent(&mut connection).req_id;
    receive(&mut connection, MsgType::WATCH, first_id, b"OK\0");
    assert!(connection.poll_reply(first).is_some());
    sent(&mut connection);
    assert!(connection.poll_reply(second).is_none());
    receive(&mut connection, MsgType::WATCH, 0, b"OK\0");
    assert!(connection.poll_reply(second).is_some());
}

/// Its buffer of 4096 bytes holds the header too.
#[test]
fn xenbus_takes_16_bytes_less() {
    let mut connection = Connection::new(Quirks::XENBUS);
    let most = vec![0; PAYLOAD_MAX - 16];
    connection.request(MsgType::WRITE, 0, &[&most]).unwrap();
    let error = connection
        .request(MsgType::WRITE, 0, &[&most, b"x"])
        .unwrap_err();
    let expect = Invalid::PayloadTooLong {
        len: PAYLOAD_MAX - 15,
        max: PAYLOAD_MAX - 16,
    };
    assert!(
        matches!(error, Error::Invalid(invalid) if invalid == expect),
        "{error:?}"
    );
}

/// It reports a refused watch as the errno of `write`.
#[test]
fn a_rejected_message_is_that_requests_failure_only() {
    let mut connection = Connection::new(Quirks::XENBUS);
    let watch = connection
        .request(MsgType::WATCH, 0, &[b"/a\0", b"1\0"])
        .unwrap();
    let other = connection
        .request(MsgType::WATCH, 0, &[b"/b\0", b"2\0"])
        .unwrap();
    let mut ready = Vec::new();
    for errno in [libc::EACCES, libc::ENODEV] {
        let message = connection.take_outgoing().unwrap();
        connection.reject(&message, errno, &mut |r| ready.push(r));
    }
    assert_eq!(ready, [Ready::Reply(watch), Ready::Reply(other)]);
    let denied = connection.poll_reply(watch).unwrap().unwrap_err();
    assert!(matches!(
        denied,
        Error::Daemon {
            op: MsgType::WATCH,
            code: XsError::EACCES
        }
    ));
    let odd = connection.poll_reply(other).unwrap().unwrap_err();
    assert_eq!(odd.errno(), libc::ENODEV);
    assert_eq!(connection.failure(), None);
    read(&mut connection);
}

#[test]
fn an_unsent_request_is_taken_back_and_a_sent_one_forgotten_with_its_reply() {
    let mut connection = Connection::new(Quirks::SOCKET);
    let unsent = read(&mut connection);
    assert!(connection.cancel(unsent, true, None));
    assert!(!connection.has_outgoing());
    let late = read(&mut connection);
    let id = sent(&mut connection).req_id;
    assert!(!connection.cancel(late, true, None));
    assert_eq!(receive(&mut connection, MsgType::READ, id, b"x"), []);
    assert_eq!(connection.failure(), None);
}

#[test]
fn a_daemon_that_answers_nothing_is_given_up() {
    let mut connection = Connection::new(Quirks::SOCKET);
    for _ in 0..=MAX_EXPIRED {
        assert_eq!(connection.failure(), None);
        let id = read(&mut connection);
        sent(&mut connection);
        connection.cancel(id, true, None);
    }
    let expect = Violation::Unresponsive {
        expired: MAX_EXPIRED + 1,
    };
    assert_eq!(connection.failure(), Some(Failure::Protocol(expect)));
}

#[test]
fn the_first_event_is_announced_and_the_rest_wait_quietly() {
    let mut connection = Connection::new(Quirks::SOCKET);
    let watch = connection.add_watch("/w");
    let event = |path: &str| format!("{path}\0{}\0", Connection::token(watch));
    let ready = receive(
        &mut connection,
        MsgType::WATCH_EVENT,
        0,
        event("/w/a").as_bytes(),
    );
    assert_eq!(ready, [Ready::Event(watch)]);
    let ready = receive(
        &mut connection,
        MsgType::WATCH_EVENT,
        0,
        event("/w/b").as_bytes(),
    );
    assert_eq!(ready, []);
    assert_eq!(
        &*connection.poll_event(watch).unwrap().unwrap().path,
        "/w/a"
    );
    assert!(connection.has_event(watch));
    connection.remove_watch(watch);
    assert!(connection.poll_event(watch).is_none());
}

/// The answer came between the end of the wait and the cancel: what was granted goes back too.
#[test]
fn an_answer_nobody_took_is_given_back_on_cancel() {
    let mut connection = Connection::new(Quirks::SOCKET);
    let start = connection
        .request(MsgType::TRANSACTION_START, 0, &[b"\0"])
        .unwrap();
    let id = sent(&mut connection).req_id;
    receive(&mut connection, MsgType::TRANSACTION_START, id, b"17\0");
    connection.cancel(start, true, None);
    let end = sent(&mut connection);
    assert_eq!((end.kind, end.tx_id), (MsgType::TRANSACTION_END, 17));
    assert_eq!(end.payload, b"F\0");

    let watch = connection.add_watch("/w");
    let set = connection
        .request(MsgType::WATCH, 0, &[b"/w\0", b"1\0"])
        .unwrap();
    let id = sent(&mut connection).req_id;
    receive(&mut connection, MsgType::WATCH, id, b"OK\0");
    connection.cancel(set, true, Some(watch));
    let unwatch = sent(&mut connection);
    assert_eq!(
        (unwatch.kind, unwatch.payload.as_slice()),
        (MsgType::UNWATCH, &b"/w\x001\0"[..])
    );
}

#[test]
fn cancelling_what_was_answered_and_taken_does_nothing() {
    let mut connection = Connection::new(Quirks::SOCKET);
    let id = read(&mut connection);
    let wire_id = sent(&mut connection).req_id;
    receive(&mut connection, MsgType::READ, wire_id, b"x");
    connection.poll_reply(id).unwrap().unwrap();
    assert!(!connection.cancel(id, true, None));
    assert!(!connection.has_outgoing());
}

#[test]
fn on_the_device_a_message_waits_for_the_reply_to_the_one_before() {
    let mut connection = Connection::new(Quirks::XENBUS);
    let first = read(&mut connection);
    connection
        .send_detached(MsgType::TRANSACTION_END, 7, &[b"F\0"])
        .unwrap();
    let last = read(&mut connection);
    assert!(connection.has_outgoing());
    let id = sent(&mut connection).req_id;
    assert!(!connection.has_outgoing() && connection.take_outgoing().is_none());

    // An event is no reply.
    receive(&mut connection, MsgType::WATCH_EVENT, 0, b"/a\0ff\0");
    assert!(connection.take_outgoing().is_none());

    receive(&mut connection, MsgType::READ, id, b"x");
    assert_eq!(connection.poll_reply(first).unwrap().unwrap(), b"x");
    // One that nobody asks about counts as well.
    let id = sent(&mut connection).req_id;
    assert!(connection.take_outgoing().is_none());
    receive(&mut connection, MsgType::ERROR, id, b"ENOENT\0");

    // One that was not written, and one that was refused, leave the way free.
    let outgoing = connection.take_outgoing().unwrap();
    assert!(connection.take_outgoing().is_none());
    connection.put_back(outgoing);
    let outgoing = connection.take_outgoing().unwrap();
    connection.reject(&outgoing, libc::EINVAL, &mut |_| ());
    assert!(connection.poll_reply(last).unwrap().is_err());
    read(&mut connection);
    assert!(connection.has_outgoing());
    sent(&mut connection);

    // One whose requester gave up is still on its way.
    let waiting = read(&mut connection);
    let answer = connection.cancel(waiting, true, None);
    assert!(answer, "it was never sent");
    assert!(connection.take_outgoing().is_none());
}

//! The sans-I/O connection by itself: no descriptor, no thread, no clock.

// The lint exempts test functions, but not the helpers beside them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use xen_store::proto::{
    Connection, Failure, MAX_OVERTAKEN, MAX_SKIPPED, MAX_UNANSWERED, Quirks, Ready, RequestId,
};
use xen_store::wire::{Decoder, Header, Message, MsgType, PAYLOAD_MAX, encode};
use xen_store::{Error, Invalid, ProtocolError, XsError};

/// Takes the next message out as a transport that takes everything would.
fn sent(connection: &mut Connection) -> Message {
    let mut outgoing = connection.poll_outgoing().expect("a message");
    let message = Decoder::new()
        .next(&mut outgoing.unsent())
        .unwrap()
        .unwrap();
    assert!(outgoing.advance(usize::MAX));
    message
}

fn receive(connection: &mut Connection, kind: MsgType, id: u32, payload: &[u8]) -> Vec<Ready> {
    let bytes = encode(kind, id, 0, &[payload]).unwrap();
    // The reason for a failure is looked at by the tests that expect one.
    let _ = connection.handle_input(&bytes);
    ready(connection)
}

fn ready(connection: &mut Connection) -> Vec<Ready> {
    std::iter::from_fn(|| connection.poll_ready()).collect()
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
    while let Some(mut outgoing) = connection.poll_outgoing() {
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
    connection.handle_failure(Failure::Closed);
    connection.handle_failure(Failure::Os("later", libc::EIO));
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
    let expect = ProtocolError::UnknownRequest {
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
    for errno in [libc::EACCES, libc::ENODEV] {
        let message = connection.poll_outgoing().unwrap();
        connection.handle_rejection(&message, errno);
    }
    assert_eq!(
        ready(&mut connection),
        [Ready::Reply(watch), Ready::Reply(other)]
    );
    let denied = connection.poll_reply(watch).unwrap().unwrap_err();
    assert!(matches!(
        denied,
        Error::Daemon {
            op: MsgType::WATCH,
            code: XsError::EACCES
        }
    ));
    let odd = connection.poll_reply(other).unwrap().unwrap_err();
    assert_eq!(odd.errno(), Some(libc::ENODEV));
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

/// Its transaction would stay open with the daemon, which allows a domain only a few.
#[test]
fn the_end_of_a_transaction_that_is_given_up_unsent_becomes_an_abort() {
    for end in [b"T\0", b"F\0"] {
        let mut connection = Connection::new(Quirks::SOCKET);
        let end = connection
            .request(MsgType::TRANSACTION_END, 17, &[end])
            .unwrap();
        assert!(connection.cancel(end, true, None), "it was never sent");
        let abort = sent(&mut connection);
        assert_eq!((abort.kind, abort.tx_id), (MsgType::TRANSACTION_END, 17));
        assert_eq!(abort.payload, b"F\0");
        assert!(!connection.has_outgoing());
        let answered = receive(
            &mut connection,
            MsgType::TRANSACTION_END,
            abort.req_id,
            b"OK\0",
        );
        assert_eq!(answered, []);
        assert_eq!(connection.failure(), None);
    }
}

/// A driver that asks once more after it gave up must not end the connection.
#[test]
fn asking_for_the_reply_to_a_cancelled_request_does_not_forget_it() {
    let mut connection = Connection::new(Quirks::SOCKET);
    let start = connection
        .request(MsgType::TRANSACTION_START, 0, &[b"\0"])
        .unwrap();
    let id = sent(&mut connection).req_id;
    connection.cancel(start, true, None);
    assert!(connection.poll_reply(start).is_none());
    receive(&mut connection, MsgType::TRANSACTION_START, id, b"17\0");
    assert_eq!(connection.failure(), None);
    assert_eq!(sent(&mut connection).tx_id, 17, "it is given back");
    assert!(connection.poll_reply(start).is_none());
}

/// Requests that are given up say nothing about the daemon, which may not have had its turn yet.
#[test]
fn giving_up_any_number_of_requests_ends_no_connection() {
    let mut connection = Connection::new(Quirks::SOCKET);
    let mut sent_ids = Vec::new();
    for _ in 0..100 * MAX_UNANSWERED {
        let id = read(&mut connection);
        if connection.has_outgoing() {
            sent_ids.push(sent(&mut connection).req_id);
        }
        connection.cancel(id, true, None);
    }
    assert_eq!(connection.failure(), None);
    assert_eq!(sent_ids.len(), MAX_UNANSWERED, "the rest was not sent");

    let waiting = read(&mut connection);
    assert!(!connection.has_outgoing(), "until answers are read");
    receive(&mut connection, MsgType::READ, sent_ids[0], b"late");
    let id = sent(&mut connection).req_id;
    for &late in &sent_ids[1..] {
        assert_eq!(receive(&mut connection, MsgType::READ, late, b"late"), []);
    }
    receive(&mut connection, MsgType::READ, id, b"x");
    assert_eq!(connection.poll_reply(waiting).unwrap().unwrap(), b"x");
}

#[test]
fn a_message_that_was_begun_is_finished_whatever_is_unanswered() {
    let mut connection = Connection::new(Quirks::SOCKET);
    read(&mut connection);
    let mut begun = connection.poll_outgoing().unwrap();
    assert!(!begun.advance(5));
    connection.put_back(begun);
    let mut rest = Vec::new();
    for _ in 0..MAX_UNANSWERED {
        rest.push(read(&mut connection));
    }
    let mut begun = connection.poll_outgoing().unwrap();
    for id in rest {
        sent(&mut connection);
        connection.cancel(id, true, None);
    }
    assert!(!begun.advance(5));
    connection.put_back(begun);
    assert!(connection.has_outgoing());
}

/// A daemon answers in order, so what later answers have overtaken is not answered any more.
#[test]
fn a_daemon_that_skips_requests_is_given_up() {
    let mut connection = Connection::new(Quirks::SOCKET);
    let mut aborts = 0;
    while connection.failure().is_none() {
        let start = connection
            .request(MsgType::TRANSACTION_START, 0, &[b"\0"])
            .unwrap();
        let id = sent(&mut connection).req_id;
        let told = receive(&mut connection, MsgType::TRANSACTION_START, id, b"7\0");
        if connection.failure().is_some() {
            assert_eq!(told, [Ready::Reply(start), Ready::Ended]);
            break;
        }
        connection.poll_reply(start).unwrap().unwrap();
        connection
            .send_detached(MsgType::TRANSACTION_END, 7, &[b"F\0"])
            .unwrap();
        sent(&mut connection);
        aborts += 1;
        assert!(aborts <= MAX_OVERTAKEN + 1);
    }
    let expect = ProtocolError::Unresponsive {
        expired: MAX_OVERTAKEN + 1,
    };
    assert_eq!(connection.failure(), Some(Failure::Protocol(expect)));
}

#[test]
fn a_reply_that_is_too_long_ends_its_request_only() {
    let mut connection = Connection::new(Quirks::SOCKET);
    for len in [PAYLOAD_MAX + 1, 66_000, 1 << 20] {
        let (long, next) = (read(&mut connection), read(&mut connection));
        let (long_id, next_id) = (sent(&mut connection).req_id, sent(&mut connection).req_id);
        connection.handle_input(&header(long_id, len)).unwrap();
        assert_eq!(ready(&mut connection), [Ready::Reply(long)]);
        let error = connection.poll_reply(long).unwrap().unwrap_err();
        assert!(
            matches!(error, Error::TooLong { op: MsgType::READ, len: l } if l == len),
            "{error:?}"
        );
        assert!(!error.is_fatal());
        // Skipped bytes that look like a message are none.
        let mut payload = encode(MsgType::READ, next_id, 0, &[b"forged"]).unwrap();
        payload.resize(len, 0);
        for piece in payload.chunks(1000) {
            connection.handle_input(piece).unwrap();
            assert_eq!(ready(&mut connection), []);
        }
        receive(&mut connection, MsgType::READ, next_id, b"x");
        assert_eq!(connection.poll_reply(next).unwrap().unwrap(), b"x");
    }
    read(&mut connection);
    let id = sent(&mut connection).req_id;
    let len = MAX_SKIPPED + 1;
    let failure = connection.handle_input(&header(id, len)).unwrap_err();
    assert_eq!(failure, Failure::Protocol(ProtocolError::TooLong { len }));
}

fn header(req_id: u32, len: usize) -> [u8; Header::SIZE] {
    let header = Header {
        kind: MsgType::READ,
        req_id,
        tx_id: 0,
        len: len.try_into().unwrap(),
    };
    header.to_bytes()
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
    assert!(!connection.has_outgoing() && connection.poll_outgoing().is_none());

    // An event is no reply.
    receive(&mut connection, MsgType::WATCH_EVENT, 0, b"/a\0ff\0");
    assert!(connection.poll_outgoing().is_none());

    receive(&mut connection, MsgType::READ, id, b"x");
    assert_eq!(connection.poll_reply(first).unwrap().unwrap(), b"x");
    // A request that nobody asks about counts as well.
    let id = sent(&mut connection).req_id;
    assert!(connection.poll_outgoing().is_none());
    receive(&mut connection, MsgType::ERROR, id, b"ENOENT\0");

    // An unwritten request and a refused one leave the way free.
    let outgoing = connection.poll_outgoing().unwrap();
    assert!(connection.poll_outgoing().is_none());
    connection.put_back(outgoing);
    let outgoing = connection.poll_outgoing().unwrap();
    connection.handle_rejection(&outgoing, libc::EINVAL);
    assert!(connection.poll_reply(last).unwrap().is_err());
    read(&mut connection);
    assert!(connection.has_outgoing());
    sent(&mut connection);

    // One whose requester gave up is still on its way.
    let waiting = read(&mut connection);
    let answer = connection.cancel(waiting, true, None);
    assert!(answer, "it was never sent");
    assert!(connection.poll_outgoing().is_none());
}

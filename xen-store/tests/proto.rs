//! The sans-I/O connection by itself: no descriptor, no thread, no clock.

// The lint exempts test functions, but not the helpers beside them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use xen_store::proto::{
    Connection, Failure, MAX_OVERTAKEN, MAX_SKIPPED, MAX_UNANSWERED, Quirks, Ready, RequestId,
    WatchId,
};
use xen_store::wire::{Decoder, Header, Message, MsgType, PAYLOAD_MAX, encode};
use xen_store::{Error, Invalid, ProtocolError, Repeat, XsError};

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

/// Requests that are given up are no evidence about the daemon, which may not have had its turn
/// yet.
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
    // A request without a waiter counts as well.
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

/// A lost connection that survives, and what `requests` left pending on it.
fn lost(repeat: Repeat, requests: impl FnOnce(&mut Connection)) -> Connection {
    let mut connection = Connection::new(Quirks::SOCKET);
    connection.survive(repeat);
    requests(&mut connection);
    connection.handle_failure(Failure::Closed);
    assert_eq!(connection.loss(), Some(Failure::Closed));
    assert_eq!(connection.failure(), None);
    assert!(!connection.has_outgoing(), "there is no transport");
    assert_eq!(ready(&mut connection).last(), Some(&Ready::Lost));
    connection
}

fn write(connection: &mut Connection) -> RequestId {
    connection
        .request(MsgType::WRITE, 0, &[b"/a\0", b"x"])
        .unwrap()
}

/// Takes the answer, which has to be [`Error::Lost`]. Returns `may_be_done` and the transaction.
#[track_caller]
fn lost_answer(connection: &mut Connection, id: RequestId) -> (bool, Option<u32>) {
    match connection.poll_reply(id) {
        Some(Err(Error::Lost {
            transaction,
            may_be_done,
            ..
        })) => (may_be_done, transaction),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_lost_request_may_be_done_only_if_it_was_sent_whole() {
    let mut ids = Vec::new();
    let mut connection = lost(Repeat::Never, |connection| {
        ids = (0..3).map(|_| write(connection)).collect();
        sent(connection);
        let mut begun = connection.poll_outgoing().unwrap();
        assert!(!begun.advance(5));
        connection.put_back(begun);
    });
    let may_be_done = ids.iter().map(|id| lost_answer(&mut connection, *id).0);
    assert_eq!(may_be_done.collect::<Vec<_>>(), [true, false, false]);
    let later = write(&mut connection);
    assert!(connection.poll_reply(later).is_none(), "it waits");
    connection.handle_reconnected(Quirks::SOCKET);
    let message = sent(&mut connection);
    receive(&mut connection, MsgType::WRITE, message.req_id, b"OK\0");
    assert_eq!(connection.poll_reply(later).unwrap().unwrap(), b"OK\0");
}

/// The daemon undoes a transaction without a commit.
#[test]
fn of_a_lost_transaction_only_the_commit_may_be_done() {
    let mut ids = Vec::new();
    let mut connection = lost(Repeat::Idempotent, |connection| {
        for (kind, payload) in [
            (MsgType::WRITE, &b"/a\0x"[..]),
            (MsgType::TRANSACTION_END, b"T\0"),
        ] {
            ids.push(connection.request(kind, 7, &[payload]).unwrap());
            sent(connection);
        }
    });
    let answers = ids.iter().map(|id| lost_answer(&mut connection, *id));
    assert_eq!(
        answers.collect::<Vec<_>>(),
        [(false, Some(7)), (true, Some(7))]
    );
}

#[test]
fn the_policy_decides_which_requests_are_sent_again() {
    let sent_again = |repeat| {
        let (mut read_id, mut write_id, mut control_id) = (None, None, None);
        let mut connection = lost(repeat, |connection| {
            read_id = Some(read(connection));
            write_id = Some(write(connection));
            sent(connection);
            sent(connection);
            // Not idempotent, and not sent.
            control_id = Some(
                connection
                    .request(MsgType::CONTROL, 0, &[b"check\0"])
                    .unwrap(),
            );
        });
        connection.handle_reconnected(Quirks::SOCKET);
        let kinds: Vec<MsgType> = std::iter::from_fn(|| {
            connection
                .has_outgoing()
                .then(|| sent(&mut connection).kind)
        })
        .collect();
        let waits = [read_id, write_id, control_id].map(|id| connection.poll_reply(id.unwrap()));
        let waiting = waits.iter().filter(|answer| answer.is_none()).count();
        assert_eq!(waiting, kinds.len(), "each is sent again or has its answer");
        kinds
    };
    use MsgType as M;
    assert_eq!(sent_again(Repeat::Never), []);
    assert_eq!(sent_again(Repeat::Reads), [M::READ, M::CONTROL]);
    assert_eq!(
        sent_again(Repeat::Idempotent),
        [M::READ, M::WRITE, M::CONTROL]
    );
}

/// A watch that is set, and its number.
fn granted(connection: &mut Connection, path: &str) -> WatchId {
    let watch = connection.add_watch(path);
    let token = Connection::token(watch);
    let fields: [&[u8]; 4] = [path.as_bytes(), b"\0", token.as_bytes(), b"\0"];
    let id = connection.request(MsgType::WATCH, 0, &fields).unwrap();
    let message = sent(connection);
    receive(connection, MsgType::WATCH, message.req_id, b"OK\0");
    connection.poll_reply(id).unwrap().unwrap();
    watch
}

#[test]
fn watches_are_set_again_before_anything_else_is_sent() {
    let mut watches = Vec::new();
    let mut connection = lost(Repeat::Reads, |connection| {
        watches = ["/w", "/x"].map(|path| granted(connection, path)).to_vec();
        read(connection);
        sent(connection);
    });
    assert!(connection.poll_event(watches[0]).is_none(), "not yet");
    connection.handle_reconnected(Quirks::SOCKET);
    assert_eq!(
        ready(&mut connection),
        [Ready::Event(watches[0]), Ready::Event(watches[1])]
    );
    for (watch, path) in watches.iter().zip(["/w", "/x"]) {
        let event = connection.poll_event(*watch).unwrap().unwrap();
        assert_eq!(&*event.path, path);
        assert!(event.rescan && event.reconnected);
        assert!(connection.poll_event(*watch).is_none());
        let message = sent(&mut connection);
        let token = Connection::token(*watch);
        assert_eq!(message.kind, MsgType::WATCH);
        assert_eq!(message.payload, format!("{path}\0{token}\0").as_bytes());
        receive(&mut connection, MsgType::WATCH, message.req_id, b"OK\0");
    }
    assert_eq!(sent(&mut connection).kind, MsgType::READ);
    // A second loss, and one of the two is gone by then.
    connection.remove_watch(watches[0]);
    connection.handle_failure(Failure::Closed);
    connection.handle_reconnected(Quirks::SOCKET);
    assert!(sent(&mut connection).payload.starts_with(b"/x\0"));
    assert_eq!(sent(&mut connection).kind, MsgType::READ);
    assert!(!connection.has_outgoing());
}

#[test]
fn a_watch_that_is_refused_on_the_next_connection_has_the_error() {
    let mut watch = None;
    let mut connection = lost(Repeat::Never, |connection| {
        watch = Some(granted(connection, "/w"));
    });
    let watch = watch.unwrap();
    connection.handle_reconnected(Quirks::SOCKET);
    let message = sent(&mut connection);
    connection.poll_event(watch).unwrap().unwrap();
    ready(&mut connection);
    let notices = receive(&mut connection, MsgType::ERROR, message.req_id, b"E2BIG\0");
    assert_eq!(notices, [Ready::Event(watch)]);
    let error = connection.poll_event(watch).unwrap().unwrap_err();
    assert!(
        matches!(
            error,
            Error::Daemon {
                op: MsgType::WATCH,
                code: XsError::E2BIG
            }
        ),
        "{error:?}"
    );
    // The next connection may have room.
    connection.handle_failure(Failure::Closed);
    connection.handle_reconnected(Quirks::SOCKET);
    let event = connection.poll_event(watch).unwrap().unwrap();
    assert!(event.reconnected);
    assert!(connection.poll_event(watch).is_none());
}

/// The bytes of a lost connection are not those of the next one.
#[test]
fn half_a_message_is_lost_with_its_connection() {
    let mut id = None;
    let mut connection = lost(Repeat::Reads, |connection| {
        id = Some(read(connection));
        let wire_id = sent(connection).req_id;
        let bytes = encode(MsgType::READ, wire_id, 0, &[b"old"]).unwrap();
        connection.handle_input(&bytes[..17]).unwrap();
    });
    connection.handle_reconnected(Quirks::SOCKET);
    let wire_id = sent(&mut connection).req_id;
    receive(&mut connection, MsgType::READ, wire_id, b"new");
    assert_eq!(connection.poll_reply(id.unwrap()).unwrap().unwrap(), b"new");
}

/// Its place in the queue is taken by the same request, to be sent again.
#[test]
fn a_message_that_comes_back_after_the_loss_is_dropped() {
    let mut connection = Connection::new(Quirks::SOCKET);
    connection.survive(Repeat::Reads);
    read(&mut connection);
    let begun = connection.poll_outgoing().unwrap();
    connection.handle_failure(Failure::Closed);
    connection.handle_reconnected(Quirks::SOCKET);
    connection.put_back(begun);
    sent(&mut connection);
    assert!(!connection.has_outgoing(), "it is sent twice");
}

#[test]
fn a_violation_and_giving_up_finish_a_connection_that_survives_losses() {
    let mut connection = lost(Repeat::Reads, |_| {});
    let id = read(&mut connection);
    connection.give_up(Failure::Closed);
    assert_eq!(ready(&mut connection), [Ready::Ended]);
    assert!(matches!(
        connection.poll_reply(id),
        Some(Err(Error::Closed))
    ));
    connection.handle_reconnected(Quirks::SOCKET);
    assert_eq!(connection.failure(), Some(Failure::Closed));

    let mut connection = Connection::new(Quirks::SOCKET);
    connection.survive(Repeat::Reads);
    receive(&mut connection, MsgType::READ, 99, b"x");
    assert!(matches!(
        connection.failure(),
        Some(Failure::Protocol(ProtocolError::UnknownRequest { .. }))
    ));
}

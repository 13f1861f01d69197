//! Many tasks on one connection.

use std::future::{Future, poll_fn};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use nix::sys::socket::Backlog;
use tokio::time::timeout;
use xen_store::Error;
use xen_store::proto::MAX_UNANSWERED;
use xen_store::tokio::Store as AsyncStore;
use xen_store::wire::{Decoder, Message, MsgType, encode};

use crate::runtimes::on_each;
use crate::server;

/// Nothing here takes that long unless a task was not woken.
const STUCK: Duration = Duration::from_secs(20);

/// Two workers that read the socket must not hand the bytes over in another order.
#[test]
fn each_task_gets_the_value_of_its_own_node() {
    const TASKS: usize = 64;
    const READS: usize = 150;
    on_each(|| async {
        let (_server, store) = server();
        for task in 0..TASKS {
            store.write(&path(task), value(task)).await.unwrap();
        }
        let tasks: Vec<_> = (0..TASKS)
            .map(|task| {
                let store = store.clone();
                tokio::spawn(async move {
                    for _ in 0..READS {
                        let read = store.read(&path(task)).await.unwrap();
                        assert_eq!(read.escape_ascii().to_string(), value(task));
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
}

fn path(task: usize) -> String {
    format!("/race/{task}")
}

/// 400 bytes that name the node they belong to.
fn value(task: usize) -> String {
    format!("{task:04}").repeat(100)
}

/// Each future is polled once and dropped, before the daemon had a chance to answer.
#[test]
fn futures_polled_once_end_no_healthy_connection() {
    on_each(|| async {
        let (_server, store) = server();
        store.write("/a", "x").await.unwrap();
        for _ in 0..5 {
            for _ in 0..MAX_UNANSWERED + 1 {
                let read = store.read("/a");
                let mut read = pin!(read);
                // In the same task, so that nothing else runs in between on current_thread.
                let _ = poll_fn(|cx| Poll::Ready(read.as_mut().poll(cx))).await;
            }
            assert_eq!(store.read("/a").await.unwrap(), b"x");
        }
    });
}

/// A future that is polled once and then kept holds up no other.
#[test]
fn a_future_that_is_never_polled_again_holds_nobody_up() {
    on_each(|| async {
        let (_server, store) = server();
        store.write("/a", "x").await.unwrap();
        let kept = store.read("/a");
        let mut kept = pin!(kept);
        let polled = poll_fn(|cx| Poll::Ready(kept.as_mut().poll(cx))).await;
        for _ in 0..100 {
            assert_eq!(store.read("/a").await.unwrap(), b"x");
        }
        // On a busy machine the answer can be there at the first poll.
        let answer = match polled {
            Poll::Ready(answer) => answer,
            Poll::Pending => kept.await,
        };
        assert_eq!(answer.unwrap(), b"x");
    });
}

/// Some tasks give up all the time, by a timeout or by being dropped; the others lose nothing.
#[test]
fn cancelled_requests_and_watches_do_no_harm_to_others() {
    on_each(|| async {
        let (server, store) = server();
        let mut tasks = Vec::new();
        for task in 0..8 {
            store.write(&path(task), value(task)).await.unwrap();
            let hasty = store.clone();
            tasks.push(tokio::spawn(async move {
                for n in 0..100_u64 {
                    let soon = Duration::from_micros(n % 7 * 20);
                    let _ = timeout(soon, hasty.read(&path(task))).await;
                    let _ = timeout(soon, hasty.watch(&path(task))).await;
                    let _ = timeout(soon, hasty.transaction()).await;
                }
            }));
            let patient = store.clone();
            tasks.push(tokio::spawn(async move {
                for _ in 0..100 {
                    let read = patient.read(&path(task)).await.unwrap();
                    assert_eq!(read.escape_ascii().to_string(), value(task));
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        // Once this is answered, what was granted too late has been given back.
        store.read(&path(0)).await.unwrap();
        store.read(&path(0)).await.unwrap();
        let stats = server.stats();
        assert_eq!((stats.watches, stats.transactions), (0, 0));
    });
}

#[test]
fn the_end_of_the_connection_reaches_every_task() {
    on_each(|| async {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let store = AsyncStore::from_fd(ours.into()).unwrap();
        let tasks: Vec<_> = (0..64)
            .map(|_| {
                let store = store.clone();
                tokio::spawn(async move { store.read("/a").await.unwrap_err() })
            })
            .collect();
        tokio::task::yield_now().await;
        let reply = encode(MsgType::READ, 4711, 0, &[b"x"]).unwrap();
        theirs.write_all(&reply).unwrap();
        for task in tasks {
            let error = timeout(STUCK, task).await.expect("a task was not told");
            let error = error.unwrap();
            assert!(matches!(error, Error::Protocol(_)), "{error:?}");
        }
    });
}

/// A task that always finds events lets the others of its thread run.
#[test]
fn a_watch_that_always_has_events_starves_nobody() {
    on_each(|| async {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let store = AsyncStore::from_fd(ours.into()).unwrap();
        let flood = std::thread::spawn(move || {
            let request = receive(&mut theirs);
            let token = request.payload["/w\0".len()..].to_vec();
            theirs
                .write_all(&encode(MsgType::WATCH, request.req_id, 0, &[b"OK\0"]).unwrap())
                .unwrap();
            let mut many = Vec::new();
            for n in 0..500 {
                let path = format!("/w/{n}\0");
                let parts: [&[u8]; 2] = [path.as_bytes(), &token];
                many.extend(encode(MsgType::WATCH_EVENT, 0, 0, &parts).unwrap());
            }
            while theirs.write_all(&many).is_ok() {}
        });
        let watch = store.watch("/w").await.unwrap();
        let endless = async {
            loop {
                watch.next().await.unwrap();
            }
        };
        timeout(Duration::from_millis(50), endless)
            .await
            .unwrap_err();
        drop((watch, store));
        flood.join().unwrap();
    });
}

/// The first message on `stream`.
fn receive(stream: &mut UnixStream) -> Message {
    let (mut decoder, mut byte) = (Decoder::new(), [0]);
    loop {
        stream.read_exact(&mut byte).unwrap();
        if let Some(message) = decoder.next(&mut &byte[..]).unwrap() {
            return message;
        }
    }
}

#[test]
fn the_last_handle_closes_the_connection_at_once() {
    on_each(|| async {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let store = AsyncStore::from_fd(ours.into()).unwrap();
        tokio::task::yield_now().await;
        drop(store.clone());
        theirs.set_nonblocking(true).unwrap();
        let open = theirs.read(&mut [0]).unwrap_err();
        assert_eq!(open.kind(), std::io::ErrorKind::WouldBlock);
        drop(store);
        theirs.set_nonblocking(false).unwrap();
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
    });
}

/// A full backlog holds up only the task that connects, on one thread.
#[test]
fn connecting_to_a_daemon_with_a_full_backlog_blocks_no_thread() {
    let (done, told) = std::sync::mpsc::channel();
    // A thread of its own: one that is blocked fails the test and does not hang it.
    std::thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().unwrap();
        runtime.block_on(connect_to_a_full_backlog());
        done.send(()).unwrap();
    });
    told.recv_timeout(2 * STUCK).expect("the thread is blocked");
}

async fn connect_to_a_full_backlog() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    nix::sys::socket::listen(&listener, Backlog::new(0).unwrap()).unwrap();
    let mut waiting = Vec::new();
    let connects = loop {
        let connecting = tokio::spawn({
            let socket = socket.clone();
            async move { AsyncStore::connect(&socket).await.unwrap() }
        });
        // Other tasks continue: this timer is one.
        tokio::time::sleep(Duration::from_millis(20)).await;
        if !connecting.is_finished() {
            break connecting;
        }
        waiting.push(connecting.await.unwrap());
        assert!(waiting.len() < 100, "the backlog is full");
    };
    let clients = waiting.len() + 1;
    let daemon = std::thread::spawn(move || {
        let accept = |_| listener.accept().unwrap();
        (0..clients).map(accept).collect::<Vec<_>>()
    });
    timeout(STUCK, connects).await.unwrap().unwrap();
    daemon.join().unwrap();
}

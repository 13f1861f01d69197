#![allow(unsafe_code)]
//! A child that continues without exec does the parent's connection no harm.
//!
//! # Safety
//!
//! `fork` is unsafe because the child of a process with several threads may only do what a signal
//! handler may. This program has one thread: it has no test harness, and plays the daemon by
//! answering before it is asked.

// The lint exempts test functions, but not the helpers beside them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use tokio::runtime::Builder;
use tokio::time::timeout;
use xen_store::tokio::Store as AsyncStore;
use xen_store::wire::{Decoder, MsgType, encode};
use xen_store::{Error, Store};

/// Nothing here takes that long unless the answer is never read.
const STUCK: Duration = Duration::from_secs(20);

fn main() {
    a_child_that_drops_what_it_inherited_sends_nothing();
    println!("test a_child_that_drops_what_it_inherited_sends_nothing ... ok");
    a_child_that_drops_an_async_store_leaves_the_parents_alive();
    println!("test a_child_that_drops_an_async_store_leaves_the_parents_alive ... ok\n");
    println!("test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
}

/// Puts the answer to the request with this number where the client will look for it.
fn answer(daemon: &mut UnixStream, id: u32, kind: MsgType, payload: &[u8]) {
    let bytes = encode(kind, id, 0, &[payload]).unwrap();
    daemon.write_all(&bytes).unwrap();
}

/// The kinds of the requests that have arrived.
fn requests(daemon: &mut UnixStream) -> Vec<MsgType> {
    let mut bytes = [0; 4096];
    let count = daemon.read(&mut bytes).unwrap();
    let (mut decoder, mut input) = (Decoder::new(), &bytes[..count]);
    std::iter::from_fn(|| decoder.next(&mut input).unwrap())
        .map(|message| message.kind)
        .collect()
}

fn a_child_that_drops_what_it_inherited_sends_nothing() {
    let (ours, mut daemon) = UnixStream::pair().unwrap();
    let store = Store::from_fd(ours.into()).unwrap();
    answer(&mut daemon, 1, MsgType::WATCH, b"OK\0");
    let watch = store.watch("/w").unwrap();
    answer(&mut daemon, 2, MsgType::TRANSACTION_START, b"7\0");
    let transaction = store.transaction().unwrap();
    // SAFETY: the process has one thread (see the head of this file), so the child may do anything.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let refused = [
                store.read("/a").map(drop),
                watch.try_next().map(drop),
                watch.next(None).map(drop),
                watch.poll_fd().map(drop),
                store.watch("/x").map(drop),
                transaction.write("/a", "x"),
            ];
            let all = refused.iter().all(|r| matches!(r, Err(Error::Forked)));
            store.process();
            drop((watch, transaction, store));
            std::process::exit(i32::from(!all));
        }
        ForkResult::Parent { child } => {
            let status = waitpid(child, None).unwrap();
            assert_eq!(status, WaitStatus::Exited(child, 0), "a call went through");
        }
    }
    let sent = [MsgType::WATCH, MsgType::TRANSACTION_START];
    assert_eq!(requests(&mut daemon), sent);
    answer(&mut daemon, 3, MsgType::READ, b"x");
    assert_eq!(store.read("/a").unwrap(), b"x");
    drop((watch, transaction));
    let sent = [MsgType::READ, MsgType::UNWATCH, MsgType::TRANSACTION_END];
    assert_eq!(requests(&mut daemon), sent);
}

/// Both have the descriptor in one epoll set, which the kernel shares between them.
fn a_child_that_drops_an_async_store_leaves_the_parents_alive() {
    let (ours, mut daemon) = UnixStream::pair().unwrap();
    // It polls in the thread that calls it, and starts no other.
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    answer(&mut daemon, 1, MsgType::WATCH, b"OK\0");
    let (store, watch) = runtime.block_on(async {
        let store = AsyncStore::from_fd(ours.into()).unwrap();
        let watch = store.watch("/w").await.unwrap();
        (store, watch)
    });
    // SAFETY: the process has one thread (see the head of this file), so the child may do anything.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            drop((watch, store));
            std::process::exit(0);
        }
        ForkResult::Parent { child } => {
            let status = waitpid(child, None).unwrap();
            assert_eq!(status, WaitStatus::Exited(child, 0));
        }
    }
    assert_eq!(requests(&mut daemon), [MsgType::WATCH]);
    answer(&mut daemon, 2, MsgType::READ, b"x");
    let read = runtime.block_on(async { timeout(STUCK, store.read("/a")).await });
    assert_eq!(read.expect("the answer is not read").unwrap(), b"x");
    drop(watch);
    assert_eq!(requests(&mut daemon), [MsgType::READ, MsgType::UNWATCH]);
}

//! A client that dials again, in a tokio runtime.

use std::io::{Read, Write};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use xen_vchan::tokio::Reconnecting as AsyncReconnecting;
use xen_vchan::{Channel, Error, PeerState};

use crate::host::{PATH, TestHost, poll_one, soon, wait_gone};
use crate::reconnecting::reconnecting;
use crate::tasks::{LONG, futures_join};

/// Its own timers are off.
fn bare() -> Runtime {
    Builder::new_current_thread().enable_io().build().unwrap()
}

fn with_timers() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Both ends are in one thread, so the server must not sleep until the client is there.
async fn meet(line: &mut AsyncReconnecting, server: &mut Channel) {
    let late = soon().unwrap();
    while server.peer().unwrap() != PeerState::Connected {
        let moment = Duration::from_millis(5);
        let early = timeout(moment, line.session(None)).await;
        assert!(early.is_err() && Instant::now() < late);
    }
    line.session(soon()).await.unwrap();
}

#[test]
fn a_task_finds_each_server_that_comes_and_distinguishes_their_sessions() {
    let host = TestHost::new();
    thread::scope(|scope| {
        // Reading to the end makes room for the next server.
        let (heard, next) = channel();
        scope.spawn(|| {
            let next = next;
            for round in 1..=5u8 {
                let mut server = host.listen(0, 0);
                server.wait_connected(soon()).unwrap();
                server.write_all(&[round; 10]).unwrap();
                let mut got = [0; 3];
                server.read_exact(&mut got).unwrap();
                assert_eq!(got, [round; 3]);
                // And leaves, with half of its answer unread.
                drop(server);
                next.recv().unwrap();
            }
        });
        bare().block_on(async {
            let mut line = AsyncReconnecting::new(reconnecting(&host)).unwrap();
            for round in 1..=5u8 {
                let channel = line.session(soon()).await.unwrap();
                let mut got = [0; 5];
                channel.read_exact(&mut got).await.unwrap();
                assert_eq!(got, [round; 5]);
                channel.write_all(&[round; 3]).await.unwrap();
                wait_gone(channel.get_mut());
                // The server is gone, but what it sent can be read: the session continues.
                let channel = line.session(soon()).await.unwrap();
                let mut rest = Vec::new();
                channel.read_to_end(&mut rest).await.unwrap();
                assert_eq!(rest, [round; 5]);
                assert_eq!(line.sessions(), u64::from(round));
                heard.send(()).unwrap();
            }
        });
    });
    host.end();
}

#[test]
fn a_server_that_never_comes_back_is_waited_for_until_the_deadline_and_blocks_nobody() {
    let host = TestHost::new();
    let runtime = with_timers();
    runtime.block_on(async {
        let mut line = AsyncReconnecting::new(reconnecting(&host)).unwrap();
        let mut server = host.listen(0, 0);
        meet(&mut line, &mut server).await;
        drop(server);
        for _ in 0..2 {
            let deadline = Instant::now() + Duration::from_millis(60);
            let mut ticks = 0;
            let ticking = async {
                while Instant::now() < deadline {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    ticks += 1;
                }
            };
            let both = futures_join(line.session(Some(deadline)), ticking);
            let (waited, ()) = timeout(LONG, both).await.expect("a task slept forever");
            assert!(matches!(waited, Err(Error::TimedOut)), "{waited:?}");
            assert!(Instant::now() >= deadline && ticks > 1, "{ticks}");
        }
        // A deadline that has passed already.
        let late = line.session(Some(Instant::now())).await;
        assert!(matches!(late, Err(Error::TimedOut)), "{late:?}");
        assert_eq!(line.sessions(), 1);
        // The server returns after all.
        let mut server = host.listen(0, 0);
        meet(&mut line, &mut server).await;
        assert_eq!(line.sessions(), 2);
    });
    drop(runtime);
    host.end();
}

#[test]
fn a_call_that_is_cancelled_or_times_out_is_gone_on_with_by_the_next() {
    let host = TestHost::new();
    let runtime = with_timers();
    runtime.block_on(async {
        let mut line = AsyncReconnecting::new(reconnecting(&host)).unwrap();
        let moment = Duration::from_millis(5);
        // Nobody is there.
        for _ in 0..3 {
            assert!(timeout(moment, line.session(None)).await.is_err());
        }
        let mut server = host.listen(0, 0);
        // The server does not look; its client has come all the same, and stays the same one.
        let late = soon().unwrap();
        while !poll_one(&server, 0) {
            assert!(Instant::now() < late, "nobody came");
            assert!(timeout(moment, line.session(None)).await.is_err());
        }
        // A client that connected again would find nothing.
        let (_, store) = host.dom0();
        store.rm(&format!("{PATH}/ring-ref")).unwrap();
        let told = line.session(Some(Instant::now() + moment)).await;
        assert!(matches!(told, Err(Error::TimedOut)), "{told:?}");
        assert!(timeout(moment, line.session(None)).await.is_err());
        server.wait_connected(soon()).unwrap();
        let channel = line.session(soon()).await.unwrap();
        channel.write_all(b"it was me").await.unwrap();
        let mut got = [0; 9];
        server.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"it was me");
        assert_eq!((line.sessions(), server.sessions()), (1, 1));
        // While a session runs a call returns at once, whatever the deadline.
        line.session(Some(Instant::now())).await.unwrap();
        line.disconnect();
        wait_gone(&mut server);
        drop(server);
        meet(&mut line, &mut host.listen(0, 0)).await;
        assert_eq!(line.sessions(), 2);
    });
    drop(runtime);
    host.end();
}

//! Channels in a tokio runtime.

use std::io::{IoSlice, Read, Write};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::runtime::Builder;
use tokio::time::timeout;
use xen_sys::DomId;
use xen_vchan::tokio::{Channel as AsyncChannel, Listener as AsyncListener, connect};
use xen_vchan::{ClientBuilder, Error, Listener, PeerState};

use crate::host::{PATH, TestHost, bytes};

pub(crate) const LONG: Duration = Duration::from_secs(20);

#[test]
fn tasks_move_both_directions_at_once_and_see_the_end() {
    let host = TestHost::new();
    let (server, client) = host.pair(0, 0);
    let total = 200_000;
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let run = |channel| async move {
            let (mut rx, mut tx) = split(AsyncChannel::new(channel).unwrap());
            let sending = async {
                for part in bytes(0, total).chunks(777) {
                    tx.write_all(part).await.unwrap();
                }
                tx
            };
            let receiving = async {
                let mut got = vec![0; total];
                rx.read_exact(&mut got).await.unwrap();
                assert!(got == bytes(0, total));
            };
            let (tx, ()) = futures_join(sending, receiving).await;
            rx.unsplit(tx)
        };
        let both = futures_join(run(server), run(client));
        let (server, mut client) = timeout(LONG, both).await.expect("a task slept forever");
        drop(server);
        let end = timeout(LONG, client.read(&mut [0; 10]))
            .await
            .expect("the end woke nobody");
        assert_eq!(end.unwrap(), 0);
    });
    drop(runtime);
    host.end();
}

#[test]
fn a_task_writes_and_shuts_down_while_another_awaits_a_read() {
    let host = TestHost::new();
    let (server, mut client) = host.pair(1024, 1024);
    client.set_read_timeout(Some(LONG));
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let channel = AsyncChannel::new(server).unwrap();
        assert_eq!(channel.get_ref().peer().unwrap(), PeerState::Connected);
        assert_eq!(channel.get_ref().arm_read(1).unwrap(), 0);
        let (mut rx, mut tx) = split(channel);
        let reading = tokio::spawn(async move {
            let mut got = Vec::new();
            rx.read_to_end(&mut got).await.map(|_| got)
        });
        let writing = tokio::spawn(async move {
            for part in bytes(0, 20_000).chunks(100) {
                tx.write_all(part).await.unwrap();
            }
            tx
        });
        let echo = tokio::task::spawn_blocking(move || {
            for _ in 0..200 {
                let mut part = [0; 100];
                client.read_exact(&mut part).unwrap();
                client.write_all(&part).unwrap();
            }
            client
        });
        let mut client = timeout(LONG, echo).await.expect("a task slept").unwrap();
        let mut tx = timeout(LONG, writing).await.unwrap().unwrap();
        tx.shutdown().await.unwrap();
        assert!(tx.write_all(b"more").await.is_err());
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        assert!(!reading.is_finished(), "the peer has not left");
        drop(client);
        let got = timeout(LONG, reading).await.expect("the end woke nobody");
        assert_eq!(got.unwrap().unwrap(), bytes(0, 20_000));
        drop(tx);
    });
    drop(runtime);
    host.end();
}

#[test]
fn a_task_waits_for_its_client() {
    let host = TestHost::new();
    let server = host.listen(0, 0);
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut server = AsyncChannel::new(server).unwrap();
        assert!(
            timeout(Duration::from_millis(20), server.connected())
                .await
                .is_err()
        );
        let client = host.connect();
        timeout(LONG, server.connected())
            .await
            .expect("its arrival woke nobody")
            .unwrap();
        drop((server, client));
    });
    drop(runtime);
    host.end();
}

#[test]
fn tasks_listen_connect_and_send_packets() {
    let host = TestHost::new();
    let (xen, store) = host.dom0();
    let mut listener = Listener::builder().listen(&xen, &store).unwrap();
    listener.bind(host.guest, PATH).unwrap();
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut listener = AsyncListener::new(listener).unwrap();
        let early = timeout(Duration::from_millis(20), listener.accept()).await;
        assert!(early.is_err(), "nobody came");
        for round in 0..5u8 {
            let (xen, store) = host.domu();
            let client = async {
                let builder = ClientBuilder::new(DomId::DOM0, PATH);
                let mut client = connect(builder, &xen, &store).await.unwrap();
                // Ten packets through a ring for one of them and a bit.
                for _ in 0..10 {
                    client.send(&[round; 1000]).await.unwrap();
                }
                client.recv(&mut [0; 8]).await.unwrap();
            };
            let server = async {
                let mut server = listener.accept().await.unwrap();
                let mut packet = [0; 1000];
                for _ in 0..10 {
                    server.recv(&mut packet).await.unwrap();
                    assert_eq!(packet, [round; 1000]);
                }
                let both = [IoSlice::new(b"than"), IoSlice::new(b"kyou")];
                assert_eq!(server.write_vectored(&both).await.unwrap(), 8);
                assert!(matches!(server.recv(&mut [0]).await, Err(Error::Closed)));
            };
            timeout(LONG, futures_join(client, server))
                .await
                .expect("a task slept forever");
        }
        drop(listener);
    });
    drop((runtime, xen));
    host.end();
}

/// More paths than a listener looks at in one batch have had clients that came and left.
#[test]
fn a_task_accepts_the_client_behind_many_that_came_and_left() {
    for (name, runtime) in crate::tasks_events::runtimes() {
        let host = TestHost::new();
        let (xen, store) = host.dom0();
        let mut listener = Listener::builder().listen(&xen, &store).unwrap();
        let path = |index| format!("{PATH}-{index}");
        const PATHS: usize = 200;
        for index in 0..PATHS {
            listener.bind(host.guest, path(index)).unwrap();
        }
        let (their_xen, their_store) = host.domu();
        let dial = |index| {
            let builder = ClientBuilder::new(DomId::DOM0, path(index));
            builder.connect(&their_xen, &their_store).unwrap()
        };
        runtime.block_on(async {
            let mut listener = AsyncListener::new(listener).unwrap();
            for last in [PATHS - 1, 0, PATHS / 2] {
                for index in 0..PATHS {
                    drop(dial(index));
                }
                let client = dial(last);
                let server = timeout(LONG, listener.accept()).await;
                let server = server.unwrap_or_else(|_| panic!("asleep on {name}"));
                drop((server.unwrap(), client));
            }
            drop(listener);
        });
        drop((runtime, xen));
        host.end();
    }
}

/// Builders as they are, and no deadline.
#[test]
fn a_task_that_reads_ends_when_the_peers_domain_is_destroyed() {
    for (name, runtime) in crate::tasks_events::runtimes() {
        let host = TestHost::new();
        let (server, client) = host.pair(0, 0);
        runtime.block_on(async {
            let mut server = AsyncChannel::new(server).unwrap();
            host.sim.destroy_domain(host.guest).unwrap();
            host.stored.release(host.guest);
            let ended = timeout(LONG, server.read(&mut [0; 4])).await;
            assert_eq!(
                ended
                    .unwrap_or_else(|_| panic!("asleep on {name}"))
                    .unwrap(),
                0
            );
        });
        drop((runtime, client));
        host.sim.assert_clean();
    }
}

/// Both futures, to their ends.
pub(crate) async fn futures_join<A, B>(
    a: impl Future<Output = A>,
    b: impl Future<Output = B>,
) -> (A, B) {
    let (mut a, mut b) = (std::pin::pin!(a), std::pin::pin!(b));
    let (mut first, mut second) = (None, None);
    std::future::poll_fn(|cx| {
        use std::task::Poll::{Pending, Ready};
        if first.is_none() {
            if let Ready(value) = a.as_mut().poll(cx) {
                first = Some(value);
            }
        }
        if second.is_none() {
            if let Ready(value) = b.as_mut().poll(cx) {
                second = Some(value);
            }
        }
        if first.is_some() && second.is_some() {
            Ready(())
        } else {
            Pending
        }
    })
    .await;
    (first.unwrap(), second.unwrap())
}

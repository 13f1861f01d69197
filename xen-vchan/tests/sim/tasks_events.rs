//! Events of a channel that several tasks wait for, on runtimes of one and of more threads.

use std::io::{Read, Write};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, split};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use xen_evtchn::EventPacer;
use xen_sys::DomId;
use xen_vchan::tokio::Channel as AsyncChannel;
use xen_vchan::{Channel, ClientBuilder, ServerBuilder};

use crate::host::{TestHost, bytes};
use crate::pacing::{stormed, write_one};
use crate::tasks::LONG;

/// A runtime of each kind that users have.
pub(crate) fn runtimes() -> impl Iterator<Item = (String, Runtime)> {
    let one = Builder::new_current_thread().enable_all().build().unwrap();
    let more = [1, 2, 4].map(|workers| {
        let mut builder = Builder::new_multi_thread();
        let runtime = builder.worker_threads(workers).enable_all().build();
        (format!("{workers} workers"), runtime.unwrap())
    });
    std::iter::once(("current_thread".to_owned(), one)).chain(more)
}

/// Counts how often a task was woken.
#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

impl Count {
    fn get(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }
}

/// Some turns of the runtime's driver.
async fn turns() {
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn poll_read(channel: &mut AsyncChannel, count: &Arc<Count>, len: usize) -> Poll<Vec<u8>> {
    let mut buf = vec![0; len];
    let mut buf = ReadBuf::new(&mut buf);
    let waker = Waker::from(Arc::clone(count));
    Pin::new(channel)
        .poll_read(&mut Context::from_waker(&waker), &mut buf)
        .map(|result| result.map(|()| buf.filled().to_vec()).unwrap())
}

fn poll_write(channel: &mut AsyncChannel, count: &Arc<Count>, len: usize) -> Poll<usize> {
    let waker = Waker::from(Arc::clone(count));
    Pin::new(channel)
        .poll_write(&mut Context::from_waker(&waker), &vec![7; len])
        .map(Result::unwrap)
}

/// The writer was woken since it was woken `before` times, and can write.
async fn assert_woken_to_write(
    channel: &mut AsyncChannel,
    writer: &Arc<Count>,
    before: usize,
    runtime: &str,
) {
    let end = Instant::now() + Duration::from_secs(20);
    while writer.get() == before && Instant::now() < end {
        turns().await;
    }
    assert_ne!(
        writer.get(),
        before,
        "{runtime}: the writer sleeps beside its space"
    );
    assert!(poll_write(channel, writer, 1).is_ready());
}

/// The reader has readiness left from an event that the writer took, and with it takes the writer's
/// next event before the runtime has seen that.
#[test]
fn an_event_that_one_direction_takes_wakes_the_other() {
    for (name, runtime) in runtimes() {
        let host = TestHost::new();
        let (server, mut client) = host.pair(0, 0);
        runtime.block_on(async {
            let mut server = AsyncChannel::new(server).unwrap();
            let (reader, writer) = (Arc::new(Count::default()), Arc::new(Count::default()));
            while poll_write(&mut server, &writer, 2048).is_ready() {}
            // For the reader: both are woken, and the writer looks first.
            client.write_all(b"x").unwrap();
            turns().await;
            assert!(poll_write(&mut server, &writer, 1).is_pending());
            assert_eq!(
                poll_read(&mut server, &reader, 1),
                Poll::Ready(b"x".to_vec())
            );
            // For the writer: the reader looks, before the runtime can.
            let before = writer.get();
            client.read_exact(&mut [0; 2000]).unwrap();
            assert!(poll_read(&mut server, &reader, 1).is_pending());
            assert_woken_to_write(&mut server, &writer, before, &name).await;
        });
        drop((runtime, client));
        host.end();
    }
}

#[test]
fn an_event_that_the_owner_takes_wakes_the_tasks() {
    for (name, runtime) in runtimes() {
        let host = TestHost::new();
        let (server, mut client) = host.pair(0, 0);
        runtime.block_on(async {
            let mut server = AsyncChannel::new(server).unwrap();
            let writer = Arc::new(Count::default());
            while poll_write(&mut server, &writer, 2048).is_ready() {}
            let before = writer.get();
            client.read_exact(&mut [0; 2000]).unwrap();
            server.get_mut().acknowledge_events().unwrap();
            assert_woken_to_write(&mut server, &writer, before, &name).await;
        });
        drop((runtime, client));
        host.end();
    }
}

/// Pairs at paths of their own, on one host.
pub(crate) fn pairs(host: &TestHost, count: usize) -> Vec<(Channel, Channel)> {
    let ((xen, store), (their_xen, their_store)) = (host.dom0(), host.domu());
    let pair = |index| {
        let path = format!("{}-{index}", crate::host::PATH);
        let server = ServerBuilder::new(host.guest, &path).publish(&xen, &store);
        let client = ClientBuilder::new(DomId::DOM0, &path).connect(&their_xen, &their_store);
        (server.unwrap(), client.unwrap())
    };
    (0..count).map(pair).collect()
}

/// Sends `total` bytes in pieces of odd sizes and reads them again, in two tasks.
async fn ask(channel: AsyncChannel, total: usize) {
    let (mut rx, mut tx) = split(channel);
    let sending = tokio::spawn(async move {
        for (index, part) in bytes(0, total).chunks(777).enumerate() {
            tx.write_all(part).await.unwrap();
            if index % 7 == 0 {
                tokio::task::yield_now().await;
            }
        }
        tx
    });
    let receiving = tokio::spawn(async move {
        let mut got = vec![0; total];
        rx.read_exact(&mut got).await.unwrap();
        assert!(got == bytes(0, total), "wrong bytes");
        rx
    });
    let (tx, rx) = (sending.await.unwrap(), receiving.await.unwrap());
    drop(rx.unsplit(tx));
}

/// Sends back what it reads, to the end.
async fn answer(channel: AsyncChannel) {
    let (mut rx, mut tx) = split(channel);
    tokio::io::copy(&mut rx, &mut tx).await.unwrap();
}

#[test]
fn an_echo_with_both_ends_in_tasks_leaves_nobody_asleep() {
    for (name, runtime) in runtimes() {
        let host = TestHost::new();
        let pairs = pairs(&host, 20);
        runtime.block_on(async {
            let mut all = Vec::new();
            for (server, client) in pairs {
                let server = AsyncChannel::new(server).unwrap();
                let client = AsyncChannel::new(client).unwrap();
                all.push(tokio::spawn(answer(server)));
                all.push(tokio::spawn(ask(client, 40_000)));
            }
            let count = all.len();
            let mut asleep = 0;
            for task in all {
                match timeout(LONG, task).await {
                    Ok(ended) => ended.unwrap(),
                    Err(_) => asleep += 1,
                }
            }
            assert_eq!(asleep, 0, "of {count} tasks on {name}");
        });
        drop(runtime);
        host.end();
    }
}

#[test]
fn a_channel_moves_from_one_runtime_to_another() {
    let host = TestHost::new();
    let (mut server, client) = host.pair(0, 0);
    let mut client = Some(client);
    for (name, runtime) in runtimes() {
        let taken = client.take().unwrap();
        client = Some(runtime.block_on(async {
            let mut channel = AsyncChannel::new(taken).unwrap();
            // It is waited for once, so that the runtime has a hand on it.
            let idle = timeout(Duration::from_millis(5), channel.read(&mut [0])).await;
            assert!(idle.is_err(), "{name}: nobody has written");
            channel.into_inner()
        }));
        // An event between two runtimes, and one within.
        server.write_all(b"one").unwrap();
        let taken = client.take().unwrap();
        client = Some(runtime.block_on(async {
            let mut channel = AsyncChannel::new(taken).unwrap();
            let mut got = [0; 6];
            let reading = channel.read_exact(&mut got);
            let mut reading = pin!(reading);
            let early = timeout(Duration::from_millis(5), reading.as_mut()).await;
            assert!(early.is_err(), "{name}: half of it is there");
            server.write_all(b"two").unwrap();
            timeout(LONG, reading).await.expect("asleep").unwrap();
            assert_eq!(&got, b"onetwo");
            channel.into_inner()
        }));
    }
    drop((server, client));
    host.end();
}

/// A peer that always has bytes, and a timeout that must fire all the same.
#[test]
fn a_channel_that_is_always_ready_does_not_starve_its_runtime() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let host = TestHost::new();
    let (server, mut client) = host.pair(1 << 20, 1 << 20);
    runtime.block_on(async {
        let mut server = AsyncChannel::new(server).unwrap();
        let mut fed = 0;
        let reads = async {
            // Far more than there is time for; the peer is fed by hand, in the same task.
            while fed < 1 << 22 {
                if fed % (1 << 19) == 0 {
                    client.write_all(&[1; 1 << 19]).unwrap();
                }
                server.read_exact(&mut [0]).await.unwrap();
                fed += 1;
            }
        };
        let ended = timeout(Duration::from_millis(50), reads).await;
        assert!(ended.is_err(), "the timeout never fired");
        assert!(fed < 1 << 22);
    });
    drop((runtime, client));
    host.end();
}

/// A peer that rings without a pause, and at last for something.
#[test]
fn a_paced_channel_in_a_task_is_served_when_it_is_time() {
    for (name, runtime) in runtimes() {
        let host = TestHost::new();
        let (server, bell) = stormed(&host);
        runtime.block_on(async {
            let mut server = AsyncChannel::new(server).unwrap();
            let pacer = EventPacer::new(Duration::from_millis(100));
            server.get_mut().set_event_pacer(Some(pacer));
            let mut buf = [0; 2];
            let mut reading = pin!(server.read(&mut buf));
            for _ in 0..2 * EventPacer::BURST {
                bell.notify().unwrap();
                let early = timeout(Duration::from_millis(2), reading.as_mut()).await;
                assert!(early.is_err(), "nothing was written");
            }
            write_one(&host);
            bell.notify().unwrap();
            let len = timeout(LONG, reading).await;
            assert_eq!(len.expect(&name).unwrap(), 1);
        });
        drop((runtime, bell));
        host.end();
    }
}

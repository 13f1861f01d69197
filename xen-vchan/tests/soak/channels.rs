//! Many channels in one runtime, both ends of each in tasks: `VCHAN_SOAK_CHANNELS` of them (50
//! unless set) echo for `VCHAN_SOAK_SECONDS` (2 unless set) on two workers. Every byte is judged,
//! and a task that is not done a while after the end has slept.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::runtime::Builder;
use tokio::time::{sleep, timeout};
use xen_store_server::Config;
use xen_sys::DomId;
use xen_sys::sim::Simulation;
use xen_vchan::tokio::Channel as AsyncChannel;
use xen_vchan::{ClientBuilder, ServerBuilder};

use crate::stream::piece;
use crate::{Random, seed};

fn setting(name: &str, or: u64) -> u64 {
    std::env::var(name).map_or(or, |text| text.parse().expect("a number"))
}

/// Sends pieces of the stream until `stop`, and reads all of them again.
async fn ask(channel: AsyncChannel, mut random: Random, stop: Arc<AtomicBool>) -> u64 {
    let (mut rx, mut tx) = split(channel);
    let sent = Arc::new(AtomicU64::new(0));
    let (counted, ended) = (Arc::clone(&sent), Arc::new(AtomicBool::new(false)));
    let over = Arc::clone(&ended);
    let sending = tokio::spawn(async move {
        let mut at = 0;
        while !stop.load(Ordering::Acquire) {
            let len = 1 + random.below(1500) as usize;
            counted.store(at + len as u64, Ordering::Release);
            tx.write_all(piece(at, len)).await.unwrap();
            at += len as u64;
        }
        // One byte more, so that the reader is awake after it has seen the end.
        counted.store(at + 1, Ordering::Release);
        over.store(true, Ordering::Release);
        tx.write_all(piece(at, 1)).await.unwrap();
        tx
    });
    let mut at = 0;
    let mut buf = vec![0; 2000];
    while !(ended.load(Ordering::Acquire) && at == sent.load(Ordering::Acquire)) {
        let did = rx.read(&mut buf).await.unwrap();
        assert_ne!(did, 0, "the end");
        assert!(buf[..did] == *piece(at, did), "wrong bytes at {at}");
        at += did as u64;
    }
    drop(rx.unsplit(sending.await.unwrap()));
    at
}

/// Sends back what it reads, to the end.
async fn answer(channel: AsyncChannel) -> u64 {
    let (mut rx, mut tx) = split(channel);
    tokio::io::copy(&mut rx, &mut tx).await.unwrap()
}

#[test]
fn channels_echo_in_two_workers_without_a_sleeper() {
    let count = setting("VCHAN_SOAK_CHANNELS", 50);
    let seconds = setting("VCHAN_SOAK_SECONDS", 2);
    let first = seed();
    println!("channels: VCHAN_SOAK_SEED={first}");
    let host = Simulation::start().unwrap();
    let _stored = xen_store_server::sim::start(&host, Config::new()).unwrap();
    let xen = host.xen(DomId::DOM0).unwrap();
    let store = xen_store::Store::open(&xen).unwrap();
    let pairs: Vec<_> = (0..count)
        .map(|index| {
            let path = format!("data/soak-{index}");
            let server = ServerBuilder::new(DomId::DOM0, &path).publish(&xen, &store);
            let client = ClientBuilder::new(DomId::DOM0, &path).connect(&xen, &store);
            (server.unwrap(), client.unwrap())
        })
        .collect();
    let mut builder = Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().build().unwrap();
    let bytes = runtime.block_on(async {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        for (index, (server, client)) in pairs.into_iter().enumerate() {
            let random = Random::new(first.wrapping_add(index as u64));
            let server = AsyncChannel::new(server).unwrap();
            let client = AsyncChannel::new(client).unwrap();
            tasks.push(tokio::spawn(answer(server)));
            tasks.push(tokio::spawn(ask(client, random, Arc::clone(&stop))));
        }
        sleep(Duration::from_secs(seconds)).await;
        stop.store(true, Ordering::Release);
        let (mut bytes, mut asleep) = (0, 0);
        for task in tasks {
            match timeout(Duration::from_secs(60), task).await {
                Ok(moved) => bytes += moved.unwrap(),
                Err(_) => asleep += 1,
            }
        }
        assert_eq!(asleep, 0, "of {} tasks", 2 * count);
        bytes
    });
    println!("channels: {count}, {bytes} bytes in {seconds} s");
    assert!(bytes > 0);
}

//! Event channels in tokio's runtimes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use xen_evtchn::{BoundPort, EventChannels, tokio::EventChannels as AsyncEventChannels};
use xen_sys::sim::Simulation;
use xen_sys::{DomId, Error, Xen};

/// Nothing here takes that long unless an event is lost.
const STUCK: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_event_reaches_one_of_the_tasks_that_wait() {
    const PORTS: usize = 8;
    let host = Simulation::start().unwrap();
    let guest = host.add_domain().unwrap();
    let theirs = EventChannels::open(&host.xen(guest).unwrap()).unwrap();
    let ours = EventChannels::open(&host.xen(DomId::DOM0).unwrap()).unwrap();
    let ports: Vec<_> = (0..PORTS)
        .map(|_| {
            let open = ours.bind_unbound(guest).unwrap();
            let bound = theirs.bind_interdomain(DomId::DOM0, open.port()).unwrap();
            (open, bound)
        })
        .collect();
    let ours = Arc::new(AsyncEventChannels::new(ours).unwrap());
    for _ in 0..50 {
        let tasks: Vec<_> = (0..PORTS)
            .map(|_| {
                let ours = Arc::clone(&ours);
                tokio::spawn(async move { timeout(STUCK, ours.wait()).await })
            })
            .collect();
        ports.iter().for_each(|(_, bound)| bound.notify().unwrap());
        let mut seen = Vec::new();
        for task in tasks {
            let port = task.await.unwrap().expect("an event is lost").unwrap();
            ours.get_ref().unmask(port).unwrap();
            seen.push(port);
        }
        let mut all: Vec<_> = ports.iter().map(|(open, _)| open.port()).collect();
        all.sort_unstable();
        seen.sort_unstable();
        assert_eq!(seen, all);
    }
}

#[tokio::test]
async fn a_cancelled_wait_loses_no_event() {
    let host = Simulation::start().unwrap();
    let ours = EventChannels::open(&host.xen(DomId::DOM0).unwrap()).unwrap();
    let open = ours.bind_unbound(DomId::DOM0).unwrap();
    let bound = ours.bind_interdomain(DomId::DOM0, open.port()).unwrap();
    // Binding makes that end pending.
    assert_eq!(ours.pending().unwrap(), Some(bound.port()));
    let ours = AsyncEventChannels::new(ours).unwrap();
    assert!(timeout(Duration::ZERO, ours.wait()).await.is_err());
    bound.notify().unwrap();
    let port = timeout(STUCK, ours.wait()).await.unwrap().unwrap();
    assert_eq!(port, open.port());
    assert_eq!(ours.get_ref().pending().unwrap(), None);
}

/// A set in the runtime, and pairs of ports: those of the set, and their other ends.
struct PortPairs {
    ours: AsyncEventChannels,
    ports: Vec<BoundPort>,
    peers: Vec<BoundPort>,
    xen: Xen,
    _host: Simulation,
}

fn port_pairs(count: usize) -> PortPairs {
    let host = Simulation::start().unwrap();
    let guest = host.add_domain().unwrap();
    let theirs = EventChannels::open(&host.xen(guest).unwrap()).unwrap();
    let xen = host.xen(DomId::DOM0).unwrap();
    let ours = EventChannels::open(&xen).unwrap();
    let ports: Vec<_> = (0..count)
        .map(|_| ours.bind_unbound(guest).unwrap())
        .collect();
    let bind = |port: &BoundPort| theirs.bind_interdomain(DomId::DOM0, port.port());
    let peers = ports.iter().map(|port| bind(port).unwrap()).collect();
    PortPairs {
        ours: AsyncEventChannels::new(ours).unwrap(),
        ports,
        peers,
        xen,
        _host: host,
    }
}

async fn soon<T>(wait: impl Future<Output = xen_sys::Result<T>>) -> T {
    timeout(STUCK, wait)
        .await
        .expect("an event is lost")
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_on_two_threads_each_await_a_port_of_one_set() {
    let pairs = port_pairs(4);
    let mut tasks = Vec::new();
    for (port, peer) in pairs.ports.into_iter().zip(pairs.peers) {
        let port = pairs.ours.port(port).unwrap();
        tasks.push(tokio::spawn(async move {
            for _ in 0..500 {
                peer.notify().unwrap();
                soon(port.wait()).await;
                port.unmask().unwrap();
            }
            assert_eq!(port.events(), 500, "an event of another port, or one twice");
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn a_cancelled_wait_for_a_port_loses_nothing_and_strands_no_other_task() {
    let mut pairs = port_pairs(2);
    let second = pairs.ours.port(pairs.ports.pop().unwrap()).unwrap();
    let first = pairs.ours.port(pairs.ports.pop().unwrap()).unwrap();
    for _ in 0..20 {
        let mut leads = Box::pin(first.wait());
        assert!(timeout(Duration::ZERO, leads.as_mut()).await.is_err());
        let mut follows = Box::pin(second.wait());
        assert!(timeout(Duration::ZERO, follows.as_mut()).await.is_err());
        // The one task that looked at the descriptor is gone, with events of both on their way.
        pairs.peers.iter().for_each(|peer| peer.notify().unwrap());
        drop(leads);
        soon(follows).await;
        soon(first.wait()).await;
        first.unmask().unwrap();
        second.unmask().unwrap();
    }
    assert_eq!((first.events(), second.events()), (20, 20));
}

#[tokio::test]
async fn a_port_that_is_awaited_by_itself_is_no_other_waits() {
    let mut pairs = port_pairs(2);
    let own = pairs.ours.port(pairs.ports.pop().unwrap()).unwrap();
    let shared = pairs.ports.pop().unwrap();
    pairs.peers.iter().for_each(|peer| peer.notify().unwrap());
    // Each takes the events of both and hands one on.
    soon(own.wait()).await;
    assert_eq!(soon(pairs.ours.wait()).await, shared.port());
    shared.unmask().unwrap();
    own.unmask().unwrap();
    pairs.peers.iter().for_each(|peer| peer.notify().unwrap());
    assert_eq!(soon(pairs.ours.wait()).await, shared.port());
    soon(own.wait()).await;
    // Closed, so that its number is anybody's.
    let number = own.get_ref().port();
    drop(own);
    assert!(timeout(Duration::ZERO, pairs.ours.wait()).await.is_err());
    let next = pairs.ours.get_ref().bind_unbound(DomId::DOM0).unwrap();
    assert_eq!(next.port(), number);
    let peer = pairs
        .ours
        .get_ref()
        .bind_interdomain(DomId::DOM0, next.port());
    let peer = pairs.ours.port(peer.unwrap()).unwrap();
    peer.notify().unwrap();
    assert_eq!(soon(pairs.ours.wait()).await, next.port());
}

#[tokio::test]
async fn an_event_from_before_the_port_was_awaited_counts() {
    let pairs = port_pairs(1);
    let set = pairs.ours.get_ref();
    let open = set.bind_unbound(DomId::DOM0).unwrap();
    // Binding makes that end pending, and a task that waits for any port takes the event.
    let bound = set.bind_interdomain(DomId::DOM0, open.port()).unwrap();
    let own = pairs.ours.port(open).unwrap();
    assert!(timeout(Duration::from_millis(1), own.wait()).await.is_err());
    let bound = pairs.ours.port(bound).unwrap();
    soon(bound.wait()).await;
}

#[tokio::test]
async fn several_tasks_that_wait_for_one_port_see_each_event() {
    let mut pairs = port_pairs(1);
    let port = Arc::new(pairs.ours.port(pairs.ports.pop().unwrap()).unwrap());
    let seen = port.events();
    pairs.peers[0].notify().unwrap();
    // The first takes it, before the others begin to wait.
    assert_eq!(soon(port.wait_past(seen)).await, seen + 1);
    for _ in 0..3 {
        assert_eq!(soon(port.wait_past(seen)).await, seen + 1);
    }
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let port = Arc::clone(&port);
            tokio::spawn(async move { soon(port.wait_past(seen + 1)).await })
        })
        .collect();
    tokio::task::yield_now().await;
    port.unmask().unwrap();
    pairs.peers[0].notify().unwrap();
    for task in waiting {
        assert_eq!(task.await.unwrap(), seen + 2);
    }
}

#[tokio::test]
async fn after_an_overflow_a_reset_and_a_look_at_every_port_go_on() {
    let mut pairs = port_pairs(2);
    let own = pairs.ours.port(pairs.ports.pop().unwrap()).unwrap();
    let other = pairs.ports.pop().unwrap();
    pairs.xen.simulated().unwrap().overflow_events();
    pairs.peers.iter().for_each(|peer| peer.notify().unwrap());
    for _ in 0..2 {
        let lost = timeout(STUCK, own.wait()).await.unwrap();
        assert!(matches!(lost, Err(Error::EventOverflow)), "{lost:?}");
        let lost = timeout(STUCK, pairs.ours.wait()).await.unwrap();
        assert!(matches!(lost, Err(Error::EventOverflow)), "{lost:?}");
    }
    pairs.ours.reset().unwrap();
    // As if it had been notified; the other one is for its owner.
    soon(own.wait()).await;
    own.unmask().unwrap();
    other.unmask().unwrap();
    pairs.peers.iter().for_each(|peer| peer.notify().unwrap());
    soon(own.wait()).await;
    assert_eq!(soon(pairs.ours.wait()).await, other.port());
}

#[test]
fn a_task_of_another_runtime_waits_until_that_of_the_set_ends() {
    let threads = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let mut pairs = threads.block_on(async { port_pairs(1) });
    let port = pairs.ours.port(pairs.ports.pop().unwrap()).unwrap();
    let other = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    other.block_on(async {
        let mut waits = Box::pin(port.wait());
        assert!(timeout(Duration::ZERO, waits.as_mut()).await.is_err());
        pairs.peers[0].notify().unwrap();
        soon(waits).await;
        port.unmask().unwrap();
        let mut waits = Box::pin(port.wait());
        assert!(timeout(Duration::ZERO, waits.as_mut()).await.is_err());
        threads.shutdown_background();
        let ended = timeout(STUCK, waits).await.expect("it waits forever");
        assert!(matches!(ended, Err(Error::Os { .. })), "{ended:?}");
    });
}

#[tokio::test]
async fn a_port_of_another_set_is_refused() {
    let (mut here, there) = (port_pairs(1), port_pairs(0));
    let error = there.ours.port(here.ports.pop().unwrap()).unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
}

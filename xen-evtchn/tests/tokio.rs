//! Event channels in tokio's runtimes.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use xen_evtchn::{EventChannels, tokio::EventChannels as AsyncEventChannels};
use xen_sys::DomId;
use xen_sys::sim::Simulation;

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
    assert_eq!(ours.into_inner().pending().unwrap(), None);
}

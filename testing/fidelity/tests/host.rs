//! The simulated host in one process: what becomes of domains, limits, injected faults, and of a
//! process that misbehaves.
#![allow(
    clippy::unwrap_used,
    reason = "a panic is how a test fails, in its helpers too"
)]

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use xen_evtchn::EventChannels;
use xen_gnttab::{PageAccess, UnmapNotify, map, share};
use xen_sys::sim::{Fault, Limits, Op, Simulation};
use xen_sys::{DomId, GrantRef, Virq};

fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(30))
}

#[test]
fn a_domains_end_is_an_interrupt_of_domain_0s() {
    let host = Simulation::start().unwrap();
    let ids = [(); 2].map(|()| host.add_domain().unwrap());
    let dom0 = EventChannels::open(&host.xen(DomId::DOM0).unwrap()).unwrap();
    let domu = EventChannels::open(&host.xen(ids[1]).unwrap()).unwrap();
    let here = dom0.bind_virq(Virq::DOM_EXC).unwrap();
    let argo = dom0.bind_virq(Virq::ARGO).unwrap();
    // As before Xen 4.21: the bind succeeds, and no event arrives.
    let there = domu.bind_virq(Virq::DOM_EXC).unwrap();
    assert_eq!(dom0.pending().unwrap(), None);
    host.destroy_domain(ids[0]).unwrap();
    assert_eq!(dom0.pending().unwrap(), Some(here.port()));
    assert_eq!(dom0.pending().unwrap(), None);
    assert_eq!(domu.pending().unwrap(), None);
    drop((here, argo, there));
    host.assert_clean();
}

#[test]
fn a_destroyed_domain_is_cut_off_and_its_peers_are_not_notified() {
    let host = Simulation::start().unwrap();
    let id = host.add_domain().unwrap();
    let (dom0, domu) = (host.xen(DomId::DOM0).unwrap(), host.xen(id).unwrap());
    let (here, there) = (
        EventChannels::open(&dom0).unwrap(),
        EventChannels::open(&domu).unwrap(),
    );
    let near = here.bind_unbound(id).unwrap();
    let far = there.bind_interdomain(DomId::DOM0, near.port()).unwrap();
    let mut page = share(&dom0, id, 1, PageAccess::ReadWrite).unwrap();
    page.region_mut().copy_in(3, &[1]).unwrap();
    let theirs = map(&domu, DomId::DOM0, page.refs(), PageAccess::ReadWrite).unwrap();
    let notify = UnmapNotify {
        clear_byte: Some(3),
        event: Some(far.port()),
    };
    theirs.set_unmap_notify(notify).unwrap();
    let _own = share(&domu, DomId::DOM0, 2, PageAccess::ReadWrite).unwrap();

    // As on Xen: the kernel that would clear the byte and send the event is gone.
    assert!(here.domain_exists(id).unwrap());
    host.destroy_domain(id).unwrap();
    assert_eq!(here.pending().unwrap(), None);
    assert_eq!(page.region().load_u8(3), Ok(1));
    assert!(!here.domain_exists(id).unwrap());
    assert_eq!(
        host.destroy_domain(id).unwrap_err().errno(),
        Some(libc::ESRCH)
    );
    assert_eq!(host.xen(id).unwrap_err().errno(), Some(libc::ESRCH));
    assert!(there.bind_unbound(DomId::DOM0).is_err());
    assert!(host.set_limits(id, Limits::default()).is_err());
    drop((theirs, far, page, near));
    host.assert_clean();
}

#[test]
fn limits_are_what_runs_out() {
    let host = Simulation::start().unwrap();
    let id = host.add_domain().unwrap();
    let xen = host.xen(id).unwrap();
    let mut limits = host.limits(id).unwrap();
    (limits.ports, limits.shared_pages, limits.mapped_pages) = (2, 3, 4);
    host.set_limits(id, limits).unwrap();

    let channels = EventChannels::open(&xen).unwrap();
    let ports: Vec<_> = (0..2).map(|_| channels.bind_unbound(id).unwrap()).collect();
    let e = channels.bind_unbound(id).unwrap_err();
    assert_eq!(e.errno(), Some(libc::ENOSPC));
    let e = channels.bind_interdomain(id, ports[0].port()).unwrap_err();
    assert_eq!(e.errno(), Some(libc::ENOSPC));

    let pages = share(&xen, id, 3, PageAccess::ReadWrite).unwrap();
    let e = share(&xen, id, 1, PageAccess::ReadWrite).unwrap_err();
    assert_eq!(e.errno(), Some(libc::ENOSPC));
    let three = map(&xen, id, pages.refs(), PageAccess::ReadWrite).unwrap();
    let e = map(&xen, id, &pages.refs()[..2], PageAccess::ReadWrite).unwrap_err();
    assert_eq!(e.errno(), Some(libc::EINVAL));
    drop(three);
    map(&xen, id, pages.refs(), PageAccess::ReadWrite).unwrap();
}

#[test]
fn injected_faults_happen_when_their_turn_comes() {
    let host = Simulation::start().unwrap();
    let id = host.add_domain().unwrap();
    let xen = host.xen(id).unwrap();
    let pages = share(&xen, id, 1, PageAccess::ReadWrite).unwrap();
    let map = || map(&xen, id, pages.refs(), PageAccess::ReadWrite);
    host.inject(Fault::Fail {
        domain: id,
        op: Op::Map,
        nth: 2,
        errno: libc::EAGAIN,
    });
    assert!(map().is_ok());
    assert_eq!(map().unwrap_err().errno(), Some(libc::EAGAIN));
    assert!(map().is_ok());

    host.inject(Fault::Fail {
        domain: id,
        op: Op::Map,
        nth: 1,
        errno: libc::EAGAIN,
    });
    host.clear_faults();
    assert!(map().is_ok());

    host.inject(Fault::Kill {
        domain: id,
        op: Op::Map,
        nth: 1,
    });
    assert!(map().is_err());
    assert!(!host.domains().contains(&id), "it died of it");
}

#[test]
fn an_event_can_be_late_and_come_twice() {
    let host = Simulation::start().unwrap();
    let id = host.add_domain().unwrap();
    let delay = Duration::from_millis(20);
    host.inject(Fault::Events {
        to: id,
        delay,
        copies: 1,
    });
    let (dom0, domu) = (host.xen(DomId::DOM0).unwrap(), host.xen(id).unwrap());
    let (here, there) = (
        EventChannels::open(&dom0).unwrap(),
        EventChannels::open(&domu).unwrap(),
    );
    let near = here.bind_unbound(id).unwrap();
    let far = there.bind_interdomain(DomId::DOM0, near.port()).unwrap();
    assert_eq!(there.wait(soon()).unwrap(), Some(far.port()));
    far.unmask().unwrap();

    let sent = Instant::now();
    near.notify().unwrap();
    for copy in 1..=2 {
        assert_eq!(there.wait(soon()).unwrap(), Some(far.port()), "copy {copy}");
        assert!(sent.elapsed() >= delay * copy, "copy {copy} came early");
        far.unmask().unwrap();
    }
    // The other way is not affected.
    far.notify().unwrap();
    assert_eq!(here.wait(soon()).unwrap(), Some(near.port()));
    drop((near, far));
    host.assert_clean();
}

#[test]
fn scribbled_bytes_arrive_in_every_mapping() {
    let host = Simulation::start().unwrap();
    let xen = host.xen(DomId::DOM0).unwrap();
    let pages = share(&xen, DomId::DOM0, 2, PageAccess::ReadOnly).unwrap();
    let theirs = map(&xen, DomId::DOM0, pages.refs(), PageAccess::ReadOnly).unwrap();
    host.scribble(DomId::DOM0, pages.refs()[1], 4090, b"666666")
        .unwrap();
    for region in [pages.region(), theirs.region()] {
        let mut seen = [0; 6];
        region.copy_out(4096 + 4090, &mut seen).unwrap();
        assert_eq!(&seen, b"666666");
    }
    assert!(
        host.scribble(DomId::DOM0, pages.refs()[1], 4091, b"666666")
            .is_err()
    );
    assert!(
        host.scribble(DomId::DOM0, GrantRef::new(4000), 0, b"6")
            .is_err()
    );
}

#[test]
fn what_is_left_behind_is_listed() {
    let host = Simulation::start().unwrap();
    let xen = host.xen(DomId::DOM0).unwrap();
    let channels = EventChannels::open(&xen).unwrap();
    let port = channels.bind_unbound(DomId::new(3)).unwrap();
    let pages = share(&xen, DomId::DOM0, 1, PageAccess::ReadOnly).unwrap();
    let mapped = map(&xen, DomId::DOM0, pages.refs(), PageAccess::ReadOnly).unwrap();
    let leaks = host.leaks().join("\n");
    for what in [
        "open for domain 3",
        "mapped 1 times",
        "1 pages of domain 0 mapped",
    ] {
        assert!(leaks.contains(what), "{leaks}");
    }
    drop((mapped, pages, port));
    assert!(
        host.leaks().is_empty(),
        "giving back is done when drop returns"
    );
}

#[test]
fn a_toolstack_in_domain_0_makes_and_ends_domains() {
    let host = Simulation::start().unwrap();
    let dom0 = host.xen(DomId::DOM0).unwrap();
    let tools = dom0.simulated().unwrap();
    let id = tools.create_domain(None).unwrap();
    assert_eq!(
        tools.create_domain(Some(id)).unwrap_err().errno(),
        Some(libc::EEXIST)
    );
    assert_eq!(
        tools.create_domain(Some(DomId::SELF)).unwrap_err().errno(),
        Some(libc::EINVAL)
    );
    let domu = host.xen(id).unwrap();
    let guest = domu.simulated().unwrap();
    assert_eq!(
        guest.create_domain(None).unwrap_err().errno(),
        Some(libc::EPERM)
    );
    assert_eq!(
        guest.destroy_domain(id).unwrap_err().errno(),
        Some(libc::EPERM)
    );
    tools.destroy_domain(id).unwrap();
    assert_eq!(host.domains(), [DomId::DOM0]);
    assert_eq!(
        tools.destroy_domain(DomId::DOM0).unwrap_err().errno(),
        Some(libc::EINVAL)
    );
}

#[test]
fn many_threads_share_a_handle() {
    let host = Simulation::start().unwrap();
    let id = host.add_domain().unwrap();
    let (dom0, domu) = (host.xen(DomId::DOM0).unwrap(), host.xen(id).unwrap());
    std::thread::scope(|s| {
        for n in 0..4u8 {
            let (dom0, domu) = (&dom0, &domu);
            s.spawn(move || {
                for _ in 0..25 {
                    let mut page = share(dom0, id, 2, PageAccess::ReadWrite).unwrap();
                    let m = map(domu, DomId::DOM0, page.refs(), PageAccess::ReadWrite).unwrap();
                    page.region_mut().copy_in(4095, &[n, n]).unwrap();
                    let mut seen = [0; 2];
                    m.region().copy_out(4095, &mut seen).unwrap();
                    assert_eq!(seen, [n, n]);
                    let here = EventChannels::open(dom0).unwrap();
                    let port = here.bind_unbound(id).unwrap();
                    let there = EventChannels::open(domu).unwrap();
                    let far = there.bind_interdomain(DomId::DOM0, port.port()).unwrap();
                    far.notify().unwrap();
                    assert_eq!(here.wait(soon()).unwrap(), Some(port.port()));
                }
            });
        }
    });
    host.assert_clean();
}

/// A peer that sends rubbish, or never reads its replies, is cut off and harms no other.
#[test]
fn a_misbehaving_process_harms_nobody() {
    use nix::errno::Errno;
    use nix::sys::socket::{MsgFlags, send};
    let host = Simulation::start().unwrap();
    let id = host.add_domain().unwrap();
    let good = host.xen(DomId::DOM0).unwrap();
    for packet in [vec![1u8; 3], vec![0xFF; 24], vec![0xFF; 100_000]] {
        let fd = host.invite(id).unwrap();
        send(fd.as_raw_fd(), &packet, MsgFlags::MSG_NOSIGNAL).unwrap();
        share(&good, id, 1, PageAccess::ReadWrite).unwrap();
        drop(fd);
    }
    // Replies that are never read: each request asks for a port.
    let fd = host.invite(id).unwrap();
    let mut request = [0; 24];
    request[0] = 2;
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    let cut_off = (0..10_000_000).any(|_| match send(fd.as_raw_fd(), &request, flags) {
        Ok(_) => false,
        Err(Errno::EAGAIN) => {
            std::thread::yield_now();
            false
        }
        Err(e) => {
            assert!(matches!(e, Errno::EPIPE | Errno::ECONNRESET), "{e}");
            true
        }
    });
    assert!(cut_off, "the broker went on");
    share(&good, id, 1, PageAccess::ReadWrite).unwrap();
    host.assert_clean();
}

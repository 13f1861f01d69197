//! Ports of three domains, without a broker.

use std::collections::HashMap;

use super::*;

const A: DomId = DomId::new(1);
const B: DomId = DomId::new(2);
const C: DomId = DomId::new(3);

impl AllPorts for HashMap<DomId, Ports> {
    fn ports(&mut self, domain: DomId) -> Option<&mut Ports> {
        self.get_mut(&domain)
    }
}

fn domains() -> HashMap<DomId, Ports> {
    [A, B, C].into_iter().map(|d| (d, Ports::new())).collect()
}

fn unbound(w: &mut HashMap<DomId, Ports>, at: DomId, remote: DomId) -> (Port, [OwnedFd; 2]) {
    let bells = [
        Bell::new(|_| Ok(None)).unwrap(),
        Bell::new(|_| Ok(None)).unwrap(),
    ];
    w.ports(at)
        .unwrap()
        .bind_unbound(1, 100, remote, bells)
        .unwrap()
}

/// Takes the events of a bell: how many rings, zero if none.
fn take(fd: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    match rustix::io::read(fd, &mut count) {
        Ok(_) => u64::from_ne_bytes(count),
        Err(e) => {
            assert_eq!(e, Errno::AGAIN);
            0
        }
    }
}

#[test]
fn the_binder_starts_pending_and_the_other_end_does_not() {
    let mut w = domains();
    let (p, [wait_a, ring_a]) = unbound(&mut w, A, B);
    let (_, [wait_b, ring_b]) = w.bind_interdomain(2, 100, (B, A), p).unwrap();
    assert_eq!((take(&wait_a), take(&wait_b)), (0, 1));
    ring(&ring_a);
    ring(&ring_a);
    assert_eq!(
        (take(&wait_a), take(&wait_b)),
        (0, 2),
        "coalesced, and to B only"
    );
    ring(&ring_b);
    assert_eq!((take(&wait_a), take(&wait_b)), (1, 0));
}

#[test]
fn binding_is_for_the_named_domain_and_once() {
    let mut w = domains();
    let (p, _fds) = unbound(&mut w, A, B);
    let bind = |w: &mut HashMap<_, _>, l, r, p| w.bind_interdomain(2, 100, (l, r), p).map(|b| b.0);
    assert_eq!(bind(&mut w, C, A, p), Err(Errno::INVAL), "it is open for B");
    assert_eq!(
        bind(&mut w, B, A, Port::new(77)),
        Err(Errno::INVAL),
        "no such port"
    );
    assert_eq!(
        bind(&mut w, B, DomId::new(9), p),
        Err(Errno::SRCH),
        "no such domain"
    );
    bind(&mut w, B, A, p).unwrap();
    assert_eq!(bind(&mut w, B, A, p), Err(Errno::INVAL), "it is connected");
}

#[test]
fn a_closed_end_leaves_the_other_open_for_the_same_domain() {
    let mut w = domains();
    let (p, [wait_a, _]) = unbound(&mut w, A, B);
    let (q, _) = w.bind_interdomain(2, 100, (B, A), p).unwrap();
    w.unbind(B, 2, q).unwrap();
    assert_eq!(take(&wait_a), 0, "closing tells nobody");
    assert_eq!(
        w.bind_interdomain(3, 100, (C, A), p).map(|b| b.0),
        Err(Errno::INVAL)
    );
    let (_, [wait_b, _]) = w.bind_interdomain(2, 100, (B, A), p).unwrap();
    assert_ne!(take(&wait_b), 0);
    // And the other way: the end that existed first leaves.
    w.unbind(A, 1, p).unwrap();
    assert!(w.bind_interdomain(1, 100, (A, B), q).is_ok());
}

#[test]
fn only_the_holder_unbinds() {
    let mut w = domains();
    let (p, _fds) = unbound(&mut w, A, B);
    assert_eq!(w.unbind(A, 99, p), Err(Errno::NOTCONN));
    assert_eq!(w.unbind(B, 1, p), Err(Errno::NOTCONN));
    assert_eq!(w.unbind(A, 1, p), Ok(()));
    assert_eq!(w.unbind(A, 1, p), Err(Errno::NOTCONN));
}

#[test]
fn a_notification_keeps_its_port_until_it_is_performed() {
    let mut w = domains();
    let (p, _fds) = unbound(&mut w, A, B);
    let (q, [wait_b, _]) = w.bind_interdomain(2, 100, (B, A), p).unwrap();
    take(&wait_b);
    w.hold(A, p).unwrap();
    w.unbind(A, 1, p).unwrap();
    assert!(w[&A].numbers().contains(&p), "still needed");
    w.let_go(A, p, true);
    assert_eq!(take(&wait_b), 1);
    assert!(!w[&A].numbers().contains(&p));
    assert_eq!(w.hold(A, p), Err(Errno::INVAL));
    assert!(w[&B].numbers().contains(&q));
}

#[test]
fn the_lowest_free_number_is_next_up_to_the_limit() {
    let mut w = domains();
    let ports: Vec<Port> = (0..3).map(|_| unbound(&mut w, A, B).0).collect();
    w.unbind(A, 1, ports[1]).unwrap();
    assert_eq!(unbound(&mut w, A, B).0, ports[1]);
    let bells = [
        Bell::new(|_| Ok(None)).unwrap(),
        Bell::new(|_| Ok(None)).unwrap(),
    ];
    let full = w.ports(A).unwrap().bind_unbound(1, 3, B, bells);
    assert_eq!(full.map(|b| b.0), Err(Errno::NOSPC));
}

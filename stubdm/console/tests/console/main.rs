//! Both ends of a PV console on a simulated host: nothing lost, nothing altered, whatever either
//! does.

#![allow(clippy::unwrap_used)]

mod host;
mod stream;
mod traffic;

use std::time::{Duration, Instant};

use xen_console::{Backend, Error, Frontend, XenbusState};
use xen_evtchn::EventPacer;
use xen_store::Permissions;
use xen_sys::DomId;

use host::{NODE, PATIENCE, TestHost, sleep};

/// Turns the backend until `done`, and returns the errors it reported.
fn until(backend: &mut Backend, mut done: impl FnMut(&mut Backend) -> bool) -> Vec<Error> {
    let deadline = Instant::now() + PATIENCE;
    let mut errors = Vec::new();
    loop {
        if let Err(error) = backend.turn(Instant::now()) {
            errors.push(error);
        }
        if done(backend) {
            return errors;
        }
        assert!(Instant::now() < deadline, "{errors:?}");
        let nap = Instant::now() + Duration::from_millis(10);
        sleep(&backend.poll_fds(), Some(nap)).unwrap();
    }
}

#[test]
fn nothing_is_published_before_it_is_asked_for() {
    let host = TestHost::new();
    let mut backend = host.backend();
    assert_eq!(backend.turn(Instant::now()).unwrap(), XenbusState::InitWait);
    assert!(!backend.is_connected());
    assert!(!host.store.exists(&host.node("ring-ref")).unwrap());
    let frontend = host.frontend();
    let errors = until(&mut backend, |backend| backend.is_connected());
    assert!(errors.is_empty());
    drop(frontend);
    drop(backend);
    host.end();
}

#[test]
fn an_early_word_waits_for_the_backend() {
    let host = TestHost::new();
    let mut frontend = host.frontend();
    assert_eq!(frontend.connection().try_write(b"early").unwrap(), 5);
    assert!(
        !frontend
            .drain(Instant::now() + Duration::from_millis(20))
            .unwrap()
    );
    let mut backend = host.backend();
    until(&mut backend, |backend| backend.is_connected());
    let mut buffer = [0; 16];
    assert_eq!(
        backend.connection().unwrap().try_read(&mut buffer).unwrap(),
        5
    );
    assert_eq!(&buffer[..5], b"early");
    assert!(frontend.drain(Instant::now() + PATIENCE).unwrap());
    assert_eq!(frontend.turn().unwrap(), XenbusState::Connected);
    assert_eq!(host.store.read(&host.node("state")).unwrap(), b"4");
    drop(frontend);
    drop(backend);
    host.end();
}

#[test]
fn a_state_that_the_store_refused_is_written_again() {
    let host = TestHost::new();
    let permit = |node: &str, owner| {
        let permissions = Permissions::owner_none(owner)
            .grant_read(DomId::DOM0)
            .grant_read(host.domain);
        host.store.set_permissions(node, &permissions).unwrap();
    };
    let mut frontend = host.frontend();
    let mut backend = host.backend();
    until(&mut backend, |backend| backend.is_connected());
    let node = host.node("state");
    permit(&node, DomId::DOM0);
    for _ in 0..2 {
        assert!(matches!(frontend.turn(), Err(Error::Store(_))));
    }
    assert_eq!(host.store.read(&node).unwrap(), b"3");
    permit(&node, host.domain);
    frontend.turn().unwrap();
    assert_eq!(host.store.read(&node).unwrap(), b"4");
    drop((frontend, backend));

    // A backend by the store of a domain that has the node's permission only.
    let (_xen, store) = host.domu();
    let node = format!("{}/state", host.path);
    permit(&node, host.domain);
    let mut backend = Backend::new(&host.dom0(), &store, &host.path).unwrap();
    permit(&node, DomId::DOM0);
    assert_eq!(host.state(1), "2");
    let now = Instant::now();
    for _ in 0..2 {
        assert!(matches!(backend.turn(now), Err(Error::Store(_))));
    }
    permit(&node, host.domain);
    assert_eq!(backend.turn(now).unwrap(), XenbusState::Closed);
    assert_eq!(host.state(1), "6");
    drop(backend);
    host.end();
}

#[test]
fn a_backend_started_anew_goes_on_where_the_old_one_stopped() {
    let host = TestHost::new();
    let mut frontend = host.frontend();
    let mut old = host.backend();
    until(&mut old, |backend| backend.is_connected());
    frontend.connection().try_write(b"abcdef").unwrap();
    let mut buffer = [0; 3];
    old.connection().unwrap().try_read(&mut buffer).unwrap();
    old.connection().unwrap().try_write(b"xyz").unwrap();
    drop(old);
    let mut new = host.backend();
    until(&mut new, |backend| backend.is_connected());
    let mut rest = [0; 9];
    assert_eq!(new.connection().unwrap().try_read(&mut rest).unwrap(), 3);
    assert_eq!(&rest[..3], b"def");
    new.connection().unwrap().try_write(b"!").unwrap();
    frontend.turn().unwrap();
    assert_eq!(frontend.connection().try_read(&mut rest).unwrap(), 4);
    assert_eq!(&rest[..4], b"xyz!");
    drop(frontend);
    drop(new);
    host.end();
}

#[test]
fn what_the_frontends_nodes_cannot_mean_is_reported_and_survived() {
    let host = TestHost::new();
    let (_xen, store) = host.domu();
    let mut backend = host.backend();
    for (reference, port) in [
        ("x", "1"),
        ("4000000000", "1"),
        ("99999999999999", "1"),
        ("7", "4000000000"),
        ("", ""),
        ("-1", "0"),
    ] {
        store.write(&format!("{NODE}/ring-ref"), reference).unwrap();
        store.write(&format!("{NODE}/port"), port).unwrap();
        store.write(&format!("{NODE}/state"), "3").unwrap();
        let mut errors = until(&mut backend, |_| host.state(1) == "5");
        let error = errors.pop().unwrap();
        assert!(
            matches!(error, Error::Node { .. } | Error::Xen(_)),
            "{error}"
        );
        assert!(!backend.is_connected());
        store.write(&format!("{NODE}/state"), "6").unwrap();
        until(&mut backend, |_| host.state(1) == "6");
    }
    let frontend = host.frontend();
    until(&mut backend, |backend| backend.is_connected());
    drop(frontend);
    drop(backend);
    host.end();
}

#[test]
fn a_broken_ring_ends_the_connection_and_not_the_console() {
    let host = TestHost::new();
    let mut backend = host.backend();
    let bare = host.bare(NODE);
    bare.write("state", "3");
    until(&mut backend, |backend| backend.is_connected());
    bare.set(3084, 2049);
    bare.port.notify().unwrap();
    let error = backend
        .connection()
        .unwrap()
        .try_read(&mut [0; 64])
        .unwrap_err();
    assert!(matches!(error, Error::Ring(_)), "{error}");
    backend.give_up().unwrap();
    assert!(!backend.is_connected());
    // The backend does not take it up again before the frontend has closed.
    bare.write("state", "4");
    until(&mut backend, |_| true);
    assert!(!backend.is_connected());
    bare.close();
    until(&mut backend, |_| host.state(1) == "6");
    let frontend = host.frontend();
    until(&mut backend, |backend| backend.is_connected());
    drop(frontend);
    drop(backend);
    host.end();
}

#[test]
fn a_domain_that_is_gone_lets_the_backend_go() {
    let host = TestHost::new();
    let frontend = host.frontend();
    let mut backend = host.backend();
    until(&mut backend, |backend| backend.is_connected());
    let home = format!("/local/domain/{}", host.domain);
    host.simulation.destroy_domain(host.domain).unwrap();
    drop(frontend);
    host.store.rm(&home).unwrap();
    until(&mut backend, |backend| {
        backend.is_connected()
            && backend
                .turn(Instant::now())
                .is_ok_and(|s| s == XenbusState::Closing)
    });
    host.store.rm(&host.path).unwrap();
    backend.let_go().unwrap();
    assert!(!host.store.exists(&host.path).unwrap(), "brought back");
    drop(backend);
    host.end();
}

#[test]
fn a_backend_that_is_gone_is_seen_and_what_it_wrote_is_read() {
    let host = TestHost::new();
    let mut frontend = host.frontend();
    let mut backend = host.backend();
    until(&mut backend, |backend| backend.is_connected());
    backend
        .connection()
        .unwrap()
        .try_write(b"last words")
        .unwrap();
    drop(backend);
    host.store.rm(&host.path).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while frontend.turn().unwrap() != XenbusState::Closed {
        sleep(&frontend.poll_fds().unwrap(), Some(deadline)).unwrap();
        assert!(Instant::now() < deadline);
    }
    let mut buffer = [0; 16];
    assert_eq!(frontend.connection().try_read(&mut buffer).unwrap(), 10);
    frontend.connection().try_write(b"nobody").unwrap();
    assert!(!frontend.close(PATIENCE).unwrap());
    host.end();
}

#[test]
fn a_console_in_use_or_not_offered_is_refused() {
    let host = TestHost::new();
    let (xen, store) = host.domu();
    let frontend = host.frontend();
    let again = Frontend::publish(&xen, &store, NODE, &[]);
    assert!(matches!(again, Err(Error::Node { .. })));
    let other = Frontend::publish(&xen, &store, "device/console/9", &[]);
    assert!(matches!(other, Err(Error::Node { .. })));
    assert!(xen_console::frontend::offered(&store, NODE).unwrap());
    assert!(!xen_console::frontend::offered(&store, "device/console/9").unwrap());
    drop(frontend);
    host.end();
}

/// At one moment by the backend's clock.
#[test]
fn a_frontend_that_notifies_for_nothing_is_held_back_and_read_again() {
    let host = TestHost::new();
    let mut frontend = host.frontend();
    let mut backend = host.backend();
    until(&mut backend, |backend| backend.is_connected());
    let now = Instant::now();
    let burst = (1..100).find(|_| {
        frontend.connection().notify().unwrap();
        let readable = backend.ring_fd().unwrap();
        sleep(&[readable], Some(Instant::now() + PATIENCE)).unwrap();
        backend.turn(now).unwrap();
        backend.ring_deadline().is_some()
    });
    assert!(burst.is_some_and(|burst| burst >= EventPacer::BURST));
    assert_eq!(frontend.connection().try_write(b"x").unwrap(), 1);
    let is_masked = backend.connection().unwrap().acknowledge(now);
    assert!(is_masked.is_ok() && backend.ring_deadline().is_some());
    let due = backend.ring_deadline().unwrap();
    backend.turn(due).unwrap();
    // The event that arrived meanwhile is taken by this turn or makes the descriptor readable.
    if backend.ring_deadline().is_none() {
        let end = Instant::now() + PATIENCE;
        sleep(&[backend.ring_fd().unwrap()], Some(end)).unwrap();
        assert!(Instant::now() < end, "the event is lost");
    }
    assert_eq!(
        backend.connection().unwrap().try_read(&mut [0; 4]).unwrap(),
        1
    );
    drop(frontend);
    drop(backend);
    host.end();
}

/// In 70 seconds of a frontend that writes its state every seven milliseconds.
#[test]
fn a_frontend_that_toggles_its_state_costs_the_store_a_look_a_second() {
    let host = TestHost::new();
    let (_xen, store) = host.domu();
    let mut backend = host.backend();
    let start = Instant::now();
    let mut followed = 0;
    let mut last = backend.turn(start).unwrap();
    for step in 0..10_000 {
        let state = ["6", "1"][step % 2];
        store.write(&format!("{NODE}/state"), state).unwrap();
        let now = start + Duration::from_millis(7) * u32::try_from(step).unwrap();
        let state = backend.turn(now).unwrap();
        followed += usize::from(state != last);
        last = state;
    }
    assert!((20..200).contains(&followed), "{followed} transactions");
    // Nothing is missed for that: the last word is followed.
    store.write(&format!("{NODE}/state"), "6").unwrap();
    backend.turn(start + Duration::from_secs(1000)).unwrap();
    let state = backend.turn(start + Duration::from_secs(2000)).unwrap();
    assert_eq!(state, XenbusState::Closed);
    drop(backend);
    host.end();
}

//! What a client of domain 0 sees of xenstored 4.17, checked on the embedded daemon.
//!
//! The same scripts run against the daemon of a Xen host by the example `rules`, so the two cannot
//! drift apart without one of them failing.

// The lint exempts test functions, but not the helpers beside them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod script;

use std::os::unix::net::UnixStream;

use xen_store::server::{Config, Server};
use xen_sys::DomId;

#[test]
fn every_rule_holds_on_the_embedded_daemon() {
    let server = Server::start(Config::new()).unwrap();
    let connect = || {
        let (ours, theirs) = UnixStream::pair()?;
        server.add_connection(theirs.into(), DomId::DOM0);
        Ok(ours)
    };
    let mut broken = Vec::new();
    let rules = script::rules();
    for rule in &rules {
        if let Err(seen) = script::check(rule, &connect) {
            broken.push(format!("{}: {seen}", rule.name));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert!(rules.len() >= 40, "only {} rules were checked", rules.len());
    println!("{} rules hold on the embedded daemon", rules.len());
}

/// The checker itself can fail.
#[test]
fn a_rule_that_does_not_hold_is_noticed() {
    let server = Server::start(Config::new()).unwrap();
    let connect = || {
        let (ours, theirs) = UnixStream::pair()?;
        server.add_connection(theirs.into(), DomId::DOM0);
        Ok(ours)
    };
    let rules = script::parse("rule: wrong\n1 > READ /r/none|\n1 < READ value");
    let seen = script::check(&rules[0], &connect).unwrap_err();
    assert_eq!(seen, "at line 3, `1 < READ value`, came `ERROR ENOENT|`");
    let rules = script::parse("rule: too little\n1 > WATCH /r/w|t|\n1 < WATCH OK|\n1 ~");
    let seen = script::check(&rules[0], &connect).unwrap_err();
    assert!(seen.contains("EVENT"), "{seen}");
}

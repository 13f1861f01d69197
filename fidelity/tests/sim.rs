//! The rules on the simulated host, between two domains and within one.

use xen_fidelity::{End, World};
use xen_sys::sim::Simulation;
use xen_sys::{DomId, Xen};

fn check(host: &Simulation, world: &World) {
    let mut report = String::new();
    let (held, broken) = xen_fidelity::run(world, |line| {
        report.push_str(line);
        report.push('\n');
    });
    println!("{report}{held} rules hold on the simulated host");
    assert!(broken.is_empty(), "{report}");
    assert!(held >= 39, "only {held} rules were checked");
    host.assert_clean();
}

#[test]
fn every_rule_holds_between_two_domains() {
    let host = Simulation::start().unwrap();
    let id = host.add_domain().unwrap();
    let end = |id| End {
        xen: host.xen(id).unwrap(),
        id,
    };
    check(
        &host,
        &World {
            a: end(DomId::DOM0),
            b: end(id),
            shared_pages: 1024,
        },
    );
    check(
        &host,
        &World {
            a: end(id),
            b: end(DomId::DOM0),
            shared_pages: 1024,
        },
    );
}

#[test]
fn every_rule_holds_in_a_domain_that_talks_to_itself() {
    let host = Simulation::start().unwrap();
    let id = host.add_domain().unwrap();
    let xen: Xen = host.xen(id).unwrap();
    check(&host, &World::loopback(&xen, id));
}

//! The rules that the simulated host keeps to, checked on this real one: within dom0, and between
//! dom0 and a domU in both roles.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result};
use xen_fidelity::{Area, End, Kind, Worker};
use xen_store::Store;
use xen_sys::{DomId, Xen};
use xen_vchan::ClientBuilder;

use crate::host::{Place, Privcmd, TestHost, soon};
use crate::suite::{Needs, Test};

/// Where xenstored listens.
const SOCKET: &str = "/run/xenstored/socket";
/// Of the domU's home.
const PATH: &str = "data/rules-served";
/// No answer takes this long.
const PATIENCE: Duration = Duration::from_secs(100);

pub(super) fn add_dom0(tests: &mut Vec<Test>) {
    tests.push(Test::new("rules/dom0", Needs::Dom0, |_| {
        let dom0 = dom0()?;
        let ends = xen_fidelity::Ends::new(dom0.clone(), dom0, Kind::Real);
        let areas = [
            Area::Evtchn,
            Area::Gnttab,
            Area::Store,
            Area::Vchan,
            Area::Differences,
        ];
        xen_fidelity::report(&ends, "real-dom0", &areas)
    }));
}

pub(super) fn add(tests: &mut Vec<Test>) {
    let needs = Needs::DomU(Privcmd::Unrestricted);
    let pair = [Area::Evtchn, Area::Gnttab, Area::Vchan];
    tests.push(Test::new("rules/dom0_and_domu", needs, move |host| {
        with_domu(host, |rules| {
            xen_fidelity::report(rules, "real-dom0-domu", &pair)
        })
    }));
    tests.push(Test::new("rules/domu_and_dom0", needs, move |host| {
        with_domu(host, |rules| {
            xen_fidelity::report(&rules.turned(), "real-domu-dom0", &pair)
        })
    }));
    tests.push(Test::new("rules/store_of_a_domu", needs, |host| {
        with_domu(host, |rules| {
            xen_fidelity::report(rules, "real-dom0-domu", &[Area::StoreGuest])
        })
    }));
    tests.push(Test::new(
        "rules/store_of_a_domu_with_a_target",
        needs,
        |host| {
            with_domu(host, |rules| {
                xen_fidelity::report(rules, "real-dom0-domu", &[Area::StoreTarget])
            })?;
            // It has rights now that no other test reckons with.
            host.no_domu()
        },
    ));
}

fn dom0() -> Result<End> {
    let worker = Worker::new(Xen::open()?, || Ok(UnixStream::connect(SOCKET)?.into()));
    Ok(End::near(DomId::DOM0, worker))
}

fn with_domu(host: &TestHost, check: impl Fn(&xen_fidelity::Ends) -> Result<()>) -> Result<()> {
    let domu = host.domid(Place::DomU)?;
    let mut job = host.role(Place::DomU, &["rules-serve", PATH])?;
    job.expect("listening", soon())?;
    let xen = Xen::open()?;
    let mut channel = ClientBuilder::new(domu, format!("/local/domain/{domu}/{PATH}"))
        .wait_for_server(true)
        .deadline(soon())
        .connect(&xen, &Store::open(&xen)?)?;
    channel.set_read_timeout(Some(PATIENCE));
    channel.set_write_timeout(Some(PATIENCE));
    let rules = xen_fidelity::Ends::new(dom0()?, End::far(domu, channel), Kind::Real);
    let checked = check(&rules);
    drop(rules);
    let ended = job.succeed(soon()).context("the domU's end");
    checked.and(ended)
}

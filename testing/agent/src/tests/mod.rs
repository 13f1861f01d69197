//! All tests on real Xen, in the order they run: those that share a domU stand together.

mod altered;
mod assign;
mod badinput;
mod buffers;
mod cdrom;
mod clients;
mod conformance;
pub(crate) mod consoled;
#[cfg(target_arch = "x86_64")]
mod context;
mod copy;
mod device_model;
mod devices;
mod evtchn;
mod examples;
mod foreign;
mod gnttab;
pub(crate) mod hostile;
mod hypercalls;
mod killed;
pub(crate) mod linux;
mod live_update;
mod monitor;
mod outcomes;
mod pci;
mod policy;
mod privcmd;
mod qmp;
mod raw;
mod rules;
mod save;
mod screen;
mod store;
mod stubdom;
mod tools;
mod two_domus;
mod vchan;
mod vchan_ends;

use crate::host::Privcmd;
use crate::suite::{Needs, Test};

/// The tests for a machine: with an IOMMU and devices to pass through, or without.
pub(crate) fn of(pci: bool) -> Vec<Test> {
    if !pci {
        return all();
    }
    let mut tests = Vec::new();
    pci::add(&mut tests);
    tests
}

/// The tests for a machine without an IOMMU, in the order they run.
fn all() -> Vec<Test> {
    let mut tests = Vec::new();
    privcmd::add_dom0(&mut tests);
    hypercalls::add_dom0(&mut tests);
    evtchn::add_dom0(&mut tests);
    rules::add_dom0(&mut tests);
    store::add_dom0(&mut tests);
    conformance::add(&mut tests);
    live_update::add(&mut tests);
    clients::add_dom0(&mut tests);
    badinput::add(&mut tests);

    let unrestricted = Needs::DomU(Privcmd::Unrestricted);
    privcmd::add_unrestricted(&mut tests);
    hypercalls::add_unrestricted(&mut tests);
    evtchn::add(&mut tests, unrestricted);
    gnttab::add(&mut tests, unrestricted);
    store::add(&mut tests, unrestricted);
    vchan::add(&mut tests, unrestricted);
    rules::add(&mut tests);

    let refusing = Needs::DomU(Privcmd::Refusing);
    privcmd::add_refusing(&mut tests);
    store::add(&mut tests, refusing);
    vchan::add(&mut tests, refusing);
    vchan_ends::add(&mut tests, refusing);
    // Last of these: it ends the domU.
    hypercalls::add_refusing(&mut tests);
    two_domus::add(&mut tests);

    tools::add(&mut tests);
    consoled::add(&mut tests);
    hostile::add(&mut tests);
    devices::add_shared(&mut tests);
    qmp::add(&mut tests);
    hypercalls::add_guest(&mut tests);
    examples::add(&mut tests);
    monitor::add(&mut tests);
    stubdom::add(&mut tests);
    outcomes::add(&mut tests);
    save::add(&mut tests);
    screen::add(&mut tests);
    killed::add(&mut tests);
    linux::add(&mut tests);
    cdrom::add(&mut tests);
    policy::add(&mut tests);
    devices::add(&mut tests);
    tests
}

/// The name of a test that runs in both kinds of domU.
fn named(name: &str, needs: Needs) -> String {
    match needs {
        Needs::DomU(Privcmd::Refusing) => format!("{name}_privcmd_refusing"),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod unit {
    use std::collections::BTreeSet;

    fn all() -> Vec<String> {
        let tests = [false, true].into_iter().flat_map(super::of);
        tests.map(|test| test.name).collect()
    }

    #[test]
    fn every_test_has_a_name_of_its_own() {
        let names: Vec<String> = all();
        let distinct: BTreeSet<&String> = names.iter().collect();
        assert_eq!(distinct.len(), names.len());
        assert!(names.iter().all(|name| !name.contains(char::is_whitespace)));
    }

    #[test]
    fn every_test_on_real_xen_that_a_table_of_features_names_is_in_the_suite() {
        let names: BTreeSet<String> = all().into_iter().collect();
        let pages = ["xen-sys.md", "xen-store.md"].map(|page| {
            let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs");
            std::fs::read_to_string(format!("{docs}/{page}")).unwrap()
        });
        let rows = pages.iter().flat_map(|text| {
            let (_, table) = text.split_once("## Tests of each feature").unwrap();
            table.lines().filter(|line| line.starts_with("| "))
        });
        let quoted = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
        let named: BTreeSet<&str> = quoted
            .filter(|name| name.contains('/') && !name.starts_with("/dev"))
            .collect();
        let lost: Vec<_> = named.iter().filter(|n| !names.contains(**n)).collect();
        assert!(named.len() > 30 && lost.is_empty(), "{lost:?}");
    }
}

//! The rules that the simulated host keeps to, checked on this real one.

use anyhow::{Result, ensure};
use xen_fidelity::World;
use xen_sys::{DomId, Xen};

use crate::suite::{Needs, Test};

pub(super) fn add_dom0(tests: &mut Vec<Test>) {
    tests.push(Test::new(
        "rules/evtchn_and_gnttab_dom0",
        Needs::Dom0,
        |_| hold(),
    ));
}

fn hold() -> Result<()> {
    let here = World::loopback(&Xen::open()?, DomId::DOM0);
    let mut report = String::new();
    let (held, broken) = xen_fidelity::run(&here, |line| {
        report.push_str(line);
        report.push('\n');
    });
    println!("{held} rules hold on real Xen, {} are broken", broken.len());
    ensure!(broken.is_empty(), "{report}");
    ensure!(held > 0, "there are no rules");
    Ok(())
}

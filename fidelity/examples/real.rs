//! Checks the rules on the real host this runs on: `real [DOMID]`, the number of this domain.

use std::process::ExitCode;

use xen_fidelity::World;
use xen_sys::{DomId, Xen};

fn main() -> ExitCode {
    let me = match std::env::args()
        .nth(1)
        .map_or(Ok(DomId::DOM0), |a| a.parse())
    {
        Ok(me) => me,
        Err(e) => return fail(&e),
    };
    let xen = match Xen::open() {
        Ok(xen) => xen,
        Err(e) => return fail(&e),
    };
    let (held, broken) = xen_fidelity::run(&World::loopback(&xen, me), |line| println!("{line}"));
    println!(
        "{held} rules hold on this host, {} are broken",
        broken.len()
    );
    if broken.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn fail(e: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("real: {e}");
    ExitCode::FAILURE
}

//! Prints the hypervisor's version and what it can run; needs /dev/xen/privcmd.

use xen_sys::{Xen, privcmd::Privcmd};

fn main() -> std::process::ExitCode {
    match print() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("xenversion: {e}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn print() -> xen_sys::Result<()> {
    let privcmd = Privcmd::open(&Xen::open()?)?;
    println!("Xen {}", privcmd.xen_version()?);
    println!("{}", privcmd.capabilities()?);
    Ok(())
}

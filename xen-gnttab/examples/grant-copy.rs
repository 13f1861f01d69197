//! Copies to and from pages that are granted, without a mapping, all inside one domain.
//!
//! On a Xen host: `grant-copy [DOMID]`; DOMID is this domain's own number, 0 unless given.
//! Without Xen: `cargo run -p xen-gnttab --features sim --example grant-copy -- --sim`.

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use xen_gnttab::{CopySegment, GrantCopier, GrantedBytes, PageAccess, share};
use xen_sys::{DomId, Xen};

/// Copies to and from granted pages.
#[derive(Debug, Parser)]
struct Options {
    /// This domain's own number.
    #[arg(default_value = "0")]
    me: DomId,
    /// Copy on a simulated host.
    #[arg(long)]
    sim: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let copied = match options.sim {
        false => Xen::open()
            .map_err(Into::into)
            .and_then(|xen| copy(&xen, options.me)),
        true => simulated(),
    };
    match copied {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("grant-copy: {e}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(feature = "sim")]
fn simulated() -> Result<(), Box<dyn Error>> {
    let host = xen_sys::sim::Simulation::start()?;
    copy(&host.xen(DomId::DOM0)?, DomId::DOM0)?;
    host.assert_clean();
    Ok(())
}

#[cfg(not(feature = "sim"))]
fn simulated() -> Result<(), Box<dyn Error>> {
    Err("this was built without the feature `sim`".into())
}

fn copy(xen: &Xen, me: DomId) -> Result<(), Box<dyn Error>> {
    let pages = share(xen, me, 16, PageAccess::ReadWrite)?;
    let at = |page: usize| GrantedBytes {
        domain: me,
        gref: pages.refs()[page],
        offset: 0,
    };
    let copier = GrantCopier::open(xen)?;
    // A pattern for each page, and all of them by one call.
    let patterns: Vec<[u8; 4096]> = (0..16).map(|page| [page; 4096]).collect();
    let to = patterns.iter().enumerate();
    let mut writes: Vec<_> = to.map(|(i, p)| CopySegment::write(p, at(i))).collect();
    copier.copy(&mut writes)?;
    let mut back = vec![[0u8; 4096]; 16];
    let from = back.iter_mut().enumerate();
    let mut reads: Vec<_> = from.map(|(i, p)| CopySegment::read(at(i), p)).collect();
    copier.copy(&mut reads)?;
    for segment in writes.iter().chain(&reads) {
        segment.status().ok_or("a segment was left out")?.ok()?;
    }
    if back != patterns {
        return Err("other bytes came back".into());
    }
    println!("16 pages of 4096 bytes, written and read by two calls");
    Ok(())
}

#[cfg(all(test, feature = "sim"))]
#[test]
fn sixteen_pages_go_there_and_back() {
    assert!(simulated().is_ok());
}

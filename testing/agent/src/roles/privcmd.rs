//! privcmd: what it answers, and who opens it.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use xen_store::Store;
use xen_sys::privcmd::Privcmd;
use xen_sys::{DomId, Error, Xen};

/// Prints `version M.N` or, when the kernel refuses, `refused ERRNO`.
pub(crate) fn version() -> Result<()> {
    let privcmd = Privcmd::open(&Xen::open()?)?;
    match privcmd.xen_version() {
        Ok(version) => println!("version {}.{}", version.major, version.minor),
        Err(error) => match error.errno() {
            Some(errno) => println!("refused {}", nix::errno::Errno::from_raw(errno)),
            None => return Err(error.into()),
        },
    }
    Ok(())
}

/// Prints the result of a few typed hypercalls, each by the kind of its error.
pub(crate) fn hypercalls() -> Result<()> {
    let xen = Xen::open()?;
    let privcmd = Privcmd::open(&xen)?;
    let dom0 = DomId::DOM0;
    let (own, stored) = (privcmd.own_domain(), Store::open(&xen)?.own_domain()?);
    if let Ok(own) = own.as_ref() {
        ensure!(*own == stored, "Xen: domain {own}, the store: {stored}");
    }
    for (call, result) in [
        ("xen_version", privcmd.xen_version().map(drop)),
        ("domains", privcmd.domains().map(drop)),
        ("domain_info", privcmd.domain_info(dom0).map(drop)),
        ("pause", privcmd.pause(dom0)),
        ("grant_table_size", privcmd.grant_table_size(dom0).map(drop)),
        ("own_domain", own.map(drop)),
    ] {
        let kind = match result {
            Ok(()) => "ok".to_owned(),
            Err(Error::NotPermitted { .. }) => "not permitted".to_owned(),
            Err(Error::HypercallsRefused { .. }) => "hypercalls refused".to_owned(),
            Err(error) => format!("{error:?}"),
        };
        println!("{call}: {kind}");
    }
    Ok(())
}

/// Prints `watching` and from then on `opened PATH` each time. Ends only by a signal.
pub(crate) fn watch() -> Result<()> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
    let mut watched = Vec::new();
    for path in [
        "/dev/xen/privcmd",
        "/dev/xen/hypercall",
        "/proc/xen/privcmd",
    ] {
        if Path::new(path).exists() {
            let watch = inotify
                .add_watch(path, AddWatchFlags::IN_OPEN)
                .with_context(|| format!("watching {path}"))?;
            watched.push((watch, path));
        }
    }
    ensure!(
        watched.iter().any(|&(_, path)| path == "/dev/xen/privcmd"),
        "there is no /dev/xen/privcmd: the module is not loaded"
    );
    println!("watching");
    loop {
        for event in inotify.read_events()? {
            if let Some((_, path)) = watched.iter().find(|(watch, _)| *watch == event.wd) {
                println!("opened {path}");
            }
        }
    }
}

//! Grant copies, mappings by one gntdev, and adopted event channels.

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use xen_evtchn::EventChannels;
use xen_gnttab::dmabuf::{self, Backing};
use xen_gnttab::{
    CopySegment, GrantCopier, GrantStatus, GrantedBytes, PageAccess, limits, map_from, share,
};
use xen_sys::privcmd::{PortState, Privcmd};
use xen_sys::{DomId, Error, GrantRef, PAGE_SIZE, Xen};

use crate::host::TestHost;

/// Copies a hundred segments by one call, within dom0, and has each refusal beside a success.
pub(super) fn grant_copy(_: &TestHost) -> Result<()> {
    let (xen, me) = (Xen::open()?, DomId::DOM0);
    let mut pages = share(&xen, me, 2, PageAccess::ReadWrite)?;
    let readable = share(&xen, me, 1, PageAccess::ReadOnly)?;
    let at = |gref: GrantRef, offset: usize| GrantedBytes {
        domain: me,
        gref,
        offset,
    };
    let (first, second) = (pages.refs()[0], pages.refs()[1]);
    let pattern: Vec<u8> = (0..=255).cycle().take(PAGE_SIZE).collect();
    pages.region_mut().copy_in(0, &pattern)?;
    let mut back = vec![0; 4000];
    let copier = GrantCopier::open(&xen)?;
    let parts = back.chunks_mut(40).enumerate();
    let mut segments: Vec<_> = parts
        .map(|(i, part)| CopySegment::read(at(first, 40 * i), part))
        .collect();
    segments.push(CopySegment::write(b"written by dom0", at(second, 7)));
    segments.push(CopySegment::between(at(first, 3), at(second, 100), 64));
    copier.copy(&mut segments)?;
    let failed = segments
        .iter()
        .find(|s| s.status() != Some(GrantStatus::OKAY));
    ensure!(failed.is_none(), "{:?}", failed.and_then(|s| s.status()));
    ensure!(back == pattern[..4000]);
    let mut seen = [0; 15];
    pages.region().copy_out(PAGE_SIZE + 7, &mut seen)?;
    ensure!(&seen == b"written by dom0", "{seen:?}");
    let mut seen = [0; 64];
    pages.region().copy_out(PAGE_SIZE + 100, &mut seen)?;
    ensure!(seen == pattern[3..67], "{seen:?}");

    let (mut one, mut two) = ([1; 4], [1; 4]);
    let nobody = GrantedBytes {
        domain: DomId::new(0x7000),
        ..at(first, 0)
    };
    let mut segments = [
        CopySegment::read(at(GrantRef::new(0x00ff_ffff), 0), &mut one),
        CopySegment::write(b"no", at(readable.refs()[0], 0)),
        CopySegment::read(nobody, &mut two),
        CopySegment::write(b"yes", at(second, 0)),
    ];
    copier.copy(&mut segments)?;
    let statuses: Vec<_> = segments.iter().filter_map(CopySegment::status).collect();
    ensure!(statuses[0] == GrantStatus::BAD_GREF, "{statuses:?}");
    ensure!(!statuses[1].is_okay(), "{statuses:?}");
    ensure!(statuses[2] == GrantStatus::BAD_DOMAIN, "{statuses:?}");
    ensure!(statuses[3].is_okay(), "{statuses:?}");
    Ok(())
}

/// Reaches the limit of each driver, and finds it in the error and in the report.
pub(super) fn grant_limits(_: &TestHost) -> Result<()> {
    /// A parameter that is given its old value back.
    struct Parameter(&'static str, String);
    impl Drop for Parameter {
        fn drop(&mut self) {
            let _ = std::fs::write(self.0, &self.1);
        }
    }
    let set = |path, value: u32| -> Result<Parameter> {
        let old = std::fs::read_to_string(path)?;
        std::fs::write(path, value.to_string())?;
        Ok(Parameter(path, old))
    };
    let (xen, me, rw) = (Xen::open()?, DomId::DOM0, PageAccess::ReadWrite);
    let pages = share(&xen, me, 3, rw)?;
    let table = limits(&xen)?.table;
    let table = table.context("dom0 may ask Xen for its grant table")?;
    let size = Privcmd::open(&xen)?.grant_table_size(me)?;
    ensure!(table.max_frames == size.max_frames, "{table:?}, {size:?}");
    {
        let _restored = set("/sys/module/xen_gntdev/parameters/limit", 2)?;
        ensure!(limits(&xen)?.mapped_pages == Some(2), "{:?}", limits(&xen)?);
        drop(xen_gnttab::map(&xen, me, &pages.refs()[..2], rw)?);
        match xen_gnttab::map(&xen, me, pages.refs(), rw) {
            Err(Error::LimitReached { limit: Some(2), .. }) => {}
            other => bail!("three pages of two: {other:?}"),
        }
    }
    {
        // More than any other program of dom0 shares.
        let _restored = set("/sys/module/xen_gntalloc/parameters/limit", 700)?;
        ensure!(limits(&xen)?.shared_pages == Some(700));
        match share(&xen, me, 698, rw) {
            Err(Error::LimitReached {
                limit: Some(700), ..
            }) => {}
            other => bail!("701 pages of 700: {other:?}"),
        }
        drop(share(&xen, me, 1, rw)?);
    }
    let mapped = xen_gnttab::map(&xen, me, pages.refs(), rw)?;
    ensure!(mapped.region().len() == 3 * PAGE_SIZE);
    Ok(())
}

/// Asks for a dma-buf of granted pages, and for grants of a file that is no dma-buf. Debian's kernels
/// have no such requests, which is an error of its own; others refuse what cannot be.
pub(super) fn dmabuf(_: &TestHost) -> Result<()> {
    let (xen, me) = (Xen::open()?, DomId::DOM0);
    let pages = share(&xen, me, 2, PageAccess::ReadWrite)?;
    let exported = dmabuf::export(&xen, me, pages.refs(), Backing::System);
    let null = std::fs::File::open("/dev/null")?;
    let imported = dmabuf::import(&xen, &null, 2, me);
    if let Err(Error::Unsupported { op }) = exported {
        ensure!(op == "IOCTL_GNTDEV_DMABUF_EXP_FROM_REFS", "{op}");
        ensure!(
            matches!(imported, Err(Error::Unsupported { .. })),
            "exports are not supported, and an import: {imported:?}"
        );
        return Ok(());
    }
    let refused = imported.map(drop).map_err(|e| e.errno());
    ensure!(refused == Err(Some(Errno::EINVAL as i32)), "{refused:?}");
    match exported {
        Ok((fd, exported)) => {
            let soon = || Some(Instant::now() + Duration::from_millis(300));
            ensure!(!exported.wait_released(soon())?, "released while open");
            drop(fd);
            ensure!(exported.wait_released(Some(crate::host::soon()))?);
            // A second wait is for one that was released.
            ensure!(exported.wait_released(soon())?);
        }
        // A PV domain cannot.
        Err(error) => ensure!(error.errno() == Some(Errno::EINVAL as i32), "{error}"),
    }
    Ok(())
}

/// Maps the same reference in many mappings of one handle: one descriptor serves them, and each
/// ends by itself.
pub(super) fn one_gntdev(_: &TestHost) -> Result<()> {
    let open = || -> Result<usize> {
        let fds = std::fs::read_dir("/proc/self/fd")?.flatten();
        let links = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        Ok(links.filter(|to| to.ends_with("gntdev")).count())
    };
    let (before, me) = (open()?, DomId::DOM0);
    let xen = Xen::open()?;
    let mut pages = share(&xen, me, 2, PageAccess::ReadWrite)?;
    pages.region_mut().copy_in(0, b"shared")?;
    let refs: Vec<_> = pages.refs().iter().map(|&gref| (me, gref)).collect();
    let mut mapped = Vec::new();
    for _ in 0..32 {
        mapped.push(map_from(&xen, &refs, PageAccess::ReadWrite)?);
    }
    ensure!(open()? == before + 1, "{} of gntdev", open()?);
    let refused = map_from(
        &xen,
        &[refs[0], (me, GrantRef::new(0x00ff_ffff))],
        PageAccess::ReadOnly,
    );
    ensure!(refused.is_err());
    drop(xen);
    while let Some(last) = mapped.pop() {
        let mut seen = [0; 6];
        last.region().copy_out(0, &mut seen)?;
        ensure!(&seen == b"shared", "{seen:?}");
        drop(last);
    }
    ensure!(open()? == before, "a gntdev is still open");
    Ok(())
}

/// Passes a set of ports on by its descriptor, as a daemon that re-executes itself does.
pub(super) fn adopted_evtchn(_: &TestHost) -> Result<()> {
    const PORTS: usize = 40;
    let (xen, me) = (Xen::open()?, DomId::DOM0);
    let (theirs, before) = (EventChannels::open(&xen)?, EventChannels::open(&xen)?);
    let mut open = Vec::new();
    let mut bound = Vec::new();
    for _ in 0..PORTS {
        open.push(before.bind_unbound(me)?);
        bound.push(theirs.bind_interdomain(me, open[open.len() - 1].port())?);
    }
    let fd = before.as_fd().try_clone_to_owned()?;
    // As it is after an exec that was to keep it.
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
    let channels = EventChannels::adopt(&xen, fd)?;
    let flags = FdFlag::from_bits_retain(fcntl(channels.as_fd(), FcntlArg::F_GETFD)?);
    ensure!(flags.contains(FdFlag::FD_CLOEXEC), "{flags:?}");
    let ports: Vec<_> = open.iter().map(|port| port.port()).collect();
    let adopted: Vec<_> = ports
        .iter()
        .map(|&port| channels.adopt_port(port))
        .collect();
    for round in 0..2 {
        for port in &bound {
            port.notify()?;
        }
        let mut pending = [xen_sys::Port::default(); PORTS];
        let mut seen = 0;
        while seen < PORTS {
            let first = channels.wait(Some(crate::host::soon()))?;
            ensure!(first.is_some(), "round {round}: {seen} of {PORTS} events");
            pending[seen] = first.unwrap_or_default();
            seen += 1;
            seen += channels.pending_batch(&mut pending[seen..])?;
        }
        pending.sort_unstable();
        ensure!(pending[..] == ports[..], "round {round}: {pending:?}");
        channels.unmask_batch(&pending)?;
    }
    drop(adopted);
    let privcmd = Privcmd::open(&xen)?;
    for &port in &ports {
        let status = privcmd.port_status(me, port)?;
        ensure!(status.state == PortState::Closed, "{port}: {status:?}");
    }
    let other = std::fs::File::open("/dev/null")?.into();
    let refused = EventChannels::adopt(&xen, other);
    ensure!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    Ok(())
}

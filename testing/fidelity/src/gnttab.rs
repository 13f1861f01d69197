//! Grants: who may map what, and what both see.

use anyhow::{Context as _, Result, ensure};
use xen_gnttab::PageAccess;
use xen_sys::{GrantRef, PAGE_SIZE};

use crate::handles::{Mapped, Shared, View};
use crate::{Ends, NOBODY, Rule, refused};

pub(crate) mod unmap;

pub(crate) const RULES: &[Rule] = &[
    Rule {
        name: "shared pages are zeroed, with a reference each",
        source: "linux drivers/xen/gntalloc.c: add_grefs, __GFP_ZERO",
        check: zeroed,
    },
    Rule {
        name: "both ends see the same bytes, over page boundaries",
        source: "xen/common/grant_table.c: map_grant_ref",
        check: same_bytes,
    },
    Rule {
        name: "references are mapped in the order given, and may repeat",
        source: "linux drivers/xen/gntdev.c: gntdev_mmap",
        check: any_order,
    },
    Rule {
        name: "a reference is mapped as often as its grantee likes",
        source: "xen/common/grant_table.c: map_grant_ref",
        check: mapped_twice,
    },
    Rule {
        name: "a reference that was not granted is not mapped",
        source: "xen/common/grant_table.c: map_grant_ref, GNTST_bad_gntref",
        check: not_granted,
    },
    Rule {
        name: "a reference granted to another domain is not mapped",
        source: "xen/common/grant_table.c: _set_status",
        check: other_grantee,
    },
    Rule {
        name: "no page of a domain that is not there is mapped",
        source: "xen/common/grant_table.c: map_grant_ref, GNTST_bad_domain",
        check: no_domain,
    },
    Rule {
        name: "a grant for reading is mapped for reading only",
        source: "xen/common/grant_table.c: _set_status, GTF_readonly",
        check: readonly_grant,
    },
    Rule {
        name: "a mapping is made whole or not at all",
        source: "linux drivers/xen/gntdev.c: gntdev_map_grant_pages",
        check: all_or_none,
    },
    Rule {
        name: "no pages, or too many, are refused before anything is done",
        source: "linux drivers/xen/gntdev.c: gntdev_ioctl_map_grant_ref",
        check: counts,
    },
    Rule {
        name: "a domain shares no more pages than the driver's limit",
        source: "linux drivers/xen/gntalloc.c: gntalloc_ioctl_alloc",
        check: limit,
    },
    Rule {
        name: "pages given up while mapped stay until they are unmapped",
        source: "linux drivers/xen/grant-table.c: gnttab_end_foreign_access_ref",
        check: given_up_while_mapped,
    },
    Rule {
        name: "pages given back can be had again",
        source: "linux drivers/xen/gntalloc.c: do_cleanup",
        check: again,
    },
];

use PageAccess::{ReadOnly, ReadWrite};

fn shared(ends: &Ends, pages: usize) -> Result<Shared> {
    Ok(ends.a.share(ends.b.id, pages, ReadWrite)?)
}

fn mapped(ends: &Ends, refs: &[GrantRef]) -> Result<Mapped> {
    Ok(ends.b.map(ends.a.id, refs, ReadWrite)?)
}

fn bytes(r: &View, offset: usize, len: usize) -> Result<Vec<u8>> {
    Ok(r.copy_out(offset, len)?)
}

fn zeroed(ends: &Ends) -> Result<()> {
    for _ in 0..2 {
        let s = shared(ends, 3)?;
        ensure!(
            s.refs().len() == 3 && s.region().len() == 3 * PAGE_SIZE,
            "not three pages"
        );
        ensure!(
            bytes(s.region(), 0, 3 * PAGE_SIZE)?.iter().all(|&b| b == 0),
            "not zeroed"
        );
        // The next round must not see this.
        s.region().fill(0, 3 * PAGE_SIZE, 0xAA)?;
    }
    Ok(())
}

fn same_bytes(ends: &Ends) -> Result<()> {
    let s = shared(ends, 3)?;
    let m = mapped(ends, s.refs())?;
    let text: Vec<u8> = (0..2 * PAGE_SIZE).map(|i| (i % 251) as u8).collect();
    s.region().copy_in(100, &text)?;
    ensure!(
        bytes(m.region(), 100, text.len())? == text,
        "the mapping shows other bytes"
    );
    m.region().copy_in(PAGE_SIZE - 3, b"across")?;
    ensure!(
        bytes(s.region(), PAGE_SIZE - 3, 6)? == b"across",
        "the share shows other bytes"
    );
    Ok(())
}

fn any_order(ends: &Ends) -> Result<()> {
    let s = shared(ends, 3)?;
    for page in 0..3 {
        s.region().copy_in(page * PAGE_SIZE, &[10 + page as u8])?;
    }
    let order = [2, 0, 1, 0];
    let refs: Vec<GrantRef> = order.iter().map(|&p| s.refs()[p]).collect();
    let m = mapped(ends, &refs)?;
    for (i, page) in order.iter().enumerate() {
        let got = m.region().load_u8(i * PAGE_SIZE)?;
        ensure!(got == 10 + *page as u8, "page {i} shows {got}");
    }
    Ok(())
}

fn mapped_twice(ends: &Ends) -> Result<()> {
    let s = shared(ends, 1)?;
    let (one, two) = (mapped(ends, s.refs())?, mapped(ends, s.refs())?);
    one.region().copy_in(0, &[1])?;
    ensure!(two.region().load_u8(0)? == 1, "two mappings differ");
    drop(one);
    ensure!(
        two.region().load_u8(0)? == 1,
        "unmapping one changed the other"
    );
    two.region().copy_in(0, &[2])?;
    ensure!(s.region().load_u8(0)? == 2, "the second mapping is cut off");
    Ok(())
}

fn not_granted(ends: &Ends) -> Result<()> {
    let m = ends.b.map(ends.a.id, &[GrantRef::new(u32::MAX)], ReadOnly);
    refused(m, libc::EINVAL, "mapping a reference that was not granted")
}

fn other_grantee(ends: &Ends) -> Result<()> {
    let s = ends.a.share(NOBODY, 1, ReadWrite)?;
    let m = ends.b.map(ends.a.id, s.refs(), ReadOnly);
    refused(m, libc::EINVAL, "mapping a page granted to another domain")
}

fn no_domain(ends: &Ends) -> Result<()> {
    let m = ends.b.map(NOBODY, &[GrantRef::new(8)], ReadOnly);
    refused(
        m,
        libc::EINVAL,
        "mapping a page of a domain that is not there",
    )
}

fn readonly_grant(ends: &Ends) -> Result<()> {
    let s = ends.a.share(ends.b.id, 1, ReadOnly)?;
    s.region().copy_in(0, &[7])?;
    let m = ends.b.map(ends.a.id, s.refs(), ReadWrite);
    refused(
        m,
        libc::EINVAL,
        "mapping a page for writing that was granted for reading",
    )?;
    let m = ends.b.map(ends.a.id, s.refs(), ReadOnly)?;
    ensure!(
        m.region().load_u8(0)? == 7,
        "the mapping shows another byte"
    );
    ensure!(
        m.region().copy_in(0, &[8]).is_err(),
        "the region can be written to"
    );
    Ok(())
}

fn all_or_none(ends: &Ends) -> Result<()> {
    let s = shared(ends, 1)?;
    let refs = [s.refs()[0], GrantRef::new(u32::MAX)];
    let m = ends.b.map(ends.a.id, &refs, ReadWrite);
    refused(m, libc::EINVAL, "mapping a good reference with a bad one")?;
    // No mapping is left: the page can be given up and is gone.
    mapped(ends, s.refs())?;
    Ok(())
}

fn counts(ends: &Ends) -> Result<()> {
    let none = ends.a.share(ends.b.id, 0, ReadWrite);
    ensure!(
        none.as_ref().is_err_and(|e| e.kind == "Invalid"),
        "sharing no pages: {none:?}"
    );
    let none = ends.b.map(ends.a.id, &[], ReadWrite);
    ensure!(
        none.as_ref().is_err_and(|e| e.kind == "Invalid"),
        "mapping no pages: {none:?}"
    );
    let all = ends.a.share(ends.b.id, usize::MAX, ReadWrite);
    ensure!(
        all.as_ref().is_err_and(|e| e.kind == "Invalid"),
        "sharing everything: {all:?}"
    );
    Ok(())
}

fn limit(ends: &Ends) -> Result<()> {
    let all = ends.a.share(ends.b.id, ends.shared_pages + 1, ReadWrite);
    refused(all, libc::ENOSPC, "sharing more than the limit")?;
    // It is a limit, not a fault: less still succeeds.
    shared(ends, 1)?;
    Ok(())
}

fn given_up_while_mapped(ends: &Ends) -> Result<()> {
    let s = shared(ends, 1)?;
    let m = mapped(ends, s.refs())?;
    s.region().copy_in(0, b"still here")?;
    drop(s);
    ensure!(
        bytes(m.region(), 0, 10)? == b"still here",
        "the page is gone"
    );
    m.region().copy_in(0, b"mine alone")?;
    let next = shared(ends, 4)?;
    ensure!(
        bytes(next.region(), 0, 4 * PAGE_SIZE)?
            .iter()
            .all(|&b| b == 0),
        "reused"
    );
    next.region().fill(0, 4 * PAGE_SIZE, 0xEE)?;
    ensure!(
        bytes(m.region(), 0, 10)? == b"mine alone",
        "the page was given out again"
    );
    Ok(())
}

fn again(ends: &Ends) -> Result<()> {
    // More in all than the limit at once.
    let pages = ends.shared_pages / 4;
    for round in 0..8 {
        let s = shared(ends, pages).with_context(|| format!("round {round}"))?;
        mapped(ends, s.refs()).with_context(|| format!("round {round}"))?;
    }
    Ok(())
}

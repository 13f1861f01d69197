//! Memory of the HVM guest, mapped by frame number.

use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result, bail, ensure};
use xen_gnttab::{PageAccess, Region, foreign};
use xen_sys::privcmd::{HvmParam, Privcmd, Resource};
use xen_sys::{DomId, Error, PAGE_SIZE, Xen};

use super::hypercalls::privcmd;
use crate::guest;
use crate::host::TestHost;

/// Mappings of privcmd in this process.
fn mapped() -> Result<usize> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    Ok(maps.lines().filter(|l| l.ends_with("/privcmd")).count())
}

/// Fails unless the driver keeps each mapping of privcmd out of forked children.
fn not_in_children() -> Result<()> {
    let smaps = std::fs::read_to_string("/proc/self/smaps")?;
    let mut of_privcmd = false;
    for line in smaps.lines() {
        match line.strip_prefix("VmFlags:") {
            Some(flags) if of_privcmd => {
                ensure!(flags.split(' ').any(|flag| flag == "dc"), "{flags}");
                of_privcmd = false;
            }
            _ => of_privcmd |= line.ends_with("/privcmd"),
        }
    }
    Ok(())
}

fn bytes<const LEN: usize>(region: &Region, at: usize) -> Result<[u8; LEN]> {
    let mut bytes = [0; LEN];
    region.copy_out(at, &mut bytes)?;
    Ok(bytes)
}

/// Finds what the guest wrote, writes to it, and meets every refusal there is.
pub(super) fn foreign_memory(host: &TestHost) -> Result<()> {
    // It has read its disk and set up its interrupts when it speaks.
    host.with_guest(|_, guest| guest.output_after("-guest: alive second=").map(drop))?;
    let before = mapped()?;
    let (privcmd, hvm) = (privcmd()?, guest::domid(guest::NAME)?);
    let memory = privcmd.guest(hvm);
    // Its boot sector, which the BIOS copied to 0x7c00, and the descriptor of interrupt 0x20 in
    // the table that it made at 0x5000: present, a gate, to the code segment.
    let low = foreign::map(memory, &[5, 7], PageAccess::ReadOnly)?;
    ensure!(
        bytes(&low, PAGE_SIZE + 0xdfe)? == [0x55, 0xaa],
        "no boot sector"
    );
    let sector: [u8; 512] = bytes(&low, PAGE_SIZE + 0xc00)?;
    let message = b"xen-guest: the BIOS could not read the disk";
    ensure!(sector.windows(message.len()).any(|at| at == message));
    let gate: [u8; 8] = bytes(&low, 0x20 * 8)?;
    ensure!(gate[2..6] == [8, 0, 0, 0x8e], "{gate:02x?}");

    // The same frame twice, for writing and for reading, in a page that the guest leaves alone.
    let mut ours = foreign::map(memory, &[3], PageAccess::ReadWrite)?;
    let theirs = foreign::map(memory, &[3], PageAccess::ReadOnly)?;
    let old: [u8; 8] = bytes(&ours, 0x800)?;
    ours.copy_in(0x800, b"foreign!")?;
    let seen: [u8; 8] = bytes(&theirs, 0x800)?;
    ours.copy_in(0x800, &old)?;
    ensure!(&seen == b"foreign!", "{seen:02x?}");
    ensure!(mapped()? > before);
    not_in_children()?;

    let many: Vec<u64> = (0..0x90).collect();
    let many = foreign::map(memory, &many, PageAccess::ReadOnly)?;
    ensure!(bytes(&many, 0x7dfe)? == [0x55, 0xaa]);

    let beyond = privcmd.maximum_gpfn(hvm)? + 0x1000;
    let pages = foreign::map_each(memory, &[beyond, 7, beyond + 1], PageAccess::ReadOnly)?;
    let [Err(error), Ok(page), Err(_)] = &pages[..] else {
        bail!("{pages:?}");
    };
    ensure!(
        matches!(error, Error::ForeignFrame { frame, .. } if *frame == beyond),
        "{error:?}"
    );
    ensure!(error.errno() == Some(22), "{error:?}");
    ensure!(bytes(page, 0xdfe)? == [0x55, 0xaa]);
    let all = foreign::map(memory, &[7, beyond], PageAccess::ReadOnly);
    ensure!(matches!(all, Err(Error::ForeignFrame { .. })), "{all:?}");
    let none = foreign::map(
        privcmd.guest(DomId::new(0x7000)),
        &[0],
        PageAccess::ReadOnly,
    );
    ensure!(matches!(none, Err(Error::NoDomain { .. })), "{none:?}");

    // A file restricted to the guest reaches its memory, and no other domain's.
    let restricted = Privcmd::open(&Xen::open()?)?.restrict(hvm)?;
    let page = foreign::map(restricted.guest(), &[7], PageAccess::ReadOnly)?;
    ensure!(bytes(&page, 0xdfe)? == [0x55, 0xaa]);
    let same = restricted.as_fd().try_clone_to_owned()?;
    let same = Privcmd::adopt(&Xen::open()?, same)?;
    let other = guest::domid(guest::STUB)?;
    let refused = foreign::map(same.guest(other), &[0], PageAccess::ReadOnly);
    ensure!(
        matches!(refused, Err(Error::NotPermitted { .. })),
        "{refused:?}"
    );
    drop((low, ours, theirs, many, pages, page));
    ensure!(mapped()? == before, "something is still mapped");
    Ok(())
}

/// Reads the guest's grant of its store ring out of its grant table.
pub(super) fn resources(_: &TestHost) -> Result<()> {
    let before = mapped()?;
    let (privcmd, hvm) = (privcmd()?, guest::domid(guest::NAME)?);
    let memory = privcmd.guest(hvm);
    let frames = memory.resource_size(Resource::GRANT_TABLE)?;
    let table = privcmd.grant_table_size(hvm)?;
    ensure!(frames >= u64::from(table.frames), "{frames} of {table:?}");
    let grants = foreign::map_resource(memory, Resource::GRANT_TABLE, 0, 1, PageAccess::ReadOnly)?;
    // GNTTAB_RESERVED_XENSTORE is 1: its flags, the domain it is for, the frame.
    let entry: [u8; 8] = bytes(&grants, 8)?;
    let word = u32::from_le_bytes(entry[..4].try_into().context("four bytes")?);
    let frame = u32::from_le_bytes(entry[4..].try_into().context("four bytes")?);
    ensure!(word & 3 == 1 && word >> 16 == 0, "{entry:02x?}");
    let store = privcmd.hvm_param(hvm, HvmParam::STORE_PFN)?;
    ensure!(u64::from(frame) == store, "{frame:#x}, {store:#x}");

    let beyond = u32::try_from(frames)?;
    let refused = foreign::map_resource(
        memory,
        Resource::GRANT_TABLE,
        beyond,
        1,
        PageAccess::ReadOnly,
    );
    ensure!(refused.is_err(), "{refused:?}");
    let unknown = memory.resource_size(Resource::new(99, 0));
    ensure!(unknown.is_err(), "{unknown:?}");
    drop(grants);
    ensure!(mapped()? == before, "something is still mapped");
    Ok(())
}

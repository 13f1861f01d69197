//! The Linux guest's disk: a boot loader, an initramfs, a root file system and room for data, all
//! for an emulated IDE disk.
//!
//! ```text
//! sector 0            boot sector (testing/guest/linux.s) with the partition table
//! 1 ..= STAGE         the rest of testing/guest/linux.s, the kernel's boot parameters, the loader's table, the command line
//! INITRD              initramfs: the test agent, the modules of the emulated disk and network card
//! partition 1         romfs: the guest's own userland, the test agent once more
//! partition 2         data, which the test writes and the guest reads
//! partition 3         the kernel's ELF file: not in this image but appended to it, see below
//! ```
//!
//! The kernel is the one that dom0 has already: `cat /boot/linux.img /boot/vmlinuz` makes the whole
//! disk there. It is loaded as it is, since unpacking a bzImage takes the emulated machine many
//! times as long as reading the plain file. A machine of a later release with devices to pass through
//! has the default release's kernel besides, and an image for it.

mod romfs;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use object::Endianness;
use object::elf::{FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader as _, ProgramHeader as _};
use stubdm_image::cpio::{Archive, Content};
use stubdm_image::modules::Modules;

use super::Parts;
use crate::guest::{SECTOR, assemble};
use crate::store::write_atomically;
use romfs::{Entry, Folder};

const SOURCE: &str = include_str!("../../../../testing/guest/linux.s");

/// For the emulated disk, the userland's file system, and the emulated network card.
const MODULES: &[&str] = &["ata_piix", "sd_mod", "romfs", "e1000"];

/// Names of devices that are passed through, and their drivers: the guest loads those of
/// `lib/modules/order-NAME`, where it has such a device.
const PASSED: &[(&str, &[&str])] = &[
    ("e1000e", &["e1000e"]),
    ("nvme", &["nvme"]),
    ("xhci", &["xhci-pci", "usb-storage"]),
];

/// `-- boot` are the init's own arguments. The device model's disk and card must stay: without an
/// option the kernel would have them unplugged in favour of Xen's own.
const COMMAND_LINE: &str = "console=ttyS0 quiet rdinit=/init xen_emul_unplug=never mitigations=off \
     cryptomgr.notests random.trust_cpu=on 8250.nr_uarts=1 panic=-1 -- boot";

// Where the loader's parts come to lie in memory; the boot sector is at START, and everything
// follows it as on the disk.
const START: usize = 0x7c00;
const PARAMETERS: usize = 0x9000;
const LOADS: usize = 0xa000;
const COMMAND_LINE_AT: usize = 0xa200;
const END: usize = 0xa400;

/// Where the initramfs begins.
const INITRD: usize = 64;
/// Partitions begin at multiples of so many sectors.
const GRAIN: usize = 2048;
/// How large the data's partition is.
const DATA_SECTORS: usize = GRAIN;

/// One of the loader's loads: sectors to an address, zeros behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Load {
    sector: usize,
    address: usize,
    sectors: usize,
    zeros: usize,
}

/// A kernel for the guest.
#[derive(Debug)]
pub(crate) struct Kernel<'a> {
    /// The file as it is packaged.
    pub(crate) packed: PathBuf,
    /// The ELF file in it.
    pub(crate) plain: PathBuf,
    /// Its modules.
    pub(crate) modules: &'a Modules,
}

/// Builds the image `name` without its kernel, if there is an agent for its userland.
pub(crate) fn build(parts: &Parts, of: &Kernel<'_>, name: &str) -> Result<Option<PathBuf>> {
    let Some(agent) = &parts.agent else {
        return Ok(None);
    };
    let kernel = fs::read(&of.plain)?;
    let setup = fs::read(&of.packed)?;
    let agent_bytes = fs::read(agent)?;
    let mut archive = Archive::root();
    archive.program("init", Content::Bytes(agent_bytes.clone()));
    archive.dir("mnt");
    stubdm_image::add_modules(&mut archive, of.modules, MODULES)?;
    for (device, drivers) in PASSED {
        let mut order = String::new();
        for (name, content) in of.modules.closure(drivers)? {
            if !archive.has(&format!("lib/modules/{name}")) {
                archive.file(&format!("lib/modules/{name}"), content);
            }
            order.push_str(&name);
            order.push('\n');
        }
        archive.text(&format!("lib/modules/order-{device}"), &order);
    }
    // For `ip`.
    parts.add_busybox(&mut archive)?;
    let mut initrd = Vec::new();
    archive.write(&mut initrd)?;
    let folder = || Entry::Folder(Folder::new());
    let userland = romfs::build(&Folder::from([
        ("dev", folder()),
        ("proc", folder()),
        ("sys", folder()),
        (
            "sbin",
            Entry::Folder(Folder::from([("init", Entry::Program(agent_bytes))])),
        ),
    ]))?;
    let dir = parts.out.join("linux");
    fs::create_dir_all(&dir)?;
    let image = layout(&dir, &setup, &kernel, &initrd, &userland)?;
    let path = parts.out.join(name);
    if fs::read(&path).is_ok_and(|have| have == image) {
        return Ok(Some(path));
    }
    write_atomically(&path, &image)?;
    Ok(Some(path))
}

/// Puts the image together.
fn layout(
    dir: &Path,
    setup: &[u8],
    kernel: &[u8],
    initrd: &[u8],
    userland: &[u8],
) -> Result<Vec<u8>> {
    let root = (INITRD + initrd.len().div_ceil(SECTOR)).next_multiple_of(GRAIN);
    let data = (root + userland.len().div_ceil(SECTOR)).next_multiple_of(GRAIN);
    let first = data + DATA_SECTORS;
    let mut image = vec![0; first * SECTOR];

    let (mut loads, entry) = segments(kernel, first)?;
    let end = loads
        .iter()
        .map(|load| load.address + load.sectors * SECTOR + load.zeros)
        .max()
        .context("the kernel has no segments")?;
    let place = end.next_multiple_of(1 << 21);
    loads.push(Load {
        sector: INITRD,
        address: place,
        sectors: initrd.len().div_ceil(SECTOR),
        zeros: 0,
    });
    ensure!(
        (loads.len() + 1) * 16 <= COMMAND_LINE_AT - LOADS,
        "{} loads are too many for the loader",
        loads.len()
    );

    let code = assemble(
        dir,
        "linux",
        SOURCE,
        START,
        &[
            ("STAGE_SECTORS", (END - START) / SECTOR - 1),
            ("PARAMETERS", PARAMETERS),
            ("LOADS", LOADS),
            ("ENTRY", entry),
        ],
    )?;
    ensure!(
        (SECTOR + 1..=PARAMETERS - START).contains(&code.len()),
        "the loader is {} bytes long",
        code.len()
    );
    image[..code.len()].copy_from_slice(&code);
    let parameters = parameters(setup, place, initrd.len())?;
    image[PARAMETERS - START..][..parameters.len()].copy_from_slice(&parameters);
    for (at, load) in loads.iter().enumerate() {
        let words = [load.sector, load.address, load.sectors, load.zeros];
        for (index, word) in words.into_iter().enumerate() {
            put(&mut image, LOADS - START + at * 16 + index * 4, word)?;
        }
    }
    image[COMMAND_LINE_AT - START..][..COMMAND_LINE.len()].copy_from_slice(COMMAND_LINE.as_bytes());
    image[INITRD * SECTOR..][..initrd.len()].copy_from_slice(initrd);
    image[root * SECTOR..][..userland.len()].copy_from_slice(userland);
    let partitions = [
        (0x83, root, data - root),
        (0xda, data, DATA_SECTORS),
        (0xda, first, kernel.len().div_ceil(SECTOR)),
    ];
    for (index, (kind, from, sectors)) in partitions.into_iter().enumerate() {
        let at = 446 + index * 16;
        image[at + 4] = kind;
        put(&mut image, at + 8, from)?;
        put(&mut image, at + 12, sectors)?;
    }
    Ok(image)
}

/// The loads of the kernel's segments, given the sector at which its file begins, and the address
/// it is entered at.
fn segments(kernel: &[u8], first: usize) -> Result<(Vec<Load>, usize)> {
    let header = FileHeader64::<Endianness>::parse(kernel).context("the kernel as an ELF file")?;
    let endian = header.endian()?;
    let mut loads = Vec::new();
    for segment in header.program_headers(endian, kernel)? {
        if segment.p_type(endian) != PT_LOAD {
            continue;
        }
        let offset = usize::try_from(segment.p_offset(endian))?;
        let bytes = segment.data(endian, kernel).ok().context("a segment")?;
        ensure!(
            offset % SECTOR == 0,
            "a segment begins at {offset}, within a sector"
        );
        // The last one ends with what the kernel requires to be zeroed, which the file contains in
        // full.
        let full = bytes.iter().rposition(|&b| b != 0).map_or(0, |at| at + 1);
        let sectors = full.div_ceil(SECTOR);
        let memory = usize::try_from(segment.p_memsz(endian))?;
        loads.push(Load {
            sector: first + offset / SECTOR,
            address: usize::try_from(segment.p_paddr(endian))?,
            sectors,
            zeros: memory.saturating_sub(sectors * SECTOR),
        });
    }
    // An empty load would end the table.
    loads.retain(|load| load.sectors > 0);
    Ok((loads, usize::try_from(header.e_entry(endian))?))
}

/// The boot parameters, the "zero page", for a kernel with this real-mode setup code
/// (Documentation/arch/x86/zero-page.rst). The loader itself adds the memory map.
fn parameters(setup: &[u8], initrd: usize, initrd_size: usize) -> Result<Vec<u8>> {
    if setup.get(0x202..0x206) != Some(b"HdrS") {
        bail!("the kernel is no bzImage");
    }
    let end = 0x202 + usize::from(setup[0x201]);
    let mut page = vec![0; 4096];
    page[0x1f1..end].copy_from_slice(setup.get(0x1f1..end).context("its header is cut short")?);
    page[0x210] = 0xff; // a loader without a number
    put(&mut page, 0x218, initrd)?;
    put(&mut page, 0x21c, initrd_size)?;
    put(&mut page, 0x228, COMMAND_LINE_AT)?;
    Ok(page)
}

fn put(bytes: &mut [u8], at: usize, value: usize) -> Result<()> {
    let value = u32::try_from(value).context("beyond 4 GiB or 2 TiB")?;
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file with these segments: file offset, address, bytes in the file, bytes in memory.
    fn elf(segments: &[(u64, u64, u64, u64)], size: usize) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(64, 0);
        file[16] = 2;
        file[18] = 62;
        file[20] = 1;
        file[24..32].copy_from_slice(&0x100_0000_u64.to_le_bytes());
        file[32] = 64;
        file[52] = 64;
        file[54] = 56;
        file[56] = u8::try_from(segments.len()).unwrap();
        for &(offset, address, in_file, in_memory) in segments {
            file.extend(1_u32.to_le_bytes());
            file.extend(7_u32.to_le_bytes());
            for word in [offset, 0, address, in_file, in_memory, 4096] {
                file.extend(word.to_le_bytes());
            }
        }
        file.resize(size, 0);
        file
    }

    #[test]
    fn segments_are_loaded_up_to_their_last_byte_and_zeroed_from_there() {
        let mut kernel = elf(
            &[(512, 0x100_0000, 2048, 4096), (4096, 0x200_0000, 512, 512)],
            8192,
        );
        kernel[512 + 600] = 1;
        kernel[4096] = 1;
        let (loads, entry) = segments(&kernel, 100).unwrap();
        assert_eq!(entry, 0x100_0000);
        let first = Load {
            sector: 101,
            address: 0x100_0000,
            sectors: 2,
            zeros: 3072,
        };
        let second = Load {
            sector: 108,
            address: 0x200_0000,
            sectors: 1,
            zeros: 0,
        };
        assert_eq!(loads, [first, second]);
        let askew = elf(&[(600, 0x100_0000, 512, 512)], 2048);
        assert!(segments(&askew, 100).is_err());
        let beyond = elf(&[(512, 0x100_0000, 9999, 9999)], 2048);
        assert!(segments(&beyond, 100).is_err());
    }

    #[test]
    fn the_image_has_its_parts_where_the_loader_and_the_guest_look() {
        let dir = tempfile::tempdir().unwrap();
        let mut setup = vec![0; 1024];
        setup[0x201] = 0x60;
        setup[0x202..0x206].copy_from_slice(b"HdrS");
        let mut kernel = elf(&[(512, 0x100_0000, 512, 512)], 1024);
        kernel[512] = 1;
        let image = layout(dir.path(), &setup, &kernel, b"initrd", b"userland").unwrap();
        let word = |at: usize| -> usize {
            u32::from_le_bytes(image[at..at + 4].try_into().unwrap()) as usize
        };
        assert_eq!(image[510..512], [0x55, 0xaa]);
        let partition = |index: usize| (word(446 + index * 16 + 8), word(446 + index * 16 + 12));
        let (root, data, third) = (partition(0), partition(1), partition(2));
        assert!(image[root.0 * SECTOR..].starts_with(b"userland"));
        assert_eq!(root.0 + root.1, data.0);
        assert_eq!(data.0 + data.1, third.0);
        assert_eq!(third.0 * SECTOR, image.len());
        // The kernel's load, then the initramfs's where the boot parameters place it.
        assert_eq!(word(LOADS - START), third.0 + 1);
        assert_eq!(word(LOADS - START + 16), INITRD);
        assert_eq!(word(LOADS - START + 20), word(PARAMETERS - START + 0x218));
        assert_eq!(word(LOADS - START + 32 + 8), 0, "the table's end");
        assert!(image[INITRD * SECTOR..].starts_with(b"initrd"));
        assert!(parameters(&kernel, 0, 0).is_err());
    }
}

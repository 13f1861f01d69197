//! A bootable disk whose code reads the disk, takes interrupts and writes to the serial port.
//!
//! ```text
//! sector 0                 boot sector (testing/guest/guest.s)
//! 1 ..= STAGE_SECTORS      the rest of testing/guest/guest.s, and the parts that it names
//! PATTERN_FIRST + k*STRIDE pattern sector k: a stream that depends on the sector's number
//! last sector              scratch: written and read back every second, counts the boots
//! ```
//!
//! The numbers live here alone: the assembler gets them as symbols. The guest's own line
//! `disk ok sum=…` carries the sum over everything it read, which [`disk_line`] predicts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// In an order in which every number has its name before it is used: the assembler takes another
/// name for that of a place.
const SOURCE: &str = concat!(
    include_str!("../../testing/guest/guest.s"),
    include_str!("../../testing/guest/disk.s"),
    include_str!("../../testing/guest/cd.s"),
    include_str!("../../testing/guest/rtl8139.s"),
    include_str!("../../testing/guest/net.s"),
    include_str!("../../testing/guest/toy.s"),
    include_str!("../../testing/guest/dma.s"),
    include_str!("../../testing/guest/screen.s"),
    include_str!("../../testing/guest/bench.s"),
    include_str!("../../testing/guest/monitor.s"),
    include_str!("../../testing/guest/interrupts.s"),
    include_str!("../../testing/guest/serial.s"),
);

/// Bytes in a sector.
pub(crate) const SECTOR: usize = 512;
const IMAGE_SECTORS: usize = 32 * 1024;
const STAGE_SECTORS: usize = 11;
const PATTERN_FIRST: usize = 64;
const PATTERN_STRIDE: usize = 509;
const PATTERN_COUNT: usize = 64;
const SCRATCH_SECTOR: usize = IMAGE_SECTORS - 1;

/// Ticks a second: few, so that a slow machine can deliver every one of them.
const HZ: usize = 20;
const PIT_DIVISOR: usize = (1_193_182 + HZ / 2) / HZ;

const LOAD_ADDRESS: usize = 0x7c00;

/// Assembles the guest and writes its disk image to `out_dir/guest.img`, which it returns.
///
/// Needs `as` and `ld` of binutils, which the Rust toolchain's linker comes with.
pub(crate) fn build(out_dir: &Path) -> Result<PathBuf> {
    fs::create_dir_all(out_dir).with_context(|| format!("creating {}", out_dir.display()))?;
    let code = assemble(
        out_dir,
        "guest",
        SOURCE,
        LOAD_ADDRESS,
        &[
            ("STAGE_SECTORS", STAGE_SECTORS),
            ("HZ", HZ),
            ("PIT_DIVISOR", PIT_DIVISOR),
            ("PATTERN_FIRST", PATTERN_FIRST),
            ("PATTERN_STRIDE", PATTERN_STRIDE),
            ("PATTERN_COUNT", PATTERN_COUNT),
            ("SCRATCH_SECTOR", SCRATCH_SECTOR),
        ],
    )?;
    let image = layout(&code)?;
    let path = out_dir.join("guest.img");
    fs::write(&path, image).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

/// The line the guest prints once it has read every pattern sector and found it right.
pub(crate) fn disk_line() -> String {
    let sum = pattern_sectors()
        .flat_map(pattern)
        .fold(0u32, |sum, word| sum.rotate_left(1).wrapping_add(word));
    format!("xen-guest: disk ok sum=0x{sum:08x} sectors={PATTERN_COUNT}")
}

/// Assembles a source whose symbols have these values, to be run at `address`; gives the code.
///
/// The intermediate files are `out_dir/NAME.*`.
pub(crate) fn assemble(
    out_dir: &Path,
    name: &str,
    text: &str,
    address: usize,
    symbols: &[(&str, usize)],
) -> Result<Vec<u8>> {
    let [source, object, binary] = ["s", "o", "bin"].map(|e| out_dir.join(format!("{name}.{e}")));
    fs::write(&source, text).with_context(|| format!("writing {}", source.display()))?;

    let mut assembler = Command::new("as");
    assembler
        .args(["--32", "--fatal-warnings", "-o"])
        .arg(&object);
    for (name, value) in symbols {
        assembler.arg("--defsym").arg(format!("{name}={value}"));
    }
    run(assembler.arg(&source))?;
    run(Command::new("ld")
        .args([
            "-m",
            "elf_i386",
            "--oformat",
            "binary",
            "-e",
            "_start",
            "-Ttext",
        ])
        .arg(format!("{address:#x}"))
        .arg("-o")
        .arg(&binary)
        .arg(&object))?;
    fs::read(&binary).with_context(|| format!("reading {}", binary.display()))
}

fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("starting `{name}` (package binutils)"))?;
    if !output.status.success() {
        bail!(
            "`{name}` failed on the guest:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

fn layout(code: &[u8]) -> Result<Vec<u8>> {
    ensure!(
        code.len() > SECTOR,
        "the guest's code is only {} bytes long",
        code.len()
    );
    ensure!(
        code.len() <= (1 + STAGE_SECTORS) * SECTOR,
        "the guest's code is {} bytes long; the boot sector loads {}",
        code.len(),
        (1 + STAGE_SECTORS) * SECTOR
    );
    ensure!(
        code[510..512] == [0x55, 0xaa],
        "the guest's boot sector has no signature"
    );
    let mut image = vec![0; IMAGE_SECTORS * SECTOR];
    image[..code.len()].copy_from_slice(code);
    for number in pattern_sectors() {
        let sector = &mut image[number * SECTOR..(number + 1) * SECTOR];
        for (bytes, word) in sector.chunks_exact_mut(4).zip(pattern(number)) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }
    Ok(image)
}

fn pattern_sectors() -> impl Iterator<Item = usize> {
    (0..PATTERN_COUNT).map(|k| PATTERN_FIRST + k * PATTERN_STRIDE)
}

/// Returns the words of sector `number`: xorshift32 from a seed that depends on the number.
fn pattern(number: usize) -> impl Iterator<Item = u32> {
    let mut state = (number as u32 + 1).wrapping_mul(0x9e37_79b9);
    (0..SECTOR / 4).map(move |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_has_its_parts_where_the_guest_looks() {
        let dir = tempfile::tempdir().unwrap();
        let path = build(dir.path()).unwrap();
        let image = fs::read(&path).unwrap();

        assert_eq!(image.len(), IMAGE_SECTORS * SECTOR);
        assert_eq!(image[510..512], [0x55, 0xaa]);
        // The code continues after the boot sector and ends before the pattern begins.
        assert!(image[SECTOR..2 * SECTOR].iter().any(|&byte| byte != 0));
        let code_end = (1 + STAGE_SECTORS) * SECTOR;
        assert!(
            image[code_end..PATTERN_FIRST * SECTOR]
                .iter()
                .all(|&byte| byte == 0)
        );

        // The sum over what the image holds is the sum the guest is expected to print.
        let mut sum = 0u32;
        for k in 0..PATTERN_COUNT {
            let start = (PATTERN_FIRST + k * PATTERN_STRIDE) * SECTOR;
            for word in image[start..start + SECTOR].chunks_exact(4) {
                let word = u32::from_le_bytes(word.try_into().unwrap());
                sum = sum.rotate_left(1).wrapping_add(word);
            }
        }
        assert_eq!(
            disk_line(),
            format!("xen-guest: disk ok sum=0x{sum:08x} sectors=64")
        );
    }

    #[test]
    fn the_pattern_reaches_over_the_disk_and_leaves_the_scratch_sector_alone() {
        let last = pattern_sectors().last().unwrap();
        assert!(last < SCRATCH_SECTOR);
        assert!(
            last > IMAGE_SECTORS * 9 / 10,
            "the last pattern sector is {last}"
        );
        const { assert!(PATTERN_FIRST > 1 + STAGE_SECTORS) };
        let seeds: std::collections::BTreeSet<Option<u32>> = pattern_sectors()
            .map(|number| pattern(number).next())
            .collect();
        assert_eq!(seeds.len(), PATTERN_COUNT, "each sector has its own stream");
        assert!(!pattern_sectors().any(|number| pattern(number).any(|word| word == 0)));
    }

    #[test]
    fn code_that_does_not_fit_is_refused() {
        let mut code = vec![0; (1 + STAGE_SECTORS) * SECTOR + 1];
        code[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert!(layout(&code).is_err());
        code.pop();
        assert!(layout(&code).is_ok());
        code[511] = 0;
        assert!(layout(&code).is_err());
    }
}

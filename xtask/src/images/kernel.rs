//! The plain ELF kernel inside a bzImage.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::apt::on_path;

/// How Debian's kernels have been compressed: what such a stream begins with, and what unpacks it.
const PACKERS: &[(&[u8], &str)] = &[
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x1f\x8b", "gzip"),
];

/// The ELF kernel in `image`; the image itself where this machine cannot unpack it, since Xen and
/// libxl can.
pub(super) fn unpack(image: &Path, scratch: &Path) -> Result<Vec<u8>> {
    let whole = fs::read(image).with_context(|| format!("reading {}", image.display()))?;
    let packed = payload(&whole).with_context(|| format!("{} as a bzImage", image.display()))?;
    let packer = PACKERS.iter().find(|(magic, _)| packed.starts_with(magic));
    let Some((_, tool)) = packer else {
        bail!("{} is compressed in an unknown way", image.display())
    };
    if on_path(tool).is_none() {
        eprintln!("xtask: no {tool} here: guests and dom0 will start slowly");
        return Ok(whole);
    }
    let file = scratch.join("vmlinux.packed");
    fs::write(&file, packed)?;
    let stream = fs::File::open(&file)?;
    let out = Command::new(tool).arg("-dc").stdin(stream).output();
    let out = out.with_context(|| format!("starting {tool}"))?;
    ensure!(
        out.status.success(),
        "{tool} on {}: {}\n{}",
        image.display(),
        out.status,
        String::from_utf8_lossy(&out.stderr).trim_end()
    );
    ensure!(
        out.stdout.starts_with(b"\x7fELF"),
        "{} holds no ELF file",
        image.display()
    );
    fs::remove_file(&file)?;
    Ok(out.stdout)
}

/// The compressed kernel inside a bzImage (Documentation/arch/x86/boot.rst: setup_sects,
/// payload_offset, payload_length), without the four bytes of its length that follow it.
fn payload(image: &[u8]) -> Option<&[u8]> {
    let number = |at: usize| -> Option<usize> {
        let bytes = image.get(at..at + 4)?;
        usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok()
    };
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let setup = match usize::from(*image.get(0x1f1)?) {
        0 => 4,
        sectors => sectors,
    };
    let start = (setup + 1) * 512 + number(0x248)?;
    let end = start.checked_add(number(0x24c)?)?.checked_sub(4)?;
    image.get(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bzImage of two setup sectors with `payload` behind them, as the boot protocol lays it out.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 3 * 512];
        image[0x1f1] = 2;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&8_u32.to_le_bytes());
        let length = u32::try_from(payload.len() + 4).unwrap();
        image[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
        image.extend([0; 8]);
        image.extend(payload);
        image.extend([0xaa; 100]);
        image
    }

    #[test]
    fn the_payload_is_found_and_a_bad_image_refused() {
        assert_eq!(payload(&image(b"packed")), Some(&b"packed"[..]));
        let mut bad = image(b"packed");
        bad[0x24c..0x250].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(payload(&bad), None);
        assert_eq!(payload(b"short"), None);
        assert_eq!(payload(&[0; 4096]), None);
    }

    #[test]
    fn a_packed_kernel_comes_out_as_it_went_in() {
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join("plain");
        fs::write(&plain, b"\x7fELF and the rest").unwrap();
        let packed = Command::new("gzip")
            .arg("-c")
            .arg(&plain)
            .output()
            .unwrap()
            .stdout;
        let file = dir.path().join("vmlinuz");
        fs::write(&file, image(&packed)).unwrap();
        assert_eq!(unpack(&file, dir.path()).unwrap(), b"\x7fELF and the rest");
        fs::write(&file, image(b"neither")).unwrap();
        assert!(unpack(&file, dir.path()).is_err());
    }
}

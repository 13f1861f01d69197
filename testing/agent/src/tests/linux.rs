//! Linux as the guest: it boots from the disk that the stubdomain's QEMU emulates, to its own
//! userland there, and is saved and restored with it.
//!
//! The guest reads what the test wrote into the disk's file in dom0; the test finds there what the
//! guest wrote.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use super::save::{IMAGE, goes_on, restore, second};
use crate::guest::{Guest, NAME, diagnosis};
use crate::host::{TestHost, command};
use crate::linux::{DATA_SECTORS, SECTOR, data, sum};
use crate::suite::{Needs, Test};

pub(super) fn add(tests: &mut Vec<Test>) {
    tests.push(Test::new(
        "linux/from_the_emulated_disk",
        Needs::Package,
        |host| {
            let disk = Disk::make()?;
            let result = from_the_emulated_disk(host, &disk).with_context(diagnosis);
            let _ = fs::remove_file(IMAGE);
            disk.remove().and(result)
        },
    ));
}

/// The guest's disk: a file, on a loop device.
pub(super) struct Disk {
    device: String,
    /// The sum of the data in it.
    sum: u32,
    /// Where the data begins, in bytes.
    at: u64,
}

/// Attaches a file to a loop device.
pub(crate) fn loop_device(file: &str) -> Result<String> {
    let free = command(&["losetup", "-f"])?;
    let device = free.first().context("no loop device")?.trim().to_owned();
    command(&["losetup", &device, file])?;
    Ok(device)
}

/// The line of a guest's configuration for its disk.
pub(crate) fn disk_line(device: &str) -> String {
    format!(
        "disk=[\"format=raw,vdev=hda,access=rw,backendtype=phy,script=block-testbed,target={device}\"]"
    )
}

/// The loader, the initramfs and the userland; the kernel follows.
const HEAD: &str = "/boot/linux.img";
const KERNEL: &str = "/boot/vmlinuz";
const FILE: &str = "/tmp/linux.img";

/// The same for a kernel of a release before dom0's, where there are devices to pass through.
const EARLIER: [&str; 2] = ["/boot/pci-linux.img", "/boot/pci-vmlinuz"];

impl Disk {
    /// With dom0's kernel.
    pub(super) fn make() -> Result<Self> {
        Self::make_of(HEAD, KERNEL)
    }

    /// With the kernel of the default release.
    pub(super) fn make_with_default_kernel() -> Result<Self> {
        let [head, kernel] = EARLIER;
        if Path::new(head).exists() {
            Self::make_of(head, kernel)
        } else {
            Self::make()
        }
    }

    fn make_of(head: &str, kernel: &str) -> Result<Self> {
        let mut head = fs::read(head).with_context(|| head.to_owned())?;
        // The second entry of the partition table.
        let first: [u8; 4] = head[446 + 16 + 8..][..4].try_into()?;
        let at = u64::from(u32::from_le_bytes(first)) * SECTOR as u64;
        let seed = SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos();
        let data = data(seed);
        head[usize::try_from(at)?..][..data.len()].copy_from_slice(&data);
        let mut file = File::create(FILE)?;
        file.write_all(&head)?;
        std::io::copy(&mut File::open(kernel)?, &mut file)?;
        Ok(Self {
            device: loop_device(FILE)?,
            sum: sum(&data),
            at,
        })
    }

    /// The line of the guest's configuration.
    pub(super) fn line(&self) -> String {
        disk_line(&self.device)
    }

    pub(super) fn remove(&self) -> Result<()> {
        command(&["losetup", "-d", &self.device])?;
        Ok(fs::remove_file(FILE)?)
    }

    /// Whether the sector behind the data holds the stamp of this second of the guest's or a later
    /// one.
    fn has_stamp(&self, second: u32) -> Result<bool> {
        // The loop device's own pages are not the file's: what was written there has to be passed
        // on first.
        File::open(&self.device)?.sync_all()?;
        let mut stamp = [0; SECTOR];
        let at = self.at + (DATA_SECTORS * SECTOR) as u64;
        File::open(FILE)?.read_exact_at(&mut stamp, at)?;
        Ok((second..second + 100).any(|later| data(later)[..SECTOR] == stamp))
    }
}

fn from_the_emulated_disk(host: &TestHost, disk: &Disk) -> Result<()> {
    let mut guest = Guest::create_with(&host.store, &[&disk.line()])?;
    let seen = (|| -> Result<u32> {
        let userland = guest.output_after("linux-guest: userland on ")?;
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        // dom0's kernel and the guest's are the same file.
        let wanted = format!(
            "/dev/sda1 (romfs), disk driver ata_piix, kernel {}",
            kernel.trim()
        );
        ensure!(userland == wanted, "the guest's userland: {userland}");
        let data = guest.output_after("linux-guest: data ")?;
        let wanted = format!("sum=0x{:08x} sectors={DATA_SECTORS}", disk.sum);
        ensure!(data == wanted, "the guest's data: {data}, not {wanted}");
        second(&mut guest)
    })()?;
    ensure!(
        disk.has_stamp(seen)?,
        "what the guest wrote is not in {FILE}"
    );
    command(&["xl", "save", NAME, IMAGE])?;
    guest = restore(guest)?;
    let later = goes_on(&mut guest, seen)?;
    ensure!(
        disk.has_stamp(later)?,
        "after restoring, nothing reaches {FILE}"
    );
    guest.destroy()
}

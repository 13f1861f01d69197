//! The init of the Linux guest, which sees the device model's hardware as Linux drivers do.
//!
//! ```text
//! boot       from the initramfs: modules, then the root file system on the emulated disk, then its /sbin/init
//! userland   from that disk: says what it runs on, reads the data, and counts seconds for ever
//! ```
//!
//! It prints, each line after "linux-guest: ":
//!
//! ```text
//! userland on /dev/sda1 (romfs), disk driver ata_piix, kernel N
//! data sum=0xXXXXXXXX sectors=N       what partition 2 begins with
//! alive second=N disk=ok              once a second: the data read again, a sector behind it written and read back
//! ```
//!
//! Every read and write goes past the page cache (`O_DIRECT`), so that the disk answers and not
//! memory.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

use crate::domu::{load, mount_on};

/// Bytes in a sector.
pub(crate) const SECTOR: usize = 512;
/// How many sectors the test writes to the data's partition.
pub(crate) const DATA_SECTORS: usize = 64;

const ROOT: &str = "/dev/sda1";
const DATA: &str = "/dev/sda2";

/// The arguments of its process 1.
pub(crate) const PARTS: [&str; 2] = ["boot", "userland"];

/// Runs as process 1. Never returns: powers off when something is not as it should be.
pub(crate) fn run(part: &str) -> ! {
    let result = match part {
        "boot" => boot(),
        _ => userland(),
    };
    if let Err(error) = result {
        println!("linux-guest: FAILED: {error:#}");
    }
    // The serial port is slow: what is in its buffer when the power goes is lost.
    thread::sleep(Duration::from_secs(1));
    let _ = reboot(RebootMode::RB_POWER_OFF);
    loop {
        thread::park();
    }
}

/// The data of a seed: what the test writes and the guest reads.
pub(crate) fn data(seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let words = (0..DATA_SECTORS * SECTOR / 4).map(|_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    });
    words.flat_map(u32::to_le_bytes).collect()
}

/// A sum that depends on every byte and its place.
pub(crate) fn sum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |sum, &byte| {
        (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

fn boot() -> Result<()> {
    mount_on("proc", "/proc")?;
    mount_on("sysfs", "/sys")?;
    mount_on("devtmpfs", "/dev")?;
    let order = fs::read_to_string("/lib/modules/order").context("the modules' order")?;
    for name in order.lines() {
        load(name.trim_end_matches(".ko"), c"")?;
    }
    appears(ROOT)?;
    mount(
        Some(ROOT),
        "/mnt",
        Some("romfs"),
        MsFlags::MS_RDONLY,
        None::<&str>,
    )
    .context("mounting the root file system")?;
    for name in ["proc", "sys", "dev"] {
        let (from, to) = (format!("/{name}"), format!("/mnt/{name}"));
        moved(&from, &to)?;
    }
    std::env::set_current_dir("/mnt").context("entering the root")?;
    moved(".", "/")?;
    std::os::unix::fs::chroot(".").context("changing the root")?;
    std::env::set_current_dir("/")?;
    Err(Command::new("/sbin/init").arg("userland").exec()).context("starting the userland")
}

fn moved(from: &str, to: &str) -> Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .with_context(|| format!("moving {from} to {to}"))
}

/// Waits for a disk's node: its driver looks for disks on its own time.
fn appears(node: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !Path::new(node).exists() {
        ensure!(Instant::now() < deadline, "no {node} after a minute");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn userland() -> Result<()> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let root = mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (device, place, kind) = (words.next()?, words.next()?, words.next()?);
        (place == "/" && device.starts_with("/dev/")).then(|| format!("{device} ({kind})"))
    });
    println!(
        "linux-guest: userland on {}, disk driver {}, kernel {}",
        root.context("the root is on no disk")?,
        pci_driver(Path::new("/sys/class/block/sda/device"))?,
        fs::read_to_string("/proc/sys/kernel/osrelease")?.trim()
    );
    appears(DATA)?;
    let mut disk = Disk::open()?;
    let first = sum(&disk.read(0, DATA_SECTORS)?);
    println!("linux-guest: data sum=0x{first:08x} sectors={DATA_SECTORS}");
    let begin = Instant::now();
    for second in 1_u32.. {
        let next = begin + Duration::from_secs(second.into());
        thread::sleep(next.saturating_duration_since(Instant::now()));
        let stamp = data(second)[..SECTOR].to_vec();
        disk.write(DATA_SECTORS, &stamp)?;
        let good =
            sum(&disk.read(0, DATA_SECTORS)?) == first && disk.read(DATA_SECTORS, 1)? == stamp;
        let word = if good { "ok" } else { "WRONG" };
        println!("linux-guest: alive second={second} disk={word}");
    }
    Ok(())
}

/// The driver of the PCI function that a device belongs to.
fn pci_driver(device: &Path) -> Result<String> {
    let device = device.canonicalize().context("the disk in /sys")?;
    for place in device.ancestors() {
        let is_pci = fs::read_link(place.join("subsystem")).is_ok_and(|kind| kind.ends_with("pci"));
        if is_pci {
            let driver: PathBuf = fs::read_link(place.join("driver")).context("its PCI driver")?;
            let name = driver.file_name().context("a driver without a name")?;
            return Ok(name.to_string_lossy().into_owned());
        }
    }
    bail!("{} is on no PCI bus", device.display())
}

/// The data's partition, past the page cache.
struct Disk {
    file: File,
    /// Large enough to hold an aligned transfer wherever it begins.
    room: Vec<u8>,
}

impl Disk {
    fn open() -> Result<Self> {
        let mut options = File::options();
        options.read(true).write(true);
        let file = options.custom_flags(OFlag::O_DIRECT.bits()).open(DATA);
        Ok(Self {
            file: file.context(DATA)?,
            room: vec![0; (DATA_SECTORS + 1) * SECTOR],
        })
    }

    fn aligned(&mut self, sectors: usize) -> &mut [u8] {
        let at = self.room.as_ptr().align_offset(SECTOR);
        &mut self.room[at..at + sectors * SECTOR]
    }

    fn read(&mut self, first: usize, sectors: usize) -> Result<Vec<u8>> {
        let file = self.file.try_clone()?;
        let room = self.aligned(sectors);
        file.read_exact_at(room, (first * SECTOR) as u64)
            .context("reading the disk")?;
        Ok(room.to_vec())
    }

    fn write(&mut self, first: usize, bytes: &[u8]) -> Result<()> {
        let file = self.file.try_clone()?;
        let room = self.aligned(bytes.len() / SECTOR);
        room.copy_from_slice(bytes);
        file.write_all_at(room, (first * SECTOR) as u64)
            .context("writing the disk")?;
        // The device model may keep what it was given until it is told to flush.
        file.sync_data().context("flushing the disk")
    }
}

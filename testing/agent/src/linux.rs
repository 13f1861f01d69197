//! The init of the Linux guest, which sees the device model's hardware as Linux drivers do.
//!
//! ```text
//! boot       from the initramfs: modules, then the root file system on the emulated disk, then its /sbin/init
//! userland   from that disk: prints what it runs on, reads the data, counts seconds forever
//! ```
//!
//! It prints, each line after "linux-guest: ":
//!
//! ```text
//! userland on /dev/sda1 (romfs), disk driver ata_piix, kernel N
//! data sum=0xXXXXXXXX sectors=N       what partition 2 begins with
//! passed nvme sum=0xXXXXXXXX bytes=N msix=N           what an nvme begins with, where there is one
//! passed xhci sum=0xXXXXXXXX bytes=N msix=N           what a disk on a USB controller begins with
//! passed e1000e sum=0xXXXXXXXX bytes=N msix=N         a file by TFTP, where there is such a card;
//!                                                     where there is one of them, others may come later
//! alive second=N disk=ok              once a second: the data read again, a sector behind it written and read back
//! ```
//!
//! Every read and write goes past the page cache (`O_DIRECT`), so that the disk answers and not
//! memory.

use std::fs::{self, File};
use std::net::{SocketAddr, UdpSocket};
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
    // Where there is one, others may come later.
    if PASSED.iter().any(|(device, _)| has(device)) {
        for (device, driver) in PASSED {
            let order = format!("/lib/modules/order-{driver}");
            let order = fs::read_to_string(&order).context(order)?;
            for name in order.lines() {
                load(name.trim_end_matches(".ko"), c"")?;
            }
            if *driver == "e1000e" && has(device) {
                appears("/sys/class/net/eth0")?;
                ip(&["link", "set", "eth0", "up"])?;
                ip(&["addr", "add", "10.0.2.15/24", "dev", "eth0"])?;
            }
        }
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

/// Passed-through devices that are used, by vendor and device, and their names.
const PASSED: &[(&str, &str)] = &[
    ("0x1b36 0x0010", "nvme"),
    ("0x1b36 0x000d", "xhci"),
    ("0x8086 0x10d3", "e1000e"),
];

/// Whether the guest has a PCI device.
fn has(device: &str) -> bool {
    folder_of(device).is_some()
}

/// Returns the folder of a PCI device in sysfs.
fn folder_of(device: &str) -> Option<PathBuf> {
    let all = fs::read_dir("/sys/bus/pci/devices").into_iter().flatten();
    let mut folders = all.flatten().map(|entry| entry.path());
    folders.find(|folder| {
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
        format!("{} {}", read("vendor").trim(), read("device").trim()) == device
    })
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("/bin/busybox")
        .arg("ip")
        .args(arguments)
        .output();
    let output = output.context("busybox")?;
    ensure!(output.status.success(), "ip {arguments:?}: {output:?}");
    Ok(())
}

/// An nvme, and the disk on a USB controller: the emulated one is there before.
const NVME: &str = "/dev/nvme0n1";
const STICK: &str = "/dev/sdb";

/// Reads the first sectors of a disk, once it is there.
fn first_sectors(disk: &str) -> Result<Vec<u8>> {
    appears(disk)?;
    Disk::open_at(disk)?.read(0, DATA_SECTORS)
}

/// The longest wait for a block.
const BLOCK_LIMIT: Duration = Duration::from_secs(5);
/// How often a request is sent.
const REQUESTS: usize = 6;

/// Reads the file `data` of the emulator's TFTP server, through whatever card leads there.
fn tftp() -> Result<Vec<u8>> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(BLOCK_LIMIT))?;
    let mut request = b"\0\x01data\0octet\0".to_vec();
    let mut to: SocketAddr = "10.0.2.2:69".parse()?;
    let mut all = Vec::new();
    let mut buffer = [0; 600];
    for number in 1_u16.. {
        let mut tries = 0;
        let count = loop {
            ensure!(tries < REQUESTS, "block {number} does not come");
            tries += 1;
            // An address takes a moment to be of use.
            if socket.send_to(&request, to).is_err() {
                thread::sleep(Duration::from_secs(1));
                continue;
            }
            let Ok((count, from)) = socket.recv_from(&mut buffer) else {
                continue;
            };
            if buffer[..4] == [&[0, 3], &number.to_be_bytes()[..]].concat()[..] {
                to = from;
                break count;
            }
        };
        all.extend_from_slice(&buffer[4..count]);
        request = [&[0, 4], &number.to_be_bytes()[..]].concat();
        if count < 4 + SECTOR {
            socket.send_to(&request, to)?;
            break;
        }
    }
    Ok(all)
}

/// Interrupts by MSI-X of a device, so far.
fn messages(device: &str) -> Result<u64> {
    let folder = folder_of(device)
        .context("the device is gone")?
        .join("msi_irqs");
    let mut own = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if fs::read_to_string(&path)?.trim() == "msix" {
            let name = path.file_name().unwrap_or_default();
            own.push(format!("{}:", name.to_string_lossy()));
        }
    }
    let all = fs::read_to_string("/proc/interrupts")?;
    let count = |line: &str| {
        let mut words = line.split_whitespace();
        let number = words.next()?;
        own.iter()
            .any(|own| own == number)
            .then(|| words.next()?.parse::<u64>().ok())?
    };
    Ok(all.lines().filter_map(count).sum())
}

/// Uses the devices that are there, and takes them off the list.
fn use_those_there(awaited: &mut Vec<(&str, &str)>) -> Result<()> {
    let all = awaited.drain(..);
    let (there, others): (Vec<_>, Vec<_>) = all.partition(|(device, _)| has(device));
    *awaited = others;
    for (device, name) in there {
        let read = match name {
            "nvme" => first_sectors(NVME)?,
            "xhci" => first_sectors(STICK)?,
            _ => tftp()?,
        };
        println!(
            "linux-guest: passed {name} sum=0x{:08x} bytes={} msix={}",
            sum(&read),
            read.len(),
            messages(device)?
        );
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
    let mut awaited = PASSED.to_vec();
    use_those_there(&mut awaited)?;
    let begin = Instant::now();
    for second in 1_u32.. {
        let next = begin + Duration::from_secs(second.into());
        thread::sleep(next.saturating_duration_since(Instant::now()));
        if awaited.len() < PASSED.len() {
            use_those_there(&mut awaited)?;
        }
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
        Self::open_at(DATA)
    }

    fn open_at(path: &str) -> Result<Self> {
        let mut options = File::options();
        options.read(true).write(true);
        let file = options.custom_flags(OFlag::O_DIRECT.bits()).open(path);
        Ok(Self {
            file: file.with_context(|| path.to_owned())?,
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
        // The device model may keep what it was given until it is requested to flush.
        file.sync_data().context("flushing the disk")
    }
}

//! The PCI devices that the toolstack has given to this domain, and their resources.
//!
//! A device has two addresses: the host's, by which the toolstack, QEMU and Xen name it, and the
//! one that pciback gave it on this domain's own bus, by which the kernel in here names it. The
//! backend's folder in the store has both, as `dev-N` and `vdev-N`; dom0 alone writes there.

use std::fs::{self, File};
use std::ops::RangeInclusive;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use xen_store::{Store, Watch};
use xen_sys::PciFunction;

use crate::libxl::trusted;
use crate::rt::error::{Context as _, Failure, Result};

/// The most devices that are looked at; libxl gives a domain fewer.
const MOST: u32 = 64;
/// Lines of `resource` that are base address registers, the ROM's included.
const REGISTERS: usize = 7;
/// Bits of a resource's flags (`include/linux/ioport.h`).
const IS_IO: u64 = 0x100;
const IS_MEMORY: u64 = 0x200;

/// The status register, its bit for a list of capabilities, and the register with the list's start.
const STATUS: usize = 0x06;
const HAS_LIST: u8 = 1 << 4;
const LIST: usize = 0x34;
/// The register with the interrupt line, for which pciback answers with the line on the host.
const IRQ: usize = 0x3c;
/// The capability of an MSI-X table.
const MSIX: u8 = 0x11;
/// The most entries that a list in 256 bytes can have.
const LIST_MOST: usize = 48;

/// A device of this domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// Its address on the host.
    pub host: PciFunction,
    /// Its address in this domain.
    pub local: PciFunction,
}

/// The list of the devices that the toolstack has given to this domain.
///
/// QEMU can cause a look at it at any rate, so a look reads the store only after an event of the
/// backend's folder.
///
/// A new device is in the list before QEMU can use it: pciback writes `vdev-N` before the state
/// that makes pcifront look for devices, and the kernel hands out the events of all watches in
/// their order, from one thread. So the event can be read before sysfs shows the device. If the
/// event is late all the same, the device is not found, and libxl asks QEMU for it again. The list
/// gives no access to a removed device: its folder in sysfs is removed too, and Xen refuses its
/// messages.
#[derive(Debug)]
pub struct DeviceList {
    store: Store,
    watch: Watch,
    devices: Vec<Assigned>,
}

impl DeviceList {
    /// Watches the backend's folder.
    ///
    /// # Errors
    /// The store has no number of this domain that dom0 wrote, or refuses the watch.
    pub fn watch(store: &Store) -> Result<Self> {
        let own = trusted::read_str(store, "domid").context("domid")?;
        let own = own.and_then(|own| own.trim().parse::<u16>().ok());
        let own = own.ok_or_else(|| Failure::new("domid: no number of dom0's"))?;
        // Below dom0's home, where no other domain writes.
        let folder = format!("/local/domain/0/backend/pci/{own}/0");
        Ok(Self {
            watch: store.watch(&folder).context(folder)?,
            store: store.clone(),
            devices: Vec::new(),
        })
    }

    /// Returns the connected devices; none once the store has failed.
    pub fn get(&mut self) -> &[Assigned] {
        let mut is_stale = false;
        loop {
            match self.watch.try_next() {
                Ok(Some(_)) => is_stale = true,
                Ok(None) => break,
                Err(_) => {
                    self.devices.clear();
                    return &self.devices;
                }
            }
        }
        if is_stale {
            self.devices = assigned(&self.store, self.watch.path());
        }
        &self.devices
    }
}

/// Reads the devices from the backend's folder.
fn assigned(store: &Store, folder: &str) -> Vec<Assigned> {
    let read = |node: &str| store.read_str(&format!("{folder}/{node}")).ok();
    let count = read("num_devs").and_then(|count| count.trim().parse::<u32>().ok());
    let one = |number: u32| {
        Some(Assigned {
            host: address(&read(&format!("dev-{number}"))?)?,
            local: address(&read(&format!("vdev-{number}"))?)?,
        })
    };
    (0..count.unwrap_or_default().min(MOST))
        .filter_map(one)
        .collect()
}

/// Reads an address as libxl, pciback and sysfs write it: `0000:00:08.0`, with one or two digits
/// for the function.
pub fn address(text: &str) -> Option<PciFunction> {
    let digits = |text: &str, most: usize| {
        let all = (1..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
        all.then(|| u16::from_str_radix(text, 16).ok()).flatten()
    };
    let (segment, rest) = text.trim().split_once(':')?;
    let (bus, rest) = rest.split_once(':')?;
    let (device, function) = rest.split_once('.')?;
    PciFunction::new(
        digits(segment, 4)?,
        digits(bus, 2)?.try_into().ok()?,
        digits(device, 2)?.try_into().ok()?,
        digits(function, 2)?.try_into().ok()?,
    )
}

/// A range of the host's addresses that a base address register of a device decodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Range {
    /// I/O ports.
    Ports(RangeInclusive<u64>),
    /// Memory.
    Memory(RangeInclusive<u64>),
}

/// The machine's parts that belong to a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Its interrupt line on the host, or 0. Not that of sysfs: once the kernel in here has enabled
    /// a device, as it does with USB controllers, sysfs has a number of its own.
    pub irq: u32,
    /// The ranges of its base address registers, by their numbers; the seventh is the ROM's.
    pub ranges: Vec<Option<Range>>,
}

impl Resources {
    /// Reads them from the folder of a device in sysfs.
    pub fn read(folder: &Path) -> Self {
        let text = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
        let resource = text("resource");
        Self {
            irq: byte_of(folder)(IRQ).map_or(0, u32::from),
            ranges: resource.lines().take(REGISTERS).map(range).collect(),
        }
    }

    /// Returns where the device's MSI-X table is, and of how many entries, if it has one. Each byte
    /// of configuration space that is read is a question to dom0.
    pub fn table(&self, folder: &Path) -> Option<(u64, u16)> {
        table(&byte_of(folder), &self.ranges)
    }

    /// Returns whether `count` frames from `first` on are all part of one memory range.
    pub fn has_frames(&self, first: u64, count: u64) -> bool {
        let last = count
            .checked_sub(1)
            .and_then(|more| first.checked_add(more));
        let within = |range: &Range| match range {
            Range::Memory(bytes) => {
                *bytes.start() >> 12 <= first && last.is_some_and(|last| last <= *bytes.end() >> 12)
            }
            Range::Ports(_) => false,
        };
        self.ranges.iter().flatten().any(within)
    }

    /// Returns whether `count` ports from `first` on are all part of one range of ports.
    pub fn has_ports(&self, first: u64, count: u64) -> bool {
        let last = count
            .checked_sub(1)
            .and_then(|more| first.checked_add(more));
        let within = |range: &Range| match range {
            Range::Ports(ports) => {
                *ports.start() <= first && last.is_some_and(|last| last <= *ports.end())
            }
            Range::Memory(_) => false,
        };
        self.ranges.iter().flatten().any(within)
    }

    /// Returns whether a memory range begins at this address.
    pub fn begins_at(&self, address: u64) -> bool {
        let begins = |range: &Range| matches!(range, Range::Memory(b) if *b.start() == address);
        self.ranges.iter().flatten().any(begins)
    }
}

/// Returns a look at the configuration space of the device with this folder.
fn byte_of(folder: &Path) -> impl Fn(usize) -> Option<u8> {
    let config = File::open(folder.join("config")).ok();
    move |at| {
        let mut byte = [0];
        let config = config.as_ref()?;
        config.read_exact_at(&mut byte, at.try_into().ok()?).ok()?;
        Some(byte[0])
    }
}

/// A line of `resource`: first address, last address, flags.
fn range(line: &str) -> Option<Range> {
    let mut numbers = line
        .split_whitespace()
        .map(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok());
    let (first, last, flags) = (numbers.next()??, numbers.next()??, numbers.next()??);
    if first == 0 || last < first {
        return None;
    }
    match (flags & IS_IO != 0, flags & IS_MEMORY != 0) {
        (true, false) => Some(Range::Ports(first..=last)),
        (false, true) => Some(Range::Memory(first..=last)),
        _ => None,
    }
}

/// Finds the MSI-X table by a device's configuration space.
fn table(byte: &dyn Fn(usize) -> Option<u8>, ranges: &[Option<Range>]) -> Option<(u64, u16)> {
    if byte(STATUS)? & HAS_LIST == 0 {
        return None;
    }
    let mut at = usize::from(byte(LIST)? & !3);
    for _ in 0..LIST_MOST {
        if at == 0 {
            return None;
        }
        if byte(at)? == MSIX {
            let control = u16::from_le_bytes([byte(at + 2)?, byte(at + 3)?]);
            let place = [byte(at + 4)?, byte(at + 5)?, byte(at + 6)?, byte(at + 7)?];
            let place = u32::from_le_bytes(place);
            let register = usize::try_from(place & 7).ok()?;
            let Some(Range::Memory(bytes)) = ranges.get(register)?.as_ref() else {
                return None;
            };
            let table = bytes.start().checked_add(u64::from(place & !7))?;
            let entries = (control & 0x7ff) + 1;
            return bytes.contains(&table).then_some((table, entries));
        }
        at = usize::from(byte(at + 1)? & !3);
    }
    None
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::{self, Read as _, Write as _};
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use xen_store_server::{Config, Server};
    use xen_sys::DomId;

    use super::*;

    /// The folder of a device as sysfs shows it: one memory range with an MSI-X table of five
    /// entries, one range of ports, interrupt 17.
    pub(in crate::guest::pci) fn device(folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        let none = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n";
        let resource = format!(
            "0x00000000febc0000 0x00000000febdffff 0x0000000000040200\n\
             0x000000000000c040 0x000000000000c05f 0x0000000000040101\n{}",
            none.repeat(5)
        );
        fs::write(folder.join("resource"), resource).unwrap();
        // As the kernel in here has it, whose numbers are its own.
        fs::write(folder.join("irq"), "15\n").unwrap();
        fs::write(folder.join("vendor"), "0x8086\n").unwrap();
        let mut config = vec![0; 256];
        config[STATUS] = HAS_LIST;
        config[LIST] = 0x40;
        config[IRQ] = 17;
        config[0x40..0x42].copy_from_slice(&[1, 0xa0]);
        config[0xa0..0xa8].copy_from_slice(&[MSIX, 0, 4, 0, 0, 0x30, 0, 0]);
        fs::write(folder.join("config"), config).unwrap();
    }

    #[test]
    fn addresses_are_read_as_each_writer_spells_them() {
        let address = |text| address(text).map(|address| address.to_string());
        assert_eq!(address("0000:00:08.0").as_deref(), Some("0000:00:08.0"));
        assert_eq!(address("0001:3a:1f.07").as_deref(), Some("0001:3a:1f.7"));
        for bad in [
            "",
            "0000:00:08",
            "00:08.0",
            "0000:00:20.0",
            "0000:00:08.8",
            "0000:00:+8.0",
            "0000:00:08.0/..",
            "00000:00:08.0",
        ] {
            assert_eq!(address(bad), None, "{bad}");
        }
    }

    #[test]
    fn resources_are_the_ranges_the_line_and_the_table() {
        let dir = tempfile::tempdir().unwrap();
        device(dir.path());
        let resources = Resources::read(dir.path());
        assert_eq!(resources.irq, 17);
        assert_eq!(resources.table(dir.path()), Some((0xfebc_3000, 5)));
        assert!(resources.has_frames(0xfebc0, 32) && resources.has_frames(0xfebdf, 1));
        for (first, count) in [
            (0xfebbf, 1),
            (0xfebc0, 33),
            (0xfebc0, 0),
            (0xfebc0, u64::MAX),
        ] {
            assert!(!resources.has_frames(first, count), "{first:#x} {count}");
        }
        assert!(resources.has_ports(0xc040, 32) && !resources.has_ports(0xc040, 33));
        assert!(!resources.has_ports(0xc03f, 1) && !resources.has_ports(0xfebc_0000, 1));
        assert!(!resources.has_frames(0xc, 1));
        assert!(resources.begins_at(0xfebc_0000) && !resources.begins_at(0xfebc_1000));
        assert_eq!(
            Resources::read(&dir.path().join("no")),
            Resources::default()
        );
    }

    #[test]
    fn a_list_that_bites_its_tail_or_a_table_in_no_range_is_none() {
        let dir = tempfile::tempdir().unwrap();
        device(dir.path());
        let config = fs::read(dir.path().join("config")).unwrap();
        let ranges = Resources::read(dir.path()).ranges;
        let table = |config: &[u8]| table(&|at| config.get(at).copied(), &ranges);
        assert!(table(&config).is_some());
        let with = |at: usize, value: u8| {
            let mut config = config.clone();
            config[at] = value;
            table(&config)
        };
        // The first capability is its own successor; register 1 is of ports, 2 of nothing.
        assert_eq!(with(0x41, 0x40), None);
        assert_eq!(with(0xa4, 1), None);
        assert_eq!(with(0xa4, 2), None);
        assert_eq!(with(0xa7, 1), None);
        assert_eq!(with(STATUS, 0), None);
        assert_eq!(table(&config[..0xa5]), None);
    }

    const BACKEND: &str = "/local/domain/0/backend/pci/9/0";

    /// Joins a socket to another, and counts the bytes read from the first.
    fn relay(near: UnixStream, far: UnixStream) -> Arc<AtomicUsize> {
        let sent = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&sent);
        let (mut from, mut to) = (far.try_clone().unwrap(), near.try_clone().unwrap());
        thread::spawn(move || io::copy(&mut from, &mut to));
        thread::spawn(move || {
            let (mut near, mut far, mut bytes) = (near, far, [0; 4096]);
            while let Ok(count @ 1..) = near.read(&mut bytes) {
                counter.fetch_add(count, Ordering::SeqCst);
                far.write_all(&bytes[..count]).unwrap();
            }
            let _ = far.shutdown(Shutdown::Both);
        });
        sent
    }

    /// A store of dom0's, with a connection whose requests' bytes are counted.
    fn host() -> (Server, Store, Store, Arc<AtomicUsize>) {
        let server = Server::start(Config::new()).unwrap();
        let dom0 = server.connect(DomId::DOM0).unwrap();
        let ((near, own), (far, daemon)) =
            (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        server.add_connection(daemon.into(), DomId::DOM0);
        let sent = relay(near, far);
        (server, dom0, Store::from_fd(own.into()).unwrap(), sent)
    }

    fn at(text: &str) -> PciFunction {
        address(text).unwrap()
    }

    fn pair(host: &str, local: &str) -> Assigned {
        Assigned {
            host: at(host),
            local: at(local),
        }
    }

    fn give(store: &Store, number: u32, host: &str, local: &str) {
        for (node, value) in [
            (format!("dev-{number}"), host),
            (format!("vdev-{number}"), local),
            ("num_devs".to_owned(), &(number + 1).to_string()),
        ] {
            store.write(&format!("{BACKEND}/{node}"), value).unwrap();
        }
    }

    #[test]
    fn a_flood_of_looks_asks_the_store_nothing_and_a_change_is_seen() {
        let (server, dom0, store, sent) = host();
        DeviceList::watch(&store).unwrap_err();
        dom0.write("domid", "9").unwrap();
        let mut list = DeviceList::watch(&store).unwrap();
        let mut devices = || {
            // The events of earlier changes arrive before this answer.
            let _ = store.read("/");
            list.get().to_vec()
        };
        let first = pair("0000:00:08.0", "0000:00:00.0");
        let second = pair("0000:00:09.0", "0000:00:01.0");
        assert_eq!(devices(), []);
        give(&dom0, 0, "0000:00:08.0", "0000:00:00.00");
        assert_eq!(devices(), [first]);
        give(&dom0, 1, "0000:00:09.0", "0000:00:01.00");
        assert_eq!(devices(), [first, second]);
        dom0.rm(&format!("{BACKEND}/vdev-0")).unwrap();
        assert_eq!(devices(), [second]);
        dom0.rm(BACKEND).unwrap();
        assert_eq!(devices(), []);
        give(&dom0, 0, "0000:00:08.0", "0000:00:00.00");
        assert_eq!(devices(), [first]);
        let before = sent.load(Ordering::SeqCst);
        for _ in 0..10_000 {
            assert_eq!(list.get(), [first]);
        }
        assert_eq!(sent.load(Ordering::SeqCst), before);
        drop(server);
        store.read("/").unwrap_err();
        assert_eq!(list.get(), []);
    }

    #[test]
    fn devices_are_those_of_the_backends_folder() {
        let (_server, store, _own, _sent) = host();
        let assigned = || assigned(&store, BACKEND);
        assert_eq!(assigned(), []);
        for (node, value) in [
            ("num_devs", "3"),
            ("dev-0", "0000:00:08.0"),
            ("vdev-0", "0000:00:00.00"),
            // Not connected yet.
            ("dev-1", "0000:00:09.0"),
            ("dev-2", "0000:01:00.1"),
            ("vdev-2", "0000:00:02.01"),
        ] {
            store.write(&format!("{BACKEND}/{node}"), value).unwrap();
        }
        let expected = [
            pair("0000:00:08.0", "0000:00:00.0"),
            pair("0000:01:00.1", "0000:00:02.1"),
        ];
        assert_eq!(assigned(), expected);
        store
            .write(&format!("{BACKEND}/num_devs"), "4000000000")
            .unwrap();
        assert_eq!(assigned(), expected);
    }

    #[test]
    fn the_folder_is_not_the_one_that_qemu_can_name() {
        let (_server, dom0, store, _sent) = host();
        dom0.write("domid", "9").unwrap();
        dom0.write("device/pci/0/backend", "/local/domain/9/x")
            .unwrap();
        let list = DeviceList::watch(&store).unwrap();
        assert_eq!(list.watch.path(), BACKEND);
    }
}

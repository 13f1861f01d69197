//! Answers the system calls by which QEMU passes a PCI device through.
//!
//! QEMU opens a device's files by its address on the host, reads more than 64 bytes of its
//! configuration space, maps its MSI-X table through `/dev/mem`, and makes hypercalls. It is a user
//! without capabilities whose privcmd refuses hypercalls, and the device has another address in
//! here. So a filter stops `openat` and the hypercall's `ioctl`, and a thread answers them:
//!
//! | QEMU's call | answer |
//! |---|---|
//! | opens `/sys/bus/pci/devices/ADDRESS/FILE`, of `FILES`, of a device of this domain | a descriptor |
//! | of these, `irq` | a file with the line on the host |
//! | opens `/dev/mem`, while a device has an MSI-X table | a file of its own in which each entry is masked |
//! | opens `/dev/xen/hypercall` | there is none: its library does without |
//! | makes a [hypercall of passthrough](super::hypercalls) | it is made, or refused |
//! | anything else | the kernel decides, as without a filter |
//!
//! A buffer from `/dev/xen/hypercall` can be read by no other process, so none could be copied.
//!
//! QEMU reads the table's mask bits from `/dev/mem`, and only at entries that Xen keeps masked at
//! that time; it never writes there.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use libc::{c_int, sock_filter};
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use tracing::{info, warn};
use xen_store::Store;
use xen_sys::privcmd::Privcmd;
use xen_sys::{DomId, Xen};

use super::devices::{Assigned, DeviceList, Resources, address};
use super::hypercalls::{self, Device, Judge, Request, Verdict};
use crate::guest::notify::{Call, Listener};
use crate::rt::error::{Context, Result};
use crate::rt::log_limit::LogLimit;

/// The folder of PCI devices in sysfs.
const DEVICES: &str = "/sys/bus/pci/devices";
/// The files of a device that QEMU reads.
const FILES: &[&str] = &["config", "resource", "vendor", "device", "class", "irq"];
/// The file that it writes, too.
const CONFIG: &str = "config";
/// The file with the interrupt line.
const IRQ: &str = "irq";
/// The machine's memory.
const MEMORY: &str = "/dev/mem";
/// Memory for the arguments of hypercalls.
const BUFFERS: &str = "/dev/xen/hypercall";
/// The longest path that is looked at.
const PATH_MOST: usize = 96;

/// `IOCTL_PRIVCMD_HYPERCALL` (`include/uapi/xen/privcmd.h`): type `P`, number 0, 48 bytes.
const HYPERCALL: u32 = 48 << 16 | (b'P' as u32) << 8;
/// Its argument: the hypercall and five arguments.
const HYPERCALL_SIZE: usize = 48;

/// Bytes of an entry of an MSI-X table, and where its mask bit is.
const ENTRY: u64 = 16;
const MASK: u64 = 12;

/// The longest wait for a device that the kernel does not show yet, and the pause between two looks.
/// libxl asks QEMU for the device while pcifront still scans its bus, and after a failure not again
/// for a second.
const APPEARANCE: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(10);

/// Bytes of a line in the log.
const LINE: usize = 160;

/// Returns the filter: `openat` and the hypercall's `ioctl` wait for the listener.
pub fn filter() -> Vec<sock_filter> {
    let statement = |code: u32, jt, jf, k| sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let load = |at| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, at);
    let equal = |jt, jf, k| statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, jt, jf, k);
    let end = |k| statement(libc::BPF_RET | libc::BPF_K, 0, 0, k);
    vec![
        // The call's number.
        load(0),
        equal(3, 0, libc::SYS_openat as u32),
        equal(0, 3, libc::SYS_ioctl as u32),
        // The lower half of the second argument, which is all that the kernel looks at.
        load(24),
        equal(0, 1, HYPERCALL),
        end(libc::SECCOMP_RET_USER_NOTIF),
        end(libc::SECCOMP_RET_ALLOW),
    ]
}

/// Makes a request, and leaves Xen's answer in it.
type Make = dyn FnMut(&mut Request) -> std::result::Result<i64, Errno> + Send;

/// Answers calls until no process is left behind the filter.
struct Broker {
    /// The folder of PCI devices.
    folder: PathBuf,
    /// The devices of this domain now.
    devices: Box<dyn FnMut() -> Vec<Assigned> + Send>,
    /// Makes a request.
    make: Box<Make>,
    judge: Judge,
    limit: LogLimit,
}

/// Starts the thread that answers calls; it waits for the listener. To be called by a thread that
/// is not behind the filter.
///
/// # Errors
/// There is no thread, or no privcmd. Without a list in the store there are no devices.
pub fn start(xen: &Xen, store: &Store, guest: DomId) -> Result<Sender<Listener>> {
    let privcmd = Privcmd::open(xen).context("PCI: privcmd")?;
    let mut list = DeviceList::watch(store)
        .inspect_err(|error| warn!("the guest can have no PCI devices: {error}"))
        .ok();
    run(Broker {
        folder: DEVICES.into(),
        devices: Box::new(move || list.as_mut().map_or(Vec::new(), |list| list.get().to_vec())),
        make: Box::new(move |request| hypercalls::make(&privcmd, request)),
        judge: Judge::new(guest),
        limit: LogLimit::new(Instant::now()),
    })
}

fn run(mut broker: Broker) -> Result<Sender<Listener>> {
    let (sender, listeners): (_, Receiver<Listener>) = channel();
    let thread = std::thread::Builder::new().name("pci-broker".into());
    let body = move || {
        let Ok(listener) = listeners.recv() else {
            return;
        };
        loop {
            match listener.next() {
                Ok(Some(call)) => broker.handle(&listener, &call),
                Ok(None) => return,
                Err(error) => {
                    warn!("PCI: QEMU's calls are answered no more: {error}");
                    return;
                }
            }
        }
    };
    thread.spawn(body).context("a thread for PCI")?;
    Ok(sender)
}

/// The way a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flags {
    write: bool,
    close_on_exec: bool,
}

impl Flags {
    /// Reads `open`'s flags; `None` if it is more than opening.
    fn of(flags: u64) -> Option<Self> {
        let flags = (flags & 0xffff_ffff) as c_int;
        let known = libc::O_ACCMODE | libc::O_CLOEXEC | libc::O_LARGEFILE | 0o100_000;
        let access = flags & libc::O_ACCMODE;
        let plain = flags & !known == 0 && matches!(access, libc::O_RDONLY | libc::O_RDWR);
        plain.then_some(Self {
            write: access == libc::O_RDWR,
            close_on_exec: flags & libc::O_CLOEXEC != 0,
        })
    }
}

/// Returns a file with a device's interrupt line on the host, as sysfs would show it.
fn line(folder: &Path) -> io::Result<OwnedFd> {
    let mut file: File = memfd_create(c"irq", MFdFlags::MFD_CLOEXEC)?.into();
    writeln!(file, "{}", Resources::read(folder).irq)?;
    file.rewind()?;
    Ok(file.into())
}

impl Broker {
    /// Answers a call. Its caller may have ended by then.
    fn handle(&mut self, listener: &Listener, call: &Call) {
        let answered = match call.number {
            libc::SYS_openat => self.open(listener, call),
            libc::SYS_ioctl => self.hypercall(listener, call),
            _ => Ok(false),
        };
        if !matches!(answered, Ok(true)) {
            let _ = listener.pass(call);
        }
    }

    /// Answers `openat`, if it is one of passthrough.
    fn open(&mut self, listener: &Listener, call: &Call) -> io::Result<bool> {
        let [_, path, flags, ..] = call.args;
        let Some(flags) = Flags::of(flags) else {
            return Ok(false);
        };
        let mut bytes = [0; PATH_MOST];
        let count = listener.memory(call)?.read_at(&mut bytes, path)?;
        let path = bytes.get(..count).unwrap_or_default();
        let Some(end) = path.iter().position(|byte| *byte == 0) else {
            return Ok(false);
        };
        let Ok(path) = std::str::from_utf8(path.get(..end).unwrap_or_default()) else {
            return Ok(false);
        };
        if path == BUFFERS {
            listener.answer(call, Err(Errno::ENOENT))?;
            return Ok(true);
        }
        let Some(file) = self.find(path, flags)? else {
            return Ok(false);
        };
        listener.give(call, &file, flags.close_on_exec)?;
        Ok(true)
    }

    /// Opens the file that QEMU is to have for a path, if there is one.
    fn find(&mut self, path: &str, flags: Flags) -> io::Result<Option<OwnedFd>> {
        if path == MEMORY {
            return self.tables();
        }
        let Some((device, name)) = path
            .strip_prefix(DEVICES)
            .and_then(|rest| rest.strip_prefix('/')?.split_once('/'))
        else {
            return Ok(None);
        };
        let Some(name) = FILES.iter().find(|known| **known == name) else {
            return Ok(None);
        };
        if flags.write && *name != CONFIG {
            return Ok(None);
        }
        let Some(asked) = address(device) else {
            return Ok(None);
        };
        let devices = (self.devices)();
        // QEMU 9 and later finds out the address in here by itself.
        let found = devices.iter().find(|device| device.host == asked);
        let found = found.or_else(|| devices.iter().find(|device| device.local == asked));
        let Some(found) = found else {
            self.log(&format!("{asked} is no device of this domain's"));
            return Ok(None);
        };
        let folder = self.folder_of(found);
        appears(&folder, Instant::now() + APPEARANCE);
        if *name == IRQ {
            return line(&folder).map(Some);
        }
        let file = folder.join(name);
        let file = OpenOptions::new()
            .read(true)
            .write(flags.write)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&file);
        if *name == CONFIG {
            let words = match &file {
                Ok(_) => "QEMU opened it".to_owned(),
                Err(error) => format!("QEMU cannot open it: {error}"),
            };
            self.log(&format!("{}, in here {}: {words}", found.host, found.local));
        }
        Ok(Some(file?.into()))
    }

    /// Returns a file that shows each device's MSI-X table as it is after a reset, at its address.
    fn tables(&mut self) -> io::Result<Option<OwnedFd>> {
        let devices = (self.devices)();
        let table = |device: &Assigned| {
            let folder = self.folder_of(device);
            Resources::read(&folder).table(&folder)
        };
        let tables: Vec<_> = devices.iter().filter_map(table).collect();
        if tables.is_empty() {
            return Ok(None);
        }
        let file: File = memfd_create(c"msi-x", MFdFlags::MFD_CLOEXEC)?.into();
        for (address, entries) in tables {
            for entry in 0..u64::from(entries) {
                file.write_all_at(&[1], address.saturating_add(entry * ENTRY + MASK))?;
            }
        }
        // Whole pages can be mapped.
        let length = file.metadata()?.len().next_multiple_of(1 << 12);
        file.set_len(length)?;
        Ok(Some(file.into()))
    }

    /// Answers a hypercall, if it is one of passthrough.
    fn hypercall(&mut self, listener: &Listener, call: &Call) -> io::Result<bool> {
        let memory = listener.memory(call)?;
        let mut bytes = [0; HYPERCALL_SIZE];
        memory.read_exact_at(&mut bytes, call.args[2])?;
        let (op, args) = words(&bytes);
        let Some(mut request) = Request::of(op, args) else {
            return Ok(false);
        };
        memory.read_exact_at(&mut request.bytes, request.address)?;
        let devices = self.resources();
        match self.judge.judge(&request, &devices) {
            Verdict::Leave => return Ok(false),
            Verdict::Refuse(why) => {
                self.log(&format!("a hypercall of QEMU's is refused: {why}"));
                listener.answer(call, Err(Errno::EPERM))?;
                return Ok(true);
            }
            Verdict::Make => {}
        }
        let result = (self.make)(&mut request);
        match result {
            Ok(_) => {
                self.judge.done(&request);
                memory.write_all_at(&request.bytes, request.address)?;
            }
            Err(errno) => self.log(&format!("a hypercall of QEMU's failed: {}", errno.desc())),
        }
        listener.answer(call, result)?;
        Ok(true)
    }

    /// Returns the devices of this domain now, with what belongs to each.
    fn resources(&mut self) -> Vec<Device> {
        let devices = (self.devices)();
        let read = |device: &Assigned| (device.host, Resources::read(&self.folder_of(device)));
        devices.iter().map(read).collect()
    }

    fn folder_of(&self, device: &Assigned) -> PathBuf {
        self.folder.join(device.local.to_string())
    }

    fn log(&mut self, words: &str) {
        if super::passes(&mut self.limit, LINE, Instant::now()) {
            info!("PCI: {words}");
        }
    }
}

/// Waits until there is such a folder, or until the deadline.
fn appears(folder: &Path, deadline: Instant) {
    while !folder.exists() && Instant::now() < deadline {
        std::thread::sleep(LOOK);
    }
}

/// `struct privcmd_hypercall`: the hypercall and its arguments.
fn words(bytes: &[u8; HYPERCALL_SIZE]) -> (u64, [u64; 5]) {
    let word = |at: usize| {
        let bytes = bytes
            .get(at * 8..at * 8 + 8)
            .and_then(|b| b.try_into().ok());
        bytes.map_or(0, u64::from_le_bytes)
    };
    (word(0), std::array::from_fn(|at| word(at + 1)))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Read as _, Write as _};
    use std::os::unix::fs::symlink;
    use std::sync::mpsc::channel;

    use super::super::devices::tests::device;
    use super::super::hypercalls::tests::{GUEST, as_qemu, frames};
    use super::*;
    use crate::guest::notify;

    /// Its address on the host, which no machine that runs the tests has, and in here.
    const HOST: &str = "00fe:ab:1c.5";
    const LOCAL: &str = "00fd:00:01.0";

    /// Runs `body` in a thread behind the filter, with one device, whose hypercalls `make` makes.
    fn behind<T: Send + 'static>(
        folder: &Path,
        make: impl FnMut(&mut Request) -> std::result::Result<i64, Errno> + Send + 'static,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        device(&folder.join(LOCAL));
        let one = Assigned {
            host: address(HOST).unwrap(),
            local: address(LOCAL).unwrap(),
        };
        let calls = run(Broker {
            folder: folder.to_owned(),
            devices: Box::new(move || vec![one]),
            make: Box::new(make),
            judge: Judge::new(DomId::new(GUEST)),
            limit: LogLimit::new(Instant::now()),
        });
        let calls = calls.unwrap();
        let thread = std::thread::spawn(move || {
            nix::sys::prctl::set_no_new_privs().unwrap();
            calls.send(notify::install(&filter()).unwrap()).unwrap();
            body()
        });
        thread.join().unwrap()
    }

    fn none(_: &mut Request) -> std::result::Result<i64, Errno> {
        Err(Errno::ENOSYS)
    }

    #[test]
    fn a_device_is_opened_by_the_hosts_address_and_by_the_one_in_here() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join(LOCAL).join(CONFIG);
        let sizes = behind(dir.path(), none, || {
            let open = |address: &str, write: bool| {
                let path = format!("{DEVICES}/{address}/config");
                let mut file = File::options().read(true).write(write).open(path).unwrap();
                if write {
                    file.write_all(b"\x86\x80").unwrap();
                }
                file.read_to_end(&mut Vec::new()).unwrap()
            };
            let vendor = format!("{DEVICES}/{HOST}/vendor");
            assert_eq!(fs::read_to_string(vendor).unwrap(), "0x8086\n");
            for address in [HOST, LOCAL] {
                let irq = format!("{DEVICES}/{address}/irq");
                assert_eq!(fs::read_to_string(irq).unwrap(), "17\n", "as on the host");
            }
            let buffers = File::open(BUFFERS).unwrap_err();
            assert_eq!(buffers.kind(), io::ErrorKind::NotFound);
            // Other files are opened as ever.
            fs::read_to_string("/proc/self/status").unwrap();
            [open(HOST, false), open(LOCAL, false), open(HOST, true)]
        });
        assert_eq!(sizes, [256, 256, 254]);
        assert!(fs::read(config).unwrap().starts_with(b"\x86\x80"));
    }

    #[test]
    fn a_device_that_the_kernel_shows_late_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let [folder, late] = [LOCAL, "late"].map(|name| dir.path().join(name));
        behind(dir.path(), none, move || {
            let vendor = format!("{DEVICES}/{HOST}/vendor");
            fs::rename(&folder, &late).unwrap();
            let began = Instant::now();
            let none = File::open(&vendor).unwrap_err();
            assert_eq!(none.kind(), io::ErrorKind::NotFound);
            assert!(began.elapsed() >= APPEARANCE, "{:?}", began.elapsed());
            let shown = std::thread::spawn(move || {
                std::thread::sleep(APPEARANCE / 5);
                fs::rename(late, folder).unwrap();
            });
            assert_eq!(fs::read_to_string(vendor).unwrap(), "0x8086\n");
            shown.join().unwrap();
        });
    }

    #[test]
    fn no_other_file_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join(LOCAL);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("rom"), "").unwrap();
        fs::write(dir.path().join("config"), "").unwrap();
        symlink("/dev/null", folder.join("class")).unwrap();
        behind(dir.path(), none, || {
            for path in [
                "00fe:ab:1c.4/config",
                "00fe:ab:1c.5/../config",
                "00fe:ab:1c.5//config",
                "00fe:ab:1c.5/rom",
                "00fe:ab:1c.5/class",
                "00fe:ab:1c.5/config/",
                "00fe:ab:1c.5",
                "/00fe:ab:1c.5/config",
                "00fe:ab:1c.5/vendor/../config",
            ] {
                let error = File::open(format!("{DEVICES}/{path}")).unwrap_err();
                let kind = error.kind();
                assert_eq!(kind, io::ErrorKind::NotFound, "{path}");
            }
            let long = format!("{DEVICES}/{HOST}/{}config", "./".repeat(PATH_MOST));
            File::open(long).unwrap_err();
            let path = |name: &str| format!("{DEVICES}/{HOST}/{name}");
            let write = |name: &str| File::options().read(true).write(true).open(path(name));
            write("resource").unwrap_err();
            File::options()
                .write(true)
                .open(path("config"))
                .unwrap_err();
            let mut append = File::options();
            append.read(true).append(true);
            append.open(path("config")).unwrap_err();
        });
    }

    #[test]
    fn the_machines_memory_is_a_file_with_masked_tables() {
        let dir = tempfile::tempdir().unwrap();
        behind(dir.path(), none, || {
            let memory = File::options().read(true).write(true).open(MEMORY).unwrap();
            let mut page = [0; 4096];
            memory.read_exact_at(&mut page, 0xfebc_3000).unwrap();
            let masked: Vec<usize> = (0..page.len()).filter(|at| page[*at] != 0).collect();
            assert_eq!(masked, [12, 28, 44, 60, 76]);
            assert!(page.iter().all(|byte| *byte <= 1));
            assert_eq!(memory.metadata().unwrap().len(), 0xfebc_4000);
        });
    }

    #[test]
    fn a_hypercall_is_made_from_a_copy_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (sender, made) = channel();
        let answer = move |request: &mut Request| {
            sender.send(request.bytes.clone()).unwrap();
            request.bytes[16] = 0xaa;
            Ok(3)
        };
        behind(dir.path(), answer, || {
            let mut request = frames(GUEST, 0xfebc0, 32);
            assert_eq!(as_qemu(36, [request.as_ptr() as u64, 0]), Ok(3));
            assert_eq!(request[16], 0xaa);
            request = frames(GUEST, 0xfebc0, 33);
            let refused = as_qemu(36, [request.as_ptr() as u64, 0]);
            assert_eq!(refused, Err(Errno::EPERM));
            request = frames(GUEST + 1, 0xfebc0, 32);
            let refused = as_qemu(36, [request.as_ptr() as u64, 0]);
            assert_eq!(refused, Err(Errno::EPERM));
            // The kernel's answer for what is no descriptor.
            assert_eq!(as_qemu(17, [0, 0]), Err(Errno::EBADF));
            assert_eq!(as_qemu(36, [8, 0]), Err(Errno::EBADF));
        });
        assert_eq!(
            made.iter().collect::<Vec<_>>(),
            [frames(GUEST, 0xfebc0, 32)]
        );
    }

    #[test]
    fn a_refusal_is_the_calls_own_errno() {
        let dir = tempfile::tempdir().unwrap();
        behind(dir.path(), none, || {
            let request = frames(GUEST, 0xfebc0, 32);
            let failed = as_qemu(36, [request.as_ptr() as u64, 0]);
            assert_eq!(failed, Err(Errno::ENOSYS));
            assert_eq!(request, frames(GUEST, 0xfebc0, 32));
        });
    }
}

//! One emulated machine with Xen in it: started, listened to, and never left behind.
//!
//! ```text
//!   com1 ──▶ RUN/console.log     Xen's and dom0's console; on Arm, the machine's one port
//!   com2 ◀─▶ this process        the job's own port (on Arm, on the PCI bus): its output, framed
//!                                by markers; a person's keys
//! ```
//!
//! QEMU is started through this same program, which first asks the kernel to kill it when its
//! parent dies and then becomes QEMU: however xtask ends, no QEMU outlives it.

use std::ffi::OsString;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::apt;
use crate::console::{Event, Framing, last_lines};
use crate::release::Arch;

/// The hidden subcommand that becomes QEMU.
pub(crate) const GUARD: &str = "__guarded";

/// The lines of the console shown when something went wrong.
const TAIL: usize = 30;

/// The major version that everything was tried with (docs/testing.md documents what is wrong with
/// later ones).
const VERSION: u32 = 7;

/// The emulator's program and how to run it.
#[derive(Clone, Debug)]
pub(crate) struct Emulator {
    /// The program and its first arguments.
    pub(crate) program: Vec<OsString>,
    /// Folders for `-L`, where it is not installed.
    pub(crate) data: Vec<PathBuf>,
    /// Where its own modules are, where it is not installed.
    pub(crate) modules: Option<PathBuf>,
}

impl Emulator {
    /// The emulator installed on this machine, if there is one and it is of major version
    /// [`VERSION`].
    pub(crate) fn installed(arch: Arch) -> Option<Self> {
        let path = apt::on_path(arch.emulator())?;
        let said = Command::new(&path).arg("--version").output().ok()?;
        let major = major(&String::from_utf8_lossy(&said.stdout))?;
        (major == VERSION).then(|| Self {
            program: vec![path.into()],
            data: Vec::new(),
            modules: None,
        })
    }

    /// An emulator unpacked into a tree: run by the tree's own dynamic linker with the tree's own
    /// libraries.
    pub(crate) fn unpacked(tree: &Path, arch: Arch) -> Result<Self> {
        let mut program = in_tree(tree)?;
        program.push(tree.join("usr/bin").join(arch.emulator()).into());
        Ok(Self {
            program,
            data: vec![tree.join("usr/share/qemu"), tree.join("usr/share/seabios")],
            modules: Some(tree.join("usr/lib/x86_64-linux-gnu/qemu")),
        })
    }
}

/// The words that start a program of an unpacked tree, whose path follows them: the tree's own
/// dynamic linker with the tree's own libraries.
pub(crate) fn in_tree(tree: &Path) -> Result<Vec<OsString>> {
    let linker = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"]
        .iter()
        .map(|dir| tree.join(dir).join("ld-linux-x86-64.so.2"))
        .find(|file| file.is_file())
        .context("the unpacked packages brought no dynamic linker")?;
    let mut libraries = tree.join("lib/x86_64-linux-gnu").into_os_string();
    for dir in [
        "usr/lib/x86_64-linux-gnu",
        "usr/lib/x86_64-linux-gnu/pulseaudio",
    ] {
        libraries.push(":");
        libraries.push(tree.join(dir));
    }
    Ok(vec![linker.into(), "--library-path".into(), libraries])
}

/// The major version in `QEMU emulator version 10.0.2 (...)`.
fn major(said: &str) -> Option<u32> {
    let (_, version) = said.lines().next()?.split_once(" version ")?;
    version.split('.').next()?.parse().ok()
}

/// The source of the machine's clock. In both cases a second is so many instructions run, not so
/// much time on this machine: however busy it is, nothing inside times out for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clock {
    /// Nothing else: when all processors sleep, the clock is set forward to the next timer
    /// immediately, so that sleeping is free.
    Instructions,
    /// When all processors sleep, it waits: for a machine that a person sits at.
    Patient,
}

impl Clock {
    /// As `-icount` takes it: two nanoseconds an instruction.
    fn argument(self) -> &'static str {
        match self {
            Self::Instructions => "shift=1,sleep=off",
            Self::Patient => "shift=1,sleep=on",
        }
    }
}

/// The machine to boot.
#[derive(Debug)]
pub(crate) struct Boot<'a> {
    /// The emulator.
    pub(crate) emulator: &'a Emulator,
    /// The architecture.
    pub(crate) arch: Arch,
    /// The folder for this run's files; QEMU runs in it.
    pub(crate) run: &'a Path,
    /// The hypervisor: an ELF file, or an image as the Linux kernel's on Arm.
    pub(crate) hypervisor: &'a Path,
    /// dom0's kernel.
    pub(crate) kernel: &'a Path,
    /// The kernel's command line.
    pub(crate) dom0_arguments: &'a str,
    /// dom0's initramfs images, one after the other.
    pub(crate) images: &'a [&'a Path],
    /// The nonce of the markers.
    pub(crate) nonce: &'a str,
    /// The machine's memory in MiB.
    pub(crate) memory: u32,
    /// Its clock.
    pub(crate) clock: Clock,
    /// Its disks, in their order. Their changes last until the machine ends. A machine with disks
    /// can be reset; one without ends then.
    pub(crate) disks: &'a [&'a Path],
    /// An IOMMU, and devices to pass through.
    pub(crate) pci: Option<&'a Passthrough>,
}

/// The devices of a machine with an IOMMU, at the addresses [`CARD`], [`DISK`], [`EDU`], [`PAIR`] and
/// [`USB`].
#[derive(Debug)]
pub(crate) struct Passthrough {
    /// The folder that the card's network serves by TFTP.
    pub(crate) served: PathBuf,
    /// The contents of the disk, and of the one on USB. Changes last until the machine ends.
    pub(crate) disk: PathBuf,
}

/// The network card's address, 0000:00:08.0 in dom0.
const CARD: &str = "8";
/// The disk's address, 0000:00:09.0 in dom0.
const DISK: &str = "9";
/// The address of a device that a guest can have do DMA of any kind, 0000:00:0a.0 in dom0.
const EDU: &str = "0xa";
/// The address of two more of these, functions of one device: 0000:00:0b.0 and 0000:00:0b.1 in dom0.
const PAIR: &str = "0xb";
/// The address of a USB controller with a disk, 0000:00:0c.0 in dom0.
const USB: &str = "0xc";

/// Added to Xen's command line on a machine with an IOMMU: the emulated IOMMU is Intel's and the
/// processor AMD's, so the two cannot share page tables.
const IOMMU_ARGUMENTS: &str = " iommu=force,no-sharept";

/// Xen's own command line: speculation defences only cost time in an emulator that does not
/// speculate.
const XEN_ARGUMENTS: &str = "console=com1 com1=115200,8n1 dom0_mem=1536M dom0_max_vcpus=2 loglvl=warning \
     guest_loglvl=warning bootscrub=0 noreboot=0 spec-ctrl=no xpti=no pv-l1tf=no";

/// The same on 64-bit Arm, where the console is the one that the device tree names, and where domUs
/// may not communicate with each other unless Xen is configured for it.
const XEN_ARGUMENTS_ARM64: &str = "console=dtuart dom0_mem=1536M dom0_max_vcpus=1 loglvl=warning \
     guest_loglvl=warning bootscrub=0 noreboot=0 xsm=dummy";

/// The addresses to which the emulator's loader puts dom0's kernel and its images on 64-bit Arm:
/// behind Xen, which lies at the start of the memory, and with room for a kernel between them.
const KERNEL_ADDRESS: &str = "0x49000000";
const INITRD_ADDRESS: &str = "0x50000000";

/// Returns the emulator's arguments for the processors, and those that an architecture has alone.
fn processors(boot: &Boot<'_>) -> Vec<String> {
    let mut words = ["-accel", "tcg", "-icount", boot.clock.argument()]
        .map(str::to_owned)
        .to_vec();
    words.extend(match boot.arch {
        Arch::Amd64 => pc(boot),
        Arch::Arm64 => virt(boot),
    });
    words
}

/// Returns the emulator's arguments for a PC: com2 is the job's port, and Xen is a multiboot file
/// with modules.
fn pc(boot: &Boot<'_>) -> Vec<String> {
    let iommu = boot.pci.map_or("", |_| IOMMU_ARGUMENTS);
    let xen_arguments = format!("{XEN_ARGUMENTS}{iommu}");
    let modules = module_list(&[&format!("vmlinuz {}", boot.dom0_arguments), "initrd"]);
    let words = [
        "-smp",
        "2",
        "-cpu",
        "qemu64,+svm,+npt",
        "-serial",
        "chardev:job",
        "-append",
        &xen_arguments,
        "-initrd",
        &modules,
    ];
    words.map(str::to_owned).into()
}

/// Returns the emulator's arguments for a 64-bit Arm machine, which has one serial port of its own:
/// the job's port is on the PCI bus. The device tree names Xen's modules.
///
/// It has one processor: with two, one that waits for the other is left waiting for as many
/// instructions as there are to the next timer's time, or for a tenth of a second if the clock is
/// this machine's.
fn virt(boot: &Boot<'_>) -> Vec<String> {
    let kernel = format!(
        "guest-loader,addr={KERNEL_ADDRESS},kernel=vmlinuz,bootargs={}",
        boot.dom0_arguments.replace(',', ",,")
    );
    let initrd = format!("guest-loader,addr={INITRD_ADDRESS},initrd=initrd");
    let words = [
        "-smp",
        "1",
        "-machine",
        "virt,gic-version=3,virtualization=on",
        "-cpu",
        "cortex-a57",
        "-device",
        "pci-serial,chardev=job",
        "-append",
        XEN_ARGUMENTS_ARM64,
        "-device",
        &kernel,
        "-device",
        &initrd,
    ];
    words.map(str::to_owned).into()
}

impl Passthrough {
    /// Returns the emulator's arguments for the IOMMU and the devices.
    fn arguments(&self) -> Result<Vec<OsString>> {
        let served = format!("user,id=card,tftp={}", doubled(&self.served)?);
        let file = doubled(&self.disk)?;
        let drive = |id| format!("if=none,id={id},format=raw,snapshot=on,file={file}");
        let (drive, stick) = (drive("disk"), drive("stick"));
        let card = format!("e1000e,netdev=card,addr={CARD},romfile=");
        let disk = format!("nvme,drive=disk,serial=stubdm,addr={DISK}");
        let edu = format!("edu,addr={EDU}");
        let first = format!("edu,addr={PAIR}.0,multifunction=on");
        let second = format!("edu,addr={PAIR}.1");
        let usb = format!("qemu-xhci,id=usb,addr={USB}");
        let words = [
            "-machine",
            "q35",
            "-device",
            "intel-iommu,intremap=on",
            "-netdev",
            &served,
            "-device",
            &card,
            "-drive",
            &drive,
            "-device",
            &disk,
            "-device",
            &edu,
            "-device",
            &first,
            "-device",
            &second,
            "-device",
            &usb,
            "-drive",
            &stick,
            "-device",
            "usb-storage,bus=usb.0,drive=stick",
        ];
        Ok(words.iter().map(OsString::from).collect())
    }
}

/// A running machine.
#[derive(Debug)]
pub(crate) struct Machine {
    child: Child,
    port: Option<ChildStdin>,
    output: Receiver<Vec<u8>>,
    framing: Framing,
    ready: Vec<Event>,
    log: PathBuf,
}

impl Machine {
    /// Starts it.
    pub(crate) fn start(boot: &Boot<'_>) -> Result<Self> {
        fs::create_dir_all(boot.run)?;
        // Relative names: QEMU takes no spaces in a module's path, and a workspace's path may hold
        // some.
        for (name, file) in [("xen", boot.hypervisor), ("vmlinuz", boot.kernel)] {
            let link = boot.run.join(name);
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(file, &link)?;
        }
        let mut initrd = fs::File::create(boot.run.join("initrd"))?;
        for image in boot.images {
            let mut image = fs::File::open(image)?;
            std::io::copy(&mut image, &mut initrd)?;
        }
        drop(initrd);
        let log = boot.run.join("console.log");
        fs::write(&log, "")?;

        let mut arguments: Vec<OsString> = Vec::new();
        arguments.extend(boot.emulator.program.iter().cloned());
        for dir in &boot.emulator.data {
            arguments.extend(["-L".into(), dir.into()]);
        }
        let memory = boot.memory.to_string();
        let fixed = [
            "-m",
            &memory,
            "-display",
            "none",
            "-nodefaults",
            "-chardev",
            "file,id=log,path=console.log",
            "-serial",
            "chardev:log",
            "-chardev",
            "stdio,id=job,signal=off",
            "-kernel",
            "xen",
        ];
        arguments.extend(fixed.iter().map(OsString::from));
        arguments.extend(processors(boot).into_iter().map(OsString::from));
        if boot.disks.is_empty() {
            arguments.push("-no-reboot".into());
        }
        for disk in boot.disks {
            // Its file is not written to: changes go to a file without a name in TMPDIR.
            let mut drive = OsString::from("if=virtio,format=raw,snapshot=on,file=");
            drive.push(doubled(disk)?);
            arguments.extend(["-drive".into(), drive]);
        }

        if let Some(devices) = boot.pci {
            arguments.extend(devices.arguments()?);
        }

        // Not its path: cargo may have put another file there since this program was started.
        let mut command = Command::new("/proc/self/exe");
        command
            .arg(GUARD)
            .arg(std::process::id().to_string())
            .args(&arguments);
        if let Some(modules) = &boot.emulator.modules {
            command.env("QEMU_MODULE_DIR", modules);
        }
        let complaints = fs::File::create(boot.run.join("qemu.log"))?;
        let mut child = command
            .current_dir(boot.run)
            .env("TMPDIR", boot.run)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(complaints)
            .spawn()
            .context("starting QEMU")?;
        let port = child.stdin.take();
        let mut stdout = child.stdout.take().context("QEMU's output")?;
        let (sender, output) = sync_channel(64);
        thread::spawn(move || {
            let mut buffer = [0; 1 << 14];
            while let Ok(n @ 1..) = stdout.read(&mut buffer) {
                if sender.send(buffer[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        let framing = Framing::new(boot.nonce);
        Ok(Self {
            child,
            port,
            output,
            framing,
            ready: Vec::new(),
            log,
        })
    }

    /// The next event of the job's port before `deadline`; `None` when nothing came within a short
    /// while.
    pub(crate) fn next(&mut self, deadline: Instant) -> Result<Option<Event>> {
        if !self.ready.is_empty() {
            return Ok(Some(self.ready.remove(0)));
        }
        let now = Instant::now();
        if now >= deadline {
            bail!("nothing more came from the machine within the time allowed");
        }
        match self
            .output
            .recv_timeout((deadline - now).min(Duration::from_millis(200)))
        {
            Ok(piece) => {
                self.ready = self.framing.push(&piece);
                Ok((!self.ready.is_empty()).then(|| self.ready.remove(0)))
            }
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.child.wait()?;
                let said =
                    fs::read_to_string(self.log.with_file_name("qemu.log")).unwrap_or_default();
                bail!(
                    "the machine stopped before the job's end ({status}) {}",
                    said.trim_end()
                );
            }
        }
    }

    /// The processor time that the emulator has used: unlike this machine's clock, it does not
    /// depend on what else runs here.
    pub(crate) fn processor_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()));
        let ticks = stat.ok().and_then(|stat| ticks(&stat)).unwrap_or_default();
        // The unit of /proc is a hundredth of a second on every Linux.
        Duration::from_millis(ticks * 10)
    }

    /// The job's last bytes, when it will print no more.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        self.framing.rest()
    }

    /// Takes the way to send keys to the job's port; there is one.
    pub(crate) fn take_port(&mut self) -> Option<ChildStdin> {
        self.port.take()
    }

    /// The last line on the console, for a progress display.
    pub(crate) fn last_console_line(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        last_lines(&log, 1)
            .pop()
            .unwrap_or_default()
            .chars()
            .take(60)
            .collect()
    }

    /// Adds the console's last lines and where the whole of it is to an error.
    pub(crate) fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let log = fs::read(&self.log).unwrap_or_default();
        let mut text = format!("{error:#}\n--- the console's last lines ---\n");
        for line in last_lines(&log, TAIL) {
            text.push_str(&line);
            text.push('\n');
        }
        text.push_str(&format!("--- all of it: {} ---", self.log.display()));
        anyhow::anyhow!(text)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.port.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Becomes the program in `arguments`, to be killed when the process `parent` dies.
pub(crate) fn guarded(parent: i32, arguments: &[OsString]) -> Result<()> {
    use nix::sys::{prctl, signal::Signal};
    prctl::set_pdeathsig(Signal::SIGKILL).context("asking to be killed with the parent")?;
    // The parent may have died before that took effect.
    if nix::unistd::getppid().as_raw() != parent {
        bail!("the process that started this is gone");
    }
    let (program, rest) = arguments.split_first().context("nothing to run")?;
    Err(Command::new(program).args(rest).exec()).with_context(|| format!("running {program:?}"))
}

/// Boot modules as QEMU's `-initrd` takes them: separated by commas, so a comma inside one is
/// doubled.
fn module_list(modules: &[&str]) -> String {
    let doubled: Vec<_> = modules.iter().map(|m| m.replace(',', ",,")).collect();
    doubled.join(",")
}

/// A path in the form of a value of QEMU's options.
fn doubled(path: &Path) -> Result<String> {
    let path = path.to_str().context("the workspace's path is not UTF-8")?;
    Ok(path.replace(',', ",,"))
}

/// The user's and the system's time in `/proc/PID/stat`, the 14th and 15th field; the second, the
/// program's name, may hold spaces and parentheses.
fn ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(user + system)
}

/// Sends bytes to the job's port.
pub(crate) fn send(port: &mut ChildStdin, bytes: &[u8]) -> std::io::Result<()> {
    port.write_all(bytes)?;
    port.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_first_lines() {
        let said = "QEMU emulator version 10.0.8 (Debian 1:10.0.8+ds-0+deb13u1)\nCopyright (c) 2003-2025\n";
        assert_eq!(major(said), Some(10));
        assert_eq!(major("QEMU emulator version 7.2.22"), Some(7));
        assert_eq!(major("sh: not found"), None);
        assert_eq!(major(""), None);
    }

    #[test]
    fn processor_time_is_read_behind_any_name() {
        let stat = "7 (a) b (c) R 1 7 7 0 -1 4194560 9 0 0 0 120 34 0 0 20 0 3 0 99";
        assert_eq!(ticks(stat), Some(154));
        assert_eq!(ticks("7 (a"), None);
        let own = fs::read_to_string("/proc/self/stat").unwrap();
        assert!(ticks(&own).is_some(), "{own}");
    }

    #[test]
    fn devices_to_pass_through_have_fixed_addresses_and_files() {
        let devices = Passthrough {
            served: "/a,b".into(),
            disk: "/c".into(),
        };
        let words = devices.arguments().unwrap().join(" ".as_ref());
        let words = words.into_string().unwrap();
        for part in [
            "-machine q35 -device intel-iommu,intremap=on",
            "tftp=/a,,b ",
            "e1000e,netdev=card,addr=8,romfile= ",
            "snapshot=on,file=/c ",
            "nvme,drive=disk,serial=stubdm,addr=9 ",
            "edu,addr=0xa",
        ] {
            assert!(words.contains(part), "{words}");
        }
    }

    #[test]
    fn each_architecture_has_its_modules_and_the_jobs_port() {
        let emulator = Emulator {
            program: Vec::new(),
            data: Vec::new(),
            modules: None,
        };
        let here = Path::new("/a");
        let boot = |arch| Boot {
            emulator: &emulator,
            arch,
            run: here,
            hypervisor: here,
            kernel: here,
            dom0_arguments: "console=hvc0 x=1,2",
            images: &[],
            nonce: "n",
            memory: 1024,
            clock: Clock::Instructions,
            disks: &[],
            pci: None,
        };
        let pc = processors(&boot(Arch::Amd64)).join(" ");
        for part in [
            "-icount shift=1,sleep=off -smp 2 ",
            "-serial chardev:job",
            "-initrd vmlinuz console=hvc0 x=1,,2,initrd",
        ] {
            assert!(pc.contains(part), "{pc}");
        }
        let virt = processors(&boot(Arch::Arm64)).join(" ");
        for part in [
            "-icount shift=1,sleep=off -smp 1 -machine virt,gic-version=3,virtualization=on",
            "pci-serial,chardev=job",
            "kernel=vmlinuz,bootargs=console=hvc0 x=1,,2 ",
            "addr=0x50000000,initrd=initrd",
            " xsm=dummy",
        ] {
            assert!(virt.contains(part), "{virt}");
        }
    }

    #[test]
    fn a_comma_in_a_modules_command_line_is_doubled() {
        assert_eq!(
            module_list(&["k console=a,b x=,", "i"]),
            "k console=a,,b x=,,,i"
        );
    }

    #[test]
    fn the_guard_refuses_when_its_parent_is_gone() {
        let me = std::env::current_exe().unwrap();
        let error = guarded(1 << 30, &[me.into()]).unwrap_err().to_string();
        assert!(error.contains("gone"), "{error}");
    }
}

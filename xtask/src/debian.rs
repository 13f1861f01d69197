//! A dom0 as Debian installs it: its root on a disk, systemd, its init scripts, its hotplug
//! scripts; and the tests of our package there, over two boots of one machine.
//!
//! ```text
//!   mmdebstrap ──▶ root.tar ──genext2fs──▶ root.img ─▶ /dev/vda
//!   ramdisk: disk modules, our packages, the tests ─▶ mounts it, copies them to /testbed, switch_root
//! ```
//!
//! The root is built once from the machine's own sources; each run begins with it as it was built.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use stubdm_image::cpio::{Archive, Content};

use crate::apt::{Request, on_path};
use crate::host::{self, Host, Job};
use crate::progress::Step;
use crate::qemu::{self, Boot, Clock, Machine};
use crate::release::{BUILDER, Release};
use crate::store::{self, Tree, write_atomically};
use crate::workspace::Workspace;
use crate::{deb, sources};

/// The modules that the ramdisk needs to mount the root.
const MODULES: &[&str] = &["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"];

/// Packages besides the essential ones; `@XEN@` and `@LINUX@` are the releases' names.
const PACKAGES: &str = "systemd-sysv,dbus,udev,kmod,procps,bridge-utils,seabios,xz-utils,\
     qemu-system-xen,xen-utils-@XEN@,xen-hypervisor-@XEN@-amd64,linux-image-@LINUX@";

/// Files of packages that are left out: the drivers of devices that the machine has not, and texts.
const LEFT_OUT: &[&str] = &[
    "/usr/share/doc/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
    "/lib/modules/*/kernel/drivers/gpu/*",
    "/lib/modules/*/kernel/drivers/infiniband/*",
    "/lib/modules/*/kernel/drivers/media/*",
    "/lib/modules/*/kernel/drivers/net/ethernet/*",
    "/lib/modules/*/kernel/drivers/net/wireless/*",
    "/lib/modules/*/kernel/drivers/scsi/*",
    "/lib/modules/*/kernel/drivers/staging/*",
    "/lib/modules/*/kernel/sound/*",
    "/usr/lib/modules/*/kernel/drivers/gpu/*",
    "/usr/lib/modules/*/kernel/drivers/infiniband/*",
    "/usr/lib/modules/*/kernel/drivers/media/*",
    "/usr/lib/modules/*/kernel/drivers/net/ethernet/*",
    "/usr/lib/modules/*/kernel/drivers/net/wireless/*",
    "/usr/lib/modules/*/kernel/drivers/scsi/*",
    "/usr/lib/modules/*/kernel/drivers/staging/*",
    "/usr/lib/modules/*/kernel/sound/*",
];

/// Lets dpkg install whole packages on the root: mmdebstrap keeps what it left out as a setting.
const WHOLE_AGAIN: &str = "rm -f \"$1/etc/dpkg/dpkg.cfg.d/99mmdebstrap\"";

/// dom0's kernel command line: Debian's own, less what only costs an emulator time.
const DOM0_ARGUMENTS: &str =
    "console=hvc0 rdinit=/init quiet mitigations=off nokaslr panic=-1 systemd.show_status=no";

/// The root's size in blocks of 4 KiB.
const BLOCKS: u32 = 1 << 18;

/// A Debian dom0, ready to boot.
#[derive(Debug)]
pub(crate) struct Debian<'a> {
    host: &'a Host,
    root: PathBuf,
    ramdisk: PathBuf,
}

/// Returns whether this user can build a root: its files have owners.
pub(crate) fn buildable() -> bool {
    nix::unistd::geteuid().is_root() || on_path("newuidmap").is_some()
}

impl<'a> Debian<'a> {
    /// Builds the root of the host's release, if it is not there, and this run's ramdisk.
    pub(crate) fn prepare(host: &'a Host, mirror: Option<&str>) -> Result<Self> {
        let parts = &host.parts;
        let root = root(&host.workspace, parts.release, &parts.linux, mirror)?;
        let ramdisk = ramdisk(host)?;
        Ok(Self {
            host,
            root,
            ramdisk,
        })
    }

    /// Boots it, runs the tests to their end, and returns their status.
    pub(crate) fn run(&self, job: &Job, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<i32> {
        let run = self.run_folder();
        fs::create_dir_all(&run)?;
        let nonce = host::nonce();
        let overlay = run.join("job.img");
        host::overlay_of(job, &nonce, self.host.parts.release.arch)
            .write(&mut fs::File::create(&overlay)?)?;
        let parts = &self.host.parts;
        let step = Step::begin(format!("booting Debian with Xen {}", parts.release.name));
        let guest_disk = parts.guest_disk.as_deref();
        let guest_disk = guest_disk.context("there is no guest on Arm")?;
        let mut machine = Machine::start(&Boot {
            emulator: &self.host.emulator,
            arch: parts.release.arch,
            run: &run,
            hypervisor: &parts.hypervisor()?,
            kernel: &parts.plain_kernel()?,
            dom0_arguments: DOM0_ARGUMENTS,
            images: &[&self.ramdisk, &overlay],
            nonce: &nonce,
            memory: 4096,
            clock: Clock::Instructions,
            disks: &[&self.root, guest_disk],
            pci: None,
        })?;
        host::follow(&mut machine, job, step, sink)
    }

    /// The console's log of the last run.
    pub(crate) fn log(&self) -> PathBuf {
        self.run_folder().join("console.log")
    }

    fn run_folder(&self) -> PathBuf {
        let run = self.host.workspace.state().join("run");
        run.join(format!("debian-{}", self.host.parts.release.suite))
    }
}

/// Builds the root of a release whose packages are unpacked in `tree`, if it is not there.
pub(crate) fn prepare_root(
    workspace: &Workspace,
    release: &Release,
    tree: &Tree,
    mirror: Option<&str>,
) -> Result<()> {
    let linux = stubdm_image::pick_kernel(&tree.root, None, None)?;
    root(workspace, release, &linux, mirror).map(drop)
}

/// Returns the root's image, built if it is not there, for the kernel `linux`.
fn root(
    workspace: &Workspace,
    release: &Release,
    linux: &str,
    mirror: Option<&str>,
) -> Result<PathBuf> {
    let out = workspace.state().join(release.name);
    let packages = PACKAGES
        .replace("@XEN@", release.name)
        .replace("@LINUX@", linux);
    let stamp = format!(
        "{} {packages} {LEFT_OUT:?} {BLOCKS} {WHOLE_AGAIN}",
        release.suite
    );
    let (image, mark) = (out.join("debian.img"), out.join("debian.stamp"));
    if image.exists() && fs::read_to_string(&mark).is_ok_and(|have| have == stamp) {
        return Ok(image);
    }
    let builder = Builder::prepare(workspace, mirror)?;
    let step = Step::begin(format!("a root of Debian {}", release.suite));
    let list = out.join("debian.sources");
    let text = sources::for_suite(release.suite, release.arch, mirror, Path::new("/etc/apt"))?;
    fs::write(&list, text)?;
    let (tar, part) = (out.join("debian.tar"), out.join("debian.part"));
    let mut command = builder.mmdebstrap()?;
    command
        .args([
            "--variant=essential",
            "--format=tar",
            "--include",
            &packages,
        ])
        .args(apt_options()?.iter().map(|line| format!("--aptopt={line}")))
        .args(
            LEFT_OUT
                .iter()
                .map(|p| format!("--dpkgopt=path-exclude={p}")),
        )
        .arg(format!("--customize-hook={WHOLE_AGAIN}"))
        .arg(release.suite)
        .arg(&tar)
        .arg(&list)
        // The kernel's package makes no ramdisk: it is not booted by it.
        .env("INITRD", "No");
    run(&mut command, &out.join("debian.log"))?;
    let mut command = builder.genext2fs()?;
    command
        .args(["-B", "4096", "-N", "65536", "-b", &BLOCKS.to_string(), "-a"])
        .args([&tar, &part]);
    run(&mut command, &out.join("debian-disk.log"))?;
    fs::remove_file(&tar)?;
    fs::rename(&part, &image)?;
    write_atomically(&mark, stamp.as_bytes())?;
    step.done();
    Ok(image)
}

/// The programs that build a root: the machine's own, else unpacked from Debian's packages.
struct Builder {
    tree: Option<PathBuf>,
}

impl Builder {
    fn prepare(workspace: &Workspace, mirror: Option<&str>) -> Result<Self> {
        if BUILDER.whole.iter().all(|tool| on_path(tool).is_some()) {
            return Ok(Self { tree: None });
        }
        let request = Request {
            whole: BUILDER.whole,
            ..Request::default()
        };
        let state = workspace.state();
        let tree = store::prepare(&state, "builder", BUILDER.suite, mirror, &request)?;
        Ok(Self {
            tree: Some(tree.root),
        })
    }

    fn mmdebstrap(&self) -> Result<Command> {
        let Some(tree) = &self.tree else {
            return Ok(Command::new("mmdebstrap"));
        };
        let mut command = words(qemu::in_tree(tree)?);
        command.arg(tree.join("usr/bin/perl"));
        // Perl's folders have its version in their names.
        for folder in ["usr/share/perl", "usr/lib/x86_64-linux-gnu/perl"] {
            for entry in fs::read_dir(tree.join(folder))? {
                command.arg("-I").arg(entry?.path());
            }
        }
        command
            .arg("-I")
            .arg(tree.join("usr/lib/x86_64-linux-gnu/perl-base"))
            .arg(tree.join("usr/bin/mmdebstrap"));
        // It starts mmtarfilter, a script for python3; the tree's other programs are searched last.
        let own = std::env::var_os("PATH").unwrap_or_default();
        let all = std::env::split_paths(&own).chain([tree.join("usr/bin")]);
        let all = std::env::join_paths(all).context("the workspace's path has a colon")?;
        command.env("PATH", all);
        Ok(command)
    }

    fn genext2fs(&self) -> Result<Command> {
        let Some(tree) = &self.tree else {
            return Ok(Command::new("genext2fs"));
        };
        let mut command = words(qemu::in_tree(tree)?);
        command.arg(tree.join("usr/bin/genext2fs"));
        Ok(command)
    }
}

/// A command of these words.
fn words(words: Vec<OsString>) -> Command {
    let mut words = words.into_iter();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    command
}

/// Returns the settings by which this machine's apt reaches its mirrors: mmdebstrap reads none.
fn apt_options() -> Result<Vec<String>> {
    let out = Command::new("apt-config").arg("dump").output();
    let text = String::from_utf8(out.context("starting apt-config")?.stdout)?;
    let wanted = ["Acquire::http", "Acquire::Check", "Acquire::Retries"];
    let lines = text.lines();
    let lines = lines.filter(|line| wanted.iter().any(|word| line.starts_with(word)));
    Ok(lines.map(str::to_owned).collect())
}

/// Runs a command to its end. A failure names the file with its whole output.
fn run(command: &mut Command, log: &Path) -> Result<()> {
    let file = fs::File::create(log)?;
    let status = command.stdout(file.try_clone()?).stderr(file).status();
    let status = status.with_context(|| format!("starting {:?}", command.get_program()))?;
    if !status.success() {
        let said = fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<_> = said.lines().collect();
        let last = lines[lines.len().saturating_sub(10)..].join("\n");
        let log = Workspace::show(log);
        anyhow::bail!(
            "{:?}: {status}\n{last}\nall of it: {log}",
            command.get_program()
        );
    }
    Ok(())
}

/// The ramdisk that mounts the root and brings what this run tests.
fn ramdisk(host: &Host) -> Result<PathBuf> {
    let parts = &host.parts;
    let mut archive = Archive::root();
    parts.add_busybox(&mut archive)?;
    parts.add_modules(&mut archive, MODULES)?;
    let init = include_str!("../assets/debian/init");
    archive.program("init", Content::Bytes(init.as_bytes().to_vec()));
    for (name, text) in [
        ("tests", include_str!("../assets/debian/tests")),
        (
            "testbed.service",
            include_str!("../assets/debian/testbed.service"),
        ),
        ("guest.cfg", include_str!("../assets/debian/guest.cfg")),
    ] {
        archive.text(&format!("testbed/{name}"), text);
    }
    let before = deb::build_before(&host.workspace, &parts.out)?;
    let now = parts
        .package
        .clone()
        .context("the static binaries are not built")?;
    archive.file("testbed/before.deb", Content::File(before));
    archive.file("testbed/stubdm.deb", Content::File(now));
    parts.write("debian-ramdisk.img", &archive)
}

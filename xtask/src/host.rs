//! A fresh Xen host: everything fetched, built and booted, and one job done in its dom0.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{fmt, fs};

use anyhow::{Context as _, Result};
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest as _, Sha256};
use stubdm_image::cpio::{Archive, Content};
use stubdm_image::modules::Modules;

use crate::apt::Request;
use crate::console::Event;
use crate::cparts::Compiler;
use crate::images::{self, Parts, dom0::Guests, linux::Kernel};
use crate::progress::Step;
use crate::qemu::{Boot, Clock, Emulator, Machine, Passthrough};
use crate::release::{Arch, CROSS_ARM64, EMULATOR, EMULATOR_ARM64, RELEASES, Release};
use crate::store::Tree;
use crate::workspace::Workspace;
use crate::{cparts, deb, debian, dist, guest, shell, store};

/// How a host is put together.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// The Xen release.
    pub(crate) release: &'static Release,
    /// A Debian mirror in place of the machine's own sources.
    pub(crate) mirror: Option<String>,
    /// Take the static binaries as they are, or do without them.
    pub(crate) no_build: bool,
    /// A shell script as the stubdomain's init, to distinguish our init's faults from the
    /// testbed's.
    pub(crate) shell_init: bool,
    /// A machine with an IOMMU and devices to pass through.
    pub(crate) pci: bool,
}

/// The job given to dom0.
#[derive(Clone, Debug, Default)]
pub(crate) struct Job {
    /// A command to run, as a shell script.
    pub(crate) command: Option<String>,
    /// Whether a person gets a shell, after the command if there is one.
    pub(crate) shell: bool,
    /// How long the command may take.
    pub(crate) timeout: Duration,
    /// How long it may print nothing, if it is one that reports that time passes.
    pub(crate) silence: Option<Silence>,
    /// The processor time that the machine had used when the last bytes came, in milliseconds.
    pub(crate) used: Arc<AtomicU64>,
}

/// The limits of a job that prints nothing: whichever is reached first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Silence {
    /// On this machine's clock.
    pub(crate) clock: Duration,
    /// Of the emulator's processor time.
    pub(crate) work: Duration,
}

impl Job {
    /// The processor time that the machine had used when the last bytes came.
    pub(crate) fn used(&self) -> Duration {
        Duration::from_millis(self.used.load(Ordering::Relaxed))
    }
}

/// A machine printed nothing, or much too little, for this long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoodStill {
    what: &'static str,
    time: Duration,
}

impl StoodStill {
    /// Not a byte came.
    fn wholly(time: Duration) -> Self {
        let what = "stood still: nothing came from it for";
        Self { what, time }
    }

    /// The emulator worked, and not a byte came.
    fn busily(time: Duration) -> Self {
        let what = "stood still: nothing came from it in a processor time of";
        Self { what, time }
    }

    /// Its time passed, but one thing that takes a minute took this long.
    pub(crate) fn nearly(time: Duration) -> Self {
        let what = "crawled: one test was not over after a processor time of";
        Self { what, time }
    }
}

impl fmt::Display for StoodStill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.time.as_secs();
        write!(f, "the emulated machine {} {seconds} s", self.what)
    }
}

impl std::error::Error for StoodStill {}

/// The longest a boot may take: it takes half a minute or so.
const BOOT_TIMEOUT: Duration = Duration::from_secs(300);

/// dom0's kernel command line.
const DOM0_ARGUMENTS: &str = "console=hvc0 rdinit=/init quiet mitigations=off nokaslr panic=-1";

/// The parts of a host, made ready under the lock that keeps hosts apart.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) workspace: Workspace,
    pub(crate) emulator: Emulator,
    pub(crate) parts: Parts,
    dom0: PathBuf,
    pci: bool,
    /// On a machine with devices to pass through, the image of a Linux guest and its kernel, if
    /// dom0's kernel is a later one.
    linux: Option<(PathBuf, PathBuf)>,
    _lock: Lock,
}

/// Keeps hosts of other processes from being made ready or running; hosts of this process share it.
pub(crate) type Lock = Arc<Flock<fs::File>>;

/// The emulator's set of packages.
pub(crate) const EMULATOR_SET: &str = "emulator";

/// Returns the request for a release's set of packages.
pub(crate) fn request(release: &Release) -> Request<'static> {
    Request {
        arch: release.arch,
        whole: release.whole,
        bare: release.bare,
        kernel: Some(release.kernel),
    }
}

/// Unpacks a release's packages and builds the C programs against them, as far as either is not
/// there yet.
pub(crate) fn unpack(
    workspace: &Workspace,
    release: &Release,
    mirror: Option<&str>,
) -> Result<(Tree, Vec<PathBuf>)> {
    let _lock = lock(workspace)?;
    let state = workspace.state();
    let (name, suite) = (release.folder(), release.suite);
    let tree = store::prepare(&state, &name, suite, mirror, &request(release))?;
    let sources = workspace.root().join("testing/c");
    let compiler = match release.arch {
        Arch::Amd64 => Compiler::Here,
        Arch::Arm64 => Compiler::Cross(cross(workspace, mirror)?.root),
    };
    let programs = cparts::build(&sources, &compiler, &tree, &state.join(name).join("c"))?;
    Ok((tree, programs))
}

/// Unpacks the default release, whose store daemons the native tests run whichever release the
/// suite is about: its programs are the ones that the oldest supported C library can run. Returns
/// its folder.
pub(crate) fn unpack_default(workspace: &Workspace, mirror: Option<&str>) -> Result<PathBuf> {
    let release = &RELEASES[0];
    unpack(workspace, release, mirror)?;
    Ok(workspace.state().join(release.folder()))
}

/// Unpacks what makes programs for 64-bit Arm on this machine.
fn cross(workspace: &Workspace, mirror: Option<&str>) -> Result<Tree> {
    let (state, whole) = (workspace.state(), CROSS_ARM64.whole);
    let request = Request {
        whole,
        ..Request::default()
    };
    store::prepare(&state, "cross-arm64", CROSS_ARM64.suite, mirror, &request)
}

/// Makes ready what a host takes from Debian: the emulator and its release's packages.
pub(crate) fn prepare_packages(workspace: &Workspace, options: &Options) -> Result<()> {
    let _lock = lock(workspace)?;
    let mirror = options.mirror.as_deref();
    emulator(workspace, options.release.arch, mirror)?;
    unpack(workspace, options.release, mirror).map(drop)
}

/// Makes ready what only the tests take from Debian, once [`prepare_packages`] has returned: the
/// other releases' packages, and the root of Debian's dom0 where this user can build one.
pub(crate) fn prepare_for_tests(workspace: &Workspace, options: &Options) -> Result<()> {
    let _lock = lock(workspace)?;
    let (own, mirror) = (options.release, options.mirror.as_deref());
    for other in RELEASES.iter().filter(|release| release.name != own.name) {
        unpack(workspace, other, mirror)?;
    }
    if debian::buildable() {
        let (tree, _) = unpack(workspace, own, mirror)?;
        debian::prepare_root(workspace, own, &tree, mirror)?;
    }
    Ok(())
}

/// Keeps other hosts from being made ready or running until dropped.
pub(crate) fn lock(workspace: &Workspace) -> Result<Lock> {
    static HELD: Mutex<Weak<Flock<fs::File>>> = Mutex::new(Weak::new());
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(lock) = held.upgrade() {
        return Ok(lock);
    }
    let lock = Arc::new(lock_file(workspace)?);
    *held = Arc::downgrade(&lock);
    Ok(lock)
}

fn lock_file(workspace: &Workspace) -> Result<Flock<fs::File>> {
    let path = workspace.state().join("lock");
    fs::create_dir_all(workspace.state())?;
    let open = || fs::File::create(&path).with_context(|| format!("opening {}", path.display()));
    match Flock::lock(open()?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((file, nix::errno::Errno::EWOULDBLOCK)) => {
            let step = Step::begin("waiting for another Xen host of this workspace to end");
            let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| e)?;
            step.done();
            Ok(lock)
        }
        Err((_, error)) => Err(error).context("locking the testbed"),
    }
}

/// The emulator: the machine's own, else unpacked from Debian's packages.
pub(crate) fn emulator(
    workspace: &Workspace,
    arch: Arch,
    mirror: Option<&str>,
) -> Result<Emulator> {
    if let Some(emulator) = Emulator::installed(arch) {
        return Ok(emulator);
    }
    let (set, suite, request) = emulator_request(arch);
    let tree = store::prepare(&workspace.state(), &set, suite, mirror, &request);
    let tree = tree.with_context(|| {
        let program = arch.emulator();
        format!("this machine has no {program} of version 7, and Debian 12's could not be fetched")
    })?;
    Emulator::unpacked(&tree.root, arch)
}

/// Returns an emulator's set of packages, their suite, and the request for them.
fn emulator_request(arch: Arch) -> (String, &'static str, Request<'static>) {
    let programs = match arch {
        Arch::Amd64 => &EMULATOR,
        Arch::Arm64 => &EMULATOR_ARM64,
    };
    let request = Request {
        whole: programs.whole,
        ..Request::default()
    };
    let set = format!("{EMULATOR_SET}{}", arch.suffix());
    (set, programs.suite, request)
}

/// Downloads what is missing and verifies everything.
pub(crate) fn fetch(workspace: &Workspace, options: &Options) -> Result<()> {
    let _lock = lock(workspace)?;
    let (state, mirror, release) = (
        workspace.state(),
        options.mirror.as_deref(),
        options.release,
    );
    let mut count = 0;
    if Emulator::installed(release.arch).is_none() {
        let (set, suite, request) = emulator_request(release.arch);
        count += store::fetch(&state, &set, suite, mirror, &request)?.0.len();
    }
    count += store::fetch(
        &state,
        &release.folder(),
        release.suite,
        mirror,
        &request(release),
    )?
    .0
    .len();
    println!(
        "{count} packages for Xen {} are here, sizes and SHA-256 verified",
        release.name
    );
    Ok(())
}

/// Returns the image of a Linux guest with the default release's kernel, and that kernel, if there
/// is an agent for its userland. The emulated machine hangs with a later kernel.
fn default_linux(
    workspace: &Workspace,
    parts: &Parts,
    mirror: Option<&str>,
) -> Result<Option<(PathBuf, PathBuf)>> {
    let release = &RELEASES[0];
    let (tree, _) = unpack(workspace, release, mirror)?;
    let modules = Modules::find(
        &tree.root,
        &stubdm_image::pick_kernel(&tree.root, None, None)?,
    )?;
    let out = workspace.state().join(release.folder());
    let kernel = Kernel {
        packed: images::packed_kernel(&tree)?,
        plain: images::plain_kernel(&tree, release.arch, &out)?,
        modules: &modules,
    };
    let image = images::linux::build(parts, &kernel, "pci-linux.img")?;
    Ok(image.map(|image| (image, kernel.plain)))
}

impl Host {
    /// Fetches, unpacks and builds whatever is not there yet.
    pub(crate) fn prepare(workspace: &Workspace, options: &Options) -> Result<Self> {
        let arch = options.release.arch;
        if !options.no_build {
            match arch {
                Arch::Amd64 => dist::build(workspace)?,
                Arch::Arm64 => dist::build_for_arm64(workspace)?,
            }
        }
        let lock = lock(workspace)?;
        let state = workspace.state();
        let mirror = options.mirror.as_deref();
        let release = options.release;
        let emulator = emulator(workspace, arch, mirror)?;
        let (tree, c_programs) = unpack(workspace, release, mirror)?;
        let out = state.join(release.folder());
        let version = stubdm_image::pick_kernel(&tree.root, None, None)?;
        let modules = Modules::find(&tree.root, &version)?;
        let is_x86 = arch == Arch::Amd64;
        let built = |name| Some(dist::path_on(workspace, arch, name)).filter(|path| path.is_file());
        let parts = Parts {
            release,
            tree,
            linux: version,
            modules,
            package: match built(dist::STUBDM_RUN) {
                Some(_) => Some(deb::build(workspace)?),
                None => None,
            },
            stubdm_run: built(dist::STUBDM_RUN),
            agent: built(dist::AGENT),
            c_programs,
            guest_disk: match arch {
                Arch::Amd64 => Some(guest::build(&out.join("guest"))?),
                Arch::Arm64 => None,
            },
            busybox: match arch {
                Arch::Amd64 => None,
                Arch::Arm64 => Some(cross(workspace, mirror)?.root),
            },
            out,
        };
        let lacks = [
            (dist::STUBDM_RUN, is_x86 && parts.stubdm_run.is_none()),
            (dist::AGENT, parts.agent.is_none()),
        ];
        for (name, _) in lacks.iter().filter(|(_, lacks)| *lacks) {
            eprintln!("xtask: {name} is not built; this host does without it");
        }
        let domu = images::domu::build(&parts)?;
        let dom0 = if is_x86 {
            let stub = images::stub::build(&parts, options.shell_init)?;
            let printed = images::stub::printed(&parts)?;
            let own = Kernel {
                packed: parts.kernel()?,
                plain: parts.plain_kernel()?,
                modules: &parts.modules,
            };
            let linux = images::linux::build(&parts, &own, "linux.img")?;
            let guests = Guests {
                stub: &stub,
                printed: &printed,
                domu: &domu,
                linux: linux.as_deref(),
            };
            images::dom0::build(&parts, &guests)?
        } else {
            images::dom0::build_for_arm64(&parts, &domu)?
        };
        let needs_linux = options.pci && release.name != RELEASES[0].name;
        let linux = needs_linux.then(|| default_linux(workspace, &parts, mirror));
        Ok(Self {
            workspace: workspace.clone(),
            emulator,
            parts,
            dom0,
            pci: options.pci,
            linux: linux.transpose()?.flatten(),
            _lock: lock,
        })
    }

    /// Boots the host, does the job, and gives its status; `sink` gets what the job prints, as it
    /// comes.
    pub(crate) fn run(&self, job: &Job, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<i32> {
        let run = self.run_folder();
        fs::create_dir_all(&run)?;
        let nonce = nonce();
        let overlay = run.join("job.img");
        let mut file = fs::File::create(&overlay)?;
        let mut archive = overlay_of(job, &nonce, self.parts.release.arch);
        let pci = self.pci.then(|| passthrough(&run, &nonce, &mut archive));
        let pci = pci.transpose()?;
        if let Some((image, kernel)) = &self.linux {
            archive.file("boot/pci-linux.img", Content::File(image.clone()));
            archive.file("boot/pci-vmlinuz", Content::File(kernel.clone()));
        }
        archive.write(&mut file)?;
        file.flush()?;
        let step = Step::begin(format!("booting Xen {}", self.parts.release.folder()));
        let mut machine = Machine::start(&Boot {
            emulator: &self.emulator,
            arch: self.parts.release.arch,
            run: &run,
            hypervisor: &self.parts.hypervisor()?,
            kernel: &self.parts.plain_kernel()?,
            dom0_arguments: DOM0_ARGUMENTS,
            images: &[&self.dom0, &overlay],
            nonce: &nonce,
            memory: 4096,
            clock: if job.shell {
                Clock::Patient
            } else {
                Clock::Instructions
            },
            disks: &[],
            pci: pci.as_ref(),
        })?;
        follow(&mut machine, job, step, sink)
    }

    /// Returns whether its machine has an IOMMU and devices to pass through.
    pub(crate) fn pci(&self) -> bool {
        self.pci
    }

    /// The console's log of the last run.
    pub(crate) fn log(&self) -> PathBuf {
        self.run_folder().join("console.log")
    }

    /// A folder of this release's own: several hosts may run at once.
    fn run_folder(&self) -> PathBuf {
        let name = self.parts.release.folder();
        let end = if self.pci { "-pci" } else { "" };
        let name = format!("{name}{end}");
        self.workspace.state().join("run").join(name)
    }
}

/// Follows a machine from its start to its job's end; an error shows its console.
pub(crate) fn follow(
    machine: &mut Machine,
    job: &Job,
    step: Step,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<i32> {
    drive(machine, job, step, sink).map_err(|error| match error.downcast_ref::<StoodStill>() {
        // The cause stays available.
        Some(&still) => machine.explain(error).context(still),
        None => machine.explain(error),
    })
}

fn drive(
    machine: &mut Machine,
    job: &Job,
    step: Step,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<i32> {
    let deadline = Instant::now() + BOOT_TIMEOUT;
    loop {
        match machine.next(deadline).context("booting")? {
            Some(Event::Begin) => break,
            Some(_) => {}
            None => step.note(&machine.last_console_line()),
        }
    }
    step.done();
    let mut status = 0;
    if job.command.is_some() {
        let deadline = Instant::now() + job.timeout;
        let mut heard = Instant::now();
        job.used
            .store(milliseconds(machine.processor_time()), Ordering::Relaxed);
        status = loop {
            match machine.next(deadline) {
                Ok(Some(Event::Bytes(bytes))) => {
                    heard = Instant::now();
                    let used = milliseconds(machine.processor_time());
                    job.used.store(used, Ordering::Relaxed);
                    sink(&bytes)?;
                }
                Ok(Some(Event::Exit(status))) => break status,
                Ok(_) => {
                    let worked = machine.processor_time().saturating_sub(job.used());
                    if let Some(still) = still(job.silence, heard.elapsed(), worked) {
                        sink(&machine.rest())?;
                        return Err(still.into());
                    }
                }
                Err(e) => {
                    sink(&machine.rest())?;
                    return Err(e.context(format!("a limit of {} s", job.timeout.as_secs())));
                }
            }
        };
        if !job.shell {
            return Ok(status);
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while machine.next(deadline)? != Some(Event::Begin) {}
    }
    let shell = if job.shell {
        shell::attend(machine)?
    } else {
        0
    };
    Ok(if job.command.is_some() { status } else { shell })
}

/// Returns which limit was reached by a job that printed nothing for `clock`, while the emulator
/// worked for `work`.
fn still(limits: Option<Silence>, clock: Duration, work: Duration) -> Option<StoodStill> {
    let limits = limits?;
    if work > limits.work {
        Some(StoodStill::busily(limits.work))
    } else {
        (clock > limits.clock).then(|| StoodStill::wholly(limits.clock))
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Returns the overlay of dom0's image for one run.
pub(crate) fn overlay_of(job: &Job, nonce: &str, arch: Arch) -> Archive {
    let mut archive = Archive::bare();
    let (columns, lines) = shell::size();
    let wanted = if job.shell { "yes" } else { "" };
    // An Arm machine's own serial port is of another kind, with names of its own.
    let port = match arch {
        Arch::Amd64 => "/dev/ttyS1",
        Arch::Arm64 => "/dev/ttyS0",
    };
    archive.text(
        "job/settings",
        &format!(
            "NONCE={nonce}\nPORT={port}\nSHELL_WANTED={wanted}\nCOLUMNS={columns}\nLINES={lines}\n"
        ),
    );
    if let Some(command) = &job.command {
        archive.file(
            "job/command",
            Content::Bytes(format!("{command}\n").into_bytes()),
        );
    }
    archive
}

/// The size of the file that the card's network serves, in bytes; the disk begins with a copy.
const PCI_DATA: usize = 32 << 10;
/// The size of the disk to pass through, in bytes.
const PCI_DISK: u64 = 16 << 20;

/// Makes the files behind the devices to pass through, again for each run: the card's network
/// serves `data`, and the disk begins with the same bytes. dom0 has them as `/job/pci-data`.
fn passthrough(run: &Path, nonce: &str, archive: &mut Archive) -> Result<Passthrough> {
    let data: Vec<u8> = (0..PCI_DATA / 32)
        .flat_map(|block| Sha256::digest(format!("{nonce} {block}")))
        .collect();
    let served = run.join("served");
    fs::create_dir_all(&served)?;
    fs::write(served.join("data"), &data)?;
    let disk = run.join("nvme.img");
    fs::write(&disk, &data)?;
    fs::File::options()
        .write(true)
        .open(&disk)?
        .set_len(PCI_DISK)?;
    archive.file("job/pci-data", Content::Bytes(data));
    Ok(Passthrough { served, disk })
}

/// A number that no job can contain before it runs.
pub(crate) fn nonce() -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    format!("{:x}{:x}", now.as_nanos(), std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_has_a_limit_on_the_clock_and_one_of_work() {
        let seconds = Duration::from_secs;
        let limits = Some(Silence {
            clock: seconds(100),
            work: seconds(10),
        });
        let said = |clock, work| {
            still(limits, seconds(clock), seconds(work)).map(|still| still.to_string())
        };
        assert_eq!(said(100, 10), None);
        let text =
            "the emulated machine stood still: nothing came from it in a processor time of 10 s";
        assert_eq!(said(11, 11).as_deref(), Some(text));
        let text = "the emulated machine stood still: nothing came from it for 100 s";
        assert_eq!(said(101, 0).as_deref(), Some(text));
        assert!(still(None, seconds(900), seconds(900)).is_none());
    }
}

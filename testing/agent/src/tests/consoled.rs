//! The stubdomain's consoles in dom0: served without a QEMU, and by the real one where more than
//! consoles is asked for.
//!
//! Every test with a guest checks the bytes: it speaks through console 3, is saved through console
//! 1 and restored through console 2, and the stubdomain's log is console 0.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::guest::{Guest, NAME, diagnosis};
use crate::host::{TestHost, command};
use crate::leftovers::processes;
use crate::qmp::Qmp;
use crate::suite::{Needs, Test};
use crate::tests::save::{IMAGE, goes_on, restore, second};
use crate::tests::screen;

/// The device model that libxl starts.
pub(crate) const MODEL: &str = "/usr/libexec/xen-qemu-system-i386";
/// Its log for the stubdomain.
const LOG: &str = "/var/log/xen/qemu-dm-hvm-dm.log";
/// Its command line where there are only consoles.
pub(crate) const CONSOLED: &str = "/usr/bin/stubdm-run consoled ";

pub(super) fn add(tests: &mut Vec<Test>) {
    tests.push(Test::new(
        "consoled/handed_over_to_qemu",
        Needs::Package,
        |host| {
            let result = handed_over(host).with_context(diagnosis);
            let _ = fs::remove_file(IMAGE);
            result
        },
    ));
    tests.push(Test::new(
        "consoled/no_qemu_in_dom0",
        Needs::Guest,
        |host| host.with_guest(no_qemu),
    ));
}

/// A process that runs as the device model of a domain, and what it takes of dom0's memory.
#[derive(Debug)]
struct Model {
    program: String,
    /// KiB in memory, its share of pages that others have as well included.
    share: u64,
    resident: u64,
}

impl Model {
    fn all() -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for (pid, line) in processes()? {
            if line.starts_with(MODEL) || line.starts_with(CONSOLED) {
                let [resident, share] = memory(pid)?;
                let program = fs::read_link(format!("/proc/{pid}/exe"))?;
                found.push(Self {
                    program: program.display().to_string(),
                    share,
                    resident,
                });
            }
        }
        Ok(found)
    }

    /// The only one, which runs `program`.
    fn one(program: &str) -> Result<Self> {
        let mut all = Self::all()?;
        ensure!(
            all.len() == 1 && all.iter().all(|model| model.program == program),
            "the device models in dom0 are {all:?}, not one {program}"
        );
        let model = all.remove(0);
        println!(
            "    {program} for the stubdomain's consoles: {} KiB resident, {} KiB its own share",
            model.resident, model.share
        );
        Ok(model)
    }
}

/// The one device model in dom0 is ours.
pub(super) fn no_qemu_in_dom0() -> Result<()> {
    Model::one("/usr/bin/stubdm-run").map(drop)
}

/// The one device model in dom0 is QEMU.
pub(super) fn qemu_in_dom0() -> Result<()> {
    Model::one(&format!("{MODEL}.distrib")).map(drop)
}

/// Prints what a process takes of dom0's memory.
pub(super) fn print_memory(what: &str, pid: impl std::fmt::Display) -> Result<()> {
    let [resident, share] = memory(pid)?;
    println!("    {what}: {resident} KiB resident, {share} KiB its own share");
    Ok(())
}

/// The KiB of a process that are in memory, and its share of them: both of one moment, since an idle
/// process gives up pages.
pub(crate) fn memory(pid: impl std::fmt::Display) -> Result<[u64; 2]> {
    let file = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&file).with_context(|| file.clone())?;
    Ok([number(&text, "Rss:", &file)?, number(&text, "Pss:", &file)?])
}

/// The number behind a name in a file, as of KiB.
pub(crate) fn field(file: &str, name: &str) -> Result<u64> {
    let text = fs::read_to_string(file).with_context(|| file.to_owned())?;
    number(&text, name, file)
}

fn number(text: &str, name: &str, file: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    number
        .with_context(|| format!("no {name} in {file}"))?
        .parse()
        .context(file.to_owned())
}

/// The one process is ours, small, and answers QMP with the terminal that the store names; none is
/// called QEMU.
fn no_qemu(host: &TestHost, guest: &mut Guest) -> Result<()> {
    second(guest)?;
    let model = Model::one("/usr/bin/stubdm-run")?;
    ensure!(model.resident < 8 << 10, "{model:?}");
    let listed = command(&["ps"])?;
    ensure!(
        // A run of these tests by name has the word in its own command line.
        !listed
            .iter()
            .any(|line| line.contains("qemu") && !line.contains(" suite "))
            && listed.iter().any(|line| line.contains(CONSOLED)),
        "ps: {listed:#?}"
    );
    let node = format!("/local/domain/{}/device/console/3/tty", guest.stub);
    let terminal = host.store.read_str(&node)?;
    for socket in ["libxl", "libxenstat"] {
        let path = format!("/var/run/xen/qmp-{socket}-{}", guest.stub);
        let mut qmp = Qmp::connect(path)?;
        let chardevs = qmp.execute("query-chardev", None)?.to_string();
        ensure!(
            chardevs.contains(&format!("pty:{terminal}")),
            "no {terminal} in {chardevs}"
        );
        ensure!(qmp.execute("device_add", None).is_err(), "device_add");
    }
    Ok(())
}

/// A display on the host is QEMU's, and the consoles with it: the guest speaks, is saved and
/// restored as with ours, and its screen with it.
fn handed_over(host: &TestHost) -> Result<()> {
    let mut guest = Guest::create_with(&host.store, &["vnc=1", screen::STDVGA])?;
    let mut before = second(&mut guest)?;
    Model::one(&format!("{MODEL}.distrib"))?;
    let log = fs::read_to_string(LOG).context(LOG)?;
    guest = screen::is_kept(&host.store, guest, |guest| {
        command(&["xl", "save", NAME, IMAGE])?;
        restore(guest)
    })
    .with_context(diagnosis)?;
    before = goes_on(&mut guest, before)?;
    Model::one(&format!("{MODEL}.distrib"))?;
    guest.destroy()?;
    ensure!(before > 0 && !log.contains("serving"), "{log}");
    Ok(())
}

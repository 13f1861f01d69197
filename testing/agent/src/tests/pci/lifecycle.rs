//! A device through its guest's life: what saves, restarts and kills do to it.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use xen_gnttab::{PageAccess, Region, foreign};
use xen_store::{Permissions, Store};
use xen_sys::DomId;

use super::super::hypercalls::privcmd;
use super::super::outcomes::{command_line, order, ramdisk_with_killer};
use super::super::policy::asked;
use super::super::save::{IMAGE, goes_on, restore, second};
use super::{
    DISK, EDU, MEMORY, MODULE, PAIR, PASSTHROUGH, RESTART, given, is_assignable_again, passed,
};
use crate::guest::{CONFIG, Guest, LOG, NAME, STUB, diagnosis, listed};
use crate::host::{TestHost, command, host_release, outcome, soon};
use crate::job::Exit;
use crate::suite::{Needs, Test};

pub(super) fn add(tests: &mut Vec<Test>) {
    let mut test = |name, body: fn(&TestHost) -> Result<()>| {
        tests.push(Test::new(name, Needs::Package, move |host| {
            given()?;
            body(host)
        }));
    };
    test("pci/two_devices_and_two_functions_of_one", several);
    test("pci/saved_without_the_device", saved);
    // xl of 4.17 has no command for it.
    if host_release() >= (4, 20) {
        test("pci/suspended_and_resumed", suspended);
    }
    test("pci/attached_anew_after_a_restart", restarted);
    test("pci/given_on_after_qemu_was_killed", qemu_killed);
    test("pci/given_on_after_the_stubdomain_was_destroyed", destroyed);
    test("pci/refused_at_once", refused);
    test("pci/reported_at_once_if_pciback_gives_up", gives_up);
    test("pci/the_hosts_addresses_in_the_stubdomain", same_addresses);
}

/// Creates the guest with the edu, and with more lines of configuration.
fn create(store: &Store, more: &[&str]) -> Result<Guest> {
    create_of("permissive=1", store, more)
}

/// Does the same for a device with these options.
fn create_of(options: &str, store: &Store, more: &[&str]) -> Result<Guest> {
    let device = format!("pci=[\"{EDU},{options}\"]");
    let lines = [&[&*device, MEMORY], more].concat();
    let guest = Guest::create_with(store, &lines);
    guest.with_context(|| format!("creating {NAME}{}", diagnosis()))
}

/// The device copies within the guest's memory.
fn copies(store: &Store, guest: &mut Guest) -> Result<()> {
    copies_by(1, store, guest)
}

/// Each of so many devices does.
fn copies_by(count: usize, store: &Store, guest: &mut Guest) -> Result<()> {
    // Before it is alive, nothing looks at what is typed.
    second(guest)?;
    guest.types(store, "^")?;
    for _ in 0..count {
        let said = guest.output_after("xen-guest: dma ")?;
        ensure!(said.starts_with("inside=0x5a5aa5a5 "), "{said}");
    }
    Ok(())
}

/// The guest has three devices, two of them functions of one, and each does its own DMA.
fn several(host: &TestHost) -> Result<()> {
    let devices = [EDU, PAIR[0], PAIR[1]];
    let named: Vec<String> = devices
        .iter()
        .map(|d| format!("\"{d},permissive=1\""))
        .collect();
    let line = format!("pci=[{}]", named.join(", "));
    let mut guest = Guest::create_with(&host.store, &[&line, MEMORY])
        .with_context(|| format!("creating {NAME}{}", diagnosis()))?;
    let result = (|| {
        let names = ["pci-pt-00_0a.0", "pci-pt-00_0b.0", "pci-pt-00_0b.1"];
        ensure!(passed(&guest)? == names, "{:?}", passed(&guest));
        copies_by(devices.len(), &host.store, &mut guest)
    })();
    guest.destroy()?;
    result.with_context(diagnosis)?;
    devices.into_iter().try_for_each(is_assignable_again)
}

/// libxl saves the guest without the device. The guest continues where it was; the device is free.
fn saved(host: &TestHost) -> Result<()> {
    let guest = create(&host.store, &[PASSTHROUGH])?;
    let result = saves(&host.store, guest).with_context(diagnosis);
    let _ = fs::remove_file(IMAGE);
    result?.destroy()?;
    is_assignable_again(EDU)
}

fn saves(store: &Store, mut guest: Guest) -> Result<Guest> {
    copies(store, &mut guest)?;
    let before = second(&mut guest)?;
    command(&["xl", "save", NAME, IMAGE])?;
    is_assignable_again(EDU)?;
    guest = restore(guest)?;
    goes_on(&mut guest, before)?;
    attached_anew(store, &mut guest)?;
    Ok(guest)
}

/// The guest keeps the device while it is suspended.
fn suspended(host: &TestHost) -> Result<()> {
    let mut guest = create(&host.store, &[])?;
    let result = (|| {
        copies(&host.store, &mut guest)?;
        let before = second(&mut guest)?;
        command(&["xl", "suspend", NAME])?;
        let state = listed()?.remove(NAME).unwrap_or_default();
        ensure!(state.contains('s'), "{NAME} is {state}");
        command(&["xl", "resume", NAME])?;
        goes_on(&mut guest, before)?;
        copies(&host.store, &mut guest)
    })();
    guest.destroy()?;
    result.with_context(diagnosis)?;
    is_assignable_again(EDU)
}

/// libxl has left the device out, and gives it to the running guest when it is asked to.
fn attached_anew(store: &Store, guest: &mut Guest) -> Result<()> {
    ensure!(passed(guest)?.is_empty(), "{:?}", passed(guest));
    is_assignable_again(EDU)?;
    command(&["xl", "pci-attach", NAME, &format!("{EDU},permissive=1")])?;
    ensure!(passed(guest)? == ["pci-pt-00_0a.0"], "{:?}", passed(guest));
    copies(store, guest)
}

/// The guest keeps clear of the memory that the host's firmware has reserved for devices.
const RDM: &str = "rdm=\"strategy=host,policy=relaxed\"";

/// The guest resets the machine, and xl makes a new one. The first guest's device is one to which
/// QEMU writes no unknown registers, and which has a reservation's policy of its own.
fn restarted(host: &TestHost) -> Result<()> {
    let options = "permissive=0,rdm_policy=strict,power_mgmt=1,msitranslate=0";
    let mut guest = create_of(options, &host.store, &[RESTART, PASSTHROUGH, RDM])?;
    let node = format!("/local/domain/0/backend/pci/{}/0/opts-0", guest.stub);
    let said = host.store.read_str(&node)?;
    let expected = "msitranslate=0,power_mgmt=1,permissive=0,rdm_policy=strict";
    ensure!(said == expected, "pciback is told {said}");
    copies(&host.store, &mut guest).with_context(diagnosis)?;
    guest = guest.restarts(&host.store, "$").with_context(diagnosis)?;
    attached_anew(&host.store, &mut guest).with_context(diagnosis)?;
    guest.destroy()?;
    is_assignable_again(EDU)
}

/// The time for which a device has to be quiet; it copies several times a second.
const QUIET: Duration = Duration::from_secs(2);

/// The place in the guest's memory to which the device copied last.
struct Copied(Region);

impl Copied {
    /// The frame and the place in it (testing/guest/dma.s).
    const PLACE: (u64, usize) = (0x18, 4);

    /// Has the guest's device copy forever.
    fn forever(store: &Store, guest: &mut Guest) -> Result<Self> {
        second(guest)?;
        guest.types(store, "|")?;
        guest.output_after("xen-guest: dma forever")?;
        let privcmd = privcmd()?;
        let (memory, (frame, _)) = (privcmd.guest(guest.id), Self::PLACE);
        let mut copied = Self(foreign::map(memory, &[frame], PageAccess::ReadOnly)?);
        copied.grows()?;
        Ok(copied)
    }

    fn now(&self) -> Result<u32> {
        let mut bytes = [0; 4];
        self.0.copy_out(Self::PLACE.1, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// It grows, by DMA of now.
    fn grows(&mut self) -> Result<()> {
        let (before, deadline) = (self.now()?, soon());
        while self.now()? < before + 3 {
            ensure!(Instant::now() < deadline, "no DMA after number {before}");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

/// Faults of the device in Xen's log.
fn faults() -> Result<usize> {
    let log = command(&["xl", "dmesg"])?;
    Ok(log.iter().filter(|line| line.contains(EDU)).count())
}

/// The device is assignable and quiet, and the next guest's to use.
fn is_given_on(host: &TestHost) -> Result<()> {
    is_assignable_again(EDU)?;
    let before = faults()?;
    std::thread::sleep(QUIET);
    ensure!(faults()? == before, "the device does DMA without a guest");
    let mut next = create(&host.store, &[]).context("the next guest")?;
    let result = copies(&host.store, &mut next);
    next.destroy()?;
    result.with_context(diagnosis)?;
    is_assignable_again(EDU)
}

/// QEMU ends in the middle of DMA: libxl destroys the guest, as its configuration has it.
fn qemu_killed(host: &TestHost) -> Result<()> {
    let image = ramdisk_with_killer()?;
    let ramdisk = format!("stubdomain_ramdisk=\"{image}\"");
    let line = command_line("stubdm.qemu=/extra/mortal-qemu")?;
    let result: Result<DomId> = (|| {
        let more = [&*ramdisk, &line, "on_crash=\"destroy\""];
        let mut guest = create(&host.store, &more)?;
        let copied = Copied::forever(&host.store, &mut guest);
        copied.with_context(diagnosis)?;
        let killed = Instant::now();
        order(&host.store, &guest, "SIGKILL")?;
        let stub = guest.stub;
        guest.has_left()?;
        println!("    the guest is gone after {:?}", killed.elapsed());
        Ok(stub)
    })();
    fs::remove_file(image)?;
    forget_backend(&host.store, result?)?;
    is_given_on(host)
}

/// Removes the nodes of a device's backend: libxl leaves them when the stubdomain has crashed.
fn forget_backend(store: &Store, stub: DomId) -> Result<()> {
    let folder = format!("/local/domain/0/backend/pci/{stub}");
    ensure!(store.exists(&folder)?, "libxl has removed {folder}");
    Ok(store.rm(&folder)?)
}

/// The stubdomain alone is destroyed in the middle of DMA.
fn destroyed(host: &TestHost) -> Result<()> {
    let mut guest = create(&host.store, &[])?;
    let result = (|| {
        let copied = Copied::forever(&host.store, &mut guest)?;
        let began = Instant::now();
        command(&["xl", "destroy", STUB])?;
        println!("    the stubdomain is gone after {:?}", began.elapsed());
        let last = copied.now()?;
        std::thread::sleep(QUIET);
        ensure!(copied.now()? == last, "DMA without a stubdomain");
        Ok(())
    })();
    let began = Instant::now();
    guest.destroy()?;
    println!("    the guest is gone after {:?}", began.elapsed());
    result.and_then(|()| is_given_on(host))
}

/// The time within which a refusal has to come.
const AT_ONCE: Duration = Duration::from_secs(5);
/// A function of the machine's that pciback does not have, and an address without one.
const NOT_GIVEN: &str = "0000:00:1f.0";
const NOTHING: &str = "0000:00:1e.0";

/// xl fails with its address, at once.
fn is_refused(argv: &[&str], reason: &str) -> Result<()> {
    let began = Instant::now();
    let (exit, lines) = outcome(argv)?;
    let (took, said) = (began.elapsed(), lines.join("\n"));
    println!("    {argv:?}: {exit} after {took:?}");
    ensure!(exit != Exit::Status(0), "{argv:?}: {said}");
    ensure!(said.contains(reason), "{argv:?}: {said}");
    ensure!(took < AT_ONCE, "{argv:?}: after {took:?}");
    Ok(())
}

fn refused(host: &TestHost) -> Result<()> {
    let mut guest = create(&host.store, &[])?;
    let result = refusals(&host.store, &mut guest).with_context(diagnosis);
    guest.destroy()?;
    result?;
    let line = format!("pci=[\"{NOT_GIVEN}\"]");
    let (exit, lines) = outcome(&["xl", "create", CONFIG, &line, MEMORY])?;
    let said = lines.join("\n");
    ensure!(exit != Exit::Status(0), "{said}");
    ensure!(
        said.contains("PCI device 0:0:1f.0 is not assignable"),
        "{said}"
    );
    is_assignable_again(EDU)
}

/// Refusals that change nothing: xl's, and that of a device which the toolstack has not announced.
fn refusals(store: &Store, guest: &mut Guest) -> Result<()> {
    let attach = |device| ["xl", "pci-attach", NAME, device];
    is_refused(&attach(EDU), "PCI device 0000:00:0a.0 already assigned")?;
    is_refused(&attach(NOT_GIVEN), "PCI device 0:0:1f.0 is not assignable")?;
    is_refused(&attach(NOTHING), "PCI device 0000:00:1e.0 already assigned")?;
    // libxl keeps no list of the devices of a guest with a stubdomain.
    let list = command(&["xl", "pci-list", NAME])?;
    ensure!(list.is_empty(), "{list:?}");
    is_refused(&["xl", "pci-detach", NAME, EDU], "unable to remove device")?;

    let device =
        format!(r#""driver": "xen-pci-passthrough", "id": "pci-pt-00_09.0", "hostaddr": "{DISK}""#);
    let add = |more: &str| -> Result<String> {
        let began = Instant::now();
        let (exit, said) = asked(guest, "device_add", &format!("{{{device}{more}}}"))?;
        ensure!(exit == Exit::Status(1), "{exit}: {said}");
        ensure!(began.elapsed() < AT_ONCE, "after {:?}", began.elapsed());
        Ok(said)
    };
    let said = add("")?;
    ensure!(!said.contains("policy"), "{said}");
    // QubesOS's libxl sends it to its own QEMU; a QEMU without its patch has no such property.
    let said = add(r#", "power_mgmt": true"#)?;
    let is_qemus = said.contains("power_mgmt") && !said.contains("policy");
    ensure!(is_qemus, "{said}");
    let said = add(r#", "rdm_policy": "strict""#)?;
    ensure!(said.contains("policy"), "{said}");
    // A later QEMU finds no address of it in the store, and asks for no file.
    if host_release() < (4, 20) {
        let log = fs::read_to_string(LOG).context(LOG)?;
        let refusal = format!("PCI: {DISK} is no device of this domain's");
        ensure!(log.contains(&refusal), "nothing about `{refusal}`");
    }

    ensure!(passed(guest)? == ["pci-pt-00_0a.0"], "{:?}", passed(guest));
    copies(store, guest)
}

/// pciback gives up on a device that it does not have, and pcifront with it: the log has that.
fn gives_up(host: &TestHost) -> Result<()> {
    let guest = Guest::create_with(&host.store, &[MEMORY])?;
    let result = announced(&host.store, guest.stub).with_context(diagnosis);
    guest.destroy()?;
    result
}

/// Announces [`NOT_GIVEN`] to the stubdomain as libxl announces a device, without its checks.
fn announced(store: &Store, stub: DomId) -> Result<()> {
    let back = format!("/local/domain/0/backend/pci/{stub}");
    let front = format!("/local/domain/{stub}/device/pci");
    let of_front = [("backend-id", "0"), ("state", "1")];
    let of_back = [
        ("frontend", &*format!("{front}/0")),
        ("frontend-id", &stub.to_string()),
        ("online", "1"),
        ("state", "1"),
        ("key-0", NOT_GIVEN),
        ("dev-0", NOT_GIVEN),
        ("opts-0", "msitranslate=0,power_mgmt=0,permissive=0"),
        ("state-0", "1"),
        ("num_devs", "1"),
    ];
    let began = Instant::now();
    let read = Permissions::owner_none(DomId::DOM0).grant_read(stub);
    let own = Permissions::owner_none(stub).grant_read(DomId::DOM0);
    store.with_transaction(|change| {
        for (folder, rights) in [(&back, &read), (&front, &own)] {
            change.mkdir(&format!("{folder}/0"))?;
            change.set_permissions(&format!("{folder}/0"), rights)?;
        }
        for (name, value) in of_back {
            change.write(&format!("{back}/0/{name}"), value)?;
        }
        change.write(&format!("{front}/0/backend"), format!("{back}/0"))?;
        for (name, value) in of_front {
            change.write(&format!("{front}/0/{name}"), value)?;
        }
        Ok(())
    })?;
    let said = loop {
        let log = fs::read_to_string(LOG).context(LOG)?;
        let line = log
            .lines()
            .find(|line| line.contains("the guest gets no device of the host's"));
        if let Some(line) = line {
            break line.to_owned();
        }
        ensure!(
            began.elapsed() < AT_ONCE,
            "nothing after {:?}",
            began.elapsed()
        );
        std::thread::sleep(Duration::from_millis(100));
    };
    // pciback's own words are in dom0's home.
    let error = format!("/local/domain/0/error/backend/pci/{stub}/0/error");
    println!(
        "    after {:?}: {said}: {}",
        began.elapsed(),
        store.read_str(&error)?
    );
    for node in [
        &*front,
        "/local/domain/0/backend/pci",
        "/local/domain/0/error",
    ] {
        store.rm(node)?;
    }
    Ok(())
}

/// pciback as some hosts load it, so that a device has the host's address in the stubdomain.
fn same_addresses(host: &TestHost) -> Result<()> {
    load_anew(&["passthrough=1"])?;
    given()?;
    let result = create(&host.store, &[]).and_then(|mut guest| {
        let result = copies(&host.store, &mut guest).with_context(diagnosis);
        guest.destroy()?;
        result
    });
    is_assignable_again(EDU)?;
    load_anew(&[])?;
    result?;
    let log = fs::read_to_string(LOG).context(LOG)?;
    let opened = format!("PCI: {EDU}, in here {EDU}: QEMU opened it");
    ensure!(log.contains(&opened), "nothing about `{opened}`");
    Ok(())
}

fn load_anew(parameters: &[&str]) -> Result<()> {
    command(&["rmmod", "xen_pciback"])?;
    command(&[&["insmod", MODULE], parameters].concat())?;
    Ok(())
}

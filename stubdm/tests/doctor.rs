//! `stubdm-run doctor` on made-up hosts: a whole one, and one thing taken away at a time.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;
use stubdm::service::record::{Claim, Kind, Record};
use stubdm_image::cpio::{Archive, Content};
use stubdm_image::packed;
use tempfile::TempDir;

/// A guest's configuration without fault.
const GOOD: &str = "name=\"g\"\ntype=\"hvm\"\ndevice_model_stubdomain_override=1\n\
    device_model_version=\"qemu-xen\"\n\
    stubdomain_kernel='/boot/vmlinuz'\nstubdomain_ramdisk = '/boot/stub.img'\n\
    stubdomain_memory=320\nvnc=0\nserial=\"pty\"\n";

/// The files of a ramdisk with everything.
fn whole_image() -> Vec<String> {
    let names = stubdm_image::firmware::names();
    let firmware = names.map(|name| format!("usr/share/qemu/{name}"));
    let others = [
        "usr/bin/stubdm-run",
        "usr/libexec/xen-qemu-system-i386",
        "lib/modules/xen-privcmd.ko",
        "lib/modules/xen-gntalloc.ko",
        "lib/modules/xen-evtchn.ko",
    ];
    firmware
        .chain(others.iter().map(|&name| name.to_owned()))
        .collect()
}

/// A host with everything a guest with a stubdomain needs.
struct Host {
    dir: TempDir,
    /// As a supervisor that runs has it.
    supervised: Option<Flock<File>>,
}

impl Host {
    fn new() -> Self {
        let mut host = Self {
            dir: tempfile::tempdir().unwrap(),
            supervised: None,
        };
        for (path, text) in [
            ("proc/xen/capabilities", "control_d\n"),
            (
                "proc/meminfo",
                "MemTotal: 2000000 kB\nMemAvailable: 1000000 kB\n",
            ),
            ("sys/hypervisor/type", "xen\n"),
            ("sys/hypervisor/version/major", "4\n"),
            ("sys/hypervisor/version/minor", "21\n"),
            (
                "sys/hypervisor/properties/capabilities",
                "xen-3.0-x86_64 hvm-3.0-x86_64 \n",
            ),
            ("dev/xen/evtchn", ""),
            ("dev/xen/gntdev", ""),
            ("dev/xen/privcmd", ""),
            ("run/xenstored/socket", ""),
            ("run/xen/x", ""),
            ("var/lib/xen/x", ""),
            ("var/log/xen/x", ""),
            ("usr/lib/xen-4.21/bin/xl", ""),
            ("usr/bin/stubdm-run", ""),
            ("usr/libexec/xen-qemu-system-i386", ""),
            ("boot/vmlinuz", ""),
            ("etc/xen/g.cfg", GOOD),
        ] {
            host.put(path, text.as_bytes());
        }
        // As a distribution may lay it out: the link is absolute, and means this root's file.
        symlink(
            "/usr/bin/stubdm-run",
            host.path("usr/bin/vchan-socket-proxy"),
        )
        .unwrap();
        host.image(&whole_image());
        host.put("run/stubdm/supervise.lock", b"");
        let lock = File::open(host.path("run/stubdm/supervise.lock")).unwrap();
        host.supervised = Some(Flock::lock(lock, FlockArg::LockExclusiveNonblock).unwrap());
        host
    }

    fn path(&self, path: &str) -> std::path::PathBuf {
        self.dir.path().join(path)
    }

    /// A PCI device as sysfs shows it, with its driver.
    fn device(&self, address: &str, driver: Option<&str>) {
        let folder = format!("sys/devices/pci0000:00/{address}");
        for (name, text) in [
            ("vendor", "0x8086\n"),
            ("device", "0x10d3\n"),
            ("class", "0x020000\n"),
        ] {
            self.put(&format!("{folder}/{name}"), text.as_bytes());
        }
        fs::create_dir_all(self.path("sys/bus/pci/devices")).unwrap();
        let link = self.path(&format!("sys/bus/pci/devices/{address}"));
        symlink(format!("../../../devices/pci0000:00/{address}"), link).unwrap();
        let Some(driver) = driver else { return };
        let folder = self.path(&folder);
        let place = format!("sys/bus/pci/drivers/{driver}");
        self.put(&format!("{place}/bind"), b"");
        symlink(
            format!("../../../bus/pci/drivers/{driver}"),
            folder.join("driver"),
        )
        .unwrap();
        symlink(&folder, self.path(&format!("{place}/{address}"))).unwrap();
    }

    fn put(&self, path: &str, bytes: &[u8]) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// Puts the launcher into QEMU's place, with QEMU behind it.
    fn launcher(&self) {
        let qemu = "usr/libexec/xen-qemu-system-i386";
        fs::rename(self.path(qemu), self.path(&format!("{qemu}.distrib"))).unwrap();
        symlink("/usr/bin/stubdm-run", self.path(qemu)).unwrap();
    }

    fn image(&self, files: &[String]) {
        let mut archive = Archive::root();
        for file in files {
            archive.program(file, Content::Bytes(Vec::new()));
        }
        self.ramdisk(archive);
    }

    /// As [`Host::image`], with all but the init in a compressed file system.
    fn packed_image(&self, files: &[String]) {
        let init = "usr/bin/stubdm-run";
        let (mut inner, mut outer) = (Archive::root(), Archive::root());
        for file in files {
            let archive = if file == init { &mut outer } else { &mut inner };
            archive.program(file, Content::Bytes(Vec::new()));
        }
        let packed = packed::pack(&inner).unwrap();
        outer.file(packed::FILE, Content::Bytes(packed));
        self.ramdisk(outer);
    }

    fn ramdisk(&self, mut archive: Archive) {
        archive.link("init", "usr/bin/stubdm-run");
        let mut bytes = Vec::new();
        archive.write(&mut bytes).unwrap();
        self.put("boot/stub.img", &bytes);
    }

    fn run(&self, more: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stubdm-run"));
        command.args(["doctor", "--root"]).arg(self.dir.path());
        command.args(more).output().unwrap()
    }

    /// Returns the state and text of one check, with the status of the whole.
    fn check(&self, name: &str) -> (String, String, i32) {
        let output = self.run(&["--json"]);
        let value: Value = serde_json::from_slice(&output.stdout).unwrap();
        let status = output.status.code().unwrap();
        assert_eq!(value["ok"].as_bool(), Some(status == 0), "{value}");
        let mut all = value["checks"].as_array().unwrap().iter();
        let found = all.find(|check| check["name"] == name);
        let found = found.unwrap_or_else(|| panic!("nothing about {name} in {value}"));
        let text = |key: &str| found[key].as_str().unwrap().to_owned();
        (
            text("state"),
            format!("{}; {}", text("found"), text("mend")),
            status,
        )
    }

    /// Fails unless this check, and nothing else, is wrong.
    fn only_wrong(&self, name: &str, part: &str) {
        let (state, text, status) = self.check(name);
        assert_eq!((state.as_str(), status), ("wrong", 1), "{text}");
        assert!(text.contains(part), "no {part:?} in {text}");
        let output = self.run(&[]);
        let all = String::from_utf8(output.stdout).unwrap();
        assert!(all.ends_with("1 thing is wrong\n"), "{all}");
        assert_eq!(output.status.code(), Some(1));
    }
}

#[test]
fn a_process_that_is_gone_and_a_missing_supervisor_are_named_with_their_mend() {
    let mut host = Host::new();
    host.supervised = None;
    let (state, text, _) = host.check("services");
    assert_eq!(state, "note", "{text}");
    let host = Host::new();
    let folder = host.path("run/stubdm");
    let record = Record::of_this_process(Kind::Consoled, 6, String::new()).unwrap();
    let claim = Claim::take(&folder, record).unwrap().unwrap();
    assert_eq!(host.check("services").0, "ok");
    // As a kill leaves it.
    let file = folder.join("services/consoled-6");
    let left = fs::read(&file).unwrap();
    drop(claim);
    fs::write(&file, left).unwrap();
    host.only_wrong("services", "stubdm-run restart 6");
}

#[test]
fn a_service_whose_program_was_replaced_is_named() {
    let host = Host::new();
    let record = Record::of_this_process(Kind::Proxy, 6, String::new()).unwrap();
    let pid = record.pid;
    let _claim = Claim::take(&host.path("run/stubdm"), record)
        .unwrap()
        .unwrap();
    let link = host.path(&format!("proc/{pid}/exe"));
    fs::create_dir_all(link.parent().unwrap()).unwrap();
    symlink("/usr/bin/stubdm-run", &link).unwrap();
    assert_eq!(host.check("services").0, "ok");
    fs::remove_file(&link).unwrap();
    symlink("/usr/bin/stubdm-run (deleted)", &link).unwrap();
    let (state, text, status) = host.check("services");
    assert_eq!((state.as_str(), status), ("note", 0), "{text}");
    assert!(
        text.contains("the proxy of domain 6") && text.contains("stubdm-run restart 6"),
        "{text}"
    );
}

/// The address of a device, with pciback or not.
const CARD: &str = "0000:03:00.0";

#[test]
fn a_device_that_is_given_up_is_listed_with_the_way_to_reset_it() {
    let host = Host::new();
    host.device("0000:00:02.0", Some("i915"));
    let text = String::from_utf8(host.run(&[]).stdout).unwrap();
    assert!(!text.contains("pci"), "{text}");
    host.device(CARD, Some("pciback"));
    let folder = format!("sys/devices/pci0000:00/{CARD}");
    let (state, text, status) = host.check("pci");
    assert_eq!((state.as_str(), status), ("note", 0), "{text}");
    assert!(text.contains("has no way to reset it"), "{text}");
    host.put(&format!("{folder}/reset"), b"");
    let (state, text, _) = host.check("pci");
    assert_eq!(state, "ok", "{text}");
    let expected = "0000:03:00.0: 8086:10d3, class 020000, is with pciback; Linux can reset it; ";
    assert_eq!(text, expected);
    host.put(&format!("{folder}/reset_method"), b"flr bus\n");
    let group = host.path(&folder).join("iommu_group");
    symlink("../../../kernel/iommu_groups/7", group).unwrap();
    let (_, text, _) = host.check("pci");
    assert!(
        text.contains(", IOMMU group 7; reset by flr, bus; "),
        "{text}"
    );
    let text = String::from_utf8(host.run(&[]).stdout).unwrap();
    assert!(!text.contains("0000:00:02.0"), "{text}");
}

#[test]
fn a_device_that_a_guest_does_not_get_is_named_with_the_mend() {
    let with = |host: &Host, line: &str| {
        let text = format!("{GOOD}stubdomain_memory=400\n{line}\n");
        host.put("etc/xen/g.cfg", text.as_bytes());
    };
    let permissive = "pci=['03:00.0,permissive=1']";
    let host = Host::new();
    with(&host, permissive);
    host.only_wrong("guest", "is not there; lspci");
    host.device(CARD, None);
    let mend = "modprobe xen-pciback; xl pci-assignable-add 0000:03:00.0";
    host.only_wrong("guest", mend);
    host.put("sys/bus/pci/drivers/pciback/bind", b"");
    host.only_wrong(
        "guest",
        "is not with pciback: xl refuses it; xl pci-assignable-add",
    );
    for line in [
        "pci=['03:00.0,permissive=1,seize=1']",
        "pci_seize=1\npci=['03:00.0,permissive=1']",
    ] {
        with(&host, line);
        assert_eq!(host.check("guest").0, "ok", "{line}");
    }

    let host = Host::new();
    host.device(CARD, Some("e1000e"));
    with(&host, permissive);
    host.only_wrong("guest", "is dom0's, with the driver e1000e: xl refuses it");

    let host = Host::new();
    host.device(CARD, Some("pciback"));
    for (line, state, part) in [
        (permissive, "ok", "nothing that hurts"),
        (
            "pci_permissive=1\npci=['03:00.*']",
            "ok",
            "nothing that hurts",
        ),
        ("pci=['03:00.0']", "note", "permissive=1 for a driver"),
        (
            "pci_permissive=1\npci=['03:00.0,permissive=0']",
            "note",
            "permissive=1 for a driver",
        ),
        ("pci=['name=card']", "ok", "nothing that hurts"),
        // Of which 64 are for the PCI frontend.
        (
            "stubdomain_memory=320\npci=['03:00.0,permissive=1']",
            "note",
            "leaves QEMU little",
        ),
        ("stubdomain_memory=320", "ok", "nothing that hurts"),
    ] {
        with(&host, line);
        let (own, text, _) = host.check("guest");
        assert_eq!(own, state, "{line}: {text}");
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

#[test]
fn a_stubdomains_kernel_that_is_missing_is_named() {
    let host = Host::new();
    fs::remove_file(host.path("boot/vmlinuz")).unwrap();
    host.only_wrong("guest", "stubdomain_kernel /boot/vmlinuz is not there");
    let unnamed = GOOD.replace("stubdomain_kernel", "x");
    host.put("etc/xen/g.cfg", unnamed.as_bytes());
    let own = "usr/lib/xen-4.21/boot/qemu-stubdom-linux-kernel";
    host.only_wrong("guest", own);
    host.put(own, b"");
    assert_eq!(host.check("guest").0, "ok");
}

#[test]
fn a_graphics_card_without_its_firmware_is_named() {
    let without = |name: &str| {
        let mut files = whole_image();
        files.retain(|file| !file.ends_with(name));
        files
    };
    let host = Host::new();
    host.image(&without("vgabios-cirrus.bin"));
    host.only_wrong("image", "it lacks vgabios-cirrus.bin");
    let host = Host::new();
    let qxl = format!("{GOOD}vga='qxl'\n");
    host.put("etc/xen/g.cfg", qxl.as_bytes());
    assert_eq!(host.check("guest").0, "ok");
    host.image(&without("vgabios-qxl.bin"));
    host.only_wrong("guest", "vga=\"stdvga\"");
    host.put("etc/xen/g.cfg", GOOD.as_bytes());
    assert_eq!(host.check("guest").0, "ok");
}

#[test]
fn a_whole_host_is_found_whole() {
    let host = Host::new();
    let output = host.run(&[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.ends_with("guests with stubdomains can be started here\n"));
    assert!(
        text.lines()
            .rev()
            .skip(1)
            .all(|line| line.starts_with("ok ")),
        "{text}"
    );
    assert!(
        text.contains("Xen 4.21, and this is its control domain"),
        "{text}"
    );
    assert!(text.contains("vchan-socket-proxy is stubdm-run"), "{text}");
    assert!(text.contains("/boot/stub.img: "), "{text}");
}

#[test]
fn each_thing_that_is_missing_is_found_alone_and_the_mend_named() {
    for (path, name, part) in [
        ("dev/xen/gntdev", "devices", "modprobe -a xen-gntdev"),
        ("run/xenstored/socket", "store", "xenstored"),
        ("usr/lib/xen-4.21", "libxl", "xl"),
        ("usr/bin/vchan-socket-proxy", "proxy", "stubdm-run install"),
        (
            "usr/libexec/xen-qemu-system-i386",
            "qemu",
            "qemu-system-xen",
        ),
        ("var/log/xen", "folders", "mkdir -p /var/log/xen"),
        ("boot/stub.img", "image", "image build"),
        ("etc/xen/g.cfg", "image", "stubdomain_ramdisk"),
    ] {
        let host = Host::new();
        let path = host.path(path);
        match path.is_dir() {
            true => fs::remove_dir_all(path).unwrap(),
            false => fs::remove_file(path).unwrap(),
        }
        host.only_wrong(name, part);
    }
}

#[test]
fn what_is_there_and_does_not_do_is_wrong_too() {
    let host = Host::new();
    host.put("proc/xen/capabilities", b"\n");
    host.only_wrong("xen", "control_d");

    let host = Host::new();
    host.put(
        "sys/hypervisor/properties/capabilities",
        b"xen-3.0-x86_64\n",
    );
    host.only_wrong("hvm", "firmware");

    let host = Host::new();
    fs::remove_dir_all(host.path("usr/lib/xen-4.21")).unwrap();
    host.put("usr/lib/xen-4.11/bin/xl", b"");
    host.only_wrong("libxl", "4.14");

    let host = Host::new();
    let mut files = whole_image();
    files.retain(|file| !file.ends_with(".ko"));
    host.image(&files);
    let (state, text, _) = host.check("image");
    assert_eq!(state, "note", "nothing is known of its kernel: {text}");
    host.put("boot/vmlinuz-6.1.0", b"");
    host.put("lib/modules/6.1.0/modules.builtin", b"kernel/fs/x.ko\n");
    let with_kernel = format!("{GOOD}stubdomain_kernel=\"/boot/vmlinuz-6.1.0\"\n");
    host.put("etc/xen/g.cfg", with_kernel.as_bytes());
    host.only_wrong("image", "it lacks the module xen-privcmd");
    host.put("boot/stub.img", b"not one");
    host.only_wrong("image", "/boot/stub.img");
}

/// libxl's default of 128 MiB is enough for a packed ramdisk alone.
#[test]
fn too_little_memory_is_named_for_each_kind_of_ramdisk() {
    for (packed, memory, state) in [
        (true, "", "ok"),
        (true, "stubdomain_memory=128", "ok"),
        (true, "stubdomain_memory=112", "note"),
        (true, "stubdomain_memory=111", "wrong"),
        (false, "", "wrong"),
        (false, "stubdomain_memory=191", "wrong"),
        (false, "stubdomain_memory=304", "ok"),
    ] {
        let host = Host::new();
        if packed {
            host.packed_image(&whole_image());
        }
        let config = GOOD.replace("stubdomain_memory=320", memory);
        host.put("etc/xen/g.cfg", config.as_bytes());
        let wanted = if packed { "=128" } else { "=304" };
        if state == "wrong" {
            host.only_wrong("guest", "too little to start in");
            host.only_wrong("guest", wanted);
        } else {
            assert_eq!(host.check("guest").0, state, "{packed}, {memory}");
            assert_eq!(host.check("image").0, "ok", "{packed}");
        }
    }
}

#[test]
fn each_setting_that_hurts_is_named_with_its_mend() {
    for (line, instead, part) in [
        ("vnc=0", "", "vnc is on, which is xl's default"),
        (
            "vnc=0",
            "vnc=1",
            "QEMU 9.1 or later such a guest does not start",
        ),
        (
            "vnc=0",
            "vnc=1",
            "stubdm-run install device-model, or vnc=0",
        ),
        ("vnc=0", "vnc=0\nsdl=1", "install device-model, or sdl=0"),
        ("stubdomain_memory=320", "", "stubdomain_memory=304"),
        (
            "stubdomain_memory=320",
            "stubdomain_memory=191",
            "too little to start in",
        ),
        ("type=\"hvm\"", "type=\"pvh\"", "type=\"hvm\""),
        (
            "device_model_stubdomain_override=1",
            "",
            "device_model_stubdomain_override=1",
        ),
    ] {
        let host = Host::new();
        host.put("etc/xen/g.cfg", GOOD.replace(line, instead).as_bytes());
        host.only_wrong("guest", part);
    }
    for (line, instead, part) in [
        ("serial=\"pty\"", "", "xl console"),
        ("vnc=0", "", "vnc=0 where nobody looks"),
        ("vnc=0", "vnc=0\nsdl=1", "sdl=0 where nobody looks"),
        ("vnc=0", "vnc=0\nspice=1", "VNC and SDL alone"),
        (
            "stubdomain_memory=320",
            "stubdomain_memory=200",
            "leaves QEMU little",
        ),
    ] {
        let host = Host::new();
        host.launcher();
        host.put("etc/xen/g.cfg", GOOD.replace(line, instead).as_bytes());
        let (state, text, status) = host.check("guest");
        assert_eq!((state.as_str(), status), ("note", 0), "{text}");
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    // An old QEMU serves a screen by itself, and a new one does not, whatever libxl's version.
    for (xl, version, expected) in [
        ("4.21", "9.0.4 (Debian 1:9.0.4+ds-1)", "note"),
        ("4.21", "10.0.2 (Debian 1:10.0.2+ds-2+deb13u1)", "wrong"),
        ("4.17", "10.0.2 (qemu-10.0.2-1.fc42)", "wrong"),
        ("4.17", "", "note"),
        ("4.21", "", "wrong"),
    ] {
        let host = Host::new();
        fs::remove_dir_all(host.path("usr/lib/xen-4.21")).unwrap();
        host.put(&format!("usr/lib/xen-{xl}/bin/xl"), b"");
        let qemu = format!("\0QEMU emulator version {version}\0");
        host.put("usr/libexec/xen-qemu-system-i386", qemu.as_bytes());
        host.put("etc/xen/g.cfg", GOOD.replace("vnc=0", "vnc=1").as_bytes());
        let (state, text, _) = host.check("guest");
        assert_eq!(state, expected, "{xl}, {version}: {text}");
    }
    for (line, state, part) in [
        ("kernel='/boot/vmlinuz'", "wrong", "remove kernel"),
        ("cmdline=\"root=/dev/xvda\"", "wrong", "remove cmdline"),
        (
            "usbdevice=['tablet','host:1.2']",
            "wrong",
            "\"tablet\", \"mouse\"",
        ),
        ("usbdevice='tablet'", "ok", "nothing that hurts"),
        ("usbdev=['hostbus=1,hostaddr=2']", "note", "type=pv"),
        ("soundhw=\"hda\"", "note", "remove soundhw"),
        ("spiceusbredirection=4", "note", "spiceusbredirection=0"),
        ("disk=['/srv/a.img,raw,xvda,w']", "note", "is a file"),
        ("disk=['file:/srv/a.img,xvda,w']", "note", "is a file"),
        (
            "disk=['format=qcow2,vdev=xvda,target=/dev/vg/a']",
            "note",
            "format that only QEMU reads",
        ),
        (
            "disk=['/dev/vg/a,raw,xvda,rw,backendtype=qdisk']",
            "note",
            "asks for a qdisk",
        ),
        (
            "disk=['phy:/dev/vg/a,xvda,w', '/dev/vg/b,raw,xvdb,rw']",
            "ok",
            "nothing that hurts",
        ),
        (
            "disk=['vdev=xvdc,cdrom,target=']",
            "ok",
            "nothing that hurts",
        ),
    ] {
        let host = Host::new();
        host.put("etc/xen/g.cfg", format!("{GOOD}{line}\n").as_bytes());
        let (own, text, _) = host.check("guest");
        assert_eq!(own, state, "{line}: {text}");
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    // A kernel that restricts a built-in driver, and a command line that lifts it.
    let host = Host::new();
    host.put("boot/vmlinuz-6.1.0", b"");
    host.put(
        "lib/modules/6.1.0/modules.builtin",
        b"kernel/drivers/xen/xen-privcmd.ko\n",
    );
    let modinfo = b"xen_privcmd.parmtype=unrestricted:bool\0";
    host.put("lib/modules/6.1.0/modules.builtin.modinfo", modinfo);
    let kernel = format!("{GOOD}stubdomain_kernel='/boot/vmlinuz-6.1.0'\n");
    host.put("etc/xen/g.cfg", kernel.as_bytes());
    host.only_wrong("guest", "add xen_privcmd.unrestricted=1");
    let lifted = format!("{kernel}stubdomain_cmdline='quiet xen_privcmd.unrestricted=1'\n");
    host.put("etc/xen/g.cfg", lifted.as_bytes());
    assert_eq!(host.check("guest").0, "ok");

    let host = Host::new();
    fs::remove_dir_all(host.path("usr/lib/xen-4.21")).unwrap();
    host.put("usr/lib/xen-4.17/bin/xl", b"");
    let mut text = GOOD.to_owned();
    assert_eq!(host.check("guest").0, "ok");
    host.put(
        "etc/xen/g.cfg",
        text.replace("device_model_version", "x").as_bytes(),
    );
    host.only_wrong("guest", "device_model_version=\"qemu-xen\"");
    text = text.replace("vnc=0", "");
    host.put("etc/xen/g.cfg", text.as_bytes());
    let (state, text, status) = host.check("guest");
    assert_eq!((state.as_str(), status), ("note", 0), "{text}");
    host.put("etc/xen/pv.cfg", b"name='pv'\nkernel='/boot/vmlinuz'\n");
    assert!(
        !String::from_utf8(host.run(&[]).stdout)
            .unwrap()
            .contains("pv.cfg")
    );
}

#[test]
fn a_kernel_with_a_built_in_driver_is_judged_by_the_drivers_parameters() {
    let host = Host::new();
    let folder = "lib/modules/6.1.0";
    host.put(
        &format!("{folder}/modules.builtin"),
        b"kernel/drivers/xen/xen-privcmd.ko\n",
    );
    let (state, text, _) = host.check("privcmd");
    assert!(
        state == "note" && text.contains("may restrict it"),
        "{text}"
    );
    for (parameter, expected, part) in [
        ("unrestricted", "note", "and restricts it"),
        ("limit", "ok", "does not restrict it"),
    ] {
        let info = format!("xen_privcmd.parmtype={parameter}:bool\0");
        host.put(
            &format!("{folder}/modules.builtin.modinfo"),
            info.as_bytes(),
        );
        let (state, text, _) = host.check("privcmd");
        assert!(state == expected && text.contains(part), "{text}");
    }
}

#[test]
fn a_guest_that_only_xendomains_starts_is_looked_at() {
    let host = Host::new();
    fs::remove_file(host.path("etc/xen/g.cfg")).unwrap();
    fs::create_dir(host.path("etc/xen/auto")).unwrap();
    host.put("etc/xen/auto/g", GOOD.replace("vnc=0", "").as_bytes());
    host.only_wrong("guest", "vnc is on, which is xl's default");
    // As Debian's manual has it: one file, and a link to it.
    host.put("etc/xen/g.cfg", GOOD.replace("vnc=0", "").as_bytes());
    fs::remove_file(host.path("etc/xen/auto/g")).unwrap();
    symlink("../g.cfg", host.path("etc/xen/auto/g.cfg")).unwrap();
    let output = host.run(&["--json"]);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout)
            .matches("vnc is on")
            .count(),
        1
    );
}

#[test]
fn what_works_but_should_be_known_is_a_note() {
    let host = Host::new();
    fs::remove_dir_all(host.path("usr/lib/xen-4.21")).unwrap();
    host.put("usr/lib/xen-4.17/bin/xl", b"");
    let (state, text, status) = host.check("libxl");
    assert_eq!((state.as_str(), status), ("note", 0));
    assert!(text.contains("device_model_version"), "{text}");

    fs::remove_file(host.path("usr/bin/vchan-socket-proxy")).unwrap();
    host.put("usr/bin/vchan-socket-proxy", b"another program");
    assert_eq!(host.check("proxy").0, "note");

    host.put("proc/meminfo", b"MemAvailable: 1000 kB\n");
    assert_eq!(host.check("memory").0, "note");

    host.put("lib/modules/6.1.0/kernel/x.ko", b"");
    host.put("boot/config-6.1.0", b"CONFIG_XEN_PRIVCMD=y\n");
    let (state, text, _) = host.check("privcmd");
    assert_eq!(state, "note");
    assert!(text.contains("xen_privcmd.unrestricted=1"), "{text}");
}

#[test]
fn an_image_may_be_named_and_an_empty_root_is_all_wrong() {
    let host = Host::new();
    let output = host.run(&["--image", "/nonexistent/image"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("/nonexistent/image"), "{text}");

    let empty = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_stubdm-run"));
    let output = command
        .args(["doctor", "--root"])
        .arg(empty.path())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text.contains("does not run under Xen") && text.ends_with("things are wrong\n"),
        "{text}"
    );
    assert!(output.stderr.is_empty());
    assert!(
        !Path::new(empty.path()).join("run").exists(),
        "nothing was made"
    );

    let output = Command::new(env!("CARGO_BIN_EXE_stubdm-run"))
        .args(["doctor", "--root", "/nonexistent"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    assert!(
        text.starts_with("stubdm-run: /nonexistent: ") && text.lines().count() == 1,
        "{text}"
    );
}

#[test]
fn libxls_own_paths_are_looked_at_and_what_install_did() {
    let host = Host::new();
    host.put(
        "usr/local/lib/libxenlight.so.4.21.0",
        b"\0/usr/local/bin/vchan-socket-proxy\0/usr/local/lib/xen/boot\0",
    );
    host.only_wrong("proxy", "no /usr/local/bin/vchan-socket-proxy");
    assert_eq!(host.check("install").0, "ok");

    host.put("usr/local/bin/x", b"");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(host.path("usr/bin/stubdm-run"), mode).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_stubdm-run"));
    let output = command
        .args(["install", "--root"])
        .arg(host.dir.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(host.check("proxy").1.contains("put there by install"));
    assert!(
        host.check("install")
            .1
            .contains("/usr/local/bin/vchan-socket-proxy")
    );

    fs::remove_file(host.path("usr/local/bin/vchan-socket-proxy")).unwrap();
    host.put("usr/local/bin/vchan-socket-proxy", b"stubdm-run: ");
    host.only_wrong("install", "no longer what install put there");
    host.put("var/lib/stubdm/installed.json", b"{");
    host.only_wrong("install", "installed.json");
}

#[test]
fn a_script_that_finds_dom0s_qemu_by_its_path_is_named() {
    let host = Host::new();
    let script = b"start-stop-daemon --stop --exec /usr/libexec/xen-qemu-system-i386 --pidfile p\n";
    host.put("etc/init.d/xen", script);
    host.put(
        "etc/init.d/other",
        b"DAEMON=/usr/libexec/xen-qemu-system-i386.distrib\n",
    );
    // A merged /usr has one folder under two names.
    symlink("usr/lib", host.path("lib")).unwrap();
    host.put("usr/lib/systemd/system/xen.service", script);
    assert_eq!(host.check("qemu").0, "ok");
    host.launcher();
    let out = String::from_utf8(host.run(&[]).stdout).unwrap();
    assert!(
        out.contains("/etc/init.d/xen names /usr/libexec/xen-qemu"),
        "{out}"
    );
    assert!(
        out.contains("let it name /usr/libexec/xen-qemu-system-i386.distrib"),
        "{out}"
    );
    assert!(!out.contains("/etc/init.d/other"), "{out}");
    assert_eq!(out.matches("/systemd/system/xen.service").count(), 1);
    // Where mounts are shared, a QEMU behind the launcher keeps its path.
    let mounts = b"22 1 254:1 / / rw shared:1 - ext4 /dev/root rw\n";
    host.put("proc/self/mountinfo", mounts);
    let out = String::from_utf8(host.run(&[]).stdout).unwrap();
    assert!(!out.contains("names /usr/libexec/xen-qemu"), "{out}");
}

#[test]
fn a_qemu_of_dom0_older_than_the_launcher_is_named() {
    let host = Host::new();
    let qemu = "usr/libexec/xen-qemu-system-i386";
    host.launcher();
    let process = |pid: u32, domain: &str, program: &str| {
        let line = format!("qemu\0-xen-domid\0{domain}\0-xen-attach\0");
        host.put(&format!("proc/{pid}/cmdline"), line.as_bytes());
        let link = host.path(&format!("proc/{pid}/exe"));
        let _ = fs::remove_file(&link);
        symlink(format!("/{qemu}{program}"), link).unwrap();
    };
    // A guest's device model, which libxl identifies by its domain id.
    process(41, "7", ".distrib");
    process(42, "0", "");
    let said = || String::from_utf8(host.run(&[]).stdout).unwrap();
    assert!(!said().contains("dom0's own QEMU"), "{}", said());
    process(42, "0", ".distrib");
    let said = said();
    assert_eq!(said.matches("dom0's own QEMU").count(), 1, "{said}");
    assert!(said.contains("kill 42, then start it again"), "{said}");
}

#[test]
fn qemu_is_looked_for_behind_the_launcher() {
    let host = Host::new();
    let qemu = "usr/libexec/xen-qemu-system-i386";
    host.launcher();
    let (state, text, _) = host.check("qemu");
    assert_eq!(state, "ok");
    assert!(
        text.contains("QEMU is /usr/libexec/xen-qemu-system-i386.distrib"),
        "{text}"
    );
    fs::remove_file(host.path(&format!("{qemu}.distrib"))).unwrap();
    assert_eq!(host.check("qemu").0, "note");
}

//! Holds the verdicts on device-model arguments against Debian's own QEMU for Xen, which has only
//! the image's firmware: does QEMU start or end?
//!
//! QEMU runs without Xen (`-M pc -accel qtest -S`), by the dynamic linker and the libraries that
//! came with it. The tree is what the testbed has unpacked under `target/xen`; `XEN_C_ROOT` names
//! another place.

#![cfg(feature = "c-libraries")]
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use stubdm::guest::qemu::missing_roms;
use stubdm::libxl::dm_argv::DmArgv;
use stubdm::libxl::dm_argv::rewrite::Verdict;
use stubdm_image::firmware::{self, Firmware, in_image};
use tempfile::TempDir;

/// The unpacked packages, of each release there is.
fn trees() -> Vec<PathBuf> {
    if let Some(root) = std::env::var_os("XEN_C_ROOT") {
        return vec![PathBuf::from(root).join("tree")];
    }
    let xen = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/xen");
    let entries = fs::read_dir(&xen).into_iter().flatten().flatten();
    let trees = entries.map(|entry| entry.path().join("tree"));
    let all: Vec<_> = trees
        .filter(|tree| tree.join("usr/libexec/xen-qemu-system-i386").exists())
        .collect();
    assert!(
        !all.is_empty(),
        "no QEMU under {}: boot a host once",
        xen.display()
    );
    all
}

/// The models of network cards with a bus of their own that QEMU lists, without aliases.
fn cards(listed: &str) -> Vec<String> {
    let section = listed.split("Network devices:").nth(1).unwrap();
    let section = section.split("\n\n").next().unwrap();
    let lines = section
        .lines()
        .filter(|line| line.contains("bus PCI") || line.contains("bus ISA"));
    let names = lines.filter_map(|line| line.split('"').nth(1));
    names.map(str::to_owned).collect()
}

struct Qemu {
    tree: PathBuf,
    /// The firmware that an image has, and no more.
    firmware: TempDir,
}

impl Qemu {
    fn new(tree: PathBuf) -> Self {
        let firmware = tempfile::tempdir().unwrap();
        // The BIOS of the machine used here; under Xen it is hvmloader's.
        let found = Firmware::of(&tree, stubdm_image::QEMU, &[]);
        for name in firmware::names().chain(["bios-256k.bin"]) {
            let from = found.find(name).unwrap_or_else(|| panic!("no {name}"));
            let from = stubdm_image::elf::resolve(&tree, &from).unwrap();
            let to = firmware.path().join(name);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(from, to).unwrap();
        }
        Self { tree, firmware }
    }

    /// The output of a QEMU that was asked a question and ends.
    fn stdout(&self, args: &[OsString]) -> String {
        let output = self.command(args).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn command(&self, args: &[OsString]) -> Command {
        let find = |path: &str| stubdm_image::elf::resolve(&self.tree, path).unwrap();
        let libraries = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"]
            .map(|dir| self.tree.join(dir).display().to_string());
        let mut command = Command::new(find("lib64/ld-linux-x86-64.so.2"));
        command.arg("--library-path").arg(libraries.join(":"));
        command.arg(find("usr/libexec/xen-qemu-system-i386"));
        command.arg("-L").arg(self.firmware.path());
        command.args("-M pc -accel qtest -S -nodefaults -display none -qmp stdio".split(' '));
        command.args(args).current_dir(self.firmware.path());
        command
    }

    /// Starts QEMU with `args`. Returns `Err` with QEMU's output if it ends before its monitor
    /// opens.
    fn starts(&self, args: &[OsString]) -> Result<(), String> {
        let mut command = self.command(args);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let quit = b"{\"execute\":\"qmp_capabilities\"}{\"execute\":\"quit\"}";
        // A QEMU that has ended already does not take it.
        let _ = child.stdin.take().unwrap().write_all(quit);
        let output = child.wait_with_output().unwrap();
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }
}

/// Argument lists that people publish for `device_model_args`, and those that libxl makes of
/// settings in xl.cfg, each with its verdict. QEMU has to start with every list but the `refused`
/// and `noted` ones.
const PUBLISHED: &[(&str, &str)] = &[
    // libxl's arguments for vga=, usbdevice=, usbversion=, spiceusbredirection=, soundhw=,
    // cmdline=.
    ("-device VGA,vgamem_mb=16", "kept"),
    ("-device cirrus-vga,vgamem_mb=8", "kept"),
    ("-device qxl-vga,vram_size_mb=64,ram_size_mb=64", "kept"),
    ("-usb -usbdevice tablet", "kept"),
    ("-usb -usbdevice host:1.2", "refused"),
    ("-device piix3-usb-uhci,id=usb", "kept"),
    ("-device nec-usb-xhci,id=usb", "kept"),
    (
        "-device ich9-usb-ehci1,id=usb,addr=0x1d.0x7,multifunction=on -chardev spicevmc,name=usbredir,id=usbrc1 \
         -device usb-redir,chardev=usbrc1,id=usbrc1",
        "dropped",
    ),
    ("-device intel-hda -device hda-duplex", "changed"),
    ("-device AC97", "changed"),
    ("-append root=/dev/xvda", "refused"),
    ("-initrd /srv/initrd", "refused"),
    ("-kernel /srv/vmlinuz -append x", "refused"),
    ("-net none", "kept"),
    ("-smp 2 -m 512 -boot order=cd -rtc base=localtime", "kept"),
    // Networks.
    ("-netdev user,id=n0 -device rtl8139,netdev=n0", "refused"),
    ("-net nic,model=rtl8139 -net user", "refused"),
    ("-nic user", "refused"),
    (
        "-netdev hubport,id=n0,hubid=0 -device e1000,netdev=n0",
        "kept",
    ),
    (
        "-netdev hubport,id=n0,hubid=0 -device rtl8139,netdev=n0",
        "kept",
    ),
    (
        "-netdev hubport,id=n0,hubid=0 -device virtio-net-pci,netdev=n0",
        "kept",
    ),
    (
        "-netdev hubport,id=n0,hubid=0 -device i82551,netdev=n0",
        "kept",
    ),
    ("-device e1000e", "kept"),
    // The host's files and devices, wherever they stand.
    ("-acpitable file=/srv/slic.bin", "refused"),
    ("-smbios file=/srv/smbios.bin", "refused"),
    ("-smbios type=1,manufacturer=x", "kept"),
    ("-fw_cfg name=opt/x,file=/srv/x", "refused"),
    ("-bios /usr/share/OVMF/OVMF.fd", "refused"),
    (
        "-drive if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE.fd",
        "refused",
    ),
    ("-drive file=/srv/x.img,if=virtio", "refused"),
    ("-drive file=/dev/nvme0n1,if=none,format=raw", "refused"),
    (
        "-drive file.driver=file,file.filename=/srv/x.img,if=none,id=d",
        "refused",
    ),
    (
        "-drive file=json:{\"driver\":\"file\",,\"filename\":\"/srv/x.img\"},if=none",
        "refused",
    ),
    ("-drive file=fat:/srv/dir,if=none", "refused"),
    (
        "-drive file=/dev/sg0,if=atapi-pt,media=cdrom,format=atapi-pt-fmt",
        "refused",
    ),
    (
        "-blockdev driver=file,filename=/srv/x.img,node-name=d",
        "refused",
    ),
    (
        "-blockdev {\"driver\":\"file\",\"filename\":\"/srv/x.img\",\"node-name\":\"d\"}",
        "refused",
    ),
    (
        "-object input-linux,id=kbd,evdev=/dev/input/by-id/x-event-kbd",
        "refused",
    ),
    (
        "-object rng-random,id=r,filename=/dev/urandom -device virtio-rng-pci,rng=r",
        "kept",
    ),
    ("-device {\"driver\":\"virtio-balloon-pci\"}", "kept"),
    ("-trace events=/srv/ev", "refused"),
    ("-trace xen_platform_log", "kept"),
    ("-serial /dev/ttyS7", "changed"),
    ("-D /srv/log/qemu.log", "dropped"),
    ("-pidfile /srv/x/y", "dropped"),
    ("-usb -device usb-host,hostbus=1,hostaddr=2", "refused"),
    ("-device vfio-pci,host=01:00.0", "refused"),
    ("-tpmdev passthrough,id=tpm0,path=/dev/tpm0", "noted"),
    // Use of the host's screen, sound or processor.
    ("-vga std", "kept"),
    ("-vga qxl", "kept"),
    ("-vga virtio", "refused"),
    ("-vga xengt", "noted"),
    ("-display gtk", "changed"),
    ("-display qubes-gui,domid=0,log-level=0", "changed"),
    ("-vnc 127.0.0.1:0", "dropped"),
    ("-vnc unix:/run/vnc", "kept"),
    ("-k de", "dropped"),
    ("-sdl", "dropped"),
    ("-audiodev pa,id=a -device AC97,audiodev=a", "changed"),
    ("-cpu host,kvm=off", "dropped"),
    ("-enable-kvm", "dropped"),
    ("-chroot /var/empty -runas nobody", "dropped"),
    // Options that only some QEMU releases have.
    ("-sandbox on", "noted"),
    ("-soundhw hda", "noted"),
    ("-balloon virtio", "noted"),
    ("-realtime mlock=on", "noted"),
    ("-device nosuchdevice", "noted"),
    ("-nosuchoption", "noted"),
    ("-add-fd fd=9,set=1", "noted"),
];

#[test]
fn what_is_printed_of_published_arguments_is_what_debians_qemu_does() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for tree in trees() {
        let qemu = Qemu::new(tree);
        for (line, expected) in PUBLISHED {
            let args: Vec<Vec<u8>> = line
                .split_whitespace()
                .map(|w| w.as_bytes().to_vec())
                .collect();
            let raw: Vec<OsString> = args.iter().cloned().map(OsString::from_vec).collect();
            let argv = DmArgv::new(args).unwrap();
            let said: Vec<&str> = argv
                .judge(&in_image)
                .iter()
                .map(|f| word(&f.verdict))
                .collect();
            let worst = ["refused", "noted", "changed", "dropped", "kept"];
            let worst = worst.into_iter().find(|word| said.contains(word)).unwrap();
            if worst != *expected {
                wrong.push(format!("{line}: {said:?}, not {expected}"));
            }
            let outcome = match argv.rewrite(&in_image) {
                // It is refused because QEMU would end.
                Err(_) => qemu
                    .starts(&raw)
                    .err()
                    .ok_or_else(|| "refused, and QEMU starts".to_owned())
                    .map(drop),
                // Nothing is promised.
                Ok(_) if worst == "noted" => Ok(()),
                Ok((fitted, _)) => {
                    let roms = missing_roms(&fitted, &in_image);
                    let mut args = fitted.into_os();
                    args.extend(roms.into_iter().map(OsString::from));
                    qemu.starts(&args)
                        .map_err(|why| format!("said to start: {why}"))
                }
            };
            seen += 1;
            wrong.extend(outcome.err().map(|why| format!("{line}: {why}")));
        }
        // Arguments that do start show that the test can detect the difference.
        assert_eq!(qemu.starts(&["-m".into(), "64".into()]), Ok(()));
    }
    assert!(
        wrong.is_empty(),
        "{} of {seen} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

fn word(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Kept => "kept",
        Verdict::Noted(_) => "noted",
        Verdict::Changed { .. } => "changed",
        Verdict::Dropped(_) => "dropped",
        Verdict::Refused(_) => "refused",
    }
}

#[test]
fn each_network_card_of_debians_qemu_starts_with_its_rom_and_without_any() {
    let (mut wrong, mut seen, mut unknown) = (Vec::new(), 0, BTreeSet::new());
    for tree in trees() {
        let with = Qemu::new(tree.clone());
        let without = Qemu::new(tree);
        for rom in firmware::card_roms() {
            fs::remove_file(without.firmware.path().join(rom)).unwrap();
        }
        let listed = with.stdout(&["-device".into(), "help".into()]);
        // Those that libxl's documentation and people name are among them.
        let mut all = cards(&listed);
        for model in ["e1000", "rtl8139", "virtio-net-pci", "ne2k_pci", "vmxnet3"] {
            assert!(all.iter().any(|own| own == model), "no {model} in {listed}");
        }
        all.extend(["virtio-net", "e1000-82540em"].map(str::to_owned));
        for model in all {
            let device = format!("{model},id=c,netdev=n0");
            let words = ["-netdev", "hubport,id=n0,hubid=0", "-device", &device];
            let raw: Vec<Vec<u8>> = words.map(|word| word.as_bytes().to_vec()).to_vec();
            let starts = |qemu: &Qemu, there: &dyn Fn(&str) -> bool| {
                let (fitted, _) = DmArgv::new(raw.clone()).unwrap().rewrite(there).unwrap();
                let roms = missing_roms(&fitted, there);
                let off = !roms.is_empty();
                let mut args = fitted.into_os();
                args.extend(roms.into_iter().map(OsString::from));
                (qemu.starts(&args), off)
            };
            // Nothing is promised for a card that is not known.
            let found = DmArgv::new(raw.clone()).unwrap().judge(&in_image);
            if found.iter().any(|f| matches!(f.verdict, Verdict::Noted(_))) {
                unknown.insert(model);
                continue;
            }
            seen += 1;
            let (here, off) = starts(&with, &in_image);
            if here.is_err() || off {
                wrong.push(format!("{model} with the image's ROMs: {here:?}"));
            }
            let (here, _) = starts(&without, &|_| false);
            if here.is_err() {
                wrong.push(format!("{model} without ROMs: {here:?}"));
            }
        }
    }
    assert!(seen > 20, "only {seen} cards");
    // A card that only QEMU 10 has, and a switch.
    let unknown: Vec<_> = unknown.into_iter().collect();
    assert!(
        unknown == ["igb", "rocker"] || unknown == ["rocker"],
        "{unknown:?}"
    );
    assert!(
        wrong.is_empty(),
        "{} of {seen} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

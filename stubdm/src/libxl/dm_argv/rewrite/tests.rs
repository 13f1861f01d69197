//! libxl's own arguments pass untouched; those that cannot work in a stubdomain are changed, left
//! out or refused.

use super::*;

fn argv(args: &[&str]) -> DmArgv {
    DmArgv::new(args.iter().map(|a| a.as_bytes().to_vec()).collect()).unwrap()
}

/// A stubdomain's root with nothing in it.
fn nothing(_: &str) -> bool {
    false
}

fn fitted(args: &[&str]) -> Vec<String> {
    let (argv, _) = argv(args).rewrite(&nothing).unwrap();
    let text = |arg: &Vec<u8>| String::from_utf8_lossy(arg).into_owned();
    argv.args().iter().map(text).collect()
}

fn verdict(args: &[&str]) -> Verdict {
    argv(args).judge(&nothing).remove(0).verdict
}

fn refusal(args: &[&str]) -> Finding {
    argv(args).rewrite(&nothing).unwrap_err()
}

/// A whole line as libxl 4.17 writes it for a guest with two disks, a CD and a card.
pub(crate) const LIBXL: &[&str] = &[
    "-xen-domid",
    "7",
    "-no-shutdown",
    "-nodefaults",
    "-no-user-config",
    "-name",
    "-drive",
    "-display",
    "none",
    "-serial",
    "/dev/hvc3",
    "-device",
    "cirrus-vga,vgamem_mb=8",
    "-boot",
    "order=cda",
    "-device",
    "rtl8139,id=nic0,netdev=net0,mac=00:16:3e:00:00:01",
    "-netdev",
    "type=tap,id=net0,ifname=vif7.0-emu,br=xenbr0,script=no,downscript=no",
    "-incoming",
    "$STUBDOM_RESTORE_INCOMING_ARG",
    "-machine",
    "xenfv,suppress-vmdesc=on",
    "-m",
    "120",
    "-drive",
    "file=/dev/xvda,if=ide,index=0,media=disk,format=host_device,cache=writeback",
    "-drive",
    "if=none,readonly=on,id=ide-5632,file=/dev/xvdc,format=host_device",
    "-device",
    "ide-cd,id=ide-5632,drive=ide-5632,bus=ide.1,unit=0",
];

#[test]
fn libxls_own_line_passes_untouched() {
    assert_eq!(fitted(LIBXL), LIBXL);
    let findings = argv(LIBXL).judge(&nothing);
    assert!(findings.iter().all(|f| f.verdict == Verdict::Kept));
    assert!(findings.iter().all(|f| f.about.is_some()), "all are known");
    assert!(findings.iter().all(|f| f.line().is_none()));
}

#[test]
fn what_the_guest_does_not_need_is_left_out() {
    for args in [
        &["-daemonize", "-S"][..],
        &["-chroot", "/var/run/xen/qemu-root-7", "-S"],
        &["-runas", "nobody", "-S"],
        &["-xen-domid-restrict", "-S"],
        &["-vnc", "127.0.0.1:0,to=99", "-S"],
        &["-vnc", "unix:/run/v", "-S"],
        &["-cpu", "host,kvm=off", "-S"],
        &["-enable-kvm", "-S"],
        &["-device", "usb-redir,chardev=c", "-S"],
        &["-chardev", "spicevmc,name=usbredir,id=c", "-S"],
        &["-spice", "port=5", "-S"],
        &["-k", "de", "-S"],
        &["-pidfile", "/var/run/x", "-S"],
        &["-qubes-net:gateway=10.0.0.1", "-S"],
        &["-chardev", "pty,id=libxl-channel0", "-S"],
        &[
            "-chardev",
            "socket,id=libxl-channel1,path=/run/agent,server=on,wait=off",
            "-S",
        ],
        &["-chardev", "socket,id=x,path=/run/mine/x,server=on", "-S"],
    ] {
        assert_eq!(fitted(args), ["-S"], "{args:?}");
        let line = argv(args).judge(&nothing).remove(0).line().unwrap();
        assert!(
            line.starts_with(args[0]) && line.contains("left out"),
            "{line}"
        );
    }
}

#[test]
fn what_can_be_meant_otherwise_is_changed() {
    assert_eq!(fitted(&["-display", "gtk"]), ["-display", "none"]);
    assert_eq!(fitted(&["-serial", "tcp::4444"]), ["-serial", "null"]);
    assert_eq!(
        fitted(&["-monitor", "unix:/run/x/y,server"]),
        ["-monitor", "null"]
    );
    assert_eq!(
        fitted(&["-audiodev", "pa,id=a,,b"]),
        ["-audiodev", "none,id=a,,b"]
    );
    assert_eq!(
        fitted(&["-netdev", "tap,id=net1,ifname=t,script=/etc/qemu-ifup"]),
        ["-netdev", "tap,id=net1,ifname=t,script=no,downscript=no"]
    );
    assert_eq!(fitted(&["-serial", "/dev/ttyS0"]), ["-serial", "null"]);
    let silent = [
        "-device",
        "AC97,audiodev=stubdm-silence",
        "-audiodev",
        "none,id=stubdm-silence",
    ];
    assert_eq!(fitted(&["-device", "AC97"]), silent);
    let same = ["-serial", "pty", "-monitor", "none", "-vnc", "none"];
    assert_eq!(fitted(&same), same);
}

#[test]
fn what_would_make_another_guest_is_refused_with_its_path() {
    for (args, what) in [
        (&["-kernel", "/boot/vmlinuz"][..], "/boot/vmlinuz"),
        (&["-initrd", "/boot/initrd"], "/boot/initrd"),
        (&["-drive", "file=/srv/a,,b.img,if=ide"], "/srv/a,b.img"),
        (&["-drive", "file.filename=/srv/x"], "/srv/x"),
        (&["-cdrom", "/srv/cd.iso"], "/srv/cd.iso"),
        (&["/srv/bare.img"], "/srv/bare.img"),
        (&["-drive", "file=nbd:host:10809"], "network"),
        (&["-device", "rtl8139,romfile=/srv/rom"], "/srv/rom"),
        (&["-drive", "file=/dev/sda"], "/dev/sda"),
        (&["-drive", r#"file=json:{"filename":"/srv/j"}"#], "/srv/j"),
        (
            &[
                "-blockdev",
                r#"{"driver":"raw","file":{"filename":"/srv/b"}}"#,
            ],
            "/srv/b",
        ),
        (&["-blockdev", r#"{"driver":"nbd"}"#], "network"),
        (&["-fw_cfg", "name=opt/x,file=/srv/f"], "/srv/f"),
        (&["-append", "root=/dev/xvda"], "-kernel"),
        (&["-usbdevice", "host:1.2"], "USB"),
        (&["-device", "usb-host,hostbus=1,hostaddr=2"], "USB"),
        (&["-device", "qxl-vga"], "vgabios-qxl.bin"),
        (&["-netdev", "user,id=n"], "vif"),
        (&["-net", "user"], "vif"),
        (&["-netdev", "bridge,id=n,br=br0"], "vif"),
        (&["-netdev", "tap,id=n,ifname=t"], "vif"),
        (&["-incoming", "exec:cat /x"], "console 2"),
        (&["-loadvm", "x"], "snapshot"),
        (
            &["-chardev", "socket,id=c,path=/run/d/s", "-mon", "chardev=c"],
            "/run/d/s",
        ),
    ] {
        let found = refusal(args);
        assert!(found.is_refusal());
        let line = found.line().unwrap();
        assert!(
            line.contains(what) && !line.contains('\n'),
            "{args:?}: {line}"
        );
    }
}

#[test]
fn a_file_that_is_in_the_image_is_kept() {
    let there = |path: &str| path == "/boot/vmlinuz";
    let kernel = argv(&["-kernel", "/boot/vmlinuz"]);
    assert_eq!(kernel.judge(&there)[0].verdict, Verdict::Kept);
    assert!(refusal(&["-kernel", "/boot/other"]).is_refusal());
}

#[test]
fn a_device_that_will_come_and_a_value_that_looks_like_an_option_are_kept() {
    assert_eq!(
        verdict(&["-drive", "file=/dev/xvdq,format=host_device"]),
        Verdict::Kept
    );
    assert_eq!(verdict(&["-name", "-daemonize"]), Verdict::Kept);
    assert_eq!(verdict(&["-name", "/boot/x"]), Verdict::Kept);
}

#[test]
fn what_is_not_known_to_be_harmless_is_noted() {
    for args in [
        &["-unknown", "/srv/x"][..],
        &["-balloon", "virtio"],
        &["-device", "nosuchdevice"],
        &["-object", "memory-backend-file,id=m,mem-path=/dev/shm/x"],
        &["-boot", "menu=on,splash=/srv/x.bmp"],
        &["-machine", "q35"],
        &["-vga", "xengt"],
        &["-netdev", "vde,id=n"],
        &["-sandbox", "on"],
        &["-device", r#"{"driver":"nosuchdevice"}"#],
    ] {
        assert!(matches!(verdict(args), Verdict::Noted(_)), "{args:?}");
    }
    let json = ["-device", r#"{"driver":"virtio-balloon-pci","id":"b"}"#];
    assert_eq!(verdict(&json), Verdict::Kept);
}

#[test]
fn a_card_without_a_network_side_is_kept_if_its_boot_rom_is_there() {
    let card = ["-device", "e1000e"];
    assert!(matches!(verdict(&card), Verdict::Noted(_)));
    for (rom, kept) in [("efi-e1000e.rom", true), ("efi-e1000.rom", false)] {
        let there = |path: &str| path.rsplit('/').next() == Some(rom);
        let findings = argv(&card).judge(&there);
        let verdicts: Vec<_> = findings.iter().map(|f| &f.verdict).collect();
        assert_eq!(verdicts == [&Verdict::Kept], kept, "{verdicts:?}");
    }
}

#[test]
fn numbers_are_those_of_the_store() {
    let findings = argv(&["-S", "-name", "x", "-daemonize"]).judge(&nothing);
    let numbers: Vec<_> = findings.iter().map(|f| f.number).collect();
    assert_eq!(numbers, [1, 2, 4]);
}

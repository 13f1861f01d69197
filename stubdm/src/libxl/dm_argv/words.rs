//! QEMU's command line taken apart: which argument is an option, and which is an option's value.
//!
//! QEMU decides that by a table: `-name` always takes a value, whatever it looks like; `-S` never
//! does. A reader that only searches for `-drive` finds one in a guest that is *named* `-drive`.
//! The table here holds what libxl writes and what people put into `device_model_args`; an option
//! that is not in it has a value if the next argument does not begin with a hyphen. (QEMU:
//! `qemu-options.hx`, `softmmu/vl.c`.)

/// One option of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word<'a> {
    /// Its place among the arguments, from 0.
    pub at: usize,
    /// Its name without the hyphens; empty for a bare argument, which QEMU takes for a disk image.
    pub name: &'a [u8],
    /// Its value; the argument itself where it is bare.
    pub value: Option<&'a [u8]>,
    /// Its purpose, if it is known here.
    pub known: Option<&'static Known>,
}

impl Word<'_> {
    /// Returns how many arguments it takes up: one or two.
    pub fn len(&self) -> usize {
        if self.name.is_empty() || self.value.is_none() {
            1
        } else {
            2
        }
    }

    /// Returns whether it takes up none: never.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The option as a person writes it.
    pub fn shown(&self) -> String {
        match self.name {
            [] => "a bare argument".to_owned(),
            name => format!("-{}", String::from_utf8_lossy(name)),
        }
    }
}

/// An option that is known here.
#[derive(Debug, PartialEq, Eq)]
pub struct Known {
    /// Its name without the hyphen.
    pub name: &'static str,
    /// `true` if a value follows.
    pub takes_value: bool,
    /// Its purpose, in a few words.
    pub about: &'static str,
}

/// Takes a command line apart.
pub fn words(args: &[Vec<u8>]) -> Vec<Word<'_>> {
    let mut all = Vec::new();
    let mut at = 0;
    while let Some(arg) = args.get(at) {
        let word = word(args, at, arg);
        at += word.len();
        all.push(word);
    }
    all
}

fn word<'a>(args: &'a [Vec<u8>], at: usize, arg: &'a [u8]) -> Word<'a> {
    let Some(name) = arg.strip_prefix(b"-").filter(|name| !name.is_empty()) else {
        return Word {
            at,
            name: b"",
            value: Some(arg),
            known: None,
        };
    };
    let name = name.strip_prefix(b"-").unwrap_or(name);
    let known = known(name);
    let next = args.get(at + 1).map(Vec::as_slice);
    let value = match known {
        Some(known) if known.takes_value => next,
        Some(_) => None,
        None => next.filter(|next| !next.starts_with(b"-")),
    };
    Word {
        at,
        name,
        value,
        known,
    }
}

/// Looks up an option by its name without hyphens.
pub fn known(name: &[u8]) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.name.as_bytes() == name)
}

const fn flag(name: &'static str, about: &'static str) -> Known {
    Known {
        name,
        takes_value: false,
        about,
    }
}

const fn with(name: &'static str, about: &'static str) -> Known {
    Known {
        name,
        takes_value: true,
        about,
    }
}

const KNOWN: &[Known] = &[
    with("xen-domid", "the guest's domain id"),
    flag("xen-attach", "serve a domain that exists already"),
    flag("xen-domid-restrict", "act on the guest's domain only"),
    flag("no-shutdown", "stay when the guest shuts down"),
    flag("no-reboot", "end when the guest reboots"),
    flag("nodefaults", "no devices but those named here"),
    flag("no-user-config", "read no configuration files"),
    flag("nographic", "no graphics, no monitor on the terminal"),
    flag("no-acpi", "no ACPI"),
    flag("no-hpet", "no high precision timer"),
    flag("S", "wait for `cont` before the guest runs"),
    flag("s", "a debugger's port"),
    flag("usb", "a USB controller"),
    flag("snapshot", "keep disk writes in temporary files"),
    flag("daemonize", "detach from the starter"),
    flag("preconfig", "wait for more configuration"),
    flag("sdl", "a window on the host"),
    flag("full-screen", "a window over the whole screen"),
    flag("enable-kvm", "run on KVM"),
    flag("only-migratable", "only devices that can be migrated"),
    flag("mem-prealloc", "touch all of the guest's memory"),
    with("name", "the guest's name"),
    with("uuid", "the guest's identity"),
    with("display", "where the guest's screen is shown"),
    with("vnc", "the guest's screen over VNC"),
    with("spice", "the guest's screen over SPICE"),
    with("k", "the keyboard's layout"),
    with("vga", "the graphics card"),
    with("kernel", "a kernel to boot instead of a disk"),
    with("initrd", "that kernel's ramdisk"),
    with("append", "that kernel's command line"),
    with("dtb", "a device tree"),
    with("bios", "the firmware"),
    with("pflash", "flash memory from a file"),
    with("L", "a folder with firmware"),
    with("option-rom", "a boot ROM"),
    with("acpitable", "an ACPI table"),
    with("smbios", "SMBIOS fields"),
    with("device", "a device"),
    with("global", "a default for a kind of device"),
    with("set", "a setting of a device"),
    with("object", "an object devices refer to"),
    with("drive", "a disk"),
    with("blockdev", "a disk's host side"),
    with("cdrom", "a CD"),
    with("hda", "the first disk"),
    with("hdb", "the second disk"),
    with("hdc", "the third disk"),
    with("hdd", "the fourth disk"),
    with("fda", "the first floppy"),
    with("fdb", "the second floppy"),
    with("sd", "an SD card"),
    with("mtdblock", "flash memory"),
    with("net", "a network card, in the old way"),
    with("nic", "a network card with its host side"),
    with("netdev", "a network card's host side"),
    with("serial", "a serial port"),
    with("parallel", "a parallel port"),
    with("chardev", "a character device's host side"),
    with("mon", "a monitor on a character device"),
    with("monitor", "a monitor for people"),
    with("qmp", "a monitor for programs"),
    with("qmp-pretty", "a monitor for programs and people"),
    with("usbdevice", "a USB device"),
    with("soundhw", "a sound card"),
    with("audiodev", "a sound card's host side"),
    with("audio", "sound"),
    with("tpmdev", "a TPM's host side"),
    with("virtfs", "a folder of the host for the guest"),
    with("fsdev", "a folder of the host"),
    with("boot", "the order of boot devices"),
    with("smp", "the processors"),
    with("cpu", "the processors' model"),
    with("m", "the memory in MiB"),
    with("mem-path", "guest memory from a file"),
    with("machine", "the kind of machine"),
    with("M", "the kind of machine"),
    with("accel", "what runs the guest's code"),
    with("rtc", "the clock"),
    with("icount", "a clock that counts instructions"),
    with("watchdog", "a watchdog"),
    with("watchdog-action", "what a watchdog does"),
    with("action", "what an event leads to"),
    with("incoming", "where the guest's saved state comes from"),
    with("loadvm", "a saved state"),
    with("readconfig", "more configuration"),
    with("writeconfig", "where to write configuration"),
    with("chroot", "a folder to be confined to"),
    with("runas", "a user to become"),
    with("run-with", "how to be confined"),
    with("sandbox", "a filter for system calls"),
    with("pidfile", "where to write the process id"),
    with("D", "a log file"),
    with("d", "what to log"),
    with("trace", "what to trace"),
    with("dfilter", "addresses to log"),
    with("gdb", "a debugger's port"),
    with("msg", "how messages look"),
    with("add-fd", "a descriptor from the starter"),
    with("fw_cfg", "a file of the firmware's"),
    with("debugcon", "a debug port"),
    with("compat", "what to do about deprecated things"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &[&str]) -> Vec<Vec<u8>> {
        line.iter().map(|a| a.as_bytes().to_vec()).collect()
    }

    fn words_of(line: &[&str]) -> Vec<(String, Option<String>)> {
        let args = args(line);
        let text = |v: &[u8]| String::from_utf8_lossy(v).into_owned();
        words(&args)
            .iter()
            .map(|w| (text(w.name), w.value.map(text)))
            .collect()
    }

    #[test]
    fn a_value_is_a_value_whatever_it_looks_like() {
        let some = |s: &str| Some(s.to_owned());
        assert_eq!(
            words_of(&["-name", "-drive", "-S", "--m", "5", "file"]),
            [
                ("name".into(), some("-drive")),
                ("S".into(), None),
                ("m".into(), some("5")),
                (String::new(), some("file")),
            ]
        );
    }

    #[test]
    fn an_unknown_option_has_a_value_if_one_follows() {
        let some = |s: &str| Some(s.to_owned());
        assert_eq!(
            words_of(&["-new", "x", "-newer", "-newest"]),
            [
                ("new".into(), some("x")),
                ("newer".into(), None),
                ("newest".into(), None)
            ]
        );
        assert_eq!(words_of(&["-name"]), [("name".into(), None)]);
        assert_eq!(
            words_of(&["-", ""]),
            [(String::new(), some("-")), (String::new(), some(""))]
        );
    }

    #[test]
    fn every_argument_belongs_to_exactly_one_word() {
        let line = args(&["-a", "b", "c", "-name", "-name", "-S", "-", "-m"]);
        let mut next = 0;
        for word in words(&line) {
            assert_eq!(word.at, next);
            next += word.len();
        }
        assert_eq!(next, line.len());
    }

    #[test]
    fn no_option_is_known_twice() {
        for (at, one) in KNOWN.iter().enumerate() {
            assert!(
                KNOWN[at + 1..].iter().all(|other| other.name != one.name),
                "{}",
                one.name
            );
        }
    }
}

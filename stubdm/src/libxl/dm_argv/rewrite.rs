//! Rewrites the toolstack's arguments for a stubdomain.
//!
//! libxl writes QEMU's arguments as if QEMU ran on the host; `device_model_args` adds arguments of
//! an administrator. Inside the stubdomain the host's files, displays and networks do not exist.
//! Each option gets one of four verdicts, each with its reason:
//!
//! | verdict | meaning |
//! |---|---|
//! | kept | unchanged |
//! | changed | another value that does what was meant |
//! | dropped | without it the guest is the same |
//! | refused | the guest would not be what was asked for: the stubdomain does not start |
//!
//! The caller supplies whether a path exists in the stubdomain: the init checks its own root, the
//! host's `dmargs check` an image's list of contents.

use stubdm_image::firmware::card_rom;

use crate::libxl::dm_argv::words::{Word, words};
use crate::libxl::dm_argv::{DmArgv, INCOMING_PLACEHOLDER, pairs, tap_number};

/// The verdict on one option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Passed on unchanged.
    Kept,
    /// Passed on, with a note for the administrator.
    Noted(String),
    /// Passed on with this value instead.
    Changed {
        /// The value QEMU gets.
        to: String,
        /// Why.
        why: String,
    },
    /// Not passed on.
    Dropped(String),
    /// Nothing can be started with it.
    Refused(String),
}

/// One option and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The number of its first argument, from 1 as in the store.
    pub number: usize,
    /// The option as a person writes it.
    pub option: String,
    /// Its value, as text.
    pub value: Option<String>,
    /// Its purpose, if that is known.
    pub about: Option<&'static str>,
    /// The verdict on it.
    pub verdict: Verdict,
}

impl Finding {
    /// One line for a log; `None` for an option that is passed on unchanged.
    pub fn line(&self) -> Option<String> {
        let value = self.value.as_deref().unwrap_or_default();
        let subject = format!("{} {value}", self.option);
        let subject = subject.trim_end();
        match &self.verdict {
            Verdict::Kept => None,
            Verdict::Noted(what) => Some(format!("{subject}: {what}")),
            Verdict::Changed { to, why } => {
                Some(format!("{subject}: changed to {to:?}, for {why}"))
            }
            Verdict::Dropped(why) => Some(format!("{subject}: left out, for {why}")),
            Verdict::Refused(why) => Some(format!("{subject}: impossible in a stubdomain: {why}")),
        }
    }

    /// Returns whether nothing can be started with it.
    pub fn is_refusal(&self) -> bool {
        matches!(self.verdict, Verdict::Refused(_))
    }
}

impl DmArgv {
    /// Judges every option, in order; `exists` returns whether a path exists in the stubdomain.
    pub fn judge(&self, exists: &dyn Fn(&str) -> bool) -> Vec<Finding> {
        let all = words(self.args());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        all.iter()
            .map(|word| Finding {
                number: word.at + 1,
                option: word.shown(),
                value: word.value.map(text),
                about: word.known.map(|known| known.about),
                verdict: judge(word, &all, exists),
            })
            .collect()
    }

    /// The arguments as QEMU can take them in here, with what was found.
    ///
    /// # Errors
    /// The first option nothing can be started with.
    pub fn rewrite(&self, exists: &dyn Fn(&str) -> bool) -> Result<(Self, Vec<Finding>), Finding> {
        let findings = self.judge(exists);
        let mut args = Vec::with_capacity(self.args.len());
        for (word, finding) in words(self.args()).iter().zip(&findings) {
            let own = self.args.get(word.at..word.at + word.len());
            match &finding.verdict {
                Verdict::Refused(_) => return Err(finding.clone()),
                Verdict::Dropped(_) => {}
                Verdict::Changed { to, .. } => {
                    args.extend(own.into_iter().flatten().take(1).cloned());
                    args.push(to.clone().into_bytes());
                }
                Verdict::Kept | Verdict::Noted(_) => {
                    args.extend(own.into_iter().flatten().cloned());
                }
            }
        }
        if words(&args).iter().any(is_silent) {
            args.extend([
                b"-audiodev".to_vec(),
                format!("none,id={SILENCE}").into_bytes(),
            ]);
        }
        Ok((Self { args }, findings))
    }
}

fn dropped(why: &str) -> Verdict {
    Verdict::Dropped(why.to_owned())
}

fn refused(why: impl Into<String>) -> Verdict {
    Verdict::Refused(why.into())
}

/// Options that no QEMU ends on, whatever value libxl or a person gives.
const HARMLESS: &[&str] = &[
    "xen-domid",
    "xen-attach",
    "no-shutdown",
    "no-reboot",
    "nodefaults",
    "no-user-config",
    "nographic",
    "no-acpi",
    "no-hpet",
    "S",
    "usb",
    "snapshot",
    "name",
    "uuid",
    "boot",
    "smp",
    "cpu",
    "m",
    "rtc",
    "global",
    "action",
    "watchdog-action",
    "msg",
    "compat",
    "smbios",
    "kernel",
    "initrd",
    "append",
    "acpitable",
    "fw_cfg",
    "mon",
    "cdrom",
    "hda",
    "hdb",
    "hdc",
    "hdd",
    "fda",
    "fdb",
    "drive",
    "blockdev",
    "serial",
    "parallel",
    "monitor",
    "qmp",
    "qmp-pretty",
    "debugcon",
    "chardev",
    "netdev",
    "device",
    "audiodev",
    "incoming",
    "usbdevice",
    "vga",
    "net",
    "nic",
    "machine",
    "M",
    "display",
    "trace",
    "vnc",
    "k",
    "pidfile",
    "D",
    "L",
    "bios",
    "pflash",
    "object",
    "",
];

fn judge(word: &Word<'_>, all: &[Word<'_>], exists: &dyn Fn(&str) -> bool) -> Verdict {
    let value = word.value.map(String::from_utf8_lossy).unwrap_or_default();
    let value: &str = &value;
    let missing = |path: &str| is_path(path) && !is_device(path) && !exists(path);
    if word.value.is_none() && word.known.is_some_and(|known| known.takes_value) {
        return refused("its value is missing");
    }
    let verdict = judge_option(word, value, all, exists);
    if verdict != Verdict::Kept {
        return verdict;
    }
    if !HARMLESS.iter().any(|name| name.as_bytes() == word.name) {
        return noted("it is not known to be harmless: QEMU may end on it");
    }
    // `-append` and `-name` are texts, whatever is in them.
    let text = matches!(word.name, b"append" | b"name" | b"uuid");
    if !text && value.starts_with('{') && crate::libxl::dm_argv::json(value.as_bytes()).is_none() {
        return noted("it begins as JSON does and cannot be read as such");
    }
    let path = match text {
        true => None,
        false => paths(value).into_iter().find(|path| missing(path)),
    };
    match path {
        Some(path) => noted(format!(
            "{path} is not in here: QEMU may end on it, or do without"
        )),
        None => Verdict::Kept,
    }
}

fn judge_option(
    word: &Word<'_>,
    value: &str,
    all: &[Word<'_>],
    exists: &dyn Fn(&str) -> bool,
) -> Verdict {
    let missing = |path: &str| is_path(path) && !is_device(path) && !exists(path);
    let host_file = |path: &str| match missing(path) {
        true => refused(format!(
            "{path} is a file of the host's, which is not in here"
        )),
        false => Verdict::Kept,
    };
    match word.name {
        b"daemonize" => dropped("the stubdomain's init watches over QEMU as its parent"),
        b"pidfile" | b"D" if missing(value) => dropped("nobody could read that file in here"),
        b"chroot" | b"runas" | b"run-with" => dropped("the stubdomain's init confines QEMU itself"),
        b"xen-domid-restrict" => dropped("the hypervisor ties this domain to its guest already"),
        b"sdl" | b"full-screen" | b"spice" => dropped("a stubdomain has no screen of the host's"),
        b"vnc" if value != "none" && !value.starts_with("unix:") => {
            dropped("a stubdomain has no network of the host's")
        }
        b"vnc" if value != "none" && !exists(&format!("{KEYMAPS}/en-us")) => {
            dropped("there are no keyboard layouts in here, and QEMU's VNC ends without one")
        }
        b"display" if !value.starts_with("none") => Verdict::Changed {
            to: "none".to_owned(),
            why: "a stubdomain has no screen of the host's".to_owned(),
        },
        b"k" => dropped("the host's VNC server applies the layout, and QEMU gets scancodes"),
        b"L" if missing(value) => dropped("there is no such folder in here"),
        b"enable-kvm" | b"accel" => dropped("Xen runs the guest's code"),
        b"cpu" if value == "host" || value.starts_with("host,") => {
            dropped("the guest's processors are Xen's, and QEMU knows `host` with KVM only")
        }
        b"append" | b"initrd" if !all.iter().any(|word| word.name == b"kernel") => {
            refused("QEMU ends if no -kernel goes with it")
        }
        b"kernel" | b"initrd" | b"dtb" | b"bios" | b"pflash" | b"option-rom" | b"readconfig" => {
            host_file(value)
        }
        b"cdrom" | b"hda" | b"hdb" | b"hdc" | b"hdd" | b"fda" | b"fdb" | b"sd" | b"mtdblock"
        | b"" => disk_file(value, exists),
        b"drive" | b"blockdev" => drive(value, exists),
        b"acpitable" | b"smbios" | b"virtfs" | b"fsdev" | b"fw_cfg" => {
            in_pairs(value, &["file", "path", "data"], &host_file)
        }
        b"trace" => in_pairs(value, &["events", "file"], &host_file),
        b"device" => device(value, all, exists, &host_file),
        b"object" => object(value, exists),
        b"vga" => graphics(value, exists),
        b"usbdevice" => usbdevice(value),
        b"machine" | b"M" => machine(value),
        b"chardev" => chardev(value, all, &missing),
        b"serial" | b"parallel" | b"monitor" | b"qmp" | b"qmp-pretty" | b"debugcon" => {
            line(value, &missing)
        }
        b"netdev" => netdev(value),
        b"net" | b"nic" => old_net(value),
        b"audiodev" => audiodev(value),
        b"soundhw" => {
            noted("QEMU from 7.1 on ends on it: use soundhw=\"...\" of the configuration")
        }
        b"sandbox" => noted("Debian's QEMUs for Xen are built without it, and end on it"),
        b"incoming" => incoming(word.value.unwrap_or_default(), value),
        b"loadvm" => {
            refused("its state would come from a snapshot inside a disk, not from the toolstack")
        }
        name if name.starts_with(b"qubes-") => {
            dropped("it is a word for the init of QubesOS's stubdomain")
        }
        _ => Verdict::Kept,
    }
}

fn noted(what: impl Into<String>) -> Verdict {
    Verdict::Noted(what.into())
}

/// Every absolute path in a value: all of it, values of pairs, strings in JSON.
fn paths(value: &str) -> Vec<String> {
    let pairs = pairs(value.as_bytes());
    let all = pairs
        .into_iter()
        .flat_map(|(key, value)| match value.is_empty() {
            true => vec![key],
            // `file=json:{...}`, `file=nbd+unix:///path`
            false => match value.strip_prefix("json:") {
                Some(json) => crate::libxl::dm_argv::pairs(json.as_bytes())
                    .into_iter()
                    .map(|(_, v)| v)
                    .collect(),
                None => vec![value],
            },
        });
    all.filter(|text| is_path(text)).collect()
}

/// The model that a `-device` names.
pub(super) fn model_of(pairs: &[(String, String)]) -> &str {
    let named = pairs.iter().find(|(key, _)| key == "driver");
    match (named, pairs.first()) {
        (Some((_, driver)), _) => driver,
        (None, Some((model, value))) if value.is_empty() => model,
        _ => "",
    }
}

/// Devices that Debian's QEMUs for Xen have, and that need nothing of the host's.
const DEVICES: &[&str] = &[
    "VGA",
    "cirrus-vga",
    "qxl-vga",
    "secondary-vga",
    "usb-ehci",
    "piix3-usb-uhci",
    "piix4-usb-uhci",
    "nec-usb-xhci",
    "qemu-xhci",
    "ich9-usb-ehci1",
    "ich9-usb-uhci1",
    "ich9-usb-uhci2",
    "ich9-usb-uhci3",
    "usb-tablet",
    "usb-mouse",
    "usb-kbd",
    "intel-hda",
    "ich9-intel-hda",
    "virtio-serial",
    "virtio-balloon-pci",
    "virtio-rng-pci",
    "virtio-scsi-pci",
    "lsi53c895a",
    "megasas",
    "ahci",
    "ide-cd",
    "ide-hd",
    "scsi-hd",
    "scsi-cd",
    "nvme",
    "pvpanic",
    "i6300esb",
    "xen-pvdevice",
    "xen-platform",
];

/// Sound cards. QEMU up to 8.1 finds a host side for them by itself, later ones end.
const SOUND: &[&str] = &[
    "hda-duplex",
    "hda-micro",
    "hda-output",
    "AC97",
    "ac97",
    "sb16",
    "es1370",
    "adlib",
    "cs4231a",
    "gus",
    "usb-audio",
];

/// The name of the host side that the sound cards get.
const SILENCE: &str = "stubdm-silence";

/// Returns whether an option names the host side that only [`DmArgv::rewrite`] adds.
fn is_silent(word: &Word<'_>) -> bool {
    let pairs = pairs(word.value.unwrap_or_default());
    word.name == b"device"
        && pairs
            .iter()
            .any(|(key, value)| key == "audiodev" && value == SILENCE)
}

/// Network cards that have no boot ROM.
const CARDS: &[&str] = &["ne2k_isa", "tulip"];

/// Returns whether a device is a network card.
fn is_card(model: &str) -> bool {
    CARDS.contains(&model) || card_rom(model).is_some()
}

/// Returns whether QEMU finds a network card's boot ROM here, or the card has none.
fn card_rom_is_there(model: &str, exists: &dyn Fn(&str) -> bool) -> bool {
    card_rom(model).is_none_or(|(_, rom)| {
        CARD_ROM_FOLDERS
            .iter()
            .any(|dir| exists(&format!("{dir}/{rom}")))
    })
}

/// Graphics cards, and the ROM without which QEMU ends.
const SCREENS: &[(&str, &str)] = &[
    ("qxl-vga", "vgabios-qxl.bin"),
    ("qxl", "vgabios-qxl.bin"),
    ("virtio", "vgabios-virtio.bin"),
    ("virtio-vga", "vgabios-virtio.bin"),
    ("vmware", "vgabios-vmware.bin"),
    ("vmware-svga", "vgabios-vmware.bin"),
    ("ati-vga", "vgabios-ati.bin"),
    ("bochs-display", "vgabios-bochs-display.bin"),
];

/// Where keyboard layouts are.
const KEYMAPS: &str = "/usr/share/qemu/keymaps";

/// The folders of network cards' boot ROMs.
const CARD_ROM_FOLDERS: [&str; 2] = ["/usr/share/qemu", "/usr/lib/ipxe/qemu"];

/// Where the ROMs of graphics cards are.
const ROMS: [&str; 2] = ["/usr/share/seabios", "/usr/share/qemu"];

fn rom_is_there(model: &str, exists: &dyn Fn(&str) -> bool) -> Verdict {
    let known = SCREENS.iter().find(|(own, _)| *own == model);
    match known {
        Some((_, rom)) if !ROMS.iter().any(|dir| exists(&format!("{dir}/{rom}"))) => {
            refused(format!(
                "{rom} is not in here, and QEMU ends without it: image build --file usr/share/seabios/{rom}"
            ))
        }
        _ => Verdict::Kept,
    }
}

fn graphics(value: &str, exists: &dyn Fn(&str) -> bool) -> Verdict {
    match value {
        "none" | "std" | "cirrus" => Verdict::Kept,
        _ if SCREENS.iter().any(|(own, _)| *own == value) => rom_is_there(value, exists),
        _ => noted("it is a card that QEMU may not know"),
    }
}

fn device(
    value: &str,
    all: &[Word<'_>],
    exists: &dyn Fn(&str) -> bool,
    host_file: &dyn Fn(&str) -> Verdict,
) -> Verdict {
    let pairs = pairs(value.as_bytes());
    let model = model_of(&pairs);
    let has = |key: &str| pairs.iter().any(|(own, _)| own == key);
    let file = in_pairs(value, &["file", "romfile", "path", "data"], host_file);
    if file != Verdict::Kept {
        return file;
    }
    match model {
        "usb-redir" => dropped("redirection comes over SPICE, which a stubdomain does not have"),
        "usb-host" if has("hostbus") || has("hostaddr") => {
            refused("the stubdomain has no USB devices of the host's")
        }
        "vfio-pci" => refused("the host's devices come by pci=[...] of the configuration"),
        "xen-pci-passthrough" => refused(
            "the stubdomain has no such device yet: name it in pci=[...] of the configuration",
        ),
        "virtserialport" if is_of_spice(&pairs, all) => noted(
            "nobody is at its other end: a stubdomain has no SPICE, and a QEMU without it ends",
        ),
        _ if SOUND.contains(&model) && !has("audiodev") => match value.starts_with('{') {
            true => noted("QEMU from 8.2 on ends on a sound card without an audiodev"),
            false => Verdict::Changed {
                to: format!("{value},audiodev={SILENCE}"),
                why: "a stubdomain has no sound of the host's".to_owned(),
            },
        },
        _ if SOUND.contains(&model) => Verdict::Kept,
        _ if is_card(model) => match has("netdev") || has("romfile") {
            true => Verdict::Kept,
            false if card_rom_is_there(model, exists) => Verdict::Kept,
            false => {
                noted("a card without a network side, and its boot ROM is not in here: QEMU ends")
            }
        },
        _ if SCREENS.iter().any(|(own, _)| *own == model) => rom_is_there(model, exists),
        _ if DEVICES.contains(&model) => Verdict::Kept,
        _ => noted("it is a device that QEMU may not have"),
    }
}

/// Returns whether a device's character device is one of SPICE's.
fn is_of_spice(device: &[(String, String)], all: &[Word<'_>]) -> bool {
    let Some((_, id)) = device.iter().find(|(key, _)| key == "chardev") else {
        return false;
    };
    all.iter()
        .filter(|word| word.name == b"chardev")
        .any(|word| {
            let pairs = pairs(word.value.unwrap_or_default());
            let own = pairs.iter().any(|(key, value)| key == "id" && value == id);
            own && kind_of(&pairs, "backend").starts_with("spice")
        })
}

/// Returns the first word of a value, or the value of `key`.
fn kind_of<'a>(pairs: &'a [(String, String)], key: &str) -> &'a str {
    let named = pairs.iter().find(|(own, _)| own == key);
    match (named, pairs.first()) {
        (Some((_, kind)), _) => kind,
        (None, Some((kind, value))) if value.is_empty() => kind,
        _ => "",
    }
}

fn object(value: &str, exists: &dyn Fn(&str) -> bool) -> Verdict {
    let pairs = pairs(value.as_bytes());
    let source = |keys: [&str; 2]| {
        let mut all = pairs.iter().filter(|(key, _)| keys.contains(&key.as_str()));
        all.find(|(_, path)| is_path(path) && !is_there(path, exists))
    };
    match (kind_of(&pairs, "qom-type"), source(["evdev", "filename"])) {
        ("input-linux" | "rng-random", Some((_, path))) => {
            refused(format!("{path} is the host's, and not in here"))
        }
        ("rng-random" | "iothread" | "secret" | "throttle-group" | "memory-backend-ram", _) => {
            Verdict::Kept
        }
        _ => noted("it is an object that QEMU may not have, or that needs something of the host's"),
    }
}

/// QEMU takes no parameters there, and never again a device of the host's.
fn usbdevice(value: &str) -> Verdict {
    match value {
        "tablet" | "mouse" | "keyboard" => Verdict::Kept,
        _ if value.contains(':') => refused(
            "QEMU takes no parameters there any more, and the stubdomain has no USB devices of the host's",
        ),
        _ => noted("it is a device that QEMU may not have"),
    }
}

fn machine(value: &str) -> Verdict {
    let pairs = pairs(value.as_bytes());
    let fine = |(key, value): &(String, String)| {
        matches!(
            key.as_str(),
            "type" | "suppress-vmdesc" | "max-ram-below-4g" | "igd-passthru" | "usb" | "smm"
        ) || value.is_empty()
            || (key == "accel" && value == "xen")
    };
    let kind = kind_of(&pairs, "type");
    let known = kind == "pc" || kind.starts_with("xenfv") || kind.starts_with("pc-i440fx");
    match known && pairs.iter().all(fine) {
        true => Verdict::Kept,
        false => noted(
            "libxl says xenfv or pc here: another machine, or more of it, may not be what Xen serves",
        ),
    }
}

/// `-net` and `-nic`: a card and its host side in the old ways.
fn old_net(value: &str) -> Verdict {
    match kind_of(&pairs(value.as_bytes()), "type") {
        "none" | "nic" | "hubport" => Verdict::Kept,
        "user" => no_user_network(),
        "tap" | "bridge" => refused("the stubdomain has no card to join it to; use `vif=[...]`"),
        _ => noted("reaches nothing outside the stubdomain, and QEMU may not have it"),
    }
}

fn no_user_network() -> Verdict {
    refused(
        "Debian's QEMUs for Xen are built without it and end on it, and the stubdomain has no network of its own; use `vif=[...]`",
    )
}

/// Returns whether a value is an absolute path at all.
fn is_path(value: &str) -> bool {
    value.starts_with('/')
}

/// Returns whether a path is a device that a stubdomain has, or that appears with its backend.
fn is_device(path: &str) -> bool {
    let Some(name) = path.strip_prefix("/dev/") else {
        return false;
    };
    let basic = [
        "null", "zero", "full", "random", "urandom", "console", "kmsg", "ptmx", "shm",
    ];
    basic.contains(&name)
        || ["xvd", "hvc", "fd/", "fdset/", "pts/"]
            .iter()
            .any(|start| name.starts_with(start))
}

/// Returns whether a path is there, or will be.
fn is_there(path: &str, exists: &dyn Fn(&str) -> bool) -> bool {
    is_device(path) || exists(path)
}

/// A value that names a disk's contents: a device, a file, or a place on a network.
fn disk_file(value: &str, exists: &dyn Fn(&str) -> bool) -> Verdict {
    if let Some(json) = value.strip_prefix("json:") {
        return drive(json, exists);
    }
    if is_path(value) && !is_there(value, exists) {
        return refused(format!(
            "{value} is the host's; give it to the guest in `disk=[...]`, and the stubdomain gets it as a device"
        ));
    }
    let scheme = value.split_once(':').map(|(scheme, _)| scheme);
    match scheme {
        Some(
            "nbd" | "rbd" | "iscsi" | "http" | "https" | "ftp" | "ssh" | "gluster" | "sheepdog"
            | "nfs",
        ) => refused(
            "a stubdomain has no network of the host's; attach the disk on the host, in `disk=[...]`",
        ),
        Some("fat") => refused("a folder of the host's is not in here"),
        _ => Verdict::Kept,
    }
}

fn drive(value: &str, exists: &dyn Fn(&str) -> bool) -> Verdict {
    let pairs = pairs(value.as_bytes());
    let buses = [
        "none", "ide", "scsi", "floppy", "pflash", "virtio", "xen", "sd", "mtd",
    ];
    for (key, value) in &pairs {
        let verdict = match key.rsplit('.').next().unwrap_or_default() {
            "file" | "filename" => disk_file(value, exists),
            _ if key.starts_with("json:") => disk_file(key, exists),
            "if" if !buses.contains(&value.as_str()) => refused("QEMU knows no such bus"),
            // The layers of a disk, `file.driver` included.
            "driver" => match value.as_str() {
                "nbd" | "rbd" | "iscsi" | "http" | "https" | "ftp" | "ftps" | "ssh" | "gluster"
                | "nfs" => disk_file(&format!("{value}:"), exists),
                _ => Verdict::Kept,
            },
            _ => Verdict::Kept,
        };
        if verdict != Verdict::Kept {
            return verdict;
        }
    }
    Verdict::Kept
}

/// The first objection to a value of one of these keys.
fn in_pairs(value: &str, keys: &[&str], judge: &dyn Fn(&str) -> Verdict) -> Verdict {
    let pairs = pairs(value.as_bytes());
    let mut wanted = pairs.iter().filter(|(key, _)| keys.contains(&key.as_str()));
    wanted
        .find_map(|(_, value)| Some(judge(value)).filter(|v| *v != Verdict::Kept))
        .unwrap_or(Verdict::Kept)
}

/// Judges a `-chardev`. The host serves libxl's channels, since the consoles' other ends are there;
/// here only a character device is left over that nothing refers to.
fn chardev(value: &str, all: &[Word<'_>], missing: &dyn Fn(&str) -> bool) -> Verdict {
    let pairs = pairs(value.as_bytes());
    let find = |key: &str| {
        pairs
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, v)| v.as_str())
    };
    let id = find("id").unwrap_or_default();
    let referred = || {
        all.iter()
            .filter(|word| word.name != b"chardev")
            .any(|word| {
                let text = String::from_utf8_lossy(word.value.unwrap_or_default());
                text == format!("chardev:{id}")
                    || crate::libxl::dm_argv::pairs(text.as_bytes())
                        .iter()
                        .any(|(k, v)| k == "chardev" && v == id)
            })
    };
    if id.starts_with("libxl-channel") && !referred() {
        return dropped("channels are served on the host");
    }
    if kind_of(&pairs, "backend").starts_with("spice") {
        let redirected = |word: &Word<'_>| {
            let pairs = crate::libxl::dm_argv::pairs(word.value.unwrap_or_default());
            let own = pairs.iter().any(|(k, v)| k == "chardev" && v == id);
            word.name == b"device" && own && model_of(&pairs) != "usb-redir"
        };
        return match all.iter().any(redirected) {
            true => noted("a stubdomain has no SPICE: QEMU ends on it if it is built without"),
            false => dropped("a stubdomain has no SPICE"),
        };
    }
    let path = find("path").unwrap_or_default();
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    if is_path(path) && path.starts_with("/dev/") && !is_device(path) {
        return refused(format!(
            "{path} is a device of the host's, which is not in here"
        ));
    }
    if !folder.is_empty() && !folder.starts_with("/dev") && missing(folder) {
        if referred() {
            return refused(format!(
                "{path} is a file of the host's, and something needs this character device"
            ));
        }
        return dropped("its file is the host's, and nothing needs it");
    }
    match kind_of(&pairs, "backend") {
        "pty" | "null" | "ringbuf" | "memory" | "socket" | "udp" | "file" | "pipe" | "vc"
        | "stdio" => Verdict::Kept,
        _ => noted("it is a kind that QEMU may not have, or that needs something of the host's"),
    }
}

/// A serial port or a monitor: `pty`, `/dev/hvc3`, `file:PATH`, `unix:PATH,…`, `tcp:…`.
fn line(value: &str, missing: &dyn Fn(&str) -> bool) -> Verdict {
    let (kind, rest) = value.split_once(':').unwrap_or((value, ""));
    let nowhere = |why: &str| Verdict::Changed {
        to: "null".to_owned(),
        why: why.to_owned(),
    };
    let path = rest.split(',').next().unwrap_or_default();
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    match kind {
        "tcp" | "udp" | "telnet" | "websocket" => {
            nowhere("a stubdomain has no network of the host's")
        }
        "file" | "unix" | "pipe" if missing(folder) => nowhere("its file would be the host's"),
        device if device.starts_with("/dev/") && !is_device(device) => {
            nowhere("the port would be the host's")
        }
        "stdio" => nowhere("QEMU's terminal is the stubdomain's log"),
        _ => Verdict::Kept,
    }
}

/// The init joins the taps that libxl names to the stubdomain's cards; scripts of the host's are
/// not in here, nor a shell.
fn netdev(value: &str) -> Verdict {
    let pairs = pairs(value.as_bytes());
    let kind = pairs.first().map(|(key, value)| match key.as_str() {
        "type" => value.as_str(),
        key => key,
    });
    match kind.unwrap_or_default() {
        "bridge" => refused("the host's bridge cannot be reached from here; use `vif=[...]`"),
        "user" => no_user_network(),
        "tap" if tap_number(value.as_bytes()).is_none() => {
            refused("the stubdomain has no card to join it to; use `vif=[...]`")
        }
        "tap" => {
            let script = |key: &str| matches!(key, "script" | "downscript");
            let wrong = pairs.iter().any(|(k, v)| script(k) && v != "no");
            if !wrong {
                return Verdict::Kept;
            }
            let keep = pairs.iter().filter(|(key, _)| !script(key));
            let mut to: Vec<String> = keep.map(joined).collect();
            to.push("script=no,downscript=no".to_owned());
            Verdict::Changed {
                to: to.join(","),
                why: "the host's scripts are not in here".to_owned(),
            }
        }
        "hubport" => Verdict::Kept,
        _ => noted("reaches nothing outside the stubdomain, and QEMU may not have it"),
    }
}

/// A pair in QEMU's spelling, where a comma is doubled.
fn joined((key, value): &(String, String)) -> String {
    let comma = |text: &str| text.replace(',', ",,");
    match value.is_empty() {
        true => comma(key),
        false => format!("{}={}", comma(key), comma(value)),
    }
}

fn audiodev(value: &str) -> Verdict {
    let pairs = pairs(value.as_bytes());
    let kind = pairs.first().map(|(key, value)| match key.as_str() {
        "driver" => value.as_str(),
        key => key,
    });
    match kind.unwrap_or_default() {
        "none" | "wav" => Verdict::Kept,
        _ => {
            let id = pairs.iter().find(|(key, _)| key == "id").map(joined);
            Verdict::Changed {
                to: format!("none,{}", id.unwrap_or_default())
                    .trim_end_matches(',')
                    .to_owned(),
                why: "a stubdomain has no sound of the host's".to_owned(),
            }
        }
    }
}

fn incoming(raw: &[u8], value: &str) -> Verdict {
    if raw == INCOMING_PLACEHOLDER || value == "defer" {
        return Verdict::Kept;
    }
    refused("only the toolstack's own way of restoring reaches in here, over console 2")
}

#[cfg(test)]
mod tests;

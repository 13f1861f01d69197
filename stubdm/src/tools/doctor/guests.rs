//! The doctor's checks of each guest's configuration: xl's defaults that hurt a guest with a
//! stubdomain.

use std::fs;

use stubdm_image::elf::resolve;
use stubdm_image::modules::{Driver, Modules};
use stubdm_image::{PACKED_LEAST, least_memory, memory, read};

use super::checks::Host;
use super::{State, pci};
use crate::tools::xlcfg::{Settings, Value};

/// xl's default memory of a stubdomain, in MiB (`LIBXL_LINUX_STUBDOM_MEM`).
const DEFAULT_MEMORY: u64 = 128;

impl Host<'_> {
    /// Reads the configurations of guests with stubdomains in `/etc/xen` and of those that
    /// xendomains starts, by path. One that is in both folders counts once.
    pub(super) fn configured(&self) -> Vec<(String, Settings)> {
        let mut texts = Vec::new();
        let mut all = Vec::new();
        for (folder, end) in [("/etc/xen", ".cfg"), ("/etc/xen/auto", "")] {
            let mut paths: Vec<String> = resolve(self.root, folder)
                .and_then(|dir| Ok(fs::read_dir(dir)?))
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| format!("{folder}/{}", entry.file_name().to_string_lossy()))
                .filter(|path| path.ends_with(end))
                .collect();
            paths.sort();
            for path in paths {
                let file = resolve(self.root, &path).ok().filter(|file| file.is_file());
                let text = file
                    .and_then(|file| fs::read(file).ok())
                    .unwrap_or_default();
                let settings = Settings::parse(&String::from_utf8_lossy(&text));
                let with_stubdomain = settings.is_on("device_model_stubdomain_override")
                    || settings.text("stubdomain_ramdisk").is_some();
                if with_stubdomain && !texts.contains(&text) {
                    texts.push(text);
                    all.push((path, settings));
                }
            }
        }
        all
    }

    /// Each setting that keeps a guest from starting, or from doing what its owner expects.
    pub(super) fn guests(&mut self) {
        let newest = self.releases().last().copied();
        for (path, settings) in self.configured() {
            let mut said = false;
            for (state, found, mend) in self.objections(&settings, newest) {
                said = true;
                self.report("guest", state, format!("{path}: {found}"), &mend);
            }
            if !said {
                self.ok("guest", format!("{path}: nothing that hurts"));
            }
        }
    }

    fn objections(
        &self,
        settings: &Settings,
        newest: Option<(u32, u32)>,
    ) -> Vec<(State, String, String)> {
        let mut all = Vec::new();
        let mut report =
            |state, found: String, mend: &str| all.push((state, found, mend.to_owned()));
        if !settings.is_on("device_model_stubdomain_override") {
            report(
                State::Wrong,
                "names a stubdomain's ramdisk, but asks for no stubdomain".to_owned(),
                "device_model_stubdomain_override=1",
            );
        }
        let hvm = settings.text("type") == Some("hvm") || settings.text("builder") == Some("hvm");
        if !hvm {
            report(
                State::Wrong,
                "is no HVM guest, and only those have stubdomains".to_owned(),
                "type=\"hvm\"",
            );
        }
        let old = newest.is_some_and(|release| release <= (4, 20));
        if old && settings.text("device_model_version") != Some("qemu-xen") {
            report(
                State::Wrong,
                "names no device model, so that libxl up to 4.20 picks Mini-OS's".to_owned(),
                "device_model_version=\"qemu-xen\"",
            );
        }
        let screens = ["vnc", "sdl", "spice"].into_iter();
        // VNC is on unless it is switched off.
        let on =
            screens.filter(|name| settings.number(name).unwrap_or(u64::from(*name == "vnc")) != 0);
        for name in on {
            let default = match settings.number(name) {
                None => ", which is xl's default",
                Some(_) => "",
            };
            let off = format!("{name}=0 where nobody looks at it");
            let what = match name {
                "spice" => "a screen that nobody sees: a stubdomain serves VNC and SDL alone",
                _ => "the guest's screen",
            };
            // libxl 4.20 is installed with QEMU 10 where the file shows no version.
            let recent = newest.is_some_and(|release| release >= (4, 20));
            match self.serves_screens().unwrap_or(!recent) {
                false if name != "spice" => report(
                    State::Wrong,
                    format!(
                        "{name} is on{default}: \
                         with QEMU 9.1 or later such a guest does not start"
                    ),
                    &format!("stubdm-run install device-model, or {name}=0"),
                ),
                _ => report(
                    State::Note,
                    format!("{name} is on{default}: a QEMU stays in dom0 for {what}"),
                    &off,
                ),
            }
        }
        let given = settings.number("stubdomain_memory");
        let ramdisk = settings.text("stubdomain_ramdisk");
        let memory = ramdisk.and_then(|path| memory_for(&resolve(self.root, path).ok()?));
        let more = match words(settings, "pci").is_empty() {
            true => 0,
            false => pci::MEMORY,
        };
        let (wanted, least) = memory.unzip();
        let wanted = wanted.map(|wanted| wanted + more);
        let least = least.unwrap_or(PACKED_LEAST);
        let mend = |mib: u64| format!("stubdomain_memory={mib}");
        match (given.unwrap_or(DEFAULT_MEMORY), wanted) {
            (has, _) if has < least => report(
                State::Wrong,
                match given {
                    Some(has) => {
                        format!("gives the stubdomain {has} MiB, which is too little to start in")
                    }
                    None => format!(
                        "does not say stubdomain_memory, and xl's default of {DEFAULT_MEMORY} MiB is too little to start in"
                    ),
                },
                &mend(wanted.unwrap_or(least)),
            ),
            (has, Some(wanted)) if has < wanted => report(
                State::Note,
                format!("gives the stubdomain {has} MiB, which leaves QEMU little"),
                &mend(wanted),
            ),
            _ => {}
        }
        if let Some((found, mend)) = self.lacks(settings) {
            report(State::Wrong, found, &mend);
        }
        let of_the_host = self.of_the_host(settings).into_iter();
        for (found, state, mend) in of_the_host.chain(self.pci_of(settings)) {
            report(state, found, &mend);
        }
        if settings.get("serial").is_none() {
            report(
                State::Note,
                "has no serial port, and the screen stays black: the guest can be reached by its network only".to_owned(),
                "serial=\"pty\", then xl console",
            );
        }
        all
    }

    /// Reports a file that the stubdomain does not start without.
    fn lacks(&self, settings: &Settings) -> Option<(String, String)> {
        let printed = "image build prints the line for a kernel that is installed".to_owned();
        let own = |name: &str| name.replace("-rootfs", "-kernel");
        let own: Vec<_> = self.ramdisk_places().iter().map(|name| own(name)).collect();
        match settings.text("stubdomain_kernel") {
            Some(path) if !self.has(path) => {
                return Some((
                    format!("its stubdomain_kernel {path} is not there"),
                    printed,
                ));
            }
            None if !own.is_empty() && !own.iter().any(|path| self.has(path)) => {
                let own = own.join(", ");
                let found =
                    format!("names no stubdomain_kernel, and libxl's own is missing: {own}");
                return Some((found, printed));
            }
            _ => {}
        }
        let card = settings.text("vga").filter(|card| *card == "qxl")?;
        let ramdisk = resolve(self.root, settings.text("stubdomain_ramdisk")?).ok()?;
        let listing = read::listing(&read::contents(&ramdisk).ok()?).ok()?;
        let rom = format!("vgabios-{card}.bin");
        let there = |entry: &read::Entry| entry.path.ends_with(&format!("/{rom}"));
        (!listing.entries.iter().any(there)).then(|| {
            (
                format!("vga=\"{card}\" needs {rom}, which its ramdisk lacks: QEMU ends"),
                format!("vga=\"stdvga\", or install {rom} (Debian: seabios) and image build"),
            )
        })
    }

    /// Reports settings that ask for a part of the host, which a stubdomain's QEMU does not have.
    fn of_the_host(&self, settings: &Settings) -> Vec<(String, State, String)> {
        let mut all = Vec::new();
        let mut report =
            |state, found: String, mend: &str| all.push((found, state, mend.to_owned()));
        for name in ["kernel", "ramdisk", "cmdline"] {
            if settings.get(name).is_some() {
                report(
                    State::Wrong,
                    format!(
                        "{name} is for a kernel that QEMU would load from the host's files: the stubdomain ends"
                    ),
                    &format!("remove {name}; boot from a disk"),
                );
            }
        }
        let usb = words(settings, "usbdevice");
        if usb.iter().any(|word| word.contains(':')) {
            report(
                State::Wrong,
                format!("usbdevice={usb:?} names a USB device of the host's: the stubdomain ends"),
                "keep \"tablet\", \"mouse\" and \"keyboard\" only",
            );
        }
        if settings.get("usbdev").is_some() {
            report(
                State::Note,
                "usbdev names USB devices of the host's, which a stubdomain's QEMU does not reach"
                    .to_owned(),
                "usbctrl=[\"type=pv\"] gives them to the guest's own drivers",
            );
        }
        if let Some(sound) = settings.text("soundhw").filter(|name| !name.is_empty()) {
            report(
                State::Note,
                format!("soundhw=\"{sound}\": the guest has the card, and its sound goes nowhere"),
                "remove soundhw",
            );
        }
        if settings
            .number("spiceusbredirection")
            .is_some_and(|count| count != 0)
        {
            report(
                State::Note,
                "spiceusbredirection is left out: a stubdomain has no SPICE".to_owned(),
                "spiceusbredirection=0",
            );
        }
        for disk in words(settings, "disk") {
            if let Some(why) = by_qemu(&disk) {
                report(
                    State::Note,
                    format!("disk {disk:?} {why}: a QEMU stays in dom0 for it"),
                    "a block device, raw: losetup for a file, qemu-nbd for other formats",
                );
            }
        }
        if let Some(version) = self.restricts(settings) {
            report(
                State::Wrong,
                format!(
                    "its kernel, Linux {version}, has xen-privcmd built in and restricts it (XSA-482): QEMU cannot start"
                ),
                "add xen_privcmd.unrestricted=1 to stubdomain_cmdline",
            );
        }
        all
    }

    /// Returns the version of a guest's stubdomain kernel if it restricts a built-in xen-privcmd,
    /// and the command line does not lift the restriction.
    fn restricts(&self, settings: &Settings) -> Option<String> {
        let version = self.version_of(settings.text("stubdomain_kernel")?)?;
        let modules = Modules::find(self.root, &version).ok()?;
        let line = settings.text("stubdomain_cmdline").unwrap_or_default();
        let lifts = line.split_whitespace().any(|word| {
            word.strip_prefix("xen_privcmd.unrestricted")
                .is_some_and(|rest| matches!(rest, "" | "=1" | "=y" | "=Y" | "=on"))
        });
        let names = modules.parameters("xen-privcmd").ok()?;
        let restricts = modules.driver("xen-privcmd") == Driver::BuiltIn
            && names.iter().any(|name| name == "unrestricted");
        (restricts && !lifts).then_some(version)
    }
}

/// Returns the texts of a setting, one or a list.
pub(super) fn words(settings: &Settings, name: &str) -> Vec<String> {
    match settings.get(name) {
        Some(Value::Scalar(word)) => vec![word.clone()],
        Some(Value::List(words)) => words.clone(),
        None => Vec::new(),
    }
}

/// Returns the reason why a disk needs a QEMU in dom0, if it does. A disk is `target, format, vdev,
/// access`, or pairs, or has an old prefix (`xl-disk-configuration(5)`).
fn by_qemu(disk: &str) -> Option<&'static str> {
    let parts: Vec<&str> = disk.split(',').map(str::trim).collect();
    let has = |word: &str| parts.iter().any(|part| part.eq_ignore_ascii_case(word));
    if has("backendtype=qdisk") {
        return Some("asks for a qdisk");
    }
    let formats = ["qcow", "qcow2", "vhd", "qed"];
    let formatted = |name: &&&str| {
        let end = format!("format={name}");
        parts.iter().skip(1).any(|part| part == *name)
            || has(&end)
            || disk.starts_with(&format!("{name}:"))
    };
    let other = formats.iter().find(formatted).is_some();
    if other && !has("backendtype=tap") {
        return Some("has a format that only QEMU reads");
    }
    let first = parts.first().copied().unwrap_or_default();
    let target = parts.iter().find_map(|part| part.strip_prefix("target="));
    let target = target.unwrap_or(first);
    let plain = target
        .trim_start_matches("file:")
        .trim_start_matches("raw:");
    let is_file = plain.starts_with('/') && !plain.starts_with("/dev/");
    (is_file && !parts.iter().any(|part| part.starts_with("script="))).then_some("is a file")
}

/// Returns the memory that `image build` would print for a ramdisk and the least that it starts in,
/// in MiB.
fn memory_for(file: &std::path::Path) -> Option<(u64, u64)> {
    let data = read::contents(file).ok()?;
    let listing = read::listing(&data).ok()?;
    let packed = listing.packed;
    let wanted = memory(listing.unpacked, data.len() as u64, packed);
    Some((wanted, least_memory(wanted, packed)))
}

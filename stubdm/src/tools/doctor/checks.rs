//! The things the doctor looks at, in the order in which a person would mend them.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Check, DoctorOptions, State};
use crate::image::elf::resolve;
use crate::image::modules::Modules;
use crate::image::read;
use crate::init::qemu;

/// Where libxl looks for the program that carries QMP.
const PROXY: &str = "/usr/bin/vchan-socket-proxy";

/// The least memory that dom0 should have left, in KiB.
const SPARE: u64 = 128 << 10;

struct Host<'a> {
    root: &'a Path,
    checks: Vec<Check>,
}

pub(super) fn all(options: &DoctorOptions) -> Vec<Check> {
    let mut host = Host {
        root: &options.root,
        checks: Vec::new(),
    };
    host.xen();
    host.hvm();
    host.devices();
    host.store();
    host.toolstack();
    host.proxy();
    host.qemu();
    host.folders();
    host.privcmd();
    host.images(options.image.as_deref());
    host.memory();
    host.checks
}

impl Host<'_> {
    fn text(&self, path: &str) -> Option<String> {
        fs::read_to_string(resolve(self.root, path).ok()?).ok()
    }

    fn has(&self, path: &str) -> bool {
        resolve(self.root, path).is_ok()
    }

    fn say(&mut self, name: &'static str, state: State, found: impl Into<String>, mend: &str) {
        self.checks.push(Check {
            name,
            state,
            found: found.into(),
            mend: mend.to_owned(),
        });
    }

    fn ok(&mut self, name: &'static str, found: impl Into<String>) {
        self.say(name, State::Ok, found, "");
    }

    fn xen(&mut self) {
        let number = |part: &str| self.text(&format!("/sys/hypervisor/version/{part}"));
        let version = match (number("major"), number("minor")) {
            (Some(major), Some(minor)) => format!("Xen {}.{}", major.trim(), minor.trim()),
            _ => "Xen".to_owned(),
        };
        let control = self
            .text("/proc/xen/capabilities")
            .is_some_and(|text| text.contains("control_d"));
        if control {
            return self.ok("xen", format!("{version}, and this is its control domain"));
        }
        match self.text("/sys/hypervisor/type").as_deref().map(str::trim) {
            Some("xen") => self.say(
                "xen",
                State::Wrong,
                "Xen, but /proc/xen/capabilities does not say control_d",
                "guests are started from dom0; there, mount xenfs: mount -t xenfs xenfs /proc/xen",
            ),
            _ => self.say(
                "xen",
                State::Wrong,
                "this machine does not run under Xen",
                "install a hypervisor (Debian: xen-system-amd64) and boot its entry",
            ),
        }
    }

    fn hvm(&mut self) {
        match self.text("/sys/hypervisor/properties/capabilities") {
            Some(text) if text.contains("hvm-") => {
                self.ok("hvm", "this processor can run HVM guests");
            }
            Some(_) => self.say(
                "hvm",
                State::Wrong,
                "Xen offers no HVM guests",
                "switch on virtualisation (VT-x, AMD-V) in the machine's firmware",
            ),
            // Without Xen that is said already.
            None => {}
        }
    }

    fn devices(&mut self) {
        let needed = [
            ("evtchn", "xen-evtchn"),
            ("gntdev", "xen-gntdev"),
            ("privcmd", "xen-privcmd"),
        ];
        let missing: Vec<_> = needed
            .iter()
            .filter(|(device, _)| !self.has(&format!("/dev/xen/{device}")))
            .collect();
        if missing.is_empty() {
            return self.ok("devices", "/dev/xen/evtchn, gntdev and privcmd");
        }
        let paths: Vec<_> = missing
            .iter()
            .map(|(d, _)| format!("/dev/xen/{d}"))
            .collect();
        let modules: Vec<_> = missing.iter().map(|(_, module)| *module).collect();
        let found = format!("no {}", paths.join(", "));
        let mend = format!("modprobe -a {}", modules.join(" "));
        self.say("devices", State::Wrong, found, &mend);
    }

    fn store(&mut self) {
        let ways = [
            "/run/xenstored/socket",
            "/var/run/xenstored/socket",
            "/dev/xen/xenbus",
        ];
        match ways.iter().find(|path| self.has(path)) {
            Some(way) => self.ok("store", format!("xenstore at {way}")),
            None => self.say(
                "store",
                State::Wrong,
                "no xenstore",
                "start xenstored (Debian: systemctl start xen; its package is xen-utils-common)",
            ),
        }
    }

    fn toolstack(&mut self) {
        let releases = self.releases();
        let Some((major, minor)) = releases.last().copied() else {
            return self.say(
                "libxl",
                State::Wrong,
                "no toolstack below /usr/lib/xen-*",
                "install xl (Debian: xen-utils-common with xen-utils-VERSION)",
            );
        };
        let found = format!("Xen {major}.{minor}'s toolstack");
        match (major, minor) {
            (..=3, _) | (4, ..=13) => self.say(
                "libxl",
                State::Wrong,
                format!("{found}, which knows no Linux stubdomains"),
                "Xen 4.14 is the first that does",
            ),
            (4, 14..=20) => self.say(
                "libxl",
                State::Note,
                found,
                "guests with a stubdomain have to say device_model_version=\"qemu-xen\"",
            ),
            _ => self.ok("libxl", found),
        }
    }

    /// The releases whose toolstacks are installed, sorted.
    fn releases(&self) -> Vec<(u32, u32)> {
        let Some(entries) = resolve(self.root, "/usr/lib")
            .ok()
            .and_then(|dir| fs::read_dir(dir).ok())
        else {
            return Vec::new();
        };
        let mut all: Vec<_> = entries
            .flatten()
            .filter(|entry| entry.path().join("bin").is_dir())
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let (major, minor) = name.strip_prefix("xen-")?.split_once('.')?;
                Some((major.parse().ok()?, minor.parse().ok()?))
            })
            .collect();
        all.sort_unstable();
        all
    }

    fn proxy(&mut self) {
        let link = "ln -s PATH_OF_STUBDM-RUN /usr/bin/vchan-socket-proxy, after dpkg-divert --local --rename --add \
                    /usr/bin/vchan-socket-proxy where a package owns it";
        match resolve(self.root, PROXY) {
            Err(_) => self.say(
                "proxy",
                State::Wrong,
                format!("no {PROXY}, which libxl starts for every stubdomain"),
                link,
            ),
            Ok(file) if is_ours(&file) => self.ok("proxy", format!("{PROXY} is stubdm-run")),
            Ok(_) => self.say(
                "proxy",
                State::Note,
                format!("{PROXY} is not stubdm-run"),
                link,
            ),
        }
    }

    fn qemu(&mut self) {
        match self.has(qemu::DEFAULT) {
            true => self.ok("qemu", qemu::DEFAULT),
            false => self.say(
                "qemu",
                State::Wrong,
                format!(
                    "no {}, which ramdisks are made with and dom0 serves consoles with",
                    qemu::DEFAULT
                ),
                "install QEMU for Xen (Debian: qemu-system-xen)",
            ),
        }
    }

    fn folders(&mut self) {
        let missing: Vec<_> = ["/run/xen", "/var/lib/xen", "/var/log/xen"]
            .into_iter()
            .filter(|path| !self.has(path))
            .collect();
        match missing.is_empty() {
            true => self.ok("folders", "/run/xen, /var/lib/xen and /var/log/xen"),
            false => {
                let mend = format!("mkdir -p {}", missing.join(" "));
                let found = format!("no {}", missing.join(", "));
                self.say("folders", State::Wrong, found, &mend);
            }
        }
    }

    /// XSA-482: kernels from 2026 on refuse plain hypercalls to every domU's userspace. QEMU in a stubdomain needs them.
    fn privcmd(&mut self) {
        for version in Modules::versions(self.root) {
            let config = self
                .text(&format!("/boot/config-{version}"))
                .unwrap_or_default();
            if config.lines().any(|line| line == "CONFIG_XEN_PRIVCMD=y") {
                self.say(
                    "privcmd",
                    State::Note,
                    format!("Linux {version} has xen-privcmd built in; if it restricts it (XSA-482), QEMU cannot start"),
                    "add xen_privcmd.unrestricted=1 to stubdomain_cmdline",
                );
                continue;
            }
            let module = Modules::find(self.root, &version)
                .and_then(|modules| modules.parameters("xen-privcmd"));
            match module {
                Ok(names) if names.iter().any(|name| name == "unrestricted") => self.ok(
                    "privcmd",
                    format!("Linux {version} restricts it in domUs (XSA-482); the stubdomain's init lifts that for QEMU"),
                ),
                Ok(_) => self.ok("privcmd", format!("Linux {version} does not restrict it (before XSA-482)")),
                Err(error) => self.say(
                    "privcmd",
                    State::Note,
                    format!("Linux {version}: {error:#}"),
                    "a stubdomain cannot use this kernel",
                ),
            }
        }
    }

    /// The ramdisks that guests are configured with, libxl's own place for one, and one that was named.
    fn images(&mut self, named: Option<&Path>) {
        let mut all: Vec<(String, Option<PathBuf>)> = Vec::new();
        if let Some(path) = named {
            all.push((path.display().to_string(), Some(path.to_owned())));
        }
        let mut add = |path: String| {
            if !all.iter().any(|(known, _)| *known == path) {
                let file = resolve(self.root, &path).ok();
                all.push((path, file));
            }
        };
        self.configured().into_iter().for_each(&mut add);
        for (major, minor) in self.releases() {
            let default = format!("/usr/lib/xen-{major}.{minor}/boot/qemu-stubdom-linux-rootfs");
            if self.has(&default) {
                add(default);
            }
        }
        let build = "stubdm-run image build -o FILE";
        if all.is_empty() {
            return self.say(
                "image",
                State::Wrong,
                "no guest in /etc/xen/*.cfg names a stubdomain_ramdisk, and none is in libxl's own place",
                build,
            );
        }
        for (path, file) in all {
            let Some(file) = file else {
                self.say("image", State::Wrong, format!("there is no {path}"), build);
                continue;
            };
            match look_into(&file) {
                Ok(found) => self.ok("image", format!("{path}: {found}")),
                Err(why) => self.say("image", State::Wrong, format!("{path}: {why}"), build),
            }
        }
    }

    /// What `stubdomain_ramdisk=` says in the guests' configurations.
    fn configured(&self) -> Vec<String> {
        let Some(entries) = resolve(self.root, "/etc/xen")
            .ok()
            .and_then(|dir| fs::read_dir(dir).ok())
        else {
            return Vec::new();
        };
        let mut all = Vec::new();
        for entry in entries.flatten() {
            if entry.path().extension().is_none_or(|end| end != "cfg") {
                continue;
            }
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            for line in text.lines() {
                let value = line.trim().strip_prefix("stubdomain_ramdisk");
                let value = value.and_then(|rest| rest.trim_start().strip_prefix('='));
                let Some(value) = value else { continue };
                let value = value.trim_start();
                let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''));
                let inner = quote.and_then(|quote| value.get(1..)?.split(quote).next());
                all.extend(inner.filter(|path| !path.is_empty()).map(str::to_owned));
            }
        }
        all.sort();
        all
    }

    fn memory(&mut self) {
        let text = self.text("/proc/meminfo").unwrap_or_default();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("MemAvailable:"));
        let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        match kib {
            Some(kib) if kib < SPARE => self.say(
                "memory",
                State::Note,
                format!("{} MiB are left for dom0 itself", kib >> 10),
                "give dom0 more (dom0_mem= on Xen's command line): it builds every guest",
            ),
            Some(kib) => self.ok(
                "memory",
                format!("{} MiB are left for dom0 itself", kib >> 10),
            ),
            None => {}
        }
    }
}

/// Whether a program is this one, by its name or by the words it complains with.
fn is_ours(file: &Path) -> bool {
    let named = file.file_name().is_some_and(|name| name == "stubdm-run");
    let mark = b"stubdm-run: ";
    named || fs::read(file).is_ok_and(|data| data.windows(mark.len()).any(|part| part == mark))
}

/// Whether a ramdisk has what a stubdomain needs.
fn look_into(file: &Path) -> Result<String, String> {
    let data = fs::read(file).map_err(|error| error.to_string())?;
    let listing = read::listing(&data).map_err(|error| format!("{error:#}"))?;
    let has = |end: &str| {
        listing
            .entries
            .iter()
            .any(|entry| entry.path.ends_with(end))
    };
    for (end, what) in [
        ("init", "an init"),
        ("bin/stubdm-run", "stubdm-run"),
        ("xen-qemu-system-i386", "QEMU"),
        ("dev/null", "the node /dev/null"),
        ("xen-privcmd.ko", "the module xen-privcmd"),
        ("xen-gntalloc.ko", "the module xen-gntalloc"),
        ("xen-evtchn.ko", "the module xen-evtchn"),
    ] {
        if !has(end) {
            return Err(format!("it lacks {what}"));
        }
    }
    let (count, size) = (listing.entries.len(), data.len() as f64 / 1_048_576.0);
    Ok(format!(
        "{count} entries, {size:.1} MiB, all that a stubdomain needs"
    ))
}

//! The doctor's checks of stubdomains: their kernels, and their ramdisks.

use std::path::{Path, PathBuf};

use stubdm_image::elf::{inside, resolve};
use stubdm_image::modules::{Driver, Modules};
use stubdm_image::{firmware, kernel, read};

use super::State;
use super::checks::Host;

impl Host<'_> {
    /// XSA-482: kernels from 2026 on refuse plain hypercalls to every domU's userspace. QEMU in a
    /// stubdomain needs them.
    pub(super) fn privcmd(&mut self) {
        for version in Modules::versions(self.root) {
            let modules = Modules::find(self.root, &version);
            if let Ok(modules) = &modules
                && modules.driver("xen-privcmd") == Driver::BuiltIn
            {
                self.built_in_privcmd(&version, modules);
                continue;
            }
            let module = modules.and_then(|modules| modules.parameters("xen-privcmd"));
            match module {
                Ok(names) if names.iter().any(|name| name == "unrestricted") => self.ok(
                    "privcmd",
                    format!("Linux {version} restricts it in domUs (XSA-482); the stubdomain's init lifts that for QEMU"),
                ),
                Ok(_) => self.ok("privcmd", format!("Linux {version} does not restrict it (before XSA-482)")),
                Err(error) => self.report(
                    "privcmd",
                    State::Note,
                    format!("Linux {version}: {error:#}"),
                    "a stubdomain cannot use this kernel",
                ),
            }
        }
    }

    fn built_in_privcmd(&mut self, version: &str, modules: &Modules) {
        let restricts = match modules.parameters("xen-privcmd") {
            Ok(names) if names.iter().any(|name| name == "unrestricted") => "restricts it",
            Ok(_) => {
                let found = format!(
                    "Linux {version} has xen-privcmd built in and does not restrict it (before XSA-482)"
                );
                return self.ok("privcmd", found);
            }
            Err(_) => "may restrict it",
        };
        self.report(
            "privcmd",
            State::Note,
            format!("Linux {version} has xen-privcmd built in and {restricts} (XSA-482): then QEMU cannot start"),
            "add xen_privcmd.unrestricted=1 to stubdomain_cmdline",
        );
    }

    /// Checks the ramdisks that guests are configured with, libxl's own place for one, and one that
    /// was named; each with the kernel that belongs to it.
    pub(super) fn images(&mut self, named: Option<&Path>) {
        let mut all: Vec<(String, Option<PathBuf>, Option<String>)> = Vec::new();
        if let Some(path) = named {
            all.push((path.display().to_string(), Some(path.to_owned()), None));
        }
        let mut add = |path: String, kernel: Option<String>| {
            let own = |(known, _, with): &(String, _, Option<String>)| {
                *known == path && (*with == kernel || kernel.is_none())
            };
            if !all.iter().any(own) {
                let file = resolve(self.root, &path).ok();
                all.push((path, file, kernel));
            }
        };
        for (_, settings) in self.configured() {
            if let Some(path) = settings.text("stubdomain_ramdisk") {
                let kernel = settings.text("stubdomain_kernel").map(str::to_owned);
                add(path.to_owned(), kernel);
            }
        }
        for default in self.ramdisk_places() {
            if self.has(&default) {
                let kernel = default.replace("-rootfs", "-kernel");
                add(default, Some(kernel));
            }
        }
        let build =
            "stubdm-run image build -o /var/lib/stubdm/stubdom.img, then stubdm-run install image";
        if all.is_empty() {
            return self.report(
                "image",
                State::Wrong,
                "no guest in /etc/xen/*.cfg and /etc/xen/auto names a stubdomain_ramdisk, and none is in libxl's own place",
                build,
            );
        }
        for (path, file, kernel) in all {
            let Some(file) = file else {
                self.report("image", State::Wrong, format!("there is no {path}"), build);
                continue;
            };
            match self.look_into(&file, kernel.as_deref()) {
                Ok(found) => self.ok("image", format!("{path}: {found}")),
                Err((state, why)) => self.report("image", state, format!("{path}: {why}"), build),
            }
        }
    }

    /// Checks that a ramdisk has what a stubdomain needs with its kernel.
    fn look_into(&self, file: &Path, kernel: Option<&str>) -> Result<String, (State, String)> {
        let wrong = |why: String| (State::Wrong, why);
        let data = read::contents(file).map_err(|error| wrong(error.to_string()))?;
        let listing = read::listing(&data).map_err(|error| wrong(format!("{error:#}")))?;
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
        ] {
            if !has(end) {
                return Err(wrong(format!("it lacks {what}")));
            }
        }
        for rom in firmware::NEEDED {
            if !has(&format!("/{rom}")) {
                return Err(wrong(format!(
                    "it lacks {rom}: no guest with that graphics card starts"
                )));
            }
        }
        let version = kernel.and_then(|path| self.version_of(path));
        let modules = version
            .as_deref()
            .and_then(|version| Modules::find(self.root, version).ok());
        let mut unknown = Vec::new();
        for name in ["xen-privcmd", "xen-gntalloc", "xen-evtchn"] {
            if has(&format!("{name}.ko")) {
                continue;
            }
            match modules.as_ref().map(|modules| modules.driver(name)) {
                Some(Driver::BuiltIn) => {}
                Some(Driver::Module | Driver::Absent) => {
                    return Err(wrong(format!(
                        "it lacks the module {name}, which is not built into Linux {}",
                        version.unwrap_or_default()
                    )));
                }
                Some(Driver::Unknown) | None => unknown.push(name),
            }
        }
        let other = listing
            .kernels
            .iter()
            .find(|own| Some(*own) != version.as_ref());
        if let (Some(version), Some(other)) = (&version, other) {
            return Err(wrong(format!(
                "its modules are for Linux {other}, and its kernel {} is Linux {version}",
                kernel.unwrap_or_default()
            )));
        }
        if !unknown.is_empty() {
            let why = format!(
                "it lacks the modules {}; whether its kernel ({}) has them built in was not found out",
                unknown.join(", "),
                kernel.unwrap_or("not named")
            );
            return Err((State::Note, why));
        }
        let missing: Vec<_> = firmware::card_roms()
            .filter(|rom| !has(&format!("/{rom}")))
            .collect();
        if !missing.is_empty() {
            let why = format!(
                "it lacks the boot ROMs {}: such network cards work, and no guest boots by them",
                missing.join(", ")
            );
            return Err((State::Note, why));
        }
        let (count, size) = (listing.entries.len(), data.len() as f64 / 1_048_576.0);
        Ok(format!(
            "{count} entries, {size:.1} MiB, all that a stubdomain needs"
        ))
    }

    /// Returns the version of the kernel at a path: of its header, or else of its name.
    pub(super) fn version_of(&self, path: &str) -> Option<String> {
        let path = inside(self.root, path).ok()?;
        let name = path.rsplit('/').next()?;
        let named = name
            .strip_prefix("vmlinuz-")
            .or_else(|| name.strip_prefix("vmlinux-"));
        kernel::version_of(&self.root.join(&path)).or_else(|| named.map(str::to_owned))
    }
}

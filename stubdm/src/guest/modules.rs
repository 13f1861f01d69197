//! Kernel modules: what a stock kernel keeps apart and a device model needs.
//!
//! `/lib/modules/order`, if it is there, lists files under `/lib/modules` in the order to load
//! them, one a line. Otherwise the names are searched for anywhere under `/lib/modules`, with the
//! modules that `modules.dep` lists as their dependencies.
//!
//! # xen-privcmd's restriction (XSA-482)
//! Kernels from 2026 on let `/dev/xen/privcmd` in a domU act on the domain named by the store's
//! `target` only, and then refuse plain hypercalls. QEMU does not work under that restriction:
//! libxendevicemodel probes with an invalid domain id, takes the refusal for an old kernel and
//! falls back to plain hypercalls, which are refused as well. So the module is loaded with
//! `unrestricted=1`. The hypervisor bounds what that permits: a stubdomain is privileged over its
//! guest and nothing else. A module that has no such parameter is loaded without it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use tracing::{debug, info, warn};

use crate::rt::error::{Context, Failure, Result};

const ROOT: &str = "/lib/modules";
/// The module whose restriction is lifted.
const PRIVCMD: &str = "xen_privcmd";
/// The module of which one device is used. Each takes memory.
const LOOP: &str = "loop";

/// Modules to look for when there is no order file. `true`: QEMU cannot work without it.
const WANTED: &[(&str, bool)] = &[
    ("xen-privcmd", true),
    ("xenfs", false),
    ("xen-evtchn", true),
    ("xen-gntdev", true),
    ("xen-gntalloc", true),
    ("xen-blkfront", true),
    ("xen-netfront", false),
    ("macvtap", false),
    ("xen-pcifront", false),
    ("xen-fbfront", false),
    ("xen-kbdfront", false),
    ("evdev", false),
];

/// Modules that only a guest with a network card needs.
const NETWORK: &[&str] = &["xen_netfront", "macvlan", "tap", "macvtap"];

/// Modules that only a guest with PCI devices of the host needs.
const PCI: &[&str] = &["xen_pcifront"];

/// Modules that only a guest with a screen needs.
const SCREEN: &[&str] = &["xen_fbfront", "xen_kbdfront", "evdev"];

/// The modules of this root, in the order to load them.
#[derive(Debug)]
pub struct Plan {
    basic: Vec<PathBuf>,
    network: Vec<PathBuf>,
    pci: Vec<PathBuf>,
    screen: Vec<PathBuf>,
}

impl Plan {
    /// Finds out what there is.
    pub fn make() -> Self {
        let all = match fs::read_to_string(format!("{ROOT}/order")) {
            Ok(order) => listed(Path::new(ROOT), &order),
            Err(_) => searched(Path::new(ROOT)),
        };
        let is_one_of = |names: &'static [&str]| {
            move |path: &PathBuf| {
                let name = path.to_str().and_then(module_name);
                name.is_some_and(|name| names.contains(&name.as_str()))
            }
        };
        let (network, rest): (_, Vec<_>) = all.into_iter().partition(is_one_of(NETWORK));
        let (pci, rest): (_, Vec<_>) = rest.into_iter().partition(is_one_of(PCI));
        let (screen, basic) = rest.into_iter().partition(is_one_of(SCREEN));
        Self {
            basic,
            network,
            pci,
            screen,
        }
    }

    /// Loads what every guest needs; `restricted` loads xen-privcmd without `unrestricted=1`.
    pub fn load(&self, restricted: bool) {
        load_each(&self.basic, restricted);
    }

    /// Loads what a guest with a network card needs.
    pub fn load_network(&self) {
        load_each(&self.network, false);
    }

    /// Loads what a guest with a screen needs.
    pub fn load_screen(&self) {
        load_each(&self.screen, false);
    }

    /// Loads what a guest with PCI devices of the host's needs.
    pub fn load_pci(&self) {
        load_each(&self.pci, false);
    }
}

/// Loads the modules listed in the file `order` of a folder and removes their files, which take
/// memory.
///
/// # Errors
/// A module cannot be read, or the kernel refuses it.
pub fn load_and_remove(folder: &Path) -> Result<()> {
    let order = folder.join("order");
    let order = fs::read_to_string(&order).context(order.display())?;
    for path in listed(folder, &order) {
        let failed = |errno: Errno| Failure::new(errno.desc());
        load(&path, false)
            .map_err(failed)
            .context(format_args!("loading {}", path.display()))?;
        let _ = fs::remove_file(&path);
    }
    Ok(())
}

/// Loads each module. A missing one is a line in the log: it may be built in, and if it is not,
/// opening its device gives the clearer error.
fn load_each(paths: &[PathBuf], restricted: bool) {
    for path in paths {
        match load(path, restricted) {
            Ok(()) => debug!("loaded {}", path.display()),
            Err(errno) => warn!("loading {}: {}", path.display(), errno.desc()),
        }
    }
}

/// The files of an order list; a path that leaves the directory is passed over.
fn listed(root: &Path, order: &str) -> Vec<PathBuf> {
    let words = order
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    words
        .filter(|name| !name.starts_with('#') && !name.split('/').any(|part| part == ".."))
        .map(|name| root.join(name.trim_start_matches('/')))
        .collect()
}

/// Returns the wanted modules and their dependencies, dependencies first.
fn searched(root: &Path) -> Vec<PathBuf> {
    let mut files = HashMap::new();
    let mut needs = HashMap::new();
    collect(root, 6, &mut files, &mut needs);
    let mut plan = Vec::new();
    for (name, essential) in WANTED {
        if !files.contains_key(&plain(name)) {
            let weight = if *essential {
                " (built in, or QEMU will fail)"
            } else {
                ""
            };
            info!("no module {name} under {}{weight}", root.display());
        }
        plan_for(&plain(name), &files, &needs, &mut plan, 16);
    }
    plan
}

fn plan_for(
    name: &str,
    files: &HashMap<String, PathBuf>,
    needs: &HashMap<String, Vec<String>>,
    plan: &mut Vec<PathBuf>,
    depth: usize,
) {
    let Some(path) = files.get(name) else { return };
    if plan.contains(path) || depth == 0 {
        return;
    }
    for need in needs.get(name).into_iter().flatten() {
        plan_for(need, files, needs, plan, depth - 1);
    }
    plan.push(path.clone());
}

/// A module's name: the kernel takes `-` and `_` for the same.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

/// The name of the module in a file `NAME.ko` or `NAME.ko.xz`.
fn module_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let (name, rest) = file.split_once(".ko")?;
    matches!(rest, "" | ".xz" | ".zst" | ".gz").then(|| plain(name))
}

fn collect(
    dir: &Path,
    depth: usize,
    files: &mut HashMap<String, PathBuf>,
    needs: &mut HashMap<String, Vec<String>>,
) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let Some(text) = path.to_str() else { continue };
        // Not followed: a kernel tree's `build` link leads out of here.
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        if kind.is_dir() && depth > 0 {
            collect(&path, depth - 1, files, needs);
        } else if text.ends_with("/modules.dep") {
            needs.extend(dependencies(&fs::read_to_string(&path).unwrap_or_default()));
        } else if let Some(name) = module_name(text) {
            files.insert(name, path);
        }
    }
}

/// Reads `modules.dep`: `path/a.ko: path/b.ko path/c.ko`, needing all that is named.
fn dependencies(text: &str) -> HashMap<String, Vec<String>> {
    let line = |line: &str| {
        let (module, needs) = line.split_once(':')?;
        let mut needs: Vec<String> = needs.split_whitespace().filter_map(module_name).collect();
        // depmod names the nearest first.
        needs.reverse();
        Some((module_name(module)?, needs))
    };
    text.lines().filter_map(line).collect()
}

/// Loads one file.
fn load(path: &Path, restricted: bool) -> nix::Result<()> {
    let name = path.to_str().and_then(module_name).unwrap_or_default();
    let errno = |e: std::io::Error| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    let file = File::open(path).map_err(errno)?;
    let compressed = path.extension().is_some_and(|end| end != "ko");
    // MODULE_INIT_COMPRESSED_FILE, which nix has no name for.
    let flags = ModuleInitFlags::from_bits_retain(if compressed { 4 } else { 0 });
    let mut parameters = c"";
    if name == LOOP {
        parameters = c"max_loop=1";
    } else if name == PRIVCMD && restricted {
        info!("xen-privcmd stays restricted, as it was asked to (XSA-482)");
    } else if name == PRIVCMD {
        let known = compressed || fs::read(path).is_ok_and(|file| supports_restriction(&file));
        if known {
            info!("loading xen-privcmd with unrestricted=1: QEMU needs plain hypercalls (XSA-482)");
            parameters = c"unrestricted=1";
        } else {
            info!("this kernel's xen-privcmd has no restriction to lift (XSA-482)");
        }
    }
    match finit_module(&file, parameters, flags) {
        Err(Errno::EEXIST) if name == PRIVCMD => {
            info!(
                "xen-privcmd was there before us; if it is restricted (XSA-482), QEMU will not get \
                   far without xen_privcmd.unrestricted=1 on the kernel's command line"
            );
            Ok(())
        }
        Err(Errno::EEXIST) => Ok(()),
        other => other,
    }
}

/// Returns whether a module file describes the parameter that lifts the restriction.
fn supports_restriction(file: &[u8]) -> bool {
    let word = b"parmtype=unrestricted:";
    file.windows(word.len()).any(|window| window == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_any_spelling() {
        assert_eq!(
            module_name("kernel/drivers/xen/xen-evtchn.ko"),
            Some("xen_evtchn".into())
        );
        assert_eq!(module_name("tun.ko.xz"), Some("tun".into()));
        assert_eq!(module_name("a.ko.orig"), None);
        assert_eq!(module_name("modules.dep"), None);
    }

    #[test]
    fn an_order_list_is_kept_and_cannot_leave_the_directory() {
        let plan = listed(
            Path::new("/m"),
            "xen-privcmd.ko\n\n# no\n../x.ko\nsub/tun.ko extra\n",
        );
        assert_eq!(
            plan,
            [
                PathBuf::from("/m/xen-privcmd.ko"),
                PathBuf::from("/m/sub/tun.ko")
            ]
        );
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("6.1.0/kernel/net");
        fs::create_dir_all(&deep).unwrap();
        for name in [
            "macvtap.ko",
            "tap.ko",
            "macvlan.ko",
            "xenfs.ko",
            "xen-privcmd.ko",
        ] {
            fs::write(deep.join(name), "").unwrap();
        }
        let dep = "kernel/net/macvtap.ko: kernel/net/tap.ko kernel/net/macvlan.ko\n\
                   kernel/net/tap.ko: kernel/net/macvlan.ko\nkernel/net/macvlan.ko:\n\
                   kernel/net/xenfs.ko: kernel/net/xen-privcmd.ko\n";
        fs::write(dir.path().join("6.1.0/modules.dep"), dep).unwrap();
        let plan = searched(dir.path());
        let names: Vec<_> = plan
            .iter()
            .filter_map(|p| p.file_name()?.to_str())
            .collect();
        assert_eq!(
            names,
            [
                "xen-privcmd.ko",
                "xenfs.ko",
                "macvlan.ko",
                "tap.ko",
                "macvtap.ko"
            ]
        );
    }

    #[test]
    fn the_parameter_is_looked_for_where_modules_describe_themselves() {
        assert!(supports_restriction(
            b"\0parmtype=unrestricted:bool\0license=GPL\0"
        ));
        assert!(!supports_restriction(
            b"\0parmtype=something_unrestricted\0"
        ));
        assert!(!supports_restriction(b""));
    }
}

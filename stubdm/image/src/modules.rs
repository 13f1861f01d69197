//! Kernel modules out of a kernel's package, each after those it depends on.
//!
//! A package brings no `modules.dep` (that is made when a kernel is installed), so the dependencies
//! are read from the modules themselves: the `.modinfo` section holds `depends=a,b`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use object::{Object as _, ObjectSection as _};

use crate::cpio::Content;
use crate::elf::resolve;

/// Where distributions keep kernels' modules.
const FOLDERS: &[&str] = &[
    "lib/modules",
    "run/booted-system/kernel-modules/lib/modules",
    "run/current-system/kernel-modules/lib/modules",
];

/// The setting that each module is made by, where the kernel's configuration is what says that it
/// is built in.
const SETTINGS: &[(&str, &str)] = &[
    ("xen_privcmd", "CONFIG_XEN_PRIVCMD"),
    ("xenfs", "CONFIG_XENFS"),
    ("xen_evtchn", "CONFIG_XEN_DEV_EVTCHN"),
    ("xen_gntdev", "CONFIG_XEN_GNTDEV"),
    ("xen_gntalloc", "CONFIG_XEN_GRANT_DEV_ALLOC"),
    ("xen_blkfront", "CONFIG_XEN_BLKDEV_FRONTEND"),
    ("xen_netfront", "CONFIG_XEN_NETDEV_FRONTEND"),
    ("xen_pcifront", "CONFIG_XEN_PCIDEV_FRONTEND"),
    ("macvtap", "CONFIG_MACVTAP"),
];

/// Whether a kernel has a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// As a module's file.
    Module,
    /// In the kernel itself.
    BuiltIn,
    /// Neither, by the kernel's own lists.
    Absent,
    /// No module, and nothing says what is built in.
    Unknown,
}

/// The modules of one kernel, and what is built into it.
#[derive(Debug)]
pub struct Modules {
    version: String,
    top: PathBuf,
    by_name: BTreeMap<String, PathBuf>,
    /// The names in `modules.builtin`, if there is that file.
    built_in: Option<BTreeSet<String>>,
    /// The kernel's configuration, if it is there.
    config: Option<String>,
}

impl Modules {
    /// Finds the modules of the kernel whose version is `version` in a tree, and its lists of what
    /// is built in: `modules.builtin` and the configuration.
    ///
    /// # Errors
    /// There is neither a module nor a list.
    pub fn find(tree: &Path, version: &str) -> Result<Self> {
        let mut by_name = BTreeMap::new();
        let places = FOLDERS.iter().map(|dir| format!("{dir}/{version}"));
        let found = places.clone().find_map(|dir| resolve(tree, &dir).ok());
        let top = found.with_context(|| {
            let all: Vec<_> = places.map(|dir| format!("/{dir}")).collect();
            format!(
                "no modules of Linux {version} were found below {} in {}",
                tree.display(),
                all.join(", ")
            )
        })?;
        walk(&top, &mut by_name).with_context(|| format!("reading {}", top.display()))?;
        let list = fs::read_to_string(top.join("modules.builtin")).ok();
        let built_in = list.map(|list| {
            let lines = list.lines().filter_map(|line| line.rsplit('/').next());
            let names = lines.filter_map(|name| name.split_once(".ko"));
            names.map(|(name, _)| key(name)).collect()
        });
        let config = [
            format!("boot/config-{version}"),
            format!("lib/modules/{version}/config"),
            format!("lib/modules/{version}/build/.config"),
        ];
        let config = config.iter().find_map(|path| resolve(tree, path).ok());
        let config = config.and_then(|file| fs::read_to_string(file).ok());
        let lists = built_in.is_some() || config.is_some();
        ensure!(
            lists || !by_name.is_empty(),
            "no modules in {}",
            top.display()
        );
        Ok(Self {
            version: version.to_owned(),
            top,
            by_name,
            built_in,
            config,
        })
    }

    /// The kernels that have modules in a tree, or a list of what is built in, sorted.
    pub fn versions(tree: &Path) -> Vec<String> {
        let folders = FOLDERS.iter().filter_map(|dir| resolve(tree, dir).ok());
        let entries = folders.filter_map(|dir| fs::read_dir(dir).ok());
        let mut names: Vec<String> = entries
            .flatten()
            .flatten()
            .filter(|entry| {
                let has = |name: &str| entry.path().join(name).exists();
                has("kernel") || has("modules.builtin")
            })
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// The folders that [`Modules::versions`] looks in, for a person.
    pub fn searched() -> String {
        let all: Vec<_> = FOLDERS.iter().map(|dir| format!("/{dir}")).collect();
        all.join(", ")
    }

    /// The kernel's version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Whether the kernel has a driver, and how.
    pub fn driver(&self, name: &str) -> Driver {
        let name = key(name);
        if self.by_name.contains_key(&name) {
            return Driver::Module;
        }
        let setting = SETTINGS.iter().find(|(module, _)| *module == name);
        let is = |value: &str| {
            let line = setting.map(|(_, setting)| format!("{setting}={value}"));
            let config = self.config.as_deref().unwrap_or_default();
            line.is_some_and(|line| config.lines().any(|own| own == line))
        };
        match &self.built_in {
            Some(list) if list.contains(&name) => Driver::BuiltIn,
            _ if is("y") => Driver::BuiltIn,
            Some(_) => Driver::Absent,
            None if self.config.is_some() && setting.is_some() => Driver::Absent,
            None => Driver::Unknown,
        }
    }

    /// Why a module cannot be taken, for a person.
    pub fn lack(&self, name: &str) -> String {
        let (version, top) = (&self.version, self.top.display());
        let how = match self.driver(name) {
            Driver::Unknown => format!(
                "whether it is built in is not known, without {top}/modules.builtin and /boot/config-{version}"
            ),
            _ => "and it is not built in; another package may have it".to_owned(),
        };
        format!("this kernel ({version}) has no module {name} in {top}, {how}")
    }

    /// The named modules and what they depend on, in an order in which they can be loaded: file
    /// names and contents. Compressed ones are unpacked, and what is built in is left out.
    ///
    /// # Errors
    /// One is missing, cannot be read or unpacked, or dependencies go round.
    pub fn closure(&self, names: &[&str]) -> Result<Vec<(String, Content)>> {
        let mut order = Vec::new();
        for name in names {
            self.visit(name, &mut order, 0)?;
        }
        Ok(order)
    }

    /// The parameters that a driver says it takes, built in or not.
    ///
    /// # Errors
    /// There is no such driver, or it or the list of those built in cannot be read.
    pub fn parameters(&self, name: &str) -> Result<Vec<String>> {
        let (info, start) = match self.by_name.get(&key(name)) {
            Some(file) => (modinfo(file, &plain(file)?)?, "parmtype=".to_owned()),
            None if self.driver(name) == Driver::BuiltIn => {
                let file = self.top.join("modules.builtin.modinfo");
                let info = fs::read(&file).with_context(|| file.display().to_string())?;
                (info, format!("{}.parmtype=", key(name)))
            }
            None => bail!("{}", self.lack(name)),
        };
        let records = info.split(|&b| b == 0);
        let types = records.filter_map(|r| std::str::from_utf8(r).ok()?.strip_prefix(&start));
        Ok(types
            .filter_map(|record| Some(record.split_once(':')?.0.to_owned()))
            .collect())
    }

    fn visit(&self, name: &str, order: &mut Vec<(String, Content)>, depth: usize) -> Result<()> {
        ensure!(depth < 32, "module {name}: dependencies go round");
        let file = match self.by_name.get(&key(name)) {
            Some(file) => file,
            None if self.driver(name) == Driver::BuiltIn => return Ok(()),
            None => bail!("{}", self.lack(name)),
        };
        let own = file.file_name().and_then(|n| n.to_str());
        let stem = own.and_then(|n| n.split_once(".ko"));
        let (stem, _) = stem.context("a module without a name")?;
        let own = format!("{stem}.ko");
        if order.iter().any(|(name, _)| *name == own) {
            return Ok(());
        }
        let data = plain(file)?;
        for dependency in depends(file, &data)? {
            self.visit(&dependency, order, depth + 1)?;
        }
        // An unpacked module exists nowhere else.
        let content = match file.extension().is_some_and(|end| end == "ko") {
            true => Content::File(file.clone()),
            false => Content::Bytes(data),
        };
        order.push((own, content));
        Ok(())
    }
}

/// A module's contents, unpacked.
fn plain(file: &Path) -> Result<Vec<u8>> {
    let tool = match file.extension().and_then(|e| e.to_str()) {
        Some("ko") => {
            return fs::read(file).with_context(|| format!("reading {}", file.display()));
        }
        Some("xz") => "xz",
        Some("gz") => "gzip",
        Some("zst") => "zstd",
        _ => bail!("{} is compressed in an unknown way", file.display()),
    };
    let out = Command::new(tool).arg("-dc").arg(file).output();
    let out = out.with_context(|| format!("starting {tool}, to unpack {}", file.display()))?;
    ensure!(
        out.status.success(),
        "{tool} -dc {}: {}",
        file.display(),
        out.status
    );
    Ok(out.stdout)
}

/// Module names are the same with hyphens and underscores.
fn key(name: &str) -> String {
    name.replace('-', "_")
}

fn walk(dir: &Path, by_name: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            walk(&path, by_name)?;
        } else if let Some((name, _)) = entry.file_name().to_str().and_then(|n| n.split_once(".ko"))
        {
            by_name.insert(key(name), path);
        }
    }
    Ok(())
}

/// Returns the dependencies in a module's `.modinfo` section.
fn depends(file: &Path, data: &[u8]) -> Result<Vec<String>> {
    modinfo(file, data).map(|info| parse_depends(&info))
}

/// A module's `.modinfo` section: records with a NUL after each.
fn modinfo(file: &Path, data: &[u8]) -> Result<Vec<u8>> {
    let elf = object::File::parse(data).with_context(|| format!("reading {}", file.display()))?;
    let section = elf
        .section_by_name(".modinfo")
        .with_context(|| format!("{} has no .modinfo section", file.display()))?;
    Ok(section.data()?.to_vec())
}

/// The `depends=` record among NUL-separated records.
fn parse_depends(modinfo: &[u8]) -> Vec<String> {
    let records = modinfo
        .split(|&b| b == 0)
        .filter_map(|r| std::str::from_utf8(r).ok());
    let mut found = records.filter_map(|r| r.strip_prefix("depends="));
    let list = found.next().unwrap_or_default();
    list.split(',')
        .filter(|n| !n.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dependencies_are_read_from_the_records() {
        assert_eq!(
            parse_depends(b"license=GPL\0depends=llc,stp\0retpoline=Y\0"),
            ["llc", "stp"]
        );
        assert!(parse_depends(b"license=GPL\0depends=\0").is_empty());
        assert!(parse_depends(b"").is_empty());
    }
}

//! Kernel modules out of a kernel's package, each after those it depends on.
//!
//! A package brings no `modules.dep` (that is made when a kernel is installed), so the dependencies
//! are read from the modules themselves: the `.modinfo` section holds `depends=a,b`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use object::{Object as _, ObjectSection as _};

use crate::cpio::Content;
use crate::elf::{inside, resolve};
use crate::read;

/// The most bytes that a compressed module may unpack to. The largest of Debian's have 20 MiB.
const UNPACKED_LIMIT: u64 = 256 << 20;

/// Where distributions keep kernels' modules.
const FOLDERS: &[&str] = &[
    "lib/modules",
    "run/booted-system/kernel-modules/lib/modules",
    "run/current-system/kernel-modules/lib/modules",
];

/// The setting that makes each module, for kernels whose configuration is the only list of what is
/// built in.
const SETTINGS: &[(&str, &str)] = &[
    ("xen_privcmd", "CONFIG_XEN_PRIVCMD"),
    ("xenfs", "CONFIG_XENFS"),
    ("xen_evtchn", "CONFIG_XEN_DEV_EVTCHN"),
    ("xen_gntdev", "CONFIG_XEN_GNTDEV"),
    ("xen_gntalloc", "CONFIG_XEN_GRANT_DEV_ALLOC"),
    ("xen_blkfront", "CONFIG_XEN_BLKDEV_FRONTEND"),
    ("xen_netfront", "CONFIG_XEN_NETDEV_FRONTEND"),
    ("xen_pcifront", "CONFIG_XEN_PCIDEV_FRONTEND"),
    ("xen_fbfront", "CONFIG_XEN_FBDEV_FRONTEND"),
    ("xen_kbdfront", "CONFIG_INPUT_XEN_KBDDEV_FRONTEND"),
    ("evdev", "CONFIG_INPUT_EVDEV"),
    ("macvtap", "CONFIG_MACVTAP"),
    ("loop", "CONFIG_BLK_DEV_LOOP"),
    ("squashfs", "CONFIG_SQUASHFS"),
];

/// The form in which a kernel has a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// A module's file.
    Module,
    /// A part of the kernel itself.
    BuiltIn,
    /// None, by the kernel's own lists.
    Absent,
    /// No module, and there is no list of what is built in.
    Unknown,
}

/// The modules of one kernel, and its lists of built-in drivers.
#[derive(Debug)]
pub struct Modules {
    version: String,
    top: PathBuf,
    by_name: BTreeMap<String, Module>,
    /// The names in `modules.builtin`, if there is that file.
    built_in: Option<BTreeSet<String>>,
    /// `modules.builtin.modinfo`, if there is that file.
    built_in_info: Option<PathBuf>,
    /// The kernel's configuration, if it is there.
    config: Option<String>,
}

/// A module's file.
#[derive(Debug)]
struct Module {
    /// Its name in the kernel's folder, `x.ko` or `x.ko.xz`.
    name: String,
    path: PathBuf,
}

impl Modules {
    /// Finds the modules of the kernel whose version is `version` in a tree, and its lists of what
    /// is built in: `modules.builtin` and the configuration. Links lead nowhere out of the tree.
    ///
    /// # Errors
    /// There is neither a module nor a list, or `version` is no file name.
    pub fn find(tree: &Path, version: &str) -> Result<Self> {
        ensure!(
            !matches!(version, "" | "." | "..") && !version.contains('/'),
            "{version:?} is no version of a kernel"
        );
        let places = FOLDERS.iter().map(|dir| format!("{dir}/{version}"));
        let found = places.clone().find_map(|dir| inside(tree, &dir).ok());
        let folder = found.with_context(|| {
            let all: Vec<_> = places.map(|dir| format!("/{dir}")).collect();
            format!(
                "no modules of Linux {version} were found below {} in {}",
                tree.display(),
                all.join(", ")
            )
        })?;
        let top = tree.join(&folder);
        let by_name = walk(tree, &folder).with_context(|| format!("reading {}", top.display()))?;
        let text = |path: &String| {
            let data = read::contents(&resolve(tree, path).ok()?).ok()?;
            String::from_utf8(data).ok()
        };
        let list = text(&format!("{folder}/modules.builtin"));
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
        let config = config.iter().find(|path| resolve(tree, path).is_ok());
        let config = config.and_then(text);
        let built_in_info = resolve(tree, &format!("{folder}/modules.builtin.modinfo")).ok();
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
            built_in_info,
            config,
        })
    }

    /// Returns the kernels that have modules in a tree, or a list of what is built in, sorted.
    pub fn versions(tree: &Path) -> Vec<String> {
        let mut names = BTreeSet::new();
        for folder in FOLDERS.iter().filter_map(|dir| inside(tree, dir).ok()) {
            let entries = fs::read_dir(tree.join(&folder)).into_iter().flatten();
            for name in entries.flatten().map(|entry| entry.file_name()) {
                let Ok(name) = name.into_string() else {
                    continue;
                };
                let has = |list: &str| resolve(tree, &format!("{folder}/{name}/{list}")).is_ok();
                if has("kernel") || has("modules.builtin") {
                    names.insert(name);
                }
            }
        }
        names.into_iter().collect()
    }

    /// Lists the folders that [`Modules::versions`] looks in, for a message.
    pub fn searched() -> String {
        let all: Vec<_> = FOLDERS.iter().map(|dir| format!("/{dir}")).collect();
        all.join(", ")
    }

    /// The kernel's version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Looks up a driver in the modules and in the lists of what is built in.
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

    /// Returns whether the kernel was built with a setting; `None` without its configuration.
    pub fn setting(&self, name: &str) -> Option<bool> {
        let set = [format!("{name}=y"), format!("{name}=m")];
        let config = self.config.as_deref()?;
        Some(config.lines().any(|line| set.iter().any(|own| own == line)))
    }

    /// Explains in a message why the kernel has no such module.
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

    /// Returns the named modules and what they depend on, in an order in which they can be loaded:
    /// file names and contents. Compressed ones are unpacked, and what is built in is left out.
    ///
    /// # Errors
    /// One is missing, cannot be read or unpacked, or the dependencies form a cycle.
    pub fn closure(&self, names: &[&str]) -> Result<Vec<(String, Content)>> {
        let mut order = Vec::new();
        for name in names {
            self.visit(name, &mut order, 0)?;
        }
        Ok(order)
    }

    /// Reads the names of a driver's parameters, built in or not.
    ///
    /// # Errors
    /// There is no such driver; its file or `modules.builtin.modinfo` cannot be read.
    pub fn parameters(&self, name: &str) -> Result<Vec<String>> {
        let (info, start) = match self.by_name.get(&key(name)) {
            Some(file) => (modinfo(&file.path, &file.read()?)?, "parmtype=".to_owned()),
            None if self.driver(name) == Driver::BuiltIn => {
                let file = self.built_in_info.as_ref().with_context(|| {
                    format!("there is no {}/modules.builtin.modinfo", self.top.display())
                })?;
                let info = read::contents(file).with_context(|| file.display().to_string())?;
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
        let (stem, end) = file
            .name
            .split_once(".ko")
            .context("a module without a name")?;
        let own = format!("{stem}.ko");
        if order.iter().any(|(name, _)| *name == own) {
            return Ok(());
        }
        let data = file.read()?;
        for dependency in depends(&file.path, &data)? {
            self.visit(&dependency, order, depth + 1)?;
        }
        // An unpacked module exists nowhere else.
        let content = match end {
            "" => Content::File(file.path.clone()),
            _ => Content::Bytes(data),
        };
        order.push((own, content));
        Ok(())
    }
}

impl Module {
    /// Reads the module, unpacked.
    ///
    /// # Errors
    /// The file cannot be read, or cannot be unpacked with xz, gzip or zstd to less than 256 MiB.
    fn read(&self) -> Result<Vec<u8>> {
        let file = &self.path;
        let tool = match self.name.split_once(".ko").map(|(_, end)| end) {
            Some("") => {
                let data = read::contents(file);
                return data.with_context(|| format!("reading {}", file.display()));
            }
            Some(".xz") => "xz",
            Some(".gz") => "gzip",
            Some(".zst") => "zstd",
            _ => bail!("{} is compressed in an unknown way", file.display()),
        };
        let packed = read::open(file).with_context(|| format!("reading {}", file.display()))?;
        unpack(tool, packed, UNPACKED_LIMIT)
            .with_context(|| format!("unpacking {}", file.display()))
    }
}

/// Unpacks a file with a tool that filters its input. Fails if the tool writes `limit` bytes or
/// more.
fn unpack(tool: &str, packed: File, limit: u64) -> Result<Vec<u8>> {
    let child = Command::new(tool)
        .arg("-dc")
        .stdin(packed)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = child.with_context(|| format!("starting {tool}, which has to be installed"))?;
    let mut data = Vec::new();
    let out = child.stdout.take().context("no output")?;
    // The pipe is closed after this, so the tool ends and can be waited for.
    let count = out.take(limit).read_to_end(&mut data);
    let status = child.wait()?;
    ensure!((count? as u64) < limit, "{limit} bytes or more");
    ensure!(status.success(), "{tool} -dc: {status}");
    Ok(data)
}

/// Returns a module's name with underscores: the kernel takes hyphens for the same.
fn key(name: &str) -> String {
    name.replace('-', "_")
}

/// Collects the modules below a folder of a tree. Links are followed inside the tree, each folder
/// once. As in depmod, `build` and `source` are left out: they lead to the kernel's sources.
fn walk(tree: &Path, top: &str) -> Result<BTreeMap<String, Module>> {
    let mut by_name = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let mut todo = BTreeSet::from([top.to_owned()]);
    while let Some(folder) = todo.pop_first() {
        if !seen.insert(folder.clone()) {
            continue;
        }
        for entry in fs::read_dir(tree.join(&folder))? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let place = format!("{folder}/{name}");
            let place = match entry.file_type()?.is_symlink() {
                false => Some(place),
                true => inside(tree, &place).ok(),
            };
            let Some(place) = place.filter(|_| folder != top || !is_source(&name)) else {
                continue;
            };
            let path = tree.join(&place);
            if path.is_dir() {
                todo.insert(place);
            } else if let Some((stem, _)) = name.split_once(".ko") {
                by_name.insert(key(stem), Module { name, path });
            }
        }
    }
    Ok(by_name)
}

fn is_source(name: &str) -> bool {
    matches!(name, "build" | "source")
}

/// Returns the dependencies in a module's `.modinfo` section.
fn depends(file: &Path, data: &[u8]) -> Result<Vec<String>> {
    modinfo(file, data).map(|info| parse_depends(&info))
}

/// Reads a module's `.modinfo` section: records with a NUL after each.
fn modinfo(file: &Path, data: &[u8]) -> Result<Vec<u8>> {
    let elf = object::File::parse(data).with_context(|| format!("reading {}", file.display()))?;
    let section = elf
        .section_by_name(".modinfo")
        .with_context(|| format!("{} has no .modinfo section", file.display()))?;
    Ok(section.data()?.to_vec())
}

/// Returns the names in the `depends=` record.
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
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    #[test]
    fn a_packed_module_is_unpacked_up_to_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.ko.gz");
        // More than a pipe holds: the tool still writes when the limit is reached.
        let zeros = vec![0; 1 << 20];
        let mut packed = GzEncoder::new(File::create(&path).unwrap(), Compression::fast());
        packed.write_all(&zeros).unwrap();
        packed.finish().unwrap();
        let unpacked = |limit| unpack("gzip", File::open(&path).unwrap(), limit);
        assert_eq!(unpacked((1 << 20) + 1).unwrap(), zeros);
        let error = unpacked(1000).unwrap_err().to_string();
        assert!(error.contains("1000 bytes or more"), "{error}");
        let error = unpack("gzip", File::open("/dev/null").unwrap(), 1000);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("exit status"), "{error}");
    }

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

//! Kernel modules out of the unpacked kernel package, each after those it depends on.
//!
//! The package brings no `modules.dep` (that is made when a kernel is installed), so the dependencies are read from the
//! modules themselves: the `.modinfo` section holds `depends=a,b`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use object::{Object as _, ObjectSection as _};

/// The modules of one kernel.
#[derive(Debug)]
pub(crate) struct Modules {
    by_name: BTreeMap<String, PathBuf>,
    unpacked: PathBuf,
}

impl Modules {
    /// Finds the modules in a tree; compressed ones are unpacked into `unpacked` as they are asked for.
    pub(crate) fn find(tree: &Path, unpacked: &Path) -> Result<Self> {
        let mut by_name = BTreeMap::new();
        for top in ["lib/modules", "usr/lib/modules"] {
            let top = tree.join(top);
            if top.is_dir() {
                walk(&top, &mut by_name)?;
            }
        }
        ensure!(
            !by_name.is_empty(),
            "no kernel modules below {}",
            tree.display()
        );
        fs::create_dir_all(unpacked)?;
        Ok(Self {
            by_name,
            unpacked: unpacked.to_owned(),
        })
    }

    /// The named modules and what they depend on, in an order in which they can be loaded.
    pub(crate) fn closure(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let mut order = Vec::new();
        for name in names {
            self.visit(name, &mut order, 0)?;
        }
        Ok(order)
    }

    fn visit(&self, name: &str, order: &mut Vec<PathBuf>, depth: usize) -> Result<()> {
        ensure!(depth < 32, "module {name}: dependencies go round");
        let packed = self
            .by_name
            .get(&key(name))
            .with_context(|| format!("the kernel package has no module {name}"))?;
        let file = self.plain(packed)?;
        if order.contains(&file) {
            return Ok(());
        }
        for dependency in depends(&file)? {
            self.visit(&dependency, order, depth + 1)?;
        }
        order.push(file);
        Ok(())
    }

    /// The module uncompressed.
    fn plain(&self, file: &Path) -> Result<PathBuf> {
        if file.extension().is_some_and(|e| e == "ko") {
            return Ok(file.to_owned());
        }
        let name = file.file_stem().context("a module without a name")?;
        let plain = self.unpacked.join(name);
        if plain.exists() {
            return Ok(plain);
        }
        let tool = match file.extension().and_then(|e| e.to_str()) {
            Some("xz") => "xz",
            Some("gz") => "gzip",
            Some("zst") => "zstd",
            _ => bail!("{} is compressed in an unknown way", file.display()),
        };
        let out = Command::new(tool)
            .arg("-dc")
            .arg(file)
            .output()
            .with_context(|| format!("starting {tool}"))?;
        ensure!(
            out.status.success(),
            "{tool} -dc {}: {}",
            file.display(),
            out.status
        );
        crate::store::write_atomically(&plain, &out.stdout)?;
        Ok(plain)
    }
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

/// What a module's `.modinfo` section says it depends on.
fn depends(file: &Path) -> Result<Vec<String>> {
    let data = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    let elf = object::File::parse(&*data).with_context(|| format!("reading {}", file.display()))?;
    let section = elf
        .section_by_name(".modinfo")
        .context("a module without .modinfo")?;
    Ok(parse_depends(section.data()?))
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

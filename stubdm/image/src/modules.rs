//! Kernel modules out of a kernel's package, each after those it depends on.
//!
//! A package brings no `modules.dep` (that is made when a kernel is installed), so the dependencies
//! are read from the modules themselves: the `.modinfo` section holds `depends=a,b`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use object::{Object as _, ObjectSection as _};

use crate::cpio::Content;
use crate::elf::resolve;

/// The modules of one kernel.
#[derive(Debug)]
pub struct Modules {
    by_name: BTreeMap<String, PathBuf>,
}

impl Modules {
    /// Finds the modules of the kernel whose version is `version` in a tree.
    ///
    /// # Errors
    /// There are none.
    pub fn find(tree: &Path, version: &str) -> Result<Self> {
        let mut by_name = BTreeMap::new();
        let top = resolve(tree, &format!("lib/modules/{version}"))?;
        walk(&top, &mut by_name).with_context(|| format!("reading {}", top.display()))?;
        ensure!(!by_name.is_empty(), "no modules in {}", top.display());
        Ok(Self { by_name })
    }

    /// The kernels that have modules in a tree, sorted.
    pub fn versions(tree: &Path) -> Vec<String> {
        let entries = resolve(tree, "lib/modules").and_then(|dir| Ok(fs::read_dir(dir)?));
        let mut names: Vec<String> = entries
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.path().join("kernel").is_dir())
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }

    /// The named modules and what they depend on, in an order in which they can be loaded: file
    /// names and contents. Compressed ones are unpacked.
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

    /// The parameters that a module says it takes.
    ///
    /// # Errors
    /// There is no such module, or it cannot be read or unpacked.
    pub fn parameters(&self, name: &str) -> Result<Vec<String>> {
        let file = self
            .by_name
            .get(&key(name))
            .with_context(|| format!("this kernel has no module {name}"))?;
        let info = modinfo(file, &plain(file)?)?;
        let records = info.split(|&b| b == 0);
        let types = records.filter_map(|r| std::str::from_utf8(r).ok()?.strip_prefix("parmtype="));
        Ok(types
            .filter_map(|record| Some(record.split_once(':')?.0.to_owned()))
            .collect())
    }

    fn visit(&self, name: &str, order: &mut Vec<(String, Content)>, depth: usize) -> Result<()> {
        ensure!(depth < 32, "module {name}: dependencies go round");
        let file = self
            .by_name
            .get(&key(name))
            .with_context(|| format!("this kernel has no module {name}"))?;
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

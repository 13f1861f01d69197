//! House rules that no lint knows: the unsafe inventory in `docs/unsafe.md` names exactly the files that allow unsafe code.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::workspace::Workspace;

/// What a file says that is not safe code. Split so that this file does not say it.
const MARK: &str = concat!("#![allow(", "unsafe_code)]");

/// Fails, naming the files, if the inventory and the tree differ.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let mut found = BTreeSet::new();
    search(workspace.root(), workspace.root(), &mut found)?;
    let inventory = workspace.root().join("docs/unsafe.md");
    let text =
        fs::read_to_string(&inventory).with_context(|| format!("{}", inventory.display()))?;
    let listed = listed(&text);
    let unlisted: Vec<_> = found.difference(&listed).collect();
    ensure!(
        unlisted.is_empty(),
        "unsafe code outside the files of docs/unsafe.md: {unlisted:?}"
    );
    let gone: Vec<_> = listed.difference(&found).collect();
    ensure!(
        gone.is_empty(),
        "docs/unsafe.md lists files without unsafe code: {gone:?}"
    );
    println!("{} files may hold unsafe code, all listed", found.len());
    Ok(())
}

/// The files of the inventory's table: the first cell of each row, in backquotes.
fn listed(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|rest| rest.split('`').next())
        .filter(|name| name.ends_with(".rs"))
        .map(str::to_owned)
        .collect()
}

fn search(root: &Path, folder: &Path, found: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("{}", folder.display()))? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                search(root, &path, found)?;
            }
        } else if name.ends_with(".rs") && fs::read_to_string(&path)?.contains(MARK) {
            let path = path.strip_prefix(root).unwrap_or(&path);
            found.insert(path.to_string_lossy().into_owned());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_told_from_prose() {
        let text =
            "`a.rs` in prose\n| file | why |\n|---|---|\n| `x/b.rs` | `c.rs` |\n| `doc.md` | |\n";
        assert_eq!(listed(text), BTreeSet::from(["x/b.rs".to_owned()]));
    }

    #[test]
    fn the_inventory_is_true() {
        check(&Workspace::find().unwrap()).unwrap();
    }
}

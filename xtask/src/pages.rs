//! The manual pages and completions of `stubdm-run` and `xstore`, written by the program
//! `stubdm-man`: the only part of the project's tasks that is compiled with the products.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::command::{cargo, succeed};
use crate::workspace::Workspace;

/// Writes them to `target/dist/man` and `target/dist/completions`; those of `xstore`, which another
/// package has, to the same folders in `target/dist/xstore`.
pub(crate) fn write(workspace: &Workspace) -> Result<()> {
    let mut command = cargo();
    command
        .args(["run", "--quiet", "--locked", "-p", "stubdm-man", "--"])
        .arg(workspace.dist())
        .current_dir(workspace.root());
    succeed(command)
}

/// The files of a folder by their names, sorted.
pub(crate) fn read(folder: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let entries = fs::read_dir(folder).with_context(|| format!("{}", folder.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        files.push((name, fs::read(entry.path())?));
    }
    files.sort();
    Ok(files)
}

//! The C programs that tests run against: every `testing/c/NAME.c`, built with the unpacked
//! libxen-dev.
//!
//! A source says what it links with in its first line: `// link: -lxenvchan -lxenstore`. After a
//! change of a header all are built again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

use crate::store::{Tree, hex, write_atomically};

/// Builds the programs of `sources` that have changed into `out`; gives their paths.
pub(crate) fn build(sources: &Path, tree: &Tree, out: &Path) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(out)?;
    let mut files: Vec<PathBuf> = Vec::new();
    if sources.is_dir() {
        for entry in fs::read_dir(sources)? {
            files.push(entry?.path());
        }
    }
    files.sort();
    let of_kind = |kind| {
        let is_it = move |file: &&PathBuf| file.extension().is_some_and(|e| e == kind);
        files.iter().filter(is_it)
    };
    let headers = of_kind("h")
        .map(|file| read(file))
        .collect::<Result<String>>()?;
    of_kind("c")
        .map(|file| build_one(file, &headers, tree, out))
        .collect()
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))
}

fn build_one(source: &Path, headers: &str, tree: &Tree, out: &Path) -> Result<PathBuf> {
    let text = read(source)?;
    let program = out.join(source.file_stem().context("a C source without a name")?);
    let mark = program.with_extension("stamp");
    let stamp = hex(&Sha256::digest(format!("{}\n{headers}{text}", tree.stamp)));
    if program.exists() && fs::read_to_string(&mark).is_ok_and(|have| have == stamp) {
        return Ok(program);
    }
    let libraries = tree.root.join("usr/lib/x86_64-linux-gnu");
    let run = Command::new("cc")
        .args([
            "-std=gnu11",
            "-O2",
            "-g0",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-o",
        ])
        .arg(&program)
        .arg(source)
        .arg("-I")
        .arg(tree.root.join("usr/include"))
        .arg("-L")
        .arg(&libraries)
        // The libraries' own needs are in the guests: their C library may be newer than this
        // machine's.
        .arg("-Wl,--unresolved-symbols=ignore-in-shared-libs")
        .args(links(&text))
        .output()
        .context("starting cc (a C compiler is needed: package gcc)")?;
    ensure!(
        run.status.success(),
        "{} does not build:\n{}",
        source.display(),
        String::from_utf8_lossy(&run.stderr).trim_end()
    );
    write_atomically(&mark, stamp.as_bytes())?;
    Ok(program)
}

/// The flags in a source's first line.
fn links(text: &str) -> Vec<&str> {
    let first = text.lines().next().unwrap_or_default();
    first
        .strip_prefix("// link:")
        .unwrap_or_default()
        .split_whitespace()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_says_what_to_link() {
        assert_eq!(links("// link: -la -lb\nint x;"), ["-la", "-lb"]);
        assert!(links("int x; // link: -la").is_empty());
        assert!(links("").is_empty());
    }
}

//! `cargo xtask reproducible`: what is shipped, built on two checkouts in different folders, is the
//! same bytes.
//!
//! ```text
//!   target/reproducible/one/               a checkout of the last commit, with a target/ of its own
//!   target/reproducible/of-another/name/   the same commit
//! ```
//!
//! Both have the machine, its toolchain and Debian's packages in common, and the folder of the
//! registry's sources; each builds and unpacks by itself. They are removed if the files are the
//! same. After an error they stay until the next run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

use crate::command::succeed;
use crate::progress::Step;
use crate::release::RELEASES;
use crate::store::hex;
use crate::workspace::Workspace;
use crate::{deb, dist, host, store};

/// The folders of the checkouts: neither their depth nor their length is the same.
const CHECKOUTS: [&str; 2] = ["one", "of-another/name"];

/// A file that was built.
#[derive(Debug)]
struct Built {
    name: String,
    bytes: Vec<u8>,
}

/// Builds `stubdm-run`, its package and a ramdisk on two checkouts, and prints a sum for each.
///
/// # Errors
///
/// A checkout does not build, or two files differ; the error then names the first byte.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let folder = workspace.root().join("target/reproducible");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    // Debian's packages, which the checkouts unpack once more.
    host::unpack_default(workspace, None)?;
    // Both before either is built, which takes minutes: a commit meanwhile would be in one of them.
    for name in CHECKOUTS {
        clone(workspace, &folder.join(name))?;
    }
    let mut all = Vec::new();
    for name in CHECKOUTS {
        let step = Step::begin(format!("building in {name}"));
        let built = build(workspace, &folder.join(name));
        all.push(built.with_context(|| format!("the checkout in {name}"))?);
        step.done();
    }
    let mut differences = Vec::new();
    for (one, other) in all[0].iter().zip(&all[1]) {
        let sum = hex(&Sha256::digest(&one.bytes));
        println!("{sum}  {} ({} bytes)", one.name, one.bytes.len());
        differences.extend(difference(one, other));
    }
    ensure!(differences.is_empty(), "{}", differences.join("; "));
    fs::remove_dir_all(&folder)?;
    Ok(())
}

/// Checks the last commit out.
fn clone(workspace: &Workspace, checkout: &Path) -> Result<()> {
    let mut clone = Command::new("git");
    clone
        .args(["clone", "--quiet"])
        .arg(workspace.root())
        .arg(checkout);
    succeed(clone)
}

/// Builds what is shipped in a checkout.
fn build(workspace: &Workspace, checkout: &Path) -> Result<Vec<Built>> {
    let there = Workspace::at(checkout.to_owned());
    dist::build_shipped(&there)?;
    let program = dist::path(&there, dist::STUBDM_RUN);
    let package = deb::build(&there)?;
    let ramdisk = ramdisk(workspace, &there, &program)?;
    [program, package, ramdisk]
        .iter()
        .map(|file| read(file))
        .collect()
}

/// Makes a stubdomain's ramdisk of Debian's packages with the checkout's program.
fn ramdisk(workspace: &Workspace, there: &Workspace, program: &Path) -> Result<PathBuf> {
    let release = &RELEASES[0];
    let (from, state) = (workspace.state(), there.state());
    link(&from.join("debs"), &state.join("debs"))?;
    let lock = format!("{}/packages.lock", release.folder());
    fs::create_dir_all(state.join(release.folder()))?;
    fs::copy(from.join(&lock), state.join(&lock)).context(lock)?;
    let request = host::request(release);
    let tree = store::prepare(&state, &release.folder(), release.suite, None, &request)?;
    let file = state.join("stubdomain.img");
    let mut command = Command::new(program);
    command
        .args(["image", "build", "--root"])
        .arg(&tree.root)
        .arg("--output")
        .arg(&file)
        .stdout(std::process::Stdio::null());
    succeed(command)?;
    Ok(file)
}

/// Links the files of a folder into another one.
fn link(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("{}", from.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::hard_link(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

fn read(file: &Path) -> Result<Built> {
    let name = file.file_name().unwrap_or_default();
    Ok(Built {
        name: name.to_string_lossy().into_owned(),
        bytes: fs::read(file).with_context(|| format!("{}", file.display()))?,
    })
}

/// Returns how two files of one name differ, or `None` if they do not.
fn difference(one: &Built, other: &Built) -> Option<String> {
    if one.name != other.name {
        return Some(format!("{} is {} there", one.name, other.name));
    }
    let mut pairs = one.bytes.iter().zip(&other.bytes);
    let (lengths, name) = ((one.bytes.len(), other.bytes.len()), &one.name);
    match pairs.position(|(one, other)| one != other) {
        Some(at) => Some(format!("{name} differs at byte {at}")),
        None if lengths.0 == lengths.1 => None,
        None => Some(format!("{name} has {} and {} bytes", lengths.0, lengths.1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built(name: &str, bytes: &[u8]) -> Built {
        Built {
            name: name.to_owned(),
            bytes: bytes.to_owned(),
        }
    }

    #[test]
    fn files_differ_by_a_byte_a_length_or_a_name() {
        let of = |name: &str, bytes: &[u8]| difference(&built("a", b"123"), &built(name, bytes));
        assert_eq!(of("a", b"123"), None);
        assert_eq!(of("a", b"124").unwrap(), "a differs at byte 2");
        assert_eq!(of("a", b"1234").unwrap(), "a has 3 and 4 bytes");
        assert_eq!(of("b", b"123").unwrap(), "a is b there");
    }

    #[test]
    fn the_files_of_a_folder_are_linked_and_one_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("a/to"));
        fs::create_dir_all(from.join("folder")).unwrap();
        fs::write(from.join("x.deb"), "x").unwrap();
        link(&from, &to).unwrap();
        let linked = read(&to.join("x.deb")).unwrap();
        assert_eq!((&*linked.name, &*linked.bytes), ("x.deb", &b"x"[..]));
        assert!(!to.join("folder").exists());
        let error = link(&dir.path().join("none"), &to).unwrap_err();
        assert!(format!("{error:#}").contains("none"), "{error:#}");
        assert!(read(&to.join("y.deb")).is_err());
    }
}

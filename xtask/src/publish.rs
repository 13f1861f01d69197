//! The libraries' packages, as the registry would get them, and a user's crate on these alone.
//!
//! ```text
//!   target/package/NAME-VERSION.crate   the packages, made by cargo
//!   target/packages/NAME-VERSION/       their files
//!   target/packages/user/               examples/own-crate, which depends on these files alone
//! ```

use std::path::{Path, PathBuf};
use std::{env, fs, process};

use anyhow::{Context as _, Result, ensure};
use flate2::read::GzDecoder;

use crate::command::{cargo, succeed};
use crate::progress::Step;
use crate::workspace::Workspace;

/// The libraries for Xen, which are published: each after those that it depends on.
pub(crate) const LIBRARIES: &[&str] = &[
    "xen-interface",
    "xen-evtchn",
    "xen-gnttab",
    "xen-store",
    "xen-store-server",
    "xen-vchan",
];

/// The version of every package of the workspace.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The crate of a user.
const USER: &str = "examples/own-crate";

/// A package's files.
struct Package {
    name: &'static str,
    folder: PathBuf,
}

/// Packages every library, and runs the tests of a user's crate that depends on the packaged files
/// alone. Takes files that are not committed, too.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let folder = workspace.packages();
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing {}", folder.display()));
        }
        _ => fs::create_dir_all(&folder)?,
    }
    let target = workspace.root().join("target");
    let step = Step::begin(format!("packaging {} libraries", LIBRARIES.len()));
    for_libraries(
        workspace,
        &target,
        "package",
        &["--no-verify", "--allow-dirty"],
    )
    .context("cargo package asks the registry; without a network, set CARGO_NET_OFFLINE=true")?;
    step.done();
    let packages = unpack(&target.join("package"), &folder)?;
    let user = folder.join("user");
    copy(&workspace.root().join(USER), &user)?;
    let manifest = user.join("Cargo.toml");
    let text = on_packages(&fs::read_to_string(&manifest)?, &packages)?;
    fs::write(&manifest, text)?;
    let mut command = cargo();
    command
        .args(["test", "--locked", "--manifest-path"])
        .arg(&manifest)
        // The registry's crates are built there already, or are used there later.
        .env("CARGO_TARGET_DIR", &target)
        .current_dir(&user);
    succeed(command).with_context(|| {
        format!(
            "a user's crate on the packaged files, in {}",
            user.display()
        )
    })
}

/// Does everything that publishing the libraries does but the upload: each is packaged from
/// committed files and compiled from its package.
pub(crate) fn dry_run(workspace: &Workspace) -> Result<()> {
    // Cargo keeps the unpacked packages in a folder named after a hash of this path, and would take
    // those of the run before. So the path is a new one.
    let target = workspace
        .packages()
        .join(format!("dry-run-{}", process::id()));
    let result = for_libraries(workspace, &target, "publish", &["--dry-run"]);
    let removed = fs::remove_dir_all(&target).context("removing the dry run's folder");
    result.and(forget_packages()).and(removed)
}

/// Removes the copies of the libraries that `cargo publish --dry-run` leaves in cargo's own folder.
fn forget_packages() -> Result<()> {
    forget_packages_in(&cargo_home().join("registry/src"))
}

fn forget_packages_in(sources: &Path) -> Result<()> {
    let first = format!("{}-{VERSION}", LIBRARIES[0]);
    for entry in fs::read_dir(sources).into_iter().flatten() {
        let entry = entry?;
        // A registry without a host is a folder of this machine.
        if entry.file_name().to_string_lossy().starts_with('-')
            && entry.path().join(&first).exists()
        {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Returns the folder in which cargo keeps the registry's sources.
pub(crate) fn cargo_home() -> PathBuf {
    let home = || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cargo");
    env::var_os("CARGO_HOME").map_or_else(home, PathBuf::from)
}

/// Runs a command of cargo for every library.
fn for_libraries(
    workspace: &Workspace,
    target: &Path,
    task: &str,
    arguments: &[&str],
) -> Result<()> {
    let mut command = cargo();
    command.args([task, "--quiet"]).args(arguments);
    for library in LIBRARIES {
        command.args(["-p", library]);
    }
    command
        .env("CARGO_TARGET_DIR", target)
        .current_dir(workspace.root());
    succeed(command)
}

/// Unpacks the libraries' packages.
fn unpack(from: &Path, into: &Path) -> Result<Vec<Package>> {
    let mut all = Vec::new();
    for name in LIBRARIES {
        let file = from.join(format!("{name}-{VERSION}.crate"));
        let packed = fs::File::open(&file).with_context(|| format!("{}", file.display()))?;
        tar::Archive::new(GzDecoder::new(packed))
            .unpack(into)
            .with_context(|| format!("unpacking {}", file.display()))?;
        let folder = into.join(format!("{name}-{VERSION}"));
        ensure!(
            folder.join("Cargo.toml").is_file(),
            "{}: no package in a folder of its name",
            file.display()
        );
        all.push(Package { name, folder });
    }
    Ok(all)
}

/// Copies the files of a folder and of those in it, except for build results.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("{}", from.display()))? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if !source.is_dir() {
            fs::copy(&source, &target).with_context(|| format!("{}", source.display()))?;
        } else if entry.file_name() != "target" {
            copy(&source, &target)?;
        }
    }
    Ok(())
}

/// Returns a manifest with a version in the place of each path, and the packages as the registry's.
fn on_packages(manifest: &str, packages: &[Package]) -> Result<String> {
    let mut text = String::new();
    for line in manifest.lines() {
        match line.split_once("path = \"") {
            Some((before, rest)) if !line.starts_with('#') => {
                let (_, after) = rest.split_once('"').context("a path without an end")?;
                text += &format!("{before}version = \"={VERSION}\"{after}\n");
            }
            _ => text += &format!("{line}\n"),
        }
    }
    text += "\n[patch.crates-io]\n";
    for Package { name, folder } in packages {
        text += &format!("{name} = {{ path = {folder:?} }}\n");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checklist;

    #[test]
    fn only_copies_of_the_libraries_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let package = format!("xen-interface-{VERSION}");
        let folders = ["-1", "index.crates.io-2", "-3"].map(|name| dir.path().join(name));
        fs::create_dir_all(folders[0].join(&package)).unwrap();
        fs::create_dir_all(folders[1].join(&package)).unwrap();
        fs::create_dir_all(folders[2].join("libc-0.2.1")).unwrap();
        forget_packages_in(dir.path()).unwrap();
        assert_eq!(folders.map(|folder| folder.exists()), [false, true, true]);
        forget_packages_in(&dir.path().join("none")).unwrap();
    }

    #[test]
    fn a_crate_is_copied_without_what_was_built_there() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        fs::create_dir_all(from.join("src")).unwrap();
        fs::create_dir_all(from.join("target/debug")).unwrap();
        fs::write(from.join("src/lib.rs"), "x").unwrap();
        copy(&from, &to).unwrap();
        assert_eq!(fs::read(to.join("src/lib.rs")).unwrap(), b"x");
        assert!(!to.join("target").exists());
    }

    /// Folders and manifests of the workspace's packages.
    fn manifests() -> Vec<(String, String)> {
        let members = checklist::members(include_str!("../../Cargo.toml")).unwrap();
        let read = |folder: &str| {
            let file = format!(
                concat!(env!("CARGO_MANIFEST_DIR"), "/../{}/Cargo.toml"),
                folder
            );
            (folder.to_owned(), fs::read_to_string(file).unwrap())
        };
        members.into_iter().map(read).collect()
    }

    fn name(manifest: &str) -> &str {
        checklist::package_name(manifest).unwrap()
    }

    #[test]
    fn what_is_published_has_all_that_the_registry_shows() {
        let mut published = Vec::new();
        for (folder, manifest) in manifests() {
            if !manifest.contains("\npublish = true\n") {
                assert!(
                    manifest.contains("\npublish.workspace = true\n"),
                    "{folder}"
                );
                continue;
            }
            let name = name(&manifest);
            published.push(name.to_owned());
            let documentation = format!("\ndocumentation = \"https://docs.rs/{name}\"\n");
            for part in [
                &documentation,
                "\ndescription = ",
                "\nkeywords = ",
                "\ncategories = ",
                "\n[package.metadata.docs.rs]\n",
            ] {
                assert!(manifest.contains(part), "{folder}: {part}");
            }
            let root = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("..")
                .join(&folder);
            for file in ["README.md", "LICENSE-MIT", "LICENSE-APACHE"] {
                assert!(root.join(file).is_file(), "{folder}/{file}");
            }
            let readme = fs::read_to_string(root.join("README.md")).unwrap();
            assert!(readme.starts_with(&format!("# {name}\n")), "{folder}");
        }
        published.sort();
        let mut libraries = LIBRARIES.to_vec();
        libraries.sort_unstable();
        assert_eq!(published, libraries);
    }

    #[test]
    fn each_library_comes_after_those_that_it_depends_on() {
        for (folder, manifest) in manifests() {
            let Some(at) = LIBRARIES.iter().position(|l| *l == name(&manifest)) else {
                continue;
            };
            let (_, rest) = manifest.split_once("\n[dependencies]\n").unwrap();
            let section = rest.split("\n[").next().unwrap();
            for line in section.lines().filter(|line| line.starts_with("xen-")) {
                let sibling = line.split(['.', ' ']).next().unwrap();
                let sibling = sibling.replace("xen-sys", "xen-interface");
                let before = LIBRARIES[..at].contains(&&*sibling);
                assert!(before, "{folder} needs {sibling}, which comes later");
            }
        }
    }

    /// The Rust of a guide: the file that a comment before it names, and the text.
    fn code(guide: &str) -> Vec<(&str, &str)> {
        let blocks = guide.split("\n```rust").skip(1);
        let before = guide.split("\n```rust").map(|text| text.lines().last());
        blocks
            .zip(before)
            .map(|(block, before)| {
                let name = before.and_then(|line| line.strip_prefix("<!-- code of "));
                let name = name.and_then(|rest| rest.strip_suffix(" -->"));
                let (_, text) = block.split_once('\n').unwrap();
                (name.unwrap_or("none"), text.split("\n```").next().unwrap())
            })
            .collect()
    }

    /// The packages' check compiles the files of the user's crate, and runs their tests.
    #[test]
    fn the_guides_code_is_that_of_the_users_crate() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut blocks = 0;
        for entry in fs::read_dir(root.join("docs/guides")).unwrap() {
            let guide = entry.unwrap().path();
            for (name, text) in code(&fs::read_to_string(&guide).unwrap()) {
                assert!(
                    name.starts_with(USER),
                    "{}: code of {name}",
                    guide.display()
                );
                let source = fs::read_to_string(root.join(name)).unwrap();
                assert!(source.contains(text), "{}: {name} differs", guide.display());
                blocks += 1;
            }
        }
        assert!(blocks >= 7, "{blocks} blocks of code");
    }

    #[test]
    fn a_guides_program_has_as_many_lines_as_its_title_has() {
        for (name, lines) in [("guest-agent", 60), ("thermo-backend", 150)] {
            let file = format!("../{USER}/examples/{name}.rs");
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
            let source = fs::read_to_string(file).unwrap();
            let code = source.lines().map(str::trim_start);
            let count = code
                .filter(|l| !l.is_empty() && !l.starts_with("//"))
                .count();
            assert!(count <= lines, "{name}: {count} lines of code");
        }
    }

    #[test]
    fn the_rust_of_a_guide_is_found() {
        let guide = "a\n<!-- code of b.rs -->\n```rust\nfn c() {}\nd\n```\n\n```c\nx\n```\n\n\
                     ```rust\ne\n```\n";
        assert_eq!(code(guide), [("b.rs", "fn c() {}\nd"), ("none", "e")]);
    }

    #[test]
    fn a_users_manifest_depends_on_packages() {
        let packages = [Package {
            name: "xen-store",
            folder: "/p/xen-store-0.1.0".into(),
        }];
        let manifest = "# path = \"x\" stays\n[dependencies]\n\
                        xen-store = { path = \"../../xen-store\", features = [\"sim\"] }\n";
        let expected = format!(
            "# path = \"x\" stays\n[dependencies]\n\
             xen-store = {{ version = \"={VERSION}\", features = [\"sim\"] }}\n\
             \n[patch.crates-io]\nxen-store = {{ path = \"/p/xen-store-0.1.0\" }}\n"
        );
        assert_eq!(on_packages(manifest, &packages).unwrap(), expected);
        assert!(on_packages("a = { path = \"..", &[]).is_err());
    }
}

//! `cargo xtask deb`: the Debian package of `stubdm-run`.
//!
//! ```text
//!   the static binary ─┐
//!   pages: man, completions ─┼─▶ data ──▶ md5sums, control, scripts ──pack──▶ stubdm_VERSION_amd64.deb
//!   assets/deb, docs ──┘
//! ```
//!
//! The package contains no file of libxl's: its scripts call `stubdm-run install` and `uninstall`,
//! which divert what is there. The supervisor's unit, or init script, is enabled and started.
//! `stubdm-doctor`'s is not: the administrator decides whether a boot should be called degraded for
//! what `doctor` finds.

mod pack;
pub(crate) mod tools;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use md5::{Digest as _, Md5};
use stubdm_image::cpio::{Archive, Content, Node};

use crate::store::{hex, write_atomically};
use crate::workspace::Workspace;
use crate::{dist, pages};

/// The package's name.
pub(crate) const NAME: &str = "stubdm";

/// The time of everything in it, unless `SOURCE_DATE_EPOCH` has another: the changelog's.
const TIME: u64 = 1_767_225_600;

/// dpkg's scripts and the like.
const CONTROL: &[(&str, &str)] = &[
    ("postinst", include_str!("../../assets/deb/postinst")),
    ("prerm", include_str!("../../assets/deb/prerm")),
    ("postrm", include_str!("../../assets/deb/postrm")),
];

/// dpkg runs `postinst triggered` when a package brings one of these later.
const TRIGGERS: &str = "\
interest-noawait /usr/bin/vchan-socket-proxy
interest-noawait /usr/libexec/xen-qemu-system-i386
";

/// The supervisor's script for inits other than systemd: an administrator's to change.
const INIT_SCRIPT: &str = "etc/init.d/stubdm-supervise";

/// Documents for an administrator.
const DOCUMENTS: &[&str] = &[
    "commands.md",
    "proxy.md",
    "consoled.md",
    "init.md",
    "operators.md",
    "security.md",
];

/// This package's version, and its program's.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The version of the package that upgrades begin with in tests. As long as [`VERSION`].
const BEFORE: &str = "0.0.1";

/// Builds the package from the static binary as it was last built.
pub(crate) fn build(workspace: &Workspace) -> Result<PathBuf> {
    let program = dist::path(workspace, dist::STUBDM_RUN);
    build_as(workspace, VERSION, &program, &workspace.dist())
}

/// Builds the version before, for tests: its program is another file and reports its own version.
pub(crate) fn build_before(workspace: &Workspace, folder: &Path) -> Result<PathBuf> {
    let program = std::fs::read(dist::path(workspace, dist::STUBDM_RUN))?;
    let before = folder.join(format!("{}-{BEFORE}", dist::STUBDM_RUN));
    write_atomically(&before, &older(program)?)?;
    build_as(workspace, BEFORE, &before, folder)
}

/// Replaces the version wherever the program has it.
fn older(mut program: Vec<u8>) -> Result<Vec<u8>> {
    let (now, before) = (VERSION.as_bytes(), BEFORE.as_bytes());
    ensure!(
        now.len() == before.len(),
        "{VERSION} and {BEFORE} differ in length"
    );
    let windows = program.windows(now.len()).enumerate();
    let places: Vec<_> = windows
        .filter_map(|(at, bytes)| (bytes == now).then_some(at))
        .collect();
    ensure!(
        !places.is_empty(),
        "the program does not have its version {VERSION}"
    );
    for place in places {
        program[place..place + now.len()].copy_from_slice(before);
    }
    Ok(program)
}

fn build_as(
    workspace: &Workspace,
    version: &str,
    program: &Path,
    folder: &Path,
) -> Result<PathBuf> {
    // Two releases' hosts are made ready side by side, and the pages are read from one folder.
    static PAGES: Mutex<()> = Mutex::new(());
    let pages = PAGES.lock().unwrap_or_else(PoisonError::into_inner);
    pages::write(workspace)?;
    let data = data(workspace, program, &workspace.dist())?;
    drop(pages);
    let file = folder.join(format!("{NAME}_{version}_amd64.deb"));
    write(&file, &control(&data, version)?, &data)?;
    Ok(file)
}

/// Writes a package.
fn write(file: &Path, control: &Archive, data: &Archive) -> Result<()> {
    let time = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text.parse().context("SOURCE_DATE_EPOCH")?,
        Err(_) => TIME,
    };
    let mut package = Vec::new();
    pack::write(&mut package, control, data, time)?;
    write_atomically(file, &package)
}

/// Returns the package's files; `pages` is the folder with `man` and `completions`.
fn data(workspace: &Workspace, program: &Path, pages: &Path) -> Result<Archive> {
    let mut data = Archive::bare();
    data.program("usr/bin/stubdm-run", Content::File(program.to_owned()));
    add_pages(&mut data, pages)?;
    data.text(
        "usr/lib/systemd/system/stubdm-doctor.service",
        include_str!("../../assets/deb/stubdm-doctor.service"),
    );
    data.text(
        "usr/lib/systemd/system/stubdm-supervise.service",
        include_str!("../../assets/deb/stubdm-supervise.service"),
    );
    data.program(
        INIT_SCRIPT,
        Content::Bytes(include_bytes!("../../assets/deb/stubdm-supervise.init").to_vec()),
    );
    data.text(
        &format!("usr/share/lintian/overrides/{NAME}"),
        include_str!("../../assets/deb/overrides"),
    );
    add_documents(&mut data, workspace, NAME, DOCUMENTS)?;
    Ok(data)
}

/// Adds a package's documents, which are those in `docs` of the names, its changelog and its
/// licence.
fn add_documents(
    data: &mut Archive,
    workspace: &Workspace,
    package: &str,
    names: &[&str],
) -> Result<()> {
    let folder = format!("usr/share/doc/{package}");
    for name in names {
        let text = Content::File(workspace.root().join("docs").join(name)).read()?;
        data.file(&format!("{folder}/{name}.gz"), packed(&text)?);
    }
    let changelog = include_str!("../../assets/deb/changelog");
    let changelog = changelog.replace(&format!("{NAME} ("), &format!("{package} ("));
    data.file(
        &format!("{folder}/changelog.gz"),
        packed(changelog.as_bytes())?,
    );
    data.text(
        &format!("{folder}/copyright"),
        &include_str!("../../assets/deb/copyright").replace("@MIT@", &licence(workspace)?),
    );
    Ok(())
}

/// The MIT licence in the form of Debian's copyright file: indented, a dot on empty lines.
fn licence(workspace: &Workspace) -> Result<String> {
    let text = std::fs::read_to_string(workspace.root().join("LICENSE-MIT"))?;
    let lines = text.trim().lines().map(|line| match line.trim() {
        "" => " .".to_owned(),
        line => format!(" {line}"),
    });
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

/// Adds a program's manual pages and completions to a package; `folder` has `man` and
/// `completions`.
fn add_pages(data: &mut Archive, folder: &Path) -> Result<()> {
    for (name, page) in pages::read(&folder.join("man"))? {
        data.file(&format!("usr/share/man/man1/{name}.gz"), packed(&page)?);
    }
    for (name, text) in pages::read(&folder.join("completions"))? {
        let folder = match name.as_str() {
            name if name.starts_with('_') => "usr/share/zsh/vendor-completions",
            name if name.ends_with(".fish") => "usr/share/fish/vendor_completions.d",
            _ => "usr/share/bash-completion/completions",
        };
        data.file(&format!("{folder}/{name}"), Content::Bytes(text));
    }
    Ok(())
}

fn packed(bytes: &[u8]) -> Result<Content> {
    pack::gzip(bytes).map(Content::Bytes)
}

/// Returns the sums of a package's files in dpkg's form, and its size in KiB.
fn sums(data: &Archive) -> Result<(String, usize)> {
    let mut sums = String::new();
    let mut size = 0;
    for (path, node) in data.nodes() {
        if let Node::File { content, .. } = node {
            let bytes = content.read()?;
            size += bytes.len().div_ceil(1024);
            sums += &format!("{}  {path}\n", hex(&Md5::digest(&bytes)));
        } else {
            // As dpkg counts folders and links.
            size += 1;
        }
    }
    Ok((sums, size))
}

/// Returns the package's control files.
fn control(data: &Archive, version: &str) -> Result<Archive> {
    let (sums, size) = sums(data)?;
    let mut control = Archive::bare();
    let text = include_str!("../../assets/deb/control")
        .replace("@VERSION@", version)
        .replace("@SIZE@", &size.to_string());
    control.text("control", &text);
    control.text("md5sums", &sums);
    control.text("triggers", TRIGGERS);
    control.text("conffiles", &format!("/{INIT_SCRIPT}\n"));
    for (name, text) in CONTROL {
        control.program(name, Content::Bytes(text.as_bytes().to_vec()));
    }
    Ok(control)
}

#[cfg(test)]
mod tests;

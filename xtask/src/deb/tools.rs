//! The Debian package `xen-rust-tools`: `xstore`, and examples of the libraries for domain 0.

use std::path::{Path, PathBuf};

use anyhow::Result;
use stubdm_image::cpio::{Archive, Content};

use super::{VERSION, add_documents, add_pages, sums, write};
use crate::release::Arch;
use crate::workspace::Workspace;
use crate::{dist, pages};

/// The package's name.
pub(crate) const NAME: &str = "xen-rust-tools";

/// The folder of the examples: no commands, since their names are not theirs alone.
const EXAMPLES: &str = "usr/libexec/xen-rust-tools";

/// Returns lintian's overrides. It takes a program that is static and position-independent for a
/// library; those of arm64 are static only.
fn overrides(arch: Arch) -> String {
    let tag = match arch {
        Arch::Amd64 => "shared-library-lacks-prerequisites",
        Arch::Arm64 => "statically-linked-binary",
    };
    format!("# Programs that need no library.\n{NAME}: {tag} *\n")
}

/// Builds the tools and their package for an architecture.
pub(crate) fn build(workspace: &Workspace, arch: Arch) -> Result<PathBuf> {
    let programs = dist::build_tools(workspace, arch)?;
    pages::write(workspace)?;
    let data = data(workspace, &programs, &workspace.dist().join("xstore"), arch)?;
    let debian = arch.debian();
    let file = workspace
        .dist()
        .join(format!("{NAME}_{VERSION}_{debian}.deb"));
    write(&file, &control(&data, arch)?, &data)?;
    Ok(file)
}

/// Returns the package's files; `pages` is the folder with the `man` and `completions` of `xstore`.
fn data(workspace: &Workspace, programs: &[PathBuf], pages: &Path, arch: Arch) -> Result<Archive> {
    let mut data = Archive::bare();
    for ((_, kind, name), program) in dist::TOOLS.iter().zip(programs) {
        let folder = if *kind == "--example" {
            EXAMPLES
        } else {
            "usr/bin"
        };
        data.program(&format!("{folder}/{name}"), Content::File(program.clone()));
    }
    add_pages(&mut data, pages)?;
    data.text(
        &format!("usr/share/lintian/overrides/{NAME}"),
        &overrides(arch),
    );
    add_documents(&mut data, workspace, NAME, &["xstore.md"])?;
    Ok(data)
}

/// Returns the package's control files.
fn control(data: &Archive, arch: Arch) -> Result<Archive> {
    let (sums, size) = sums(data)?;
    let mut control = Archive::bare();
    let text = include_str!("../../assets/deb/control-tools")
        .replace("@VERSION@", VERSION)
        .replace("@ARCH@", arch.debian())
        .replace("@SIZE@", &size.to_string());
    control.text("control", &text);
    control.text("md5sums", &sums);
    Ok(control)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::super::tests::run;
    use super::*;

    /// Makes the programs and pages of the package in a folder.
    fn programs(folder: &Path) -> Vec<PathBuf> {
        let names = dist::TOOLS.iter().map(|(_, _, name)| name);
        let programs: Vec<PathBuf> = names.map(|name| folder.join(name)).collect();
        for program in &programs {
            fs::write(program, "#!/bin/sh\n").unwrap();
        }
        for page in ["man/xstore.1", "completions/_xstore"] {
            let page = folder.join(page);
            fs::create_dir_all(page.parent().unwrap()).unwrap();
            fs::write(page, "text\n").unwrap();
        }
        programs
    }

    #[test]
    fn it_brings_each_tool_its_pages_and_its_licence() {
        let dir = tempfile::tempdir().unwrap();
        let workspace = Workspace::find().unwrap();
        let data = data(&workspace, &programs(dir.path()), dir.path(), Arch::Arm64).unwrap();
        let file = dir.path().join("x.deb");
        write(&file, &control(&data, Arch::Arm64).unwrap(), &data).unwrap();
        let dpkg_deb = |arguments: &[&str]| {
            let output = run(Command::new("dpkg-deb").args(arguments).arg(&file));
            String::from_utf8(output.stdout).unwrap()
        };
        let listing = dpkg_deb(&["-c"]);
        for tool in [
            "usr/bin/xstore",
            "usr/libexec/xen-rust-tools/xen-list",
            "usr/libexec/xen-rust-tools/xen-top",
            "usr/libexec/xen-rust-tools/xen-console-ring",
        ] {
            let mut lines = listing.lines().filter(|line| line.ends_with(tool));
            let line = lines.next().unwrap_or("no line");
            assert!(line.starts_with("-rwxr-xr-x root/root "), "{tool}: {line}");
        }
        for part in [
            " usr/share/man/man1/xstore.1.gz\n",
            " usr/share/zsh/vendor-completions/_xstore\n",
            " usr/share/doc/xen-rust-tools/xstore.md.gz\n",
            " usr/share/doc/xen-rust-tools/copyright\n",
            " usr/share/doc/xen-rust-tools/changelog.gz\n",
            " usr/share/lintian/overrides/xen-rust-tools\n",
        ] {
            assert!(listing.contains(part), "no {part:?} in\n{listing}");
        }
        let fields = dpkg_deb(&["-f"]);
        for field in [
            &format!("Version: {VERSION}\n"),
            "Package: xen-rust-tools\n",
            "Architecture: arm64\n",
        ] {
            assert!(fields.contains(field), "{fields}");
        }
        assert!(!fields.contains("@SIZE@"), "{fields}");

        let root = dir.path().join("root");
        run(Command::new("dpkg-deb").arg("-x").arg(&file).arg(&root));
        let overrides = fs::read_to_string(root.join("usr/share/lintian/overrides/xen-rust-tools"));
        assert!(
            overrides
                .unwrap()
                .contains(": statically-linked-binary *\n")
        );
        let documents = root.join("usr/share/doc/xen-rust-tools");
        let changelog = run(Command::new("gzip")
            .arg("-dc")
            .arg(documents.join("changelog.gz")));
        let changelog = String::from_utf8(changelog.stdout).unwrap();
        let head = format!("xen-rust-tools ({VERSION}) ");
        assert!(changelog.starts_with(&head), "{changelog}");
        let copyright = fs::read_to_string(documents.join("copyright")).unwrap();
        assert!(
            copyright.contains("\n Permission is hereby granted"),
            "{copyright}"
        );
        let mut sums = Command::new("dpkg-deb");
        let sums = run(sums.arg("-I").arg(&file).arg("md5sums")).stdout;
        let list = dir.path().join("md5sums");
        fs::write(&list, &sums).unwrap();
        run(Command::new("md5sum")
            .arg("--check")
            .arg(&list)
            .current_dir(&root));
    }

    #[test]
    fn without_a_program_or_a_page_there_is_no_package() {
        let dir = tempfile::tempdir().unwrap();
        let workspace = Workspace::find().unwrap();
        let programs = programs(dir.path());
        fs::remove_file(&programs[1]).unwrap();
        let file = dir.path().join("x.deb");
        let built = data(&workspace, &programs, dir.path(), Arch::Amd64)
            .and_then(|data| write(&file, &control(&data, Arch::Amd64)?, &data));
        let error = format!("{:#}", built.unwrap_err());
        assert!(error.contains("xen-console-ring"), "{error}");
        assert!(!file.exists());
        fs::remove_dir_all(dir.path().join("man")).unwrap();
        let error = data(&workspace, &programs, dir.path(), Arch::Amd64).unwrap_err();
        assert!(format!("{error:#}").contains("man"), "{error:#}");
    }
}

//! The Debian package `xen-rust-tools`: `xstore`, and examples of the libraries for domain 0.

use std::path::{Path, PathBuf};

use anyhow::Result;
use stubdm_image::cpio::{Archive, Content};

use super::{VERSION, add_documents, add_pages, sums, write};
use crate::workspace::Workspace;
use crate::{dist, pages};

/// The package's name.
pub(crate) const NAME: &str = "xen-rust-tools";

/// The folder of the examples: no commands, since their names are not theirs alone.
const EXAMPLES: &str = "usr/libexec/xen-rust-tools";

/// Lintian takes a program that is static and position-independent for a library.
const OVERRIDES: &str = "\
# Static programs that the kernel may load anywhere.
xen-rust-tools: shared-library-lacks-prerequisites *
";

/// Builds the tools and their package.
pub(crate) fn build(workspace: &Workspace) -> Result<PathBuf> {
    let programs = dist::build_tools(workspace)?;
    pages::write(workspace)?;
    let data = data(workspace, &programs, &workspace.dist().join("xstore"))?;
    let file = workspace.dist().join(format!("{NAME}_{VERSION}_amd64.deb"));
    write(&file, &control(&data)?, &data)?;
    Ok(file)
}

/// Returns the package's files; `pages` is the folder with the `man` and `completions` of `xstore`.
fn data(workspace: &Workspace, programs: &[PathBuf], pages: &Path) -> Result<Archive> {
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
    data.text(&format!("usr/share/lintian/overrides/{NAME}"), OVERRIDES);
    add_documents(&mut data, workspace, NAME, &["xstore.md"])?;
    Ok(data)
}

/// Returns the package's control files.
fn control(data: &Archive) -> Result<Archive> {
    let (sums, size) = sums(data)?;
    let mut control = Archive::bare();
    let text = include_str!("../../assets/deb/control-tools")
        .replace("@VERSION@", VERSION)
        .replace("@SIZE@", &size.to_string());
    control.text("control", &text);
    control.text("md5sums", &sums);
    Ok(control)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    fn dpkg_deb(option: &str, file: &Path) -> String {
        let output = Command::new("dpkg-deb")
            .arg(option)
            .arg(file)
            .output()
            .unwrap();
        assert!(output.status.success(), "{option}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn it_brings_each_tool_its_pages_and_its_licence() {
        let dir = tempfile::tempdir().unwrap();
        let programs: Vec<PathBuf> = dist::TOOLS
            .iter()
            .map(|(_, _, name)| dir.path().join(name))
            .collect();
        for program in &programs {
            fs::write(program, "#!/bin/sh\n").unwrap();
        }
        for page in ["man/xstore.1", "completions/_xstore"] {
            let page = dir.path().join(page);
            fs::create_dir_all(page.parent().unwrap()).unwrap();
            fs::write(page, "text\n").unwrap();
        }
        let workspace = Workspace::find().unwrap();
        let data = data(&workspace, &programs, dir.path()).unwrap();
        let file = dir.path().join("x.deb");
        write(&file, &control(&data).unwrap(), &data).unwrap();
        let listing = dpkg_deb("-c", &file);
        for part in [
            " usr/bin/xstore\n",
            " usr/libexec/xen-rust-tools/xen-list\n",
            " usr/libexec/xen-rust-tools/xen-top\n",
            " usr/libexec/xen-rust-tools/xen-console-ring\n",
            " usr/share/man/man1/xstore.1.gz\n",
            " usr/share/zsh/vendor-completions/_xstore\n",
            " usr/share/doc/xen-rust-tools/copyright\n",
            " usr/share/doc/xen-rust-tools/changelog.gz\n",
        ] {
            assert!(listing.contains(part), "no {part:?} in\n{listing}");
        }
        let fields = dpkg_deb("-f", &file);
        for field in [
            &format!("Version: {VERSION}\n"),
            "Package: xen-rust-tools\n",
        ] {
            assert!(fields.contains(field), "{fields}");
        }
        assert!(!fields.contains("@SIZE@"), "{fields}");
    }
}

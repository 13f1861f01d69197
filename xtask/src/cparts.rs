//! The C programs that tests run against: every `testing/c/NAME.c`, built with the unpacked
//! libxen-dev, by this machine's compiler or, for 64-bit Arm, by Debian's unpacked one.
//!
//! A source states in its first line what it links with: `// link: -lxenvchan -lxenstore`. After a
//! change of a header all are built again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

use crate::qemu;
use crate::release::Arch;
use crate::store::{Tree, hex, write_atomically};

/// A compiler of C.
#[derive(Clone, Debug)]
pub(crate) enum Compiler {
    /// This machine's compiler, with its C library's headers.
    Here,
    /// The parts of Debian's cross compiler in this tree, for 64-bit Arm. The compiler proper, the
    /// assembler and the linker are started one by one: the driver would start them by itself, with
    /// this machine's libraries in place of the tree's.
    Cross(PathBuf),
}

/// Builds the programs of `sources` that have changed into `out`; gives their paths.
pub(crate) fn build(
    sources: &Path,
    compiler: &Compiler,
    tree: &Tree,
    out: &Path,
) -> Result<Vec<PathBuf>> {
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
        .map(|file| build_one(file, &headers, compiler, tree, out))
        .collect()
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))
}

fn build_one(
    source: &Path,
    headers: &str,
    compiler: &Compiler,
    tree: &Tree,
    out: &Path,
) -> Result<PathBuf> {
    let text = read(source)?;
    let program = out.join(source.file_stem().context("a C source without a name")?);
    let mark = program.with_extension("stamp");
    let stamp = hex(&Sha256::digest(format!("{}\n{headers}{text}", tree.stamp)));
    if program.exists() && fs::read_to_string(&mark).is_ok_and(|have| have == stamp) {
        return Ok(program);
    }
    let built = match compiler {
        Compiler::Here => here(source, &links(&text), &tree.root, &program),
        Compiler::Cross(tools) => cross(source, &links(&text), tools, &tree.root, &program),
    };
    built.with_context(|| format!("{} does not build", source.display()))?;
    write_atomically(&mark, stamp.as_bytes())?;
    Ok(program)
}

/// The compiler's flags.
const FLAGS: &[&str] = &["-std=gnu11", "-O2", "-g0", "-Wall", "-Wextra", "-Werror"];

/// Leaves the libraries' own needs to the guests: their C library may be newer than this machine's.
const IGNORE: &str = "--unresolved-symbols=ignore-in-shared-libs";

/// Compiles and links by this machine's compiler.
fn here(source: &Path, links: &[&str], root: &Path, program: &Path) -> Result<()> {
    let mut command = Command::new("cc");
    command
        .args(FLAGS)
        .arg("-o")
        .args([program, source])
        .arg("-I")
        .arg(root.join("usr/include"))
        .arg("-L")
        .arg(root.join("usr/lib/x86_64-linux-gnu"))
        .arg(format!("-Wl,{IGNORE}"))
        .args(links);
    run(&mut command).context("a C compiler is needed: package gcc")
}

/// Compiles, assembles and links by the parts of Debian's cross compiler.
fn cross(source: &Path, links: &[&str], tools: &Path, root: &Path, program: &Path) -> Result<()> {
    let triple = Arch::Arm64.triple();
    let tool = |path: &str| -> Result<Command> {
        let mut words = qemu::in_tree(tools)?.into_iter();
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).arg(tools.join(path));
        Ok(command)
    };
    // The compiler's own headers and parts, in the folder of its version.
    let gcc = root.join("usr/lib/gcc").join(triple).join(GCC);
    let include = root.join("usr/include");
    let folders = [gcc.join("include"), include.join(triple), include];
    let (assembly, object) = (program.with_extension("s"), program.with_extension("o"));
    let mut compiler = tool(&format!("usr/lib/gcc-cross/{triple}/{GCC}/cc1"))?;
    compiler.args(["-quiet", "-nostdinc", "-fPIC"]).args(FLAGS);
    for folder in &folders {
        compiler.arg("-isystem").arg(folder);
    }
    run(compiler.arg("-o").arg(&assembly).arg(source))?;
    let mut assembler = tool(&format!("usr/bin/{triple}-as"))?;
    run(assembler.arg("-o").args([&object, &assembly]))?;
    let mut linker = tool(&format!("usr/bin/{triple}-ld"))?;
    // The driver's flags in the linker's form.
    let links = links.iter().map(|flag| match *flag {
        "-rdynamic" => "--export-dynamic",
        flag => flag,
    });
    let libraries = root.join("usr/lib").join(triple);
    linker
        .arg(format!("--sysroot={}", root.display()))
        .args([
            "-pie",
            "-dynamic-linker",
            "/lib/ld-linux-aarch64.so.1",
            IGNORE,
        ])
        .arg("-o")
        .arg(program)
        .args([libraries.join("Scrt1.o"), libraries.join("crti.o")])
        .args([gcc.join("crtbeginS.o"), object.clone()])
        .arg("-L")
        .arg(&libraries)
        .arg("-L")
        .arg(&gcc)
        .args(links)
        .args(["-lc", "-lgcc"])
        .args([gcc.join("crtendS.o"), libraries.join("crtn.o")]);
    run(&mut linker)?;
    for file in [assembly, object] {
        fs::remove_file(file)?;
    }
    Ok(())
}

/// The version of bookworm's compiler, as its folders are called.
const GCC: &str = "12";

fn run(command: &mut Command) -> Result<()> {
    let out = command.output();
    let out = out.with_context(|| format!("starting {:?}", command.get_program()))?;
    ensure!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr).trim_end()
    );
    Ok(())
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
    fn the_first_line_names_what_to_link() {
        assert_eq!(links("// link: -la -lb\nint x;"), ["-la", "-lb"]);
        assert!(links("int x; // link: -la").is_empty());
        assert!(links("").is_empty());
    }
}

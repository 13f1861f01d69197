//! Where an installed libxl looks for the programs and images it starts: its paths are compiled in,
//! and the library is the only one to ask.
//!
//! Distributions differ in them (Debian: `/usr/bin/vchan-socket-proxy`, `/usr/lib/xen-4.17/boot`;
//! built by hand: `/usr/local/bin/…`, `/usr/local/lib/xen/boot`), and several releases can be
//! installed side by side. The strings are `STUBDOM_QMP_PROXY_PATH`, `QEMU_XEN_PATH` and
//! `XENFIRMWAREDIR` of Xen's `tools/configure.ac` and `m4/paths.m4`.

use std::fs;
use std::path::Path;

use stubdm_image::elf::{inside, resolve};
use stubdm_image::linker::Linker;
use stubdm_image::read;

/// Places of the toolstack's program: its libraries lead to a libxl in an unusual folder.
const PROGRAMS: &[&str] = &[
    "usr/sbin/xl",
    "usr/bin/xl",
    "usr/local/sbin/xl",
    "usr/local/bin/xl",
    "run/current-system/sw/bin/xl",
];

/// The folders where a program without a path is looked for: those of systemd and of sysvinit, and
/// NixOS's.
const PATH: &[&str] = &[
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
    "/run/current-system/sw/bin",
];

/// The beginning of the library's file name; its version follows.
const NAME: &str = "libxenlight.so.";

/// One libxl, by what is compiled into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Libxl {
    /// Its release, `4.17`.
    pub version: String,
    /// Its file below the root.
    pub file: String,
    /// The program that carries QMP to a stubdomain; libxl before 4.14 has none.
    pub proxy: Option<String>,
    /// QEMU for guests without a stubdomain, and for a stubdomain's own consoles.
    pub qemu: Option<String>,
    /// The name of a QEMU that libxl looks for on PATH and that is in none of its folders.
    pub not_on_path: Option<String>,
    /// The folder with the stubdomain's kernel and ramdisk for guests that name none.
    pub boot: Option<String>,
}

/// The result of a search for libxl.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// Every libxl, by release, each release once.
    pub found: Vec<Libxl>,
    /// The folders that were searched, for a message.
    pub searched: Vec<String>,
}

impl Libxl {
    /// Every libxl below `root`, by release, each release once.
    pub fn all(root: &Path) -> Vec<Self> {
        Self::search(root).found
    }

    /// Looks for every libxl below `root`: in the dynamic linker's folders, and among the libraries
    /// of the toolstack's program.
    pub fn search(root: &Path) -> Search {
        let linker = Linker::new(root, &[]);
        let mut folders = linker.folders();
        // A folder for each architecture: usr/lib/x86_64-linux-gnu.
        for lib in ["usr/lib", "usr/local/lib", "lib"] {
            let inner = resolve(root, lib).and_then(|dir| Ok(fs::read_dir(dir)?));
            let names = inner.into_iter().flatten().flatten();
            let names = names.filter_map(|entry| entry.file_name().into_string().ok());
            let mut names: Vec<_> = names.filter(|name| name.contains("-linux-")).collect();
            names.sort();
            folders.extend(names.iter().map(|name| format!("{lib}/{name}")));
        }
        let mut search = Search::default();
        for folder in folders {
            search.folder(root, &folder);
        }
        for program in PROGRAMS {
            let shown = format!("the libraries of /{program}");
            search.searched.push(shown);
            let library = inside(root, program).and_then(|path| linker.library(&path, NAME));
            let folder = library
                .ok()
                .and_then(|path| Some(path.rsplit_once('/')?.0.to_owned()));
            if let Some(folder) = folder {
                search.folder(root, &folder);
            }
        }
        search.found.sort_by(|a, b| a.version.cmp(&b.version));
        search
    }

    /// Reads the paths in a library: strings of C that begin with a slash, and a program's name
    /// without one.
    fn of(version: String, library: &[u8]) -> Self {
        let mut libxl = Self {
            version,
            file: String::new(),
            proxy: None,
            qemu: None,
            not_on_path: None,
            boot: None,
        };
        for bytes in library.split(|byte| *byte == 0) {
            if [&b"qemu-system-i386"[..], b"qemu-system-x86_64"].contains(&bytes) {
                let name = String::from_utf8_lossy(bytes).into_owned();
                libxl.not_on_path.get_or_insert(name);
            }
            let Some(path) = absolute(bytes) else {
                continue;
            };
            let slot = match path.rsplit('/').next().unwrap_or_default() {
                "vchan-socket-proxy" => &mut libxl.proxy,
                name if name.ends_with("qemu-system-i386")
                    || name.ends_with("qemu-system-x86_64") =>
                {
                    &mut libxl.qemu
                }
                "boot" => &mut libxl.boot,
                _ => continue,
            };
            slot.get_or_insert_with(|| path.to_owned());
        }
        if libxl.qemu.is_some() {
            libxl.not_on_path = None;
        }
        libxl
    }
}

impl Search {
    /// Adds every libxl in a folder.
    fn folder(&mut self, root: &Path, folder: &str) {
        let shown = format!("/{folder}");
        if self.searched.contains(&shown) {
            return;
        }
        self.searched.push(shown);
        let entries = resolve(root, folder).and_then(|dir| Ok(fs::read_dir(dir)?));
        let names = entries.into_iter().flatten().flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<_> = names.collect();
        names.sort();
        for name in names {
            let Some(version) = release_of(&name) else {
                continue;
            };
            if self.found.iter().any(|known| known.version == version) {
                continue;
            }
            // Links are followed inside the root only.
            let path = format!("{folder}/{name}");
            let file = resolve(root, &path).ok();
            let Some(library) = file.and_then(|file| read::contents(&file).ok()) else {
                continue;
            };
            let mut libxl = Libxl::of(version, &library);
            libxl.file = format!("/{path}");
            if let Some(found) = libxl
                .not_on_path
                .as_ref()
                .and_then(|name| on_path(root, name))
            {
                libxl.qemu = Some(found);
                libxl.not_on_path = None;
            }
            self.found.push(libxl);
        }
    }
}

/// Looks for a program in the folders of PATH below a root.
fn on_path(root: &Path, name: &str) -> Option<String> {
    let mut places = PATH.iter().map(|dir| format!("{dir}/{name}"));
    places.find(|path| resolve(root, path).is_ok_and(|file| file.is_file()))
}

/// Lists the folders of PATH, for a message.
pub fn path() -> String {
    PATH.join(", ")
}

/// `4.17` of `libxenlight.so.4.17` or `libxenlight.so.4.17.0`.
fn release_of(name: &str) -> Option<String> {
    let mut parts = name.strip_prefix(NAME)?.split('.');
    let (major, minor) = (parts.next()?, parts.next()?);
    let number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    (number(major) && number(minor)).then(|| format!("{major}.{minor}"))
}

/// A C string that is an absolute path without surprises, and no format.
fn absolute(bytes: &[u8]) -> Option<&str> {
    let path = std::str::from_utf8(bytes).ok()?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'-' | b'_' | b'.' | b'+');
    let parts = path.strip_prefix('/')?.split('/');
    let good = path.len() < 256 && path.bytes().all(plain);
    (good && parts.clone().all(|part| !matches!(part, "" | "." | ".."))).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_paths_are_read_from_the_library_and_formats_are_not() {
        let library = b"\x7fELF\0/var/%s/boot\0x/boot\0/a/../boot\0/usr/lib/xen-4.17/boot\0\
            /usr/bin/vchan-socket-proxy\0/usr/libexec/xen-qemu-system-i386\0/other/boot\0\xff/boot\0";
        let libxl = Libxl::of("4.17".into(), library);
        assert_eq!(libxl.proxy.as_deref(), Some("/usr/bin/vchan-socket-proxy"));
        assert_eq!(
            libxl.qemu.as_deref(),
            Some("/usr/libexec/xen-qemu-system-i386")
        );
        assert_eq!(libxl.boot.as_deref(), Some("/usr/lib/xen-4.17/boot"));
    }

    #[test]
    fn a_qemu_without_a_path_is_looked_for_on_path() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("usr/lib64")).unwrap();
        let library = "\0qemu-system-i386\0/usr/bin/vchan-socket-proxy\0";
        fs::write(root.join("usr/lib64/libxenlight.so.4.19"), library).unwrap();
        let all = Libxl::all(root);
        assert_eq!(all[0].not_on_path.as_deref(), Some("qemu-system-i386"));
        assert_eq!(all[0].qemu, None);
        fs::create_dir_all(root.join("usr/bin")).unwrap();
        fs::write(root.join("usr/bin/qemu-system-i386"), "").unwrap();
        let all = Libxl::all(root);
        assert_eq!(all[0].qemu.as_deref(), Some("/usr/bin/qemu-system-i386"));
        assert_eq!(all[0].not_on_path, None);
    }

    #[test]
    fn each_release_is_found_once_wherever_it_lies() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for (path, text) in [
            (
                "usr/lib/x86_64-linux-gnu/libxenlight.so.4.17.0",
                "\0/usr/bin/vchan-socket-proxy\0",
            ),
            (
                "usr/local/lib/libxenlight.so.4.20.0",
                "\0/usr/local/bin/vchan-socket-proxy\0",
            ),
            ("usr/lib/libxenlight.so.x", "\0/x/vchan-socket-proxy\0"),
        ] {
            fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            fs::write(root.join(path), text).unwrap();
        }
        let link = root.join("usr/lib/x86_64-linux-gnu/libxenlight.so.4.17");
        std::os::unix::fs::symlink("libxenlight.so.4.17.0", link).unwrap();
        let all = Libxl::all(root);
        let proxies: Vec<_> = all
            .iter()
            .map(|l| (l.version.as_str(), l.proxy.as_deref()))
            .collect();
        assert_eq!(
            proxies,
            [
                ("4.17", Some("/usr/bin/vchan-socket-proxy")),
                ("4.20", Some("/usr/local/bin/vchan-socket-proxy"))
            ]
        );
        assert!(Libxl::all(&root.join("nothing")).is_empty());
    }
}

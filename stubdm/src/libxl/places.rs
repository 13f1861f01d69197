//! Where an installed libxl looks for the programs and images it starts: its paths are compiled in,
//! and the library is the only one to ask.
//!
//! Distributions differ in them (Debian: `/usr/bin/vchan-socket-proxy`, `/usr/lib/xen-4.17/boot`;
//! built by hand: `/usr/local/bin/…`, `/usr/local/lib/xen/boot`), and several releases can be
//! installed side by side. The strings are `STUBDOM_QMP_PROXY_PATH`, `QEMU_XEN_PATH` and
//! `XENFIRMWAREDIR` of Xen's `tools/configure.ac` and `m4/paths.m4`.

use std::fs;
use std::path::Path;

use stubdm_image::elf::resolve;

/// The folders that shared libraries are in; below `usr/lib` also one for each architecture.
const LIBRARY_DIRS: &[&str] = &[
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/local/lib64",
];

/// The beginning of the library's file name; its version follows.
const NAME: &str = "libxenlight.so.";

/// One libxl, by what is compiled into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Libxl {
    /// Its release, `4.17`.
    pub version: String,
    /// The program that carries QMP to a stubdomain; libxl before 4.14 has none.
    pub proxy: Option<String>,
    /// QEMU for guests without a stubdomain, and for a stubdomain's own consoles.
    pub qemu: Option<String>,
    /// The folder with the stubdomain's kernel and ramdisk for guests that name none.
    pub boot: Option<String>,
}

impl Libxl {
    /// Every libxl below `root`, by release, each release once.
    pub fn all(root: &Path) -> Vec<Self> {
        let mut folders: Vec<_> = LIBRARY_DIRS
            .iter()
            .filter_map(|dir| resolve(root, dir).ok())
            .collect();
        let Some(usr_lib) = folders.first().cloned() else {
            return Vec::new();
        };
        let inner = fs::read_dir(usr_lib).into_iter().flatten().flatten();
        // Debian's folder for an architecture: x86_64-linux-gnu.
        folders.extend(
            inner
                .filter(|e| e.file_name().to_string_lossy().contains("-linux-"))
                .map(|e| e.path()),
        );
        let mut all: Vec<Self> = Vec::new();
        for folder in folders {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let name = entry.file_name();
                let Some(version) = name.to_str().and_then(release_of) else {
                    continue;
                };
                if all.iter().any(|known| known.version == version) {
                    continue;
                }
                // Links are followed inside the root only.
                let inside = entry.path();
                let inside = inside.strip_prefix(root).ok().and_then(Path::to_str);
                let file = inside.and_then(|path| resolve(root, path).ok());
                if let Some(library) = file.and_then(|file| fs::read(file).ok()) {
                    all.push(Self::of(version, &library));
                }
            }
        }
        all.sort_by(|a, b| a.version.cmp(&b.version));
        all
    }

    /// Reads the paths in a library: strings of C that begin with a slash.
    fn of(version: String, library: &[u8]) -> Self {
        let mut libxl = Self {
            version,
            proxy: None,
            qemu: None,
            boot: None,
        };
        for bytes in library.split(|byte| *byte == 0) {
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
        libxl
    }
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

//! The host's files, or an image's: paths below a root, and what lies at them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Context, Result};
use crate::image::elf::resolve;

/// Where a host's files are.
#[derive(Clone, Debug)]
pub(super) struct Root {
    dir: PathBuf,
}

/// What lies at a path, links not followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum There {
    Nothing,
    Link(String),
    File,
    /// A folder, a device, or the like.
    Other,
}

impl Root {
    pub(super) fn new(dir: &Path) -> Result<Self> {
        let dir = dir.canonicalize().context(dir.display())?;
        Ok(Self { dir })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether this is the machine's own.
    pub(super) fn is_own(&self) -> bool {
        self.dir == Path::new("/")
    }

    /// The real path of one below the root: links to its folder are followed as if the root were `/`, the last
    /// part is not.
    pub(super) fn real(&self, path: &str) -> PathBuf {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let folder = resolve(&self.dir, folder)
            .unwrap_or_else(|_| self.dir.join(folder.trim_start_matches('/')));
        folder.join(name)
    }

    /// The same path without links on the way to it, still below the root.
    pub(super) fn plain(&self, path: &str) -> String {
        let real = self.real(path);
        match real.strip_prefix(&self.dir).ok().and_then(Path::to_str) {
            Some(inside) => format!("/{inside}"),
            None => path.to_owned(),
        }
    }

    pub(super) fn look(&self, path: &str) -> Result<There> {
        let real = self.real(path);
        let kind = match fs::symlink_metadata(&real) {
            Ok(metadata) => metadata.file_type(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(There::Nothing),
            Err(error) => return Err(error).context(real.display()),
        };
        if kind.is_symlink() {
            let to = fs::read_link(&real).context(real.display())?;
            return Ok(There::Link(to.to_string_lossy().into_owned()));
        }
        Ok(match kind.is_file() {
            true => There::File,
            false => There::Other,
        })
    }

    pub(super) fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.real(path)).ok()
    }

    /// The folders on the way to `path` that are not there, outermost first.
    pub(super) fn missing_folders(&self, path: &str) -> Vec<String> {
        let mut missing = Vec::new();
        let mut folder = path;
        while let Some((outer, _)) = folder.rsplit_once('/') {
            if outer.is_empty() || resolve(&self.dir, outer).is_ok() {
                break;
            }
            missing.insert(0, outer.to_owned());
            folder = outer;
        }
        missing
    }
}

//! Where things are: the workspace's root and the testbed's own folder under `target/`.
//!
//! Everything the testbed downloads, unpacks, builds or logs lives below `target/xen`; removing
//! `target/` removes every trace of it.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// The workspace this program was built from.
#[derive(Clone, Debug)]
pub(crate) struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// Finds the workspace: from cargo's environment when run through `cargo xtask`, else where it
    /// was compiled.
    pub(crate) fn find() -> Result<Self> {
        let manifest = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest
            .parent()
            .with_context(|| format!("{} has no parent folder", manifest.display()))?
            .canonicalize()
            .with_context(|| format!("no workspace around {}", manifest.display()))?;
        Ok(Self { root })
    }

    /// Returns the workspace of another checkout.
    pub(crate) fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// The folder with the workspace's `Cargo.toml`.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The testbed's own folder, `target/xen`, even if `CARGO_TARGET_DIR` is set.
    pub(crate) fn state(&self) -> PathBuf {
        self.root.join("target/xen")
    }

    /// Where the static binaries are built: a target directory of its own, since its flags differ.
    pub(crate) fn dist(&self) -> PathBuf {
        self.root.join("target/dist")
    }

    /// Where the loom models are built: they replace the atomics everywhere.
    pub(crate) fn loom(&self) -> PathBuf {
        self.root.join("target/loom")
    }

    /// Where the oldest compiler's checks are.
    pub(crate) fn oldest(&self) -> PathBuf {
        self.root.join("target/oldest")
    }

    /// Where the libraries' packages are unpacked.
    pub(crate) fn packages(&self) -> PathBuf {
        self.root.join("target/packages")
    }

    /// Where cargo-fuzz builds, and keeps what it finds.
    pub(crate) fn fuzz(&self) -> PathBuf {
        self.root.join("target/fuzz")
    }

    /// A path as a person would type it: relative to the current directory when below it.
    pub(crate) fn show(path: &Path) -> String {
        let here = env::current_dir().unwrap_or_default();
        path.strip_prefix(&here)
            .unwrap_or(path)
            .display()
            .to_string()
    }
}

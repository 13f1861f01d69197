//! The policy that holds on a host: the file named on the command line, else the administrator's
//! file, else the built-in one.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use stubdm_qmp::policy::Policy;

use crate::rt::error::{Context, Failure, Result};

/// The administrator's file.
pub const PATH: &str = "/etc/stubdm/qmp-policy.toml";
/// The longest file that is read, in bytes.
const LENGTH_MAX: u64 = 1 << 20;

/// The policy that holds on a host.
#[derive(Debug)]
pub enum HostPolicy {
    /// The built-in one, not parsed yet: it cannot be wrong.
    BuiltIn,
    /// One from a file.
    File(Box<Policy>, PathBuf),
}

impl HostPolicy {
    /// Finds it, and reads it if it is a file.
    ///
    /// # Errors
    /// The file cannot be read, is longer than 1 MiB, or holds no policy. A file that exists is
    /// never passed over.
    pub fn find(named: Option<&Path>) -> Result<Self> {
        let path = named.unwrap_or(Path::new(PATH));
        match std::fs::symlink_metadata(path) {
            Err(error) if named.is_none() && error.kind() == ErrorKind::NotFound => {
                Ok(Self::BuiltIn)
            }
            _ => Ok(Self::File(Box::new(read(path)?), path.to_owned())),
        }
    }

    /// The policy itself.
    ///
    /// # Errors
    /// The built-in policy is wrong, which a test excludes.
    pub fn into_policy(self) -> Result<Policy> {
        match self {
            Self::BuiltIn => Ok(Policy::built_in()?),
            Self::File(policy, _) => Ok(*policy),
        }
    }
}

impl fmt::Display for HostPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("built-in"),
            Self::File(_, path) => path.display().fmt(f),
        }
    }
}

fn read(path: &Path) -> Result<Policy> {
    let name = path.display().to_string();
    let what = format!("policy {name}");
    let length = std::fs::metadata(path).context(&what)?.len();
    if length > LENGTH_MAX {
        return Err(Failure::new(format_args!(
            "{what}: {length} bytes is too long"
        )));
    }
    let text = std::fs::read_to_string(path).context(&what)?;
    Ok(Policy::from_toml(&text, &name)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_is_there_and_wrong_is_not_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.toml");
        let find = || HostPolicy::find(Some(&path)).and_then(HostPolicy::into_policy);
        let refused = || find().unwrap_err().to_string();
        let missing = refused();
        assert!(
            missing.contains("p.toml") && missing.contains("No such file"),
            "{missing}"
        );
        std::fs::write(&path, "version = 9").unwrap();
        assert!(refused().contains("version 9"));
        std::fs::write(&path, "x".repeat(2 << 20)).unwrap();
        assert!(refused().contains("too long"));
        std::fs::write(&path, "version = 1").unwrap();
        assert_eq!(find().unwrap(), Policy::built_in().unwrap());
    }
}

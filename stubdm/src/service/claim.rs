//! The calls by which the proxy and `consoled` are started again.

use std::ffi::OsStr;
use std::os::fd::RawFd;
use std::path::Path;
use std::str::FromStr;

use tracing::{info, warn};
use xen_store::Store;
use xen_sys::DomId;

use crate::libxl::trusted;
use crate::rt::error::{Context, Failure, Result};
use crate::service::record::{self, Claim, Kind, Record};

/// The value of `--resume`: this process takes the place of one that was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume {
    /// The listening socket that was kept meanwhile.
    pub listener: Option<RawFd>,
}

impl FromStr for Resume {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let listener = match text {
            "-" => None,
            number => Some(number.parse().map_err(|_| "a descriptor or -".to_owned())?),
        };
        Ok(Self { listener })
    }
}

impl std::fmt::Display for Resume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.listener {
            Some(number) => write!(f, "{number}"),
            None => f.write_str("-"),
        }
    }
}

/// Returns a value of a domain's that no other domain of the same number has; empty if there is no
/// such node.
///
/// # Errors
/// The store cannot be read.
pub fn uuid(store: &Store, domain: DomId) -> Result<String> {
    let node = format!("/local/domain/{domain}/vm");
    let path = trusted::read_str(store, &node).context(&node)?;
    Ok(path.unwrap_or_default())
}

/// Records this process as the `kind` of `domain`. A process that was started again writes its
/// number to libxl's node.
///
/// # Errors
/// Another living process is recorded as that. A record that cannot be written is logged: this
/// process is not started again then.
pub fn claim(
    store: &Store,
    folder: Option<&Path>,
    kind: Kind,
    domain: DomId,
    resume: bool,
) -> Result<Option<Claim>> {
    let Some(folder) = folder else {
        return Ok(None);
    };
    let uuid = uuid(store, domain);
    let record = uuid.and_then(|uuid| Record::of_this_process(kind, domain.as_u16(), uuid));
    let claim = match record.and_then(|record| Claim::take(folder, record)) {
        Ok(Some(claim)) => claim,
        Ok(None) => {
            let kind = kind.name();
            return Err(Failure::new(format_args!(
                "another {kind} of domain {domain} is running"
            )));
        }
        Err(failure) => {
            info!("this process is not started again: {failure}");
            return Ok(None);
        }
    };
    if resume {
        let node = format!("/local/domain/{domain}/{}", kind.node());
        // libxl sends SIGHUP to that process at the domain's end, and removes the node.
        if let Err(error) = announce(store, &node, &claim.record().pid.to_string(), resume) {
            warn!("writing {node}: {error}");
        }
    }
    Ok(Some(claim))
}

/// Writes `value` to a node of libxl's. With `resume`, the node was written before: writes it only
/// if it still exists, because libxl may have removed it.
///
/// # Errors
/// The store's.
pub fn announce(store: &Store, node: &str, value: &str, resume: bool) -> xen_store::Result<()> {
    if !resume {
        return store.write(node, value);
    }
    store.with_transaction(|t| {
        if t.exists(node)? {
            t.write(node, value)?;
        }
        Ok(())
    })
}

/// The option that starts a service again.
pub fn option(resume: Resume) -> String {
    format!("{}={resume}", record::RESUME)
}

/// Returns whether a word is that option.
pub fn is_option(word: &OsStr) -> bool {
    word.as_encoded_bytes()
        .starts_with(record::RESUME.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use xen_store_server::{Config, Server};

    #[test]
    fn a_node_that_libxl_removed_is_not_written_by_a_process_that_was_started_again() {
        let server = Server::start(Config::new()).unwrap();
        let store = server.connect(DomId::DOM0).unwrap();
        let node = "/local/domain/7/image/qmp-proxy-pid";
        announce(&store, node, "1", true).unwrap();
        assert!(!store.exists(node).unwrap());
        announce(&store, node, "1", false).unwrap();
        announce(&store, node, "2", true).unwrap();
        assert_eq!(store.read_str(node).unwrap(), "2");
    }
}

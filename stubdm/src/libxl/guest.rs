//! Which guest this stubdomain serves, and with what arguments: from the store.

use stubdm_qmp::text::one_line;
use xen_store::Store;
use xen_sys::DomId;

use crate::libxl::dm_argv::{ArgvError, DmArgv, in_order};
use crate::rt::error::{Context, Failure, Result};

/// How many nodes are asked for at a time.
const READERS: usize = 8;

/// The guest.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Its domain id.
    pub domid: DomId,
    /// Its VM's path, `/vm/UUID`.
    pub vm: String,
}

impl Guest {
    /// Finds the guest. Both nodes are the toolstack's; this domain cannot write them.
    ///
    /// # Errors
    /// This is no stubdomain, or the store cannot be read.
    pub fn read(store: &Store) -> Result<Self> {
        let target = match store.read_str("target") {
            Ok(target) => target,
            Err(error) if error.is_not_found() => {
                return Err(Failure::new(
                    "this domain is no stubdomain: it has no `target` node",
                ));
            }
            Err(error) => return Err(Failure::new(format_args!("reading `target`: {error}"))),
        };
        let domid = target.trim().parse::<DomId>();
        let domid = domid.context(format_args!("`target` says {:?}", one_line(&target)))?;
        let node = format!("/local/domain/{domid}/vm");
        let vm = store
            .read_str(&node)
            .context(format_args!("reading {node}"))?;
        Ok(Self { domid, vm })
    }

    /// Reads QEMU's arguments.
    ///
    /// # Errors
    /// Every [`ArgvError`]; each would give QEMU other arguments than the toolstack meant.
    pub fn argv(&self, store: &Store) -> Result<DmArgv> {
        let directory = format!("{}/image/dm-argv", self.vm);
        let mini_os = || {
            store
                .exists(&format!("{}/image/dmargs", self.vm))
                .unwrap_or(false)
        };
        let names = match store.directory(&directory) {
            Ok(names) if names.is_empty() => {
                return Err(Failure::new(ArgvError::Empty { mini_os: mini_os() }));
            }
            Ok(names) => names,
            Err(error) if error.is_not_found() => {
                return Err(Failure::new(ArgvError::Missing { mini_os: mini_os() }));
            }
            Err(error) => return Err(Failure::new(format_args!("reading {directory}: {error}"))),
        };
        let names = in_order(names).map_err(Failure::new)?;
        DmArgv::new(read_all(store, &directory, &names)?).map_err(Failure::new)
    }
}

/// Reads the named nodes of a directory, several at a time: each is a round trip to another domain,
/// and there is one for every argument while libxl's clock runs.
fn read_all(store: &Store, directory: &str, names: &[String]) -> Result<Vec<Vec<u8>>> {
    let read = |names: &[String]| -> Result<Vec<Vec<u8>>> {
        let one = |name: &String| {
            let node = format!("{directory}/{name}");
            store.read(&node).context(format_args!("reading {node}"))
        };
        names.iter().map(one).collect()
    };
    std::thread::scope(|scope| {
        let share = names.len().div_ceil(READERS).max(1);
        let threads: Vec<_> = names
            .chunks(share)
            .map(|names| scope.spawn(move || read(names)))
            .collect();
        let mut all = Vec::with_capacity(names.len());
        for thread in threads {
            // A panic there would be this program's own fault, and ends it as one here does.
            let part = thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            all.extend(part);
        }
        Ok(all)
    })
}

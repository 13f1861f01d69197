//! Gathers a guest's device-model arguments from the store, in both protocols.

use xen_store::Store;
use xen_sys::DomId;

use crate::libxl::dm_argv::mini_os;
use crate::libxl::guest::Guest;
use crate::libxl::store::{Pair, optional};
use crate::rt::error::{Context, Result};

/// Everything `dmargs` looks at.
#[derive(Clone, Debug)]
pub struct Gathered {
    /// The guest.
    pub guest: DomId,
    /// Its stubdomain.
    pub stubdomain: Option<DomId>,
    /// Its VM's path; `None` for a domain without one.
    pub vm: Option<String>,
    /// The arguments of the Linux protocol, or why there are none.
    pub linux: std::result::Result<Vec<Vec<u8>>, String>,
    /// The words of the Mini-OS protocol, if it was used.
    pub mini_os: Option<Vec<Vec<u8>>>,
    /// `true` if the stubdomain may read the arguments; `None` if that is not known.
    pub readable: Option<bool>,
    /// The stubdomain's block devices, as numbers of Xen's.
    pub disks: Vec<u32>,
    /// The stubdomain's block devices whose backend is a QEMU in dom0.
    pub qdisks: Vec<u32>,
    /// How many network cards the stubdomain has.
    pub cards: usize,
    /// `true` if libxl gave the stubdomain a framebuffer, for which a QEMU stays in dom0.
    pub screen: bool,
    /// The stubdomain's memory in KiB, if the store has it.
    pub memory: Option<u64>,
}

/// Reads the store. Nothing is changed there.
///
/// # Errors
/// No such domain, or the store fails.
pub fn gather(store: &Store, domain: DomId) -> Result<Gathered> {
    let pair = Pair::of(store, domain)?;
    let vm = optional(store, &format!("/local/domain/{}/vm", pair.guest))?;
    let mut all = Gathered {
        guest: pair.guest,
        stubdomain: pair.stubdomain,
        linux: Err("the guest has no `vm` node".to_owned()),
        mini_os: None,
        readable: None,
        disks: Vec::new(),
        qdisks: Vec::new(),
        cards: 0,
        screen: false,
        memory: None,
        vm: vm.clone(),
    };
    if let Some(vm) = vm {
        let guest = Guest {
            domid: pair.guest,
            vm: vm.clone(),
        };
        all.linux = match guest.argv(store) {
            Ok(argv) => Ok(argv.args().to_vec()),
            Err(failure) => Err(failure.to_string()),
        };
        let dmargs = format!("{vm}/image/dmargs");
        all.mini_os = match store.read(&dmargs) {
            Ok(value) => Some(mini_os::split(&value)),
            Err(error) if error.is_not_found() => None,
            Err(error) => Err(error).context(&dmargs)?,
        };
        if let Some(stub) = pair.stubdomain {
            all.readable = readable(store, &format!("{vm}/image/dm-argv"), stub)?;
        }
    }
    if let Some(stub) = pair.stubdomain {
        let devices = |kind: &str| -> Result<Vec<String>> {
            let folder = format!("/local/domain/{stub}/device/{kind}");
            match store.directory(&folder) {
                Ok(names) => Ok(names),
                Err(error) if error.is_not_found() => Ok(Vec::new()),
                Err(error) => Err(error).context(&folder),
            }
        };
        let vbd = devices("vbd")?;
        all.disks = vbd.iter().filter_map(|name| name.parse().ok()).collect();
        for number in all.disks.clone() {
            let node = format!("/local/domain/{stub}/device/vbd/{number}/backend");
            let backend = optional(store, &node)?.unwrap_or_default();
            if backend.contains("/backend/qdisk/") {
                all.qdisks.push(number);
            }
        }
        all.cards = devices("vif")?.len();
        all.screen = !devices("vfb")?.is_empty();
        let memory = optional(store, &format!("/local/domain/{stub}/memory/target"))?;
        all.memory = memory.and_then(|text| text.trim().parse().ok());
    }
    Ok(all)
}

/// Returns whether `stub` may read a node; `None` if there is none.
fn readable(store: &Store, node: &str, stub: DomId) -> Result<Option<bool>> {
    match store.permissions(node) {
        Ok(perms) => Ok(Some(perms.access_of(stub).can_read())),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error).context(node),
    }
}

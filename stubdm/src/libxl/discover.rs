//! Reads a domain's consoles from the store, and anything else that only QEMU would serve.
//!
//! QEMU's command line does not name the disks, displays and the rest that it serves for a domain:
//! it finds them in the store. So the store is asked before QEMU is left out, and what is not known
//! is QEMU's.
//!
//! libxl has dom0 own the nodes `type` and `output` and lets the domain read them, in a folder that
//! is the domain's. Where one is missing the domain, or one that it lets write there, can make it:
//! only what [`crate::libxl::trusted`] accepts is used.

use std::path::PathBuf;

use xen_store::Store;
use xen_sys::DomId;

use crate::libxl::output::Output;
use crate::libxl::trusted;

/// The console that a Linux stubdomain saves QEMU's state to (`STUBDOM_CONSOLE_SAVE` of libxl).
pub const SAVE: u32 = 1;

/// Kinds of backends that belong to a screen.
const SCREENS: &[&str] = &["vfb", "vkbd"];

/// Kinds of backends that dom0's kernel serves, or tapdisk (`vbd3`), by the names of their folders.
const KERNELS: &[&str] = &["vbd", "vbd3", "vif", "pci", "vusb", "vscsi"];

/// One console to be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Console {
    /// Its number.
    pub number: u32,
    /// The backend's folder.
    pub path: String,
    /// The frontend's.
    pub frontend: String,
    /// The destination of its bytes.
    pub output: Output,
}

/// A device's folders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The backend's.
    pub path: String,
    /// The frontend's.
    pub frontend: String,
}

/// A domain's PV screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Display {
    /// The frame buffer.
    pub vfb: Device,
    /// The keyboard and pointer.
    pub vkbd: Option<Device>,
}

/// The service that a domain needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Discovered {
    /// These consoles, and nothing else.
    Consoles(Vec<Console>),
    /// More than consoles; this, for one thing.
    More(String),
}

/// Looks at what is to be served for `domain`; its screen, if it has one, is `screen`'s to serve.
///
/// # Errors
/// The store's.
pub fn discover(store: &Store, domain: DomId, screen: bool) -> xen_store::Result<Discovered> {
    if trusted::read(store, &format!("/local/domain/{domain}/target"))?.is_none() {
        return Ok(Discovered::More(format!(
            "domain {domain} is no stubdomain"
        )));
    }
    let backends = "/local/domain/0/backend";
    for kind in list(store, backends)? {
        let folder = format!("{backends}/{kind}/{domain}");
        let kind_is = |kinds: &[&str]| kinds.contains(&kind.as_str());
        let served = kind == "console" || kind_is(KERNELS) || screen && kind_is(SCREENS);
        if !served && !list(store, &folder)?.is_empty() {
            return Ok(Discovered::More(format!("domain {domain} has a {kind}")));
        }
    }
    consoles(store, domain)
}

/// Returns the consoles that libxl has assigned to QEMU.
///
/// # Errors
/// The store's.
pub fn consoles(store: &Store, domain: DomId) -> xen_store::Result<Discovered> {
    consoles_with(store, domain, false)
}

/// As [`consoles`], for a domain whose consoles were served before. libxl has removed the file of a
/// restored state by then, so the console that reads from it gets nothing.
///
/// # Errors
/// The store's.
pub fn consoles_again(store: &Store, domain: DomId) -> xen_store::Result<Discovered> {
    consoles_with(store, domain, true)
}

fn consoles_with(store: &Store, domain: DomId, again: bool) -> xen_store::Result<Discovered> {
    let folder = format!("/local/domain/0/backend/console/{domain}");
    let mut found = Vec::new();
    for name in list(store, &folder)? {
        let path = format!("{folder}/{name}");
        let frontend = trusted::read_str(store, &format!("{path}/frontend"))?;
        let id = trusted::read_str(store, &format!("{path}/frontend-id"))?;
        let its_own = id.is_some_and(|id| id.parse() == Ok(domain));
        let (Ok(number), Some(frontend), true) = (name.parse(), frontend, its_own) else {
            return Ok(Discovered::More(format!("{path} is not known")));
        };
        if trusted::read(store, &format!("{frontend}/type"))?.as_deref() != Some(b"ioemu") {
            continue;
        }
        let word = trusted::read(store, &format!("{frontend}/output"))?.unwrap_or_default();
        let output = Output::parse(&word).map(|output| match output {
            Output::Pipe(_) if again => Output::Null,
            other => other,
        });
        match output {
            Some(output) if output.is_plain() => found.push(Console {
                number,
                path,
                frontend,
                output,
            }),
            _ => {
                let word = String::from_utf8_lossy(&word);
                return Ok(Discovered::More(format!(
                    "console {number} goes to {word:?}"
                )));
            }
        }
    }
    found.sort_by_key(|console| console.number);
    Ok(Discovered::Consoles(found))
}

/// Returns the domain's screen; `None` if it has none, or one that is not known.
///
/// # Errors
/// The store's.
pub fn display(store: &Store, domain: DomId) -> xen_store::Result<Option<Display>> {
    let device = |kind: &str| -> xen_store::Result<(usize, Option<Device>)> {
        let folder = format!("/local/domain/0/backend/{kind}/{domain}");
        let names = list(store, &folder)?;
        let path = format!("{folder}/0");
        let frontend = trusted::read_str(store, &format!("{path}/frontend"))?;
        let id = trusted::read_str(store, &format!("{path}/frontend-id"))?;
        let its_own = id.is_some_and(|id| id.parse() == Ok(domain));
        let known = names == ["0"] && its_own;
        let device = frontend.filter(|_| known);
        Ok((
            names.len(),
            device.map(|frontend| Device { path, frontend }),
        ))
    };
    let ((_, vfb), (keyboards, vkbd)) = (device("vfb")?, device("vkbd")?);
    let all_known = keyboards == 0 || vkbd.is_some();
    Ok(vfb.filter(|_| all_known).map(|vfb| Display { vfb, vkbd }))
}

/// Returns the file for a stubdomain's saved states, from which libxl takes them.
///
/// # Errors
/// The store's.
pub fn saves_to(store: &Store, domain: DomId) -> xen_store::Result<Option<PathBuf>> {
    let node = format!("/local/domain/{domain}/device/console/{SAVE}/output");
    goes_to(store, &node)
}

/// The file that `output`, a console's node, names; `None` for anything else, and for what is not
/// dom0's word.
///
/// # Errors
/// The store's.
pub fn goes_to(store: &Store, output: &str) -> xen_store::Result<Option<PathBuf>> {
    let word = trusted::read(store, output)?.unwrap_or_default();
    Ok(match Output::parse(&word) {
        Some(Output::File(path)) => Some(path),
        _ => None,
    })
}

/// The names in a folder, none if there is no such folder.
fn list(store: &Store, folder: &str) -> xen_store::Result<Vec<String>> {
    match store.directory(folder) {
        Err(error) if error.is_not_found() => Ok(Vec::new()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libxl::trusted::intercept::{asks_for_perms, between};
    use xen_store::Permissions;
    use xen_store_server::{Config, Server};

    const STUB: DomId = DomId::new(8);

    fn host() -> (Server, Store) {
        let server = Server::start(Config::new()).unwrap();
        server.add_domain(STUB);
        let store = server.connect(DomId::DOM0).unwrap();
        store.write("/local/domain/8/target", "7").unwrap();
        for (number, output) in [(0, Some("file:/var/log/l")), (1, Some("pty")), (2, None)] {
            console(&store, number, output);
        }
        (server, store)
    }

    /// A connection of dom0's that calls `swap` once, after the permissions of an `output` were
    /// read.
    fn swapped(server: &Server, swap: impl FnOnce() + Send + 'static) -> Store {
        let mut swap = Some(swap);
        between(server, move |request, _| {
            if let Some(swap) = asks_for_perms(request).then(|| swap.take()).flatten() {
                swap();
            }
        })
    }

    /// As libxl does.
    fn console(store: &Store, number: u32, output: Option<&str>) {
        let path = format!("/local/domain/0/backend/console/8/{number}");
        let frontend = match number {
            0 => "/local/domain/8/console".to_owned(),
            n => format!("/local/domain/8/device/console/{n}"),
        };
        store.write(&format!("{path}/frontend"), &frontend).unwrap();
        store.write(&format!("{path}/frontend-id"), "8").unwrap();
        store.mkdir(&frontend).unwrap();
        let theirs = Permissions::owner_none(STUB).grant_read(DomId::DOM0);
        store.set_permissions(&frontend, &theirs).unwrap();
        let words = [("type", Some("ioemu")), ("output", output)];
        for (name, word) in words {
            let Some(word) = word else { continue };
            let node = format!("{frontend}/{name}");
            store.write(&node, word).unwrap();
            let ours = Permissions::owner_none(DomId::DOM0).grant_read(STUB);
            store.set_permissions(&node, &ours).unwrap();
        }
    }

    fn outputs(store: &Store) -> Vec<Output> {
        match discover(store, STUB, false).unwrap() {
            Discovered::Consoles(found) => found.into_iter().map(|c| c.output).collect(),
            Discovered::More(what) => panic!("{what}"),
        }
    }

    #[test]
    fn consoles_are_found_with_their_outputs() {
        let (_server, store) = host();
        let log = Output::File("/var/log/l".into());
        assert_eq!(outputs(&store), [log, Output::Pty, Output::Null]);
        // Disks and network cards are the kernel's, and folders of other domains are ignored.
        for node in [
            "vbd/8/51712/state",
            "vif/8/0/state",
            "vbd3/8/51712/state",
            "vusb/8/0/state",
            "vscsi/8/0/state",
            "qdisk/9/51712/state",
            "vfb/8",
        ] {
            store
                .write(&format!("/local/domain/0/backend/{node}"), "1")
                .unwrap();
        }
        assert_eq!(outputs(&store).len(), 3);
    }

    #[test]
    fn a_restored_state_that_was_read_is_not_asked_for_again() {
        let (_server, store) = host();
        // libxl removes the file once the guest runs.
        console(&store, 3, Some("pipe:/nonexistent/state"));
        let first = discover(&store, STUB, false).unwrap();
        assert!(matches!(first, Discovered::More(_)), "{first:?}");
        let Discovered::Consoles(found) = consoles_again(&store, STUB).unwrap() else {
            panic!("not served again");
        };
        let output = found.iter().find(|console| console.number == 3);
        assert_eq!(output.map(|console| &console.output), Some(&Output::Null));
    }

    #[test]
    fn a_word_of_the_domains_own_is_not_believed() {
        let (server, store) = host();
        let theirs = server.connect(STUB).unwrap();
        theirs
            .write("device/console/2/output", "file:/etc/passwd")
            .unwrap();
        assert_eq!(outputs(&store)[2], Output::Null);
        // And one of its folder's is: dom0 wrote it, but the domain may change it.
        store
            .write("/local/domain/8/device/console/1/type", "xenconsoled")
            .unwrap();
        assert_eq!(outputs(&store).len(), 2);
    }

    #[test]
    fn a_word_that_takes_the_place_of_dom0s_between_two_looks_is_not_believed() {
        let theirs = "file:/etc/passwd";
        for node in ["console/output", "device/console/1/output"] {
            let (server, store) = host();
            console(&store, 1, Some("file:/var/lib/xen/qemu-save.7"));
            let domain = server.connect(STUB).unwrap();
            let dom0 = store.clone();
            let swapped = swapped(&server, move || {
                dom0.rm(&format!("/local/domain/{STUB}/{node}")).unwrap();
                domain.write(node, theirs).unwrap();
            });
            let known = if node.starts_with("device") {
                let known = saves_to(&swapped, STUB).unwrap();
                known.map_or(Output::Null, Output::File)
            } else {
                match consoles(&swapped, STUB).unwrap() {
                    Discovered::Consoles(found) => found[0].output.clone(),
                    Discovered::More(what) => panic!("{what}"),
                }
            };
            assert_eq!(known, Output::Null, "{node}");
            let now = store.read(&format!("/local/domain/{STUB}/{node}")).unwrap();
            assert_eq!(now, theirs.as_bytes(), "it was swapped");
        }
    }

    #[test]
    fn whatever_else_there_is_is_qemus() {
        for (node, value, word) in [
            ("0/backend/qdisk/8/51712/state", "1", "qdisk"),
            ("0/backend/vfb/8/0/state", "1", "vfb"),
            ("0/backend/of-tomorrow/8/0/state", "1", "of-tomorrow"),
            ("0/backend/console/8/x/frontend", "/y", "console/8/x"),
            ("8/device/console/1/output", "tcp::1", "tcp::1"),
        ] {
            let (_server, store) = host();
            store
                .write(&format!("/local/domain/{node}"), value)
                .unwrap();
            match discover(&store, STUB, false).unwrap() {
                Discovered::More(what) => assert!(what.contains(word), "{what}"),
                Discovered::Consoles(_) => panic!("{node}"),
            }
        }
        let (_server, store) = host();
        store.rm("/local/domain/8/target").unwrap();
        assert!(matches!(
            discover(&store, STUB, false).unwrap(),
            Discovered::More(_)
        ));
    }

    /// A device as libxl writes it.
    fn device(store: &Store, kind: &str, number: u32) {
        let path = format!("/local/domain/0/backend/{kind}/8/{number}");
        let frontend = format!("/local/domain/8/device/{kind}/{number}");
        store.write(&format!("{path}/frontend"), &frontend).unwrap();
        store.write(&format!("{path}/frontend-id"), "8").unwrap();
    }

    #[test]
    fn a_screen_is_found_and_one_that_is_not_known_is_none() {
        let (_server, store) = host();
        assert_eq!(display(&store, STUB).unwrap(), None);
        device(&store, "vfb", 0);
        let found = display(&store, STUB).unwrap().unwrap();
        assert_eq!(found.vfb.path, "/local/domain/0/backend/vfb/8/0");
        assert_eq!(found.vfb.frontend, "/local/domain/8/device/vfb/0");
        assert_eq!(found.vkbd, None);
        device(&store, "vkbd", 0);
        let found = display(&store, STUB).unwrap().unwrap();
        assert!(found.vkbd.is_some());
        for (screen, served) in [(true, true), (false, false)] {
            let found = discover(&store, STUB, screen).unwrap();
            assert_eq!(matches!(found, Discovered::Consoles(_)), served);
        }
        let frontend = "/local/domain/0/backend/vkbd/8/0/frontend-id";
        store.write(frontend, "9").unwrap();
        assert_eq!(display(&store, STUB).unwrap(), None);
        store.write(frontend, "8").unwrap();
        device(&store, "vfb", 1);
        assert_eq!(display(&store, STUB).unwrap(), None);
    }
}

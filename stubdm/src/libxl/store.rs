//! The host's store as these commands see it: where it is, and which guest a number means.

use std::path::PathBuf;

use clap::Args;
use stubdm_qmp::text::one_line;
use xen_store::Store;
use xen_sys::{DomId, Xen};

use crate::libxl::trusted;
use crate::rt::error::{Context, Failure, Result};

/// Opens the Xen that this program runs on, and its store.
///
/// # Errors
/// No Xen here, or its store does not answer.
pub fn open() -> Result<(Xen, Store)> {
    let xen = Xen::open().context("no Xen here")?;
    let store = Store::open(&xen).context("no store")?;
    Ok((xen, store))
}

/// Which store to ask.
#[derive(Args, Clone, Debug, Default)]
pub struct StoreOptions {
    /// Ask the store at this socket instead of the host's own
    #[arg(long, value_name = "SOCKET", hide_short_help = true)]
    pub store: Option<PathBuf>,
}

impl StoreOptions {
    /// Opens the store.
    ///
    /// # Errors
    /// No Xen here, or nobody at the socket.
    pub fn open(&self) -> Result<Store> {
        self.open_with_xen().map(|(_, store)| store)
    }

    /// Opens the store, and returns its host with it, unless the options name another's socket.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with_xen(&self) -> Result<(Option<Xen>, Store)> {
        match &self.store {
            Some(path) => Ok((None, Store::connect(path).context("no store")?)),
            None => open().map(|(xen, store)| (Some(xen), store)),
        }
    }
}

/// A domain number on the command line.
///
/// # Errors
/// It is none.
pub fn domid(text: &str) -> std::result::Result<DomId, String> {
    let domain: DomId = text.parse().map_err(|error| format!("{error}"))?;
    match domain.as_u16() < DomId::SELF.as_u16() {
        true => Ok(domain),
        false => Err("no domain can have this number".to_owned()),
    }
}

/// A guest and what runs its device model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The guest.
    pub guest: DomId,
    /// Its stubdomain, if the store names one.
    pub stubdomain: Option<DomId>,
}

impl Pair {
    /// Finds guest and stubdomain of `domain`, which may be either.
    ///
    /// # Errors
    /// There is no such domain, or the store fails.
    pub fn of(store: &Store, domain: DomId) -> Result<Self> {
        let home = format!("/local/domain/{domain}");
        if !store.exists(&home).context(&home)? {
            return Err(Failure::new(format_args!("there is no domain {domain}")));
        }
        if let Some(guest) = number(store, &format!("{home}/target"))? {
            return Ok(Self {
                guest,
                stubdomain: Some(domain),
            });
        }
        let stubdomain = number(store, &format!("{home}/image/device-model-domid"))?;
        Ok(Self {
            guest: domain,
            stubdomain,
        })
    }
}

/// A node of dom0's that holds a domain's number; `None` if there is none.
fn number(store: &Store, node: &str) -> Result<Option<DomId>> {
    let Some(text) = trusted::read_str(store, node).context(node)? else {
        return Ok(None);
    };
    let number = text.trim().parse::<DomId>();
    let number = number.context(format_args!("{node} says {:?}", one_line(&text)))?;
    Ok(Some(number))
}

/// A node's value as text; `None` if there is no such node.
///
/// # Errors
/// The store's, other than that the node is missing.
pub fn optional(store: &Store, node: &str) -> Result<Option<String>> {
    match store.read(node) {
        Ok(value) => Ok(Some(String::from_utf8_lossy(&value).into_owned())),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(Failure::new(format_args!("{node}: {error}"))),
    }
}

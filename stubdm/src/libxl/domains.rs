//! The domains that exist: by the hypervisor's list where it can be read, otherwise by the store's.
//!
//! A domain's nodes in the store prove nothing: they exist before the domain and may outlive it.

use std::collections::BTreeMap;

use xen_store::Store;
use xen_sys::privcmd::{DomainFlags, Privcmd};
use xen_sys::{DomId, Xen};

/// The domains of this host.
#[derive(Debug)]
pub struct Domains {
    privcmd: Option<Privcmd>,
    store: Store,
    /// All that the hypervisor had at the last look.
    list: Option<BTreeMap<DomId, bool>>,
}

impl Domains {
    /// Asks the hypervisor of `xen`, and `store` where that does not answer.
    pub fn of(xen: Option<&Xen>, store: &Store) -> Self {
        Self {
            privcmd: xen.and_then(|xen| Privcmd::open(xen).ok()),
            store: store.clone(),
            list: None,
        }
    }

    /// The store that is asked where the hypervisor does not answer.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Takes the hypervisor's list, which later calls of [`exists`](Self::exists) answer from.
    pub fn look(&mut self) {
        let domains = self
            .privcmd
            .as_ref()
            .and_then(|privcmd| privcmd.domains().ok());
        self.list = domains.map(|domains| {
            let lives = |flags: DomainFlags| !flags.contains(DomainFlags::DYING);
            domains
                .iter()
                .map(|domain| (domain.id, lives(domain.flags)))
                .collect()
        });
    }

    /// Returns whether a domain exists; one that is being destroyed does not. `None` if neither the
    /// hypervisor nor the store answers.
    pub fn exists(&self, domain: DomId) -> Option<bool> {
        match &self.list {
            Some(list) => Some(list.get(&domain).copied().unwrap_or(false)),
            None => self.store.is_introduced(domain).ok(),
        }
    }
}

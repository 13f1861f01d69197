//! The daemon's record of each domain.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use xen_sys::DomId;

use crate::quota::Quota;

#[derive(Clone, Debug, Default)]
pub(crate) struct Domain {
    pub(crate) introduced: bool,
    pub(crate) shutdown: bool,
    /// The store's generation when the domain was added. Permission entries written before that are
    /// about an earlier domain with the same id.
    pub(crate) generation: u64,
    pub(crate) nodes: i64,
    pub(crate) memory: i64,
    pub(crate) watches: u32,
    pub(crate) transactions: u32,
    pub(crate) target: Option<DomId>,
    pub(crate) quota: Option<Quota>,
    pub(crate) features: Option<u32>,
}

/// Returns whether a domain exists, for ids that were not added to the daemon.
#[derive(Clone)]
pub(crate) struct Oracle(pub(crate) Arc<dyn Fn(DomId) -> bool + Send + Sync>);

impl fmt::Debug for Oracle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Oracle")
    }
}

#[derive(Debug)]
pub(crate) struct Domains {
    map: HashMap<u16, Domain>,
    oracle: Option<Oracle>,
}

impl Domains {
    /// Creates the record with domain 0.
    pub(crate) fn new(oracle: Option<Oracle>) -> Self {
        let dom0 = Domain {
            introduced: true,
            ..Domain::default()
        };
        Self {
            map: HashMap::from([(0, dom0)]),
            oracle,
        }
    }

    pub(crate) fn get(&self, id: DomId) -> Option<&Domain> {
        self.map.get(&id.as_u16())
    }

    pub(crate) fn get_mut(&mut self, id: DomId) -> Option<&mut Domain> {
        self.map.get_mut(&id.as_u16())
    }

    /// Returns the entry of a domain; adds it if the domain exists and has none.
    pub(crate) fn find_or_add(&mut self, id: DomId, generation: u64) -> Option<&mut Domain> {
        let exists = self.map.contains_key(&id.as_u16())
            || match &self.oracle {
                Some(oracle) => (oracle.0)(id),
                None => !id.is_reserved(),
            };
        exists.then(|| {
            let fresh = || Domain {
                generation,
                ..Domain::default()
            };
            self.map.entry(id.as_u16()).or_insert_with(fresh)
        })
    }

    /// As `find_or_add`, for a domain that is connected and therefore exists.
    pub(crate) fn add(&mut self, id: DomId, generation: u64) -> &mut Domain {
        let fresh = || Domain {
            generation,
            ..Domain::default()
        };
        self.map.entry(id.as_u16()).or_insert_with(fresh)
    }

    pub(crate) fn remove(&mut self, id: DomId) {
        self.map.remove(&id.as_u16());
        for domain in self
            .map
            .values_mut()
            .filter(|domain| domain.target == Some(id))
        {
            domain.target = None;
        }
    }

    /// Whether a permission entry for `id` in a node of `generation` is about the domain that
    /// has this id now.
    pub(crate) fn is_current(&self, id: DomId, generation: u64) -> bool {
        self.get(id)
            .is_some_and(|domain| domain.generation <= generation)
    }

    pub(crate) fn adjust_nodes(&mut self, owner: u16, by: i64) {
        if let Some(domain) = self.map.get_mut(&owner) {
            domain.nodes += by;
        }
    }

    pub(crate) fn adjust_memory(&mut self, owner: u16, by: i64) {
        if let Some(domain) = self.map.get_mut(&owner) {
            domain.memory += by;
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }
}

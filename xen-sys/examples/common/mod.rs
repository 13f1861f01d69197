//! Parts that the tools share: the host they look at, and the domains' names.

#![allow(dead_code, reason = "not every tool prints names")]

use std::error::Error;

use xen_store::Store;
use xen_sys::privcmd::Privcmd;
use xen_sys::{DomId, Xen};

/// An open host. The simulation, if that is what it is, ends with it.
pub(crate) struct Host {
    pub(crate) privcmd: Privcmd,
    store: Option<Store>,
    #[cfg(feature = "sim")]
    simulation: Option<xen_sys::sim::Simulation>,
}

impl Host {
    /// The real host, or a simulated one with that many guests.
    pub(crate) fn open(guests: Option<u16>) -> Result<Self, Box<dyn Error>> {
        let Some(guests) = guests else {
            #[cfg(feature = "sim")]
            let xen = Xen::from_env()?;
            #[cfg(not(feature = "sim"))]
            let xen = Xen::open()?;
            return Ok(Self {
                privcmd: Privcmd::open(&xen)?,
                // Without the store there are no names, and everything else.
                store: Store::open(&xen).ok(),
                #[cfg(feature = "sim")]
                simulation: None,
            });
        };
        #[cfg(feature = "sim")]
        return Self::simulated(guests);
        #[cfg(not(feature = "sim"))]
        Err(format!("{guests} simulated guests need `--features sim`").into())
    }

    #[cfg(feature = "sim")]
    fn simulated(guests: u16) -> Result<Self, Box<dyn Error>> {
        let host = xen_sys::sim::Simulation::start()?;
        for _ in 0..guests {
            host.add_domain()?;
        }
        Ok(Self {
            privcmd: Privcmd::open(&host.xen(DomId::DOM0)?)?,
            store: None,
            simulation: Some(host),
        })
    }

    /// A domain's name: what the toolstack wrote into the store, made printable.
    pub(crate) fn name(&self, domain: DomId) -> Option<String> {
        #[cfg(feature = "sim")]
        if self.simulation.is_some() {
            return Some(match domain {
                DomId::DOM0 => "Domain-0".into(),
                guest => format!("guest-{guest}"),
            });
        }
        let path = format!("/local/domain/{domain}/name");
        let name = self.store.as_ref()?.read_str(&path).ok()?;
        Some(name.chars().map(printable).collect())
    }
}

fn printable(c: char) -> char {
    if c.is_control() { '?' } else { c }
}

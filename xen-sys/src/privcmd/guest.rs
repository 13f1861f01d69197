//! Parts of one guest outside domctl: HVM parameters, ports, the grant table, memory.

use super::Privcmd;
use crate::abi::hypercall as abi;
use crate::ioctl::Evtchn;
use crate::ioctl::privcmd::{
    CurrentReservation, GetHvmParam, MaximumGpfn, MaximumReservation, SetHvmParam,
};
use crate::{DomId, Error, Host, Port, Result, Virq};

/// A parameter of an HVM guest: `HVM_PARAM_*`, xen/include/public/hvm/params.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HvmParam(u32);

macro_rules! params {
    ($($name:ident = $index:literal, $c:literal, $doc:literal;)*) => {
        impl HvmParam {
            $(
                #[doc = $doc]
                #[doc(alias = $c)]
                pub const $name: Self = Self($index);
            )*

            /// The parameters with a name here and the name in C.
            pub const NAMED: &'static [(Self, &'static str)] = &[$((Self::$name, $c)),*];
        }
    };
}

params! {
    CALLBACK_IRQ = 0, "HVM_PARAM_CALLBACK_IRQ", "The way in which the guest gets events.";
    STORE_PFN = 1, "HVM_PARAM_STORE_PFN", "The guest frame of the store's ring.";
    STORE_EVTCHN = 2, "HVM_PARAM_STORE_EVTCHN", "The guest's port to the store.";
    PAE_ENABLED = 4, "HVM_PARAM_PAE_ENABLED", "Without a meaning any more.";
    IOREQ_PFN = 5, "HVM_PARAM_IOREQ_PFN", "The guest frame of the device model's requests.";
    BUFIOREQ_PFN = 6, "HVM_PARAM_BUFIOREQ_PFN", "The guest frame of its buffered requests.";
    VIRIDIAN = 9, "HVM_PARAM_VIRIDIAN", "The interfaces of Hyper-V that the guest sees.";
    TIMER_MODE = 10, "HVM_PARAM_TIMER_MODE", "The treatment of missed timer interrupts.";
    HPET_ENABLED = 11, "HVM_PARAM_HPET_ENABLED", "Not zero if the guest has an HPET.";
    IDENT_PT = 12, "HVM_PARAM_IDENT_PT", "The guest address of an identity page table.";
    DM_DOMAIN = 13, "HVM_PARAM_DM_DOMAIN", "The domain of its device model.";
    ACPI_S_STATE = 14, "HVM_PARAM_ACPI_S_STATE", "The sleep state the guest is in.";
    VM86_TSS = 15, "HVM_PARAM_VM86_TSS", "The guest address of a TSS for real mode.";
    VPT_ALIGN = 16, "HVM_PARAM_VPT_ALIGN", "Not zero if timers are aligned to each other.";
    CONSOLE_PFN = 17, "HVM_PARAM_CONSOLE_PFN", "The guest frame of the console's ring.";
    CONSOLE_EVTCHN = 18, "HVM_PARAM_CONSOLE_EVTCHN", "The guest's port to the console.";
    ACPI_IOPORTS_LOCATION = 19, "HVM_PARAM_ACPI_IOPORTS_LOCATION", "The place of the ACPI ports.";
    NESTEDHVM = 24, "HVM_PARAM_NESTEDHVM", "Without a meaning any more.";
    BUFIOREQ_EVTCHN = 26, "HVM_PARAM_BUFIOREQ_EVTCHN", "The port of the buffered requests.";
    PAGING_RING_PFN = 27, "HVM_PARAM_PAGING_RING_PFN", "The guest frame of the paging ring.";
    MONITOR_RING_PFN = 28, "HVM_PARAM_MONITOR_RING_PFN", "The guest frame of the monitor's ring.";
    SHARING_RING_PFN = 29, "HVM_PARAM_SHARING_RING_PFN", "The guest frame of the sharing ring.";
    TRIPLE_FAULT_REASON = 31, "HVM_PARAM_TRIPLE_FAULT_REASON",
        "The reason a triple fault shuts the guest down for.";
    IOREQ_SERVER_PFN = 32, "HVM_PARAM_IOREQ_SERVER_PFN",
        "The first guest frame for device models.";
    NR_IOREQ_SERVER_PAGES = 33, "HVM_PARAM_NR_IOREQ_SERVER_PAGES",
        "The number of such frames.";
    VM_GENERATION_ID_ADDR = 34, "HVM_PARAM_VM_GENERATION_ID_ADDR",
        "The guest address of the generation ID.";
    ALTP2M = 35, "HVM_PARAM_ALTP2M", "The users of alternative views of the memory.";
    X87_FIP_WIDTH = 36, "HVM_PARAM_X87_FIP_WIDTH",
        "Bytes of the instruction pointer that the FPU saves.";
    VM86_TSS_SIZED = 37, "HVM_PARAM_VM86_TSS_SIZED", "`VM86_TSS` with its size.";
    MCA_CAP = 38, "HVM_PARAM_MCA_CAP", "The machine-check features of the guest.";
}

impl HvmParam {
    /// Creates the parameter numbered `index`, which need not exist.
    #[must_use]
    pub const fn new(index: u32) -> Self {
        Self(index)
    }

    /// Returns the number.
    #[must_use]
    pub const fn as_u32(self) -> u32 {
        self.0
    }
}

/// The binding of a port, in [`PortStatus`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PortState {
    /// Nothing: the port is not in use.
    #[doc(alias = "EVTCHNSTAT_closed")]
    Closed,
    /// It waits for a domain to bind to it.
    #[doc(alias = "EVTCHNSTAT_unbound")]
    Unbound {
        /// The domain.
        remote: DomId,
    },
    /// A port of a domain.
    #[doc(alias = "EVTCHNSTAT_interdomain")]
    Interdomain {
        /// The domain.
        remote: DomId,
        /// Its port.
        port: Port,
    },
    /// A physical interrupt.
    #[doc(alias = "EVTCHNSTAT_pirq")]
    Pirq(u32),
    /// A virtual interrupt.
    #[doc(alias = "EVTCHNSTAT_virq")]
    Virq(Virq),
    /// An interrupt between virtual CPUs.
    #[doc(alias = "EVTCHNSTAT_ipi")]
    Ipi,
    /// A binding that is unknown to this crate, by its number.
    Other(u32),
}

/// An event-channel port at one moment.
///
/// C: `struct evtchn_status`, xen/include/public/event_channel.h.
#[doc(alias = "evtchn_status")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PortStatus {
    /// Its binding.
    pub state: PortState,
    /// The virtual CPU that is notified.
    pub vcpu: u32,
}

/// The size of a grant table, in frames of [`PAGE_SIZE`](crate::PAGE_SIZE) bytes: 512 grants of
/// version 1 each.
///
/// C: `struct gnttab_query_size`, xen/include/public/grant_table.h.
#[doc(alias = "gnttab_query_size")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GrantTableSize {
    /// Frames there are.
    pub frames: u32,
    /// Frames there may be.
    pub max_frames: u32,
}

/// One guest, or this domain itself ([`DomId::SELF`]).
///
/// A domain may make these calls for itself, if its kernel lets it, and for a guest whose device
/// model it is. All calls fail with [`Error::NotPermitted`] where Xen refuses them,
/// [`Error::HypercallsRefused`] where the kernel does, and [`Error::NoDomain`]. Their interfaces
/// have no versions.
impl Privcmd {
    /// Returns a parameter of an HVM guest.
    ///
    /// # Errors
    ///
    /// `EINVAL` when it is no HVM guest, or has no such parameter; those common to all calls.
    ///
    /// ```no_run
    /// # use xen_sys::{DomId, Xen, privcmd::{HvmParam, Privcmd}};
    /// let xen = Privcmd::open(&Xen::open()?)?;
    /// println!("port {}", xen.hvm_param(DomId::new(3), HvmParam::STORE_EVTCHN)?);
    /// # Ok::<(), xen_sys::Error>(())
    /// ```
    #[doc(alias = "xc_hvm_param_get")]
    #[doc(alias = "HVMOP_get_param")]
    pub fn hvm_param(&self, domain: DomId, param: HvmParam) -> Result<u64> {
        let argument = GetHvmParam(param_op(domain, param, 0));
        let (_, GetHvmParam(answer)) = self.backend().operation(Some(domain), argument)?;
        Ok(answer.value)
    }

    /// Sets a parameter of an HVM guest.
    ///
    /// # Errors
    ///
    /// `EEXIST` for a parameter that can be set only once; `EINVAL` when it is no HVM guest, or has
    /// no such parameter or no such value of it; those common to all calls.
    #[doc(alias = "xc_hvm_param_set")]
    #[doc(alias = "HVMOP_set_param")]
    pub fn set_hvm_param(&self, domain: DomId, param: HvmParam, value: u64) -> Result<()> {
        let argument = SetHvmParam(param_op(domain, param, value));
        let done = self.backend().operation(Some(domain), argument);
        done.map(drop)
    }

    /// Returns the binding of a domain's port.
    ///
    /// # Errors
    ///
    /// `EINVAL` when there can be no such port; those common to all calls.
    #[doc(alias = "xc_evtchn_status")]
    #[doc(alias = "EVTCHNOP_status")]
    pub fn port_status(&self, domain: DomId, port: Port) -> Result<PortStatus> {
        let argument = abi::EvtchnStatus {
            dom: domain,
            pad: 0,
            port,
            status: 0,
            vcpu: 0,
            u: 0,
            remote_port: Port::new(0),
        };
        let (_, answer) = self.backend().operation(Some(domain), argument)?;
        // The union's first two bytes, where it is a domain.
        let [low, high, ..] = answer.u.to_ne_bytes();
        let remote = DomId::new(u16::from_ne_bytes([low, high]));
        Ok(PortStatus {
            state: match answer.status {
                abi::EVTCHNSTAT_CLOSED => PortState::Closed,
                abi::EVTCHNSTAT_UNBOUND => PortState::Unbound { remote },
                abi::EVTCHNSTAT_INTERDOMAIN => PortState::Interdomain {
                    remote,
                    port: answer.remote_port,
                },
                abi::EVTCHNSTAT_PIRQ => PortState::Pirq(answer.u),
                abi::EVTCHNSTAT_VIRQ => PortState::Virq(Virq::new(answer.u)),
                abi::EVTCHNSTAT_IPI => PortState::Ipi,
                other => PortState::Other(other),
            },
            vcpu: answer.vcpu,
        })
    }

    /// Returns the number of the domain that this program runs in, from Xen. A program that may
    /// make no hypercall reads the node `domid` of the store instead
    /// (`xen_store::Store::own_domain`): the kernel has no call that returns it.
    ///
    /// Opens a port for this domain itself, requests from Xen the domain that it is for, and closes
    /// it.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] when `/dev/xen/evtchn` does not open, [`Error::Os`] with `ENOSPC` when no
    /// port is left; those common to all calls.
    pub fn own_domain(&self) -> Result<DomId> {
        let status = match self.backend().xen.host() {
            Host::Dev(root) => {
                let channels = Evtchn::open(root)?;
                let port = channels.bind_unbound(DomId::SELF)?;
                self.port_status(DomId::SELF, port)
            }
            #[cfg(feature = "sim")]
            Host::Sim(client) => {
                let bound = client.bind_unbound(client.domain())?;
                let status = self.port_status(DomId::SELF, bound.port);
                client.unbind(bound.port)?;
                status
            }
        };
        match status?.state {
            PortState::Unbound { remote } => Ok(remote),
            _ => Err(Error::Unsupported { op: "own domain" }),
        }
    }

    /// Returns the size of a domain's grant table.
    ///
    /// # Errors
    ///
    /// Those common to all calls.
    #[doc(alias = "xc_gnttab_query_size")]
    #[doc(alias = "GNTTABOP_query_size")]
    pub fn grant_table_size(&self, domain: DomId) -> Result<GrantTableSize> {
        let argument = abi::GnttabQuerySize {
            dom: domain,
            pad: 0,
            nr_frames: 0,
            max_nr_frames: 0,
            status: 0,
            pad2: 0,
        };
        let op = "GNTTABOP_query_size";
        let (_, answer) = self.backend().operation(Some(domain), argument)?;
        // Here the error is in the struct.
        let errno = match answer.status {
            abi::GNTST_OKAY => {
                return Ok(GrantTableSize {
                    frames: answer.nr_frames,
                    max_frames: answer.max_nr_frames,
                });
            }
            abi::GNTST_BAD_DOMAIN => return Err(Error::NoDomain { op, domain }),
            abi::GNTST_PERMISSION_DENIED => libc::EPERM,
            _ => libc::EIO,
        };
        let source = std::io::Error::from_raw_os_error(errno);
        Err(match errno {
            libc::EPERM => Error::NotPermitted {
                op,
                source: source.into(),
            },
            _ => Error::os(op, source),
        })
    }

    /// Returns the version of a domain's grant table: 1 or 2.
    ///
    /// # Errors
    ///
    /// Those common to all calls.
    #[doc(alias = "GNTTABOP_get_version")]
    pub fn grant_table_version(&self, domain: DomId) -> Result<u32> {
        let argument = abi::GnttabGetVersion {
            dom: domain,
            pad: 0,
            version: 0,
        };
        let (_, answer) = self.backend().operation(Some(domain), argument)?;
        Ok(answer.version)
    }

    /// Returns the highest guest frame number that a domain uses.
    ///
    /// # Errors
    ///
    /// Those common to all calls.
    #[doc(alias = "xc_domain_maximum_gpfn")]
    #[doc(alias = "XENMEM_maximum_gpfn")]
    pub fn maximum_gpfn(&self, domain: DomId) -> Result<u64> {
        self.pages(domain, MaximumGpfn)
    }

    /// Returns how many pages of memory a domain has.
    ///
    /// # Errors
    ///
    /// Those common to all calls.
    #[doc(alias = "XENMEM_current_reservation")]
    pub fn current_pages(&self, domain: DomId) -> Result<u64> {
        self.pages(domain, CurrentReservation)
    }

    /// Returns how many pages of memory a domain may have.
    ///
    /// # Errors
    ///
    /// Those common to all calls.
    #[doc(alias = "XENMEM_maximum_reservation")]
    pub fn maximum_pages(&self, domain: DomId) -> Result<u64> {
        self.pages(domain, MaximumReservation)
    }

    fn pages<A: crate::ioctl::privcmd::Operation>(
        &self,
        domain: DomId,
        operation: fn(abi::MemoryDomain) -> A,
    ) -> Result<u64> {
        let argument = operation(abi::MemoryDomain { domid: domain });
        let (pages, _) = self.backend().operation(Some(domain), argument)?;
        Ok(u64::try_from(pages).unwrap_or_default())
    }
}

fn param_op(domain: DomId, param: HvmParam, value: u64) -> abi::HvmParamOp {
    abi::HvmParamOp {
        domid: domain,
        pad: 0,
        index: param.0,
        value,
    }
}

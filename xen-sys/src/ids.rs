//! Xen's numbers, each as a separate type.
//!
//! They are open newtypes over the integer, not enumerations: a hypervisor, a store node or a peer
//! may send any value, and it must survive being carried and printed.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A domain: one virtual machine, or one of Xen's reserved names for one.
///
/// Ordinary domains are `0..0x7FF0`; [`DomId::is_reserved`] returns whether a number is one of the
/// others. The number is reused after about 32 752 domain creations, so it does not name a domain
/// forever.
///
/// C: `domid_t`, xen/include/public/xen.h.
#[doc(alias = "domid_t")]
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct DomId(u16);

impl DomId {
    /// The first domain, which Xen starts and which usually holds the toolstack.
    pub const DOM0: Self = Self(0);
    /// The domain that makes the call.
    #[doc(alias = "DOMID_SELF")]
    pub const SELF: Self = Self(0x7FF0);
    /// The first number that cannot be an ordinary domain.
    #[doc(alias = "DOMID_FIRST_RESERVED")]
    pub const FIRST_RESERVED: Self = Self(0x7FF0);
    /// Xen's name for "no domain".
    #[doc(alias = "DOMID_INVALID")]
    pub const INVALID: Self = Self(0x7FF4);
    /// Xen's name for "no domain in particular". In the permissions of a store node, from Xen 4.22
    /// on, every domain.
    #[doc(alias = "DOMID_ANY")]
    pub const ANY: Self = Self(0x7FF5);
    /// The idle domain, which owns idle virtual CPUs.
    #[doc(alias = "DOMID_IDLE")]
    pub const IDLE: Self = Self(0x7FFF);

    /// Creates the domain numbered `id`, which may be a reserved name.
    #[must_use]
    pub const fn new(id: u16) -> Self {
        Self(id)
    }

    /// Returns the number.
    #[must_use]
    pub const fn as_u16(self) -> u16 {
        self.0
    }

    /// Returns whether this is one of Xen's reserved names (`0x7FF0` and up) and so never a running
    /// domain.
    #[must_use]
    pub const fn is_reserved(self) -> bool {
        self.0 >= Self::FIRST_RESERVED.0
    }
}

/// An event-channel port: the local name, within one domain, of one end of an event channel.
///
/// C: `evtchn_port_t`, xen/include/public/event_channel.h.
#[doc(alias = "evtchn_port_t")]
#[derive(
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(transparent)]
pub struct Port(u32);

impl Port {
    /// Creates the port numbered `port`.
    #[must_use]
    pub const fn new(port: u32) -> Self {
        Self(port)
    }

    /// Returns the number.
    #[must_use]
    pub const fn as_u32(self) -> u32 {
        self.0
    }
}

/// A virtual interrupt: a notification from Xen to a domain, through a port bound to it.
///
/// Xen sends those marked *global* to one domain only, domain 0 unless configured otherwise
/// (`XEN_DOMCTL_set_virq_handler`). Each domain has its own of the others; of
/// [`TIMER`](Self::TIMER), [`DEBUG`](Self::DEBUG), [`XENOPROF`](Self::XENOPROF) and
/// [`XENPMU`](Self::XENPMU), each of its virtual CPUs has its own.
///
/// C: `VIRQ_*`, xen/include/public/xen.h.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Virq(u32);

impl Virq {
    /// A timer has expired, or the time has changed. The kernel has it bound.
    #[doc(alias = "VIRQ_TIMER")]
    pub const TIMER: Self = Self(0);
    /// A request to print the domain's state. Some kernels have it bound.
    #[doc(alias = "VIRQ_DEBUG")]
    pub const DEBUG: Self = Self(1);
    /// Global: something was typed at the emergency console. Domain 0's kernel has it bound.
    #[doc(alias = "VIRQ_CONSOLE")]
    pub const CONSOLE: Self = Self(2);
    /// Global: the state of a domain changed, for example it ended. xenstored has it bound.
    #[doc(alias = "VIRQ_DOM_EXC")]
    pub const DOM_EXC: Self = Self(3);
    /// Global: the trace buffer has records.
    #[doc(alias = "VIRQ_TBUF")]
    pub const TBUF: Self = Self(4);
    /// Global: a domain was paused for its debugger.
    #[doc(alias = "VIRQ_DEBUGGER")]
    pub const DEBUGGER: Self = Self(6);
    /// A sample of the profiler.
    #[doc(alias = "VIRQ_XENOPROF")]
    pub const XENOPROF: Self = Self(7);
    /// Global: Xen's console ring has more bytes.
    #[doc(alias = "VIRQ_CON_RING")]
    pub const CON_RING: Self = Self(8);
    /// Global: a physical CPU was added or removed.
    #[doc(alias = "VIRQ_PCPU_STATE")]
    pub const PCPU_STATE: Self = Self(9);
    /// Global: something happened to memory that is shared between domains.
    #[doc(alias = "VIRQ_MEM_EVENT")]
    pub const MEM_EVENT: Self = Self(10);
    /// A message of Argo.
    #[doc(alias = "VIRQ_ARGO")]
    pub const ARGO: Self = Self(11);
    /// Global: Xen is short of memory.
    #[doc(alias = "VIRQ_ENOMEM")]
    pub const ENOMEM: Self = Self(12);
    /// A performance counter's interrupt.
    #[doc(alias = "VIRQ_XENPMU")]
    pub const XENPMU: Self = Self(13);

    /// Creates the virtual interrupt numbered `virq`, which need not exist.
    #[must_use]
    pub const fn new(virq: u32) -> Self {
        Self(virq)
    }

    /// Returns the number.
    #[must_use]
    pub const fn as_u32(self) -> u32 {
        self.0
    }
}

/// A grant reference: the granting domain's name for one page that it lets one other domain map.
///
/// It has a meaning only together with the granting domain's [`DomId`].
///
/// C: `grant_ref_t`, xen/include/public/grant_table.h.
#[doc(alias = "grant_ref_t")]
#[derive(
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(transparent)]
pub struct GrantRef(u32);

impl GrantRef {
    /// Creates the reference numbered `gref`.
    #[must_use]
    pub const fn new(gref: u32) -> Self {
        Self(gref)
    }

    /// Returns the number.
    #[must_use]
    pub const fn as_u32(self) -> u32 {
        self.0
    }
}

/// Text was not a decimal number in the range of the identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a {what}: {source}")]
pub struct ParseIdError {
    what: &'static str,
    source: ParseIntError,
}

macro_rules! number {
    ($type:ident, $int:ty, $what:literal) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($type), "({})"), self.0)
            }
        }

        impl FromStr for $type {
            type Err = ParseIdError;

            /// Parses a decimal number, as it is written in the store.
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                match text.parse::<$int>() {
                    Ok(n) => Ok(Self(n)),
                    Err(source) => Err(ParseIdError {
                        what: $what,
                        source,
                    }),
                }
            }
        }

        impl From<$type> for $int {
            fn from(id: $type) -> $int {
                id.0
            }
        }
    };
}

number!(DomId, u16, "domain id");
number!(Port, u32, "port");
number!(Virq, u32, "virtual interrupt");
number!(GrantRef, u32, "grant reference");

/// A function of a PCI device, named by its location. Displayed as `0000:03:00.1`.
#[doc(alias = "XEN_DMOP_PCI_SBDF")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciFunction(u32);

impl PciFunction {
    /// Returns the function, or `None` for a device beyond 31 or a function beyond 7.
    #[must_use]
    pub const fn new(segment: u16, bus: u8, device: u8, function: u8) -> Option<Self> {
        if device > 31 || function > 7 {
            return None;
        }
        let (segment, bus) = ((segment as u32) << 16, (bus as u32) << 8);
        Some(Self(segment | bus | (device as u32) << 3 | function as u32))
    }

    /// Returns the function with this address, in the form of a request for configuration space.
    #[must_use]
    pub const fn from_sbdf(sbdf: u32) -> Self {
        Self(sbdf)
    }

    /// Returns its address: segment, bus, device and function in 16, 8, 5 and 3 bits.
    #[must_use]
    pub const fn sbdf(self) -> u32 {
        self.0
    }

    /// Returns the segment.
    #[must_use]
    pub const fn segment(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Returns the bus.
    #[must_use]
    pub const fn bus(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Returns the device on its bus.
    #[must_use]
    pub const fn device(self) -> u8 {
        (self.0 >> 3) as u8 & 31
    }

    /// Returns the function of its device.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.0 as u8 & 7
    }
}

impl fmt::Display for PciFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (segment, bus) = (self.segment(), self.bus());
        let (device, function) = (self.device(), self.function());
        write!(f, "{segment:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_survive_print_and_parse() {
        for n in [0, 1, 0x7FEF, 0x7FF0, u16::MAX] {
            let id = DomId::new(n);
            assert_eq!(id.to_string().parse::<DomId>(), Ok(id));
        }
        assert_eq!(Port::new(u32::MAX).to_string(), "4294967295");
        assert_eq!("12".parse::<GrantRef>(), Ok(GrantRef::new(12)));
    }

    #[test]
    fn what_is_not_a_number_in_range_is_refused_by_name() {
        for text in ["", " 1", "-1", "65536", "0x1", "1\n", "dom0"] {
            let e = text.parse::<DomId>().unwrap_err();
            assert!(
                e.to_string().starts_with("not a domain id: "),
                "{text:?}: {e}"
            );
        }
    }

    #[test]
    fn reserved_names_are_distinguished_from_domains() {
        assert!(!DomId::DOM0.is_reserved());
        assert!(!DomId::new(0x7FEF).is_reserved());
        for id in [DomId::SELF, DomId::INVALID, DomId::IDLE] {
            assert!(id.is_reserved());
        }
    }
}

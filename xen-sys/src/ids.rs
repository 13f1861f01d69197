//! Numbers that come from Xen, each a type of its own.
//!
//! They are open newtypes over the integer, not enumerations: a hypervisor, a store node or a
//! peer may hand us any value, and it must survive being carried and printed.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A domain: one virtual machine, or one of Xen's reserved names for one.
///
/// Ordinary domains are `0..0x7FF0`; [`DomId::is_reserved`] tells the others. The number is
/// reused after about 32 752 domain creations, so it does not name a domain for ever.
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
    /// The idle domain, which owns idle virtual CPUs.
    #[doc(alias = "DOMID_IDLE")]
    pub const IDLE: Self = Self(0x7FFF);

    /// The domain numbered `id`, which may be a reserved name.
    #[must_use]
    pub const fn new(id: u16) -> Self {
        Self(id)
    }

    /// The number.
    #[must_use]
    pub const fn as_u16(self) -> u16 {
        self.0
    }

    /// Whether this is one of Xen's reserved names (`0x7FF0` and up) and so never a running
    /// domain of its own.
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
    /// The port numbered `port`.
    #[must_use]
    pub const fn new(port: u32) -> Self {
        Self(port)
    }

    /// The number.
    #[must_use]
    pub const fn as_u32(self) -> u32 {
        self.0
    }
}

/// A grant reference: the granting domain's name for one page it lets one other domain map.
///
/// It means something only together with the granting domain's [`DomId`].
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
    /// The reference numbered `gref`.
    #[must_use]
    pub const fn new(gref: u32) -> Self {
        Self(gref)
    }

    /// The number.
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
number!(GrantRef, u32, "grant reference");

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
    fn reserved_names_are_told_from_domains() {
        assert!(!DomId::DOM0.is_reserved());
        assert!(!DomId::new(0x7FEF).is_reserved());
        for id in [DomId::SELF, DomId::INVALID, DomId::IDLE] {
            assert!(id.is_reserved());
        }
    }
}

//! Permissions of a node.
//!
//! A list of (domain, access). The first entry is special: its domain *owns* the node and can do
//! everything with it, and its access applies to every domain *without* its own entry. Domain 0 is
//! never denied access. On the wire an entry is a letter and a number, as `r5`
//! (`docs/misc/xenstore.txt`, SET_PERMS).
//!
//! From Xen 4.22 on, an entry of [`DomId::ANY`] is for every domain. Xen's other reserved numbers
//! name no domain: this crate rejects an entry with one.

use std::fmt;
use std::str::FromStr;

use xen_sys::DomId;

use crate::error::Invalid;

/// A domain's access to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Nothing (`n`).
    None,
    /// Read value, children and permissions; see watch events (`r`).
    Read,
    /// Write the value, create children, remove (`w`).
    Write,
    /// Both (`b`).
    ReadWrite,
}

impl Access {
    /// Returns whether reading is included.
    #[must_use]
    pub const fn can_read(self) -> bool {
        matches!(self, Self::Read | Self::ReadWrite)
    }

    /// Returns whether writing is included.
    #[must_use]
    pub const fn can_write(self) -> bool {
        matches!(self, Self::Write | Self::ReadWrite)
    }

    /// Returns the rights of `self` and of `other` together.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        match (
            self.can_read() || other.can_read(),
            self.can_write() || other.can_write(),
        ) {
            (false, false) => Self::None,
            (true, false) => Self::Read,
            (false, true) => Self::Write,
            (true, true) => Self::ReadWrite,
        }
    }

    const fn letter(self) -> char {
        match self {
            Self::None => 'n',
            Self::Read => 'r',
            Self::Write => 'w',
            Self::ReadWrite => 'b',
        }
    }
}

/// One entry of a permission list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[doc(alias = "xs_permissions")]
pub struct Perm {
    /// The domain that the entry is for; [`DomId::ANY`] is every domain (from Xen 4.22 on).
    pub domain: DomId,
    /// Its access.
    pub access: Access,
}

impl fmt::Display for Perm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.access.letter(), self.domain.as_u16())
    }
}

impl FromStr for Perm {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let access = match text.bytes().next() {
            Some(b'n') => Access::None,
            Some(b'r') => Access::Read,
            Some(b'w') => Access::Write,
            Some(b'b') => Access::ReadWrite,
            _ => return Err(Invalid::Permission),
        };
        let digits = &text[1..];
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(Invalid::Permission);
        }
        let domain = digits.parse::<u16>().map_err(|_| Invalid::Permission)?;
        let domain = DomId::new(domain);
        if domain.is_reserved() && domain != DomId::ANY {
            return Err(Invalid::Permission);
        }
        Ok(Self { domain, access })
    }
}

/// The permissions of a node: the owner's entry and any number of others.
///
/// ```
/// use xen_store::{Access, Permissions};
/// use xen_sys::DomId;
///
/// let perms = Permissions::owner_none(DomId::new(3)).grant_read(DomId::new(5));
/// assert_eq!(perms.to_string(), "n3 r5");
/// assert_eq!(perms.owner(), DomId::new(3));
/// assert_eq!(perms.access_of(DomId::new(7)), Access::None);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Permissions(Vec<Perm>);

impl Permissions {
    /// Creates permissions of a node that `owner` owns; every domain without an entry gets
    /// `others`.
    #[must_use]
    pub fn new(owner: DomId, others: Access) -> Self {
        Self(vec![Perm {
            domain: owner,
            access: others,
        }])
    }

    /// Creates permissions of a node that `owner` owns; no other domain gets any access.
    #[must_use]
    pub fn owner_none(owner: DomId) -> Self {
        Self::new(owner, Access::None)
    }

    /// Adds read access for `domain` to the access it has.
    #[must_use]
    pub fn grant_read(self, domain: DomId) -> Self {
        self.grant(domain, Access::Read)
    }

    /// Adds write access for `domain` to the access it has.
    #[must_use]
    pub fn grant_write(self, domain: DomId) -> Self {
        self.grant(domain, Access::Write)
    }

    /// Adds `access` for `domain` to the entry it has, or as a new entry.
    #[must_use]
    pub fn grant(mut self, domain: DomId, access: Access) -> Self {
        match self.0.iter_mut().skip(1).find(|perm| perm.domain == domain) {
            Some(perm) => perm.access = perm.access.union(access),
            None => self.0.push(Perm { domain, access }),
        }
        self
    }

    /// Creates permissions from entries in wire order.
    ///
    /// # Errors
    ///
    /// [`Invalid::NoOwner`] if there are none.
    pub fn from_entries(entries: Vec<Perm>) -> Result<Self, Invalid> {
        if entries.is_empty() {
            Err(Invalid::NoOwner)
        } else {
            Ok(Self(entries))
        }
    }

    /// Returns the entries in wire order, never empty.
    #[must_use]
    pub fn entries(&self) -> &[Perm] {
        &self.0
    }

    /// Returns the domain that owns the node.
    #[must_use]
    pub fn owner(&self) -> DomId {
        self.0[0].domain
    }

    /// Returns the access of `domain`, apart from the privilege of domain 0 and of targets.
    ///
    /// The owner may do everything; otherwise the first entry for the domain or for [`DomId::ANY`]
    /// counts. A daemon before Xen 4.22 ignores the latter.
    #[must_use]
    pub fn access_of(&self, domain: DomId) -> Access {
        let is_for = |perm: &Perm| perm.domain == domain || perm.domain == DomId::ANY;
        if is_for(&self.0[0]) {
            return Access::ReadWrite;
        }
        self.0[1..]
            .iter()
            .find(|perm| is_for(perm))
            .map_or(self.0[0].access, |perm| perm.access)
    }

    /// Returns whether `domain` owns the node and no other domain may write to it. Another domain
    /// may write by the default, by its own entry, or by the entry of a domain whose device model
    /// it is.
    ///
    /// Domain 0 may always write. A domain that recreates a node owns it, unless it is domain 0. So
    /// a node for which this holds with domain 0 has kept domain 0's value, whoever may write to
    /// its parents. For that conclusion, read permissions and value in one transaction.
    #[must_use]
    pub fn written_only_by(&self, domain: DomId) -> bool {
        self.owner() == domain
            && !self.0[0].access.can_write()
            && self.0[1..]
                .iter()
                .all(|perm| perm.domain == domain || !perm.access.can_write())
    }
}

impl fmt::Display for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, perm) in self.0.iter().enumerate() {
            let gap = if index == 0 { "" } else { " " };
            write!(f, "{gap}{perm}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_read_back_as_written() {
        for text in ["n0", "r5", "w32751", "b32757"] {
            assert_eq!(text.parse::<Perm>().unwrap().to_string(), text);
        }
        for text in ["", "r", "5", "x5", "r-1", "r+1", "r65536", "r5 ", "é5"] {
            assert_eq!(text.parse::<Perm>(), Err(Invalid::Permission), "{text:?}");
        }
    }

    #[test]
    fn first_entry_is_owner_and_default() {
        let me = DomId::new(3);
        let peer = DomId::new(5);
        let perms = Permissions::new(me, Access::Read).grant_write(peer);
        assert_eq!(perms.access_of(me), Access::ReadWrite);
        assert_eq!(perms.access_of(peer), Access::Write);
        assert_eq!(perms.access_of(DomId::new(9)), Access::Read);
        assert_eq!(perms.grant_read(peer).access_of(peer), Access::ReadWrite);
    }

    #[test]
    fn a_node_is_written_only_by_its_owner_if_neither_default_nor_entry_lets_another_write() {
        for (text, holds) in [
            ("n0", true),
            ("r0", true),
            ("n0 r8 n9", true),
            ("n0 b0 r8", true),
            ("n9 r8", false),
            ("n8 n0", false),
            ("w0", false),
            ("b0 n8", false),
            ("n0 w8", false),
            ("n0 r8 b9", false),
            ("n0 n9 w9", false),
        ] {
            let entries = text.split(' ').map(|entry| entry.parse().unwrap());
            let perms = Permissions::from_entries(entries.collect()).unwrap();
            assert_eq!(perms.written_only_by(DomId::DOM0), holds, "{text}");
        }
    }

    #[test]
    fn an_entry_for_all_domains_is_for_each_of_them() {
        let perms = |text: &str| {
            let entries = text.split(' ').map(|entry| entry.parse().unwrap());
            Permissions::from_entries(entries.collect()).unwrap()
        };
        let (guest, other) = (DomId::new(5), DomId::new(9));
        let readable = perms("n0 r32757");
        assert_eq!(readable.access_of(guest), Access::Read);
        assert_eq!(readable.access_of(DomId::DOM0), Access::ReadWrite);
        assert!(readable.written_only_by(DomId::DOM0));
        // The first entry for a domain counts.
        assert_eq!(perms("n0 n5 r32757").access_of(guest), Access::None);
        assert_eq!(perms("n0 b32757 n5").access_of(guest), Access::ReadWrite);
        assert_eq!(perms("n0 n5 r32757").access_of(other), Access::Read);
        assert!(!perms("n0 b32757").written_only_by(DomId::DOM0));
        assert_eq!(perms("n32757").access_of(guest), Access::ReadWrite);
        assert!(!perms("n32757").written_only_by(DomId::DOM0));
    }

    #[test]
    fn a_reserved_number_that_is_no_domain_is_refused() {
        for text in ["r32752", "r32756", "r32758", "b32767", "n65535"] {
            assert_eq!(text.parse::<Perm>(), Err(Invalid::Permission), "{text}");
        }
    }

    #[test]
    fn granting_to_the_owner_does_not_change_the_default() {
        let me = DomId::new(3);
        let perms = Permissions::owner_none(me).grant_read(me);
        assert_eq!(perms.access_of(DomId::new(9)), Access::None);
    }
}

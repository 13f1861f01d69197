//! Permission lists as the daemon keeps them.

use std::sync::Arc;

use xen_sys::DomId;

use xen_store::XsError;
use xen_store::wire;
use xen_store::{Access, Perm};

/// One entry of a permission list, with the daemon's own mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) domain: DomId,
    pub(crate) access: Access,
    /// The domain it was written for has ended; a new one with the same id inherits nothing. Or the
    /// entry is for all domains, and its writer was not offered that.
    pub(crate) stale: bool,
}

pub(crate) type Perms = Arc<[Entry]>;

/// Returns permissions with which `owner` owns; no other domain has access.
pub(crate) fn owned_by(owner: DomId) -> Perms {
    [Entry {
        domain: owner,
        access: Access::None,
        stale: false,
    }]
    .into()
}

/// The domain for which a request is carried out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    pub(crate) domain: DomId,
    pub(crate) target: Option<DomId>,
}

impl Identity {
    /// The daemon itself.
    pub(crate) const DAEMON: Self = Self {
        domain: DomId::DOM0,
        target: None,
    };

    pub(crate) fn is_privileged(self) -> bool {
        self.domain == DomId::DOM0
    }

    fn is(self, domain: DomId) -> bool {
        self.domain == domain || self.target == Some(domain)
    }
}

/// A domain's access to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeAccess {
    pub(crate) access: Access,
    pub(crate) owner: bool,
}

impl NodeAccess {
    const ALL: Self = Self {
        access: Access::ReadWrite,
        owner: true,
    };

    /// Returns the access of `who`. Domain 0 and the owner have everything; then the first entry
    /// about the domain, its target or all domains counts, then what the first entry gives to all.
    pub(crate) fn of(who: Identity, perms: &[Entry]) -> Self {
        let Some((first, others)) = perms.split_first() else {
            return Self {
                access: Access::None,
                owner: false,
            };
        };
        if who.is_privileged() || who.is(first.domain) {
            return Self::ALL;
        }
        let own = others
            .iter()
            .find(|entry| !entry.stale && (who.is(entry.domain) || entry.domain == DomId::ANY));
        Self {
            access: own.unwrap_or(first).access,
            owner: false,
        }
    }

    pub(crate) fn allow(self, need: Need) -> bool {
        match need {
            Need::Read => self.access.can_read(),
            Need::Write => self.access.can_write(),
            Need::Own => self.owner && self.access.can_write(),
        }
    }

    /// Returns whether a part of `need` is allowed: enough to be informed that a node below does
    /// not exist.
    pub(crate) fn allow_part(self, need: Need) -> bool {
        match need {
            Need::Own => self.owner || self.access.can_write(),
            Need::Read | Need::Write => self.allow(need),
        }
    }
}

/// The access that a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    Read,
    Write,
    Own,
}

/// Reads the entries of SET_PERMS.
pub(crate) fn parse(payload: &[u8]) -> Result<Vec<Entry>, XsError> {
    wire::strings(payload)
        .map(|field| {
            let text = std::str::from_utf8(field).map_err(|_| XsError::EINVAL)?;
            let Perm { access, domain } = text.parse().or_else(|_| reserved(text))?;
            Ok(Entry {
                domain,
                access,
                stale: false,
            })
        })
        .collect()
}

/// Reads an entry of a reserved number, which clients reject. The daemon keeps it as one of a
/// domain that has ended.
fn reserved(text: &str) -> Result<Perm, XsError> {
    let parts = text.split_at_checked(1);
    let (letter, digits) = parts.ok_or(XsError::EINVAL)?;
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(XsError::EINVAL);
    }
    let domain = digits.parse().map_err(|_| XsError::EINVAL)?;
    let perm: Perm = format!("{letter}0").parse().map_err(|_| XsError::EINVAL)?;
    Ok(Perm {
        domain: DomId::new(domain),
        ..perm
    })
}

/// The reply to GET_PERMS.
pub(crate) fn format(perms: &[Entry]) -> Vec<u8> {
    let text = |entry: &Entry| {
        format!(
            "{}\0",
            Perm {
                domain: entry.domain,
                access: entry.access
            }
        )
    };
    perms.iter().map(text).collect::<String>().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(domain: u16, access: Access) -> Entry {
        Entry {
            domain: DomId::new(domain),
            access,
            stale: false,
        }
    }

    fn access(domain: u16, target: Option<u16>, perms: &[Entry]) -> Access {
        let who = Identity {
            domain: DomId::new(domain),
            target: target.map(DomId::new),
        };
        NodeAccess::of(who, perms).access
    }

    #[test]
    fn owner_entry_default_in_this_order() {
        let perms = [
            entry(3, Access::Read),
            entry(5, Access::None),
            entry(5, Access::ReadWrite),
        ];
        assert_eq!(access(3, None, &perms), Access::ReadWrite);
        assert_eq!(
            access(5, None, &perms),
            Access::None,
            "the first entry counts"
        );
        assert_eq!(access(9, None, &perms), Access::Read, "everyone else");
        assert_eq!(access(0, None, &perms), Access::ReadWrite);
    }

    #[test]
    fn a_target_lends_ownership_and_entries() {
        let perms = [entry(3, Access::None), entry(5, Access::Write)];
        assert_eq!(access(9, Some(3), &perms), Access::ReadWrite);
        assert_eq!(access(9, Some(5), &perms), Access::Write);
        assert_eq!(access(9, Some(7), &perms), Access::None);
    }

    #[test]
    fn an_entry_is_a_letter_and_digits_of_any_domain() {
        let read = |text: &str| {
            let entries = parse(format!("{text}\0").as_bytes())?;
            Ok((entries[0].domain.as_u16(), entries[0].access))
        };
        assert_eq!(read("r5"), Ok((5, Access::Read)));
        assert_eq!(read("w32757"), Ok((32757, Access::Write)));
        assert_eq!(read("b65535"), Ok((65535, Access::ReadWrite)));
        for text in ["", "r", "x5", "r+5", "r-5", "r+32757", "r65536", "é5"] {
            assert_eq!(read(text), Err(XsError::EINVAL), "{text}");
        }
    }

    #[test]
    fn stale_entries_give_nothing() {
        let mut perms = [entry(3, Access::None), entry(5, Access::ReadWrite)];
        perms[1].stale = true;
        assert_eq!(access(5, None, &perms), Access::None);
    }
}

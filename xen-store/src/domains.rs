//! Requests about domains and about the daemon itself.
//!
//! Most of them are for domain 0 only; others get `EACCES` or `EPERM`.

use std::num::NonZeroU32;

use xen_sys::{DomId, Port};

use crate::client::{Store, field, malformed, string, text};
use crate::error::{Error, Result};
use crate::wire::MsgType;

/// The node that the toolstack writes for each domain, in its home.
pub(crate) const DOMID: &str = "domid";

/// Reads the value of [`DOMID`].
pub(crate) fn own_domain(value: &str) -> Result<DomId> {
    let domain = value.trim().parse().ok();
    domain
        .filter(|domain: &DomId| !domain.is_reserved())
        .ok_or(Error::Value {
            node: DOMID,
            expected: "domain's number",
        })
}

impl Store {
    /// Returns the number of the domain that this connection is of: the node `domid`, which the
    /// toolstack writes for every domain that it makes. A program that may make hypercalls can ask
    /// Xen: `xen_sys::privcmd::Privcmd::own_domain`.
    ///
    /// # Errors
    ///
    /// [`Error::Daemon`] with `ENOENT` ([`is_not_found`](Error::is_not_found)) if the toolstack
    /// wrote none; [`Error::Value`] if the node holds no domain's number.
    pub fn own_domain(&self) -> Result<DomId> {
        own_domain(&self.read_str(DOMID)?)
    }

    /// Returns the path that relative paths of `domain` start from: `/local/domain/<id>`.
    ///
    /// # Errors
    ///
    /// Those of any request.
    #[doc(alias = "xs_get_domain_path")]
    pub fn domain_path(&self, domain: DomId) -> Result<String> {
        let kind = MsgType::GET_DOMAIN_PATH;
        string(kind, self.numbers(kind, &[domain.as_u16().into()])?)
    }

    /// Returns whether the daemon serves `domain`.
    ///
    /// # Errors
    ///
    /// Those of any request.
    #[doc(alias = "xs_is_domain_introduced")]
    pub fn is_introduced(&self, domain: DomId) -> Result<bool> {
        let kind = MsgType::IS_DOMAIN_INTRODUCED;
        match self.numbers(kind, &[domain.as_u16().into()])?.as_slice() {
            b"T\0" => Ok(true),
            b"F\0" => Ok(false),
            _ => Err(malformed(kind)),
        }
    }

    /// Tells the daemon to serve `domain`, by the ring at guest frame `gfn` and the event channel
    /// `port` of that domain.
    ///
    /// # Errors
    ///
    /// [`Error::Daemon`]: `EACCES` this domain is not privileged, `EINVAL`
    /// the ring cannot be mapped.
    #[doc(alias = "xs_introduce_domain")]
    pub fn introduce(&self, domain: DomId, gfn: u64, port: Port) -> Result<()> {
        let numbers = [domain.as_u16().into(), gfn, port.as_u32().into()];
        self.numbers(MsgType::INTRODUCE, &numbers).map(drop)
    }

    /// Tells the daemon to stop serving `domain`.
    ///
    /// # Errors
    ///
    /// As [`Store::introduce`]; `ENOENT` if it does not serve it.
    #[doc(alias = "xs_release_domain")]
    pub fn release(&self, domain: DomId) -> Result<()> {
        self.numbers(MsgType::RELEASE, &[domain.as_u16().into()])
            .map(drop)
    }

    /// Tells the daemon to expect `domain` to shut down again, after it was resumed.
    ///
    /// # Errors
    ///
    /// As [`Store::release`].
    #[doc(alias = "xs_resume_domain")]
    pub fn resume(&self, domain: DomId) -> Result<()> {
        self.numbers(MsgType::RESUME, &[domain.as_u16().into()])
            .map(drop)
    }

    /// Lets `domain` act with the rights of `target`, as a stubdomain does for its guest.
    ///
    /// # Errors
    ///
    /// As [`Store::release`].
    #[doc(alias = "xs_set_target")]
    pub fn set_target(&self, domain: DomId, target: DomId) -> Result<()> {
        let numbers = [domain.as_u16().into(), target.as_u16().into()];
        self.numbers(MsgType::SET_TARGET, &numbers).map(drop)
    }

    /// Drops all watches and transactions of this *domain's* connection, also those of other
    /// programs when the kernel's device is shared by them.
    ///
    /// # Errors
    ///
    /// Those of any request.
    pub fn reset_watches(&self) -> Result<()> {
        self.call(MsgType::RESET_WATCHES, 0, &[b"\0"]).map(drop)
    }

    /// Sends a command to the daemon itself and returns what it prints. The commands are the
    /// daemon's own; `help` lists them.
    ///
    /// # Errors
    ///
    /// Those of any request; [`Invalid::Nul`](crate::Invalid::Nul).
    #[doc(alias = "xs_control_command")]
    #[doc(alias = "xs_debug_command")]
    pub fn control(&self, command: &str, arguments: &[&str]) -> Result<String> {
        let mut parts = vec![field(command)?, b"\0"];
        for argument in arguments {
            parts.extend([field(argument)?, b"\0"]);
        }
        let mut payload = self.call(MsgType::CONTROL, 0, &parts)?;
        if payload.last() == Some(&0) {
            payload.pop();
        }
        text(MsgType::CONTROL, payload)
    }

    /// Returns the protocol features the daemon offers this domain, as bits
    /// (`docs/misc/xenstore-ring.txt`). Bits that this crate does not know are kept.
    ///
    /// # Errors
    ///
    /// [`Error::Daemon`] with `ENOSYS` from daemons before Xen 4.21.
    #[doc(alias = "xs_get_features_supported")]
    pub fn features(&self) -> Result<u32> {
        features(&self.call(MsgType::GET_FEATURE, 0, &[])?)
    }

    /// Returns the protocol features the daemon offers `domain`. For domain 0.
    ///
    /// # Errors
    ///
    /// [`Error::Daemon`]: `ENOENT` no such domain; `EACCES` this domain is
    /// not privileged; `ENOSYS` as [`features`](Self::features).
    #[doc(alias = "xs_get_features_domain")]
    pub fn features_of(&self, domain: DomId) -> Result<u32> {
        features(&self.numbers(MsgType::GET_FEATURE, &[domain.as_u16().into()])?)
    }

    /// Limits the protocol features offered to `domain`, before it is introduced. For domain 0.
    ///
    /// # Errors
    ///
    /// [`Error::Daemon`]: `EBUSY` the domain is introduced already; `EINVAL`
    /// a feature that the daemon does not have; otherwise as [`features_of`](Self::features_of).
    #[doc(alias = "xs_set_features_domain")]
    pub fn set_features(&self, domain: DomId, features: u32) -> Result<()> {
        let numbers = [domain.as_u16().into(), features.into()];
        self.numbers(MsgType::SET_FEATURE, &numbers).map(drop)
    }

    /// Returns the names of the daemon's quotas. For domain 0.
    ///
    /// # Errors
    ///
    /// [`Error::Daemon`]: `ENOSYS` from daemons before Xen 4.21; `EACCES`
    /// this domain is not privileged.
    #[doc(alias = "xs_get_quota_names")]
    pub fn quota_names(&self) -> Result<Vec<String>> {
        quota_names(self.call(MsgType::GET_QUOTA, 0, &[])?)
    }

    /// Returns a quota of `domain`, or the one that new domains get; `None` is no limit. For
    /// domain 0.
    ///
    /// # Errors
    ///
    /// [`Error::Daemon`]: `EINVAL` no such quota; `ENOENT` no such domain;
    /// otherwise as [`quota_names`](Self::quota_names).
    #[doc(alias = "xs_get_global_quota")]
    #[doc(alias = "xs_get_domain_quota")]
    pub fn quota(&self, domain: Option<DomId>, name: &str) -> Result<Option<NonZeroU32>> {
        let fields = quota_fields(domain, name, None)?;
        quota(&self.call(MsgType::GET_QUOTA, 0, &[fields.as_bytes()])?)
    }

    /// Changes a quota of `domain`, or the one that new domains get; `None` is no limit. For
    /// domain 0.
    ///
    /// # Errors
    ///
    /// As [`quota`](Self::quota).
    #[doc(alias = "xs_set_global_quota")]
    #[doc(alias = "xs_set_domain_quota")]
    pub fn set_quota(
        &self,
        domain: Option<DomId>,
        name: &str,
        limit: Option<NonZeroU32>,
    ) -> Result<()> {
        let fields = quota_fields(domain, name, Some(limit))?;
        self.call(MsgType::SET_QUOTA, 0, &[fields.as_bytes()])
            .map(drop)
    }

    fn numbers(&self, kind: MsgType, numbers: &[u64]) -> Result<Vec<u8>> {
        self.call(kind, 0, &[number_fields(numbers).as_bytes()])
    }
}

pub(crate) fn number_fields(numbers: &[u64]) -> String {
    numbers.iter().map(|number| format!("{number}\0")).collect()
}

/// A reply that should be one decimal number without a sign.
fn decimal(kind: MsgType, payload: &[u8]) -> Result<u32> {
    let digits = payload.strip_suffix(b"\0").unwrap_or_default();
    let digits = std::str::from_utf8(digits).map_err(|_| malformed(kind))?;
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(malformed(kind));
    }
    digits.parse().map_err(|_| malformed(kind))
}

pub(crate) fn features(payload: &[u8]) -> Result<u32> {
    decimal(MsgType::GET_FEATURE, payload)
}

/// On the wire 0 is no limit.
pub(crate) fn quota(payload: &[u8]) -> Result<Option<NonZeroU32>> {
    decimal(MsgType::GET_QUOTA, payload).map(NonZeroU32::new)
}

pub(crate) fn quota_names(payload: Vec<u8>) -> Result<Vec<String>> {
    let names = string(MsgType::GET_QUOTA, payload)?;
    Ok(names.split_ascii_whitespace().map(str::to_owned).collect())
}

pub(crate) fn quota_fields(
    domain: Option<DomId>,
    name: &str,
    limit: Option<Option<NonZeroU32>>,
) -> Result<String> {
    field(name)?;
    let numbers = |number: Option<u32>| number_fields(number.map(u64::from).as_slice());
    let domain = numbers(domain.map(|domain| domain.as_u16().into()));
    let limit = numbers(limit.map(|limit| limit.map_or(0, NonZeroU32::get)));
    Ok(format!("{domain}{name}\0{limit}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_a_reply_is_digits_and_one_nul() {
        let kind = MsgType::GET_QUOTA;
        assert_eq!(decimal(kind, b"0\0").unwrap(), 0);
        assert_eq!(decimal(kind, b"4294967295\0").unwrap(), u32::MAX);
        for payload in [
            "",
            "\0",
            "7",
            "+7\0",
            "-7\0",
            "7 \0",
            "7\0\0",
            "4294967296\0",
            "é\0",
        ] {
            assert!(decimal(kind, payload.as_bytes()).is_err(), "{payload:?}");
        }
    }
}

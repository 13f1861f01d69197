//! Requests about domains and about the daemon itself.
//!
//! Most of them are for domain 0 only; others get `EACCES` or `EPERM`.

use xen_sys::{DomId, Port};

use crate::client::{Store, field, malformed, string, text};
use crate::error::Result;
use crate::wire::MsgType;

impl Store {
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
    /// [`Error::Daemon`](crate::Error::Daemon): `EACCES` this domain is not privileged, `EINVAL`
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
    /// (`docs/misc/xenstore-ring.txt`).
    ///
    /// # Errors
    ///
    /// [`Error::Daemon`](crate::Error::Daemon) with `ENOSYS` from daemons before Xen 4.21.
    pub fn features(&self) -> Result<u32> {
        let kind = MsgType::GET_FEATURE;
        let value = string(kind, self.call(kind, 0, &[])?)?;
        value.parse().map_err(|_| malformed(kind))
    }

    fn numbers(&self, kind: MsgType, numbers: &[u64]) -> Result<Vec<u8>> {
        let fields: String = numbers.iter().map(|number| format!("{number}\0")).collect();
        self.call(kind, 0, &[fields.as_bytes()])
    }
}

//! The state of virtual CPUs, and of what Xen emulates for an HVM guest: `domctl`.

#[cfg(target_arch = "x86_64")]
use zerocopy::{FromZeros as _, IntoBytes as _};

use super::Privcmd;
use super::version::NO_DATA;
use crate::abi::domctl as abi;
#[cfg(target_arch = "x86_64")]
use crate::abi::vcpu::VcpuGuestContext;
#[cfg(target_arch = "x86_64")]
use crate::ioctl::privcmd::SetVcpuContext;
use crate::ioctl::privcmd::{GetHvmContext, SetHvmContext};
use crate::{DomId, Error, Result};

/// The most bytes of a context: a buffer has no more.
const CONTEXT_MAX: usize = 512 << 10;
/// Tries, each after the guest's state has outgrown the buffer.
const TRIES: usize = 4;

/// Virtual CPUs and their state: xen/include/public/domctl.h. For domain 0 and other control
/// domains.
///
/// All calls fail as the operations on domains do.
impl Privcmd {
    /// Makes the virtual CPUs of a domain, whose number was fixed when the domain was created.
    /// Changes nothing for a domain that has them.
    ///
    /// # Errors
    ///
    /// `EINVAL` for another number, and for this domain itself; [`Error::NoDomain`]; those common
    /// to all calls.
    #[doc(alias = "xc_domain_max_vcpus")]
    #[doc(alias = "XEN_DOMCTL_max_vcpus")]
    pub fn set_max_vcpus(&self, domain: DomId, vcpus: u32) -> Result<()> {
        let body = abi::MaxVcpus { max: vcpus };
        self.backend().domctl(domain, body).map(drop)
    }

    /// Returns the registers of a virtual CPU, which Xen pauses meanwhile. Returns `None` if the
    /// domain was given none of that number, or its guest has not started it. A running guest
    /// continues afterwards: [`pause`](Self::pause) it first if several reads must be consistent.
    ///
    /// The struct is that of x86-64, so the call exists there only. For an HVM guest Xen fills the
    /// registers, CR0, CR2 to CR4, DR0 to DR7, and the bases of FS and GS.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for a PV guest with 32-bit addresses, whose struct is another one;
    /// [`Error::NoDomain`]; those common to all calls.
    #[cfg(target_arch = "x86_64")]
    #[doc(alias = "xc_vcpu_getcontext")]
    #[doc(alias = "XEN_DOMCTL_getvcpucontext")]
    pub fn vcpu_context(&self, domain: DomId, vcpu: u32) -> Result<Option<Box<VcpuGuestContext>>> {
        let body = abi::VcpuContext {
            vcpu,
            ..abi::VcpuContext::default()
        };
        if self.address_bits(domain)? != u64::BITS {
            let op = "XEN_DOMCTL_getvcpucontext";
            return Err(Error::Unsupported { op });
        }
        let mut context = Box::new(VcpuGuestContext::new_zeroed());
        let bytes = context.as_mut_bytes();
        match self.backend().domctl_bytes(domain, body, bytes) {
            Ok(_) => Ok(Some(context)),
            Err(e) if matches!(e.errno(), Some(libc::EINVAL | NO_DATA)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Replaces the registers of a virtual CPU by those of `context`, which
    /// [`vcpu_context`](Self::vcpu_context) returned and the caller changed. Xen pauses the domain
    /// meanwhile; [`pause`](Self::pause) it first, or it runs between the two calls.
    ///
    /// For an HVM guest Xen takes the general registers with RIP and RFLAGS, the floating-point
    /// registers and DR0 to DR7; [`set_hvm_context`](Self::set_hvm_context) sets the others.
    /// Without [`VGCF_I387_VALID`](crate::abi::vcpu::VGCF_I387_VALID) in its flags the
    /// floating-point registers are reset. Without [`VGCF_ONLINE`](crate::abi::vcpu::VGCF_ONLINE)
    /// the virtual CPU goes offline. Registers of AVX and later are reset. The caller is
    /// responsible for the values: a guest that cannot run with them crashes.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a virtual CPU that does not exist, for this domain itself, and for what a PV
    /// guest cannot have; [`Error::Unsupported`] for a PV guest with 32-bit addresses; `EOPNOTSUPP`
    /// when the page tables, GDT or LDT in `context` are not those that a PV guest's virtual CPU
    /// has; [`Error::NoDomain`]; those common to all calls.
    #[cfg(target_arch = "x86_64")]
    #[doc(alias = "xc_vcpu_setcontext")]
    #[doc(alias = "XEN_DOMCTL_setvcpucontext")]
    pub fn set_vcpu_context(
        &self,
        domain: DomId,
        vcpu: u32,
        context: &VcpuGuestContext,
    ) -> Result<()> {
        if self.address_bits(domain)? != u64::BITS {
            let op = "XEN_DOMCTL_setvcpucontext";
            return Err(Error::Unsupported { op });
        }
        let body = SetVcpuContext(abi::VcpuContext {
            vcpu,
            ..abi::VcpuContext::default()
        });
        let mut bytes = context.as_bytes().to_vec();
        let done = self.backend().domctl_bytes(domain, body, &mut bytes);
        done.map(drop)
    }

    /// The width of a guest's addresses in structs for it.
    #[cfg(target_arch = "x86_64")]
    fn address_bits(&self, domain: DomId) -> Result<u32> {
        let body = abi::AddressSize::default();
        match self.backend().domctl(domain, body) {
            Ok((_, answer)) => Ok(answer.size),
            // An HVM guest, whose width depends on the processor's mode.
            Err(e) if e.errno() == Some(libc::EOPNOTSUPP) => Ok(u64::BITS),
            Err(e) => Err(e),
        }
    }

    /// Returns everything that Xen keeps of an HVM guest, besides its memory: the records that
    /// [`hvm_save`](crate::hvm_save) reads. Xen pauses the guest meanwhile.
    ///
    /// # Errors
    ///
    /// `EINVAL` if it is no HVM guest, and for this domain itself; `ENOSPC` if it grew at each of
    /// four tries; [`Error::Unsupported`] on architectures other than x86; [`Error::NoDomain`];
    /// those common to all calls.
    ///
    /// ```no_run
    /// # use xen_sys::{DomId, Xen, hvm_save::Records, privcmd::Privcmd};
    /// let context = Privcmd::open(&Xen::open()?)?.hvm_context(DomId::new(3))?;
    /// println!("{} records", Records::new(&context).map_or(0, Iterator::count));
    /// # Ok::<(), xen_sys::Error>(())
    /// ```
    #[doc(alias = "xc_domain_hvm_getcontext")]
    #[doc(alias = "XEN_DOMCTL_gethvmcontext")]
    pub fn hvm_context(&self, domain: DomId) -> Result<Vec<u8>> {
        let op = "XEN_DOMCTL_gethvmcontext";
        sized(op, |bytes| {
            let body = GetHvmContext(abi::HvmContext::default());
            let answer = self.backend().domctl_bytes(domain, body, bytes)?;
            Ok(answer.0.size.into())
        })
    }

    /// Returns one record of that state, without its descriptor; `None` if there is none. Xen
    /// pauses the virtual CPU meanwhile, or the guest if the record does not belong to a virtual
    /// CPU.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a kind that does not exist; those of [`hvm_context`](Self::hvm_context).
    #[doc(alias = "xc_domain_hvm_getcontext_partial")]
    #[doc(alias = "XEN_DOMCTL_gethvmcontext_partial")]
    pub fn hvm_record(&self, domain: DomId, kind: u16, instance: u16) -> Result<Option<Vec<u8>>> {
        let op = "XEN_DOMCTL_gethvmcontext_partial";
        let record = sized(op, |bytes| {
            let body = abi::HvmContextPartial {
                kind: kind.into(),
                instance: instance.into(),
                ..abi::HvmContextPartial::default()
            };
            let answer = self.backend().domctl_bytes(domain, body, bytes)?;
            Ok(answer.bufsz)
        });
        match record {
            Ok(record) => Ok(Some(record)),
            Err(e) if matches!(e.errno(), Some(libc::ENOENT | NO_DATA)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Replaces all that Xen keeps of an HVM guest by `context`, from
    /// [`hvm_context`](Self::hvm_context). Xen pauses the guest meanwhile.
    ///
    /// The caller is responsible for the bytes. Xen checks the records one after the other, so a
    /// guest whose context it rejects in the middle has a part of it.
    ///
    /// # Errors
    ///
    /// `EINVAL` for bytes that are no such context, if it is no HVM guest, and for this domain
    /// itself; [`Error::Invalid`] for no bytes or more than 512 KiB; [`Error::Unsupported`]
    /// elsewhere than on x86; [`Error::NoDomain`]; those common to all calls.
    #[doc(alias = "xc_domain_hvm_setcontext")]
    #[doc(alias = "XEN_DOMCTL_sethvmcontext")]
    pub fn set_hvm_context(&self, domain: DomId, context: &[u8]) -> Result<()> {
        let op = "XEN_DOMCTL_sethvmcontext";
        if context.is_empty() {
            return Err(too_long(op, 0));
        }
        room(op, context.len() as u64)?;
        let body = SetHvmContext(abi::HvmContext::default());
        let mut bytes = context.to_vec();
        let done = self.backend().domctl_bytes(domain, body, &mut bytes);
        done.map(drop)
    }
}

/// Requests a length with no bytes, and then the bytes; the call returns how many it wrote, or
/// fails if they are not enough.
fn sized(op: &'static str, mut call: impl FnMut(&mut [u8]) -> Result<u64>) -> Result<Vec<u8>> {
    let mut refused = None;
    for _ in 0..TRIES {
        let len = room(op, call(&mut [])?)?;
        // No bytes would request the length again.
        let mut bytes = vec![0; len.max(1)];
        match call(&mut bytes) {
            Ok(written) => {
                bytes.truncate(usize::try_from(written).unwrap_or(len).min(len));
                return Ok(bytes);
            }
            Err(e) if matches!(e.errno(), Some(libc::ENOSPC | libc::ENOBUFS)) => refused = Some(e),
            Err(e) => return Err(e),
        }
    }
    let nothing = || Error::os(op, std::io::Error::from_raw_os_error(libc::ENOSPC));
    Err(refused.unwrap_or_else(nothing))
}

/// Returns the length that Xen requires, if a buffer may have it.
fn room(op: &'static str, len: u64) -> Result<usize> {
    let room = usize::try_from(len).ok().filter(|&len| len <= CONTEXT_MAX);
    room.ok_or_else(|| too_long(op, len))
}

fn too_long(op: &'static str, value: u64) -> Error {
    Error::Invalid {
        op,
        what: "the length of the context",
        value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn os(errno: i32) -> Error {
        Error::os("op", std::io::Error::from_raw_os_error(errno))
    }

    #[test]
    fn a_context_that_grows_is_asked_for_again_and_not_forever() {
        let mut size = 10;
        let read = sized("op", |bytes| match bytes.len() {
            0 => Ok(size),
            len if (len as u64) < 30 => {
                size += 10;
                Err(os(libc::ENOSPC))
            }
            len => Ok(len as u64 - 1),
        });
        assert_eq!(read.unwrap().len(), 29);
        let mut calls = 0;
        let error = sized("op", |bytes| {
            calls += 1;
            match bytes.len() {
                0 => Ok(8),
                _ => Err(os(libc::ENOBUFS)),
            }
        });
        assert_eq!(error.unwrap_err().errno(), Some(libc::ENOBUFS));
        assert_eq!(calls, 2 * TRIES);
    }

    #[test]
    fn a_length_is_bounded_before_there_is_memory_for_it() {
        for len in [CONTEXT_MAX as u64 + 1, u64::MAX] {
            let error = sized("op", |_| Ok(len)).unwrap_err();
            assert!(matches!(error, Error::Invalid { value, .. } if value == len));
        }
        let more = sized("op", |bytes| Ok(if bytes.is_empty() { 4 } else { 99 }));
        assert_eq!(more.unwrap().len(), 4);
    }
}

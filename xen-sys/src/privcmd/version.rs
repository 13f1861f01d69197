//! The hypervisor's description of itself: `xen_version`.

use std::fmt;

use bitflags::bitflags;

use super::Privcmd;
use crate::abi::version as abi;
use crate::ioctl::privcmd::Operation;
use crate::{Error, Result};

/// Linux's and Xen's `ENODATA`, which libc does not define for every system.
pub(super) const NO_DATA: i32 = 61;

/// A hypervisor's version; prints as Xen's own tools print it, `4.17.5`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct XenVersion {
    /// 4 of `4.17.5`.
    pub major: u16,
    /// 17 of `4.17.5`.
    pub minor: u16,
    /// `.5` of `4.17.5`; a distribution may put anything here. At most 15 bytes before Xen 4.18.
    pub extra: String,
}

impl fmt::Display for XenVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}{}", self.major, self.minor, self.extra)
    }
}

/// How a hypervisor was compiled.
///
/// `<denied>` in a domain that is not permitted to read it.
#[doc(alias = "xen_compile_info")]
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CompileInfo {
    /// The compiler; at most 63 bytes.
    pub compiler: String,
    /// The user; at most 15 bytes.
    pub by: String,
    /// The user's domain; at most 31 bytes.
    pub domain: String,
    /// The date, in any form; at most 31 bytes.
    pub date: String,
}

bitflags! {
    /// Features that the hypervisor offers the calling domain: `XENFEAT_*`,
    /// xen/include/public/features.h. Bits without a name here are kept.
    #[doc(alias = "xen_feature_info")]
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Features: u32 {
        /// A PV guest may write its page tables.
        #[doc(alias = "XENFEAT_writable_page_tables")]
        const WRITABLE_PAGE_TABLES = 1 << 0;
        /// A PV guest may write its descriptor tables.
        #[doc(alias = "XENFEAT_writable_descriptor_tables")]
        const WRITABLE_DESCRIPTOR_TABLES = 1 << 1;
        /// Xen translates between guest frames and machine frames.
        #[doc(alias = "XENFEAT_auto_translated_physmap")]
        const AUTO_TRANSLATED_PHYSMAP = 1 << 2;
        /// The guest's kernel runs in supervisor mode.
        #[doc(alias = "XENFEAT_supervisor_mode_kernel")]
        const SUPERVISOR_MODE_KERNEL = 1 << 3;
        /// A PAE guest's page directory may be above 4 GiB.
        #[doc(alias = "XENFEAT_pae_pgdir_above_4gb")]
        const PAE_PGDIR_ABOVE_4GB = 1 << 4;
        /// `mmu_update` keeps the accessed and dirty bits.
        #[doc(alias = "XENFEAT_mmu_pt_update_preserve_ad")]
        const MMU_PT_UPDATE_PRESERVE_AD = 1 << 5;
        /// `highmem_assist`.
        #[doc(alias = "XENFEAT_highmem_assist")]
        const HIGHMEM_ASSIST = 1 << 6;
        /// Grant mappings carry the guest's own bits.
        #[doc(alias = "XENFEAT_gnttab_map_avail_bits")]
        const GNTTAB_MAP_AVAIL_BITS = 1 << 7;
        /// An HVM guest gets event channels through an interrupt vector.
        #[doc(alias = "XENFEAT_hvm_callback_vector")]
        const HVM_CALLBACK_VECTOR = 1 << 8;
        /// An HVM guest may use the PV clock.
        #[doc(alias = "XENFEAT_hvm_safe_pvclock")]
        const HVM_SAFE_PVCLOCK = 1 << 9;
        /// An HVM guest may get physical interrupts as event channels.
        #[doc(alias = "XENFEAT_hvm_pirqs")]
        const HVM_PIRQS = 1 << 10;
        /// The domain is domain 0.
        #[doc(alias = "XENFEAT_dom0")]
        const DOM0 = 1 << 11;
        /// Memory operations may name a virtual NUMA node.
        #[doc(alias = "XENFEAT_memory_op_vnode_supported")]
        const MEMORY_OP_VNODE_SUPPORTED = 1 << 13;
        /// Hypercalls may be made by the SMC calling convention.
        #[doc(alias = "XENFEAT_ARM_SMCCC_supported")]
        const ARM_SMCCC_SUPPORTED = 1 << 14;
        /// Linux's RSDP may be anywhere.
        #[doc(alias = "XENFEAT_linux_rsdp_unrestricted")]
        const LINUX_RSDP_UNRESTRICTED = 1 << 15;
        /// Guest frames are not machine frames.
        #[doc(alias = "XENFEAT_not_direct_mapped")]
        const NOT_DIRECT_MAPPED = 1 << 16;
        /// Guest frames are machine frames.
        #[doc(alias = "XENFEAT_direct_mapped")]
        const DIRECT_MAPPED = 1 << 17;

        const _ = !0;
    }
}

/// A domain's UUID, as its toolstack chose it; prints in the usual form. All zeros for a domain
/// without one, such as domain 0.
#[doc(alias = "xen_domain_handle_t")]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct DomainHandle(pub [u8; 16]);

impl fmt::Display for DomainHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            let dash = if matches!(i, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for DomainHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DomainHandle({self})")
    }
}

/// The operations of `xen_version`: xen/include/public/version.h. Any domain may make them, if its
/// kernel lets it; Xen returns some of the values to a privileged domain only.
impl Privcmd {
    /// Returns the hypervisor's version.
    ///
    /// # Errors
    ///
    /// [`Error::HypercallsRefused`] where the kernel refuses hypercalls.
    ///
    /// ```no_run
    /// # use xen_sys::{Xen, privcmd::Privcmd};
    /// let v = Privcmd::open(&Xen::open()?)?.xen_version()?;
    /// println!("{v}"); // 4.17.5
    /// # Ok::<(), xen_sys::Error>(())
    /// ```
    #[doc(alias = "xc_version")]
    #[doc(alias = "XENVER_version")]
    #[doc(alias = "XENVER_extraversion")]
    #[doc(alias = "XENVER_extraversion2")]
    pub fn xen_version(&self) -> Result<XenVersion> {
        let (major, minor) = self.version_numbers()?;
        let extra = self.whole::<abi::ExtraVersion2>(|a| &a.buf);
        let extra = self.or_short(extra, || self.short::<abi::ExtraVersion>(|a| &a.0))?;
        Ok(XenVersion {
            major,
            minor,
            extra,
        })
    }

    pub(crate) fn version_numbers(&self) -> Result<(u16, u16)> {
        let name = "XENVER_version";
        let version = self.backend().xen_version(name, abi::XENVER_VERSION)? as u32;
        Ok(((version >> 16) as u16, version as u16))
    }

    /// Returns the guest types the hypervisor can run, such as `xen-3.0-x86_64 hvm-3.0-x86_64`.
    ///
    /// # Errors
    ///
    /// As [`xen_version`](Self::xen_version).
    #[doc(alias = "XENVER_capabilities")]
    #[doc(alias = "XENVER_capabilities2")]
    pub fn capabilities(&self) -> Result<String> {
        let whole = self.whole::<abi::Capabilities2>(|a| &a.buf);
        self.or_short(whole, || self.short::<abi::Capabilities>(|a| &a.0))
    }

    /// Returns the source the hypervisor was compiled from, such as a commit and its date.
    ///
    /// # Errors
    ///
    /// As [`xen_version`](Self::xen_version).
    #[doc(alias = "XENVER_changeset")]
    #[doc(alias = "XENVER_changeset2")]
    pub fn changeset(&self) -> Result<String> {
        let whole = self.whole::<abi::Changeset2>(|a| &a.buf);
        self.or_short(whole, || self.short::<abi::Changeset>(|a| &a.0))
    }

    /// Returns the hypervisor's command line. At most 1023 bytes before Xen 4.18.
    ///
    /// # Errors
    ///
    /// As [`xen_version`](Self::xen_version).
    #[doc(alias = "XENVER_commandline")]
    #[doc(alias = "XENVER_commandline2")]
    pub fn command_line(&self) -> Result<String> {
        let whole = self.whole::<abi::CommandLine2>(|a| &a.buf);
        self.or_short(whole, || self.short::<abi::CommandLine>(|a| &a.0))
    }

    /// Returns how the hypervisor was compiled.
    ///
    /// # Errors
    ///
    /// As [`xen_version`](Self::xen_version).
    #[doc(alias = "XENVER_compile_info")]
    pub fn compile_info(&self) -> Result<CompileInfo> {
        let info = abi::CompileInfo {
            compiler: [0; 64],
            compile_by: [0; 16],
            compile_domain: [0; 32],
            compile_date: [0; 32],
        };
        let (_, info) = self.backend().operation(None, info)?;
        Ok(CompileInfo {
            compiler: text(&info.compiler),
            by: text(&info.compile_by),
            domain: text(&info.compile_domain),
            date: text(&info.compile_date),
        })
    }

    /// Returns the lowest virtual address that is Xen's in a PV guest's address space; 0 in other
    /// guests.
    ///
    /// # Errors
    ///
    /// As [`xen_version`](Self::xen_version).
    #[doc(alias = "XENVER_platform_parameters")]
    pub fn virt_start(&self) -> Result<u64> {
        let parameters = abi::PlatformParameters::default();
        Ok(self.backend().operation(None, parameters)?.1.virt_start)
    }

    /// Returns the features that the hypervisor offers this domain.
    ///
    /// # Errors
    ///
    /// As [`xen_version`](Self::xen_version).
    #[doc(alias = "XENVER_get_features")]
    pub fn features(&self) -> Result<Features> {
        let (_, info) = self
            .backend()
            .operation(None, abi::FeatureInfo::default())?;
        Ok(Features::from_bits_retain(info.submap))
    }

    /// Returns the size of the hypervisor's pages in bytes; 0 if this domain may not read it.
    ///
    /// # Errors
    ///
    /// As [`xen_version`](Self::xen_version).
    #[doc(alias = "XENVER_pagesize")]
    pub fn xen_page_size(&self) -> Result<usize> {
        let name = "XENVER_pagesize";
        let size = self.backend().xen_version(name, abi::XENVER_PAGESIZE)?;
        Ok(usize::try_from(size).unwrap_or_default())
    }

    /// Returns this domain's own UUID.
    ///
    /// # Errors
    ///
    /// As [`xen_version`](Self::xen_version).
    #[doc(alias = "XENVER_guest_handle")]
    pub fn own_handle(&self) -> Result<DomainHandle> {
        let handle = abi::GuestHandle::default();
        Ok(DomainHandle(self.backend().operation(None, handle)?.1.0))
    }

    /// Returns the hash that identifies the hypervisor's build; `None` if it was linked without
    /// one.
    ///
    /// # Errors
    ///
    /// [`Error::NotPermitted`] in a domain that may not read it; those of
    /// [`xen_version`](Self::xen_version).
    #[doc(alias = "XENVER_build_id")]
    pub fn build_id(&self) -> Result<Option<Vec<u8>>> {
        let answer = self.backend().operation(None, abi::BuildId::default());
        match answer {
            Ok((written, id)) => Ok(Some(within(written, &id.buf).to_vec())),
            Err(e) if e.errno() == Some(NO_DATA) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// A text of any length, which Xen 4.18 and later have.
    fn whole<A: Operation + Default>(&self, buf: fn(&A) -> &[u8]) -> Result<String> {
        let (written, answer) = self.backend().operation(None, A::default())?;
        let bytes = within(written, buf(&answer));
        Ok(String::from_utf8_lossy(bytes).trim_end().to_owned())
    }

    /// A text in an array of a fixed length.
    fn short<A: Operation + Default>(&self, buf: fn(&A) -> &[u8]) -> Result<String> {
        let (_, answer) = self.backend().operation(None, A::default())?;
        Ok(text(buf(&answer)))
    }

    /// Returns the second, where the first does not exist or this domain may not read it.
    fn or_short(
        &self,
        whole: Result<String>,
        short: impl FnOnce() -> Result<String>,
    ) -> Result<String> {
        match whole {
            Err(Error::Unsupported { .. } | Error::NotPermitted { .. }) => short(),
            whole => whole,
        }
    }
}

/// Bounds the length that Xen claims to have written by what it can have written.
fn within(written: i64, buf: &[u8]) -> &[u8] {
    &buf[..usize::try_from(written).unwrap_or_default().min(buf.len())]
}

/// Text that ends at the first zero.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_prints_as_xens_tools_do() {
        let v = XenVersion {
            major: 4,
            minor: 17,
            extra: ".6-pre".into(),
        };
        assert_eq!(v.to_string(), "4.17.6-pre");
    }

    #[test]
    fn a_count_beyond_the_buffer_reads_the_buffer_and_no_more() {
        assert_eq!(within(i64::MAX, &[1, 2]), [1, 2]);
        assert_eq!(within(-1, &[1, 2]), []);
        assert_eq!(within(1, &[1, 2]), [1]);
    }

    #[test]
    fn a_handle_prints_as_a_uuid() {
        let bytes = std::array::from_fn(|i| i as u8);
        let text = DomainHandle(bytes).to_string();
        assert_eq!(text, "00010203-0405-0607-0809-0a0b0c0d0e0f");
    }

    #[test]
    fn text_ends_at_the_first_zero_or_with_its_array() {
        assert_eq!(text(b"gcc\0rest"), "gcc");
        assert_eq!(text(b"full"), "full");
    }
}

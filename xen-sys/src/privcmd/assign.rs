//! Parts of the machine for a domain, and one domain's rights to another: `domctl`, and the related
//! operations of `physdev_op` and `event_channel_op`.

use super::Privcmd;
use crate::abi::{domctl as abi, hypercall};
use crate::ioctl::privcmd::{Assign, Deassign, DomctlBody, TestAssign};
use crate::{DomId, Error, MachineResource, PciFunction, Port, Result};

/// An interrupt of the machine, for [`Privcmd::map_pirq`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PirqSource {
    /// A line of an interrupt controller, by its number.
    #[doc(alias = "MAP_PIRQ_TYPE_GSI")]
    Gsi(u32),
    /// The message of a PCI device.
    #[doc(alias = "MAP_PIRQ_TYPE_MSI_SEG")]
    Msi(PciFunction),
    /// An entry of a PCI device's MSI-X table.
    MsiX {
        /// The device.
        device: PciFunction,
        /// The entry.
        entry: u16,
        /// The machine address of the table.
        table: u64,
    },
}

/// Parts of the machine for a domain. For domain 0 and other control domains.
///
/// All calls fail as the operations on domains do. They fail with [`Error::ResourceRefused`] and
/// Xen's errno if Xen does not let this domain assign the part of the machine, at all or to that
/// domain.
impl Privcmd {
    /// Lets a domain use I/O ports of the machine, or withdraws that. This domain must be allowed
    /// to use them itself.
    ///
    /// # Errors
    ///
    /// [`Error::ResourceRefused`]: `EPERM` where this domain may not use them; `EINVAL` for none
    /// and beyond 65535. [`Error::NoDomain`]; those common to all calls.
    #[doc(alias = "xc_domain_ioport_permission")]
    #[doc(alias = "XEN_DOMCTL_ioport_permission")]
    pub fn set_ioport_permission(
        &self,
        domain: DomId,
        first: u32,
        count: u32,
        allow: bool,
    ) -> Result<()> {
        let resource = MachineResource::IoPorts { first, count };
        self.resource(domain, resource, ioports(first, count, allow))
    }

    /// Lets a domain map frames of the machine's address space, or withdraws that. This domain must
    /// be allowed to map them itself.
    ///
    /// # Errors
    ///
    /// [`Error::ResourceRefused`]: `EPERM` where this domain may not map them; `EINVAL` beyond the
    /// last frame. [`Error::Invalid`] for none; [`Error::NoDomain`]; those common to all calls.
    #[doc(alias = "xc_domain_iomem_permission")]
    #[doc(alias = "XEN_DOMCTL_iomem_permission")]
    pub fn set_iomem_permission(
        &self,
        domain: DomId,
        first: u64,
        count: u64,
        allow: bool,
    ) -> Result<()> {
        if count == 0 {
            // Xen would take none at frame 0 as all.
            return Err(Error::Invalid {
                op: "XEN_DOMCTL_iomem_permission",
                what: "the number of frames",
                value: 0,
            });
        }
        let resource = MachineResource::Frames { first, count };
        self.resource(domain, resource, iomem(first, count, allow))
    }

    /// Lets a domain use an interrupt of the machine, or withdraws that. `pirq` is this domain's
    /// number for it.
    ///
    /// # Errors
    ///
    /// [`Error::ResourceRefused`]: `EPERM` where this domain has none of that number, or may not
    /// use it; `EINVAL` where it can have none. [`Error::NoDomain`]; those common to all calls.
    #[doc(alias = "xc_domain_irq_permission")]
    #[doc(alias = "XEN_DOMCTL_irq_permission")]
    pub fn set_irq_permission(&self, domain: DomId, pirq: u32, allow: bool) -> Result<()> {
        self.resource(domain, MachineResource::Irq(pirq), irq(pirq, allow))
    }

    /// Gives a PCI device to a domain. The driver must have released it (`xl pci-assignable-add`).
    ///
    /// # Errors
    ///
    /// [`Error::ResourceRefused`]: `EOPNOTSUPP` without an IOMMU for the domain; `ENODEV` when the
    /// device is missing or another domain's; others of the IOMMU. [`Error::NoDomain`]; those
    /// common to all calls.
    #[doc(alias = "xc_assign_device")]
    #[doc(alias = "XEN_DOMCTL_assign_device")]
    pub fn assign_device(&self, domain: DomId, device: PciFunction) -> Result<()> {
        let resource = MachineResource::Device(device);
        self.resource(domain, resource, Assign::new(device.sbdf()))
    }

    /// Returns whether a PCI device could be given to a domain, judged by the device alone: it
    /// exists, and no guest has it.
    ///
    /// # Errors
    ///
    /// [`Error::ResourceRefused`]: `EOPNOTSUPP` without an IOMMU for the domain.
    /// [`Error::NoDomain`]; those common to all calls.
    #[doc(alias = "xc_test_assign_device")]
    #[doc(alias = "XEN_DOMCTL_test_assign_device")]
    pub fn is_assignable(&self, domain: DomId, device: PciFunction) -> Result<bool> {
        let resource = MachineResource::Device(device);
        match self.resource(domain, resource, TestAssign::new(device.sbdf())) {
            Ok(()) => Ok(true),
            Err(e) if matches!(e.errno(), Some(libc::EINVAL | libc::ENODEV)) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Takes a PCI device back from a domain; domain 0 has it then.
    ///
    /// # Errors
    ///
    /// [`Error::ResourceRefused`]: `EOPNOTSUPP` without an IOMMU for the domain; `ENODEV` when it
    /// does not have the device. [`Error::NoDomain`]; those common to all calls.
    #[doc(alias = "xc_deassign_device")]
    #[doc(alias = "XEN_DOMCTL_deassign_device")]
    pub fn deassign_device(&self, domain: DomId, device: PciFunction) -> Result<()> {
        let resource = MachineResource::Device(device);
        self.resource(domain, resource, Deassign::new(device.sbdf()))
    }

    fn resource<B: DomctlBody>(
        &self,
        domain: DomId,
        resource: MachineResource,
        body: B,
    ) -> Result<()> {
        match self.backend().domctl(domain, body) {
            Ok(_) => Ok(()),
            Err(
                Error::NotPermitted { op, source }
                | Error::LimitReached { op, source, .. }
                | Error::Os { op, source },
            ) => Err(Error::ResourceRefused {
                op,
                resource,
                domain,
                source,
            }),
            Err(e) => Err(e),
        }
    }

    /// Makes `domain` the device model of the HVM guest `target`, until `domain` ends: it may then
    /// map the guest's memory and make device-model operations on it.
    ///
    /// # Errors
    ///
    /// `EINVAL` if it is one already, and for the same domain; `EOPNOTSUPP` if the guest is no HVM
    /// guest; [`Error::NoDomain`], which names the one that is missing; those common to all calls.
    #[doc(alias = "xc_domain_set_target")]
    #[doc(alias = "XEN_DOMCTL_set_target")]
    pub fn set_target(&self, domain: DomId, target: DomId) -> Result<()> {
        let done = self.backend().domctl(domain, abi::SetTarget { target });
        match done {
            Ok(_) => Ok(()),
            // Xen returns the same error for both.
            Err(Error::NoDomain { op, domain }) => Err(match self.domain_info(domain) {
                Ok(_) => Error::NoDomain { op, domain: target },
                Err(_) => Error::NoDomain { op, domain },
            }),
            Err(e) => Err(e),
        }
    }

    /// Makes a port of `domain` to which `remote` may bind. For ports of this domain itself use
    /// `xen-evtchn`, whose driver keeps track of them.
    ///
    /// The port belongs to that domain: only its kernel can close it, and it ends with the domain.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for [`DomId::SELF`]; [`Error::LimitReached`] without a free port;
    /// [`Error::NoDomain`], which may mean either; those common to all calls, but the interface has
    /// no version.
    #[doc(alias = "xc_evtchn_alloc_unbound")]
    #[doc(alias = "EVTCHNOP_alloc_unbound")]
    pub fn allocate_port(&self, domain: DomId, remote: DomId) -> Result<Port> {
        if domain == DomId::SELF {
            return Err(Error::Invalid {
                op: "EVTCHNOP_alloc_unbound",
                what: "the domain of the port",
                value: domain.as_u16().into(),
            });
        }
        let argument = hypercall::EvtchnAllocUnbound {
            dom: domain,
            remote_dom: remote,
            port: Port::new(0),
        };
        let (_, answer) = self.backend().operation(Some(domain), argument)?;
        Ok(answer.port)
    }

    /// Gives a domain a number for an interrupt of the machine, `wanted` if that is free; the
    /// domain's kernel binds a port to it. It stays until [`unmap_pirq`](Self::unmap_pirq) or the
    /// domain's end.
    ///
    /// # Errors
    ///
    /// [`Error::NotPermitted`] where this domain may not use the interrupt; `EINVAL` where there is
    /// none, or none free; [`Error::NoDomain`]; those common to all calls, but the interface has no
    /// version.
    #[doc(alias = "xc_physdev_map_pirq")]
    #[doc(alias = "xc_physdev_map_pirq_msi")]
    #[doc(alias = "PHYSDEVOP_map_pirq")]
    pub fn map_pirq(&self, domain: DomId, source: PirqSource, wanted: Option<u32>) -> Result<u32> {
        let argument = map_pirq(domain, source, wanted)?;
        let (_, answer) = self.backend().operation(Some(domain), argument)?;
        Ok(answer.pirq.try_into().unwrap_or_default())
    }

    /// Takes the number of an interrupt from a domain.
    ///
    /// # Errors
    ///
    /// `EINVAL` if it has no such number; as [`map_pirq`](Self::map_pirq).
    #[doc(alias = "xc_physdev_unmap_pirq")]
    #[doc(alias = "PHYSDEVOP_unmap_pirq")]
    pub fn unmap_pirq(&self, domain: DomId, pirq: u32) -> Result<()> {
        let argument = hypercall::PhysdevUnmapPirq {
            domid: domain,
            pad: 0,
            pirq: signed("PHYSDEVOP_unmap_pirq", pirq)?,
        };
        let done = self.backend().operation(Some(domain), argument);
        done.map(drop)
    }
}

fn ioports(first: u32, count: u32, allow: bool) -> abi::IoportPermission {
    abi::IoportPermission {
        first_port: first,
        nr_ports: count,
        allow_access: allow.into(),
        ..abi::IoportPermission::default()
    }
}

fn iomem(first: u64, count: u64, allow: bool) -> abi::IomemPermission {
    abi::IomemPermission {
        first_mfn: first,
        nr_mfns: count,
        allow_access: allow.into(),
        ..abi::IomemPermission::default()
    }
}

fn irq(pirq: u32, allow: bool) -> abi::IrqPermission {
    abi::IrqPermission {
        pirq,
        allow_access: allow.into(),
        ..abi::IrqPermission::default()
    }
}

fn map_pirq(
    domain: DomId,
    source: PirqSource,
    wanted: Option<u32>,
) -> Result<hypercall::PhysdevMapPirq> {
    let op = "PHYSDEVOP_map_pirq";
    let mut argument = hypercall::PhysdevMapPirq {
        domid: domain,
        pad: 0,
        kind: hypercall::MAP_PIRQ_TYPE_GSI,
        index: -1,
        pirq: wanted.map_or(Ok(-1), |pirq| signed(op, pirq))?,
        bus: 0,
        devfn: 0,
        entry_nr: 0,
        pad2: 0,
        table_base: 0,
    };
    let device = match source {
        PirqSource::Gsi(gsi) => {
            argument.index = signed(op, gsi)?;
            return Ok(argument);
        }
        PirqSource::Msi(device) => device,
        PirqSource::MsiX {
            device,
            entry,
            table,
        } => {
            (argument.entry_nr, argument.table_base) = (entry.into(), table);
            device
        }
    };
    argument.kind = hypercall::MAP_PIRQ_TYPE_MSI_SEG;
    // The segment in the upper half.
    let place = device.sbdf() >> 16 << 16 | device.sbdf() >> 8 & 0xff;
    argument.bus = i32::from_ne_bytes(place.to_ne_bytes());
    argument.devfn = (device.sbdf() & 0xff) as i32;
    Ok(argument)
}

fn signed(op: &'static str, number: u32) -> Result<i32> {
    number.try_into().map_err(|_| Error::Invalid {
        op,
        what: "the number of the interrupt",
        value: number.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_resource_is_named_in_the_error() {
        let error = |resource, errno| Error::ResourceRefused {
            op: "XEN_DOMCTL_ioport_permission",
            resource,
            domain: DomId::new(4),
            source: std::io::Error::from_raw_os_error(errno).into(),
        };
        let ports = MachineResource::IoPorts {
            first: 0x3f8,
            count: 8,
        };
        let refused = error(ports, libc::EPERM);
        assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
        assert_eq!(refused.errno(), Some(libc::EPERM));
        let text = refused.to_string();
        let start = "XEN_DOMCTL_ioport_permission: I/O ports 0x3f8 to 0x3ff and domain 4: ";
        assert!(text.starts_with(start), "{text}");
        let device = PciFunction::new(1, 0x3a, 0x1f, 7).unwrap();
        let text = error(MachineResource::Device(device), libc::ENODEV).to_string();
        assert!(
            text.contains(": device 0001:3a:1f.7 and domain 4: "),
            "{text}"
        );
        let empty = MachineResource::IoPorts { first: 0, count: 0 };
        assert_eq!(empty.to_string(), "I/O ports 0x0 to 0x0");
        let all = MachineResource::Frames {
            first: u64::MAX,
            count: u64::MAX,
        };
        assert!(all.to_string().ends_with("0xffffffffffffffff"));
    }

    #[test]
    fn a_permission_is_given_or_taken_as_the_caller_asks() {
        // Xen answers both alike, so nothing else shows the difference.
        for allow in [true, false] {
            let ports = ioports(0x3f8, 8, allow);
            assert_eq!((ports.first_port, ports.nr_ports), (0x3f8, 8));
            let frames = iomem(0xf0000, 16, allow);
            assert_eq!((frames.first_mfn, frames.nr_mfns), (0xf0000, 16));
            let irq = irq(9, allow);
            assert_eq!(irq.pirq, 9);
            let sent = [ports.allow_access, frames.allow_access, irq.allow_access];
            assert_eq!(sent, [u8::from(allow); 3]);
        }
    }

    #[test]
    fn a_pci_address_has_the_bits_that_xen_wants() {
        let device = PciFunction::new(0xabcd, 0x12, 3, 5).unwrap();
        assert_eq!(device.sbdf(), 0xabcd_121d);
        assert_eq!(PciFunction::new(0, 0, 32, 0), None);
        assert_eq!(PciFunction::new(0, 0, 0, 8), None);
        let msi = map_pirq(DomId::new(1), PirqSource::Msi(device), None).unwrap();
        assert_eq!((msi.kind, msi.index, msi.pirq), (3, -1, -1));
        assert_eq!(msi.bus as u32, 0xabcd_0012);
        assert_eq!(msi.devfn, 0x1d);
        let gsi = map_pirq(DomId::SELF, PirqSource::Gsi(9), Some(20)).unwrap();
        assert_eq!((gsi.kind, gsi.index, gsi.pirq), (1, 9, 20));
        assert!(map_pirq(DomId::SELF, PirqSource::Gsi(u32::MAX), None).is_err());
        let entry = PirqSource::MsiX {
            device,
            entry: 2,
            table: 0xfee0_0000,
        };
        let entry = map_pirq(DomId::SELF, entry, None).unwrap();
        assert_eq!((entry.entry_nr, entry.table_base), (2, 0xfee0_0000));
    }
}

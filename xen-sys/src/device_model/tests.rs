use std::os::unix::fs::symlink;

use super::*;
use crate::{DevRoot, Error, PAGE_SIZE};

/// A device model whose privcmd is /dev/null, as on a kernel without any of its requests. The
/// kernel restricts no such file, so it is made without.
fn old_kernel(name: &str) -> DeviceModel {
    let dir = std::env::temp_dir().join(format!("xen-sys-dm-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let node = dir.join("privcmd");
    let _ = std::fs::remove_file(&node);
    symlink("/dev/null", &node).unwrap();
    let xen = Xen::new(crate::Host::Dev(DevRoot::at(dir.to_str().unwrap())));
    let privcmd = Privcmd::open(&xen).unwrap();
    let refused = Privcmd::open(&xen).unwrap().restrict(DomId::new(5));
    assert!(matches!(refused, Err(Error::Unsupported { .. })));
    std::fs::remove_dir_all(&dir).unwrap();
    RestrictedPrivcmd::unrestricted(privcmd, DomId::new(5)).into()
}

#[test]
fn an_old_kernel_is_a_typed_error_of_each_operation() {
    let model = old_kernel("operations");
    let unsupported = |name: &str, done: Result<()>| match done {
        Err(Error::Unsupported { op }) => assert_eq!(op, name),
        other => panic!("{name}: {other:?}"),
    };
    let range = FrameRange { first: 1, count: 2 };
    let function = PciFunction::new(0, 1, 2, 3).unwrap();
    let irq = IsaIrq::new(5).unwrap();
    let message = MsiMessage {
        address: 0xfee0_0000,
        data: 1,
    };
    unsupported("XEN_DMOP_nr_vcpus", model.vcpus().map(drop));
    let server = model.create_ioreq_server(BufferedRequests::Atomic);
    unsupported("XEN_DMOP_create_ioreq_server", server.map(drop));
    let done = model.set_pci_intx_level(function, IntxPin::B, Level::Asserted);
    unsupported("XEN_DMOP_set_pci_intx_level", done);
    let done = model.set_isa_irq_level(irq, Level::Deasserted);
    unsupported("XEN_DMOP_set_isa_irq_level", done);
    let done = model.set_irq_level(32, Level::Asserted);
    unsupported("XEN_DMOP_set_irq_level", done);
    let done = model.set_pci_link_route(PciLink::D, Some(irq));
    unsupported("XEN_DMOP_set_pci_link_route", done);
    unsupported("XEN_DMOP_inject_msi", model.inject_msi(message));
    let done = model.track_dirty_vram(range).map(drop);
    unsupported("XEN_DMOP_track_dirty_vram", done);
    unsupported("XEN_DMOP_track_dirty_vram", model.end_dirty_vram());
    unsupported("XEN_DMOP_modified_memory", model.modified_memory(&[range]));
    let done = model.set_mem_type(range, MemoryType::Mmio);
    unsupported("XEN_DMOP_set_mem_type", done);
    let done = model.relocate_memory(range, 9);
    unsupported("XEN_DMOP_relocate_memory", done);
    let done = model.pin_memory_cacheattr(range, None);
    unsupported("XEN_DMOP_pin_memory_cacheattr", done);
    let done = model.shutdown(ShutdownReason::CRASH);
    unsupported("XEN_DMOP_remote_shutdown", done);
    let event = std::fs::File::open("/dev/null").unwrap();
    let done = model.irq_fd(&event, Interrupt::Msi(message)).map(drop);
    unsupported("IOCTL_PRIVCMD_IRQFD", done);
}

#[test]
fn what_cannot_be_is_refused_before_the_kernel_is_asked() {
    let model = old_kernel("arguments");
    for count in [0, (1 << 18) + 1, u32::MAX] {
        let done = model.track_dirty_vram(FrameRange { first: 0, count });
        assert!(matches!(done, Err(Error::Invalid { value, .. }) if value == u64::from(count)));
    }
    let ranges = [(0, 0), (u64::MAX, 2)];
    for (first, count) in ranges {
        let done = model.pin_memory_cacheattr(FrameRange { first, count }, None);
        assert!(matches!(done, Err(Error::Invalid { .. })), "{done:?}");
    }
    assert_eq!(IsaIrq::new(16), None);
    assert_eq!(PciFunction::new(0, 0, 32, 0), None);
    assert_eq!(PciFunction::new(0, 0, 0, 8), None);
    // No ranges, no call.
    model.modified_memory(&[]).unwrap();
}

#[test]
fn a_pci_function_has_the_headers_form() {
    let function = PciFunction::new(0xabcd, 0x12, 31, 7).unwrap();
    assert_eq!(function.sbdf(), 0xabcd_12ff);
    let parts = (function.segment(), function.bus());
    assert_eq!(parts, (0xabcd, 0x12));
    assert_eq!((function.device(), function.function()), (31, 7));
    let body = IoRange::pci(function).body(3);
    assert_eq!((body.id, body.kind), (3, abi::XEN_DMOP_IO_RANGE_PCI));
    assert_eq!((body.start, body.end), (0xabcd_12ff, 0xabcd_12ff));
}

#[test]
fn dirty_pages_are_counted_from_the_first_frame() {
    let range = FrameRange {
        first: 0xf0000,
        count: 11,
    };
    let mut pages = DirtyPages::none(range).unwrap();
    assert_eq!(pages.bitmap_mut().len(), 2);
    // Xen may set bits behind the last page.
    pages.bitmap_mut().copy_from_slice(&[0b1000_0001, 0xff]);
    let frames: Vec<u64> = pages.frames().collect();
    assert_eq!(frames, [0xf0000, 0xf0007, 0xf0008, 0xf0009, 0xf000a]);
}

#[test]
fn an_errno_becomes_the_error_that_names_what_to_do() {
    let of = |errno| {
        let source = std::io::Error::from_raw_os_error(errno);
        Error::os("XEN_DMOP_nr_vcpus", source).about(DomId::new(5))
    };
    assert!(matches!(of(libc::ESRCH), Error::NoDomain { domain, .. } if domain == DomId::new(5)));
    for errno in [libc::EPERM, libc::EACCES] {
        assert!(matches!(of(errno), Error::NotPermitted { .. }));
    }
    for errno in [libc::ENOSPC, libc::E2BIG] {
        let error = of(errno);
        assert!(matches!(error, Error::LimitReached { .. }));
        assert_eq!(error.errno(), Some(errno));
        assert_eq!(error.kind(), std::io::ErrorKind::QuotaExceeded);
    }
    for errno in [libc::ENOTTY, libc::ENOSYS, libc::EOPNOTSUPP] {
        assert!(matches!(of(errno), Error::Unsupported { .. }));
    }
    assert!(matches!(of(libc::ENOENT), Error::Os { .. }));
}

#[test]
fn extents_of_one_operation_fit_the_kernels_limit() {
    assert!(EXTENTS * size_of::<abi::ModifiedMemoryExtent>() <= PAGE_SIZE);
}

//! Layouts and opcodes against the numbers a C compiler makes of the kernel's headers.
//!
//! Sources: include/uapi/xen/{evtchn,gntdev,gntalloc,privcmd}.h of Linux 6.1 (Debian's
//! linux-libc-dev 6.1.192), compiled for x86-64. The numbers are those of every 64-bit
//! architecture, and of 32-bit Arm; i386 aligns `__u64` to four bytes and differs.
#![cfg(target_pointer_width = "64")]

use std::mem::{align_of, offset_of, size_of};

use xen_sys::abi::{evtchn, gntalloc, gntdev, privcmd};
use xen_sys::{DomId, GrantRef, Port};

#[test]
fn evtchn_opcodes() {
    assert_eq!(evtchn::IOCTL_EVTCHN_BIND_VIRQ, 0x44500);
    assert_eq!(evtchn::IOCTL_EVTCHN_BIND_INTERDOMAIN, 0x84501);
    assert_eq!(evtchn::IOCTL_EVTCHN_BIND_UNBOUND_PORT, 0x44502);
    assert_eq!(evtchn::IOCTL_EVTCHN_UNBIND, 0x44503);
    assert_eq!(evtchn::IOCTL_EVTCHN_NOTIFY, 0x44504);
    assert_eq!(evtchn::IOCTL_EVTCHN_RESET, 0x4505);
    assert_eq!(evtchn::IOCTL_EVTCHN_RESTRICT_DOMID, 0x24506);
}

#[test]
fn gntdev_opcodes() {
    assert_eq!(gntdev::IOCTL_GNTDEV_MAP_GRANT_REF, 0x184700);
    assert_eq!(gntdev::IOCTL_GNTDEV_UNMAP_GRANT_REF, 0x104701);
    assert_eq!(gntdev::IOCTL_GNTDEV_SET_UNMAP_NOTIFY, 0x104707);
    assert_eq!(gntdev::IOCTL_GNTDEV_GRANT_COPY, 0x104708);
    assert_eq!(gntdev::IOCTL_GNTDEV_DMABUF_EXP_FROM_REFS, 0x144709);
    assert_eq!(gntdev::IOCTL_GNTDEV_DMABUF_EXP_WAIT_RELEASED, 0x8470a);
    assert_eq!(gntdev::IOCTL_GNTDEV_DMABUF_IMP_TO_REFS, 0x14470b);
    assert_eq!(gntdev::IOCTL_GNTDEV_DMABUF_IMP_RELEASE, 0x8470c);
}

#[test]
fn gntalloc_opcodes() {
    assert_eq!(gntalloc::IOCTL_GNTALLOC_ALLOC_GREF, 0x184705);
    assert_eq!(gntalloc::IOCTL_GNTALLOC_DEALLOC_GREF, 0x104706);
    assert_eq!(gntalloc::IOCTL_GNTALLOC_SET_UNMAP_NOTIFY, 0x104707);
}

#[test]
fn privcmd_opcodes() {
    assert_eq!(privcmd::IOCTL_PRIVCMD_HYPERCALL, 0x305000);
    assert_eq!(privcmd::IOCTL_PRIVCMD_DM_OP, 0x105005);
    assert_eq!(privcmd::IOCTL_PRIVCMD_RESTRICT, 0x25006);
    assert_eq!(privcmd::IOCTL_PRIVCMD_IRQFD, 0x4018_5008);
    assert_eq!(privcmd::IOCTL_PRIVCMD_IOEVENTFD, 0x4030_5009);
}

/// Size, alignment and each field's offset.
macro_rules! layout {
    ($type:ty, $size:literal, $align:literal, $($field:ident @ $offset:literal),*) => {
        assert_eq!(size_of::<$type>(), $size, "size of {}", stringify!($type));
        assert_eq!(align_of::<$type>(), $align, "alignment of {}", stringify!($type));
        $(assert_eq!(
            offset_of!($type, $field), $offset, "{}::{}", stringify!($type), stringify!($field)
        );)*
    };
}

#[test]
fn evtchn_layouts() {
    layout!(evtchn::BindVirq, 4, 4, virq @ 0);
    layout!(evtchn::BindInterdomain, 8, 4, remote_domain @ 0, remote_port @ 4);
    layout!(evtchn::BindUnboundPort, 4, 4, remote_domain @ 0);
    layout!(evtchn::Unbind, 4, 4, port @ 0);
    layout!(evtchn::Notify, 4, 4, port @ 0);
    layout!(evtchn::RestrictDomid, 2, 2, domid @ 0);
}

#[test]
fn gntdev_layouts() {
    layout!(gntdev::GrantRefEntry, 8, 4, domid @ 0, gref @ 4);
    // The entries of struct ioctl_gntdev_map_grant_ref start where the head ends: refs @ 16.
    layout!(gntdev::MapGrantRefHead, 16, 8, count @ 0, pad @ 4, index @ 8);
    layout!(gntdev::UnmapGrantRef, 16, 8, index @ 0, count @ 8, pad @ 12);
    layout!(gntdev::UnmapNotify, 16, 8, index @ 0, action @ 8, event_channel_port @ 12);
    // The references of both start where the head ends: refs @ 16.
    layout!(gntdev::DmabufExpFromRefsHead, 16, 4, flags @ 0, count @ 4, fd @ 8, domid @ 12);
    layout!(gntdev::DmabufImpToRefsHead, 16, 4, fd @ 0, count @ 4, domid @ 8, reserved @ 12);
    layout!(gntdev::DmabufExpWaitReleased, 8, 4, fd @ 0, wait_to_ms @ 4);
    layout!(gntdev::DmabufImpRelease, 8, 4, fd @ 0, reserved @ 4);
}

#[test]
fn gntalloc_layouts() {
    layout!(gntalloc::AllocGrefHead, 16, 8, domid @ 0, flags @ 2, count @ 4, index @ 8);
    layout!(gntalloc::AllocGref, 24, 8, head @ 0, gref_ids @ 16);
    layout!(gntalloc::DeallocGref, 16, 8, index @ 0, count @ 8, pad @ 12);
    layout!(gntalloc::UnmapNotify, 16, 8, index @ 0, action @ 8, event_channel_port @ 12);
}

#[test]
fn privcmd_layouts() {
    layout!(privcmd::Hypercall, 48, 8, op @ 0, arg @ 8);
    layout!(privcmd::DmOp, 16, 8, domid @ 0, count @ 2, buffers @ 8);
    layout!(privcmd::DmOpBuffer, 16, 8, address @ 0, size @ 8);
    layout!(
        privcmd::IrqFd, 24, 8, dm_op @ 0, size @ 8, fd @ 12, flags @ 16, dom @ 20, pad @ 22
    );
    layout!(
        privcmd::IoEventFd, 48, 8, ioreq @ 0, ports @ 8, addr @ 16, addr_len @ 24, event_fd @ 28,
        vcpus @ 32, vq @ 36, flags @ 40, dom @ 44, pad @ 46
    );
    layout!(privcmd::Restrict, 2, 2, domid @ 0);
}

#[test]
fn ids_are_the_integers_of_the_c_types() {
    // xen/include/public: domid_t is uint16_t, evtchn_port_t and grant_ref_t are uint32_t.
    layout!(DomId, 2, 2,);
    layout!(Port, 4, 4,);
    layout!(GrantRef, 4, 4,);
}

#[test]
fn reserved_domids() {
    // xen/include/public/xen.h
    assert_eq!(DomId::SELF.as_u16(), 0x7FF0);
    assert_eq!(DomId::INVALID.as_u16(), 0x7FF4);
    assert_eq!(DomId::IDLE.as_u16(), 0x7FFF);
}

#[test]
fn a_handle_is_one_word() {
    assert_eq!(size_of::<xen_sys::Xen>(), size_of::<usize>());
}

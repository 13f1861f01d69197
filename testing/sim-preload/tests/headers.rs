//! Every struct, constant and request number of `xen_sys::abi` against the C headers, compiled
//! here.
//!
//! Two sets: the public headers of each Xen release that the testbed has unpacked under
//! `target/xen` (`cargo xtask fetch` and any boot; `XEN_C_ROOT` names one other place), and
//! Linux's, which come with the C library. Needs `cc`.
#![cfg(feature = "c-libraries")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic is how a test fails, in its helpers too"
)]

use std::fmt::Write as _;
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::process::Command;

use xen_gnttab::Region;
use xen_gnttab::ring::{self, FrontRing};
use xen_store::xenbus::XenbusState;
use xen_sys::abi::{
    altp2m, dm_op, domctl, evtchn, gntalloc, gntdev, hvm_save, hypercall, ioreq, memory, privcmd,
    sysctl, vcpu, version, vm_event,
};
use xen_sys::privcmd::{
    CapabilityFlags, DomainFlags, Features, HvmParam, PhysCaps, ShutdownReason, StateFlags,
};
use xen_sys::{DomId, GrantRef, Port, Virq};

/// C expressions and their values here.
#[derive(Default)]
struct Facts {
    list: Vec<Fact>,
    /// The preprocessor condition of the facts added next: without it they are not compiled.
    guard: Option<&'static str>,
}

struct Fact {
    c: String,
    ours: u64,
    guard: Option<&'static str>,
}

impl Facts {
    fn is(&mut self, c: impl Into<String>, ours: impl Into<u64>) {
        self.list.push(Fact {
            c: c.into(),
            ours: ours.into(),
            guard: self.guard,
        });
    }

    fn size<T>(&mut self, c: &str) {
        self.is(format!("sizeof({c})"), size_of::<T>() as u64);
    }
}

/// The size of a field, by a function that borrows it.
fn size_at<T, F>(_: fn(&T) -> &F) -> u64 {
    size_of::<F>() as u64
}

/// A field's name in C: its own or another one.
macro_rules! c_name {
    ($field:ident) => {
        stringify!($field)
    };
    ($field:ident $c_field:literal) => {
        $c_field
    };
}

/// Structs, by their names in C and here: the offset of each field.
macro_rules! offsets {
    ($facts:ident, $(struct $c:ident = $type:ty {
        $($field:ident $(= $c_field:literal)?),* $(,)?
    })*) => { $($(
        let name = c_name!($field $($c_field)?);
        let c = format!("offsetof(struct {}, {name})", stringify!($c));
        $facts.is(c, offset_of!($type, $field) as u64);
    )*)* };
}

/// The same, and the size of each struct and of each field.
macro_rules! layouts {
    ($facts:ident, $(struct $c:ident = $type:ty {
        $($field:ident $(= $c_field:literal)?),* $(,)?
    })*) => { $(
        $facts.size::<$type>(concat!("struct ", stringify!($c)));
        offsets! { $facts, struct $c = $type { $($field $(= $c_field)?),* } }
        $(
            let name = c_name!($field $($c_field)?);
            let size = size_at(|value: &$type| &value.$field);
            $facts.is(format!("sizeof(((struct {} *)0)->{name})", stringify!($c)), size);
        )*
    )* };
}

/// Constants with the same name in C and here.
macro_rules! same {
    ($facts:ident, $($name:ident),* $(,)?) => {
        $($facts.is(stringify!($name), $name as u64);)*
    };
}

/// Other constants, under their names in C.
macro_rules! values {
    ($facts:ident, $($c:literal = $ours:expr),* $(,)?) => {
        $($facts.is($c, $ours as u64);)*
    };
}

fn xen() -> Facts {
    let mut f = Facts::default();
    rings(&mut f);
    f.size::<DomId>("domid_t");
    f.size::<Port>("evtchn_port_t");
    f.size::<GrantRef>("grant_ref_t");
    values!(
        f,
        "DOMID_SELF" = DomId::SELF.as_u16(),
        "DOMID_FIRST_RESERVED" = DomId::FIRST_RESERVED.as_u16(),
        "DOMID_INVALID" = DomId::INVALID.as_u16(),
        "DOMID_IDLE" = DomId::IDLE.as_u16(),
        "VIRQ_TIMER" = Virq::TIMER.as_u32(),
        "VIRQ_DEBUG" = Virq::DEBUG.as_u32(),
        "VIRQ_CONSOLE" = Virq::CONSOLE.as_u32(),
        "VIRQ_DOM_EXC" = Virq::DOM_EXC.as_u32(),
        "VIRQ_TBUF" = Virq::TBUF.as_u32(),
        "VIRQ_DEBUGGER" = Virq::DEBUGGER.as_u32(),
        "VIRQ_XENOPROF" = Virq::XENOPROF.as_u32(),
        "VIRQ_CON_RING" = Virq::CON_RING.as_u32(),
        "VIRQ_PCPU_STATE" = Virq::PCPU_STATE.as_u32(),
        "VIRQ_MEM_EVENT" = Virq::MEM_EVENT.as_u32(),
        "VIRQ_ARGO" = Virq::ARGO.as_u32(),
        "VIRQ_ENOMEM" = Virq::ENOMEM.as_u32(),
        "VIRQ_XENPMU" = Virq::XENPMU.as_u32(),
        "__HYPERVISOR_memory_op" = hypercall::HYPERVISOR_MEMORY_OP,
        "__HYPERVISOR_multicall" = hypercall::HYPERVISOR_MULTICALL,
        "__HYPERVISOR_xen_version" = hypercall::HYPERVISOR_XEN_VERSION,
        "__HYPERVISOR_grant_table_op" = hypercall::HYPERVISOR_GRANT_TABLE_OP,
        "__HYPERVISOR_sched_op" = hypercall::HYPERVISOR_SCHED_OP,
        "__HYPERVISOR_event_channel_op" = hypercall::HYPERVISOR_EVENT_CHANNEL_OP,
        "__HYPERVISOR_hvm_op" = hypercall::HYPERVISOR_HVM_OP,
        "__HYPERVISOR_sysctl" = hypercall::HYPERVISOR_SYSCTL,
        "__HYPERVISOR_domctl" = hypercall::HYPERVISOR_DOMCTL,
        "__HYPERVISOR_dm_op" = hypercall::HYPERVISOR_DM_OP,
    );
    small(&mut f);
    views(&mut f);
    dm_ops(&mut f);
    ioreqs(&mut f);
    versions(&mut f);
    domctls(&mut f);
    sysctls(&mut f);
    monitor(&mut f);
    contexts(&mut f);
    registers(&mut f);
    power(&mut f);
    reservations(&mut f);
    f
}

fn monitor(f: &mut Facts) {
    {
        use domctl::*;
        layouts! { f,
            struct xen_domctl_debug_op = DebugOp { op, vcpu }
            struct xen_domctl_vm_event_op = VmEventOp { op, mode }
        }
        offsets! { f,
            struct xen_domctl_vm_event_op = VmEventOp { u = "u.enable.port", u = "u.version" }
        }
        layouts! { f,
            struct xen_domctl_set_access_required = SetAccessRequired { access_required }
            struct xen_domctl_monitor_op = MonitorOp { op, event, u }
        }
        let options = offset_of!(MonitorOp, u) as u64;
        for (field, at) in [
            ("mov_to_cr.index", 0),
            ("mov_to_cr.sync", 1),
            ("mov_to_cr.onchangeonly", 2),
            ("mov_to_cr.bitmask", 8),
            ("mov_to_msr.msr", 0),
            ("mov_to_msr.onchangeonly", 4),
            ("guest_request.sync", 0),
            ("guest_request.allow_userspace", 1),
            ("debug_exception.sync", 0),
            ("vmexit.sync", 0),
        ] {
            let c = format!("offsetof(struct xen_domctl_monitor_op, u.{field})");
            f.is(c, options + at);
        }
        same! { f,
            XEN_DOMCTL_DEBUG_OP_SINGLE_STEP_OFF, XEN_DOMCTL_DEBUG_OP_SINGLE_STEP_ON,
            XEN_VM_EVENT_ENABLE, XEN_VM_EVENT_DISABLE, XEN_VM_EVENT_RESUME,
            XEN_VM_EVENT_GET_VERSION, XEN_DOMCTL_VM_EVENT_OP_MONITOR, XEN_DOMCTL_MONITOR_OP_ENABLE,
            XEN_DOMCTL_MONITOR_OP_DISABLE, XEN_DOMCTL_MONITOR_OP_GET_CAPABILITIES,
            XEN_DOMCTL_MONITOR_OP_EMULATE_EACH_REP, XEN_DOMCTL_MONITOR_OP_CONTROL_REGISTERS,
            XEN_DOMCTL_MONITOR_EVENT_WRITE_CTRLREG, XEN_DOMCTL_MONITOR_EVENT_MOV_TO_MSR,
            XEN_DOMCTL_MONITOR_EVENT_SINGLESTEP, XEN_DOMCTL_MONITOR_EVENT_SOFTWARE_BREAKPOINT,
            XEN_DOMCTL_MONITOR_EVENT_GUEST_REQUEST, XEN_DOMCTL_MONITOR_EVENT_DEBUG_EXCEPTION,
            XEN_DOMCTL_MONITOR_EVENT_CPUID, XEN_DOMCTL_MONITOR_EVENT_PRIVILEGED_CALL,
            XEN_DOMCTL_MONITOR_EVENT_INTERRUPT, XEN_DOMCTL_MONITOR_EVENT_DESC_ACCESS,
            XEN_DOMCTL_MONITOR_EVENT_EMUL_UNIMPLEMENTED, XEN_DOMCTL_MONITOR_EVENT_INGUEST_PAGEFAULT,
            XEN_DOMCTL_MONITOR_EVENT_VMEXIT,
        }
        values!(
            f,
            "XEN_DOMCTL_debug_op" = XEN_DOMCTL_DEBUG_OP,
            "XEN_DOMCTL_vm_event_op" = XEN_DOMCTL_VM_EVENT_OP,
            "XEN_DOMCTL_set_access_required" = XEN_DOMCTL_SET_ACCESS_REQUIRED,
            "XEN_DOMCTL_monitor_op" = XEN_DOMCTL_MONITOR_OP,
        );
        f.guard = Some("defined(XEN_DOMCTL_MONITOR_EVENT_IO)");
        same! { f, XEN_DOMCTL_MONITOR_EVENT_IO }
        f.guard = None;
    }
    {
        use hypercall::*;
        layouts! { f,
            struct xen_memory_reservation = MemoryReservation {
                extent_start, nr_extents, extent_order, mem_flags, domid,
            }
            struct xen_mem_access_op = MemAccessOp {
                op, access, domid, nr, pfn, pfn_list, access_list,
            }
        }
        values!(
            f,
            "XENMEM_decrease_reservation" = XENMEM_DECREASE_RESERVATION,
            "XENMEM_populate_physmap" = XENMEM_POPULATE_PHYSMAP,
            "XENMEM_access_op" = XENMEM_ACCESS_OP,
            "XENMEM_access_op_set_access" = XENMEM_ACCESS_OP_SET_ACCESS,
            "XENMEM_access_op_get_access" = XENMEM_ACCESS_OP_GET_ACCESS,
            "XENMEM_access_op_set_access_multi" = XENMEM_ACCESS_OP_SET_ACCESS_MULTI,
        );
    }
    records(f);
}

fn records(f: &mut Facts) {
    use vm_event::*;
    layouts! { f,
        struct vm_event_st = VmEvent { version, flags, reason, vcpu_id, altp2m_idx, u, data }
    }
    offsets! { f,
        struct vm_event_sring = SringHeader { req_prod, req_event, rsp_prod, rsp_event }
    }
    same! { f, VM_EVENT_INTERFACE_VERSION }
    values!(
        f,
        "offsetof(struct vm_event_sring, ring)" = size_of::<SringHeader>(),
        "__CONST_RING_SIZE(vm_event, 4096)" = RING_SLOTS,
        "offsetof(struct vm_event_emul_read_data, data)" = 4,
        "sizeof(struct vm_event_emul_read_data)" = 344,
        "sizeof(struct vm_event_emul_insn_data)" = 16,
        "offsetof(struct vm_event_fast_singlestep, p2midx)" = 0,
        "sizeof(struct vm_event_fast_singlestep)" = 2,
    );
    layouts! { f,
        struct vm_event_regs_x86 = RegsX86 {
            rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15, rflags,
            dr6, dr7, rip, cr0, cr2, cr3, cr4, sysenter_cs, sysenter_esp, sysenter_eip, msr_efer,
            msr_star, msr_lstar, gdtr_base, npt_base, vmtrace_pos, cs_base, ss_base, ds_base,
            es_base, fs_base, gs_base, cs, ss, ds, es, fs, gs, shadow_gs, gdtr_limit, cs_sel,
            ss_sel, ds_sel, es_sel, fs_sel, gs_sel,
        }
        struct vm_event_regs_arm = RegsArm { ttbr0, ttbr1, ttbcr, pc, cpsr }
        struct vm_event_mem_access = MemAccess { gfn, offset, gla, flags }
        struct vm_event_write_ctrlreg = WriteCtrlreg { index, new_value, old_value }
        struct vm_event_mov_to_msr = MovToMsr { msr, new_value, old_value }
        struct vm_event_singlestep = Singlestep { gfn }
        struct vm_event_debug = Debug { gfn, pending_dbg, insn_length, kind = "type" }
        struct vm_event_cpuid = Cpuid { insn_length, leaf, subleaf }
        struct vm_event_interrupt_x86 = InterruptX86 { vector, kind = "type", error_code, cr2 }
        struct vm_event_desc_access = DescAccess {
            instr_info = "arch.vmx.instr_info", exit_qualification = "arch.vmx.exit_qualification",
            descriptor, is_write,
        }
        struct vm_event_vmexit = Vmexit {
            reason = "arch.vmx.reason", qualification = "arch.vmx.qualification",
        }
    }
    same! { f,
        VM_EVENT_FLAG_VCPU_PAUSED, VM_EVENT_FLAG_FOREIGN, VM_EVENT_FLAG_EMULATE,
        VM_EVENT_FLAG_EMULATE_NOWRITE, VM_EVENT_FLAG_TOGGLE_SINGLESTEP,
        VM_EVENT_FLAG_SET_EMUL_READ_DATA, VM_EVENT_FLAG_DENY, VM_EVENT_FLAG_ALTERNATE_P2M,
        VM_EVENT_FLAG_SET_REGISTERS, VM_EVENT_FLAG_SET_EMUL_INSN_DATA,
        VM_EVENT_FLAG_GET_NEXT_INTERRUPT, VM_EVENT_FLAG_FAST_SINGLESTEP, VM_EVENT_FLAG_NESTED_P2M,
        VM_EVENT_FLAG_RESET_VMTRACE, VM_EVENT_FLAG_RESET_FORK_STATE,
        VM_EVENT_FLAG_RESET_FORK_MEMORY, VM_EVENT_REASON_UNKNOWN, VM_EVENT_REASON_MEM_ACCESS,
        VM_EVENT_REASON_MEM_SHARING, VM_EVENT_REASON_MEM_PAGING, VM_EVENT_REASON_WRITE_CTRLREG,
        VM_EVENT_REASON_MOV_TO_MSR, VM_EVENT_REASON_SOFTWARE_BREAKPOINT, VM_EVENT_REASON_SINGLESTEP,
        VM_EVENT_REASON_GUEST_REQUEST, VM_EVENT_REASON_DEBUG_EXCEPTION, VM_EVENT_REASON_CPUID,
        VM_EVENT_REASON_PRIVILEGED_CALL, VM_EVENT_REASON_INTERRUPT,
        VM_EVENT_REASON_DESCRIPTOR_ACCESS, VM_EVENT_REASON_EMUL_UNIMPLEMENTED,
        VM_EVENT_REASON_VMEXIT, VM_EVENT_X86_CR0, VM_EVENT_X86_CR3, VM_EVENT_X86_CR4,
        VM_EVENT_X86_XCR0, MEM_ACCESS_R, MEM_ACCESS_W, MEM_ACCESS_X, MEM_ACCESS_GLA_VALID,
        MEM_ACCESS_FAULT_WITH_GLA, MEM_ACCESS_FAULT_IN_GPT, VM_EVENT_DESC_IDTR, VM_EVENT_DESC_GDTR,
        VM_EVENT_DESC_LDTR, VM_EVENT_DESC_TR,
    }
    f.guard = Some("defined(VM_EVENT_REASON_IO_INSTRUCTION)");
    same! { f, VM_EVENT_REASON_IO_INSTRUCTION }
    layouts! { f,
        struct vm_event_io = Io { bytes, port, in_ = "in", str_ = "str" }
    }
    f.guard = None;
}

/// The rings and states of devices: public/io.
fn rings(f: &mut Facts) {
    type Ring = FrontRing<[u64; 14], [u32; 3]>;
    f.is("offsetof(struct a_sring, ring)", ring::HEADER as u64);
    for (offset, index) in ["req_prod", "req_event", "rsp_prod", "rsp_event"]
        .into_iter()
        .enumerate()
    {
        f.is(
            format!("offsetof(struct a_sring, {index})"),
            4 * offset as u64,
        );
    }
    for pages in [1, 2, 16] {
        let len = pages * xen_sys::PAGE_SIZE;
        let ours = Ring::new(Region::heap(len)).unwrap().entries();
        f.is(format!("__RING_SIZE((struct a_sring *)0, {len})"), ours);
    }
    for state in (0..=8).map(|n| XenbusState::from_node(format!("{n}").as_bytes())) {
        f.is(format!("XenbusState{state:?}"), state as u64);
    }
    for (field, offset) in [("out", 1024u64), ("in_cons", 3072), ("out_prod", 3084)] {
        f.is(
            format!("offsetof(struct xencons_interface, {field})"),
            offset,
        );
    }
}

fn small(f: &mut Facts) {
    use hypercall::*;
    layouts! { f,
        struct multicall_entry = MulticallEntry { op, result, args }
        struct xen_memory_domain = MemoryDomain { domid }
        struct gnttab_query_size = GnttabQuerySize { dom, nr_frames, max_nr_frames, status }
        struct sched_remote_shutdown = SchedRemoteShutdown { domain_id, reason }
        struct evtchn_status = EvtchnStatus { dom, port, status, vcpu }
    }
    offsets! { f,
        struct evtchn_status = EvtchnStatus {
            u = "u.virq", u = "u.pirq", u = "u.unbound.dom", u = "u.interdomain.dom",
            remote_port = "u.interdomain.port",
        }
    }
    layouts! { f,
        struct xen_hvm_param = HvmParamOp { domid, index, value }
    }
    values!(
        f,
        "XENMEM_current_reservation" = XENMEM_CURRENT_RESERVATION,
        "XENMEM_maximum_reservation" = XENMEM_MAXIMUM_RESERVATION,
        "XENMEM_maximum_gpfn" = XENMEM_MAXIMUM_GPFN,
        "XENMEM_resource_ioreq_server" = XENMEM_RESOURCE_IOREQ_SERVER,
        "XENMEM_resource_grant_table" = XENMEM_RESOURCE_GRANT_TABLE,
        "XENMEM_resource_vmtrace_buf" = XENMEM_RESOURCE_VMTRACE_BUF,
        "XENMEM_resource_grant_table_id_shared" = XENMEM_RESOURCE_GRANT_TABLE_ID_SHARED,
        "XENMEM_resource_grant_table_id_status" = XENMEM_RESOURCE_GRANT_TABLE_ID_STATUS,
        "GNTTABOP_query_size" = GNTTABOP_QUERY_SIZE,
        "GNTST_okay" = GNTST_OKAY,
        "GNTST_bad_domain" = GNTST_BAD_DOMAIN,
        "GNTST_permission_denied" = GNTST_PERMISSION_DENIED,
        "GNTCOPY_source_gref" = gntdev::GNTCOPY_SOURCE_GREF,
        "GNTCOPY_dest_gref" = gntdev::GNTCOPY_DEST_GREF,
        "SCHEDOP_remote_shutdown" = SCHEDOP_REMOTE_SHUTDOWN,
        "EVTCHNOP_status" = EVTCHNOP_STATUS,
        "EVTCHNSTAT_closed" = EVTCHNSTAT_CLOSED,
        "EVTCHNSTAT_unbound" = EVTCHNSTAT_UNBOUND,
        "EVTCHNSTAT_interdomain" = EVTCHNSTAT_INTERDOMAIN,
        "EVTCHNSTAT_pirq" = EVTCHNSTAT_PIRQ,
        "EVTCHNSTAT_virq" = EVTCHNSTAT_VIRQ,
        "EVTCHNSTAT_ipi" = EVTCHNSTAT_IPI,
        "HVMOP_set_param" = HVMOP_SET_PARAM,
        "HVMOP_get_param" = HVMOP_GET_PARAM,
        "SHUTDOWN_poweroff" = ShutdownReason::POWEROFF.as_u8(),
        "SHUTDOWN_reboot" = ShutdownReason::REBOOT.as_u8(),
        "SHUTDOWN_suspend" = ShutdownReason::SUSPEND.as_u8(),
        "SHUTDOWN_crash" = ShutdownReason::CRASH.as_u8(),
        "SHUTDOWN_watchdog" = ShutdownReason::WATCHDOG.as_u8(),
        "SHUTDOWN_soft_reset" = ShutdownReason::SOFT_RESET.as_u8(),
    );
    for (param, name) in HvmParam::NAMED {
        f.is(*name, param.as_u32());
    }
}

fn views(f: &mut Facts) {
    use altp2m::*;
    layouts! { f,
        struct xen_hvm_altp2m_op = Altp2mOp { version, cmd, domain, pad1, pad2, u }
        struct xen_hvm_altp2m_domain_state = Altp2mState { state }
        struct xen_hvm_altp2m_view = Altp2mView { view, hvmmem_default_access }
        struct xen_hvm_altp2m_mem_access = Altp2mAccess { view, access, pad, gfn }
        struct xen_hvm_altp2m_change_gfn = Altp2mChangeGfn { view, pad1, pad2, old_gfn, new_gfn }
        struct xen_hvm_altp2m_get_vcpu_p2m_idx = Altp2mIndex { vcpu_id, altp2m_idx }
    }
    same! { f, HVMOP_ALTP2M_INTERFACE_VERSION }
    values!(
        f,
        "HVMOP_altp2m" = HVMOP_ALTP2M,
        "HVMOP_altp2m_get_domain_state" = HVMOP_ALTP2M_GET_DOMAIN_STATE,
        "HVMOP_altp2m_set_domain_state" = HVMOP_ALTP2M_SET_DOMAIN_STATE,
        "HVMOP_altp2m_create_p2m" = HVMOP_ALTP2M_CREATE_P2M,
        "HVMOP_altp2m_destroy_p2m" = HVMOP_ALTP2M_DESTROY_P2M,
        "HVMOP_altp2m_switch_p2m" = HVMOP_ALTP2M_SWITCH_P2M,
        "HVMOP_altp2m_set_mem_access" = HVMOP_ALTP2M_SET_MEM_ACCESS,
        "HVMOP_altp2m_change_gfn" = HVMOP_ALTP2M_CHANGE_GFN,
        "HVMOP_altp2m_get_mem_access" = HVMOP_ALTP2M_GET_MEM_ACCESS,
        "HVMOP_altp2m_get_p2m_idx" = HVMOP_ALTP2M_GET_P2M_IDX,
        "XENMEM_access_n" = XENMEM_ACCESS_N,
        "XENMEM_access_r" = XENMEM_ACCESS_R,
        "XENMEM_access_w" = XENMEM_ACCESS_W,
        "XENMEM_access_rw" = XENMEM_ACCESS_RW,
        "XENMEM_access_x" = XENMEM_ACCESS_X,
        "XENMEM_access_rx" = XENMEM_ACCESS_RX,
        "XENMEM_access_wx" = XENMEM_ACCESS_WX,
        "XENMEM_access_rwx" = XENMEM_ACCESS_RWX,
        "XENMEM_access_rx2rw" = XENMEM_ACCESS_RX2RW,
        "XENMEM_access_n2rwx" = XENMEM_ACCESS_N2RWX,
    );
    // Xen 4.20, as this other novelty, gave the default's number to another access.
    f.guard = Some("!defined(XEN_DOMCTL_set_llc_colors)");
    f.is("XENMEM_access_default", XENMEM_ACCESS_DEFAULT_4_17);
    f.guard = Some("defined(XEN_DOMCTL_set_llc_colors)");
    f.is("XENMEM_access_r_pw", XENMEM_ACCESS_R_PW);
    f.is("XENMEM_access_default", XENMEM_ACCESS_DEFAULT);
    f.guard = None;
}

fn dm_ops(f: &mut Facts) {
    use dm_op::*;
    f.size::<DmOpArgument>("struct xen_dm_op");
    offsets! { f,
        struct xen_dm_op = DmOpArgument { op, pad, u }
    }
    layouts! { f,
        struct xen_dm_op_create_ioreq_server = CreateIoreqServer { handle_bufioreq, id }
        struct xen_dm_op_get_ioreq_server_info = GetIoreqServerInfo {
            id, flags, bufioreq_port, ioreq_gfn, bufioreq_gfn,
        }
        struct xen_dm_op_ioreq_server_range = IoreqServerRange { id, kind = "type", start, end }
        struct xen_dm_op_set_ioreq_server_state = SetIoreqServerState { id, enabled }
        struct xen_dm_op_destroy_ioreq_server = DestroyIoreqServer { id }
        struct xen_dm_op_track_dirty_vram = TrackDirtyVram { nr, first_pfn }
        struct xen_dm_op_set_pci_intx_level = SetPciIntxLevel { domain, bus, device, intx, level }
        struct xen_dm_op_set_isa_irq_level = SetIsaIrqLevel { isa_irq, level }
        struct xen_dm_op_set_pci_link_route = SetPciLinkRoute { link, isa_irq }
        struct xen_dm_op_modified_memory = ModifiedMemory { nr_extents, opaque }
        struct xen_dm_op_set_mem_type = SetMemType { nr, mem_type, first_pfn }
        struct xen_dm_op_inject_event = InjectEvent {
            vcpuid, vector, kind = "type", insn_len, error_code, cr2,
        }
        struct xen_dm_op_inject_msi = InjectMsi { data, addr }
        struct xen_dm_op_map_mem_type_to_ioreq_server = MapMemTypeToIoreqServer {
            id, kind = "type", flags, opaque,
        }
        struct xen_dm_op_remote_shutdown = RemoteShutdown { reason }
        struct xen_dm_op_relocate_memory = RelocateMemory { size, src_gfn, dst_gfn }
        struct xen_dm_op_pin_memory_cacheattr = PinMemoryCacheattr { start, end, kind = "type" }
        struct xen_dm_op_set_irq_level = SetIrqLevel { irq, level }
        struct xen_dm_op_nr_vcpus = NrVcpus { vcpus }
        struct xen_dm_op_modified_memory_extent = ModifiedMemoryExtent { nr, first_pfn }
    }
    same! { f,
        HVM_IOREQSRV_BUFIOREQ_OFF, HVM_IOREQSRV_BUFIOREQ_LEGACY, HVM_IOREQSRV_BUFIOREQ_ATOMIC,
        XEN_DMOP_IO_RANGE_PORT, XEN_DMOP_IO_RANGE_MEMORY, XEN_DMOP_IO_RANGE_PCI,
        XEN_DMOP_IOREQ_MEM_ACCESS_READ, XEN_DMOP_IOREQ_MEM_ACCESS_WRITE, XEN_DMOP_MEM_CACHEATTR_UC,
        XEN_DMOP_MEM_CACHEATTR_WC, XEN_DMOP_MEM_CACHEATTR_WT, XEN_DMOP_MEM_CACHEATTR_WP,
        XEN_DMOP_MEM_CACHEATTR_WB, XEN_DMOP_MEM_CACHEATTR_UCM, XEN_DMOP_DELETE_MEM_CACHEATTR,
    }
    values!(
        f,
        "XEN_DMOP_create_ioreq_server" = XEN_DMOP_CREATE_IOREQ_SERVER,
        "XEN_DMOP_get_ioreq_server_info" = XEN_DMOP_GET_IOREQ_SERVER_INFO,
        "XEN_DMOP_map_io_range_to_ioreq_server" = XEN_DMOP_MAP_IO_RANGE_TO_IOREQ_SERVER,
        "XEN_DMOP_set_ioreq_server_state" = XEN_DMOP_SET_IOREQ_SERVER_STATE,
        "XEN_DMOP_destroy_ioreq_server" = XEN_DMOP_DESTROY_IOREQ_SERVER,
        "XEN_DMOP_track_dirty_vram" = XEN_DMOP_TRACK_DIRTY_VRAM,
        "XEN_DMOP_set_pci_intx_level" = XEN_DMOP_SET_PCI_INTX_LEVEL,
        "XEN_DMOP_set_isa_irq_level" = XEN_DMOP_SET_ISA_IRQ_LEVEL,
        "XEN_DMOP_set_pci_link_route" = XEN_DMOP_SET_PCI_LINK_ROUTE,
        "XEN_DMOP_modified_memory" = XEN_DMOP_MODIFIED_MEMORY,
        "XEN_DMOP_set_mem_type" = XEN_DMOP_SET_MEM_TYPE,
        "XEN_DMOP_inject_event" = XEN_DMOP_INJECT_EVENT,
        "XEN_DMOP_inject_msi" = XEN_DMOP_INJECT_MSI,
        "XEN_DMOP_map_mem_type_to_ioreq_server" = XEN_DMOP_MAP_MEM_TYPE_TO_IOREQ_SERVER,
        "XEN_DMOP_remote_shutdown" = XEN_DMOP_REMOTE_SHUTDOWN,
        "XEN_DMOP_relocate_memory" = XEN_DMOP_RELOCATE_MEMORY,
        "XEN_DMOP_pin_memory_cacheattr" = XEN_DMOP_PIN_MEMORY_CACHEATTR,
        "XEN_DMOP_set_irq_level" = XEN_DMOP_SET_IRQ_LEVEL,
        "XEN_DMOP_nr_vcpus" = XEN_DMOP_NR_VCPUS,
        "XEN_DMOP_unmap_io_range_from_ioreq_server" = XEN_DMOP_UNMAP_IO_RANGE_FROM_IOREQ_SERVER,
        "XEN_DMOP_no_gfns" = XEN_DMOP_NO_GFNS,
        "HVMMEM_ram_rw" = HVMMEM_RAM_RW,
        "HVMMEM_ram_ro" = HVMMEM_RAM_RO,
        "HVMMEM_mmio_dm" = HVMMEM_MMIO_DM,
        "HVMMEM_ioreq_server" = HVMMEM_IOREQ_SERVER,
        "XEN_DMOP_EVENT_ext_int" = XEN_DMOP_EVENT_EXT_INT,
        "XEN_DMOP_EVENT_nmi" = XEN_DMOP_EVENT_NMI,
        "XEN_DMOP_EVENT_hw_exc" = XEN_DMOP_EVENT_HW_EXC,
        "XEN_DMOP_EVENT_sw_int" = XEN_DMOP_EVENT_SW_INT,
        "XEN_DMOP_EVENT_pri_sw_exc" = XEN_DMOP_EVENT_PRI_SW_EXC,
        "XEN_DMOP_EVENT_sw_exc" = XEN_DMOP_EVENT_SW_EXC,
        "XEN_DMOP_PCI_SBDF(0x5bcd, 0x12, 31, 7)" = xen_sys::PciFunction::new(0x5bcd, 0x12, 31, 7)
            .unwrap()
            .sbdf(),
    );
}

fn ioreqs(f: &mut Facts) {
    use ioreq::*;
    layouts! { f,
        struct ioreq = Ioreq { addr, data, count, size, vp_eport }
    }
    offsets! { f,
        struct ioreq = Ioreq { kind = "type" }
    }
    layouts! { f,
        struct buffered_iopage = BufferedIopage { read_pointer, write_pointer, buf_ioreq }
    }
    let bits = |field: &str| {
        format!(
            "((union {{ struct ioreq r; uint8_t b[32]; }}){{ .r = {{ {field} }} }})\
             .b[offsetof(struct ioreq, type) - 1]"
        )
    };
    f.is(bits(".state = 0xf"), STATE_MASK);
    f.is(bits(".data_is_ptr = 1"), DATA_IS_PTR);
    f.is(bits(".dir = IOREQ_READ"), DIR_READ);
    f.is(bits(".df = 1"), DF);
    let head = |field: &str| {
        format!("((union {{ buf_ioreq_t r; uint32_t w[2]; }}){{ .r = {{ {field} }} }}).w[0]")
    };
    f.is(head(".type = 0x5a"), 0x5au32);
    f.is(head(".dir = IOREQ_READ"), 1u32 << 9);
    f.is(head(".size = 3"), 3u32 << 10);
    f.is(head(".addr = 0xfffff"), 0xfffff_u32 << 12);
    same! { f,
        IOREQ_BUFFER_SLOT_NUM, STATE_IOREQ_NONE, STATE_IOREQ_READY, STATE_IOREQ_INPROCESS,
        STATE_IORESP_READY, IOREQ_TYPE_PIO, IOREQ_TYPE_COPY, IOREQ_TYPE_PCI_CONFIG,
        IOREQ_TYPE_TIMEOFFSET, IOREQ_TYPE_INVALIDATE,
    }
}

fn versions(f: &mut Facts) {
    use version::*;
    f.size::<ExtraVersion>("xen_extraversion_t");
    f.size::<Capabilities>("xen_capabilities_info_t");
    f.size::<Changeset>("xen_changeset_info_t");
    f.size::<CommandLine>("xen_commandline_t");
    f.size::<GuestHandle>("xen_domain_handle_t");
    layouts! { f,
        struct xen_compile_info = CompileInfo { compiler, compile_by, compile_domain, compile_date }
        struct xen_platform_parameters = PlatformParameters { virt_start }
        struct xen_feature_info = FeatureInfo { submap_idx, submap }
    }
    offsets! { f,
        struct xen_build_id = BuildId { len, buf }
    }
    values!(
        f,
        "XENVER_version" = XENVER_VERSION,
        "XENVER_extraversion" = XENVER_EXTRAVERSION,
        "XENVER_compile_info" = XENVER_COMPILE_INFO,
        "XENVER_capabilities" = XENVER_CAPABILITIES,
        "XENVER_changeset" = XENVER_CHANGESET,
        "XENVER_platform_parameters" = XENVER_PLATFORM_PARAMETERS,
        "XENVER_get_features" = XENVER_GET_FEATURES,
        "XENVER_pagesize" = XENVER_PAGESIZE,
        "XENVER_guest_handle" = XENVER_GUEST_HANDLE,
        "XENVER_commandline" = XENVER_COMMANDLINE,
        "XENVER_build_id" = XENVER_BUILD_ID,
    );
    for (name, flag) in Features::all().iter_names() {
        // C mixes the cases of these.
        let name = match name {
            "ARM_SMCCC_SUPPORTED" => "ARM_SMCCC_supported".to_owned(),
            name => name.to_lowercase(),
        };
        f.is(format!("1u << XENFEAT_{name}"), flag.bits());
    }
    f.guard = Some("defined(XENVER_extraversion2)");
    offsets! { f,
        struct xen_varbuf = CommandLine2 { len, buf }
    }
    values!(
        f,
        "XENVER_extraversion2" = XENVER_EXTRAVERSION2,
        "XENVER_capabilities2" = XENVER_CAPABILITIES2,
        "XENVER_changeset2" = XENVER_CHANGESET2,
        "XENVER_commandline2" = XENVER_COMMANDLINE2,
    );
    f.guard = None;
}

fn domctls(f: &mut Facts) {
    use domctl::*;
    layouts! { f,
        struct xen_domctl = Domctl { cmd, interface_version, domain, u }
    }
    let (low, high) = (INTERFACE_VERSIONS.start(), INTERFACE_VERSIONS.end());
    let known = "XEN_DOMCTL_INTERFACE_VERSION";
    f.is(format!("{known} >= {low} && {known} <= {high}"), 1u64);
    layouts! { f,
        struct xen_domctl_getdomaininfo = GetDomainInfo {
            domain, flags, tot_pages, max_pages, outstanding_pages, shr_pages, paged_pages,
            shared_info_frame, cpu_time, nr_online_vcpus, max_vcpu_id, ssidref, handle, cpupool,
            gpaddr_bits, arch_config,
        }
        struct xen_domctl_max_mem = MaxMem { max_memkb }
        struct xen_domctl_getvcpuinfo = GetVcpuInfo {
            vcpu, online, blocked, running, cpu_time, cpu,
        }
    }
    same! { f, XEN_INVALID_MAX_VCPU_ID, XEN_RUNSTATE_UPDATE }
    values!(
        f,
        "XEN_DOMCTL_destroydomain" = XEN_DOMCTL_DESTROYDOMAIN,
        "XEN_DOMCTL_pausedomain" = XEN_DOMCTL_PAUSEDOMAIN,
        "XEN_DOMCTL_unpausedomain" = XEN_DOMCTL_UNPAUSEDOMAIN,
        "XEN_DOMCTL_getdomaininfo" = XEN_DOMCTL_GETDOMAININFO,
        "XEN_DOMCTL_max_mem" = XEN_DOMCTL_MAX_MEM,
        "XEN_DOMCTL_getvcpuinfo" = XEN_DOMCTL_GETVCPUINFO,
        "XEN_DOMINF_shutdownshift" = XEN_DOMINF_SHUTDOWNSHIFT,
        "XEN_DOMINF_shutdownmask" = XEN_DOMINF_SHUTDOWNMASK,
        "XEN_DOMINF_dying" = DomainFlags::DYING.bits(),
        "XEN_DOMINF_hvm_guest" = DomainFlags::HVM.bits(),
        "XEN_DOMINF_shutdown" = DomainFlags::SHUTDOWN.bits(),
        "XEN_DOMINF_paused" = DomainFlags::PAUSED.bits(),
        "XEN_DOMINF_blocked" = DomainFlags::BLOCKED.bits(),
        "XEN_DOMINF_running" = DomainFlags::RUNNING.bits(),
        "XEN_DOMINF_debugged" = DomainFlags::DEBUGGED.bits(),
        "XEN_DOMINF_xs_domain" = DomainFlags::XENSTORE.bits(),
        "XEN_DOMINF_hap" = DomainFlags::HAP.bits(),
    );
    // Xen 4.21: in none of the packages the testbed takes.
    f.guard = Some("defined(XEN_DOMCTL_get_domain_state)");
    layouts! { f,
        struct xen_domctl_get_domain_state = GetDomainState { state, caps, pad0, unique_id }
    }
    values!(
        f,
        "XEN_DOMCTL_get_domain_state" = XEN_DOMCTL_GET_DOMAIN_STATE,
        "XEN_DOMCTL_GETDOMSTATE_STATE_EXIST" = StateFlags::EXIST.bits(),
        "XEN_DOMCTL_GETDOMSTATE_STATE_SHUTDOWN" = StateFlags::SHUTDOWN.bits(),
        "XEN_DOMCTL_GETDOMSTATE_STATE_DYING" = StateFlags::DYING.bits(),
        "XEN_DOMCTL_GETDOMSTATE_STATE_DEAD" = StateFlags::DEAD.bits(),
        "XEN_DOMCTL_GETDOMSTATE_CAP_CONTROL" = CapabilityFlags::CONTROL.bits(),
        "XEN_DOMCTL_GETDOMSTATE_CAP_HARDWARE" = CapabilityFlags::HARDWARE.bits(),
        "XEN_DOMCTL_GETDOMSTATE_CAP_XENSTORE" = CapabilityFlags::XENSTORE.bits(),
    );
    f.guard = None;
}

fn sysctls(f: &mut Facts) {
    use sysctl::*;
    layouts! { f,
        struct xen_sysctl = Sysctl { cmd, interface_version, u }
    }
    let (low, high) = (INTERFACE_VERSIONS.start(), INTERFACE_VERSIONS.end());
    let known = "XEN_SYSCTL_INTERFACE_VERSION";
    f.is(format!("{known} >= {low} && {known} <= {high}"), 1u64);
    layouts! { f,
        struct xen_sysctl_readconsole = ReadConsole {
            clear, incremental, pad0, pad1, index, buffer, count,
        }
        struct xen_sysctl_physinfo = PhysInfo {
            threads_per_core, cores_per_socket, nr_cpus, max_cpu_id, nr_nodes, max_node_id, cpu_khz,
            capabilities, arch_capabilities, total_pages, free_pages, scrub_pages,
            outstanding_pages, max_mfn, hw_cap,
        }
        struct xen_sysctl_getdomaininfolist = GetDomainInfoList {
            first_domain, max_domains, buffer, num_domains,
        }
        struct xen_sysctl_cputopo = CpuTopo { core, socket, node }
        struct xen_sysctl_cputopoinfo = CpuTopoInfo { num_cpus, cputopo }
        struct xen_sysctl_meminfo = MemInfo { memsize, memfree }
        struct xen_sysctl_numainfo = NumaInfo { num_nodes, meminfo, distance }
    }
    same! { f, XEN_INVALID_MEM_SZ }
    values!(
        f,
        "XEN_SYSCTL_readconsole" = XEN_SYSCTL_READCONSOLE,
        "XEN_SYSCTL_physinfo" = XEN_SYSCTL_PHYSINFO,
        "XEN_SYSCTL_getdomaininfolist" = XEN_SYSCTL_GETDOMAININFOLIST,
        "XEN_SYSCTL_cputopoinfo" = XEN_SYSCTL_CPUTOPOINFO,
        "XEN_SYSCTL_numainfo" = XEN_SYSCTL_NUMAINFO,
        "XEN_INVALID_CORE_ID" = XEN_INVALID_ID,
        "XEN_INVALID_SOCKET_ID" = XEN_INVALID_ID,
        "XEN_INVALID_NODE_ID" = XEN_INVALID_ID,
        "XEN_SYSCTL_PHYSCAP_hvm" = PhysCaps::HVM.bits(),
        "XEN_SYSCTL_PHYSCAP_pv" = PhysCaps::PV.bits(),
        "XEN_SYSCTL_PHYSCAP_directio" = PhysCaps::DIRECT_IO.bits(),
        "XEN_SYSCTL_PHYSCAP_hap" = PhysCaps::HAP.bits(),
        "XEN_SYSCTL_PHYSCAP_shadow" = PhysCaps::SHADOW.bits(),
        "XEN_SYSCTL_PHYSCAP_iommu_hap_pt_share" = PhysCaps::IOMMU_HAP_PT_SHARE.bits(),
        "XEN_SYSCTL_PHYSCAP_vmtrace" = PhysCaps::VMTRACE.bits(),
        "XEN_SYSCTL_PHYSCAP_vpmu" = PhysCaps::VPMU.bits(),
        "XEN_SYSCTL_PHYSCAP_gnttab_v1" = PhysCaps::GRANT_TABLE_V1.bits(),
        "XEN_SYSCTL_PHYSCAP_gnttab_v2" = PhysCaps::GRANT_TABLE_V2.bits(),
    );
}

fn contexts(f: &mut Facts) {
    use domctl::*;
    layouts! { f,
        struct xen_domctl_vcpucontext = VcpuContext { vcpu, ctxt }
        struct xen_domctl_max_vcpus = MaxVcpus { max }
        struct xen_domctl_address_size = AddressSize { size }
        struct xen_domctl_hvmcontext = HvmContext { size, buffer }
        struct xen_domctl_hvmcontext_partial = HvmContextPartial {
            kind = "type", instance, bufsz, buffer,
        }
        struct xen_domctl_irq_permission = IrqPermission { pirq, allow_access }
        struct xen_domctl_iomem_permission = IomemPermission { first_mfn, nr_mfns, allow_access }
        struct xen_domctl_ioport_permission = IoportPermission {
            first_port, nr_ports, allow_access,
        }
        struct xen_domctl_assign_device = AssignDevice {
            dev, flags, machine_sbdf = "u.pci.machine_sbdf",
        }
        struct xen_domctl_set_target = SetTarget { target }
    }
    same! { f, XEN_DOMCTL_DEV_PCI }
    values!(
        f,
        "XEN_DOMCTL_setvcpucontext" = XEN_DOMCTL_SETVCPUCONTEXT,
        "XEN_DOMCTL_getvcpucontext" = XEN_DOMCTL_GETVCPUCONTEXT,
        "XEN_DOMCTL_max_vcpus" = XEN_DOMCTL_MAX_VCPUS,
        "XEN_DOMCTL_irq_permission" = XEN_DOMCTL_IRQ_PERMISSION,
        "XEN_DOMCTL_iomem_permission" = XEN_DOMCTL_IOMEM_PERMISSION,
        "XEN_DOMCTL_ioport_permission" = XEN_DOMCTL_IOPORT_PERMISSION,
        "XEN_DOMCTL_gethvmcontext" = XEN_DOMCTL_GETHVMCONTEXT,
        "XEN_DOMCTL_sethvmcontext" = XEN_DOMCTL_SETHVMCONTEXT,
        "XEN_DOMCTL_get_address_size" = XEN_DOMCTL_GET_ADDRESS_SIZE,
        "XEN_DOMCTL_assign_device" = XEN_DOMCTL_ASSIGN_DEVICE,
        "XEN_DOMCTL_test_assign_device" = XEN_DOMCTL_TEST_ASSIGN_DEVICE,
        "XEN_DOMCTL_set_target" = XEN_DOMCTL_SET_TARGET,
        "XEN_DOMCTL_deassign_device" = XEN_DOMCTL_DEASSIGN_DEVICE,
        "XEN_DOMCTL_gethvmcontext_partial" = XEN_DOMCTL_GETHVMCONTEXT_PARTIAL,
    );
}

fn registers(f: &mut Facts) {
    use hvm_save::{Cpu, Descriptor, Header};
    use vcpu::*;
    layouts! { f,
        struct cpu_user_regs = UserRegs {
            r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, error_code,
            entry_vector, rip, cs, saved_upcall_mask, rflags, rsp, ss, es, ds, fs, gs,
        }
        struct trap_info = TrapInfo { vector, flags, cs, address }
        struct vcpu_guest_context = VcpuGuestContext {
            fpu = "fpu_ctxt", flags, user_regs, trap_ctxt, ldt_base, ldt_ents, gdt_frames, gdt_ents,
            kernel_ss, kernel_sp, ctrlreg, debugreg, event_callback_eip, failsafe_callback_eip,
            syscall_callback_eip, vm_assist, fs_base, gs_base_kernel, gs_base_user,
        }
        struct hvm_save_descriptor = Descriptor { typecode, instance, length }
        struct hvm_save_header = Header { magic, version, changeset, cpuid, gtsc_khz }
        struct hvm_hw_cpu = Cpu {
            fpu_regs, rax, rbx, rcx, rdx, rbp, rsi, rdi, rsp, r8, r9, r10, r11, r12, r13, r14, r15,
            rip, rflags, cr0, cr2, cr3, cr4, dr0, dr1, dr2, dr3, dr6, dr7, cs_sel, ds_sel, es_sel,
            fs_sel, gs_sel, ss_sel, tr_sel, ldtr_sel, cs_limit, ds_limit, es_limit, fs_limit,
            gs_limit, ss_limit, tr_limit, ldtr_limit, idtr_limit, gdtr_limit, cs_base, ds_base,
            es_base, fs_base, gs_base, ss_base, tr_base, ldtr_base, idtr_base, gdtr_base,
            cs_arbytes, ds_arbytes, es_arbytes, fs_arbytes, gs_arbytes, ss_arbytes, tr_arbytes,
            ldtr_arbytes, sysenter_cs, sysenter_esp, sysenter_eip, shadow_gs, msr_flags, msr_lstar,
            msr_star, msr_cstar, msr_syscall_mask, msr_efer, msr_tsc_aux, tsc, pending_event,
            error_code, flags,
        }
    }
    same! { f, VGCF_I387_VALID, VGCF_IN_KERNEL }
    values!(
        f,
        "VGCF_online" = VGCF_ONLINE,
        "HVM_FILE_MAGIC" = hvm_save::FILE_MAGIC,
        "HVM_FILE_VERSION" = hvm_save::FILE_VERSION,
        "HVM_SAVE_CODE(END)" = hvm_save::CODE_END,
        "HVM_SAVE_CODE(HEADER)" = hvm_save::CODE_HEADER,
        "HVM_SAVE_CODE(CPU)" = hvm_save::CODE_CPU,
        "XEN_X86_FPU_INITIALISED" = hvm_save::FPU_INITIALISED,
    );
}

fn power(f: &mut Facts) {
    use sysctl::*;
    layouts! { f,
        struct xen_sysctl_debug_keys = DebugKeys { keys, nr_keys }
        struct xen_sysctl_getcpuinfo = GetCpuInfo { max_cpus, info, nr_cpus }
        struct xen_sysctl_cpuinfo = CpuInfo { idletime }
        struct pm_px_val = PmPxVal { freq, residency, count }
    }
    offsets! { f,
        struct xen_sysctl_get_pmstat = PmStatPx {
            kind = "type", cpuid = "cpuid", total = "u.getpx.total", usable = "u.getpx.usable",
            last = "u.getpx.last", cur = "u.getpx.cur", trans_pt = "u.getpx.trans_pt",
            pt = "u.getpx.pt",
        }
        struct xen_sysctl_get_pmstat = PmStatCx {
            kind = "type", cpuid = "cpuid", nr = "u.getcx.nr", last = "u.getcx.last",
            idle_time = "u.getcx.idle_time", triggers = "u.getcx.triggers",
            residencies = "u.getcx.residencies", nr_pc = "u.getcx.nr_pc", nr_cc = "u.getcx.nr_cc",
            pc = "u.getcx.pc", cc = "u.getcx.cc",
        }
    }
    f.size::<PmStatCx>("struct xen_sysctl_get_pmstat");
    offsets! { f,
        struct xen_sysctl_pm_op = PmOp { cmd, cpuid, value = "u.get_avgfreq" }
    }
    same! { f, GET_CPUFREQ_AVGFREQ }
    values!(
        f,
        "XEN_SYSCTL_debug_keys" = XEN_SYSCTL_DEBUG_KEYS,
        "XEN_SYSCTL_getcpuinfo" = XEN_SYSCTL_GETCPUINFO,
        "XEN_SYSCTL_get_pmstat" = XEN_SYSCTL_GET_PMSTAT,
        "XEN_SYSCTL_pm_op" = XEN_SYSCTL_PM_OP,
        "XEN_INVALID_NODE_DIST" = XEN_INVALID_DISTANCE,
        "PMSTAT_get_max_px" = PMSTAT_GET_MAX_PX,
        "PMSTAT_get_pxstat" = PMSTAT_GET_PXSTAT,
        "PMSTAT_get_cxstat" = PMSTAT_GET_CXSTAT,
    );
}

fn reservations(f: &mut Facts) {
    use hypercall::*;
    use memory::*;
    layouts! { f,
        struct xen_add_to_physmap = AddToPhysmap { domid, size, space, idx, gpfn }
        struct xen_remove_from_physmap = RemoveFromPhysmap { domid, gpfn }
        struct xen_add_to_physmap_batch = AddToPhysmapBatch {
            domid, space, size, foreign_domid = "u.foreign_domid", idxs, gpfns, errs,
        }
        struct evtchn_alloc_unbound = EvtchnAllocUnbound { dom, remote_dom, port }
        struct gnttab_get_version = GnttabGetVersion { dom, version }
        struct physdev_map_pirq = PhysdevMapPirq {
            domid, kind = "type", index, pirq, bus, devfn, entry_nr, table_base,
        }
        struct physdev_unmap_pirq = PhysdevUnmapPirq { domid, pirq }
    }
    same! { f, MAP_PIRQ_TYPE_GSI, MAP_PIRQ_TYPE_MSI_SEG }
    values!(
        f,
        "__HYPERVISOR_physdev_op" = HYPERVISOR_PHYSDEV_OP,
        "EVTCHNOP_alloc_unbound" = EVTCHNOP_ALLOC_UNBOUND,
        "GNTTABOP_get_version" = GNTTABOP_GET_VERSION,
        "PHYSDEVOP_map_pirq" = PHYSDEVOP_MAP_PIRQ,
        "PHYSDEVOP_unmap_pirq" = PHYSDEVOP_UNMAP_PIRQ,
        "XENMEM_add_to_physmap" = XENMEM_ADD_TO_PHYSMAP,
        "XENMEM_remove_from_physmap" = XENMEM_REMOVE_FROM_PHYSMAP,
        "XENMEM_add_to_physmap_batch" = XENMEM_ADD_TO_PHYSMAP_BATCH,
        "XENMEM_claim_pages" = XENMEM_CLAIM_PAGES,
        "XENMAPSPACE_shared_info" = XENMAPSPACE_SHARED_INFO,
        "XENMAPSPACE_grant_table" = XENMAPSPACE_GRANT_TABLE,
        "XENMAPSPACE_gmfn" = XENMAPSPACE_GMFN,
        "XENMAPSPACE_gmfn_foreign" = XENMAPSPACE_GMFN_FOREIGN,
    );
}

fn linux() -> Facts {
    let mut f = Facts::default();
    {
        use evtchn::*;
        same! { f,
            IOCTL_EVTCHN_BIND_VIRQ, IOCTL_EVTCHN_BIND_INTERDOMAIN, IOCTL_EVTCHN_BIND_UNBOUND_PORT,
            IOCTL_EVTCHN_UNBIND, IOCTL_EVTCHN_NOTIFY, IOCTL_EVTCHN_RESET,
            IOCTL_EVTCHN_RESTRICT_DOMID,
        }
        layouts! { f,
            struct ioctl_evtchn_bind_virq = BindVirq { virq }
            struct ioctl_evtchn_bind_interdomain = BindInterdomain { remote_domain, remote_port }
            struct ioctl_evtchn_bind_unbound_port = BindUnboundPort { remote_domain }
            struct ioctl_evtchn_unbind = Unbind { port }
            struct ioctl_evtchn_notify = Notify { port }
            struct ioctl_evtchn_restrict_domid = RestrictDomid { domid }
        }
    }
    {
        use gntdev::*;
        same! { f,
            IOCTL_GNTDEV_MAP_GRANT_REF, IOCTL_GNTDEV_UNMAP_GRANT_REF, IOCTL_GNTDEV_SET_UNMAP_NOTIFY,
            IOCTL_GNTDEV_GRANT_COPY, IOCTL_GNTDEV_DMABUF_EXP_FROM_REFS,
            IOCTL_GNTDEV_DMABUF_EXP_WAIT_RELEASED, IOCTL_GNTDEV_DMABUF_IMP_TO_REFS,
            IOCTL_GNTDEV_DMABUF_IMP_RELEASE,
        }
        offsets! { f,
            struct ioctl_gntdev_dmabuf_exp_from_refs = DmabufExpFromRefsHead {
                flags, count, fd, domid,
            }
            struct ioctl_gntdev_dmabuf_imp_to_refs = DmabufImpToRefsHead {
                fd, count, domid, reserved,
            }
        }
        layouts! { f,
            struct ioctl_gntdev_dmabuf_exp_wait_released = DmabufExpWaitReleased { fd, wait_to_ms }
            struct ioctl_gntdev_dmabuf_imp_release = DmabufImpRelease { fd, reserved }
        }
        for (c, head) in [
            ("dmabuf_exp_from_refs", size_of::<DmabufExpFromRefsHead>()),
            ("dmabuf_imp_to_refs", size_of::<DmabufImpToRefsHead>()),
        ] {
            f.is(
                format!("offsetof(struct ioctl_gntdev_{c}, refs)"),
                head as u64,
            );
        }
        values!(
            f,
            "GNTDEV_DMA_FLAG_WC" = DmaFlags::WRITE_COMBINE.bits(),
            "GNTDEV_DMA_FLAG_COHERENT" = DmaFlags::COHERENT.bits(),
            "offsetof(struct gntdev_grant_copy_segment, source.foreign.ref)" =
                offset_of!(GrantCopyForeign, gref),
            "offsetof(struct gntdev_grant_copy_segment, source.foreign.offset)" =
                offset_of!(GrantCopyForeign, offset),
            "offsetof(struct gntdev_grant_copy_segment, source.foreign.domid)" =
                offset_of!(GrantCopyForeign, domid),
        );
        layouts! { f,
            struct gntdev_grant_copy_segment = GrantCopySegment { source, dest, len, flags, status }
            struct ioctl_gntdev_grant_copy = GrantCopy { count, segments }
            struct ioctl_gntdev_grant_ref = GrantRefEntry { domid, gref = "ref" }
        }
        f.is(
            "offsetof(struct ioctl_gntdev_map_grant_ref, refs)",
            size_of::<MapGrantRefHead>() as u64,
        );
        layouts! { f,
            struct ioctl_gntdev_unmap_grant_ref = UnmapGrantRef { index, count, pad }
            struct ioctl_gntdev_unmap_notify = UnmapNotify { index, action, event_channel_port }
        }
    }
    {
        use gntalloc::*;
        same! { f,
            IOCTL_GNTALLOC_ALLOC_GREF, IOCTL_GNTALLOC_DEALLOC_GREF, IOCTL_GNTALLOC_SET_UNMAP_NOTIFY,
        }
        f.size::<AllocGref>("struct ioctl_gntalloc_alloc_gref");
        offsets! { f,
            struct ioctl_gntalloc_alloc_gref = AllocGref { gref_ids }
        }
        layouts! { f,
            struct ioctl_gntalloc_dealloc_gref = DeallocGref { index, count }
            struct ioctl_gntalloc_unmap_notify = UnmapNotify { index, action, event_channel_port }
        }
    }
    {
        use privcmd::*;
        same! { f,
            IOCTL_PRIVCMD_HYPERCALL, IOCTL_PRIVCMD_DM_OP, IOCTL_PRIVCMD_RESTRICT,
            IOCTL_PRIVCMD_MMAPBATCH_V2, IOCTL_PRIVCMD_MMAP_RESOURCE,
        }
        f.guard = Some("defined(IOCTL_PRIVCMD_IOEVENTFD)");
        same! { f,
            IOCTL_PRIVCMD_IRQFD, IOCTL_PRIVCMD_IOEVENTFD, PRIVCMD_IRQFD_FLAG_DEASSIGN,
            PRIVCMD_IOEVENTFD_FLAG_DEASSIGN,
        }
        layouts! { f,
            struct privcmd_irqfd = IrqFd { dm_op, size, fd, flags, dom, pad }
            struct privcmd_ioeventfd = IoEventFd {
                ioreq, ports, addr, addr_len, event_fd, vcpus, vq, flags, dom, pad,
            }
        }
        f.guard = None;
        layouts! { f,
            struct privcmd_hypercall = Hypercall { op, arg }
            struct privcmd_dm_op = DmOp { domid = "dom", count = "num", buffers = "ubufs" }
            struct privcmd_mmapbatch_v2 = MmapBatchV2 { num, dom, addr, arr, err }
            struct privcmd_mmap_resource = MmapResource { dom, kind = "type", id, idx, num, addr }
            struct privcmd_dm_op_buf = DmOpBuffer { address = "uptr", size }
        }
    }
    f
}

/// Compiles a program that prints each fact, runs it, and compares.
fn check(what: &str, facts: &Facts, prologue: &str, include: Option<&Path>) -> usize {
    let mut source =
        format!("#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n{prologue}\n");
    source.push_str("int main(void)\n{\n");
    for (i, fact) in facts.list.iter().enumerate() {
        if let Some(guard) = fact.guard {
            let _ = writeln!(source, "#if {guard}");
        }
        // To 64 bits by way of the expression's own type, so that -2 is -2.
        let _ = writeln!(
            source,
            "    printf(\"{i} %llu\\n\", (unsigned long long)({}));",
            fact.c
        );
        if fact.guard.is_some() {
            source.push_str("#endif\n");
        }
    }
    source.push_str("    return 0;\n}\n");
    let dir = tempfile::tempdir().unwrap();
    let (file, program) = (dir.path().join("facts.c"), dir.path().join("facts"));
    std::fs::write(&file, source).unwrap();
    // One of Linux's headers includes one that only the kernel has; the prologue has what it needs
    // of it.
    let interface = dir.path().join("xen/interface");
    std::fs::create_dir_all(&interface).unwrap();
    std::fs::write(interface.join("xen.h"), "").unwrap();
    let mut cc = Command::new("cc");
    cc.arg("-idirafter").arg(dir.path());
    if let Some(include) = include {
        cc.arg("-I").arg(include);
    }
    let built = cc
        .args(["-std=gnu11", "-w", "-o"])
        .args([&program, &file])
        .output()
        .expect("cc is needed: package gcc");
    let said = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "{what}: {said}");
    let output = Command::new(&program).output().unwrap();
    let mut wrong = Vec::new();
    let mut seen = 0;
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let (i, theirs) = line.split_once(' ').unwrap();
        let fact = &facts.list[i.parse::<usize>().unwrap()];
        let theirs: u64 = theirs.parse().unwrap();
        seen += 1;
        if theirs != fact.ours {
            wrong.push(format!("{}: {theirs} in C, {} here", fact.c, fact.ours));
        }
    }
    assert!(wrong.is_empty(), "{what}:\n{}", wrong.join("\n"));
    let sure = facts.list.iter().filter(|f| f.guard.is_none()).count();
    assert!(seen >= sure, "{what}: {seen} of {sure} facts");
    println!("{what}: {seen} facts");
    seen
}

/// The include folders of the releases there are.
fn releases() -> Vec<(String, PathBuf)> {
    if let Some(root) = std::env::var_os("XEN_C_ROOT") {
        return vec![(
            "XEN_C_ROOT".into(),
            Path::new(&root).join("tree/usr/include"),
        )];
    }
    let xen = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/xen");
    let entries = std::fs::read_dir(&xen).into_iter().flatten().flatten();
    let release = |entry: std::fs::DirEntry| {
        let include = entry.path().join("tree/usr/include");
        let name = entry.file_name().to_string_lossy().into_owned();
        include
            .join("xen/domctl.h")
            .exists()
            .then_some((name, include))
    };
    let found: Vec<_> = entries.filter_map(release).collect();
    assert!(
        !found.is_empty(),
        "no headers under {}: boot a host once",
        xen.display()
    );
    found
}

#[test]
fn xens_public_headers() {
    let prologue = "#define __XEN_TOOLS__ 1\n\
        #include <xen/xen.h>\n#include <xen/domctl.h>\n#include <xen/sysctl.h>\n\
        #include <xen/version.h>\n#include <xen/memory.h>\n#include <xen/sched.h>\n\
        #include <xen/vcpu.h>\n#include <xen/event_channel.h>\n#include <xen/grant_table.h>\n\
        #include <xen/hvm/hvm_op.h>\n#include <xen/hvm/params.h>\n#include <xen/hvm/dm_op.h>\n\
        #include <xen/vm_event.h>\n#include <xen/hvm/ioreq.h>\n\
        #include <xen/hvm/save.h>\n#include <xen/physdev.h>\n\
        #include <xen/io/ring.h>\n#include <xen/io/xenbus.h>\n#include <xen/io/console.h>\n\
        struct a_request { uint64_t words[14]; };\nstruct a_response { uint32_t words[3]; };\n\
        DEFINE_RING_TYPES(a, struct a_request, struct a_response);";
    for (release, include) in releases() {
        let facts = check(&format!("Xen {release}"), &xen(), prologue, Some(&include));
        assert!(facts > 700, "{release}: only {facts} facts");
    }
}

#[test]
fn linuxs_headers() {
    let prologue = "#include <sys/ioctl.h>\n#include <linux/ioctl.h>\n#include <linux/types.h>\n\
        typedef uint16_t domid_t;\ntypedef uint32_t grant_ref_t;\n\
        typedef unsigned long xen_pfn_t;\n\
        #include <xen/evtchn.h>\n#include <xen/gntdev.h>\n#include <xen/gntalloc.h>\n\
        #include <xen/privcmd.h>";
    assert!(check("Linux", &linux(), prologue, None) > 60);
}

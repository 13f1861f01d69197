//! The typed hypercalls, by the public interface, on a simulated host.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

use std::os::fd::AsFd as _;

use xen_sys::device_model::{BufferedRequests, DeviceModel, IoRange, IsaIrq, Level};
use xen_sys::hvm_save::{Record, Records};
use xen_sys::privcmd::{
    DomainFlags, HvmParam, MemoryAccess, MulticallEntry, PhysCaps, PirqSource, PortState, Privcmd,
    ShutdownReason, StateFlags, ViewId,
};
use xen_sys::sim::{Fault, Op, Simulation};
use xen_sys::{DomId, Error, Port, Virq};

fn host() -> (Simulation, Privcmd) {
    let host = Simulation::start().unwrap();
    let privcmd = Privcmd::open(&host.xen(DomId::DOM0).unwrap()).unwrap();
    (host, privcmd)
}

/// The errno of a call that has to fail.
fn errno<T: std::fmt::Debug>(done: Result<T, Error>) -> Option<i32> {
    done.unwrap_err().errno()
}

#[test]
fn an_ioreq_server_ends_with_its_value_and_its_ranges_with_it() {
    let host = Simulation::start().unwrap();
    let guest = host.add_domain().unwrap();
    let xen = host.xen(DomId::DOM0).unwrap();
    let model = DeviceModel::open(&xen, guest).unwrap();
    assert_eq!((model.domain(), model.vcpus().unwrap()), (guest, 1));
    let server = model.create_ioreq_server(BufferedRequests::Atomic).unwrap();
    server.map_io_range(IoRange::ports(0x5a0..=0x5a3)).unwrap();
    server.map_io_range(IoRange::memory(0x5a0..=0x5a3)).unwrap();
    server.enable().unwrap();
    server.disable().unwrap();
    server.info().unwrap();
    let overlap = server.map_io_range(IoRange::ports(0x5a3..=0x5a4));
    assert_eq!(errno(overlap), Some(17));
    let unmapped = server.unmap_io_range(IoRange::ports(0x5a0..=0x5a2));
    assert_eq!(errno(unmapped), Some(2));
    assert_eq!(
        host.leaks(),
        [format!("domain {guest}: ioreq server 0, 2 ranges")]
    );
    drop(server);
    host.assert_clean();
    let gone = model.destroy_ioreq_server(0);
    assert_eq!(errno(gone), Some(2));
}

#[test]
fn a_device_model_meets_xens_limits_as_errors_of_their_own() {
    let host = Simulation::start().unwrap();
    let guest = host.add_domain().unwrap();
    let xen = host.xen(DomId::DOM0).unwrap();
    let model = DeviceModel::open(&xen, guest).unwrap();
    let create = || model.create_ioreq_server(BufferedRequests::Off);
    let servers: Vec<_> = std::iter::from_fn(|| create().ok()).take(100).collect();
    assert_eq!(servers.len(), 8);
    assert!(matches!(create(), Err(Error::LimitReached { .. })));
    let range = |n: u16| IoRange::ports(2 * n..=2 * n);
    let full = (0..1000).find_map(|n| Some((n, servers[0].map_io_range(range(n)).err()?)));
    assert!(
        matches!(full, Some((256, Error::LimitReached { .. }))),
        "{full:?}"
    );
    let id = servers[3].id();
    drop(servers);
    assert_eq!(id, 3);

    let nobody = DeviceModel::open(&xen, DomId::new(99)).unwrap();
    assert!(matches!(nobody.vcpus(), Err(Error::NoDomain { domain, .. }) if domain.as_u16() == 99));
    let ourselves = DeviceModel::open(&xen, DomId::DOM0).unwrap();
    assert!(matches!(ourselves.vcpus(), Err(Error::NotPermitted { .. })));
    let line = IsaIrq::new(15).unwrap();
    model.set_isa_irq_level(line, Level::Asserted).unwrap();
    let spi = model.set_irq_level(32, Level::Asserted);
    assert!(matches!(spi, Err(Error::Unsupported { .. })));

    model.shutdown(ShutdownReason::CRASH).unwrap();
    let privcmd = Privcmd::open(&xen).unwrap();
    let shutdown = privcmd.domain_info(guest).unwrap().shutdown;
    assert_eq!(shutdown, Some(ShutdownReason::CRASH));
    host.destroy_domain(guest).unwrap();
    assert!(matches!(create(), Err(Error::NoDomain { .. })));
    host.assert_clean();
}

#[test]
fn fifty_domains_are_listed_without_root() {
    let (host, privcmd) = host();
    let guests: Vec<DomId> = (0..50).map(|_| host.add_domain().unwrap()).collect();
    let list = privcmd.domains().unwrap();
    assert_eq!(list.len(), 51);
    assert_eq!(list[0].id, DomId::DOM0);
    assert!(!list[0].flags.contains(DomainFlags::HVM));
    let listed: Vec<DomId> = list[1..].iter().map(|d| d.id).collect();
    assert_eq!(listed, guests);
    assert!(list[1..].iter().all(|d| d.flags.contains(DomainFlags::HVM)));
    assert_eq!((list[7].memory_bytes(), list[7].vcpus()), (64 << 20, 1));
    let infos = privcmd.domain_infos(&guests).unwrap();
    assert!(infos.iter().zip(&list[1..]).all(|(a, b)| {
        let a = a.as_ref().unwrap();
        (a.id, a.handle) == (b.id, b.handle)
    }));
    host.assert_clean();
}

#[test]
fn more_domains_than_one_call_lists_are_all_there() {
    let (host, privcmd) = host();
    for _ in 0..600 {
        host.add_domain().unwrap();
    }
    host.destroy_domain(DomId::new(256)).unwrap();
    host.add_domain_as(DomId::new(0x7FEF)).unwrap();
    let ids = privcmd.domains().unwrap();
    let ids: Vec<u16> = ids.iter().map(|d| d.id.as_u16()).collect();
    assert_eq!(ids.len(), 601);
    assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
    assert_eq!(ids.last(), Some(&0x7FEF));
}

#[test]
fn one_program_serves_every_known_version_and_returns_which() {
    for domctl in 0x15..=0x18 {
        for sysctl in 0x15..=0x16 {
            let host = Simulation::start().unwrap();
            host.set_interfaces(domctl, sysctl);
            let guest = host.add_domain().unwrap();
            let privcmd = Privcmd::open(&host.xen(DomId::DOM0).unwrap()).unwrap();
            let seen = privcmd.interfaces().unwrap();
            assert_eq!((seen.domctl, seen.sysctl), (domctl, sysctl));
            assert_eq!(privcmd.domain_info(guest).unwrap().id, guest);
            assert_eq!(privcmd.domains().unwrap().len(), 2);
        }
    }
}

#[test]
fn another_version_is_distinguished_from_a_refusal() {
    let (host, privcmd) = host();
    host.set_interfaces(0x14, 0x99);
    let error = privcmd.domain_info(DomId::DOM0).unwrap_err();
    assert!(
        matches!(error, Error::InterfaceVersion { op: "domctl", .. }),
        "{error:?}"
    );
    let error = privcmd.phys_info().unwrap_err();
    assert!(
        matches!(error, Error::InterfaceVersion { op: "sysctl", .. }),
        "{error:?}"
    );

    // The versions are found, and then Xen refuses.
    host.set_interfaces(0x17, 0x15);
    privcmd.interfaces().unwrap();
    for errno in [1, 13] {
        host.inject(Fault::Fail {
            domain: DomId::DOM0,
            op: Op::Hypercall,
            nth: 1,
            errno,
        });
        let error = privcmd.pause(DomId::new(1)).unwrap_err();
        assert!(matches!(error, Error::NotPermitted { .. }), "{error:?}");
        assert_eq!(error.errno(), Some(errno));
        assert!(error.to_string().starts_with("XEN_DOMCTL_pausedomain: "));
    }
}

#[test]
fn a_kernel_that_refuses_every_hypercall_is_distinguished_from_xen() {
    let (host, _) = host();
    let guest = host.add_domain().unwrap();
    let privcmd = Privcmd::open(&host.xen(guest).unwrap()).unwrap();
    let refused = |error: Error, op: &str| {
        assert!(
            matches!(error, Error::HypercallsRefused { op: named } if named == op),
            "{error:?}"
        );
        assert_eq!(error.errno(), Some(1));
    };
    refused(privcmd.xen_version().unwrap_err(), "XENVER_version");
    refused(privcmd.domains().unwrap_err(), "sysctl");
    refused(privcmd.domain_info(guest).unwrap_err(), "domctl");
    refused(privcmd.interfaces().unwrap_err(), "domctl");
    let param = privcmd.hvm_param(guest, HvmParam::STORE_PFN);
    refused(param.unwrap_err(), "HVMOP_get_param");
}

#[test]
fn a_domain_is_paused_shut_down_and_destroyed() {
    let (host, privcmd) = host();
    let guest = host.add_domain().unwrap();
    let flags = || privcmd.domain_info(guest).unwrap().flags;
    privcmd.pause(guest).unwrap();
    privcmd.pause(guest).unwrap();
    assert!(flags().contains(DomainFlags::PAUSED));
    privcmd.unpause(guest).unwrap();
    assert!(flags().contains(DomainFlags::PAUSED));
    privcmd.unpause(guest).unwrap();
    assert!(!flags().contains(DomainFlags::PAUSED));
    assert_eq!(privcmd.unpause(guest).unwrap_err().errno(), Some(22));
    assert_eq!(privcmd.pause(DomId::DOM0).unwrap_err().errno(), Some(22));

    privcmd.set_max_memory(guest, (32 << 20) + 4095).unwrap();
    let info = privcmd.domain_info(guest).unwrap();
    assert_eq!((info.max_pages, info.max_memory_bytes()), (8192, 32 << 20));
    assert_eq!(info.outstanding_bytes(), 0);
    assert_eq!(privcmd.maximum_pages(guest).unwrap(), 8192);
    assert_eq!(privcmd.current_pages(guest).unwrap(), 16384);
    assert_eq!(privcmd.maximum_gpfn(guest).unwrap(), 16383);

    let vcpu = privcmd.vcpu_info(guest, 0).unwrap().unwrap();
    assert!(vcpu.online && vcpu.blocked && !vcpu.running);
    assert_eq!(privcmd.vcpu_info(guest, 1).unwrap(), None);

    privcmd.shutdown(guest, ShutdownReason::CRASH).unwrap();
    let info = privcmd.domain_info(guest).unwrap();
    assert_eq!(info.shutdown, Some(ShutdownReason::CRASH));
    assert!(info.flags.contains(DomainFlags::SHUTDOWN));
    let state = privcmd.domain_state(guest).unwrap();
    assert_eq!(state.state, StateFlags::EXIST | StateFlags::SHUTDOWN);

    privcmd.destroy(guest).unwrap();
    assert_eq!(host.domains(), [DomId::DOM0]);
    for error in [
        privcmd.domain_info(guest).unwrap_err(),
        privcmd.pause(guest).unwrap_err(),
        privcmd.destroy(guest).unwrap_err(),
        privcmd.vcpu_info(guest, 0).unwrap_err(),
        privcmd.shutdown(guest, ShutdownReason::CRASH).unwrap_err(),
        privcmd.maximum_gpfn(guest).unwrap_err(),
        privcmd.grant_table_size(guest).unwrap_err(),
        privcmd.port_status(guest, Port::new(1)).unwrap_err(),
        privcmd.domain_state(guest).unwrap_err(),
    ] {
        assert!(
            matches!(error, Error::NoDomain { domain, .. } if domain == guest),
            "{error:?}"
        );
    }
    host.assert_clean();
}

#[test]
fn the_domain_after_a_missing_one_is_not_taken_for_it() {
    for domctl in [0x15, 0x17] {
        let (host, privcmd) = host();
        host.set_interfaces(domctl, 0x15);
        host.add_domain_as(DomId::new(9)).unwrap();
        let wanted = [4, 9, 10, 0x7FF4].map(DomId::new);
        let infos = privcmd.domain_infos(&wanted).unwrap();
        for (wanted, info) in wanted.iter().zip(infos) {
            match info {
                Ok(info) => assert_eq!((info.id, wanted.as_u16()), (*wanted, 9)),
                Err(error) => {
                    assert!(matches!(error, Error::NoDomain { .. }), "{error:?}");
                    assert_ne!(wanted.as_u16(), 9);
                }
            }
        }
    }
}

#[test]
fn the_machine_and_its_console_are_read() {
    let (host, privcmd) = host();
    let before = privcmd.phys_info().unwrap();
    assert!(before.capabilities.contains(PhysCaps::HVM | PhysCaps::PV));
    let topology = privcmd.cpu_topology().unwrap();
    assert_eq!(topology.len() as u32, before.cpus);
    assert_eq!(topology[2].core, Some(2));
    let nodes = privcmd.numa_memory().unwrap();
    assert_eq!(nodes[0].unwrap().bytes, before.total_bytes());
    host.add_domain().unwrap();
    let after = privcmd.phys_info().unwrap();
    assert_eq!(before.free_bytes() - after.free_bytes(), 64 << 20);

    let all = privcmd.console_ring().unwrap();
    assert!(all.ends_with(b"(XEN) d1 is created\n"), "{all:?}");
    let first = privcmd.console_ring_from(0).unwrap();
    assert_eq!(first.bytes, all);
    assert!(
        privcmd
            .console_ring_from(first.next)
            .unwrap()
            .bytes
            .is_empty()
    );
    host.add_domain().unwrap();
    let more = privcmd.console_ring_from(first.next).unwrap();
    assert_eq!(more.bytes, b"(XEN) d2 is created\n");
    privcmd.clear_console_ring().unwrap();
    assert!(privcmd.console_ring().unwrap().is_empty());
    for _ in 0..2000 {
        let guest = host.add_domain().unwrap();
        host.destroy_domain(guest).unwrap();
    }
    // The ring has lost its start, so what was asked for is not there; and it is bounded.
    let rest = privcmd.console_ring_from(first.next).unwrap();
    assert_eq!(rest.bytes.len(), 16 << 10);
}

#[test]
fn a_program_learns_its_own_domain_from_xen() {
    let (host, privcmd) = host();
    assert_eq!(privcmd.own_domain().unwrap(), DomId::DOM0);
    let guest = host.add_domain().unwrap();
    let error = Privcmd::open(&host.xen(guest).unwrap())
        .unwrap()
        .own_domain()
        .unwrap_err();
    assert!(matches!(error, Error::HypercallsRefused { .. }), "{error}");
    assert_eq!(host.leaks(), Vec::<String>::new());
}

#[test]
fn a_guests_parameters_ports_and_grants_are_read() {
    let (host, privcmd) = host();
    let guest = host.add_domain().unwrap();
    let param = HvmParam::STORE_EVTCHN;
    assert_eq!(privcmd.hvm_param(guest, param).unwrap(), 0);
    privcmd.set_hvm_param(guest, param, 1 << 40 | 3).unwrap();
    assert_eq!(privcmd.hvm_param(guest, param).unwrap(), 1 << 40 | 3);
    for (domain, param) in [(guest, HvmParam::new(39)), (DomId::DOM0, param)] {
        let error = privcmd.hvm_param(domain, param).unwrap_err();
        assert_eq!(error.errno(), Some(22), "{error}");
    }

    let (ours, theirs) = (host.xen(DomId::DOM0).unwrap(), host.xen(guest).unwrap());
    let open = ours.simulated().unwrap().bind_unbound(guest).unwrap();
    let status = |domain, port| privcmd.port_status(domain, port).unwrap().state;
    assert_eq!(
        status(DomId::SELF, open.port),
        PortState::Unbound { remote: guest }
    );
    let client = theirs.simulated().unwrap();
    let bound = client.bind_interdomain(DomId::DOM0, open.port).unwrap();
    let (remote, port) = (DomId::DOM0, open.port);
    assert_eq!(
        status(guest, bound.port),
        PortState::Interdomain { remote, port }
    );
    let virq = ours.simulated().unwrap().bind_virq(Virq::CON_RING).unwrap();
    assert_eq!(
        status(DomId::DOM0, virq.port),
        PortState::Virq(Virq::CON_RING)
    );
    assert_eq!(status(guest, Port::new(900)), PortState::Closed);
    assert!(privcmd.port_status(guest, Port::new(5000)).is_err());

    let shared = client.share(DomId::DOM0, true, 600).unwrap();
    let size = privcmd.grant_table_size(guest).unwrap();
    assert_eq!((size.frames, size.max_frames), (2, 64));
    drop(shared);
}

#[test]
fn the_hypervisor_describes_itself() {
    let (_host, privcmd) = host();
    let version = privcmd.xen_version().unwrap();
    assert_eq!(version.to_string(), "4.20.0-simulated");
    assert!(privcmd.capabilities().unwrap().contains("hvm-3.0"));
    assert_eq!(privcmd.changeset().unwrap(), "simulated");
    assert!(privcmd.command_line().unwrap().contains("simulated"));
    assert_eq!(privcmd.compile_info().unwrap().compiler, "rustc");
    assert_eq!(privcmd.build_id().unwrap(), Some(vec![0x5d; 20]));
    assert_eq!(privcmd.xen_page_size().unwrap(), 4096);
    assert_eq!(privcmd.virt_start().unwrap(), 0);
    let own = privcmd.own_handle().unwrap().to_string();
    assert_eq!(own, "00000000-0000-0000-0000-000000000000");
    let features = privcmd.features().unwrap();
    assert!(features.contains(xen_sys::privcmd::Features::DOM0));
}

#[test]
fn a_simulated_hypervisor_takes_no_hypercall_of_the_callers_choice() {
    let (_host, privcmd) = host();
    assert!(matches!(privcmd.buffer(1), Err(Error::Unsupported { .. })));
    // SAFETY: the call takes no address, and is not made.
    #[allow(unsafe_code)]
    let refused = unsafe { privcmd.hypercall(17, [0; 5]) };
    assert!(matches!(refused, Err(Error::Unsupported { .. })));
    let mut calls = [MulticallEntry::default()];
    // SAFETY: as above.
    #[allow(unsafe_code)]
    let refused = unsafe { privcmd.multicall(&mut calls) };
    assert!(matches!(refused, Err(Error::Unsupported { .. })));
    let request = std::os::fd::AsRawFd::as_raw_fd(&privcmd.as_fd());
    assert!(request >= 0);
}

#[test]
fn threads_make_calls_through_one_handle() {
    let (host, privcmd) = host();
    let guest = host.add_domain().unwrap();
    std::thread::scope(|scope| {
        for i in 0..4 {
            let privcmd = &privcmd;
            scope.spawn(move || {
                for value in 0..200 {
                    let param = HvmParam::new(i);
                    privcmd.set_hvm_param(guest, param, value).unwrap();
                    assert_eq!(privcmd.hvm_param(guest, param).unwrap(), value);
                    assert_eq!(privcmd.domains().unwrap().len(), 2);
                }
            });
        }
    });
}

#[test]
fn views_that_the_machine_does_not_have_are_unsupported() {
    let (host, privcmd) = host();
    let views = privcmd.altp2m(host.add_domain().unwrap());
    let unsupported = |error: Error, named: &str| {
        assert!(
            matches!(error, Error::Unsupported { op } if op == named),
            "{error:?}"
        );
    };
    unsupported(
        views.enabled().unwrap_err(),
        "HVMOP_altp2m_get_domain_state",
    );
    let view = views.create_view(MemoryAccess::Rwx);
    unsupported(view.unwrap_err(), "HVMOP_altp2m_create_p2m");
    let switched = views.switch_view(ViewId::new(1));
    unsupported(switched.unwrap_err(), "HVMOP_altp2m_switch_p2m");
    let access = views.set_access(ViewId::HOST, 1, MemoryAccess::Rx);
    unsupported(access.unwrap_err(), "HVMOP_altp2m_set_mem_access");
}

#[test]
fn the_context_of_a_guest_is_read_whole_and_by_record_and_set() {
    let (host, privcmd) = host();
    let guest = host.add_domain().unwrap();
    let context = privcmd.hvm_context(guest).unwrap();
    let records: Vec<_> = Records::new(&context)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let cpu = records[1].cpu().unwrap().unwrap();
    assert_eq!((records.len(), cpu.rip), (2, 0xfff0));
    let alone = privcmd.hvm_record(guest, Record::CPU, 0).unwrap().unwrap();
    assert_eq!(alone, records[1].body);
    assert_eq!(privcmd.hvm_record(guest, Record::CPU, 1).unwrap(), None);
    let none = privcmd.hvm_record(guest, 99, 0).unwrap_err();
    assert_eq!(none.errno(), Some(22));

    let mut changed = context.clone();
    // RIP: behind two descriptors, the header, the FPU and 16 registers.
    changed[8 + 24 + 8 + 512 + 128] = 0x42;
    privcmd.set_hvm_context(guest, &changed).unwrap();
    assert_eq!(privcmd.hvm_context(guest).unwrap(), changed);
    for refused in [&changed[..20], &[]] {
        assert!(privcmd.set_hvm_context(guest, refused).is_err());
    }
    assert_eq!(privcmd.hvm_context(guest).unwrap(), changed);
    for error in [
        privcmd.hvm_context(DomId::DOM0).unwrap_err(),
        privcmd.set_hvm_context(DomId::DOM0, &changed).unwrap_err(),
    ] {
        assert_eq!(error.errno(), Some(22), "{error:?}");
    }
    for error in [
        privcmd.hvm_context(DomId::new(99)).unwrap_err(),
        privcmd.hvm_record(DomId::new(99), 2, 0).unwrap_err(),
        privcmd.set_max_vcpus(DomId::new(99), 1).unwrap_err(),
    ] {
        assert!(matches!(error, Error::NoDomain { .. }), "{error:?}");
    }
    privcmd.set_max_vcpus(guest, 1).unwrap();
    let more = privcmd.set_max_vcpus(guest, 2).unwrap_err();
    assert_eq!(more.errno(), Some(22));
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_registers_of_a_virtual_cpu_are_read() {
    let (host, privcmd) = host();
    let guest = host.add_domain().unwrap();
    let context = privcmd.vcpu_context(guest, 0).unwrap().unwrap();
    assert_eq!((context.user_regs.rip, context.flags), (0xfff0, 1 << 5));
    assert!(privcmd.vcpu_context(guest, 1).unwrap().is_none());
    let error = privcmd.vcpu_context(DomId::new(99), 0).unwrap_err();
    assert!(matches!(error, Error::NoDomain { .. }), "{error:?}");
}

#[test]
fn the_registers_of_a_virtual_cpu_are_set_and_read_again() {
    let (host, privcmd) = host();
    let (guest, other) = (host.add_domain().unwrap(), host.add_domain().unwrap());
    let mut context = privcmd.vcpu_context(guest, 0).unwrap().unwrap();
    context.user_regs.r15 = 0x1234_5678_9abc_def0;
    context.gs_base_user = 0xffff;
    privcmd.set_vcpu_context(guest, 0, &context).unwrap();
    let again = privcmd.vcpu_context(guest, 0).unwrap().unwrap();
    let regs = (again.user_regs.r15, again.user_regs.rip, again.gs_base_user);
    assert_eq!(regs, (0x1234_5678_9abc_def0, 0xfff0, 0xffff));
    let untouched = privcmd.vcpu_context(other, 0).unwrap().unwrap();
    assert_eq!(untouched.user_regs.r15, 0);

    let none = privcmd.set_vcpu_context(guest, 1, &context).unwrap_err();
    assert_eq!(none.errno(), Some(22));
    let missing = privcmd
        .set_vcpu_context(DomId::new(99), 0, &context)
        .unwrap_err();
    assert!(matches!(missing, Error::NoDomain { .. }), "{missing:?}");
    assert!(missing.to_string().contains("XEN_DOMCTL_"), "{missing}");
    // Xen refuses the caller's own domain.
    let own = privcmd.set_vcpu_context(DomId::DOM0, 0, &context);
    assert_eq!(own.unwrap_err().errno(), Some(22));
}

#[test]
fn a_part_of_the_machine_that_is_refused_is_named() {
    let (host, privcmd) = host();
    let guest = host.add_domain().unwrap();
    privcmd
        .set_ioport_permission(guest, 0x3f8, 8, true)
        .unwrap();
    privcmd
        .set_iomem_permission(guest, 0xf0000, 16, true)
        .unwrap();
    let device = xen_sys::PciFunction::new(0, 3, 0, 1).unwrap();
    let refused = |error: Error, errno: i32, part: &str| {
        assert!(
            matches!(error, Error::ResourceRefused { domain, .. } if domain == guest),
            "{error:?}"
        );
        assert_eq!(error.errno(), Some(errno));
        assert!(error.to_string().contains(part), "{error}");
    };
    let ports = privcmd.set_ioport_permission(guest, 0xffff, 2, true);
    refused(
        ports.unwrap_err(),
        22,
        "_ioport_permission: I/O ports 0xffff to 0x10000 ",
    );
    let frames = privcmd.set_iomem_permission(guest, 1 << 40, 1, true);
    refused(
        frames.unwrap_err(),
        1,
        "_iomem_permission: machine frames 0x10000000000 to ",
    );
    let none = privcmd.set_iomem_permission(guest, 0, 0, true);
    assert!(matches!(none, Err(Error::Invalid { .. })), "{none:?}");
    let irq = privcmd.set_irq_permission(guest, 9, false);
    refused(
        irq.unwrap_err(),
        1,
        "XEN_DOMCTL_irq_permission: interrupt 9 ",
    );
    let assigned = privcmd.assign_device(guest, device);
    refused(
        assigned.unwrap_err(),
        95,
        "_assign_device: device 0000:03:00.1 ",
    );
    refused(
        privcmd.is_assignable(guest, device).unwrap_err(),
        95,
        "_test_assign_device: ",
    );
    refused(
        privcmd.deassign_device(guest, device).unwrap_err(),
        95,
        "_deassign_device: ",
    );
    let none = privcmd.set_irq_permission(DomId::new(99), 9, true);
    assert!(matches!(none, Err(Error::NoDomain { .. })), "{none:?}");
}

#[test]
fn a_target_is_set_once_and_the_domain_that_is_missing_is_named() {
    let (host, privcmd) = host();
    let (model, guest) = (host.add_domain().unwrap(), host.add_domain().unwrap());
    let missing = DomId::new(99);
    for (model, guest) in [(model, missing), (missing, guest)] {
        let error = privcmd.set_target(model, guest).unwrap_err();
        assert!(
            matches!(error, Error::NoDomain { domain, .. } if domain == missing),
            "{error:?}"
        );
    }
    privcmd.set_target(model, guest).unwrap();
    let errno = |(model, guest)| privcmd.set_target(model, guest).unwrap_err().errno();
    assert_eq!(errno((model, guest)), Some(22));
    assert_eq!(errno((guest, guest)), Some(22));
    assert_eq!(errno((guest, DomId::DOM0)), Some(95));
}

#[test]
fn calls_that_a_simulated_host_does_not_answer_are_unsupported_by_their_names() {
    let (host, privcmd) = host();
    let guest = host.add_domain().unwrap();
    assert_eq!(privcmd.grant_table_version(guest).unwrap(), 1);
    let missing = privcmd.grant_table_version(DomId::new(99));
    assert!(
        matches!(missing, Err(Error::NoDomain { .. })),
        "{missing:?}"
    );
    let own = privcmd.allocate_port(DomId::SELF, guest);
    assert!(matches!(own, Err(Error::Invalid { .. })), "{own:?}");
    for (error, named) in [
        (
            privcmd.allocate_port(guest, DomId::DOM0).unwrap_err(),
            "EVTCHNOP_alloc_unbound",
        ),
        (
            privcmd
                .map_pirq(guest, PirqSource::Gsi(9), None)
                .unwrap_err(),
            "PHYSDEVOP_map_pirq",
        ),
        (
            privcmd.unmap_pirq(guest, 9).unwrap_err(),
            "PHYSDEVOP_unmap_pirq",
        ),
        (
            privcmd.claim_pages(guest, 16).unwrap_err(),
            "XENMEM_claim_pages",
        ),
    ] {
        assert!(
            matches!(error, Error::Unsupported { op } if op == named),
            "{error:?}"
        );
    }
}

#[test]
fn idle_times_and_distances_are_read_and_debug_keys_are_pressed() {
    let (_host, privcmd) = host();
    let idle = privcmd.cpu_idle_times().unwrap();
    assert_eq!(idle.len(), privcmd.cpu_topology().unwrap().len());
    assert_eq!(idle[1].as_secs(), 2);
    assert_eq!(privcmd.numa_distances().unwrap(), [[Some(10)]]);
    assert_eq!(privcmd.numa_memory().unwrap().len(), 1);
    privcmd.debug_keys(b"hq").unwrap();
    let ring = privcmd.console_ring().unwrap();
    let text = String::from_utf8(ring).unwrap();
    assert!(text.contains("'h' pressed") && text.contains("'q' pressed"));
    let many = privcmd.debug_keys(&[b'h'; 257]);
    assert!(
        matches!(many, Err(Error::Invalid { value: 257, .. })),
        "{many:?}"
    );
    assert_eq!(privcmd.frequency_states(0).unwrap(), None);
    assert_eq!(privcmd.idle_states(0).unwrap(), None);
    assert_eq!(privcmd.average_khz(0).unwrap(), None);
}

//! The reasons why a typed call fails are errors of their own that name the call.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

use xen_sys::privcmd::{HvmParam, PirqSource, Privcmd, ShutdownReason, ViewId};
use xen_sys::sim::{Fault, Op, Simulation};
use xen_sys::{DomId, Error, Port};

type Call = fn(&Privcmd, DomId) -> Result<(), Error>;

/// Calls on a domain, by the operation that they make first.
const ON_A_DOMAIN: &[(&str, Call)] = &[
    ("XEN_DOMCTL_getdomaininfo", |p, d| {
        p.domain_info(d).map(drop)
    }),
    ("XEN_DOMCTL_pausedomain", Privcmd::pause),
    ("XEN_DOMCTL_unpausedomain", Privcmd::unpause),
    ("XEN_DOMCTL_destroydomain", Privcmd::destroy),
    ("SCHEDOP_remote_shutdown", |p, d| {
        p.shutdown(d, ShutdownReason::CRASH)
    }),
    ("XEN_DOMCTL_max_mem", |p, d| p.set_max_memory(d, 1 << 20)),
    ("XEN_DOMCTL_max_vcpus", |p, d| p.set_max_vcpus(d, 1)),
    ("XEN_DOMCTL_getvcpuinfo", |p, d| p.vcpu_info(d, 0).map(drop)),
    ("XEN_DOMCTL_gethvmcontext", |p, d| {
        p.hvm_context(d).map(drop)
    }),
    ("XEN_DOMCTL_sethvmcontext", |p, d| {
        p.set_hvm_context(d, &[0; 16])
    }),
    ("XEN_DOMCTL_gethvmcontext_partial", |p, d| {
        p.hvm_record(d, 2, 0).map(drop)
    }),
    #[cfg(target_arch = "x86_64")]
    ("XEN_DOMCTL_get_address_size", |p, d| {
        p.vcpu_context(d, 0).map(drop)
    }),
    ("XEN_DOMCTL_debug_op", |p, d| p.set_single_step(d, 0, true)),
    ("XEN_DOMCTL_set_access_required", |p, d| {
        p.set_access_required(d, true)
    }),
    ("XEN_DOMCTL_monitor_op", |p, d| {
        p.monitor_capabilities(d).map(drop)
    }),
    ("XENMEM_maximum_gpfn", |p, d| p.maximum_gpfn(d).map(drop)),
    ("XENMEM_current_reservation", |p, d| {
        p.current_pages(d).map(drop)
    }),
    ("XENMEM_maximum_reservation", |p, d| {
        p.maximum_pages(d).map(drop)
    }),
    ("XENMEM_claim_pages", |p, d| p.claim_pages(d, 1)),
    ("XENMEM_access_op", |p, d| p.mem_access(d, 1).map(drop)),
    ("HVMOP_get_param", |p, d| {
        p.hvm_param(d, HvmParam::STORE_PFN).map(drop)
    }),
    ("HVMOP_set_param", |p, d| {
        p.set_hvm_param(d, HvmParam::STORE_PFN, 1)
    }),
    ("HVMOP_altp2m_get_domain_state", |p, d| {
        p.altp2m(d).enabled().map(drop)
    }),
    ("HVMOP_altp2m_switch_p2m", |p, d| {
        p.altp2m(d).switch_view(ViewId::HOST)
    }),
    ("EVTCHNOP_status", |p, d| {
        p.port_status(d, Port::new(1)).map(drop)
    }),
    ("EVTCHNOP_alloc_unbound", |p, d| {
        p.allocate_port(d, DomId::DOM0).map(drop)
    }),
    ("GNTTABOP_query_size", |p, d| {
        p.grant_table_size(d).map(drop)
    }),
    ("GNTTABOP_get_version", |p, d| {
        p.grant_table_version(d).map(drop)
    }),
    ("PHYSDEVOP_map_pirq", |p, d| {
        p.map_pirq(d, PirqSource::Gsi(9), None).map(drop)
    }),
    ("PHYSDEVOP_unmap_pirq", |p, d| p.unmap_pirq(d, 9)),
];

/// Calls on the machine.
const ON_THE_MACHINE: &[(&str, Call)] = &[
    ("XEN_SYSCTL_getdomaininfolist", |p, _| p.domains().map(drop)),
    ("XEN_SYSCTL_physinfo", |p, _| p.phys_info().map(drop)),
    ("XEN_SYSCTL_cputopoinfo", |p, _| p.cpu_topology().map(drop)),
    ("XEN_SYSCTL_numainfo", |p, _| p.numa_memory().map(drop)),
    ("XEN_SYSCTL_readconsole", |p, _| p.console_ring().map(drop)),
    ("XEN_SYSCTL_getcpuinfo", |p, _| p.cpu_idle_times().map(drop)),
    ("XEN_SYSCTL_debug_keys", |p, _| p.debug_keys(b"h")),
    ("XENVER_version", |p, _| p.xen_version().map(drop)),
    ("XENVER_pagesize", |p, _| p.xen_page_size().map(drop)),
];

fn host() -> (Simulation, Privcmd, DomId) {
    let host = Simulation::start().unwrap();
    let guest = host.add_domain().unwrap();
    let privcmd = Privcmd::open(&host.xen(DomId::DOM0).unwrap()).unwrap();
    // From here on no call asks for the versions first.
    privcmd.interfaces().unwrap();
    (host, privcmd, guest)
}

/// Makes each call with its first hypercall refused with `errno`, and fails unless `is_kind`
/// accepts the error and it names the call.
fn refused(calls: &[(&str, Call)], errno: i32, is_kind: impl Fn(&Error, DomId) -> bool) {
    let (host, privcmd, guest) = host();
    let mut wrong = Vec::new();
    for (name, call) in calls {
        host.inject(Fault::Fail {
            domain: DomId::DOM0,
            op: Op::Hypercall,
            nth: 1,
            errno,
        });
        let error = call(&privcmd, guest).err();
        host.clear_faults();
        let fits = error.as_ref().is_some_and(|error| {
            let text = error.to_string();
            let named = text.split([' ', ':']).next() == Some(name);
            let errno = error.errno().is_none_or(|found| found == errno);
            is_kind(error, guest) && named && errno
        });
        if !fits {
            wrong.push((name, error));
        }
    }
    assert!(wrong.is_empty(), "{errno}: {wrong:#?}");
    host.assert_clean();
}

/// [`refused`] of all calls, with each errno.
fn all_refused(errnos: &[i32], is_kind: fn(&Error) -> bool) {
    for &errno in errnos {
        for calls in [ON_A_DOMAIN, ON_THE_MACHINE] {
            refused(calls, errno, |error, _| is_kind(error));
        }
    }
}

#[test]
fn a_missing_domain_is_named_with_the_call() {
    refused(
        ON_A_DOMAIN,
        libc::ESRCH,
        |error, guest| matches!(error, Error::NoDomain { domain, .. } if *domain == guest),
    );
}

#[test]
fn a_missing_permission_is_named_with_the_call() {
    all_refused(&[libc::EPERM, libc::EACCES], |error| {
        matches!(error, Error::NotPermitted { .. })
    });
}

#[test]
fn an_exhausted_limit_is_named_with_the_call() {
    all_refused(&[libc::ENOSPC, libc::E2BIG], |error| {
        matches!(error, Error::LimitReached { .. })
    });
}

#[test]
fn a_hypervisor_without_the_operation_is_named_with_the_call() {
    all_refused(&[libc::ENOSYS], |error| {
        matches!(error, Error::Unsupported { .. })
    });
}

#[test]
fn a_destroyed_domain_is_named_by_each_call_that_the_simulated_host_has() {
    let (host, privcmd, guest) = host();
    host.destroy_domain(guest).unwrap();
    let mut named = Vec::new();
    for (name, call) in ON_A_DOMAIN {
        match call(&privcmd, guest).unwrap_err() {
            Error::NoDomain { op, domain } => {
                assert_eq!((op, domain), (*name, guest));
                named.push(name);
            }
            Error::Unsupported { .. } => {}
            other => panic!("{name}: {other:?}"),
        }
    }
    assert!(named.len() >= 18, "{named:?}");
    host.assert_clean();
}

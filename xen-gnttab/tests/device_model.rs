//! A device model of a guest of a simulated host: the toy, and one that asks what the toy does not.
#![cfg(feature = "sim")]
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

#[path = "../examples/toy-device-model.rs"]
#[allow(dead_code)]
mod toy;

use std::thread;
use std::time::{Duration, Instant};

use xen_evtchn::EventChannels;
use xen_gnttab::ioreq::{Access, Data, IoreqError, Ioreqs, Space};
use xen_gnttab::{PageAccess, foreign};
use xen_sys::abi::ioreq::{
    DATA_IS_PTR, DIR_READ, IOREQ_TYPE_COPY, IOREQ_TYPE_INVALIDATE, IOREQ_TYPE_PCI_CONFIG,
    IOREQ_TYPE_PIO, Ioreq,
};
use xen_sys::device_model::{BufferedRequests, DeviceModel, IoRange};
use xen_sys::sim::Simulation;
use xen_sys::{DomId, Error, PciFunction, Xen};

use toy::Toy;

const PORT: u64 = 0x5a0;

fn host() -> (Simulation, Xen, DomId) {
    let host = Simulation::start().unwrap();
    let guest = host.add_domain().unwrap();
    let xen = host.xen(DomId::DOM0).unwrap();
    (host, xen, guest)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn outl(data: u64) -> Ioreq {
    Ioreq {
        addr: PORT,
        data,
        count: 1,
        size: 4,
        kind: IOREQ_TYPE_PIO,
        ..Ioreq::default()
    }
}

fn inl() -> Ioreq {
    Ioreq {
        bits: DIR_READ,
        ..outl(0)
    }
}

#[test]
fn the_toy_adds_up_what_the_guest_writes() {
    let (host, xen, guest) = host();
    let mut toy = Toy::attach(&xen, guest, PORT as u16).unwrap();
    thread::scope(|scope| {
        let guest_code = scope.spawn(|| {
            for value in [5, 7, 30] {
                host.access(guest, outl(value), soon()).unwrap().unwrap();
            }
            // `rep outsl`: three values in the guest's memory.
            let values = [1_u32, 2, 3].map(u32::to_le_bytes).concat();
            host.write_memory(guest, 0x3000, &values).unwrap();
            let string = Ioreq {
                count: 3,
                bits: DATA_IS_PTR,
                ..outl(0x3000)
            };
            host.access(guest, string, soon()).unwrap().unwrap();
            host.access(guest, inl(), soon()).unwrap().unwrap().data
        });
        while !guest_code.is_finished() {
            toy.serve(Instant::now() + Duration::from_millis(100))
                .unwrap();
        }
        assert_eq!(guest_code.join().unwrap(), 48);
    });
    // Nothing is the device model of another port.
    let other = Ioreq {
        addr: 0x70,
        ..inl()
    };
    assert_eq!(host.access(guest, other, soon()).unwrap(), None);
    drop(toy);
    assert_eq!(host.access(guest, inl(), soon()).unwrap(), None);
    host.assert_clean();
}

#[test]
fn requests_arrive_as_the_guest_made_them() {
    let (host, xen, guest) = host();
    let model = DeviceModel::open(&xen, guest).unwrap();
    let server = model.create_ioreq_server(BufferedRequests::Off).unwrap();
    server
        .map_io_range(IoRange::memory(0xfebf_0000..=0xfebf_ffff))
        .unwrap();
    let card = PciFunction::new(0, 0, 4, 0).unwrap();
    server.map_io_range(IoRange::pci(card)).unwrap();
    let mut requests = Ioreqs::map(&server).unwrap();
    assert_eq!(
        requests.remote_port(0).map(|p| p.as_u32()),
        Some(0),
        "not enabled yet"
    );
    server.enable().unwrap();
    let channels = EventChannels::open(&xen).unwrap();
    let theirs = requests.remote_port(0).unwrap();
    let port = channels.bind_interdomain(guest, theirs).unwrap();
    requests.set_port(0, port.port()).unwrap();
    let sent = [
        Ioreq {
            addr: 0xfebf_0010,
            data: 0x1234,
            size: 2,
            count: 1,
            kind: IOREQ_TYPE_COPY,
            ..Ioreq::default()
        },
        Ioreq {
            addr: u64::from(card.sbdf()) << 32 | 0x10,
            size: 4,
            count: 1,
            bits: DIR_READ,
            kind: IOREQ_TYPE_PCI_CONFIG,
            ..Ioreq::default()
        },
        Ioreq {
            kind: IOREQ_TYPE_INVALIDATE,
            size: 4,
            count: 1,
            ..Ioreq::default()
        },
    ];
    let seen = thread::scope(|scope| {
        scope.spawn(|| {
            for request in sent {
                let answer = host.access(guest, request, soon()).unwrap().unwrap();
                let is_read = request.bits & DIR_READ != 0;
                assert_eq!(answer.data, if is_read { 0x99 } else { request.data });
            }
        });
        let mut seen = Vec::new();
        while seen.len() < 3 {
            let event = channels.wait(Some(soon())).unwrap().unwrap();
            channels.unmask(event).unwrap();
            requests.handle_event(event);
            while let Some(request) = requests.poll_request().unwrap() {
                requests.complete(0, 0x99).unwrap();
                seen.push(request);
            }
            while requests.poll_notify().is_some() {
                port.notify().unwrap();
            }
        }
        seen
    });
    let [memory, config, invalidate] = seen[..] else {
        panic!("{seen:?}");
    };
    assert_eq!(
        (memory.space, memory.access),
        (Space::Memory, Access::Write)
    );
    assert_eq!(
        (memory.address, memory.size, memory.data),
        (0xfebf_0010, 2, Data::Value(0x1234))
    );
    assert_eq!(config.pci(), Some((card, 0x10)));
    assert_eq!(invalidate.space, Space::Invalidate);
    drop((requests, port, channels, server));
    host.assert_clean();
}

#[test]
fn an_access_ends_with_the_device_model_or_at_its_deadline() {
    let (host, xen, guest) = host();
    let model = DeviceModel::open(&xen, guest).unwrap();
    let server = model.create_ioreq_server(BufferedRequests::Atomic).unwrap();
    server
        .map_io_range(IoRange::ports(PORT as u16..=PORT as u16 + 3))
        .unwrap();
    // Not enabled: it has nothing yet.
    assert_eq!(host.access(guest, inl(), soon()).unwrap(), None);
    server.enable().unwrap();
    let error = host.access(guest, inl(), Instant::now()).unwrap_err();
    assert_eq!(error.errno(), Some(libc::ETIMEDOUT));
    // The virtual CPU still waits.
    let error = host.access(guest, inl(), soon()).unwrap_err();
    assert_eq!(error.errno(), Some(libc::EBUSY));
    // For another address, too: there is one virtual CPU.
    let other = Ioreq {
        addr: 0x70,
        ..inl()
    };
    let error = host.access(guest, other, soon()).unwrap_err();
    assert_eq!(error.errno(), Some(libc::EBUSY));
    // The answer is late, and is not that of the next access.
    let mut requests = Ioreqs::map(&server).unwrap();
    let channels = EventChannels::open(&xen).unwrap();
    let theirs = requests.remote_port(0).unwrap();
    let port = channels.bind_interdomain(guest, theirs).unwrap();
    requests.set_port(0, port.port()).unwrap();
    requests.handle_event(port.port());
    requests.poll_request().unwrap().unwrap();
    requests.complete(0, 0x99).unwrap();
    let error = host.access(guest, inl(), Instant::now()).unwrap_err();
    assert_eq!(error.errno(), Some(libc::ETIMEDOUT));
    drop((requests, port, channels));
    server.destroy().unwrap();

    let server = model.create_ioreq_server(BufferedRequests::Off).unwrap();
    server
        .map_io_range(IoRange::ports(PORT as u16..=PORT as u16 + 3))
        .unwrap();
    server.enable().unwrap();
    let deadline = soon();
    // The page is fresh. The server ends while the guest waits, and then the guest itself.
    thread::scope(|scope| {
        let waits = scope.spawn(|| host.access(guest, inl(), deadline));
        let page =
            foreign::map_resource(model.guest(), server.resource(), 1, 1, PageAccess::ReadOnly);
        let page = page.unwrap();
        let mut bits = [0];
        while bits[0] & 1 == 0 {
            page.copy_out(30, &mut bits).unwrap();
            thread::yield_now();
        }
        server.destroy().unwrap();
        assert_eq!(waits.join().unwrap().unwrap(), None);
        assert!(Instant::now() < deadline, "it was woken");
    });
    host.destroy_domain(guest).unwrap();
    let error = host.access(guest, inl(), soon()).unwrap_err();
    assert_eq!(error.errno(), Some(libc::ESRCH));
    host.assert_clean();
}

#[test]
fn a_request_that_xen_never_sends_is_an_error_of_the_device_model() {
    let (host, xen, guest) = host();
    let mut toy = Toy::attach(&xen, guest, PORT as u16).unwrap();
    let wrong = Ioreq { size: 3, ..inl() };
    thread::scope(|scope| {
        let waits = scope.spawn(|| host.access(guest, wrong, soon()));
        let failed = loop {
            match toy.serve(soon()) {
                Ok(_) => {}
                Err(e) => break e,
            }
        };
        let failed = failed.downcast_ref::<IoreqError>();
        assert_eq!(failed, Some(&IoreqError::Size { vcpu: 0, size: 3 }));
        drop(toy);
        assert_eq!(waits.join().unwrap().unwrap(), None);
    });
    host.assert_clean();
}

#[test]
fn pages_of_servers_are_refused_as_xen_refuses_them() {
    let (host, xen, guest) = host();
    let model = DeviceModel::open(&xen, guest).unwrap();
    let server = model.create_ioreq_server(BufferedRequests::Off).unwrap();
    let errno = |resource, first, count| {
        foreign::map_resource(model.guest(), resource, first, count, PageAccess::ReadOnly)
            .map_err(|e| e.errno())
            .map(|region| region.len())
    };
    let of = xen_sys::privcmd::Resource::ioreq_server;
    assert_eq!(errno(of(server.id()), 1, 1), Ok(4096));
    // It has no buffered requests, and no third page.
    assert_eq!(errno(of(server.id()), 0, 2), Err(Some(libc::ENOENT)));
    assert_eq!(errno(of(server.id()), 1, 2), Err(Some(libc::EINVAL)));
    assert_eq!(errno(of(server.id() + 1), 1, 1), Err(Some(libc::ENOENT)));
    let table = xen_sys::privcmd::Resource::GRANT_TABLE;
    let refused = foreign::map_resource(model.guest(), table, 0, 1, PageAccess::ReadOnly);
    assert!(
        matches!(refused, Err(Error::Unsupported { .. })),
        "{refused:?}"
    );
    drop(server);
    host.assert_clean();
}

//! A second device model beside the guest's QEMU: the example of xen-gnttab, and what it may not.

use std::os::fd::AsFd as _;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use xen_evtchn::EventChannels;
use xen_gnttab::ioreq::{Access, Data, Ioreqs, Request, Space};
use xen_gnttab::{PageAccess, foreign};
use xen_sys::device_model::{
    BufferedRequests, CacheAttribute, DeviceModel, Doorbell, EventKind, FrameRange, InjectedEvent,
    Interrupt, IntxPin, IoRange, IoreqServer, IsaIrq, Level, MemoryType, MsiMessage, PciLink,
};
use xen_sys::privcmd::{DomainFlags, Privcmd, ShutdownReason};
use xen_sys::{DomId, Error, PciFunction, Port, Xen};

use self::toy::Toy;
use crate::guest::{self, Guest};
use crate::host::{TestHost, soon};

#[allow(dead_code, reason = "the example has a `main`")]
#[path = "../../../../xen-gnttab/examples/toy-device-model.rs"]
mod toy;

/// The port of `testing/guest/toy.s`.
const PORT: u16 = 0x5a0;

/// Creates servers until Xen has no room; returns how many there were.
fn room(model: &DeviceModel) -> Result<usize> {
    let mut servers = Vec::new();
    loop {
        match model.create_ioreq_server(BufferedRequests::Atomic) {
            Ok(server) => servers.push(server),
            Err(Error::LimitReached { .. }) => return Ok(servers.len()),
            Err(other) => bail!("after {} servers: {other:?}", servers.len()),
        }
        ensure!(servers.len() < 100, "there is no end of servers");
    }
}

fn attach(guest: DomId) -> Result<Toy> {
    Toy::attach(&Xen::open()?, guest, PORT).map_err(|e| anyhow!("attaching the device: {e}"))
}

/// Has the guest use the port; returns what it read, and the requests that the device got.
fn used(host: &TestHost, guest: &mut Guest, device: &mut Toy) -> Result<(String, Vec<Request>)> {
    guest.types(&host.store, "~")?;
    let deadline = soon();
    let mut served = Vec::new();
    let read = |request: &Request| request.access == Access::Read;
    while !served.iter().any(read) {
        let more = device
            .serve(deadline)
            .map_err(|e| anyhow!("serving: {e}"))?;
        served.extend(more);
        ensure!(
            Instant::now() < deadline,
            "the guest asked {served:x?} only"
        );
    }
    Ok((guest.output_after("xen-guest: toy ")?, served))
}

/// A guest's port is answered by the example, from files that reach no other guest.
pub(super) fn device_model(host: &TestHost) -> Result<()> {
    host.with_guest(|host, guest| {
        guest.output_after("-guest: alive second=")?;
        let model = DeviceModel::open(&Xen::open()?, guest.id)?;
        let before = room(&model)?;
        println!(
            "    room for {before} servers, {} virtual CPU",
            model.vcpus()?
        );
        ensure!(before > 1, "QEMU's and one more");

        // Without the device, nothing answers the port.
        guest.types(&host.store, "~")?;
        let nothing = guest.output_after("xen-guest: toy ")?;
        ensure!(nothing == "0xffffffff", "{nothing}");

        let mut device = attach(guest.id)?;
        let (first, served) = used(host, guest, &mut device)?;
        ensure!(first == "0x12340064", "{first}, after {served:x?}");
        let (second, _) = used(host, guest, &mut device)?;
        ensure!(second == "0x246800c8", "{second}");
        ensure!(device.sum == 0x2468_00c8);
        requests(&served)?;

        restricted(&device, guest.stub)?;
        drop(device);
        ensure!(room(&model)? == before, "a server is left");
        guest.types(&host.store, "~")?;
        let nothing = guest.output_after("xen-guest: toy ")?;
        ensure!(nothing == "0xffffffff", "{nothing} when the device is gone");
        limits(&model)?;
        ensure!(room(&model)? == before, "a server is left");
        Ok(())
    })
}

/// Checks that the requests are those of the guest's program.
fn requests(served: &[Request]) -> Result<()> {
    for request in served {
        let at = (request.space, request.address);
        ensure!(at == (Space::Port, u64::from(PORT)), "{request:x?}");
        ensure!(request.vcpu == Some(0), "{request:x?}");
    }
    let value = |request: &&Request| matches!(request.data, Data::Value(_));
    let values: Vec<_> = served
        .iter()
        .filter(value)
        .map(|request| (request.access, request.size, request.data))
        .collect();
    let [byte, word, .., read] = &values[..] else {
        bail!("{served:x?}");
    };
    ensure!(*byte == (Access::Write, 1, Data::Value(0x5a)), "{byte:x?}");
    let expected = (Access::Write, 4, Data::Value(0x1234_0000));
    ensure!(*word == expected, "{word:x?}");
    ensure!((read.0, read.1) == (Access::Read, 4), "{read:x?}");
    // Xen passes the string instruction on as one request with its data in the guest's memory, or
    // as several with their data in them.
    let strings = served.iter().filter(|request| !value(request));
    println!(
        "    {} requests, {} with data in the guest's memory",
        served.len(),
        strings.count()
    );
    Ok(())
}

/// The device's files refuse another guest, and report why.
fn restricted(device: &Toy, other: DomId) -> Result<()> {
    let xen = Xen::open()?;
    let copy = || -> Result<Privcmd> {
        let same = device.model().as_fd().try_clone_to_owned()?;
        Ok(Privcmd::adopt(&xen, same)?)
    };
    let restricted = copy()?.restrict(other);
    ensure!(
        matches!(restricted, Err(Error::NotPermitted { .. })),
        "{restricted:?}"
    );
    let memory = foreign::map(copy()?.guest(other), &[0], PageAccess::ReadOnly);
    ensure!(
        matches!(memory, Err(Error::NotPermitted { .. })),
        "{memory:?}"
    );
    let hypercall = copy()?.xen_version();
    ensure!(
        matches!(hypercall, Err(Error::HypercallsRefused { .. })),
        "{hypercall:?}"
    );
    // The same guest again is no other one.
    let same = DeviceModel::from(copy()?.restrict(device.model().domain())?);
    ensure!(same.vcpus()? == device.model().vcpus()?);
    Ok(())
}

/// Every refusal is an error of its own.
fn limits(model: &DeviceModel) -> Result<()> {
    let server = model.create_ioreq_server(BufferedRequests::Off)?;
    let range = |n: u16| IoRange::ports(0x6000 + 2 * n..=0x6000 + 2 * n);
    let full = (0..1000).find_map(|n| Some((n, server.map_io_range(range(n)).err()?)));
    let Some((ranges, Error::LimitReached { .. })) = full else {
        bail!("ranges without end: {full:?}");
    };
    println!("    {ranges} ranges");
    server.unmap_io_range(range(0))?;
    let unmapped = server.unmap_io_range(range(0)).map_err(|e| e.errno());
    ensure!(unmapped == Err(Some(2)), "{unmapped:?}");
    let twice = server.map_io_range(range(1)).map_err(|e| e.errno());
    ensure!(twice == Err(Some(17)), "{twice:?}");
    // Debian's kernels are built without these.
    let irq = IsaIrq::new(5).context("a line")?;
    let (event, _other_end) = nix::unistd::pipe()?;
    let irqfd = model.irq_fd(&event, Interrupt::Isa(irq, Level::Asserted));
    ensure!(matches!(irqfd, Err(Error::Unsupported { .. })), "{irqfd:?}");
    let doorbell = Doorbell {
        device: 0xfe00_0000,
        size: 4,
        queue: 0,
    };
    let ringing = server.doorbells(&[Port::new(1)])?.assign(&event, doorbell);
    ensure!(
        matches!(ringing, Err(Error::Unsupported { .. })),
        "{ringing:?}"
    );

    let id = server.id();
    server.destroy()?;
    let gone = model.destroy_ioreq_server(id).map_err(|e| e.errno());
    ensure!(gone == Err(Some(2)), "{gone:?}");

    let xen = Xen::open()?;
    let nobody = DeviceModel::open(&xen, DomId::new(0x7000))?.vcpus();
    ensure!(matches!(nobody, Err(Error::NoDomain { .. })), "{nobody:?}");
    let ourselves = DeviceModel::open(&xen, DomId::DOM0)?.vcpus();
    ensure!(
        matches!(ourselves, Err(Error::NotPermitted { .. })),
        "{ourselves:?}"
    );
    Ok(())
}

/// The calls of a device model whose guest is destroyed fail with a typed error, and its pages
/// keep nothing of the guest once they are dropped.
pub(super) fn dying(host: &TestHost) -> Result<()> {
    let guest = host.take_guest()?;
    let (xen, id) = (Xen::open()?, guest.id);
    let model = DeviceModel::open(&xen, id)?;
    let server = model.create_ioreq_server(BufferedRequests::Atomic)?;
    let mut requests = Ioreqs::map(&server)?;
    server.enable()?;
    let channels = EventChannels::open(&xen)?;
    let theirs = requests.remote_port(0).context("a virtual CPU")?;
    let ours = channels.bind_interdomain(id, theirs)?;
    requests.set_port(0, ours.port())?;
    guest.destroy()?;

    let gone = |error: &Error| match error {
        Error::NoDomain { domain, .. } => *domain == id,
        error => error.errno() == Some(2),
    };
    let info = server.info().err();
    ensure!(info.as_ref().is_some_and(gone), "{info:?}");
    // Xen's pages are still mapped.
    ensure!(requests.poll_request()?.is_none());
    let ended = IoreqServer::destroy(server).err();
    ensure!(ended.as_ref().is_some_and(gone), "{ended:?}");
    drop((ours, requests));
    let deadline = soon();
    while model.vcpus().is_ok() {
        ensure!(Instant::now() < deadline, "{id} is not gone");
        std::thread::yield_now();
    }
    let vcpus = model.vcpus();
    ensure!(matches!(vcpus, Err(Error::NoDomain { .. })), "{vcpus:?}");
    ensure!(guest::domid(guest::NAME).is_err());
    Ok(())
}

/// Each operation of a device model that [`device_model`] does not use, on a guest that ends with
/// them.
pub(super) fn operations(host: &TestHost) -> Result<()> {
    let mut guest = host.take_guest()?;
    guest.output_after("-guest: alive second=")?;
    let (model, privcmd) = (
        DeviceModel::open(&Xen::open()?, guest.id)?,
        super::hypercalls::privcmd()?,
    );
    interrupts(&model, &privcmd)?;
    memory(&model, &privcmd)?;
    guest.catch_up()?;
    guest.output_after("-guest: alive second=")?;

    model.shutdown(ShutdownReason::CRASH)?;
    let deadline = soon();
    let info = loop {
        let info = privcmd.domain_info(guest.id)?;
        if info.flags.contains(DomainFlags::SHUTDOWN) {
            break info;
        }
        ensure!(Instant::now() < deadline, "{info:?}");
        std::thread::yield_now();
    };
    ensure!(info.shutdown == Some(ShutdownReason::CRASH), "{info:?}");
    event(&model)?;
    guest.destroy()
}

/// Sets levels and a route, as Xen's records of the guest show them.
fn interrupts(model: &DeviceModel, privcmd: &Privcmd) -> Result<()> {
    // Of xen/arch-x86/hvm/save.h: a bit for each pin of each device, a bit for each line, and a
    // line for each link.
    const PCI_IRQ: u16 = 7;
    const ISA_IRQ: u16 = 8;
    const PCI_LINK: u16 = 9;
    let record = |kind: u16, byte: usize| -> Result<u8> {
        let record = privcmd.hvm_record(model.domain(), kind, 0)?;
        let record = record.with_context(|| format!("no record {kind}"))?;
        record.get(byte).copied().context("a short record")
    };
    let line = IsaIrq::new(5).context("a line")?;
    let device = PciFunction::new(0, 0, 9, 0).context("a device")?;
    for (level, set) in [(Level::Asserted, 1), (Level::Deasserted, 0)] {
        model.set_isa_irq_level(line, level)?;
        ensure!(record(ISA_IRQ, 0)? >> 5 & 1 == set, "line 5, {level:?}");
        model.set_pci_intx_level(device, IntxPin::C, level)?;
        let bit = 4 * 9 + 2;
        let bits = record(PCI_IRQ, bit / 8)?;
        ensure!(bits >> (bit % 8) & 1 == set, "pin C of device 9, {level:?}");
    }
    for (route, number) in [(Some(line), 5), (None, 0)] {
        model.set_pci_link_route(PciLink::B, route)?;
        ensure!(record(PCI_LINK, 1)? == number, "link B to {route:?}");
    }
    // To a processor that is not there, and by a way of delivery that is none of messages'.
    let message = |data| MsiMessage {
        address: 0xfeef_e000,
        data,
    };
    model.inject_msi(message(0x60))?;
    let refused = model.inject_msi(message(0x260)).map_err(|e| e.errno());
    ensure!(
        refused == Err(Some(22)),
        "a message delivered as SMI: {refused:?}"
    );
    let spi = model.set_irq_level(40, Level::Asserted);
    ensure!(matches!(spi, Err(Error::Unsupported { .. })), "{spi:?}");
    Ok(())
}

/// Acts on frame 3, which the guest leaves alone.
fn memory(model: &DeviceModel, privcmd: &Privcmd) -> Result<()> {
    let frame = |first| FrameRange { first, count: 1 };
    let beyond = privcmd.maximum_gpfn(model.domain())? + 0x100;
    model.modified_memory(&[frame(3)])?;

    let tracked = FrameRange {
        first: 0,
        count: 16,
    };
    let dirty: Vec<u64> = model.track_dirty_vram(tracked)?.frames().collect();
    model.end_dirty_vram()?;
    ensure!(dirty == Vec::from_iter(0..16), "{dirty:?}");

    model.set_mem_type(frame(3), MemoryType::ReadOnly)?;
    model.set_mem_type(frame(3), MemoryType::Ram)?;
    let refused = model.set_mem_type(frame(beyond), MemoryType::ReadOnly);
    ensure!(refused.is_err(), "a type for no memory");
    model.pin_memory_cacheattr(frame(3), Some(CacheAttribute::WriteBack))?;
    model.pin_memory_cacheattr(frame(3), None)?;
    let again = model.pin_memory_cacheattr(frame(3), None);
    let again = again.map_err(|e| e.errno());
    ensure!(
        again == Err(Some(2)),
        "an attribute that is not pinned: {again:?}"
    );

    let mut page = foreign::map(model.guest(), &[3], PageAccess::ReadWrite)?;
    page.copy_in(0x800, b"relocate")?;
    drop(page);
    model.relocate_memory(frame(3), beyond)?;
    let moved = foreign::map(model.guest(), &[beyond], PageAccess::ReadOnly)?;
    let mut seen = [0; 8];
    moved.copy_out(0x800, &mut seen)?;
    drop(moved);
    model.relocate_memory(frame(beyond), 3)?;
    ensure!(&seen == b"relocate", "{seen:02x?}");

    // Takes nested paging.
    let server = model.create_ioreq_server(BufferedRequests::Off)?;
    let written = server
        .map_written_memory()
        .and_then(|()| server.unmap_written_memory());
    println!("    memory whose writes are requests: {written:?}");
    ensure!(matches!(written, Ok(()) | Err(Error::Unsupported { .. })));
    Ok(server.destroy()?)
}

/// Injects a breakpoint, of which a virtual CPU keeps one at a time: the guest runs no more, so it
/// does not take it.
fn event(model: &DeviceModel) -> Result<()> {
    let inject = |vcpu| {
        let event = InjectedEvent {
            vcpu,
            vector: 3,
            kind: EventKind::SoftwareException,
            instruction_length: 1,
            error_code: None,
            extra: 0,
        };
        model.inject_event(event).map_err(|e| e.errno())
    };
    let nobody = inject(9);
    ensure!(
        nobody == Err(Some(22)),
        "an event for no virtual CPU: {nobody:?}"
    );
    let (first, second) = (inject(0), inject(0));
    ensure!(
        (first, second) == (Ok(()), Err(Some(16))),
        "{first:?}, {second:?}"
    );
    Ok(())
}

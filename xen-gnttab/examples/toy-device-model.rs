//! Answers an I/O port of an HVM guest: whatever is written to it is added up, and a read returns
//! the sum.
//!
//! ```text
//! toy-device-model 5                       # in domain 0, of domain 5, until it ends
//! toy-device-model 5 --port 0x5a0 --seconds 60
//! cargo run -p xen-gnttab --features sim --example toy-device-model -- --sim 1
//! ```
//!
//! It runs beside the guest's QEMU, with files restricted to the guest. End it by `--seconds` or by
//! the guest's end: a guest whose device model is killed waits forever when it next uses the port.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use xen_evtchn::{BoundPort, EventChannels};
use xen_gnttab::ioreq::{Access, Data, Ioreqs, Request};
use xen_gnttab::{PageAccess, foreign};
use xen_sys::device_model::{BufferedRequests, DeviceModel, IoRange, IoreqServer};
use xen_sys::privcmd::ShutdownReason;
use xen_sys::{DomId, PAGE_SIZE, Xen};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Answers an I/O port of an HVM guest.
#[derive(Debug, Parser)]
struct Options {
    /// The guest's number.
    domain: DomId,
    /// The port; the device has four bytes.
    #[arg(long, value_parser = number, default_value = "0x5a0")]
    port: u16,
    /// End after this time.
    #[arg(long)]
    seconds: Option<u64>,
    /// Be the device of a simulated guest, which writes 5, 7 and 30 and reads.
    #[arg(long)]
    sim: bool,
}

/// A number, decimal or after `0x` hexadecimal.
fn number(text: &str) -> std::result::Result<u16, std::num::ParseIntError> {
    match text.strip_prefix("0x") {
        Some(digits) => u16::from_str_radix(digits, 16),
        None => text.parse(),
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let ended = match options.sim {
        false => run(&options),
        true => simulated(&options),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("toy-device-model: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let end = options
        .seconds
        .map(|s| Instant::now() + Duration::from_secs(s));
    let mut toy = Toy::attach(&Xen::open()?, options.domain, options.port)?;
    let mut out = std::io::stdout();
    while end.is_none_or(|end| Instant::now() < end) {
        // Now and then, to see whether the guest is still there.
        let deadline = Instant::now() + Duration::from_secs(1);
        for request in toy.serve(deadline)? {
            writeln!(out, "{request:x?}, sum {:#x}", toy.sum)?;
        }
        if let Err(xen_sys::Error::NoDomain { .. }) = toy.model().vcpus() {
            break;
        }
    }
    Ok(())
}

#[cfg(feature = "sim")]
fn simulated(options: &Options) -> Result<()> {
    use xen_sys::abi::ioreq::{DIR_READ, IOREQ_TYPE_PIO, Ioreq};

    let host = xen_sys::sim::Simulation::start()?;
    host.add_domain_as(options.domain)?;
    let mut toy = Toy::attach(&host.xen(DomId::DOM0)?, options.domain, options.port)?;
    let deadline = Instant::now() + Duration::from_secs(10);
    let access = |bits, data| {
        let request = Ioreq {
            addr: options.port.into(),
            data,
            count: 1,
            size: 4,
            bits,
            kind: IOREQ_TYPE_PIO,
            ..Ioreq::default()
        };
        host.access(options.domain, request, deadline)
    };
    std::thread::scope(|scope| {
        let guest = scope.spawn(|| {
            for value in [5, 7, 30] {
                access(0, value)?;
            }
            access(DIR_READ, 0)
        });
        while !guest.is_finished() {
            for request in toy.serve(Instant::now() + Duration::from_millis(50))? {
                println!("{request:x?}, sum {:#x}", toy.sum);
            }
        }
        let answer = guest.join().map_err(|_| "the guest panicked")??;
        println!("the guest read {:?}", answer.map(|answer| answer.data));
        Ok::<(), Box<dyn Error + Send + Sync>>(())
    })?;
    drop(toy);
    host.assert_clean();
    Ok(())
}

#[cfg(not(feature = "sim"))]
fn simulated(_: &Options) -> Result<()> {
    Err("this was built without the feature `sim`".into())
}

/// The device, attached to a guest.
#[derive(Debug)]
pub(crate) struct Toy {
    requests: Ioreqs,
    channels: EventChannels,
    /// This domain's ends of the virtual CPUs' event channels, by virtual CPU.
    ports: Vec<BoundPort>,
    pub(crate) sum: u32,
    // Dropped last, so that the guest is released when the rest is gone.
    server: IoreqServer,
}

impl Toy {
    /// Attaches the device at `port` to `guest`, by files that are restricted to it.
    pub(crate) fn attach(xen: &Xen, guest: DomId, port: u16) -> Result<Self> {
        let last = port.checked_add(3).ok_or("there is no such port")?;
        let channels = EventChannels::open(xen)?;
        channels.restrict(guest)?;
        let model = DeviceModel::open(xen, guest)?;
        let server = model.create_ioreq_server(BufferedRequests::Atomic)?;
        server.map_io_range(IoRange::ports(port..=last))?;
        let mut requests = Ioreqs::map(&server)?;
        server.enable()?;
        let mut ports = Vec::new();
        for vcpu in 0..requests.vcpus() {
            let theirs = requests.remote_port(vcpu).unwrap_or_default();
            let ours = channels.bind_interdomain(guest, theirs)?;
            requests.set_port(vcpu, ours.port())?;
            ports.push(ours);
        }
        let buffered = channels.bind_interdomain(guest, server.info()?.buffered_port)?;
        requests.set_buffered_port(buffered.port());
        ports.push(buffered);
        Ok(Self {
            requests,
            channels,
            ports,
            sum: 0,
            server,
        })
    }

    pub(crate) fn model(&self) -> &DeviceModel {
        self.server.device_model()
    }

    /// Answers the requests that are there; when there are none, waits for an event until
    /// `deadline` and answers those. Returns them.
    ///
    /// A request that cannot be ends the guest, since its virtual CPU would wait forever.
    pub(crate) fn serve(&mut self, deadline: Instant) -> Result<Vec<Request>> {
        let mut served = self.answer()?;
        if served.is_empty() {
            if let Some(port) = self.channels.wait(Some(deadline))? {
                self.channels.unmask(port)?;
                self.requests.handle_event(port);
                served = self.answer()?;
            }
        }
        Ok(served)
    }

    fn answer(&mut self) -> Result<Vec<Request>> {
        /// Requests at a time: a guest can always have more.
        const TURN: usize = 64;
        let mut served = Vec::new();
        while served.len() < TURN {
            let request = match self.requests.poll_request() {
                Ok(None) => break,
                Ok(Some(request)) => request,
                Err(e) => {
                    self.model().shutdown(ShutdownReason::CRASH)?;
                    return Err(e.into());
                }
            };
            let data = self.access(&request);
            if let Some(vcpu) = request.vcpu {
                self.requests.complete(vcpu, data)?;
            }
            served.push(request);
        }
        while let Some(port) = self.requests.poll_notify() {
            let bound = self.ports.iter().find(|bound| bound.port() == port);
            bound.map_or(Ok(()), BoundPort::notify)?;
        }
        Ok(served)
    }

    /// Does what a request asks for; returns the data of a read.
    fn access(&mut self, request: &Request) -> u64 {
        let mut answer = u64::MAX;
        for (_, memory) in request.elements() {
            match (request.access, memory) {
                (Access::Read, None) => answer = u64::from(self.sum),
                (Access::Read, Some(at)) => {
                    let bytes = u64::from(self.sum).to_le_bytes();
                    for (n, byte) in bytes.into_iter().take(request.size.into()).enumerate() {
                        // Memory that the guest does not have takes nothing.
                        let _ = self.guest_byte(at.wrapping_add(n as u64), Some(byte));
                    }
                }
                (Access::Write, None) => {
                    if let Data::Value(value) = request.data {
                        self.sum = self.sum.wrapping_add(value as u32);
                    }
                }
                (Access::Write, Some(at)) => {
                    let mut bytes = [0; 8];
                    for (n, byte) in bytes.iter_mut().take(request.size.into()).enumerate() {
                        let there = self.guest_byte(at.wrapping_add(n as u64), None);
                        *byte = there.unwrap_or(0xff);
                    }
                    self.sum = self.sum.wrapping_add(u64::from_le_bytes(bytes) as u32);
                }
            }
        }
        answer
    }

    /// Reads a byte of the guest's memory, and writes another there, if there is one.
    fn guest_byte(&self, address: u64, new: Option<u8>) -> Result<u8> {
        let page = PAGE_SIZE as u64;
        let (frame, offset) = (address / page, (address % page) as usize);
        let mut memory = foreign::map(self.model().guest(), &[frame], PageAccess::ReadWrite)?;
        let mut byte = [0];
        memory.copy_out(offset, &mut byte)?;
        if let Some(new) = new {
            memory.copy_in(offset, &[new])?;
        }
        Ok(byte[0])
    }
}

//! Ports of the real hypervisor, through `/dev/xen/evtchn`.
//!
//! Linux (drivers/xen/evtchn.c): a read returns whole port numbers, up to a page of them, and the
//! driver masks a port as it puts it in its buffer. A write of port numbers unmasks them; the
//! driver skips numbers of ports that are not bound through this file. A read fails with `EFBIG`
//! after the buffer overflowed, and so does every later read until a reset.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use xen_sys::{DevRoot, DomId, Error, Port, Result, Virq, ioctl};
use zerocopy::IntoBytes;

use crate::blocking::Blocking;
use crate::wait;

#[derive(Debug)]
pub(crate) struct Evtchn {
    dev: ioctl::Evtchn,
    blocking: Blocking,
}

impl Evtchn {
    pub(crate) fn open(root: &DevRoot) -> Result<Self> {
        let dev = ioctl::Evtchn::open(root)?;
        let blocking = Blocking::new(&dev)?;
        Ok(Self { dev, blocking })
    }

    pub(crate) fn adopt(root: &DevRoot, fd: OwnedFd) -> Result<Self> {
        let close = FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC);
        fcntl(&fd, close).map_err(|e| Error::os("fcntl", e.into()))?;
        let dev = ioctl::Evtchn::adopt(root, fd)?;
        let blocking = Blocking::new(&dev)?;
        Ok(Self { dev, blocking })
    }

    pub(crate) fn bind_unbound(&self, remote: DomId) -> Result<Port> {
        self.dev.bind_unbound(remote)
    }

    pub(crate) fn bind_interdomain(&self, remote: DomId, port: Port) -> Result<Port> {
        self.dev.bind_interdomain(remote, port)
    }

    pub(crate) fn bind_virq(&self, virq: Virq) -> Result<Port> {
        self.dev.bind_virq(virq)
    }

    pub(crate) fn unbind(&self, port: Port) -> Result<()> {
        self.dev.unbind(port)
    }

    #[inline]
    pub(crate) fn notify(&self, port: Port) -> Result<()> {
        #[cfg(feature = "unstable-counters")]
        crate::counters::notify();
        self.dev.notify(port)
    }

    pub(crate) fn reset(&self) -> Result<()> {
        self.dev.reset()
    }

    pub(crate) fn restrict(&self, domain: DomId) -> Result<()> {
        match self.dev.restrict(domain) {
            Err(e) if matches!(e.errno(), Some(libc::ENOSYS | libc::ENOTTY)) => {
                Err(Error::Unsupported {
                    op: "IOCTL_EVTCHN_RESTRICT_DOMID",
                })
            }
            result => result,
        }
    }

    #[inline]
    pub(crate) fn unmask(&self, port: Port) -> Result<()> {
        #[cfg(feature = "unstable-counters")]
        crate::counters::call();
        write_port(self.dev.file(), port)
    }

    pub(crate) fn unmask_batch(&self, ports: &[Port]) -> Result<()> {
        write_ports(self.dev.file(), ports)
    }

    #[inline]
    pub(crate) fn read(&self, out: &mut [Port]) -> Result<usize> {
        self.blocking
            .without(&self.dev, || read_ports(self.dev.file(), out))
    }

    /// As [`EventChannels::wait`](crate::EventChannels::wait): one system call if there is no
    /// deadline, and otherwise poll and read.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> Result<Option<Port>> {
        let mut port = [Port::default()];
        let taken = until(deadline, || {
            if deadline.is_none() && self.blocking.begin(&self.dev)? {
                return Ok((read_ports(self.dev.file(), &mut port)?, false));
            }
            // Most callers have looked already, so mostly nothing can be read yet.
            let over = !wait::readable(self.as_fd(), deadline)?;
            Ok((self.read(&mut port)?, over))
        })?;
        Ok(port.into_iter().take(taken).next())
    }
}

impl AsFd for Evtchn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dev.as_fd()
    }
}

/// Repeats `turn`, which returns how many ports it took and whether the time is over. Another
/// thread may have taken the event, or may have looked and so ended our sleep. In both cases this
/// waits again, but never beyond the deadline.
fn until(
    deadline: Option<Instant>,
    mut turn: impl FnMut() -> Result<(usize, bool)>,
) -> Result<usize> {
    loop {
        let (taken, over) = turn()?;
        if taken != 0 || over || wait::has_passed(deadline) {
            return Ok(taken);
        }
    }
}

/// Reads as many whole ports as there are and fit; none, when none is pending.
fn read_ports(mut from: impl Read, out: &mut [Port]) -> Result<usize> {
    loop {
        #[cfg(feature = "unstable-counters")]
        crate::counters::call();
        match from.read(out.as_mut_bytes()) {
            // The driver hands out whole ports only.
            Ok(bytes) => return Ok(bytes / size_of::<Port>()),
            Err(e) => match e.raw_os_error() {
                Some(libc::EAGAIN) => return Ok(0),
                Some(libc::EINTR) => {}
                Some(libc::EFBIG) => return Err(Error::EventOverflow),
                _ => return Err(Error::os("read /dev/xen/evtchn", e)),
            },
        }
    }
}

/// Unmasks one port. The driver takes it whole or not at all, so there is no short write.
fn write_port(mut to: impl Write, port: Port) -> Result<()> {
    loop {
        match to.write(port.as_bytes()) {
            Ok(_) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::os("write /dev/xen/evtchn", e)),
        }
    }
}

/// Ports in a page: the driver takes no more in one call.
const BATCH: usize = 1024;

/// Unmasks ports, as many in one call as the driver takes.
fn write_ports(mut to: impl Write, mut ports: &[Port]) -> Result<()> {
    while !ports.is_empty() {
        #[cfg(feature = "unstable-counters")]
        crate::counters::call();
        let batch = &ports[..ports.len().min(BATCH)];
        match to.write(batch.as_bytes()) {
            Ok(bytes) if bytes < size_of::<Port>() => {
                let none = io::ErrorKind::WriteZero.into();
                return Err(Error::os("write /dev/xen/evtchn", none));
            }
            // The driver takes whole ports.
            Ok(bytes) => ports = &ports[(bytes / size_of::<Port>()).min(batch.len())..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::os("write /dev/xen/evtchn", e)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// A driver's answers, in order.
    struct Script(VecDeque<std::result::Result<Vec<u8>, i32>>);

    impl Read for Script {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let bytes = self
                .0
                .pop_front()
                .unwrap()
                .map_err(io::Error::from_raw_os_error)?;
            buf[..bytes.len()].copy_from_slice(&bytes);
            Ok(bytes.len())
        }
    }

    fn read(
        script: impl IntoIterator<Item = std::result::Result<Vec<u8>, i32>>,
    ) -> Result<Vec<u32>> {
        let mut script = Script(script.into_iter().collect());
        let mut out = [Port::default(); 4];
        let n = read_ports(&mut script, &mut out)?;
        assert!(script.0.is_empty(), "read less often than scripted");
        Ok(out[..n].iter().map(|p| p.as_u32()).collect())
    }

    fn ports(ports: &[u32]) -> Vec<u8> {
        ports.iter().flat_map(|p| p.to_ne_bytes()).collect()
    }

    #[test]
    fn a_batch_is_read_in_one_call() {
        assert_eq!(
            read([Ok(ports(&[7, u32::MAX, 9]))]).unwrap(),
            [7, u32::MAX, 9]
        );
    }

    #[test]
    fn a_signal_is_retried_and_an_empty_buffer_is_no_error() {
        assert_eq!(read([Err(libc::EINTR), Ok(ports(&[1]))]).unwrap(), [1]);
        assert_eq!(read([Err(libc::EAGAIN)]).unwrap(), [0; 0]);
    }

    #[test]
    fn overflow_is_distinguished_from_other_errors() {
        assert!(matches!(
            read([Err(libc::EFBIG)]),
            Err(Error::EventOverflow)
        ));
        assert_eq!(read([Err(libc::EIO)]).unwrap_err().errno(), Some(libc::EIO));
    }

    #[test]
    fn a_deadline_holds_while_others_take_every_event() {
        let deadline = Instant::now() + std::time::Duration::from_millis(20);
        let mut turns = 0;
        let taken = until(Some(deadline), || {
            turns += 1;
            assert!(turns < 100_000_000, "far beyond the deadline");
            Ok((0, false))
        });
        assert_eq!(taken.unwrap(), 0);
        assert!(Instant::now() >= deadline);
    }

    /// A driver that takes at most this many bytes in one call, and is interrupted before each.
    struct Takes(usize, bool, Vec<u8>);

    impl Write for Takes {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            assert!(bytes.len() <= 4096, "more than the driver takes");
            let taken = bytes.len().min(self.0);
            self.2.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_port_of_a_batch_is_unmasked_once_whatever_the_driver_takes() {
        let batch: Vec<Port> = (1..=2500).map(Port::new).collect();
        for takes in [4, 400, 4096] {
            let mut driver = Takes(takes, false, Vec::new());
            write_ports(&mut driver, &batch).unwrap();
            assert_eq!(driver.2, batch.as_bytes(), "{takes}");
        }
        let mut driver = Takes(4096, false, Vec::new());
        write_ports(&mut driver, &[]).unwrap();
        assert!(driver.2.is_empty() && !driver.1, "nothing is written");
        // A driver that takes nothing is no success, and does not hold the caller up.
        let refused = write_ports(&mut Takes(0, true, Vec::new()), &batch).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WriteZero);
    }

    #[test]
    fn unmask_writes_the_number_in_native_order() {
        let mut out = Vec::new();
        write_port(&mut out, Port::new(0x0102_0304)).unwrap();
        assert_eq!(out, 0x0102_0304u32.to_ne_bytes());
    }
}

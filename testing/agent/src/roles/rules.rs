//! The other end of the rules: does what dom0 asks for, through a vchan, until dom0 leaves.

use std::fs::OpenOptions;

use anyhow::{Result, ensure};
use clap::Args;
use xen_fidelity::{Worker, serve};
use xen_store::Store;
use xen_sys::{DomId, Xen};
use xen_vchan::ServerBuilder;

use super::patience;

#[derive(Args, Debug)]
pub(crate) struct Serve {
    /// Where the vchan is to be.
    path: String,
}

impl Serve {
    pub(crate) fn run(&self) -> Result<()> {
        let xen = Xen::open()?;
        let store = Store::open(&xen)?;
        let mut channel = ServerBuilder::new(DomId::DOM0, &self.path).publish(&xen, &store)?;
        println!("listening");
        channel.wait_connected(Some(patience()))?;
        // Each opening of the device is a connection of its own.
        let mut worker = Worker::new(xen, || {
            let device = OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/xen/xenbus")?;
            Ok(device.into())
        });
        let (reader, writer) = channel.halves();
        serve(&mut worker, Both { reader, writer })?;
        ensure!(worker.holds() == 0, "{} objects stayed", worker.holds());
        println!("ok");
        Ok(())
    }
}

/// Two halves as one stream.
#[derive(Debug)]
struct Both<R, W> {
    reader: R,
    writer: W,
}

impl<R: std::io::Read, W> std::io::Read for Both<R, W> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.reader.read(buf)
    }
}

impl<R, W: std::io::Write> std::io::Write for Both<R, W> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.writer.write(buf)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.writer.flush()
    }
}

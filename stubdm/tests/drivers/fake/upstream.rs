//! A server that behaves as upstream's proxy in server mode does, faults included: it looks at the
//! live byte only when it runs, and never takes back what it wrote for a client that left.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use super::Shared;

pub struct Upstream {
    page: Shared,
    path: PathBuf,
    monitor: Option<UnixStream>,
    to_vchan: Vec<u8>,
}

impl Upstream {
    pub fn new(page: &Shared, path: PathBuf) -> Self {
        Self {
            page: page.clone(),
            path,
            monitor: None,
            to_vchan: Vec::new(),
        }
    }

    pub fn step(&mut self) -> bool {
        let page = &mut *self.page.borrow_mut();
        page.server_bell.acknowledge();
        page.server_bell.unmask();
        if page.client_live != 1 {
            let busy = self.monitor.take().is_some();
            self.to_vchan.clear();
            page.left.bytes.clear();
            return busy;
        }
        let monitor = self.monitor.get_or_insert_with(|| {
            let stream = UnixStream::connect(&self.path).unwrap();
            stream.set_nonblocking(true).unwrap();
            stream
        });
        let mut busy = false;
        let mut buffer = [0; 512];
        if self.to_vchan.len() < 8192 {
            match monitor.read(&mut buffer) {
                Ok(count) => {
                    self.to_vchan.extend_from_slice(&buffer[..count]);
                    busy |= count > 0;
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        let count = super::put(&mut page.right, &self.to_vchan, &mut page.client_bell);
        self.to_vchan.drain(..count);
        let count = super::take(&mut page.left, &mut buffer, &mut page.client_bell);
        monitor.write_all(&buffer[..count]).unwrap();
        page.left.reader_asked = true;
        page.right.writer_asked = true;
        busy | (count > 0)
    }
}

//! A runtime, and a client on it.

use std::os::unix::net::UnixStream;
use std::path::Path;

use tokio::runtime::{Builder, Runtime};
use xen_store::tokio::Store as AsyncStore;

/// One with so many workers, or the one thread that calls it.
pub(crate) fn runtime(workers: usize) -> Runtime {
    let mut builder = match workers {
        0 => Builder::new_current_thread(),
        workers => {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(workers);
            builder
        }
    };
    builder.enable_all().build().unwrap()
}

/// A connection, made by a call that all versions of the client have.
pub(crate) fn connect(socket: &Path) -> AsyncStore {
    AsyncStore::from_fd(UnixStream::connect(socket).unwrap().into()).unwrap()
}

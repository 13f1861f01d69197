//! The runtimes that each test of sharing is run on.

use std::future::Future;

use tokio::runtime::{Builder, Runtime};

/// Worker threads of the multi-thread runtimes; 0 is the current-thread runtime.
const FLAVOURS: [usize; 4] = [0, 1, 2, 4];

fn runtime(workers: usize) -> Runtime {
    let mut builder = match workers {
        0 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    builder
        .worker_threads(workers.max(1))
        .enable_all()
        .build()
        .unwrap()
}

/// Runs `test` once on each kind of runtime.
pub(crate) fn on_each<F: Future<Output = ()> + Send + 'static>(test: impl Fn() -> F) {
    for workers in FLAVOURS {
        println!("with {workers} workers (0: current_thread)");
        let runtime = runtime(workers);
        // In a task, so that the workers of a multi-thread runtime do all of it.
        runtime.block_on(async { tokio::spawn(test()).await.unwrap() });
    }
}

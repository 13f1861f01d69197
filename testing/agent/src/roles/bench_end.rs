//! Our part of a comparison: the counterparts of `c-vchan-bench.c` and `c-call-bench.c`.

use anyhow::Result;
use clap::Args;
use xen_store::Store;
use xen_sys::Xen;

#[derive(Args, Debug)]
pub(crate) struct BenchEnd {
    /// WORK SIDE DOMID PATH SIZE TOTAL RING CPU (cork) (spin=NS)
    arguments: Vec<String>,
}

impl BenchEnd {
    pub(crate) fn run(&self) -> Result<()> {
        let open = || {
            let xen = Xen::open()?;
            let store = Store::open(&xen)?;
            Ok((xen, store))
        };
        benches::end::main(&self.arguments, open, benches::counts)
    }
}

#[derive(Args, Debug)]
pub(crate) struct BenchCalls {
    /// OPERATION UNITS COUNT DOMID
    arguments: Vec<String>,
}

impl BenchCalls {
    pub(crate) fn run(&self) -> Result<()> {
        benches::calls::main(&self.arguments)
    }
}

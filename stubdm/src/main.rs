//! stubdm-run: init and supervisor of a Xen Linux stubdomain, and the host's QMP-over-vchan proxy.

fn main() {}

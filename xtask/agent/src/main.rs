//! Runs inside the testbed's dom0 and domUs and carries out the real-Xen tests.

fn main() {}

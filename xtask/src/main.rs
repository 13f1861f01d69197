//! The project's tasks: a real Xen host in QEMU, the demo, the tests, the gate.

fn main() {}

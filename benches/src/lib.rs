//! Benchmarks of the Xen userspace crates, with a peer beside each figure.

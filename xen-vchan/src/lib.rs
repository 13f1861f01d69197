//! vchan: a byte channel between two Xen domains, wire-compatible with libxenvchan.

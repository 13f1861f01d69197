//! Xen's ABI types, the /dev/xen device layer, privcmd and the handle every crate opens from.

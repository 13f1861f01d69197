//! Xen event channels from userspace.

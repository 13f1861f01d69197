//! Xen grant tables from userspace: share pages, map pages.

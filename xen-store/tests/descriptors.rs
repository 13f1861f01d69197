//! Descriptors: closed on exec, and none left behind. Alone in its process, because it counts.

// The lint exempts test functions, but not the helpers beside them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::fs;

use xen_store_server::{Config, Server};
use xen_sys::DomId;

/// Open descriptors and their flags.
fn descriptors() -> BTreeMap<String, i32> {
    fs::read_dir("/proc/self/fdinfo")
        .unwrap()
        .filter_map(|entry| {
            let entry = entry.unwrap();
            // The descriptor of the listing itself is gone by now.
            let info = fs::read_to_string(entry.path()).ok()?;
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
            let flags = i32::from_str_radix(flags.trim(), 8).unwrap();
            Some((entry.file_name().into_string().unwrap(), flags))
        })
        .collect()
}

#[test]
fn descriptors_are_closed_on_exec_and_in_the_end() {
    let before = descriptors();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    {
        let server = Server::start(Config::new()).unwrap();
        server.listen(&socket).unwrap();
        let by_socket = xen_store::Store::connect(&socket).unwrap();
        let by_pair = server.connect(DomId::new(5)).unwrap();
        let watch = by_socket.watch("/w").unwrap();
        watch.poll_fd().unwrap();
        by_socket.mkdir("/w").unwrap();
        by_pair.read("/w").unwrap_err();
        let during = descriptors();
        assert!(during.len() >= before.len() + 9, "{during:?}");
        for (fd, flags) in during.iter().filter(|(fd, _)| !before.contains_key(*fd)) {
            assert_ne!(
                flags & libc::O_CLOEXEC,
                0,
                "descriptor {fd}: flags {flags:o}"
            );
        }
    }
    assert_eq!(descriptors(), before);
    assert!(!socket.exists());
}

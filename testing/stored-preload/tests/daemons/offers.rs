//! Requests that came after these daemons, all of Xen 4.17.

use std::num::NonZeroU32;

use xen_store::Error;
use xen_store::wire::MsgType;
use xen_sys::DomId;

use crate::asynchronous::{connect, runtime};
use crate::daemon::{Daemon, Kind};
use crate::with_each_daemon;

fn a_request_that_the_daemon_lacks_is_named(kind: Kind) {
    let daemon = Daemon::start(kind);
    let store = daemon.store();
    let (domain, limit) = (DomId::new(7), NonZeroU32::new(7));
    let threads = [
        (MsgType::GET_FEATURE, store.features().map(drop)),
        (MsgType::GET_FEATURE, store.features_of(domain).map(drop)),
        (MsgType::SET_FEATURE, store.set_features(domain, 0)),
        (MsgType::GET_QUOTA, store.quota_names().map(drop)),
        (MsgType::GET_QUOTA, store.quota(None, "nodes").map(drop)),
        (
            MsgType::GET_QUOTA,
            store.quota(Some(domain), "nodes").map(drop),
        ),
        (MsgType::SET_QUOTA, store.set_quota(None, "nodes", limit)),
        (MsgType::WATCH, store.watch_depth("/w", 1).map(drop)),
    ];
    let tasks = runtime(0).block_on(async {
        let store = connect(&daemon.socket());
        [
            (MsgType::GET_FEATURE, store.features().await.map(drop)),
            (MsgType::GET_QUOTA, store.quota_names().await.map(drop)),
            (
                MsgType::SET_QUOTA,
                store.set_quota(None, "nodes", limit).await,
            ),
            (MsgType::WATCH, store.watch_depth("/w", 1).await.map(drop)),
        ]
    });
    for (expected, result) in threads.into_iter().chain(tasks) {
        let error = result.unwrap_err();
        let named = matches!(error, Error::NotOffered { op } if op == expected);
        assert!(named, "{expected}: {error:?}");
    }
    store.write("/a", "the connection goes on").unwrap();
}

with_each_daemon!(a_request_that_the_daemon_lacks_is_named);

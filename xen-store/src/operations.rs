//! The operations, listed once for the blocking client and for tokio's.
//!
//! Each line is the signature of a method and the request or the plan that it carries out. A client
//! names the macro that makes its methods: see `client.rs` and `tokio/store.rs`.

/// The operations that read nodes, one by one or many together.
macro_rules! read_operations {
    ($client:ident!($type:ty)) => {
        $client! {
            $type, operate:

            /// Returns the value of a node: any bytes, exactly as they were written.
            ///
            /// # Errors
            ///
            /// [`Error::Daemon`](crate::Error::Daemon): `ENOENT` if there is no such node, `EACCES`
            /// without the right to read it.
            #[doc(alias = "xs_read")]
            fn read(path: &str) -> Result<Vec<u8>> = Read { path };

            /// Returns the value of a node as text.
            ///
            /// # Errors
            ///
            /// As `read`; [`Error::NotText`](crate::Error::NotText) if it is not UTF-8.
            fn read_str(path: &str) -> Result<String> = ReadStr { path };

            /// Returns the value of a node, or `None` if there is no such node.
            ///
            /// # Errors
            ///
            /// As `read`, apart from `ENOENT`.
            fn read_optional(path: &str) -> Result<Option<Vec<u8>>> = Optional(Read { path });

            /// Returns the value of a node as text, or `None` if there is no such node.
            ///
            /// # Errors
            ///
            /// As `read_str`, apart from `ENOENT`.
            fn read_str_optional(path: &str) -> Result<Option<String>> = Optional(ReadStr { path });

            /// Returns the names of a node's children, in the daemon's order.
            ///
            /// A list too long for one message is fetched in parts, again from the start if it
            /// changes meanwhile, so the result is the list as it was at one moment.
            ///
            /// # Errors
            ///
            /// As `read`; [`Error::Conflict`](crate::Error::Conflict) if the list changed faster
            /// than it could be read.
            #[doc(alias = "xs_directory")]
            fn directory(path: &str) -> Result<Vec<String>> = Directory { path };

            /// Returns whether a node exists.
            ///
            /// # Errors
            ///
            /// As `read`, apart from `ENOENT`. Without the right to read the node, `EACCES`.
            fn exists(path: &str) -> Result<bool> = Exists { path };

            /// Returns the permissions of a node. Those of `@introduceDomain` and `@releaseDomain`
            /// can be set but not read (`EINVAL` from xenstored 4.17).
            ///
            /// # Errors
            ///
            /// As `read`.
            #[doc(alias = "xs_get_permissions")]
            fn permissions(path: &str) -> Result<Permissions> = GetPermissions { path };
        }

        $client! {
            $type, carry:

            /// Returns the value of each of many nodes, or its error. As
            /// [`Store::batch`](crate::Store::batch) of reads.
            fn read_many[P: AsRef<str>](paths: &[P]) -> Vec<Result<Vec<u8>>> = {
                let reads = paths.iter().map(|path| Read { path: path.as_ref() });
                Requested::new(reads.collect::<Vec<_>>())
            };

            /// Returns the paths of a node and of all nodes at most `depth` levels below it: by
            /// level, and in each by the paths' bytes. The requests are in flight together.
            ///
            /// The result may or may not contain changes that other clients make meanwhile: a node
            /// that is removed is left out with all below it. A node that this domain may not read
            /// is in the result without those below it.
            ///
            /// # Errors
            ///
            /// As `directory`, for `path` itself; [`Error::TooLarge`](crate::Error::TooLarge)
            /// beyond [`MAX_TREE`](crate::MAX_TREE). Other errors of any of the requests.
            fn walk(path: &str, depth: u32) -> Result<Vec<String>> = Tree::walk(path, depth);

            /// Returns a node and everything below it, with values and permissions. The requests
            /// are in flight together.
            ///
            /// The result may or may not contain changes that other clients make meanwhile. The
            /// snapshot of a transaction is of one moment if its commit succeeds:
            /// `store.with_transaction(|t| t.snapshot(path))`, or `|t| async move {
            /// t.snapshot(path).await }` with tokio.
            ///
            /// # Errors
            ///
            /// As `walk`.
            fn snapshot(path: &str) -> Result<Snapshot> = Tree::snapshot(path);
        }
    };
}

/// The other operations on nodes. Both kinds are the same inside and outside a transaction.
macro_rules! change_operations {
    ($client:ident!($type:ty)) => {
        $client! {
            $type, operate:

            /// Sets the value of a node. The node and its parents are created if missing, owned
            /// by this domain with the permissions of the nearest existing parent.
            ///
            /// Path, a NUL and value must fit one message: 4096 bytes on a socket, 4080 on the
            /// kernel's device.
            ///
            /// # Errors
            ///
            /// [`Error::Daemon`](crate::Error::Daemon): `EACCES` without the right to write,
            /// `ENOSPC` when a quota is exceeded;
            /// [`Invalid::PayloadTooLong`](crate::Invalid::PayloadTooLong).
            #[doc(alias = "xs_write")]
            fn write(path: &str, value: impl AsRef<[u8]>) -> Result<()> =
                Write { path, value: value.as_ref() };

            /// Creates a node with an empty value, and its parents. An existing node stays as it
            /// is.
            ///
            /// # Errors
            ///
            /// As `write`.
            #[doc(alias = "xs_mkdir")]
            fn mkdir(path: &str) -> Result<()> = Mkdir { path };

            /// Removes a node and everything below it. A missing node is no error if its
            /// parent exists.
            ///
            /// # Errors
            ///
            /// [`Error::Daemon`](crate::Error::Daemon): `ENOENT` if there is no such parent,
            /// `EACCES` without the right to remove, `EINVAL` for `/`.
            #[doc(alias = "xs_rm")]
            fn rm(path: &str) -> Result<()> = Rm { path };

            /// Replaces the permissions of a node, or of `@introduceDomain` or
            /// `@releaseDomain`.
            ///
            /// # Errors
            ///
            /// As `read`; `EPERM` if the owner would change and this domain is not privileged.
            #[doc(alias = "xs_set_permissions")]
            fn set_permissions(path: &str, permissions: &Permissions) -> Result<()> =
                SetPermissions { path, permissions };
        }

        $client! {
            $type, carry:

            /// Sends many requests together and returns a result for each, in the same shape: see
            /// [`Batch`](crate::Batch). At most [`MAX_IN_FLIGHT`](crate::MAX_IN_FLIGHT) of them are
            /// in flight at a time; on the kernel's device one.
            ///
            /// The daemon carries them out in their order, but one by one: it may carry out other
            /// clients' changes in between, unless the batch is a transaction's. A request that
            /// fails does not stop the others. Requests about domains do not belong to a
            /// transaction, even if they are sent through one.
            ///
            /// When the deadline of one request has passed, it and all others without an answer end
            /// with [`Error::TimedOut`](crate::Error::TimedOut); the rest is not sent.
            fn batch[B: Batch](batch: B) -> B::Output = Requested::new(batch);
        }
    };
}

/// The operations about domains and about the daemon itself. Most of them are for domain 0 only;
/// others get `EACCES` or `EPERM`.
macro_rules! domain_operations {
    ($client:ident!($type:ty)) => {
        $client! {
            $type, operate:

            /// Returns the number of the domain to which this connection belongs: the node `domid`,
            /// which the toolstack writes for every domain that it makes. A program that may make
            /// hypercalls can ask Xen: `xen_sys::privcmd::Privcmd::own_domain`.
            ///
            /// # Errors
            ///
            /// [`Error::Daemon`](crate::Error::Daemon) with `ENOENT`
            /// ([`is_not_found`](crate::Error::is_not_found)) if the toolstack wrote none;
            /// [`Error::Value`](crate::Error::Value) if the node contains no domain's number.
            fn own_domain() -> Result<DomId> = OwnDomain {};

            /// Returns the path to which relative paths of `domain` are relative:
            /// `/local/domain/<id>`.
            ///
            /// # Errors
            ///
            /// Those of any request.
            #[doc(alias = "xs_get_domain_path")]
            fn domain_path(domain: DomId) -> Result<String> = GetDomainPath { domain };

            /// Returns whether the daemon serves `domain`.
            ///
            /// # Errors
            ///
            /// Those of any request.
            #[doc(alias = "xs_is_domain_introduced")]
            fn is_introduced(domain: DomId) -> Result<bool> = IsIntroduced { domain };

            /// Makes the daemon serve `domain`, through the ring at guest frame `gfn` and the event
            /// channel `port` of that domain.
            ///
            /// # Errors
            ///
            /// [`Error::Daemon`](crate::Error::Daemon): `EACCES` if this domain is not privileged,
            /// `EINVAL` if the ring cannot be mapped.
            #[doc(alias = "xs_introduce_domain")]
            fn introduce(domain: DomId, gfn: u64, port: Port) -> Result<()> =
                Introduce { domain, gfn, port };

            /// Makes the daemon stop serving `domain`.
            ///
            /// # Errors
            ///
            /// As [`introduce`](Self::introduce); `ENOENT` if the daemon does not serve it.
            #[doc(alias = "xs_release_domain")]
            fn release(domain: DomId) -> Result<()> = Release { domain };

            /// Makes the daemon expect `domain` to shut down again, after it was resumed.
            ///
            /// # Errors
            ///
            /// As [`release`](Self::release).
            #[doc(alias = "xs_resume_domain")]
            fn resume(domain: DomId) -> Result<()> = Resume { domain };

            /// Lets `domain` act with the rights of `target`, as a stubdomain does for its guest.
            ///
            /// # Errors
            ///
            /// As [`release`](Self::release).
            #[doc(alias = "xs_set_target")]
            fn set_target(domain: DomId, target: DomId) -> Result<()> =
                SetTarget { domain, target };

            /// Drops all watches and transactions of this *domain's* connection. These include
            /// other programs' if they share the kernel's device.
            ///
            /// # Errors
            ///
            /// Those of any request.
            fn reset_watches() -> Result<()> = ResetWatches {};

            /// Sends a command to the daemon itself and returns what it prints. The commands depend
            /// on the daemon; `help` lists them.
            ///
            /// # Errors
            ///
            /// Those of any request; [`Invalid::Nul`](crate::Invalid::Nul).
            #[doc(alias = "xs_control_command")]
            #[doc(alias = "xs_debug_command")]
            fn control(command: &str, arguments: &[&str]) -> Result<String> =
                Control { command, arguments };

            /// Returns the protocol features the daemon offers this domain, as bits
            /// (`docs/misc/xenstore-ring.txt`). Bits that are unknown to this crate are kept.
            ///
            /// # Errors
            ///
            /// [`Error::NotOffered`](crate::Error::NotOffered) from daemons before Xen 4.21.
            #[doc(alias = "xs_get_features_supported")]
            fn features() -> Result<u32> = GetFeatures { domain: None };

            /// Returns the protocol features the daemon offers `domain`. For domain 0.
            ///
            /// # Errors
            ///
            /// As [`features`](Self::features); `ENOENT` if there is no such domain; `EACCES` if
            /// this domain is not privileged.
            #[doc(alias = "xs_get_features_domain")]
            fn features_of(domain: DomId) -> Result<u32> = GetFeatures { domain: Some(domain) };

            /// Limits the protocol features offered to `domain`, before it is introduced. For
            /// domain 0.
            ///
            /// # Errors
            ///
            /// [`Error::Daemon`](crate::Error::Daemon): `EBUSY` if the domain is introduced
            /// already; `EINVAL` for a feature that the daemon does not have; otherwise as
            /// [`features_of`](Self::features_of).
            #[doc(alias = "xs_set_features_domain")]
            fn set_features(domain: DomId, features: u32) -> Result<()> =
                SetFeatures { domain, features };

            /// Returns the names of the daemon's quotas. For domain 0.
            ///
            /// # Errors
            ///
            /// [`Error::NotOffered`](crate::Error::NotOffered) from daemons before Xen 4.21;
            /// [`Error::Daemon`](crate::Error::Daemon): `EACCES` if this domain is not privileged.
            #[doc(alias = "xs_get_quota_names")]
            fn quota_names() -> Result<Vec<String>> = GetQuotaNames {};

            /// Returns a quota of `domain`, or the default for new domains; `None` is no limit.
            /// For domain 0.
            ///
            /// # Errors
            ///
            /// [`Error::Daemon`](crate::Error::Daemon): `EINVAL` if there is no such quota;
            /// `ENOENT` if there is no such domain; otherwise as
            /// [`quota_names`](Self::quota_names).
            #[doc(alias = "xs_get_global_quota")]
            #[doc(alias = "xs_get_domain_quota")]
            fn quota(domain: Option<DomId>, name: &str) -> Result<Option<NonZeroU32>> =
                GetQuota { domain, name };

            /// Changes a quota of `domain`, or the default for new domains; `None` is no limit.
            /// For domain 0.
            ///
            /// # Errors
            ///
            /// As [`quota`](Self::quota).
            #[doc(alias = "xs_set_global_quota")]
            #[doc(alias = "xs_set_domain_quota")]
            fn set_quota(
                domain: Option<DomId>,
                name: &str,
                limit: Option<NonZeroU32>
            ) -> Result<()> =
                SetQuota { domain, name, limit };
        }
    };
}

pub(crate) use {change_operations, domain_operations, read_operations};

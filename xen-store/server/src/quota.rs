//! Limits on what a domain may use.

/// How much of the store an unprivileged domain may use. Zero is no limit.
///
/// The defaults are those of xenstored 4.17, and so is the point at which each limit applies (some
/// admit one more than their number). Domain 0 is not limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Nodes it owns; the next one fails with `ENOSPC`.
    pub nodes: u32,
    /// Watches; one more than this is admitted, the next fails with `E2BIG`.
    pub watches: u32,
    /// Transactions at a time; one more than this is admitted, the next fails with `ENOSPC`.
    pub transactions: u32,
    /// Bytes of one node with value, child names, permissions and 24 of overhead; a node of this
    /// size fails with `ENOSPC`.
    pub node_size: u32,
    /// Entries in a permission list; more fail with `ENOSPC`.
    pub permissions: u32,
    /// Nodes a transaction may touch; more fail with `ENOSPC` and the transaction cannot be
    /// committed.
    pub transaction_nodes: u32,
    /// Bytes of all its nodes and watches; more fail with `ENOMEM`.
    pub memory: u32,
}

impl Default for Quota {
    fn default() -> Self {
        Self {
            nodes: 1000,
            watches: 128,
            transactions: 10,
            node_size: 2048,
            permissions: 5,
            transaction_nodes: 1024,
            memory: 2_621_440,
        }
    }
}

impl Quota {
    /// Name on the wire, current value, place to change it.
    fn fields(&mut self) -> [(&'static str, &mut u32, &'static str); 7] {
        [
            ("nodes", &mut self.nodes, "Nodes per domain"),
            ("watches", &mut self.watches, "Watches per domain"),
            (
                "transactions",
                &mut self.transactions,
                "Transactions per domain",
            ),
            ("node-size", &mut self.node_size, "Maximum size of a node"),
            (
                "permissions",
                &mut self.permissions,
                "Number of permissions per node",
            ),
            (
                "transaction-nodes",
                &mut self.transaction_nodes,
                "Max. number of accessed nodes",
            ),
            ("memory", &mut self.memory, "Total memory per domain"),
        ]
    }

    pub(crate) fn names() -> String {
        Self::default().fields().map(|(name, ..)| name).join(" ")
    }

    pub(crate) fn get(mut self, name: &[u8]) -> Option<u32> {
        self.fields()
            .into_iter()
            .find(|field| field.0.as_bytes() == name)
            .map(|field| *field.1)
    }

    pub(crate) fn set(&mut self, name: &[u8], value: u32) -> bool {
        let field = self
            .fields()
            .into_iter()
            .find(|field| field.0.as_bytes() == name);
        field.map(|field| *field.1 = value).is_some()
    }

    /// One line per quota, as CONTROL `quota` prints them.
    pub(crate) fn report(mut self) -> String {
        let line = |(name, value, about): (&str, &mut u32, &str)| {
            format!("{name:<17}: {value:>8} {about}\n")
        };
        self.fields().map(line).concat()
    }
}

/// Whether `used` has reached `limit`; never if there is none.
pub(crate) fn reached(used: u64, limit: u32) -> bool {
    limit != 0 && used >= u64::from(limit)
}

/// Whether `used` is beyond `limit`; never if there is none.
pub(crate) fn exceeded(used: u64, limit: u32) -> bool {
    limit != 0 && used > u64::from(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_no_limit() {
        assert!(reached(5, 5) && !reached(4, 5) && !reached(u64::MAX, 0));
        assert!(exceeded(6, 5) && !exceeded(5, 5) && !exceeded(u64::MAX, 0));
    }

    #[test]
    fn quotas_are_found_by_name() {
        let mut quota = Quota::default();
        assert_eq!(quota.get(b"nodes"), Some(1000));
        assert!(quota.set(b"nodes", 7) && !quota.set(b"what", 7));
        assert_eq!(quota.nodes, 7);
        assert_eq!(quota.get(b"what"), None);
    }
}

//! The differences that are known, with their reasons. `docs/xen-store.md` has the same list.

use xen_store::StorePath;

use crate::script::Line;

/// The two sides that differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Between {
    /// Our client and libxenstore, on one daemon.
    Clients,
    /// The embedded daemon and xenstored 4.17, with our client.
    Daemons,
}

/// A known difference.
#[derive(Clone, Copy, Debug)]
pub struct Difference {
    /// The sides.
    pub between: Between,
    /// Why it is permitted.
    pub reason: &'static str,
    /// Returns whether a line's two answers are an instance of it.
    pub is_it: fn(&Line, &str, &str) -> bool,
}

/// The list.
pub const DIFFERENCES: &[Difference] = &[Difference {
    between: Between::Clients,
    reason: "of a request with several faults, an invalid path among them, ours names the path \
             (EINVAL); libxenstore or the daemon may name another",
    is_it: |line, ours, c| {
        let is_one_of_each = |answers: &str| answers.split(", ").count() == line.answers();
        let mut pairs = ours.split(", ").zip(c.split(", "));
        let mut paths = line.paths().into_iter();
        let is_path = |pair: (&str, &str)| {
            let is_valid = paths.next().is_none_or(|path| StorePath::new(path).is_ok());
            pair.0 == pair.1 || !is_valid && pair.0 == EINVAL && pair.1.starts_with('E')
        };
        is_one_of_each(ours) && is_one_of_each(c) && pairs.all(is_path)
    },
}];

const EINVAL: &str = "E22";

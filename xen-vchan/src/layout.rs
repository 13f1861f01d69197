//! Where everything lies in the shared control page, and which ring sizes can go together.
//!
//! ```text
//! byte 0    left.cons   u32   moved by the server (it reads `left`)
//!      4    left.prod   u32   moved by the client (it writes `left`)
//!      8    right.cons  u32   moved by the client
//!      12   right.prod  u32   moved by the server
//!      16   left_order  u16   log2 of the ring's bytes, constant once published
//!      18   right_order u16
//!      20   cli_live    u8    2 no client yet, 1 connected, 0 gone
//!      21   srv_live    u8
//!      22   cli_notify  u8    what the server asks the client to announce
//!      23   srv_notify  u8    what the client asks the server to announce
//!      24   grants[]    u32   pages of `left`, then pages of `right`
//!      1024 a ring of 1024 bytes, if an order is 10
//!      2048 a ring of 2048 bytes, if an order is 11
//! ```
//!
//! The names are those of the public header `xen/include/public/io/libxenvchan.h`; *left* carries
//! bytes from the client to the server and *right* the other way. All integers are in the byte
//! order of the machine, which both domains share.
//!
//! A [`Geometry`] is the proof that two orders fit together: only [`Geometry::new`] makes it, from
//! values read once, and all later code uses the private copy.

use crate::Violation;

/// Bytes of a page, and of the control page.
pub(crate) const PAGE: usize = 4096;
/// Offset of `left.cons`; `left.prod` follows.
pub(crate) const LEFT: usize = 0;
/// Offset of `right.cons`; `right.prod` follows.
pub(crate) const RIGHT: usize = 8;
/// Distance from a ring's `cons` to its `prod`.
pub(crate) const PROD: usize = 4;
/// Offset of `left_order`.
pub(crate) const LEFT_ORDER: usize = 16;
/// Offset of `right_order`.
pub(crate) const RIGHT_ORDER: usize = 18;
/// Offset of `cli_live`.
pub(crate) const CLI_LIVE: usize = 20;
/// Offset of `srv_live`.
pub(crate) const SRV_LIVE: usize = 21;
/// Offset of `cli_notify`.
pub(crate) const CLI_NOTIFY: usize = 22;
/// Offset of `srv_notify`.
pub(crate) const SRV_NOTIFY: usize = 23;
/// Offset of the grant list.
pub(crate) const GRANTS: usize = 24;

/// Order of the small in-page ring.
const SMALL: u16 = 10;
/// Order of the large in-page ring.
const LARGE: u16 = 11;
/// Order of one page.
const PAGE_ORDER: u16 = 12;
/// The largest order; with two of them the grant list still fits the control page.
const MAX_ORDER: u16 = 20;

/// How many bytes a ring must hold at least.
///
/// The ring that is made is the next power of two from 4 KiB (one page) to 1 MiB, or one of the two
/// rings inside the control page (1024 and 2048 bytes) when the sizes asked for allow it, exactly
/// as `libxenvchan_server_init` chooses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RingSize(usize);

impl RingSize {
    /// The smallest ring, without a page beyond the control page where possible.
    pub const SMALLEST: Self = Self(0);
    /// The largest ring the protocol can describe, 1 MiB.
    pub const LARGEST: Self = Self(1 << MAX_ORDER);

    /// Creates a ring size of at least `bytes` bytes. `publish` fails for more than
    /// [`RingSize::LARGEST`].
    #[must_use]
    pub const fn at_least(bytes: usize) -> Self {
        Self(bytes)
    }

    /// Returns the number of bytes asked for.
    #[must_use]
    pub const fn bytes(self) -> usize {
        self.0
    }
}

impl From<usize> for RingSize {
    fn from(bytes: usize) -> Self {
        Self(bytes)
    }
}

/// Where the bytes of one ring are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Inside the control page, at this offset.
    InPage {
        /// Offset from the start of the control page, in bytes.
        offset: usize,
    },
    /// In granted pages listed in the control page.
    Pages {
        /// Index of the first entry in the grant list.
        first: usize,
        /// How many pages of 4096 bytes.
        count: usize,
    },
}

/// Two ring sizes that fit together and beside their grant list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    left: u16,
    right: u16,
}

impl Geometry {
    /// Checks two orders as read from a control page.
    ///
    /// # Errors
    ///
    /// * [`Violation::Order`]: an order outside 10..=20, or both rings in the same place of the
    ///   page.
    /// * [`Violation::GrantList`]: the grant list would run into an in-page ring. libxenvchan does
    ///   not make this check (a 1 KiB ring beside a 1 MiB one puts the last six grants inside the
    ///   small ring).
    pub const fn new(left: u16, right: u16) -> Result<Self, Violation> {
        let in_range = left >= SMALL && left <= MAX_ORDER && right >= SMALL && right <= MAX_ORDER;
        if !in_range || (left == right && left < PAGE_ORDER) {
            return Err(Violation::Order { left, right });
        }
        let this = Self { left, right };
        let end = GRANTS + 4 * this.grants();
        let limit = if left == SMALL || right == SMALL {
            1 << SMALL
        } else if left == LARGE || right == LARGE {
            1 << LARGE
        } else {
            PAGE
        };
        if end > limit {
            return Err(Violation::GrantList {
                left,
                right,
                end,
                limit,
            });
        }
        Ok(this)
    }

    /// Returns the choice of `libxenvchan_server_init` for these sizes; `None` above 1 MiB.
    ///
    /// Sizes of 0 and 0 give the rings of 1024 (`left`) and 2048 bytes (`right`) in the control
    /// page.
    #[must_use]
    pub fn choose(left: RingSize, right: RingSize) -> Option<Self> {
        if left > RingSize::LARGEST || right > RingSize::LARGEST {
            return None;
        }
        let (small, large) = (1 << SMALL, 1 << LARGE);
        let (l, r) = if left.0 <= small && right.0 <= large {
            (SMALL, LARGE)
        } else if left.0 <= large && right.0 <= small {
            (LARGE, SMALL)
        } else if left.0 <= large {
            (LARGE, whole_pages(right.0))
        } else if right.0 <= large {
            (whole_pages(left.0), LARGE)
        } else {
            (whole_pages(left.0), whole_pages(right.0))
        };
        Self::new(l, r).ok()
    }

    /// Returns the orders `(left, right)`, log2 of the rings' bytes.
    #[must_use]
    pub const fn orders(self) -> (u16, u16) {
        (self.left, self.right)
    }

    /// Returns the size in bytes of the ring from client to server.
    #[must_use]
    pub const fn left_bytes(self) -> u32 {
        1 << self.left
    }

    /// Returns the size in bytes of the ring from server to client.
    #[must_use]
    pub const fn right_bytes(self) -> u32 {
        1 << self.right
    }

    /// Returns where `left` is.
    #[must_use]
    pub const fn left_place(self) -> Place {
        place(self.left, 0)
    }

    /// Returns where `right` is.
    #[must_use]
    pub const fn right_place(self) -> Place {
        place(self.right, pages(self.left))
    }

    /// Returns how many entries the grant list has, at most 512.
    #[must_use]
    pub const fn grants(self) -> usize {
        pages(self.left) + pages(self.right)
    }
}

const fn pages(order: u16) -> usize {
    if order < PAGE_ORDER {
        0
    } else {
        1 << (order - PAGE_ORDER)
    }
}

const fn place(order: u16, first: usize) -> Place {
    match order {
        SMALL => Place::InPage { offset: 1 << SMALL },
        LARGE => Place::InPage { offset: 1 << LARGE },
        _ => Place::Pages {
            first,
            count: pages(order),
        },
    }
}

fn whole_pages(bytes: usize) -> u16 {
    let mut order = PAGE_ORDER;
    while bytes > 1 << order {
        order += 1;
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(left: u16, right: u16) -> Result<(u16, u16), Violation> {
        Geometry::new(left, right).map(Geometry::orders)
    }

    #[test]
    fn every_pair_of_orders_is_either_disjoint_or_refused() {
        for left in 0..=40 {
            for right in 0..=40 {
                let Ok(geometry) = Geometry::new(left, right) else {
                    continue;
                };
                // Mark each byte of the control page once; two owners would be an overlap.
                let mut page = [false; PAGE];
                let mut take = |from: usize, len: usize| {
                    for byte in &mut page[from..from + len] {
                        assert!(!*byte, "overlap with orders {left} and {right}");
                        *byte = true;
                    }
                };
                take(0, GRANTS);
                take(GRANTS, 4 * geometry.grants());
                for (place, bytes) in [
                    (geometry.left_place(), geometry.left_bytes()),
                    (geometry.right_place(), geometry.right_bytes()),
                ] {
                    match place {
                        Place::InPage { offset } => take(offset, bytes as usize),
                        Place::Pages { count, .. } => assert_eq!(count * PAGE, bytes as usize),
                    }
                }
            }
        }
    }

    #[test]
    fn the_overlap_libxenvchan_misses_is_refused() {
        for (left, right) in [(10, 20), (20, 10)] {
            assert_eq!(
                check(left, right),
                Err(Violation::GrantList {
                    left,
                    right,
                    end: 1048,
                    limit: 1024
                })
            );
        }
        assert!(check(11, 20).is_ok());
        assert!(check(10, 19).is_ok());
        assert!(check(20, 20).is_ok());
    }

    #[test]
    fn orders_outside_the_protocol_are_refused() {
        for (left, right) in [
            (0, 12),
            (9, 12),
            (12, 21),
            (65535, 12),
            (10, 10),
            (11, 11),
            (12, 9),
        ] {
            assert_eq!(check(left, right), Err(Violation::Order { left, right }));
        }
    }

    #[test]
    fn sizes_choose_the_rings_libxenvchan_would() {
        let choose = |l, r| {
            Geometry::choose(RingSize::at_least(l), RingSize::at_least(r))
                .unwrap()
                .orders()
        };
        assert_eq!(choose(0, 0), (10, 11));
        assert_eq!(choose(1024, 2048), (10, 11));
        assert_eq!(choose(1025, 1024), (11, 10));
        assert_eq!(choose(1025, 1025), (11, 12));
        assert_eq!(choose(2049, 0), (12, 11));
        assert_eq!(choose(4096, 4097), (12, 13));
        assert_eq!(choose(0, 1 << 20), (11, 20));
        assert_eq!(choose(1 << 20, 1 << 20), (20, 20));
        assert_eq!(
            Geometry::choose(RingSize::at_least((1 << 20) + 1), RingSize::SMALLEST),
            None
        );
    }
}

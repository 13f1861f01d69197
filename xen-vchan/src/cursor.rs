//! Arithmetic on the free-running 32-bit cursors of a ring, and nothing else.
//!
//! A cursor counts bytes since the ring was made and wraps at 2^32; the ring's size is a power of
//! two no larger than 1 MiB, so a distance between two honest cursors is always far below the wrap.
//!
//! ```text
//!        cons            prod                  prod - cons         bytes to be read
//!   ──────┼───────────────┼──────────▶         size - (prod-cons)  bytes of space
//! ```
//!
//! Only the two `accept_*` functions judge a cursor that the other domain wrote. A cursor that they
//! accept moves forward only, and never beyond what this side has recorded.

/// The bytes between `cons` and `prod`.
#[inline]
pub(crate) const fn filled(prod: u32, cons: u32) -> u32 {
    prod.wrapping_sub(cons)
}

/// Judges a producer cursor just read: `Some(bytes ready)` if it may be believed.
///
/// `seen` is the last believed value, `cons` our own cursor. The new value must not take bytes back
/// and must not claim more than the ring holds.
#[inline]
pub(crate) const fn accept_prod(new: u32, seen: u32, cons: u32, size: u32) -> Option<u32> {
    let ready = filled(new, cons);
    if ready <= size && ready >= filled(seen, cons) {
        Some(ready)
    } else {
        None
    }
}

/// Judges a consumer cursor just read: `Some(bytes still unread)` if it may be believed.
///
/// `seen` is the last believed value, `prod` what we published. The new value must not put bytes
/// back and must not have read what was never published.
#[inline]
pub(crate) const fn accept_cons(new: u32, seen: u32, prod: u32) -> Option<u32> {
    let unread = filled(prod, new);
    if unread <= filled(prod, seen) {
        Some(unread)
    } else {
        None
    }
}

/// Where `len` bytes from `cursor` on lie: offset, bytes up to the ring's end, bytes at its start.
#[inline]
pub(crate) const fn parts(cursor: u32, len: u32, size: u32) -> (usize, usize, usize) {
    let at = cursor & (size - 1);
    let to_end = size - at;
    if len <= to_end {
        (at as usize, len as usize, 0)
    } else {
        (at as usize, to_end as usize, (len - to_end) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZES: [u32; 5] = [1 << 10, 1 << 11, 1 << 12, 1 << 16, 1 << 20];

    proptest! {
        #[test]
        fn an_accepted_producer_moved_forward_and_fits(
            cons: u32, had in 0u32..=1 << 20, new: u32, size in prop::sample::select(&SIZES[..]),
        ) {
            let seen = cons.wrapping_add(had.min(size));
            match accept_prod(new, seen, cons, size) {
                Some(ready) => {
                    prop_assert!(ready <= size);
                    prop_assert_eq!(cons.wrapping_add(ready), new);
                    prop_assert!(u64::from(new.wrapping_sub(seen)) <= u64::from(size));
                }
                None => prop_assert!(
                    new.wrapping_sub(cons) > size || new.wrapping_sub(cons) < seen.wrapping_sub(cons)
                ),
            }
        }

        #[test]
        fn an_honest_producer_is_accepted(
            cons: u32, had in 0u32..=1 << 20, more in 0u32..=1 << 20, size in prop::sample::select(&SIZES[..]),
        ) {
            let had = had.min(size);
            let now = had + more.min(size - had);
            let seen = cons.wrapping_add(had);
            prop_assert_eq!(accept_prod(cons.wrapping_add(now), seen, cons, size), Some(now));
        }

        #[test]
        fn an_accepted_consumer_read_only_what_was_there(prod: u32, unread in 0u32..=1 << 20, new: u32) {
            let seen = prod.wrapping_sub(unread);
            match accept_cons(new, seen, prod) {
                Some(left) => {
                    prop_assert!(left <= unread);
                    prop_assert_eq!(new.wrapping_add(left), prod);
                }
                None => prop_assert!(new.wrapping_sub(seen) > unread),
            }
        }

        #[test]
        fn parts_cover_the_bytes_once(cursor: u32, len in 0u32..=1 << 20, size in prop::sample::select(&SIZES[..])) {
            let len = len.min(size);
            let (at, first, second) = parts(cursor, len, size);
            prop_assert_eq!(first + second, len as usize);
            prop_assert!(at + first <= size as usize);
            prop_assert!(second <= at);
            prop_assert_eq!(at, (cursor % size) as usize);
        }
    }
}

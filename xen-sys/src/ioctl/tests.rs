//! The checks before a request reaches a driver.

use std::cell::Cell;

use super::*;
use crate::DomId;

/// A node of no Xen driver, on which every request fails.
pub(super) fn null<D>() -> Node<D> {
    let file = DevRoot::at("/dev").open_device("null").unwrap().into();
    Node {
        file,
        driver: PhantomData,
    }
}

/// A driver in place of the kernel's: takes the argument of a request of variable length, and
/// either fails with an errno or overwrites it.
type Driver = fn(Opcode, &mut [u8]) -> std::result::Result<(), i32>;

thread_local! {
    static FAKE: Cell<Option<Driver>> = const { Cell::new(None) };
}

/// Runs `body` with `driver` behind every node of this thread.
pub(super) fn with_fake_driver<T>(driver: Driver, body: impl FnOnce() -> T) -> T {
    FAKE.set(Some(driver));
    let result = body();
    FAKE.set(None);
    result
}

/// Calls the fake driver, if there is one.
pub(super) fn fake_driver(
    name: &'static str,
    opcode: Opcode,
    argument: &mut [u8],
) -> Option<Result<()>> {
    let answer = FAKE.get()?(opcode, argument);
    Some(answer.map_err(|errno| Error::os(name, io::Error::from_raw_os_error(errno))))
}

#[test]
fn errors_carry_the_c_name_of_the_request() {
    let e = set(&null(), &abi::evtchn::Notify { port: 1 }).unwrap_err();
    assert_eq!(e.errno(), Some(libc::ENOTTY));
    assert!(e.to_string().starts_with("IOCTL_EVTCHN_NOTIFY: "), "{e}");
}

#[test]
fn what_follows_a_head_has_the_length_in_the_head() {
    let head = abi::gntdev::MapGrantRefHead {
        count: 3,
        pad: 0,
        index: 0,
    };
    let mut len = 0;
    exchange(&null(), head, |tail| len = tail.len()).unwrap_err();
    assert_eq!(len, 24);
    let head = abi::gntalloc::AllocGrefHead {
        domid: DomId::DOM0,
        flags: abi::gntalloc::AllocFlags::empty(),
        count: 3,
        index: 0,
    };
    exchange(&null(), head, |tail| len = tail.len()).unwrap_err();
    assert_eq!(len, 12);
}

#[test]
fn page_counts_are_bounded_before_anything_is_allocated() {
    for pages in [0, MAX_PAGES + 1, usize::MAX] {
        assert!(
            matches!(checked_count("x", pages), Err(Error::Invalid { .. })),
            "{pages}"
        );
    }
    assert_eq!(checked_count("x", MAX_PAGES).unwrap(), 1 << 16);
}

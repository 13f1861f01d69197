//! Grant copies: the segments, and Xen's status of each.
//!
//! A [`CopySegment`] is the driver's own struct, so that a slice of them is passed on as it is.
//!
//! # Safety
//!
//! This file is not safe code because a segment has the address of memory of this process, which
//! the kernel reads or writes. Its three constructors make that the address of a slice which the
//! segment borrows until its end, mutably if it is the destination.

#![allow(unsafe_code)]

use std::fmt;
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::ptr;

use super::gntdev::GntDevDriver;
use super::{Node, checked_count, ioctl};
use crate::abi::gntdev as abi;
use crate::{DomId, Error, GrantRef, PAGE_SIZE, Result};

const NAME: &str = "IOCTL_GNTDEV_GRANT_COPY";

/// The status of a segment that has none from Xen: Xen's are not positive.
const NO_STATUS: i16 = i16::MAX;

/// [`abi::GrantCopySegment::pad`], which the driver does not touch, of a segment that can be
/// copied.
const WITHIN_PAGE: u16 = 0;
/// The same of one that begins behind the end of a page, at the offset `source`.
const BAD_OFFSET: u16 = 1;
/// The same of one that ends behind the end of a page, and is `source` bytes long.
const BAD_LENGTH: u16 = 2;

/// One copy: its two ends, and Xen's status of it.
#[derive(Debug)]
#[repr(transparent)]
pub struct CopySegment<'b> {
    raw: abi::GrantCopySegment,
    /// The memory of this process that the kernel reads or writes.
    bytes: PhantomData<&'b mut [u8]>,
}

/// A place in a page that another domain granted to this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantedBytes {
    /// The granting domain.
    pub domain: DomId,
    /// Its reference.
    pub gref: GrantRef,
    /// The offset in the page, in bytes.
    pub offset: usize,
}

impl GrantedBytes {
    /// Returns the place as the driver takes it, if `len` bytes from it are within the page;
    /// otherwise the reason, as a value of `pad`, and the number that is too large.
    fn word(self, len: usize) -> std::result::Result<u64, (u16, usize)> {
        if self.offset > PAGE_SIZE {
            return Err((BAD_OFFSET, self.offset));
        }
        if len > PAGE_SIZE - self.offset {
            return Err((BAD_LENGTH, len));
        }
        let place = abi::GrantCopyForeign {
            gref: self.gref.as_u32(),
            offset: self.offset as u16,
            domid: self.domain.as_u16(),
        };
        Ok(zerocopy::transmute!(place))
    }

    /// The place in a word that [`word`](Self::word) made.
    #[cfg(feature = "sim")]
    fn of(word: u64) -> Self {
        let place: abi::GrantCopyForeign = zerocopy::transmute!(word);
        Self {
            domain: DomId::new(place.domid),
            gref: GrantRef::new(place.gref),
            offset: place.offset.into(),
        }
    }
}

impl<'b> CopySegment<'b> {
    /// Copies from a granted page to private memory. If the other domain writes there meanwhile,
    /// the bytes are any mixture of old and new.
    #[must_use]
    pub fn read(from: GrantedBytes, into: &'b mut [u8]) -> Self {
        let (dest, len) = (into.as_mut_ptr() as u64, into.len());
        let source = from.word(len);
        Self::new(source, Ok(dest), len, abi::GNTCOPY_SOURCE_GREF)
    }

    /// Copies from private memory to a granted page.
    #[must_use]
    pub fn write(from: &'b [u8], to: GrantedBytes) -> Self {
        let (source, len) = (from.as_ptr() as u64, from.len());
        Self::new(Ok(source), to.word(len), len, abi::GNTCOPY_DEST_GREF)
    }

    /// Copies `len` bytes from one granted page to another.
    #[must_use]
    pub fn between(from: GrantedBytes, to: GrantedBytes, len: usize) -> Self {
        let flags = abi::GNTCOPY_SOURCE_GREF | abi::GNTCOPY_DEST_GREF;
        Self::new(from.word(len), to.word(len), len, flags)
    }

    fn new(
        source: std::result::Result<u64, (u16, usize)>,
        dest: std::result::Result<u64, (u16, usize)>,
        len: usize,
        flags: u16,
    ) -> Self {
        let raw = match (source, dest) {
            (Ok(source), Ok(dest)) => abi::GrantCopySegment {
                source,
                dest,
                // Not more than a page, as `word` has checked.
                len: len as u16,
                flags,
                status: NO_STATUS,
                pad: WITHIN_PAGE,
            },
            // Without an address.
            (Err((pad, value)), _) | (_, Err((pad, value))) => abi::GrantCopySegment {
                source: value as u64,
                status: NO_STATUS,
                pad,
                ..abi::GrantCopySegment::default()
            },
        };
        Self {
            raw,
            bytes: PhantomData,
        }
    }

    /// Returns Xen's status of this segment; `None` before the copy, and after a copy that failed
    /// as a whole.
    #[must_use]
    pub fn status(&self) -> Option<GrantStatus> {
        (self.raw.status != NO_STATUS).then_some(GrantStatus(self.raw.status))
    }

    fn check(&self) -> Result<()> {
        let what = match self.raw.pad {
            WITHIN_PAGE => return Ok(()),
            BAD_OFFSET => "the offset in a page",
            _ => "the length of a segment",
        };
        Err(Error::Invalid {
            op: NAME,
            what,
            value: self.raw.source,
        })
    }
}

/// The two ends of a copy that a simulated host makes.
#[cfg(feature = "sim")]
#[doc(hidden)]
#[derive(Debug)]
pub enum CopyEnds<'s> {
    /// From a granted page.
    Read(GrantedBytes, &'s mut [u8]),
    /// To a granted page.
    Write(&'s [u8], GrantedBytes),
    /// From one granted page to another, with the number of bytes.
    Between(GrantedBytes, GrantedBytes, usize),
}

#[cfg(feature = "sim")]
impl CopySegment<'_> {
    /// For xen-gnttab, which copies through mappings on a simulated host: removes the status of
    /// each segment, and checks them as a driver's copy does.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`], as [`GntDev::grant_copy`](super::GntDev::grant_copy).
    #[doc(hidden)]
    pub fn prepare(segments: &mut [Self]) -> Result<()> {
        prepare(segments).map(drop)
    }

    /// For xen-gnttab: the ends.
    #[doc(hidden)]
    #[must_use]
    pub fn ends(&mut self) -> CopyEnds<'_> {
        let (source, dest, len) = (self.raw.source, self.raw.dest, usize::from(self.raw.len));
        match self.raw.flags {
            abi::GNTCOPY_SOURCE_GREF => {
                let at = ptr::with_exposed_provenance_mut(dest as usize);
                // SAFETY: by `read`, the only constructor with this flag alone, the address and the
                // length are those of a slice that `self` borrows mutably, and whose provenance the
                // cast there has exposed; it is lent on for as long as `self` is.
                CopyEnds::Read(GrantedBytes::of(source), unsafe {
                    std::slice::from_raw_parts_mut(at, len)
                })
            }
            abi::GNTCOPY_DEST_GREF => {
                let at = ptr::with_exposed_provenance(source as usize);
                // SAFETY: by `write`, the only constructor with this flag alone, the address and
                // the length are those of a slice that `self` borrows, and whose provenance the
                // cast there has exposed.
                let from = unsafe { std::slice::from_raw_parts(at, len) };
                CopyEnds::Write(from, GrantedBytes::of(dest))
            }
            _ => CopyEnds::Between(GrantedBytes::of(source), GrantedBytes::of(dest), len),
        }
    }

    /// For xen-gnttab: gives the segment its status.
    #[doc(hidden)]
    pub fn set_status(&mut self, status: GrantStatus) {
        self.raw.status = status.0;
    }
}

/// Removes the status of each segment and checks them; returns how many there are.
fn prepare(segments: &mut [CopySegment<'_>]) -> Result<u32> {
    for segment in segments.iter_mut() {
        segment.raw.status = NO_STATUS;
    }
    segments.iter().try_for_each(CopySegment::check)?;
    checked_count(NAME, segments.len())
}

/// Copies segments; each has Xen's status of it afterwards, or none after an error.
pub(super) fn copy(node: &Node<GntDevDriver>, segments: &mut [CopySegment<'_>]) -> Result<()> {
    let mut call = abi::GrantCopy {
        count: prepare(segments)?,
        pad: 0,
        segments: segments.as_mut_ptr() as u64,
    };
    // SAFETY: the node is gntdev's, whose driver for this request reads one `GrantCopy`, which
    // `call` is, and reads `count` segments at the address in it and writes their status, which
    // `segments` has and lends mutably; a `CopySegment` is a `GrantCopySegment` (transparent).
    // `prepare` let none pass but those of `CopySegment::new`'s first arm: an end without a flag is
    // the address of a slice of `len` bytes that the segment still borrows, mutably if it is the
    // destination, and the driver reads or writes these bytes only (gntdev_grant_copy_seg in
    // drivers/xen/gntdev.c).
    let done = unsafe {
        ioctl(
            node.file.as_fd(),
            NAME,
            abi::IOCTL_GNTDEV_GRANT_COPY,
            ptr::from_mut(&mut call).cast(),
        )
    };
    if done.is_err() {
        // The driver may have set the status of the first ones, of a batch that failed.
        for segment in segments {
            segment.raw.status = NO_STATUS;
        }
    }
    done.map(drop)
}

/// Xen's result of one operation on a grant: `GNTST_*`, xen/include/public/grant_table.h.
///
/// [`ok`](Self::ok) converts it to an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GrantStatus(i16);

macro_rules! statuses {
    ($($name:ident = $value:literal, $c:literal, $text:literal;)*) => {
        impl GrantStatus {
            $(
                #[doc = concat!("The ", $text, ".")]
                #[doc(alias = $c)]
                pub const $name: Self = Self($value);
            )*
        }

        impl fmt::Display for GrantStatus {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.0 {
                    $($value => f.write_str(concat!("the ", $text)),)*
                    other => write!(f, "grant status {other}"),
                }
            }
        }
    };
}

statuses! {
    OKAY = 0, "GNTST_okay", "operation was done";
    GENERAL_ERROR = -1, "GNTST_general_error", "operation failed for no stated reason";
    BAD_DOMAIN = -2, "GNTST_bad_domain", "domain does not exist";
    BAD_GREF = -3, "GNTST_bad_gntref", "reference is not granted to this domain";
    PERMISSION_DENIED = -8, "GNTST_permission_denied", "grant is for reading only";
    BAD_PAGE = -9, "GNTST_bad_page", "page cannot be copied";
    BAD_COPY_ARGUMENT = -10, "GNTST_bad_copy_arg", "bytes cross the end of a page";
    PAGED_OUT = -12, "GNTST_eagain", "page is paged out";
}

impl GrantStatus {
    /// Creates the status numbered `value`.
    #[must_use]
    pub const fn new(value: i16) -> Self {
        Self(value)
    }

    /// Returns the number.
    #[must_use]
    pub const fn as_i16(self) -> i16 {
        self.0
    }

    /// Returns whether the operation was done.
    #[must_use]
    pub const fn is_okay(self) -> bool {
        self.0 == 0
    }

    /// Converts every status but [`OKAY`](Self::OKAY) to an error.
    ///
    /// # Errors
    ///
    /// The status itself.
    pub const fn ok(self) -> std::result::Result<(), Self> {
        if self.is_okay() { Ok(()) } else { Err(self) }
    }
}

impl std::error::Error for GrantStatus {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_that_crosses_the_end_of_a_page_has_no_address_and_names_the_number() {
        let at = |offset| GrantedBytes {
            domain: DomId::new(3),
            gref: GrantRef::new(9),
            offset,
        };
        let mut bytes = [0; 2];
        for (segment, value) in [
            (CopySegment::read(at(PAGE_SIZE - 1), &mut bytes), 2),
            (CopySegment::write(b"abc", at(PAGE_SIZE + 1)), 4097),
            (CopySegment::between(at(0), at(usize::MAX), 1), u64::MAX),
            (CopySegment::between(at(1), at(0), usize::MAX), u64::MAX),
        ] {
            let raw = &segment.raw;
            assert_eq!((raw.dest, raw.len, raw.flags), (0, 0, 0));
            match prepare(&mut [segment]).unwrap_err() {
                Error::Invalid { value: named, .. } => assert_eq!(named, value),
                other => panic!("{other}"),
            }
        }
    }

    #[test]
    fn a_status_of_an_earlier_copy_does_not_outlive_a_refusal() {
        let at = GrantedBytes {
            domain: DomId::new(3),
            gref: GrantRef::new(9),
            offset: 0,
        };
        let mut segment = [CopySegment::between(at, at, 1)];
        segment[0].raw.status = GrantStatus::OKAY.0;
        let null = super::super::tests::null();
        let error = copy(&null, &mut segment).unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOTTY));
        assert_eq!(segment[0].status(), None);
    }
}

//! The program's own machine code, of which an idle process keeps mapped only what it is idle with.
//!
//! A start uses most of the program: the command line, the policy, the store. Those pages belong to
//! the program's file and are one copy for all processes, but while a process has them mapped, dom0
//! cannot have them back cheaply, and each process's resident size counts them.
//!
//! # Safety
//! The pages are given up by `madvise`, which is unsafe because memory can lose what was written to
//! it. Machine code is never written to, so nothing can be lost.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::ops::Range;
use std::ptr::with_exposed_provenance_mut;
use std::sync::OnceLock;

/// Addresses of the machine code, if it was found.
static TEXT: OnceLock<Option<Range<usize>>> = OnceLock::new();

/// Finds the machine code, for [`release`]. To be called before the process loses `/proc`.
pub fn find() {
    // A line at a time: what is read at once is kept by the allocator.
    let lines = |file| {
        BufReader::with_capacity(512, file)
            .lines()
            .map_while(Result::ok)
    };
    TEXT.get_or_init(|| text_in(lines(File::open("/proc/self/maps").ok()?)));
}

/// Unmaps the pages of the machine code; the kernel maps each again from the page cache when it is
/// run. Without [`find`] before it, or where the kernel refuses, nothing changes.
pub fn release() {
    if let Some(Some(text)) = TEXT.get() {
        let start = with_exposed_provenance_mut(text.start);
        // SAFETY:
        // - the range is one mapping of this process that held `find`'s own code, was private and
        //   could not be written to (`text_in`), and nothing unmaps or replaces it while the
        //   program runs;
        // - nothing has written to it either: the program never changes a mapping's rights to
        //   write code. Each page is the file's, and `MADV_DONTNEED` drops only the private copies
        //   of pages, of which there are none (but a debugger's breakpoints);
        // - a page that is used again is read from the same file, which the kernel lets nobody
        //   open for writing while it is run (`ETXTBSY`).
        unsafe { libc::madvise(start, text.len(), libc::MADV_DONTNEED) };
    }
}

/// The mapping that [`find`] is in, by the lines of `/proc/self/maps`.
fn text_in(mut maps: impl Iterator<Item = String>) -> Option<Range<usize>> {
    let here = find as fn() as usize;
    maps.find_map(|line| {
        // Start and end, rights.
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let address = |text| usize::from_str_radix(text, 16).ok();
        let range = address(start)?..address(end)?;
        (range.contains(&here) && rest.starts_with("r-xp ")).then_some(range)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_that_cannot_be_written_is_found() {
        let here = find as fn() as usize;
        let (start, end) = (here & !0xfff, (here & !0xfff) + 0x2000);
        let line =
            |rights: &str| format!("0-1000 r-xp 0 0:0 0\n{start:x}-{end:x} {rights} 0 0:0 0");
        let text_in = |text: &str| text_in(text.lines().map(str::to_owned));
        assert_eq!(text_in(&line("r-xp")), Some(start..end));
        for rights in ["rwxp", "r-xs", "r--p"] {
            assert_eq!(text_in(&line(rights)), None, "{rights}");
        }
        assert_eq!(text_in("garbage\n-\n1-2"), None);
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has neither /proc nor madvise")]
    fn the_program_goes_on_without_its_pages() {
        find();
        assert!(TEXT.get().is_some_and(Option::is_some));
        for _ in 0..100 {
            release();
            assert_eq!("a-b".split_once('-'), Some(("a", "b")));
        }
    }
}

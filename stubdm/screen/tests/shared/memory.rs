//! Memory that a frontend and a backend have mapped, each for itself.

use std::fs::File;

use xen_gnttab::{PageAccess, Region};

pub(crate) struct SharedMemory {
    pub(crate) file: File,
    /// The frontend's mapping.
    pub(crate) frontend: Region,
}

impl SharedMemory {
    pub(crate) fn new(len: usize) -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len as u64).unwrap();
        let frontend = Region::map_file(&file, len, PageAccess::ReadWrite).unwrap();
        Self { file, frontend }
    }

    /// A mapping for the backend.
    pub(crate) fn backend(&self) -> Region {
        let len = self.frontend.len();
        Region::map_file(&self.file, len, PageAccess::ReadWrite).unwrap()
    }

    pub(crate) fn put(&mut self, at: usize, number: u32) {
        self.frontend.copy_in(at, &number.to_le_bytes()).unwrap();
    }

    pub(crate) fn number(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        self.frontend.copy_out(at, &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }
}

//! A Debian package as a file (`deb(5)`): an ar archive of a version, the control files and the
//! data, both gzipped tars.
//!
//! Nothing of the machine that packs is in it: entries are sorted, owned by root and of one given
//! time, and neither gzip's nor ar's header has a name or a time. The same files make the same
//! bytes.

use std::io::Write;

use anyhow::{Context as _, Result, bail};
use flate2::{Compression, GzBuilder};
use stubdm_image::cpio::{Archive, Node};
use tar::{EntryType, Header};

/// Writes a package.
pub(super) fn write(
    out: &mut dyn Write,
    control: &Archive,
    data: &Archive,
    time: u64,
) -> Result<()> {
    let mut ar = ar::Builder::new(out);
    for (name, bytes) in [
        ("debian-binary", b"2.0\n".to_vec()),
        ("control.tar.gz", tarball(control, time)?),
        ("data.tar.gz", tarball(data, time)?),
    ] {
        let size = u64::try_from(bytes.len())?;
        let mut header = ar::Header::new(name.into(), size);
        header.set_mode(0o100_644);
        header.set_mtime(time);
        ar.append(&header, bytes.as_slice()).context(name)?;
    }
    Ok(())
}

fn tarball(archive: &Archive, time: u64) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, node) in archive.nodes() {
        let mut header = Header::new_gnu();
        header.set_mtime(time);
        header.set_uid(0);
        header.set_gid(0);
        header.set_username("root")?;
        header.set_groupname("root")?;
        match node {
            Node::Dir => {
                header.set_entry_type(EntryType::Directory);
                header.set_mode(0o755);
                header.set_size(0);
                tar.append_data(&mut header, format!("{path}/"), std::io::empty())?;
            }
            Node::Link(to) => {
                header.set_entry_type(EntryType::Symlink);
                header.set_mode(0o777);
                header.set_size(0);
                tar.append_link(&mut header, path, to)?;
            }
            Node::File { mode, content } => {
                let bytes = content.read()?;
                header.set_mode(*mode);
                header.set_size(u64::try_from(bytes.len())?);
                tar.append_data(&mut header, path, bytes.as_slice())?;
            }
            Node::CharDevice { .. } => bail!("{path}: no package brings a device"),
        }
    }
    gzip(&tar.into_inner()?)
}

/// gzip without a name or a time.
pub(super) fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut out = GzBuilder::new().write(Vec::new(), Compression::best());
    out.write_all(bytes)?;
    Ok(out.finish()?)
}

//! `stubdm-run screenshot DOMID FILE.png`: a picture of the guest's screen, from the VNC server
//! that dom0's QEMU has for it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use stubdm_screen::{PIXEL, Size};
use xen_sys::DomId;

use crate::libxl::store::{StoreOptions, domid};
use crate::libxl::vnc::VncServer;
use crate::rt::error::{Context, Result};
use crate::tools::qmp::seconds;
use crate::viewer::Picture;

/// The command line.
#[derive(Args, Clone, Debug)]
pub struct ScreenshotOptions {
    /// How long to wait for the picture
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub timeout: Duration,
    #[command(flatten)]
    store: StoreOptions,
    /// The guest, or its stubdomain
    #[arg(value_name = "DOMID", value_parser = domid)]
    pub domid: DomId,
    /// The PNG file to write, for its owner alone
    #[arg(value_name = "FILE.png")]
    pub file: PathBuf,
}

/// Writes the picture.
///
/// # Errors
/// No such guest, no screen, no picture in time, or the file cannot be written: exit status 1.
pub fn run(options: &ScreenshotOptions) -> Result<()> {
    let store = options.store.open()?;
    let viewer = VncServer::picture_of(&store, options.domid, options.timeout)?;
    let picture = viewer.picture();
    write(&options.file, picture)?;
    let Size { width, height } = picture.size;
    let file = options.file.display();
    writeln!(io::stdout(), "{file}: {width}x{height} pixels").context("printing")
}

/// Writes the file whole or not at all.
fn write(file: &Path, picture: &Picture) -> Result<()> {
    let bytes = encode(picture).context("the picture")?;
    let mut part = file.as_os_str().to_owned();
    part.push(format!(".{}.part", std::process::id()));
    let part = PathBuf::from(part);
    let mut options = OpenOptions::new();
    let made = options.write(true).create_new(true).mode(0o600).open(&part);
    let mut made = made.context(part.display())?;
    let written = made.write_all(&bytes).context(part.display());
    let written = written.and_then(|()| fs::rename(&part, file).context(file.display()));
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written
}

/// Returns the picture as a PNG file's bytes. This takes seconds, so no file exists yet: a signal
/// may end the program.
fn encode(picture: &Picture) -> std::result::Result<Vec<u8>, png::EncodingError> {
    let mut out = Vec::new();
    let Size { width, height } = picture.size;
    let mut encoder = png::Encoder::new(&mut out, width.into(), height.into());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::High);
    let pixels = picture.bytes.chunks_exact(PIXEL);
    let rgb: Vec<u8> = pixels.flat_map(|p| [p[2], p[1], p[0]]).collect();
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&rgb)?;
    writer.finish()?;
    Ok(out)
}

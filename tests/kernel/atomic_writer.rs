//! A volume as the kubelet's AtomicWriter lays it out, and its rotation.
//!
//! `token -> ..data/token`, `..data -> ..2026_11_23_07_33_24.2418249251`: an open of `token` never shows that name.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

/// The files of such a volume: tests deny the first and leave the second alone.
const KEYS: [&str; 2] = ["token", "ca.crt"];

/// The payload directory of a version: the kubelet's form, a second later for each.
fn payload(version: u32) -> String {
    let second = 7 * 3600 + 33 * 60 + 24 + version;
    let (hour, minute, second) = (second / 3600 % 24, second / 60 % 60, second % 60);
    format!("..2026_11_23_{hour:02}_{minute:02}_{second:02}.{}", 2_418_249_251_u64 + u64::from(version))
}

/// Lays the volume out in an empty directory.
pub(crate) fn fill(volume: &Path) -> io::Result<()> {
    write_payload(volume, 0)?;
    symlink(payload(0), volume.join("..data"))?;
    for key in KEYS {
        symlink(Path::new("..data").join(key), volume.join(key))?;
    }
    Ok(())
}

/// Writes the next version aside, swaps `..data`, removes the old one.
pub(crate) fn rotate(volume: &Path) -> io::Result<()> {
    let old = fs::read_link(volume.join("..data"))?;
    let version = (0..).find(|version| Path::new(&payload(*version)) == old).unwrap_or(0) + 1;
    write_payload(volume, version)?;
    symlink(payload(version), volume.join("..data_tmp"))?;
    fs::rename(volume.join("..data_tmp"), volume.join("..data"))?;
    for key in KEYS {
        fs::remove_file(volume.join(&old).join(key))?;
    }
    fs::remove_dir(volume.join(&old))
}

/// Each file is written under another name and moved in: the writer here is not the kubelet, so that opening the new
/// token by any name a rule may reach could rightly be denied to it.
fn write_payload(volume: &Path, version: u32) -> io::Result<()> {
    let directory = volume.join(payload(version));
    fs::create_dir(&directory)?;
    for key in KEYS {
        let staged = volume.join(format!("staged-{version}"));
        fs::write(&staged, format!("{key} {version}\n"))?;
        fs::rename(&staged, directory.join(key))?;
    }
    Ok(())
}

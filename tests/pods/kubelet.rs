//! A stand-in for the kubelet: a copy of this binary, which janusd is told of by `--node-agent`.
//!
//! It does to a pod's directory what a kubelet does: makes volumes, swaps `..data` of a Secret, removes an emptyDir. It
//! opens what it finds there, as the kubelet does, so that a guard that denies it breaks it.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// The keys of every volume.
const KEYS: [&str; 2] = ["token", "ca.crt"];

/// `secret DIR`, `configmap DIR`, `empty-dir DIR`, `etc-hosts FILE` make a volume; `rotate DIR` puts the next version in
/// force; `empty DIR` empties one; `remove DIR` empties and removes it, unmounting it where it is mounted.
pub(crate) fn act(words: &[&OsStr]) -> io::Result<()> {
    let [word, path] = words else { return Err(io::Error::other("kubelet WORD PATH")) };
    let path = Path::new(path);
    match word.to_str() {
        Some("secret") => {
            fs::create_dir_all(path)?;
            mount("tmpfs", path, "tmpfs", MountFlags::empty(), None)?;
            publish(path)
        }
        Some("configmap") => fs::create_dir_all(path).and_then(|()| publish(path)),
        Some("empty-dir") => fs::create_dir_all(path.join("sub")),
        Some("etc-hosts") => {
            fs::create_dir_all(path.parent().unwrap_or(path))?;
            fs::write(path, "127.0.0.1 localhost\n")
        }
        Some("rotate") => publish(path),
        Some("empty") => empty(path),
        Some("remove") => remove(path),
        _ => Err(io::Error::other(format!("unknown word {word:?}"))),
    }
}

fn payload(version: u32) -> String {
    format!("..2026_11_23_07_33_{version:02}.{}", 2_418_249_251_u64 + u64::from(version))
}

/// Puts a version in force: reads the one that is, writes the next into a directory of its own, swaps, removes.
fn publish(volume: &Path) -> io::Result<()> {
    let old = match fs::read_link(volume.join("..data")) {
        Ok(old) => Some(volume.join(old)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if let Some(old) = &old {
        for key in KEYS {
            fs::read(old.join(key))?;
        }
    }
    let version = (0..60).find(|version| old.as_ref().is_some_and(|old| old.ends_with(payload(*version))));
    let version = version.map_or(0, |version| version + 1);
    let new = PathBuf::from(payload(version));
    fs::create_dir(volume.join(&new))?;
    for key in KEYS {
        fs::write(volume.join(&new).join(key), format!("{key} {version}\n"))?;
    }
    symlink(&new, volume.join("..data_tmp"))?;
    fs::rename(volume.join("..data_tmp"), volume.join("..data"))?;
    match old {
        Some(old) => fs::remove_dir_all(old),
        None => KEYS.iter().try_for_each(|key| symlink(Path::new("..data").join(key), volume.join(key))),
    }
}

fn remove(volume: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(volume)?.is_dir() {
        return fs::remove_file(volume);
    }
    empty(volume)?;
    match unmount(volume, UnmountFlags::empty()) {
        Ok(()) => {}
        // No mountpoint: a directory of the disk.
        Err(rustix::io::Errno::INVAL) => {}
        Err(errno) => return Err(errno.into()),
    }
    fs::remove_dir(volume)
}

fn empty(volume: &Path) -> io::Result<()> {
    for entry in fs::read_dir(volume)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

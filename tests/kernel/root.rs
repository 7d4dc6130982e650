//! Inside an agent: a container's root, as a runtime would make it.
//!
//! An overlay (`index=off`, containerd's default) with a read-only lower layer, `/proc` of its own pid namespace, a
//! small `/dev`, and volumes: `/s` a tmpfs and `/c` a directory of the disk, both as the kubelet's AtomicWriter lays
//! them out; `/e` an emptyDir, `/vol` a directory of the disk that is nobody's in particular.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat, statfs};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use rustix::process::pivot_root;

use crate::atomic_writer;

/// Files of the lower layer. Every one holds its own path.
const FILES: [&str; 14] = [
    "/secret",
    "/public",
    "/denied/file",
    "/denied/sub/file",
    "/denied/sub/deep/file",
    "/denied/open/file",
    "/denied/open/shut/file",
    "/beside/file",
    "/etc/passwd",
    "/etc/nginx/nginx.conf",
    "/etc/nginx/conf.d/default.conf",
    "/etc/init.d/nginx",
    "/etc/init.d/cron",
    "/srv/a/b/key",
];

/// Symlinks of the lower layer: name, target.
const SYMLINKS: [(&str, &str); 5] = [
    ("/absolute-link", "/secret"),
    ("/relative-link", "secret"),
    ("/denied-link", "/denied"),
    ("/beside/up", "../denied"),
    ("/chain", "beside/up/sub"),
];

/// Programs of the host that the root gets a copy of.
const PROGRAMS: [&str; 2] = ["/bin/cat", "/bin/true"];

const OVERLAYFS: u32 = 0x794c_7630;

/// Where the container's volumes lie on the disk, below the scratch directory.
pub(crate) const PLAIN_VOLUME: &str = "volume";
/// The kubelet's directory for an emptyDir of one pod.
pub(crate) const EMPTY_DIR: &str = "pods/5a1f0b6e-8f5c-4f0e-9f3d-6f5b2c1d7e80/volumes/kubernetes.io~empty-dir/v";
/// The kubelet's directory for a ConfigMap of the same pod.
pub(crate) const CONFIG_MAP: &str = "pods/5a1f0b6e-8f5c-4f0e-9f3d-6f5b2c1d7e80/volumes/kubernetes.io~configmap/c";

/// Builds the root at `scratch/root`, in a mount namespace that is already the caller's own.
pub(crate) fn build(scratch: &Path) -> io::Result<()> {
    let root = scratch.join("root");
    fs::create_dir(&root)?;
    mount_overlay(scratch, &root)?;

    mount("proc", root.join("proc"), "proc", MountFlags::empty(), None)?;
    mount("tmpfs", root.join("dev"), "tmpfs", MountFlags::empty(), None)?;
    mknodat(CWD, root.join("dev/null"), FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(1, 3))?;

    mount("tmpfs", root.join("s"), "tmpfs", MountFlags::empty(), None)?;
    atomic_writer::fill(&root.join("s"))?;
    for (source, point) in [(PLAIN_VOLUME, "vol"), (EMPTY_DIR, "e"), (CONFIG_MAP, "c")] {
        let source = scratch.join(source);
        fs::create_dir_all(source.join("sub"))?;
        for file in ["file", "other", "sub/file"] {
            fs::write(source.join(file), format!("/{point}/{file}\n"))?;
        }
        mount_bind(&source, root.join(point))?;
    }
    atomic_writer::fill(&root.join("c"))
}

/// Makes it this process's root, and lets go of the old one.
pub(crate) fn enter(scratch: &Path) -> io::Result<()> {
    enter_half(scratch)?;
    unmount(".", UnmountFlags::DETACH)?;
    std::env::set_current_dir("/")
}

/// As [`enter`], up to where the old root, with all that is mounted there, lies over the new one.
pub(crate) fn enter_half(scratch: &Path) -> io::Result<()> {
    std::env::set_current_dir(scratch.join("root"))?;
    Ok(pivot_root(".", ".")?)
}

/// Layers on the disk, as on a node; on a tmpfs where the disk is itself an overlay, which cannot be an upper layer.
fn mount_overlay(scratch: &Path, root: &Path) -> io::Result<()> {
    let layers = scratch.join("layers");
    fs::create_dir(&layers)?;
    if u32::try_from(statfs(&layers)?.f_type).is_ok_and(|magic| magic == OVERLAYFS) {
        mount("tmpfs", &layers, "tmpfs", MountFlags::empty(), None)?;
    }
    let [lower, upper, work] = ["lower", "upper", "work"].map(|layer| layers.join(layer));
    for layer in [&lower, &upper, &work] {
        fs::create_dir(layer)?;
    }
    fill_lower(&lower)?;
    let options =
        format!("lowerdir={},upperdir={},workdir={},index=off", lower.display(), upper.display(), work.display());
    let options = std::ffi::CString::new(options)?;
    Ok(mount("overlay", root, "overlay", MountFlags::empty(), options.as_c_str())?)
}

fn fill_lower(lower: &Path) -> io::Result<()> {
    for point in ["proc", "dev", "s", "vol", "e", "c", "bound"] {
        fs::create_dir(lower.join(point))?;
    }
    fill(lower)?;
    let mut wanted: Vec<PathBuf> = PROGRAMS.iter().map(PathBuf::from).collect();
    for program in PROGRAMS {
        wanted.extend(libraries(Path::new(program))?);
    }
    for file in wanted {
        let copy = below(lower, &file);
        fs::create_dir_all(copy.parent().unwrap_or(lower))?;
        fs::copy(&file, copy)?;
    }
    let script = lower.join("bin/script");
    fs::write(&script, "#!/bin/cat\n")?;
    fs::set_permissions(script, Permissions::from_mode(0o755))
}

/// The files and symlinks that every test finds, in a container's root or in a directory of the disk.
pub(crate) fn fill(root: &Path) -> io::Result<()> {
    for file in FILES {
        let path = below(root, Path::new(file));
        fs::create_dir_all(path.parent().unwrap_or(root))?;
        fs::write(path, format!("{file}\n"))?;
    }
    SYMLINKS.into_iter().try_for_each(|(name, target)| symlink(target, below(root, Path::new(name))))
}

/// An absolute path, below another root.
pub(crate) fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// What the dynamic loader would map for a program: it says so itself, as it does for ldd. Nothing for a static one.
pub(crate) fn libraries(program: &Path) -> io::Result<Vec<PathBuf>> {
    let output = Command::new(program)
        .env("LD_TRACE_LOADED_OBJECTS", "1")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()?;
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(listed.split_whitespace().filter(|word| word.starts_with('/')).map(OsStr::new).map(PathBuf::from).collect())
}

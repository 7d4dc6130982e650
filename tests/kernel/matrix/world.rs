//! Inside an agent: the node and the container of one situation.
//!
//! Flow: `__agent node SCRATCH` reads the plan, enters a mount namespace that stands for the node's, lays out rooms and
//! mounts what the node mounts. `__agent enter PID PROGRAM ...` joins that namespace: so start the container (`__agent
//! matrix-container SCRATCH`), janusd, and the processes that act on a directory. Every mount ends with them.

use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat, statfs};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use serde::{Deserialize, Serialize};

use super::room::{Guard, fill};
use super::situation::Situation::{self, *};
use crate::agent::{enter_new, enter_new_mount_namespace};
use crate::root::{below, libraries};

const POD: &str = "pods/5a1f0b6e-8f5c-4f0e-9f3d-6f5b2c1d7e80";
const OVERLAYFS: u32 = 0x794c_7630;

/// What is to be built; it lies in the scratch directory.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) situation: Situation,
    /// Route and guard of each room.
    pub(crate) rooms: Vec<(String, Guard, String)>,
}

impl Plan {
    const FILE: &str = "plan.json";

    pub(crate) fn write(&self, scratch: &Path) -> io::Result<()> {
        fs::write(scratch.join(Plan::FILE), serde_json::to_vec(self)?)
    }

    fn read(scratch: &Path) -> io::Result<Plan> {
        Ok(serde_json::from_slice(&fs::read(scratch.join(Plan::FILE))?)?)
    }

    fn fill(&self, dir: &Path) -> io::Result<()> {
        self.rooms.iter().try_for_each(|(route, guard, name)| fill(&dir.join(name), route, *guard))
    }
}

/// The directory with all rooms, as the guarded container sees it.
pub(crate) fn rooms_inside(situation: Situation) -> &'static str {
    match situation {
        Overlay | OverlayIndex | UserNamespace | OneFile => "/rooms",
        _ => "/v",
    }
}

/// The same, as a process of the node sees it, where it lies there and nothing is between.
pub(crate) fn rooms_on_node(situation: Situation, scratch: &Path) -> Option<PathBuf> {
    match situation {
        Overlay | OverlayIndex | UserNamespace => None,
        Tmpfs => Some(scratch.join(POD).join("volumes/kubernetes.io~secret/v")),
        PodVolume => Some(scratch.join(POD).join("volumes/kubernetes.io~empty-dir/v")),
        OneFile => Some(scratch.join(POD).join("containers/app")),
        HostPath | Directory => Some(scratch.join("volume")),
        Ext4 | Btrfs | Xfs | DirectoryExt4 | DirectoryBtrfs | DirectoryXfs => Some(scratch.join("mounted/volume")),
    }
}

/// Joins a process's mount namespace, then becomes a program.
pub(crate) fn enter(pid: &OsStr, program: &OsStr, arguments: &[&OsStr]) -> io::Result<()> {
    let namespace = File::open(Path::new("/proc").join(pid).join("ns/mnt"))?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))?;
    Err(Command::new(program).args(arguments).exec())
}

/// The node: its mounts, and the rooms that lie on it.
pub(crate) fn build_node(scratch: &Path) -> io::Result<()> {
    enter_new_mount_namespace()?;
    let plan = Plan::read(scratch)?;
    if let Some(kind) = plan.situation.made() {
        mount_new(kind, scratch)?;
    }
    let layers = scratch.join("layers");
    fs::create_dir(&layers)?;
    // Where the disk is itself an overlay it cannot hold an upper layer.
    if u32::try_from(statfs(&layers)?.f_type).is_ok_and(|magic| magic == OVERLAYFS) {
        mount("tmpfs", &layers, "tmpfs", MountFlags::empty(), None)?;
    }
    let Some(rooms) = rooms_on_node(plan.situation, scratch) else { return Ok(()) };
    fs::create_dir_all(&rooms)?;
    if plan.situation == Tmpfs {
        mount("tmpfs", &rooms, "tmpfs", MountFlags::empty(), None)?;
    }
    plan.fill(&rooms)?;
    // On the disk, too: whoever looks below the file system must find it there.
    File::open(&rooms).and_then(|directory| Ok(rustix::fs::syncfs(directory)?))
}

/// A new file system in a file, mounted by a loop device that goes when it is unmounted.
pub(crate) fn mount_new(kind: &str, scratch: &Path) -> io::Result<()> {
    let (image, point) = (scratch.join("image"), scratch.join("mounted"));
    File::create(&image)?.set_len(if kind == "xfs" { 320 << 20 } else { 160 << 20 })?;
    let quiet = if kind == "ext4" { "-Fq" } else { "-q" };
    run(Command::new(format!("mkfs.{kind}")).arg(quiet).arg(&image))?;
    fs::create_dir(&point)?;
    run(Command::new("mount").args(["-o", "loop", "-t", kind]).arg(&image).arg(&point))
}

pub(crate) fn run(command: &mut Command) -> io::Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr))))
}

/// The container's root, in a mount namespace that is already its own. Whether it is to run in a user namespace, as a
/// pod with `hostUsers: false` does.
pub(crate) fn build_container(scratch: &Path) -> io::Result<bool> {
    let plan = Plan::read(scratch)?;
    let root = scratch.join("root");
    fs::create_dir(&root)?;
    let layers = scratch.join("layers");
    let [lower, upper, work] = ["lower", "upper", "work"].map(|layer| layers.join(layer));
    for layer in [&lower, &upper, &work] {
        fs::create_dir(layer)?;
    }
    fill_lower(&lower, &plan)?;
    let index = if plan.situation == OverlayIndex { "on" } else { "off" };
    let options =
        format!("lowerdir={},upperdir={},workdir={},index={index}", lower.display(), upper.display(), work.display());
    mount("overlay", &root, "overlay", MountFlags::empty(), CString::new(options)?.as_c_str())?;
    mount("proc", root.join("proc"), "proc", MountFlags::empty(), None)?;
    mount("tmpfs", root.join("dev"), "tmpfs", MountFlags::empty(), None)?;
    mknodat(CWD, root.join("dev/null"), FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(1, 3))?;
    match (plan.situation, rooms_on_node(plan.situation, scratch)) {
        (OneFile, Some(files)) => {
            for (_, _, name) in &plan.rooms {
                mount_bind(files.join(name).join("file"), root.join("rooms").join(name).join("file"))?;
            }
        }
        (_, Some(rooms)) => mount_bind(rooms, root.join("v"))?,
        (_, None) => {}
    }
    Ok(plan.situation == UserNamespace)
}

/// Root, and nobody else. For a process with one thread.
pub(crate) fn enter_new_user_namespace() -> io::Result<()> {
    enter_new(UnshareFlags::NEWUSER | UnshareFlags::NEWNS)?;
    fs::write("/proc/self/uid_map", "0 0 1")?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/gid_map", "0 0 1")?;
    Ok(mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?)
}

fn fill_lower(lower: &Path, plan: &Plan) -> io::Result<()> {
    for point in ["proc", "dev", "v", "rooms", "etc"] {
        fs::create_dir(lower.join(point))?;
    }
    if plan.situation.is(super::situation::OVERLAYS) {
        plan.fill(&lower.join("rooms"))?;
    }
    if plan.situation == OneFile {
        for (route, guard, name) in &plan.rooms {
            let room = lower.join("rooms").join(name);
            fill(&room, route, *guard)?;
            fs::write(room.join("file"), "a mountpoint\n")?;
        }
    }
    let this = std::env::current_exe()?;
    let mut wanted: Vec<PathBuf> = Vec::new();
    for program in ["/bin/cat", "/bin/true", "/bin/sh"].map(Path::new) {
        wanted.push(program.to_owned());
        wanted.extend(libraries(program)?);
    }
    // Its children are this same binary, through /proc/self/exe.
    wanted.extend(libraries(&this)?);
    for file in wanted {
        let copy = below(lower, &file);
        fs::create_dir_all(copy.parent().unwrap_or(lower))?;
        fs::copy(&file, copy)?;
    }
    Ok(())
}

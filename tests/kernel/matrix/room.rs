//! A room: the files of one route under one guard, so that no route sees what another has done.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::races;
use super::situation::Situation;
use crate::atomic_writer;
use crate::manifest;

/// What a guarded file holds.
pub(crate) const SECRET: &str = "the secret bytes\n";

/// What the room's guard denies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Guard {
    /// To open one file, by its literal path.
    File,
    /// To open a directory and all below it.
    Tree,
    /// To open one key of a volume as the kubelet's AtomicWriter lays it out.
    Key,
    /// To read one file.
    Read,
    /// To read or list a directory and all below it.
    ReadTree,
    /// To execute one program.
    Execute,
    /// To execute a directory's programs.
    ExecuteTree,
}

impl Guard {
    const fn letter(self) -> &'static str {
        match self {
            Guard::File => "file",
            Guard::Tree => "tree",
            Guard::Key => "key",
            Guard::Read => "read",
            Guard::ReadTree => "read-tree",
            Guard::Execute => "execute",
            Guard::ExecuteTree => "execute-tree",
        }
    }

    const fn event(self) -> &'static str {
        match self {
            Guard::File | Guard::Tree | Guard::Key => "open",
            Guard::Read | Guard::ReadTree => "access",
            Guard::Execute | Guard::ExecuteTree => "execute",
        }
    }

    /// The path that the rule names, in the room.
    const fn denied(self) -> &'static str {
        match self {
            Guard::File | Guard::Read => "file",
            Guard::Tree | Guard::ReadTree => "denied",
            Guard::Key => "keys/token",
            Guard::Execute => "program",
            Guard::ExecuteTree => "programs",
        }
    }

    /// The file that the route is after.
    const fn target(self) -> &'static str {
        match self {
            Guard::Tree | Guard::ReadTree => "denied/sub/file",
            Guard::ExecuteTree => "programs/sub/program",
            Guard::File | Guard::Key | Guard::Read | Guard::Execute => self.denied(),
        }
    }

    const fn is_execute(self) -> bool {
        matches!(self, Guard::Execute | Guard::ExecuteTree)
    }
}

/// Where a room is, as those see it who act in it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Room {
    pub(crate) route: String,
    pub(crate) guard: Guard,
    pub(crate) situation: Situation,
    /// As the guarded container (or, with `--root`, a process of the node) sees it.
    pub(crate) dir: PathBuf,
    /// The same as a rule names it.
    pub(crate) named: PathBuf,
    /// The directory that a process of the node sees, where it lies there.
    pub(crate) on_node: Option<PathBuf>,
    /// The node's directory for everything of this situation.
    pub(crate) scratch: PathBuf,
    /// The guarded container's process, or the one that acts on a directory.
    pub(crate) pid: u32,
}

impl Room {
    /// The room's name, unlike any other's.
    pub(crate) fn name(route: &str, guard: Guard) -> String {
        format!("{route}.{}", guard.letter())
    }

    /// The guarded file.
    pub(crate) fn target(&self) -> PathBuf {
        self.dir.join(self.guard.target())
    }

    pub(crate) fn target_in(&self, dir: &Path) -> PathBuf {
        dir.join(self.guard.target())
    }

    /// The same, relative to the room.
    pub(crate) fn tail(&self) -> &'static str {
        self.guard.target()
    }

    /// The directory of the guarded file, and its name there.
    pub(crate) fn parent(&self) -> PathBuf {
        self.target().parent().map(Path::to_path_buf).unwrap_or_default()
    }

    pub(crate) fn file_name(&self) -> PathBuf {
        self.target().file_name().map(PathBuf::from).unwrap_or_default()
    }

    /// A path in the room.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The room as the node sees it through the container's root.
    pub(crate) fn through_root(&self) -> PathBuf {
        let below = self.dir.strip_prefix("/").unwrap_or(&self.dir);
        Path::new("/proc").join(self.pid.to_string()).join("root").join(below)
    }

    /// Empties the room and fills it again: what comes out is not of an overlay's lower layer, where a directory cannot
    /// be renamed.
    pub(crate) fn make_afresh(&self) -> io::Result<()> {
        fs::remove_dir_all(&self.dir)?;
        fill(&self.dir, &self.route, self.guard)
    }
}

/// Lays out a room's files in a directory that is made for it.
pub(crate) fn fill(dir: &Path, route: &str, guard: Guard) -> io::Result<()> {
    for name in ["denied/sub", "beside", "tree/x", "keys", "programs/sub"] {
        fs::create_dir_all(dir.join(name))?;
    }
    for name in ["file", "denied/file", "denied/sub/file", "tree/x/file"] {
        fs::write(dir.join(name), SECRET)?;
    }
    fs::write(dir.join("public"), "public\n")?;
    if route.starts_with("lower-") {
        fs::hard_link(dir.join("file"), dir.join("twin"))?;
    }
    if route == races::COPY_UP {
        races::fill(dir)?;
    }
    if guard == Guard::Key {
        atomic_writer::fill(&dir.join("keys"))?;
    }
    if guard.is_execute() {
        let program = dir.join(guard.target());
        match route {
            "script" => fs::write(&program, "#!/bin/cat\n")?,
            "shell-script" => fs::write(&program, "exit 0\n")?,
            _ => drop(fs::copy("/bin/true", &program)?),
        }
        fs::set_permissions(program, Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// One guard that denies what every one of these rooms wants denied.
pub(crate) fn manifest(rooms: &[Room]) -> String {
    let mut subjects = Vec::new();
    for event in ["open", "access", "execute"] {
        let denied: Vec<String> = rooms
            .iter()
            .filter(|room| room.guard.event() == event)
            .map(|room| format!("'{}'", room.named.join(room.guard.denied()).display()))
            .collect();
        // A list has at most 128 entries.
        subjects.extend(denied.chunks(100).map(|paths| format!("{{deny: [{}], events: [{event}]}}", paths.join(", "))));
    }
    manifest::guard(&subjects.iter().map(String::as_str).collect::<Vec<_>>())
}

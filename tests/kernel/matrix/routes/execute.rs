//! Ways to start a program.

use std::fs::{self, File, Permissions, hard_link};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::mount::mount_bind;

use super::super::room::Room;
use super::super::stage::{Answer, Attempt, answer, attempt, in_child, once_then, path_fd};
use crate::agent::enter_new_mount_namespace;
use crate::raw;
use crate::root::libraries;

/// Starts a program and waits. Whoever is started but refused something says so on stderr.
fn start(command: &mut Command) -> io::Result<Answer> {
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).output();
    let output = match spawned {
        Ok(output) => output,
        Err(error) => return answer(Err::<(), _>(error)),
    };
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    match output.status.success() {
        true => Ok(Answer::Passed),
        false if said.contains("Operation not permitted") => Ok(Answer::Denied),
        false => Err(io::Error::other(format!("{}: {said}", output.status))),
    }
}

fn execute(path: &Path) -> io::Result<Answer> {
    start(Command::new(path).env("LC_ALL", "C"))
}

pub(crate) fn execve(room: &Room) -> io::Result<Attempt> {
    let target = room.target();
    attempt(move || execute(&target))
}

pub(crate) fn descriptor(room: &Room) -> io::Result<Attempt> {
    let target = room.target();
    attempt(move || in_child("execveat", &[&target]))
}

pub(crate) fn descriptor_o_path(room: &Room) -> io::Result<Attempt> {
    let target = room.target();
    attempt(move || in_child("execveat-o-path", &[&target]))
}

pub(crate) fn o_path_reopened(room: &Room) -> io::Result<Attempt> {
    let held = path_fd(&room.target())?;
    attempt(move || execute(Path::new(&format!("/proc/{}/fd/{}", std::process::id(), held.as_raw_fd()))))
}

pub(crate) fn by_symlink(room: &Room) -> io::Result<Attempt> {
    let link = room.at("link");
    symlink(room.target(), &link)?;
    attempt(move || execute(&link))
}

pub(crate) fn by_hard_link(room: &Room) -> io::Result<Attempt> {
    let (target, alias) = (room.target(), room.at("alias"));
    let made = alias.clone();
    once_then(move || hard_link(&target, &made), move || execute(&alias))
}

pub(crate) fn renamed(room: &Room) -> io::Result<Attempt> {
    let (target, elsewhere) = (room.target(), room.at("beside/elsewhere"));
    let there = elsewhere.clone();
    once_then(move || fs::rename(&target, &elsewhere), move || execute(&there))
}

pub(crate) fn by_bind_mount(room: &Room) -> io::Result<Attempt> {
    let (parent, beside) = (room.parent(), room.at("beside"));
    let there = beside.join(room.file_name());
    once_then(move || Ok(mount_bind(&parent, &beside)?), move || execute(&there))
}

pub(crate) fn in_new_mount_namespace(room: &Room) -> io::Result<Attempt> {
    let target = room.target();
    attempt(move || {
        enter_new_mount_namespace()?;
        execute(&target)
    })
}

/// A new program under the guarded name.
pub(crate) fn replaced(room: &Room) -> io::Result<Attempt> {
    let (target, aside) = (room.target(), room.at("aside"));
    let there = target.clone();
    once_then(
        move || {
            fs::copy("/bin/true", &aside)?;
            fs::rename(&aside, &target)
        },
        move || execute(&there),
    )
}

/// `cat` as the interpreter of a script that no rule names.
pub(crate) fn as_interpreter(room: &Room) -> io::Result<Attempt> {
    let script = room.at("script");
    fs::copy("/bin/cat", room.target())?;
    fs::write(&script, format!("#!{}\n", room.target().display()))?;
    fs::set_permissions(&script, Permissions::from_mode(0o755))?;
    attempt(move || execute(&script))
}

/// `ld.so program`.
pub(crate) fn by_the_loader(room: &Room) -> io::Result<Attempt> {
    by_a_loader(room, interpreter(Path::new("/bin/true"))?)
}

/// The same with a copy of ld.so.
pub(crate) fn by_a_copied_loader(room: &Room) -> io::Result<Attempt> {
    let copy = room.at("loader");
    fs::copy(interpreter(Path::new("/bin/true"))?, &copy)?;
    by_a_loader(room, copy)
}

/// ld.so, as a program's own list of what it loads has it.
fn interpreter(program: &Path) -> io::Result<PathBuf> {
    let loader = |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"ld"));
    libraries(program)?.into_iter().find(loader).ok_or_else(|| io::Error::other("a program without a loader"))
}

fn by_a_loader(room: &Room, loader: PathBuf) -> io::Result<Attempt> {
    let target = room.target();
    attempt(move || start(Command::new(&loader).arg(&target)))
}

/// `sh script`: the rule's file names sh as its interpreter.
pub(crate) fn by_the_shell(room: &Room) -> io::Result<Attempt> {
    fs::write(room.target(), "#!/bin/sh\nexit 0\n")?;
    let target = room.target();
    attempt(move || start(Command::new("/bin/sh").arg(&target).env("LC_ALL", "C")))
}

/// A script without `#!`, by a shell that no one has named.
pub(crate) fn by_a_shell_without_a_line(room: &Room) -> io::Result<Attempt> {
    let target = room.target();
    attempt(move || start(Command::new("/bin/sh").arg(&target).env("LC_ALL", "C")))
}

pub(crate) fn copied(room: &Room) -> io::Result<Attempt> {
    let (target, copy) = (room.target(), room.at("copy"));
    let there = copy.clone();
    once_then(move || fs::copy(&target, &copy).map(drop), move || execute(&there))
}

pub(crate) fn copied_to_memory(room: &Room) -> io::Result<Attempt> {
    let target = room.target();
    attempt(move || {
        let memory = File::from(memfd_create("copy", MemfdFlags::CLOEXEC)?);
        (&memory).write_all(&fs::read(&target)?)?;
        execute(Path::new(&format!("/proc/{}/fd/{}", std::process::id(), memory.as_raw_fd())))
    })
}

/// As a loader maps a library.
pub(crate) fn mapped_executable(room: &Room) -> io::Result<Attempt> {
    let target = room.target();
    attempt(move || answer(raw::read_mapped(File::open(&target)?.as_fd(), 4, true)))
}

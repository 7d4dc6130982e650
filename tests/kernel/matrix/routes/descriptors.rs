//! Descriptors, mappings and memory that somebody already has.

use std::fs::{self, File, Permissions};
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::super::room::{Room, SECRET};
use super::super::stage::{Answer, Attempt, Held, answer, attempt, is_secret, path_fd, reach};
use super::names::{found, in_room};
use crate::raw::{self, Mapping};
use crate::watchdog::kernel_pid;

pub(crate) fn o_path_after(room: &Room) -> io::Result<Attempt> {
    let target = room.target();
    attempt(move || reopen(&path_fd(&target)?))
}

pub(crate) fn o_path_before(room: &Room) -> io::Result<Attempt> {
    let file = path_fd(&room.target())?;
    attempt(move || reopen(&file))
}

fn reopen(file: &OwnedFd) -> io::Result<Answer> {
    reach(Path::new(&format!("/proc/thread-self/fd/{}", file.as_raw_fd())))
}

fn read_from_start(file: &File) -> io::Result<Answer> {
    let mut content = [0; 64];
    let length = file.read_at(&mut content, 0)?;
    is_secret(&content[..length])
}

pub(crate) fn opened_before(room: &Room) -> io::Result<Attempt> {
    let file = File::open(room.target())?;
    attempt(move || {
        let mut content = [0; 64];
        match file.read_at(&mut content, 0) {
            Ok(length) => is_secret(&content[..length]),
            Err(error) => answer(Err::<(), _>(error)),
        }
    })
}

pub(crate) fn passed_over_a_socket(room: &Room) -> io::Result<Attempt> {
    let file = File::open(room.target())?;
    attempt(move || {
        let (sender, receiver) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        let files = [file.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&files));
        sendmsg(&sender, &[IoSlice::new(b"x")], &mut control, SendFlags::empty())?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        recvmsg(&receiver, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let received = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut files) => files.next(),
            _ => None,
        });
        read_from_start(&File::from(received.ok_or_else(|| io::Error::other("no descriptor came"))?))
    })
}

pub(crate) fn mapped_before(room: &Room) -> io::Result<Attempt> {
    let file = File::open(room.target())?;
    attempt(move || is_secret(&raw::read_mapped(file.as_fd(), SECRET.len(), false)?))
}

/// The container's process holds the file open.
pub(crate) fn hold_open(room: &Room) -> io::Result<Held> {
    Ok(Box::new(File::open(room.target())?))
}

/// By the node: the holder's descriptor, opened anew.
pub(crate) fn descriptor_of_another(room: &Room) -> io::Result<Attempt> {
    let path = found(&format!("/proc/{}/fd", room.pid), "", &in_room(room, &room.target()))?;
    attempt(move || reach(&path))
}

/// By the node: the holder's descriptor, taken as it is.
pub(crate) fn descriptor_taken(room: &Room) -> io::Result<Attempt> {
    let path = found(&format!("/proc/{}/fd", room.pid), "", &in_room(room, &room.target()))?;
    let number = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
    let number = number.ok_or_else(|| io::Error::other("no number"))?;
    let process = pidfd_open(kernel_pid(room.pid), PidfdFlags::empty())?;
    attempt(move || {
        let taken = pidfd_getfd(&process, number, PidfdGetfdFlags::empty())?;
        read_from_start(&File::from(taken))
    })
}

/// The container's process has the file mapped.
pub(crate) fn hold_mapped(room: &Room) -> io::Result<Held> {
    Ok(Box::new(Mapping::of(File::open(room.target())?.as_fd())?))
}

/// By the node: the mapping's file, opened anew.
pub(crate) fn mapping_of_another(room: &Room) -> io::Result<Attempt> {
    let path = found(&format!("/proc/{}/map_files", room.pid), "", &in_room(room, &room.target()))?;
    attempt(move || reach(&path))
}

/// The container runs the file as a program.
pub(crate) fn hold_running(room: &Room) -> io::Result<Held> {
    fs::copy("/bin/cat", room.target())?;
    fs::set_permissions(room.target(), Permissions::from_mode(0o755))?;
    let mut child = Command::new(room.target()).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let running = Running { _stdin: child.stdin.take(), child };
    Ok(Box::new(running))
}

struct Running {
    child: std::process::Child,
    _stdin: Option<std::process::ChildStdin>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// By the node.
pub(crate) fn executable_of_another(room: &Room) -> io::Result<Attempt> {
    let parent = format!("PPid:\t{}\n", room.pid);
    // Other runs of this test may be under way, with rooms of the same name.
    let path = fs::read_dir("/proc")?
        .flatten()
        .map(|process| process.path())
        .find(|process| {
            fs::read_link(process.join("exe")).is_ok_and(|exe| exe.ends_with(in_room(room, &room.target())))
                && fs::read_to_string(process.join("status")).is_ok_and(|status| status.contains(&parent))
        })
        .ok_or_else(|| io::Error::other("nobody runs it"))?
        .join("exe");
    attempt(move || answer(File::open(&path)))
}

/// The container's process has the content in its memory, and says where.
pub(crate) fn hold_read(room: &Room) -> io::Result<Held> {
    let mut content = Vec::new();
    File::open(room.target())?.read_to_end(&mut content)?;
    fs::write(room.at("address"), content.as_ptr().addr().to_string())?;
    Ok(Box::new(content))
}

/// By the node.
pub(crate) fn memory_of_another(room: &Room) -> io::Result<Attempt> {
    let address = fs::read_to_string(room.through_root().join("address"))?;
    let address = address.parse().map_err(io::Error::other)?;
    let path = format!("/proc/{}/mem", room.pid);
    attempt(move || {
        let mut content = [0; SECRET.len()];
        File::open(&path)?.read_exact_at(&mut content, address)?;
        is_secret(&content)
    })
}

//! Ways to read a file that may be opened, under a guard that denies `access`.

use std::fs::{self, File};
use std::io::{self, IoSliceMut, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{Dir, copy_file_range, ioctl_ficlone, sendfile};
use rustix::io::{ReadWriteFlags, preadv2, readv};
use rustix::pipe::{SpliceFlags, pipe, splice};

use super::super::room::{Room, SECRET};
use super::super::stage::{Answer, Attempt, answer, attempt, directory_fd, is_secret};
use crate::raw;

/// Opens, which is allowed, then reads in some way.
fn by(room: &Room, read: impl Fn(&File) -> io::Result<Vec<u8>> + Send + 'static) -> io::Result<Attempt> {
    let target = room.target();
    attempt(move || content(read(&File::open(&target).map_err(not_this_one)?)))
}

/// A refusal of what must not be refused is no answer.
fn not_this_one(error: io::Error) -> io::Error {
    io::Error::other(format!("a step on the way: {error}"))
}

fn content(read: io::Result<Vec<u8>>) -> io::Result<Answer> {
    match read {
        Ok(content) => is_secret(&content),
        Err(error) => answer(Err::<(), _>(error)),
    }
}

pub(crate) fn read(room: &Room) -> io::Result<Attempt> {
    by(room, |mut file| {
        let mut content = Vec::new();
        file.read_to_end(&mut content)?;
        Ok(content)
    })
}

pub(crate) fn pread(room: &Room) -> io::Result<Attempt> {
    by(room, |file| {
        let mut content = vec![0; SECRET.len()];
        file.read_exact_at(&mut content, 0)?;
        Ok(content)
    })
}

pub(crate) fn read_vectored(room: &Room) -> io::Result<Attempt> {
    by(room, |file| {
        let mut content = vec![0; SECRET.len()];
        readv(file, &mut [IoSliceMut::new(&mut content)])?;
        Ok(content)
    })
}

pub(crate) fn pread_vectored(room: &Room) -> io::Result<Attempt> {
    by(room, |file| {
        let mut content = vec![0; SECRET.len()];
        preadv2(file, &mut [IoSliceMut::new(&mut content)], 0, ReadWriteFlags::HIPRI)?;
        Ok(content)
    })
}

fn through_pipe(fill: impl FnOnce(&OwnedFd) -> rustix::io::Result<usize>) -> io::Result<Vec<u8>> {
    let (reader, writer) = pipe()?;
    let length = fill(&writer)?;
    let mut content = vec![0; length];
    File::from(reader).read_exact(&mut content)?;
    Ok(content)
}

pub(crate) fn send_file(room: &Room) -> io::Result<Attempt> {
    by(room, |file| through_pipe(|pipe| sendfile(pipe, file, None, SECRET.len())))
}

pub(crate) fn splice_to_pipe(room: &Room) -> io::Result<Attempt> {
    by(room, |file| through_pipe(|pipe| splice(file, None, pipe, None, SECRET.len(), SpliceFlags::empty())))
}

pub(crate) fn copy_range(room: &Room) -> io::Result<Attempt> {
    let copy = room.at("copy");
    by(room, move |file| {
        copy_file_range(file, None, &File::create(&copy).map_err(not_this_one)?, None, SECRET.len())?;
        fs::read(&copy)
    })
}

pub(crate) fn cloned(room: &Room) -> io::Result<Attempt> {
    let copy = room.at("copy");
    by(room, move |file| {
        ioctl_ficlone(File::create(&copy).map_err(not_this_one)?, file)?;
        fs::read(&copy)
    })
}

pub(crate) fn io_uring(room: &Room) -> io::Result<Attempt> {
    by(room, |file| raw::ring_read(file.as_fd()))
}

pub(crate) fn mapped(room: &Room) -> io::Result<Attempt> {
    by(room, |file| raw::read_mapped(file.as_fd(), SECRET.len(), false))
}

pub(crate) fn listed(room: &Room) -> io::Result<Attempt> {
    let parent = room.parent();
    attempt(move || entries(&directory_fd(&parent).map_err(not_this_one)?))
}

pub(crate) fn listed_through_o_path(room: &Room) -> io::Result<Attempt> {
    let parent = room.parent();
    attempt(move || {
        let held = super::super::stage::path_fd(&parent)?;
        let again = format!("/proc/thread-self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held));
        entries(&directory_fd(again.as_ref()).map_err(not_this_one)?)
    })
}

pub(crate) fn listed_by_a_descriptor_from_before(room: &Room) -> io::Result<Attempt> {
    let directory = directory_fd(&room.parent())?;
    attempt(move || entries(&directory))
}

fn entries(directory: &OwnedFd) -> io::Result<Answer> {
    let mut entries = Dir::read_from(directory)?;
    entries.rewind();
    match entries.find(|entry| entry.as_ref().map_or(true, |entry| entry.file_name() == c"file")) {
        Some(Ok(_)) => Ok(Answer::Passed),
        Some(Err(error)) => answer(Err::<(), _>(error)),
        None => Err(io::Error::other("the directory lacks its file")),
    }
}

//! A file that is made or replaced while the guard is in force.

use std::fs::{self, OpenOptions};
use std::io;

use super::super::room::{Room, SECRET};
use super::super::stage::{Answer, Attempt, answer, attempt, drop_caches, once_then, reach};
use crate::atomic_writer;

pub(crate) fn made_anew(room: &Room) -> io::Result<Attempt> {
    let (target, aside) = (room.target(), room.at("aside"));
    let there = target.clone();
    once_then(
        move || {
            fs::remove_file(&target)?;
            fs::write(&aside, SECRET)?;
            fs::rename(&aside, &target)
        },
        move || reach(&there),
    )
}

pub(crate) fn replaced(room: &Room) -> io::Result<Attempt> {
    let (target, aside) = (room.target(), room.at("aside"));
    let there = target.clone();
    once_then(
        move || {
            fs::write(&aside, SECRET)?;
            fs::rename(&aside, &target)
        },
        move || reach(&there),
    )
}

/// `O_CREAT | O_EXCL`: refused, though the kernel has made the file by then; and it cannot be opened afterwards.
pub(crate) fn created(room: &Room) -> io::Result<Attempt> {
    let target = room.target();
    attempt(move || {
        if target.exists() {
            fs::remove_file(&target)?;
        }
        let made = answer(OpenOptions::new().write(true).create_new(true).open(&target))?;
        if made == Answer::Denied && answer(fs::File::open(&target))? == Answer::Passed {
            return Err(io::Error::other("what was refused to its maker opens afterwards"));
        }
        Ok(made)
    })
}

/// `O_TRUNC`: refused, and the content is whole.
pub(crate) fn truncated(room: &Room) -> io::Result<Attempt> {
    let target = room.target();
    attempt(move || {
        let opened = answer(OpenOptions::new().write(true).truncate(true).open(&target))?;
        let whole = fs::metadata(&target)?.len() == SECRET.len() as u64;
        if (opened == Answer::Denied) != whole {
            return Err(io::Error::other(format!("{opened:?}, and the content is whole: {whole}")));
        }
        // For another try.
        if !whole {
            fs::write(&target, SECRET)?;
        }
        Ok(opened)
    })
}

/// A new payload directory, and `..data` swapped to it.
pub(crate) fn data_swapped(room: &Room) -> io::Result<Attempt> {
    let (volume, target) = (room.at("keys"), room.target());
    once_then(move || atomic_writer::rotate(&volume), move || reach(&target))
}

/// Directories made below a denied one, and a file moved in.
pub(crate) fn new_directories(room: &Room) -> io::Result<Attempt> {
    let (aside, deep) = (room.at("aside"), room.at("denied/new/a/b"));
    let there = deep.join("file");
    let file = there.clone();
    once_then(
        move || {
            fs::create_dir_all(&deep)?;
            fs::write(&aside, SECRET)?;
            fs::rename(&aside, &file)
        },
        move || reach(&there),
    )
}

/// The denied directory itself goes, and another takes its name.
pub(crate) fn directory_made_anew(room: &Room) -> io::Result<Attempt> {
    let (denied, aside) = (room.at("denied"), room.at("aside"));
    let there = room.target();
    let file = there.clone();
    once_then(
        move || {
            fs::remove_dir_all(&denied).or_else(|_listing_is_denied| {
                fs::remove_file(denied.join("sub/file"))?;
                fs::remove_dir(denied.join("sub"))?;
                fs::remove_file(denied.join("file"))?;
                fs::remove_dir(&denied)
            })?;
            fs::create_dir_all(denied.join("sub"))?;
            fs::write(&aside, SECRET)?;
            fs::rename(&aside, &file)?;
            drop_caches();
            Ok(())
        },
        move || reach(&there),
    )
}

//! What takes a process of its own: other user namespaces, and exec without a shell between.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

use rustix::mount::{MountFlags, mount};

use super::super::stage::{Answer, answer, path_fd, reach};
use super::super::world::enter_new_user_namespace;
use crate::raw;

/// What a child can be asked for; its arguments are paths.
pub(crate) type Child = fn(&[PathBuf]) -> io::Result<Answer>;

pub(crate) fn in_a_user_namespace(paths: &[PathBuf]) -> io::Result<Answer> {
    let [path] = paths else { return Err(io::ErrorKind::InvalidInput.into()) };
    enter_new_user_namespace()?;
    reach(path)
}

/// In a user namespace of its own: nobody needs rights for that.
pub(crate) fn by_an_overlay(paths: &[PathBuf]) -> io::Result<Answer> {
    let [lower, other, here] = paths else { return Err(io::ErrorKind::InvalidInput.into()) };
    enter_new_user_namespace()?;
    let options = CString::new(format!("lowerdir={}:{}", lower.display(), other.display()))?;
    mount("overlay", here, "overlay", MountFlags::empty(), options.as_c_str())?;
    reach(&here.join("file"))
}

pub(crate) fn execveat(paths: &[PathBuf]) -> io::Result<Answer> {
    let [program] = paths else { return Err(io::ErrorKind::InvalidInput.into()) };
    let file = File::open(program)?;
    become_it(file.as_fd())
}

pub(crate) fn execveat_o_path(paths: &[PathBuf]) -> io::Result<Answer> {
    let [program] = paths else { return Err(io::ErrorKind::InvalidInput.into()) };
    let file = path_fd(program)?;
    become_it(file.as_fd())
}

/// Executed, it is `true`, and ends with status 0.
fn become_it(file: std::os::fd::BorrowedFd<'_>) -> io::Result<Answer> {
    answer(Err::<(), _>(raw::execute_descriptor(file)))
}

//! Who asks: what procfs says of a process that waits for our answer.
//!
//! Read before the answer and only when an event line wants it, since afterwards the process may have gone or exec'ed.
//! Procfs is never guarded, and none of these files takes the process's memory lock, so nothing here can wait for it.

use std::os::unix::ffi::OsStringExt;

use crate::policy::Origin;
use crate::process::facts;

/// Which facts a log format asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanted {
    /// `{comm}` or `{uid}`.
    pub status: bool,
    /// `{exe}`.
    pub exe: bool,
    /// `{origin}`: takes a lookup, for which the event waits.
    pub origin: bool,
}

impl Wanted {
    /// All of them.
    pub const EVERYTHING: Wanted = Wanted { status: true, exe: true, origin: true };
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Opener {
    /// The thread group leader's name.
    pub comm: Option<Vec<u8>>,
    /// The executable, as its own mount namespace names it.
    pub exe: Option<Vec<u8>>,
    /// Effective user id, as the container sees it.
    pub uid: Option<u32>,
    /// What it is to the container.
    pub origin: Option<Origin>,
}

impl Opener {
    /// Reads what is wanted about process `pid`, except its origin. `user`: what the container calls one of our users.
    pub fn look(pid: i32, wanted: Wanted, user: impl Fn(u32) -> Option<u32>) -> Opener {
        let mut opener = Opener::default();
        if wanted.exe {
            opener.exe = std::fs::read_link(format!("/proc/{pid}/exe")).ok().map(|p| p.into_os_string().into_vec());
        }
        if wanted.status
            && let Ok(status) = std::fs::read(format!("/proc/{pid}/status"))
        {
            opener.comm = name(&status).map(<[u8]>::to_vec);
            opener.uid = facts::effective_uid(&status).and_then(user);
        }
        opener
    }
}

fn name(status: &[u8]) -> Option<&[u8]> {
    status.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(b"Name:\t"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ourselves() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let opener = Opener::look(pid, Wanted::EVERYTHING, Some);
        assert_eq!(opener.exe.unwrap(), std::env::current_exe().unwrap().into_os_string().into_vec());
        assert_eq!(opener.uid.unwrap(), rustix::process::geteuid().as_raw());
        assert!(opener.comm.is_some());
        assert_eq!(Opener::look(pid, Wanted::default(), Some), Opener::default());
    }
}

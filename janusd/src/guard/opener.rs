//! Who asks: what procfs says of a process that waits for our answer.
//!
//! Read before the answer and only when an event line wants it, since afterwards the process may have gone or exec'ed.
//! Procfs is never guarded, and none of these files takes the process's memory lock, so nothing here can wait for it.

use std::os::unix::ffi::OsStringExt;

/// Which facts a log format asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanted {
    /// `{comm}` or `{uid}`.
    pub status: bool,
    /// `{exe}`.
    pub exe: bool,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Opener {
    /// The thread group leader's name.
    pub comm: Option<Vec<u8>>,
    /// The executable, as its own mount namespace names it.
    pub exe: Option<Vec<u8>>,
    /// Effective user id, in our user namespace.
    pub uid: Option<u32>,
}

impl Opener {
    /// Reads what is wanted about process `pid`.
    pub fn look(pid: i32, wanted: Wanted) -> Opener {
        let mut opener = Opener::default();
        if wanted.exe {
            opener.exe = std::fs::read_link(format!("/proc/{pid}/exe")).ok().map(|p| p.into_os_string().into_vec());
        }
        if wanted.status
            && let Ok(status) = std::fs::read(format!("/proc/{pid}/status"))
        {
            opener.comm = field(&status, b"Name:\t").map(<[u8]>::to_vec);
            opener.uid = field(&status, b"Uid:\t")
                .and_then(|ids| std::str::from_utf8(ids).ok()?.split('\t').nth(1)?.parse().ok());
        }
        opener
    }
}

fn field<'a>(status: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    status.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ourselves() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let opener = Opener::look(pid, Wanted { status: true, exe: true });
        assert_eq!(opener.exe.unwrap(), std::env::current_exe().unwrap().into_os_string().into_vec());
        assert_eq!(opener.uid.unwrap(), rustix::process::geteuid().as_raw());
        assert!(opener.comm.is_some());
        assert_eq!(Opener::look(pid, Wanted::default()), Opener::default());
    }
}

//! What procfs says of a process, taken apart: pure, and made for hostile bytes (a process chooses its own name).

/// `/proc/PID/stat`, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// The parent; 0 when it is in no pid namespace that we see, or there is none.
    pub parent: i32,
    /// The kernel session: the pid of the process that began it, in our pid namespace; 0 when that is not visible.
    pub session: i32,
    /// When it started, in clock ticks after boot. With the pid, it names a process for ever.
    pub start: u64,
}

impl Stat {
    /// Takes `/proc/PID/stat` apart. The name in it may hold blanks, parentheses and newlines; behind it come numbers
    /// only, so its end is the last parenthesis.
    pub fn parse(bytes: &[u8]) -> Option<Stat> {
        let end = bytes.iter().rposition(|byte| *byte == b')')?;
        let rest = std::str::from_utf8(bytes.get(end + 1..)?).ok()?;
        // proc_pid_stat(5): state is field 3, ppid 4, session 6, starttime 22.
        let mut fields = rest.split_ascii_whitespace();
        let parent = fields.nth(1)?.parse().ok()?;
        let session = fields.nth(1)?.parse().ok()?;
        let start = fields.nth(15)?.parse().ok()?;
        Some(Stat { parent, session, start })
    }
}

/// The value of a line of `/proc/PID/status`. The kernel escapes newlines in the name, so no name forges a line.
pub fn field<'a>(status: &'a [u8], key: &str) -> Option<&'a str> {
    let line =
        status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(key.as_bytes())?.strip_prefix(b":\t"))?;
    std::str::from_utf8(line).ok()
}

/// The effective uid of `/proc/PID/status`, in the user namespace of whoever opened it.
pub fn effective_uid(status: &[u8]) -> Option<u32> {
    field(status, "Uid")?.split('\t').nth(1)?.parse().ok()
}

/// The pid in the process's own pid namespace: the last of `NSpid`.
pub fn innermost_pid(status: &[u8]) -> Option<i32> {
    field(status, "NSpid")?.rsplit('\t').next()?.parse().ok()
}

/// The number of a namespace, of the target of a link such as `/proc/PID/ns/pid`: `pid:[4026531836]`.
pub fn namespace(link: &[u8]) -> Option<u64> {
    let (_, rest) = std::str::from_utf8(link).ok()?.split_once(":[")?;
    rest.strip_suffix(']')?.parse().ok()
}

/// A user namespace's map, `/proc/PID/uid_map`: from our numbers to its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMap(Vec<Range>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    inside: u32,
    outside: u32,
    count: u32,
}

impl IdMap {
    /// Every number is itself.
    pub fn identity() -> IdMap {
        IdMap(vec![Range { inside: 0, outside: 0, count: u32::MAX }])
    }

    /// Takes `/proc/PID/uid_map` apart; lines that are none are left out, so that what they would have mapped has no
    /// number inside.
    pub fn parse(bytes: &[u8]) -> IdMap {
        let line = |line: &[u8]| {
            let mut numbers = std::str::from_utf8(line).ok()?.split_ascii_whitespace().map(str::parse);
            let (inside, outside, count) = (numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?);
            numbers.next().is_none().then_some(Range { inside, outside, count })
        };
        IdMap(bytes.split(|byte| *byte == b'\n').filter_map(line).collect())
    }

    /// What the namespace calls our `outside`; `None` when it has no number for it.
    pub fn inside(&self, outside: u32) -> Option<u32> {
        self.0.iter().find_map(|range| {
            let above = outside.checked_sub(range.outside).filter(|above| *above < range.count)?;
            range.inside.checked_add(above)
        })
    }
}

/// `/proc/PID/cgroup`: for each hierarchy the process's place in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cgroups(Vec<(Vec<u8>, Vec<u8>)>);

impl Cgroups {
    /// Takes it apart: `number:controllers:path` a line. The kernel lets no cgroup's name hold a newline.
    pub fn parse(bytes: &[u8]) -> Cgroups {
        let line = |line: &[u8]| {
            let mut parts = line.splitn(3, |byte| *byte == b':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            path.starts_with(b"/").then(|| (controllers.to_vec(), path.to_vec()))
        };
        Cgroups(bytes.split(|byte| *byte == b'\n').filter_map(line).collect())
    }

    /// The hierarchies (by their controllers; the unified one has none) and the places in them, unified first.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let unified = self.0.iter().filter(|(controllers, _)| controllers.is_empty());
        let others = self.0.iter().filter(|(controllers, _)| !controllers.is_empty());
        unified.chain(others).map(|(controllers, path)| (controllers.as_slice(), path.as_slice()))
    }

    /// The place in one hierarchy.
    pub fn path(&self, hierarchy: &[u8]) -> Option<&[u8]> {
        self.0.iter().find(|(controllers, _)| controllers == hierarchy).map(|(_, path)| path.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stat(comm: &[u8], parent: i32, session: i32, start: u64) -> Vec<u8> {
        let behind = format!(") S {parent} 7 {session} 0 -1 4194304 99 0 0 0 0 0 0 0 20 0 1 0 {start} 3133440 414\n");
        [b"42 (", comm, behind.as_bytes()].concat()
    }

    #[test]
    fn ourselves() {
        let read = |name: &str| std::fs::read(format!("/proc/self/{name}")).unwrap();
        let stat = Stat::parse(&read("stat")).unwrap();
        assert_eq!(stat.parent, rustix::process::getppid().unwrap().as_raw_pid());
        // Not rustix's getsid: where the session's leader is outside of our pid namespace, both are 0, and it panics.
        let status = String::from_utf8(read("status")).unwrap();
        let session = status.lines().find_map(|line| line.strip_prefix("NSsid:")?.split_whitespace().next()).unwrap();
        assert_eq!(stat.session.to_string(), session);
        assert!(stat.start > 0);
        assert_eq!(effective_uid(&read("status")), Some(rustix::process::geteuid().as_raw()));
        assert_eq!(innermost_pid(&read("status")), Some(rustix::process::getpid().as_raw_pid()));
        assert!(Cgroups::parse(&read("cgroup")).iter().next().is_some());
        let link = std::fs::read_link("/proc/self/ns/pid").unwrap();
        assert!(namespace(link.as_os_str().as_encoded_bytes()).is_some());
    }

    #[test]
    fn a_name_cannot_pose_as_fields() {
        for comm in [&b"a) R 1 1 1 0"[..], b"))((", b"x\n1 (y) S 1 1", b"", b"\xff\xfe)", b") ) )"] {
            assert_eq!(Stat::parse(&stat(comm, 3, 5, 9)), Some(Stat { parent: 3, session: 5, start: 9 }), "{comm:?}");
        }
        for short in [&b""[..], b"42", b"42 (x", b"42 (x)", b"42 (x) S", b"42 (x) S 1 2 3", b") S a b c"] {
            assert_eq!(Stat::parse(short), None, "{short:?}");
        }
    }

    #[test]
    fn uids() {
        let status = b"Name:\tUid:\\n\t5\nUmask:\t0022\nUid:\t1\t2\t3\t4\nNSpid:\t99\t7\t1\n";
        assert_eq!((effective_uid(status), innermost_pid(status)), (Some(2), Some(1)));
        assert_eq!((effective_uid(b"Uid:\t1"), innermost_pid(b"")), (None, None));
        let map = IdMap::parse(b"         0     100000      65536\n     70000 1000 1\nnonsense\n5 5\n9 9 9 9\n");
        assert_eq!(
            [100_000, 165_535, 165_536, 1000, 0].map(|it| map.inside(it)),
            [Some(0), Some(65_535), None, Some(70_000), None]
        );
        assert_eq!(IdMap::parse(b"0 0 4294967295\n").inside(4_294_967_294), Some(4_294_967_294));
        // The number that means "none" is nobody's.
        assert_eq!(IdMap::identity().inside(u32::MAX), None);
        assert_eq!(IdMap::parse(b"4294967295 0 2\n").inside(1), None);
    }

    #[test]
    fn cgroups() {
        let both = Cgroups::parse(b"4:memory:/kubepods/pod1/c:d\n2:cpu,cpuacct:/x\n0::/u\nbad\n7:a:relative\n");
        let all: Vec<_> = both.iter().collect();
        assert_eq!(all, [(&b""[..], &b"/u"[..]), (b"memory", b"/kubepods/pod1/c:d"), (b"cpu,cpuacct", b"/x")]);
        assert_eq!(both.path(b"memory"), Some(&b"/kubepods/pod1/c:d"[..]));
        assert_eq!(both.path(b"pids"), None);
    }

    #[test]
    fn namespaces() {
        assert_eq!(namespace(b"pid:[4026531836]"), Some(4_026_531_836));
        for other in [&b""[..], b"pid:[]", b"pid:[x]", b"4026531836", b"pid:[1", b"\xff:[1]"] {
            assert_eq!(namespace(other), None);
        }
    }

    proptest! {
        #[test]
        fn any_name_is_read_past(comm: Vec<u8>, parent in 0..i32::MAX, session in 0..i32::MAX, start: u64) {
            prop_assert_eq!(Stat::parse(&stat(&comm, parent, session, start)), Some(Stat { parent, session, start }));
        }

        #[test]
        fn any_bytes_end(bytes: Vec<u8>) {
            let _ = Stat::parse(&bytes);
            let _ = (effective_uid(&bytes), innermost_pid(&bytes), namespace(&bytes));
            let _ = IdMap::parse(&bytes).inside(0);
            let _ = Cgroups::parse(&bytes).path(b"");
        }

        #[test]
        fn a_map_gives_back_what_it_took(inside in 0..1_000_000u32, outside in 0..1_000_000u32, count in 1..1000u32, at in 0..2000u32) {
            let map = IdMap::parse(format!("{inside} {outside} {count}\n").as_bytes());
            prop_assert_eq!(map.inside(outside + at), (at < count).then(|| inside + at));
        }
    }
}

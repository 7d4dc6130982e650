//! `/proc/PID/mountinfo` (`proc_pid_mountinfo(5)`), taken apart: pure.

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its number: reused once it is unmounted.
    pub id: u64,
    /// Device, major number. On btrfs it is not what `stat` says: compare it only with other mountinfo lines.
    pub major: u32,
    /// Device, minor number.
    pub minor: u32,
    /// Which directory (or file) of the file system is mounted.
    pub root: Vec<u8>,
    /// Where, relative to the root of the process whose mountinfo this is.
    pub mountpoint: Vec<u8>,
    /// The file system's type, without its subtype: `fuse` for `fuse.sshfs`.
    pub fstype: String,
    /// The options of the file system itself, as written.
    pub options: Vec<u8>,
}

impl Mount {
    /// The file system this is a view of.
    pub fn device(&self) -> (u32, u32) {
        (self.major, self.minor)
    }
}

/// Takes a mountinfo file apart. A line that is not in the documented form is left out: the kernel writes none.
pub fn parse(bytes: &[u8]) -> Vec<Mount> {
    bytes.split(|b| *b == b'\n').filter_map(line).collect()
}

fn line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ');
    let id = number(fields.next()?)?;
    let _parent = fields.next()?;
    let device = fields.next()?;
    let colon = device.iter().position(|b| *b == b':')?;
    let root = unescape(fields.next()?);
    let mountpoint = unescape(fields.next()?);
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let fstype = String::from_utf8_lossy(rest.next()?);
    let _source = rest.next()?;
    Some(Mount {
        id,
        major: u32::try_from(number(&device[..colon])?).ok()?,
        minor: u32::try_from(number(&device[colon + 1..])?).ok()?,
        root,
        mountpoint,
        fstype: fstype.split('.').next().unwrap_or_default().to_owned(),
        options: rest.next().unwrap_or_default().to_vec(),
    })
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Space, tab, newline and backslash are written as `\ooo`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        let octal = after.get(..3).filter(|d| *byte == b'\\' && d.iter().all(|d| (b'0'..=b'7').contains(d)));
        match octal {
            Some(digits) => {
                out.push(digits.iter().fold(0u8, |value, d| value.wrapping_mul(8).wrapping_add(d - b'0')));
                rest = &after[3..];
            }
            None => out.push(*byte),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_man_pages_example() {
        let mounts = parse(b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n");
        assert_eq!(
            mounts,
            [Mount {
                id: 36,
                major: 98,
                minor: 0,
                root: b"/mnt1".to_vec(),
                mountpoint: b"/mnt2".to_vec(),
                fstype: "ext3".into(),
                options: b"rw,errors=continue".to_vec(),
            }]
        );
    }

    #[test]
    fn no_optional_fields_escapes_and_subtypes() {
        let mounts = parse(b"1 0 0:44 / /a\\040b\\134\\012c rw - fuse.sshfs host:/x rw\nnonsense\n2 1 0:45 / / rw - overlay overlay rw,lowerdir=/l\n");
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].mountpoint, b"/a b\\\nc");
        assert_eq!(mounts[0].fstype, "fuse");
        assert_eq!(mounts[1].device(), (0, 45));
    }

    #[test]
    fn our_own() {
        let mounts = parse(&std::fs::read("/proc/self/mountinfo").unwrap());
        assert!(mounts.iter().any(|m| m.mountpoint == b"/proc" && m.fstype == "proc"));
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            parse(&bytes);
        }
    }
}

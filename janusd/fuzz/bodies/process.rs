//! Any bytes as files of procfs about a process, and as the name that it has chosen for itself: no name forges a field.

use janusd::process::facts::{IdMap, Stat, effective_uid, field, innermost_pid, namespace};

/// # Panics
/// When the parser breaks a promise.
pub(crate) fn run(data: &[u8]) {
    let _whatever = (Stat::parse(data), effective_uid(data), innermost_pid(data));
    if let Some(text) = field(data, "Uid") {
        assert!(!text.contains('\n'));
    }
    if let Some(number) = namespace(data) {
        assert!(data.ends_with(format!("{number}]").as_bytes()));
    }
    map(data);

    let stat = [b"42 (".as_slice(), data, b") S 3 7 5 0 -1 4194304 99 0 0 0 0 0 0 0 20 0 1 0 9 3133440 414\n"].concat();
    assert_eq!(Stat::parse(&stat), Some(Stat { parent: 3, session: 5, start: 9 }));
    let status =
        [b"Name:\t".as_slice(), &escape(data), b"\nUmask:\t0022\nUid:\t1\t2\t3\t4\nNSpid:\t99\t7\t1\n"].concat();
    assert_eq!((effective_uid(&status), innermost_pid(&status)), (Some(2), Some(1)));
}

/// As the kernel does in the line of the name.
fn escape(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for byte in name {
        match byte {
            b'\n' => out.extend(b"\\n"),
            b'\\' => out.extend(b"\\\\"),
            byte => out.push(*byte),
        }
    }
    out
}

/// What has a number inside lies in one of the lines.
fn map(data: &[u8]) {
    let map = IdMap::parse(data);
    let lines: Vec<[u32; 3]> = data
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let numbers = str::from_utf8(line).ok()?.split_ascii_whitespace().map(str::parse);
            numbers.collect::<Result<Vec<u32>, _>>().ok()?.try_into().ok()
        })
        .collect();
    let edges = lines.iter().flat_map(|[_, outside, count]| {
        let beyond = outside.saturating_add(*count);
        [outside.saturating_sub(1), *outside, beyond.saturating_sub(1), beyond]
    });
    for outside in edges.chain([0, 1000, u32::MAX]) {
        let wanted = lines.iter().find_map(|&[inside, from, count]| {
            let above = u64::from(outside).checked_sub(u64::from(from)).filter(|above| *above < u64::from(count))?;
            u32::try_from(u64::from(inside) + above).ok()
        });
        assert_eq!(map.inside(outside), wanted);
    }
}

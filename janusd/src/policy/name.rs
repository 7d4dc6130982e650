//! Names of files, walked segment by segment.
//!
//! A name is bytes that the kernel or a tenant gave us: it is expected to be absolute and normalised, and nothing here
//! panics when it is not.
//!
//! The kubelet's AtomicWriter keeps the files of a Secret, ConfigMap or projected volume in a directory that it replaces
//! whole: `/s/token -> ..data/token -> ..2026_11_23_07_33_24.2418249251/token`. An event shows the last form, a rule is
//! written in the first. The *stable* form of a name leaves those two kinds of segment out: it is the name that survives
//! the next rotation, so a rule that is matched against it holds before, during and after the swap.

/// The link that the kubelet swaps to publish a new version of a volume.
const DATA_LINK: &[u8] = b"..data";

/// Whether `segment` is one that the kubelet's AtomicWriter puts between a volume and its files: `..data`, or the
/// directory of one version, `..YYYY_MM_DD_HH_MM_SS.<digits>`.
pub(super) fn is_volatile(segment: &[u8]) -> bool {
    let Some(rest) = segment.strip_prefix(b"..") else {
        return false;
    };
    if segment == DATA_LINK {
        return true;
    }
    const STAMP: &[u8] = b"dddd_dd_dd_dd_dd_dd.";
    let Some((stamp, serial)) = rest.split_at_checked(STAMP.len()) else {
        return false;
    };
    let fits = |(&have, &want): (&u8, &u8)| {
        if want == b'd' { have.is_ascii_digit() } else { have == want }
    };
    stamp.iter().zip(STAMP).all(fits) && !serial.is_empty() && serial.iter().all(u8::is_ascii_digit)
}

/// Which form of a name is walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Every segment.
    Raw,
    /// Without the segments for which [`is_volatile`] holds.
    Stable,
}

/// The segments of a name, without empty ones.
#[derive(Debug, Clone)]
pub(super) struct Segments<'a> {
    name: &'a [u8],
    at: usize,
    form: Form,
}

impl<'a> Segments<'a> {
    pub(super) fn new(name: &'a [u8], form: Form) -> Segments<'a> {
        Segments { name, at: 0, form }
    }

    /// What is left to walk, starting with the slash of the next segment (or empty).
    pub(super) fn rest(&self) -> &'a [u8] {
        self.name.get(self.at..).unwrap_or_default()
    }

    /// What has been walked.
    pub(super) fn walked(&self) -> &'a [u8] {
        self.name.get(..self.at).unwrap_or_default()
    }
}

impl<'a> Iterator for Segments<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        loop {
            let rest = self.rest();
            let start = rest.iter().position(|&byte| byte != b'/')?;
            let segment = rest.get(start..)?;
            let segment = segment.split(|&byte| byte == b'/').next()?;
            self.at += start + segment.len();
            if self.form == Form::Raw || !is_volatile(segment) {
                return Some(segment);
            }
        }
    }
}

/// How many segments `name` has in either form.
pub(super) fn count(name: &[u8]) -> (u32, u32) {
    let mut raw = 0;
    let mut stable = 0;
    for segment in Segments::new(name, Form::Raw) {
        raw += 1;
        stable += u32::from(!is_volatile(segment));
    }
    (raw, stable)
}

/// The stable form of `name`, written out.
pub(super) fn stable(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    for segment in Segments::new(name, Form::Stable) {
        out.push(b'/');
        out.extend_from_slice(segment);
    }
    if out.is_empty() {
        out.push(b'/');
    }
    out
}

/// If `name` (in `form`) is `base` or lies below it: the segments that are left below `base`.
pub(super) fn below<'a>(base: &[u8], name: &'a [u8], form: Form) -> Option<Segments<'a>> {
    let mut segments = Segments::new(name, form);
    for wanted in Segments::new(base, Form::Raw) {
        if segments.next()? != wanted {
            return None;
        }
    }
    Some(segments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubelets_segments_are_told_apart() {
        for segment in ["..data", "..2026_11_23_07_33_24.2418249251", "..2026_11_23_07_33_24.0"] {
            assert!(is_volatile(segment.as_bytes()), "{segment}");
        }
        for segment in [
            "",
            "..",
            "..dat",
            "..data_tmp",
            ".data",
            "data",
            "..2026_11_23_07_33_24.",
            "..2026_11_23_07_33_24",
            "..2026_11_23_07_33_24.12x",
            "..2026-11-23-07-33-24.12",
            "..é026_11_23_07_33_24.12",
        ] {
            assert!(!is_volatile(segment.as_bytes()), "{segment}");
        }
    }

    #[test]
    fn forms() {
        assert_eq!(stable(b"/s/..2026_11_23_07_33_24.1/a/..data/b"), b"/s/a/b");
        assert_eq!(stable(b"/..data"), b"/");
        assert_eq!(stable(b"//a///b/"), b"/a/b");
        assert_eq!(count(b"/s/..data/x"), (3, 2));
        assert_eq!(below(b"/s", b"/s/a/b", Form::Raw).map(|s| s.rest()), Some(&b"/a/b"[..]));
        assert_eq!(below(b"/", b"/", Form::Raw).map(|s| s.rest()), Some(&b"/"[..]));
        assert!(below(b"/s", b"/sa", Form::Raw).is_none());
    }
}

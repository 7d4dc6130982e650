//! A pattern and a name, divided by the first NUL: whatever they are, matching ends, and its parts agree.

use janusd::policy::PathPattern;

/// # Panics
/// When the pattern breaks a promise.
pub(crate) fn run(data: &[u8]) {
    let mut parts = data.splitn(2, |&byte| byte == 0);
    let (Some(written), name) = (parts.next(), parts.next().unwrap_or(b"/")) else {
        return;
    };
    let Ok(written) = str::from_utf8(written) else {
        return;
    };
    let Ok(pattern) = PathPattern::parse(written) else {
        return;
    };
    assert!(pattern.base().starts_with(b"/"));
    assert!(pattern.is_glob() || pattern.matches(pattern.base()));
    assert!(pattern.may_match_below(b"/"));
    assert!(pattern.may_match_below(pattern.base()));
    let again = PathPattern::parse(&pattern.to_string()).expect("what was written parses again");
    assert!(again.means_the_same(&pattern));
    let absolute = name.starts_with(b"/") && !name.windows(2).any(|two| two == b"//");
    if pattern.matches(name) && absolute {
        assert!(pattern.may_match_below(name));
        let moved = pattern.rebase(b"/moved/\xff".to_vec());
        if let Some(rest) = name.strip_prefix(pattern.base())
            && pattern.base() != b"/"
            && !name.windows(3).any(|three| three == b"/..")
        {
            assert!(moved.matches(&[b"/moved/\xff", rest].concat()));
        }
    }
}

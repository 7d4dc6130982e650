//! Any bytes as the beginning of a program: telling its interpreter ends, with an absolute path or none.

use janusd::process::interpreter::interpreter;

/// # Panics
/// When the parser breaks a promise.
pub(crate) fn run(data: &[u8]) {
    if let Some(path) = interpreter(&mut &*data).expect("reading from memory") {
        assert!(path.starts_with(b"/") && path.len() < 4096 && !path.contains(&0));
    }
}

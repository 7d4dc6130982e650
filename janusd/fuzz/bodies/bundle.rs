//! Any bytes as what a runtime left for a container: its name is a name, and how it is written does not matter.

use janusd::container::bundle::{Bundle, parse};
use serde_json::Value;

/// # Panics
/// When the parser breaks a promise.
pub(crate) fn run(data: &[u8]) {
    let bundle = parse(data);
    if let Some(Bundle { name, sandbox }) = &bundle {
        assert_eq!(*sandbox, name.is_none());
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        assert!(name.iter().all(|name| (1..=63).contains(&name.len()) && name.bytes().all(fits)));
        // Some documents are understood that have no value: numbers that are too large, where nobody asks for them.
        if let Ok(value) = serde_json::from_slice::<Value>(data) {
            let again = serde_json::to_vec_pretty(&value).expect("a value");
            assert_eq!(parse(&again), bundle);
        }
    }
}

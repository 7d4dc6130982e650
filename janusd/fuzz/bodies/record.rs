//! Any bytes as what a read of a fanotify group returns: taking them apart ends, and takes no byte twice.

use janusd::fanotify::record::{METADATA, Records};

/// # Panics
/// When the parser breaks a promise.
pub(crate) fn run(data: &[u8]) {
    let mut taken = 0;
    let mut ended = false;
    for record in Records::new(data) {
        assert!(!ended, "a record after an error");
        match record {
            Ok(record) => {
                taken += METADATA;
                let _ = record.question();
            }
            Err(_) => ended = true,
        }
    }
    assert!(taken <= data.len());
}

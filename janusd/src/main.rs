//! The janusd command.
fn main() {}

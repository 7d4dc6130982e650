//! `janus-controller crd`: the definition that the types make, as YAML.

use std::io::{self, Write};

use anyhow::Context;
use janus_crd::JanusGuard;
use kube::CustomResourceExt;

/// What a reader of `deploy/base/crd.yaml` has to know. Part of the output, so that the file is the output.
const HEADER: &str = "\
# Generated from the types in janus-crd. Change those, then run:
#   cargo run -p janus-controller -- crd > deploy/base/crd.yaml
";

/// Writes the definition; the same types always make the same text.
pub(crate) fn print(out: &mut impl Write) -> anyhow::Result<()> {
    let yaml = serde_saphyr::to_string(&JanusGuard::crd()).context("writing the definition as YAML")?;
    match write!(out, "{HEADER}{yaml}").and_then(|()| out.flush()) {
        // A reader that has seen enough, as in `janus-controller crd | head`, is no failure.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("printing the definition"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deployed_definition_is_what_the_types_make() {
        let mut printed = Vec::new();
        print(&mut printed).unwrap();
        let deployed = include_str!("../../deploy/base/crd.yaml");
        assert!(
            String::from_utf8(printed).unwrap() == deployed,
            "deploy/base/crd.yaml differs from the types: cargo run -p janus-controller -- crd > deploy/base/crd.yaml"
        );
    }
}

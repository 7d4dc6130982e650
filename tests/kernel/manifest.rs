//! Manifests, as short as they can be written.

/// A guard named `g` whose subjects are given as YAML flow mappings.
pub(crate) fn guard(subjects: &[&str]) -> String {
    guard_with("g", &[], subjects)
}

/// A guard with a name and more lines of its spec.
pub(crate) fn guard_with(name: &str, spec: &[&str], subjects: &[&str]) -> String {
    let mut manifest = format!(
        "apiVersion: januscontroller.clustergarage.io/v1alpha1\n\
         kind: JanusGuard\n\
         metadata: {{name: {name}, namespace: default}}\n\
         spec:\n  selector: {{}}\n"
    );
    for line in spec {
        manifest.push_str(&format!("  {line}\n"));
    }
    manifest.push_str("  subjects:\n");
    for subject in subjects {
        manifest.push_str(&format!("  - {subject}\n"));
    }
    manifest
}

/// Several documents in one file.
pub(crate) fn together(manifests: &[String]) -> String {
    manifests.join("---\n")
}

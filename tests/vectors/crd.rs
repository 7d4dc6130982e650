//! The CRD against the vectors: its schema and its CEL rules, without an API server.
//!
//! Stands in for the API server in what decides a verdict: nulls and defaults, the schema, then CEL. Not in pruning:
//! unknown fields are left alone, so that a refusal of one is not mistaken for one of the schema.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are not seen as tests")]

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use janus_crd::JanusGuard;
use jsonschema::PatternOptions;
use kube::{
    CustomResourceExt,
    core::cel::{ErrorKind, Validator},
};
use serde_json::Value;

/// A manifest, and what its first lines demand of who reads it.
struct Vector {
    name: String,
    manifest: Value,
    field: Option<String>,
    daemon_only: bool,
}

fn vectors(verdict: &str) -> Vec<Vector> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors/manifests").join(verdict);
    let mut files: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| read(file)).collect()
}

fn read(file: &Path) -> Vector {
    let text = fs::read_to_string(file).unwrap();
    let head = |key: &str| text.lines().take(3).find_map(|line| line.strip_prefix(key)).map(str::to_owned);
    assert!(head("# why: ").is_some(), "{} does not say why", file.display());
    Vector {
        name: file.file_name().unwrap().to_string_lossy().into_owned(),
        manifest: serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display())),
        field: head("# field: "),
        daemon_only: head("# by: ").is_some_and(|by| by == "daemon"),
    }
}

/// The API server's two judges.
struct Crd {
    schema: Value,
    validator: jsonschema::Validator,
}

impl Crd {
    fn new() -> Self {
        let crd = JanusGuard::crd();
        let schema = crd.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
        let schema = serde_json::to_value(schema).unwrap();
        let validator = jsonschema::options()
            // The regex crate speaks RE2's language, as the API server does; the default engine knows look-around.
            .with_pattern_options(PatternOptions::regex())
            .build(&schema)
            .unwrap();
        Self { schema, validator }
    }

    /// Field and message of everything that is wrong.
    fn judge(&self, manifest: &Value) -> Vec<(String, String)> {
        let manifest = kube::core::cel::apply_defaults(&self.schema, &without_nulls(manifest.clone()));
        let mut errors: Vec<_> = self
            .validator
            .iter_errors(&manifest)
            .map(|error| (field(error.instance_path().as_str(), error.kind()), error.to_string()))
            .collect();
        // Like the API server, which evaluates rules on valid values only.
        if errors.is_empty()
            && let Err(broken) = Validator::new().validate(&self.schema, &manifest, None)
        {
            errors.extend(broken.into_vec().into_iter().map(|error| {
                assert_eq!(error.kind, ErrorKind::ValidationFailure, "a rule does not work: {error}");
                (error.field_path, error.message)
            }));
        }
        errors
    }
}

/// What the API server makes of a field that is null and not nullable, before defaults: nothing. An entry of a list stays.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => map
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key, without_nulls(value)))
            .collect(),
        Value::Array(entries) => entries.into_iter().map(without_nulls).collect(),
        other => other,
    }
}

/// A JSON pointer as kubectl writes it; for a required field that field itself.
fn field(pointer: &str, kind: &jsonschema::error::ValidationErrorKind) -> String {
    let mut path = String::new();
    for segment in pointer.split('/').skip(1) {
        if segment.bytes().all(|byte| byte.is_ascii_digit()) {
            write!(path, "[{segment}]").unwrap();
        } else {
            path.push_str(if path.is_empty() { "" } else { "." });
            path.push_str(segment);
        }
    }
    if let jsonschema::error::ValidationErrorKind::Required { property } = kind {
        path.push_str(if path.is_empty() { "" } else { "." });
        path.push_str(property.as_str().unwrap());
    }
    path
}

#[test]
fn accepts_what_it_must() {
    let crd = Crd::new();
    let wrong: Vec<_> = vectors("accepted")
        .into_iter()
        .map(|vector| (vector.name, crd.judge(&vector.manifest)))
        .filter(|(_, errors)| !errors.is_empty())
        .collect();
    assert!(wrong.is_empty(), "refused: {wrong:#?}");
}

#[test]
fn accepts_the_examples() {
    let crd = Crd::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
    for file in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let manifest: Value = serde_saphyr::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        let errors = crd.judge(&manifest);
        assert!(errors.is_empty(), "{}: {errors:?}", file.display());
    }
}

#[test]
fn refuses_what_it_must_and_names_the_field() {
    let crd = Crd::new();
    let mut wrong = Vec::new();
    for vector in vectors("refused") {
        let field = vector.field.expect("a refused manifest names a field");
        let errors = crd.judge(&vector.manifest);
        let right = if vector.daemon_only {
            // Else the line "by: daemon" would hide what the API server does.
            errors.is_empty()
        } else {
            errors.iter().any(|(path, _)| *path == field)
        };
        if !right {
            wrong.push((vector.name, field, errors));
        }
    }
    assert!(wrong.is_empty(), "accepted, or blamed on another field: {wrong:#?}");
}

#[test]
fn types_read_what_the_schema_accepts() {
    let crd = Crd::new();
    for vector in vectors("accepted") {
        let guard: JanusGuard = serde_json::from_value(without_nulls(vector.manifest.clone()))
            .unwrap_or_else(|error| panic!("{}: {error}", vector.name));
        let written = serde_json::to_value(&guard).unwrap();
        let errors = crd.judge(&written);
        assert!(errors.is_empty(), "{}: written back as {written}: {errors:?}", vector.name);
    }
}

#[test]
fn the_vectors_are_many() {
    assert!(vectors("accepted").len() >= 35);
    assert!(vectors("refused").len() >= 90);
}

#[test]
fn every_field_has_a_description() {
    fn undescribed(schema: &Value, path: &str, found: &mut Vec<String>) {
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            if !property["description"].is_string() {
                found.push(path.clone());
            }
            undescribed(property, &path, found);
            undescribed(&property["items"], &path, found);
        }
    }
    let mut found = Vec::new();
    undescribed(&Crd::new().schema, "", &mut found);
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn no_defaults_inside_a_list() {
    fn defaults(schema: &Value, in_list: bool, found: &mut Vec<Value>) {
        if in_list && schema.get("default").is_some() {
            found.push(schema.clone());
        }
        for property in schema["properties"].as_object().into_iter().flat_map(|map| map.values()) {
            defaults(property, in_list, found);
        }
        if schema["items"].is_object() {
            defaults(&schema["items"], true, found);
        }
    }
    let mut found = Vec::new();
    defaults(&Crd::new().schema, false, &mut found);
    assert!(found.is_empty(), "{found:#?}");
}

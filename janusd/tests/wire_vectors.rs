//! The manifests of `tests/vectors/manifests` as messages of the wire: the same verdict, and the same field.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use janus_proto::v1;
use janusd::manifest;
use janusd::policy::GuardSpec;
use janusd::wire::Create;
use serde_json::Value;

/// Vectors that no message can hold, by what the wire has no form for.
const INEXPRESSIBLE: &[(Why, &[&str])] = &[
    (
        Why::Kind,
        &["api-version-group", "api-version-missing", "api-version-wrong", "kind-case", "kind-missing", "kind-wrong"],
    ),
    (
        Why::Selector,
        &[
            "selector-129-values",
            "selector-33-expressions",
            "selector-65-labels",
            "selector-doesnotexist-values",
            "selector-exists-values",
            "selector-expression-unknown-field",
            "selector-in-empty-values",
            "selector-in-no-values",
            "selector-key-empty",
            "selector-key-missing",
            "selector-key-name-64",
            "selector-key-prefix-254",
            "selector-key-prefix-upper",
            "selector-key-syntax",
            "selector-key-two-slashes",
            "selector-label-key-64",
            "selector-label-key-syntax",
            "selector-label-value-64",
            "selector-label-value-number",
            "selector-label-value-syntax",
            "selector-missing",
            "selector-notin-no-values",
            "selector-null",
            "selector-operator-case",
            "selector-operator-missing",
            "selector-operator-unknown",
            "selector-shorthand",
            "selector-unknown-field",
            "selector-value-64",
            "selector-value-syntax",
        ],
    ),
    (
        Why::UnknownField,
        &[
            "except-unknown-field",
            "unknown-field-argus",
            "unknown-field-case",
            "unknown-field-misspelt",
            "unknown-field-spec",
            "unknown-field-subject",
            "unknown-field-top",
        ],
    ),
    (
        Why::WrongType,
        &[
            "audit-string",
            "containers-string",
            "deny-null-entry",
            "deny-number",
            "deny-string",
            "events-null-entry",
            "events-string",
            "except-null-matcher",
            "except-object",
            "except-user-fraction",
            "except-user-name",
            "except-user-quoted",
            "log-format-number",
            "max-depth-fraction",
            "max-depth-string",
            "mount-number",
            "recursive-string",
            "spec-list",
            "subjects-object",
            "tags-list",
            "tags-value-bool",
            "tags-value-number",
        ],
    ),
    (Why::NotAUint32, &["except-user-negative", "max-depth-negative"]),
    (Why::DepthOfOne, &["max-depth-not-recursive", "max-depth-not-recursive-second"]),
    (Why::EmptyIsUnset, &["except-empty-executables", "except-empty-origins", "except-empty-users"]),
];

/// What the wire has no form for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Why {
    /// A message has one kind and one version.
    Kind,
    /// The controller selects.
    Selector,
    /// A message is made by code that knows its fields.
    UnknownField,
    /// A string where a number is due: fields have types.
    WrongType,
    /// A negative number: the field has no sign.
    NotAUint32,
    /// `recursive: false` is a depth of 1, and has no second one.
    DepthOfOne,
    /// An empty list is one that is not set.
    EmptyIsUnset,
}

type Turned<T> = Result<T, Why>;

fn vectors(kind: &str) -> Vec<(String, String)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors/manifests").join(kind);
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    assert!(files.len() > 20, "only {} vectors in {}", files.len(), folder.display());
    files
        .into_iter()
        .map(|path| (path.file_stem().unwrap().to_string_lossy().into_owned(), fs::read_to_string(&path).unwrap()))
        .collect()
}

/// The fields of an object; null is absence.
fn fields<'v>(value: &'v Value, known: &[&str]) -> Turned<BTreeMap<&'v str, &'v Value>> {
    let Value::Object(entries) = value else { return Err(Why::WrongType) };
    if entries.keys().any(|key| !known.contains(&key.as_str())) {
        return Err(Why::UnknownField);
    }
    Ok(entries.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.as_str(), value)).collect())
}

fn text(value: &Value) -> Turned<String> {
    value.as_str().map(str::to_owned).ok_or(Why::WrongType)
}

fn boolean(value: Option<&&Value>) -> Turned<Option<bool>> {
    value.map(|value| value.as_bool().ok_or(Why::WrongType)).transpose()
}

fn uint32(value: &Value) -> Turned<u32> {
    match value {
        Value::Number(number) if number.is_i64() || number.is_u64() => {
            number.as_u64().and_then(|number| u32::try_from(number).ok()).ok_or(Why::NotAUint32)
        }
        _ => Err(Why::WrongType),
    }
}

fn list<T>(value: Option<&&Value>, item: impl Fn(&Value) -> Turned<T>) -> Turned<Vec<T>> {
    match value {
        None => Ok(Vec::new()),
        Some(Value::Array(items)) => items.iter().map(item).collect(),
        Some(_) => Err(Why::WrongType),
    }
}

/// A word as its number; one that is not known as a number that is not.
fn number<'w>(words: &'w [(&'w str, i32)]) -> impl Fn(&Value) -> Turned<i32> + 'w {
    |value| {
        let word = text(value)?;
        Ok(words.iter().find(|(known, _)| *known == word).map_or(99, |(_, number)| *number))
    }
}

fn matcher(value: &Value) -> Turned<v1::ProcessMatcher> {
    let fields = fields(value, &["executables", "users", "origins"])?;
    if fields.values().any(|value| value.as_array().is_some_and(Vec::is_empty)) {
        return Err(Why::EmptyIsUnset);
    }
    let origins = [("Owner", 1), ("Session", 2), ("Pod", 3), ("Node", 4)];
    Ok(v1::ProcessMatcher {
        executables: list(fields.get("executables"), text)?,
        users: list(fields.get("users"), uint32)?,
        origins: list(fields.get("origins"), number(&origins))?,
    })
}

const SUBJECT: [&str; 13] = [
    "name",
    "allow",
    "deny",
    "events",
    "recursive",
    "maxDepth",
    "onlyDir",
    "mount",
    "autoAllowOwner",
    "except",
    "audit",
    "tags",
    "log",
];

fn subject(value: &Value) -> Turned<v1::Subject> {
    let fields = fields(value, &SUBJECT)?;
    let mut events = Vec::new();
    for word in list(fields.get("events"), text)? {
        match word.as_str() {
            // Written out on the wire. A test for length has 17 words; that `all` makes three of one does not matter.
            "all" => events.extend([1, 2, 3]),
            word => events.push(number(&[("open", 1), ("access", 2), ("execute", 3)])(&word.into())?),
        }
    }
    let depth = fields.get("maxDepth").map(|depth| uint32(depth)).transpose()?;
    let max_depth = match (boolean(fields.get("recursive"))?, depth) {
        (Some(false), Some(_)) => return Err(Why::DepthOfOne),
        (Some(false), None) => Some(1),
        (_, depth) => depth,
    };
    let tags = match fields.get("tags") {
        None => BTreeMap::new(),
        Some(Value::Object(tags)) => {
            tags.iter().map(|(key, value)| Ok((key.clone(), text(value)?))).collect::<Turned<_>>()?
        }
        Some(_) => return Err(Why::WrongType),
    };
    Ok(v1::Subject {
        name: fields.get("name").map(|name| text(name)).transpose()?,
        allow: list(fields.get("allow"), text)?,
        deny: list(fields.get("deny"), text)?,
        events,
        recursion: max_depth.map(|max_depth| v1::Recursion { max_depth }),
        only_dir: boolean(fields.get("onlyDir"))?.unwrap_or(false),
        mount: boolean(fields.get("mount"))?.unwrap_or(false),
        except: list(fields.get("except"), matcher)?,
        audit: boolean(fields.get("audit"))?.unwrap_or(false),
        tags,
        log: fields.get("log").map_or(Ok(1), |log| number(&[("All", 1), ("Denied", 2), ("None", 3)])(log))?,
        auto_allow_owner: boolean(fields.get("autoAllowOwner"))?.unwrap_or(false),
    })
}

fn message(yaml: &str, field: &str) -> Turned<v1::CreateGuardRequest> {
    if field.starts_with("spec.selector") {
        return Err(Why::Selector);
    }
    if field == "apiVersion" || field == "kind" {
        return Err(Why::Kind);
    }
    let value: Value = serde_saphyr::from_str(yaml).unwrap();
    let top = fields(&value, &["apiVersion", "kind", "metadata", "spec", "status"])?;
    let metadata = top.get("metadata").and_then(|metadata| metadata.as_object()).cloned().unwrap_or_default();
    let name_of = |key: &str, default: &str| metadata.get(key).map_or(Ok(default.to_owned()), text);
    let namespace = name_of("namespace", "default")?;
    let known = ["selector", "containers", "subjects", "logFormat", "enforcement", "failurePolicy"];
    let spec = match top.get("spec") {
        None => None,
        Some(spec) => {
            let fields = fields(spec, &known)?;
            let choice = |name: &str, words: &[(&str, i32)]| {
                fields.get(name).map_or(Ok(words[0].1), |value| number(words)(value))
            };
            Some(v1::GuardSpec {
                containers: list(fields.get("containers"), text)?,
                subjects: list(fields.get("subjects"), subject)?,
                log_format: fields.get("logFormat").map_or(Ok(String::new()), |format| text(format))?,
                enforcement: choice("enforcement", &[("Enforce", 1), ("Audit", 2)])?,
                failure_policy: choice("failurePolicy", &[("Allow", 1), ("Deny", 2)])?,
            })
        }
    };
    Ok(v1::CreateGuardRequest {
        caller: Some(v1::Caller { epoch: 1, node: "node-a".into() }),
        guard: Some(v1::GuardRef {
            uid: "6c1b3f2e-0d0a-4c8e-9a51-3c4f5a6b7c8d".into(),
            namespace: namespace.clone(),
            name: name_of("name", "")?,
            generation: 1,
        }),
        pod: Some(v1::PodRef {
            uid: "0b0c6b5e-6a0e-4f0e-8f0a-1d2c3b4a5968".into(),
            cgroup_uid: String::new(),
            namespace,
            name: "web-0".into(),
        }),
        spec,
        container_ids: Vec::new(),
    })
}

/// All that a guard means, but for its selector.
fn meaning(spec: &GuardSpec) -> String {
    let subjects: Vec<String> = spec
        .subjects()
        .iter()
        .map(|it| {
            format!(
                "{:?}",
                (
                    (it.name(), it.allow(), it.deny(), it.events(), it.depth(), it.only_dir()),
                    (it.mount(), it.auto_allow_owner(), it.except(), it.audit(), it.tags(), it.log()),
                )
            )
        })
        .collect();
    let whole = (spec.name(), spec.containers(), spec.log_format(), spec.enforcement(), spec.failure_policy());
    format!("{whole:?} {subjects:?}")
}

#[test]
fn what_a_manifest_may_say_means_the_same_on_the_wire() {
    let mut wrong = Vec::new();
    for (name, yaml) in vectors("accepted") {
        let manifest = manifest::parse(&name, yaml.as_bytes()).unwrap().remove(0);
        match Create::try_from(message(&yaml, "").unwrap_or_else(|why| panic!("{name}: {why:?}"))) {
            Ok(create) if meaning(&create.spec) == meaning(&manifest) => {}
            Ok(create) => wrong.push(format!("{name}:\n{}\n{}", meaning(&manifest), meaning(&create.spec))),
            Err(invalid) => wrong.push(format!("{name}: {invalid}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_a_manifest_may_not_say_is_refused_on_the_wire() {
    let mut wrong = Vec::new();
    let mut inexpressible: BTreeMap<Why, BTreeSet<String>> = BTreeMap::new();
    let mut judged = 0;
    for (name, yaml) in vectors("refused") {
        let field = yaml.lines().find_map(|line| line.strip_prefix("# field: ")).unwrap().trim();
        let request = match message(&yaml, field) {
            Ok(request) => request,
            Err(why) => {
                inexpressible.entry(why).or_default().insert(name);
                continue;
            }
        };
        judged += 1;
        let field = match field.strip_prefix("metadata") {
            // The wire has the names without the object around them.
            Some(name) => format!("guard{}", if name.is_empty() { ".name" } else { name }),
            None => field.to_owned(),
        };
        match Create::try_from(request) {
            Ok(_) => wrong.push(format!("{name}: accepted")),
            Err(invalid) => {
                if invalid.fields().any(|fault| fault.field != field) {
                    wrong.push(format!("{name}: wanted {field} alone: {invalid:?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    let listed: BTreeMap<Why, BTreeSet<String>> = INEXPRESSIBLE
        .iter()
        .map(|(why, names)| (*why, names.iter().map(|name| (*name).to_owned()).collect()))
        .collect();
    assert_eq!(inexpressible, listed);
    assert!(judged > 100, "only {judged} were judged");
}

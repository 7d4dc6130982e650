//! What a manifest that cannot be honoured is told: file, line, field, reason; and that none of it hangs or gets through.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::{Duration, Instant};

use janusd::manifest::{self, MAX_BYTES};
use janusd::policy::{Enforcement, FailurePolicy, GuardSpec};
use proptest::prelude::*;

const GOOD: &str = "\
apiVersion: januscontroller.clustergarage.io/v1alpha1
kind: JanusGuard
metadata:
  name: good
spec:
  selector: {}
  subjects:
    - deny: [/etc/shadow]
      events: [open]
";

fn refused(text: &str) -> Vec<String> {
    refused_bytes(text.as_bytes())
}

fn refused_bytes(bytes: &[u8]) -> Vec<String> {
    manifest::parse("g.yaml", bytes).unwrap_err().iter().map(ToString::to_string).collect()
}

#[test]
fn defaults() {
    let guards = manifest::parse("g.yaml", GOOD.as_bytes()).unwrap();
    let guard = &guards[0];
    assert_eq!(guard.name().to_string(), "default/good");
    assert_eq!(guard.enforcement(), Enforcement::Enforce);
    assert_eq!(guard.failure_policy(), FailurePolicy::Allow);
    assert_eq!(guard.subjects()[0].name(), "0");
    assert_eq!(guard.subjects()[0].depth(), u32::MAX);
    assert!(guard.containers().is_empty());
}

#[test]
fn every_error_of_every_document_is_told() {
    let text = format!(
        "{GOOD}---\n---\n{}---\n{}",
        GOOD.replace("good", "other").replace("[open]", "[modify, close]\n      recursive: yes"),
        GOOD.replace("/etc/shadow", "etc, /a/../b").replace("good", "Third"),
    );
    assert_eq!(
        refused(&text),
        [
            "g.yaml:21: document 2: spec.subjects[0].recursive: must be true or false, is a string",
            "g.yaml:20: document 2: spec.subjects[0].events[0]: unknown event `modify`: must be open, access, execute or all",
            "g.yaml:20: document 2: spec.subjects[0].events[1]: unknown event `close`: must be open, access, execute or all",
            "g.yaml:26: document 3: metadata.name: must be a DNS subdomain: at most 253 of a-z, 0-9, `-` and `.`, each part \
             with a letter or digit at either end",
            "g.yaml:30: document 3: spec.subjects[0].deny[0]: must be an absolute path",
            "g.yaml:30: document 3: spec.subjects[0].deny[1]: a segment may not be `.` or `..`, nor become one by expansion",
        ]
    );
}

#[test]
fn a_guard_may_be_there_once() {
    assert_eq!(
        refused(&format!("{GOOD}---\n{GOOD}")),
        ["g.yaml:11: document 2: metadata.name: the guard default/good is there twice, first at g.yaml:1"]
    );
    let other = GOOD.replace("name: good", "name: good\n  namespace: other");
    assert_eq!(manifest::parse("g.yaml", format!("{GOOD}---\n{other}").as_bytes()).unwrap().len(), 2);
    let twice = manifest::parse_all([("a", GOOD.as_bytes()), ("b", GOOD.as_bytes())]).unwrap_err();
    assert_eq!((twice[0].file.as_str(), twice.len()), ("b", 1));
}

#[test]
fn what_is_no_manifest() {
    assert_eq!(refused(""), ["g.yaml: holds no document"]);
    assert_eq!(refused("---\n# nothing\n---\n"), ["g.yaml: holds no document"]);
    assert_eq!(refused("hello"), ["g.yaml:1: must be an object, is a string"]);
    assert_eq!(refused_bytes(b"a: 1\nb: \xff\n"), ["g.yaml:2: is not UTF-8 (at byte 8)"]);
    assert_eq!(refused_bytes(&vec![b' '; MAX_BYTES + 1]), ["g.yaml: is larger than 1048576 bytes"]);
    for text in ["a: [", "a: b: c", "\t- x", "a: *nobody", "%YAML 9.9\n---\na", "- &a [*a]", "? [a]\n: b"] {
        let errors = refused(text);
        assert!(errors.len() == 1 && errors[0].starts_with("g.yaml:"), "{text}: {errors:?}");
    }
}

#[test]
fn surprises_of_yaml_are_refused() {
    let with = |from: &str, to: &str| refused(&GOOD.replace(from, to)).join("\n");
    assert!(with("  selector: {}", "  selector: {}\n  selector: {}").contains("duplicate"));
    assert_eq!(with("  selector: {}", "  <<: {selector: {}}"), "g.yaml:6: merge keys (`<<`) are not supported");
    assert_eq!(
        with("/etc/shadow", "0777"),
        "g.yaml:8: spec.subjects[0].deny[0]: must be a string (quote it), is a number"
    );
    assert_eq!(
        with("events: [open]", "events: [open]\n      maxDepth: '1'"),
        "g.yaml:10: spec.subjects[0].maxDepth: must be an integer, is a string"
    );
    assert_eq!(
        with("events: [open]", "events: [open]\n      tags: {on: true}"),
        "g.yaml:10: spec.subjects[0].tags.on: must be a string (quote it), is a boolean"
    );
    // Aliases are plain YAML and no surprise.
    let aliased = GOOD.replace("[/etc/shadow]", "&paths [/etc/shadow]\n      allow: *paths");
    assert!(manifest::parse("g.yaml", aliased.as_bytes()).is_ok());
}

#[test]
fn lists_as_kubectl_prints_them() {
    let item = GOOD.trim_end().replace('\n', "\n  ");
    let list = format!("apiVersion: v1\nkind: List\nitems:\n- {item}\n- {}\n", item.replace("good", "other"));
    assert_eq!(manifest::parse("g.yaml", list.as_bytes()).unwrap().len(), 2);
    assert_eq!(
        refused(&list.replacen("[open]", "[shut]", 1)),
        ["g.yaml:12: items[0].spec.subjects[0].events[0]: unknown event `shut`: must be open, access, execute or all"]
    );
}

#[test]
fn another_kind_is_told_once() {
    assert_eq!(
        refused("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\nspec: {replicas: 1}"),
        [
            "g.yaml:1: apiVersion: must be januscontroller.clustergarage.io/v1alpha1, is `apps/v1`",
            "g.yaml:2: kind: must be JanusGuard, is `Deployment`",
        ]
    );
}

#[test]
fn errors_are_bounded() {
    let bad = GOOD.replace("/etc/shadow", &vec!["x"; 120].join(","));
    let errors = refused(&bad);
    assert_eq!(errors.len(), 101);
    assert_eq!(errors[100], "g.yaml: and 20 more errors");
}

/// Errors quote the manifest, which may come from anywhere.
#[test]
fn an_error_is_one_harmless_line() {
    for text in [
        GOOD.replace("[open]", "[\"o\\npen\\u001b[2J\\u202e\"]"),
        GOOD.replace("  selector: {}", "  selector: {}\n  \"evil\\n\\u001b]0;x\\a\": 1"),
        GOOD.replace("good", "\"a\\nb\""),
        "\"\\u001b\": [".to_owned(),
    ] {
        for error in refused(&text) {
            assert!(!error.chars().any(|c| c.is_control() || c == '\u{202e}'), "{error:?}");
        }
    }
    let errors = manifest::parse("evil\nname", b"").unwrap_err();
    assert_eq!(errors[0].to_string(), "evil\\nname: holds no document");
}

#[test]
fn bombs_are_defused() {
    let start = Instant::now();
    let mut aliases = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for level in 1..12 {
        let inner = vec![format!("*a{}", level - 1); 10].join(",");
        aliases.push_str(&format!("a{level}: &a{level} [{inner}]\n"));
    }
    let deep_flow = "[".repeat(100_000);
    let deep_block: String = (0..600).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    let many_keys: String = (0..60_000).map(|key| format!("k{key}: v\n")).collect();
    let many_documents = "---\na\n".repeat(100_000);
    let many_errors = format!("{GOOD}---\n").repeat(4_000);
    let long_key = format!("{}: x", "k".repeat(500_000));
    let anchors: String = (0..50_000).map(|anchor| format!("- &a{anchor} x\n")).collect();
    for text in [aliases, deep_flow, deep_block, many_keys, many_documents, many_errors, long_key, anchors] {
        assert!(!refused(&text).is_empty());
    }
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

fn yamlish() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "apiVersion: januscontroller.clustergarage.io/v1alpha1\n",
        "kind: JanusGuard\n",
        "metadata:\n",
        "  name: x\n",
        "spec:\n",
        "  selector: {}\n",
        "  subjects:\n",
        "    - deny: [/a]\n",
        "      events: [all]\n",
        "---\n",
        "- ",
        "  ",
        "&a ",
        "*a ",
        "{",
        "}",
        "[",
        "]",
        ": ",
        ", ",
        "|\n",
        "> ",
        "'",
        "\"",
        "#",
        "!!str ",
        "<<: ",
        "\t",
        "\n",
        "~",
        "é",
    ]);
    prop::collection::vec(piece, 0..30).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn nothing_panics(text in yamlish(), bytes: Vec<u8>) {
        for bytes in [text.as_bytes(), &bytes] {
            if let Err(errors) = manifest::parse("f", bytes) {
                prop_assert!(!errors.is_empty());
                for error in errors {
                    prop_assert!(!error.to_string().contains('\n'));
                }
            }
        }
    }

    #[test]
    fn one_wrong_byte_is_an_error_or_another_guard(at: prop::sample::Index, byte: u8) {
        let mut bytes = GOOD.as_bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let guards: Vec<GuardSpec> = manifest::parse("f", &bytes).unwrap_or_default();
        prop_assert!(guards.len() <= 1);
    }
}

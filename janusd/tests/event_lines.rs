//! Event lines: the default is v0.1.0's, and nothing in a container can break or forge one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use janusd::line::{EventLine, LogFormat, Printable, Specifier, render, render_json};
use janusd::policy::{DEFAULT_LOG_FORMAT, Event, Outcome};
use proptest::prelude::*;

fn rendered(format: &str, event: &EventLine<'_>) -> String {
    let mut out = String::new();
    render(&LogFormat::parse(format).unwrap(), event, &mut out);
    out
}

fn json(event: &EventLine<'_>) -> String {
    let mut out = String::new();
    render_json(event, &mut out);
    out
}

#[test]
fn the_default_is_as_in_v0_1_0() {
    let tags = BTreeMap::from([("foo".to_owned(), "bar".to_owned())]);
    let mut event = EventLine {
        path: Some(b"/path/to/file.ext"),
        pod: Some("foo-1-pod"),
        node: Some("barnode"),
        tags: Some(&tags),
        ..EventLine::new(Outcome::Allow, Event::Access, false)
    };
    let line = "<ALLOW> ACCESS_PERM file '/path/to/file.ext' (foo-1-pod:barnode) foo=bar";
    assert_eq!(rendered(DEFAULT_LOG_FORMAT, &event), line);
    assert_eq!(LogFormat::default(), LogFormat::parse(DEFAULT_LOG_FORMAT).unwrap());
    assert_eq!(LogFormat::default(), LogFormat::parse("").unwrap());
    event.tags = None;
    event.outcome = Outcome::Audit;
    event.directory = true;
    assert_eq!(
        rendered(DEFAULT_LOG_FORMAT, &event),
        "<AUDIT> ACCESS_PERM directory '/path/to/file.ext' (foo-1-pod:barnode)"
    );
}

/// Where nothing follows a field but tags that are not there, its own blanks stay: `/a ` is not `/a`.
#[test]
fn a_blank_that_ends_a_path_is_shown() {
    let of = |path| {
        let event = EventLine { path: Some(path), ..EventLine::new(Outcome::Deny, Event::Open, false) };
        ["{path}{tags}", "{path} {tags}", "{path} {tags} {tags}"].map(|format| rendered(format, &event))
    };
    assert_eq!(of(b"/a"), ["/a", "/a", "/a"]);
    assert_eq!(of(b"/a "), ["/a ", "/a ", "/a "]);
}

#[test]
fn every_specifier() {
    let tags = BTreeMap::from([("a,b".to_owned(), "c=d".to_owned()), ("e=f".to_owned(), "g,h\n".to_owned())]);
    let event = EventLine {
        time: Some(UNIX_EPOCH + Duration::from_micros(1_795_423_080_000_042)),
        path: Some(b"/a b"),
        pod: Some("pod"),
        node: Some("node"),
        tags: Some(&tags),
        namespace: Some("ns"),
        guard: Some("guard"),
        subject: Some("it's"),
        container: Some("app"),
        rule: Some("/a*"),
        reason: Some("rule-deny"),
        origin: Some("Session"),
        pid: Some(42),
        comm: Some(b"ca\xfft"),
        exe: Some(b"/bin/cat"),
        uid: Some(0),
        ..EventLine::new(Outcome::Deny, Event::Open, false)
    };
    let format: String = Specifier::ALL.iter().map(|field| format!("{{{}}}|", field.word())).collect();
    assert_eq!(
        rendered(&format, &event),
        "2026-11-23T08:38:00.000042Z|DENY|OPEN_PERM|file|/a b|pod|node|a\\,b=c=d,e\\=f=g\\,h\\n|ns|guard|it\\'s|app|/a*|\
         rule-deny|Session|42|ca\\xfft|/bin/cat|0|"
    );
    let value: serde_json::Value = serde_json::from_str(&json(&event)).unwrap();
    for field in Specifier::ALL {
        assert!(value.get(field.word()).is_some(), "{}", field.word());
    }
    assert_eq!(value["tags"]["a,b"], "c=d");
    assert_eq!(value["comm"], "ca\u{fffd}t");
    assert_eq!(value["comm_hex"], "6361ff74");
    assert_eq!(value["pid"], 42);
    assert!(value.get("path_hex").is_none());
}

#[test]
fn what_is_unknown_is_a_dash() {
    let event = EventLine::new(Outcome::Deny, Event::Execute, false);
    assert_eq!(rendered("{pid} {comm} {time} {path}", &event), "- - - -");
    assert_eq!(rendered("{event}{tags}", &event), "OPEN_EXEC_PERM");
    let value: serde_json::Value = serde_json::from_str(&json(&event)).unwrap();
    assert!(value["pid"].is_null() && value["path"].is_null());
}

#[test]
fn templates() {
    let event = EventLine { path: Some(b"/p"), ..EventLine::new(Outcome::Allow, Event::Open, false) };
    assert_eq!(rendered("{{{path}}} {{}}", &event), "{/p} {}");
    assert_eq!(rendered("a\t{path}\n", &event), "a\t/p");
    assert_eq!(rendered("a\n\u{1b}{path}", &event), "a\\n\\x1b/p");
    for (bad, why) in [
        ("{file}", "unknown specifier `{file}`"),
        ("{", "`{` is not closed; write `{{` for a brace"),
        ("{path", "`{` is not closed; write `{{` for a brace"),
        ("a}", "`}` without `{`; write `}}` for a brace"),
        ("{path}}}}", "`}` without `{`; write `}}` for a brace"),
        ("{Path}", "unknown specifier `{Path}`"),
        ("{}", "unknown specifier `{}`"),
    ] {
        assert_eq!(LogFormat::parse(bad).unwrap_err().to_string(), why, "{bad}");
    }
    assert!(LogFormat::parse(&"é".repeat(1024)).is_ok());
    assert!(LogFormat::parse(&"é".repeat(1025)).is_err());
    assert!(LogFormat::parse("{pid}").unwrap().shows(Specifier::Pid));
}

#[test]
fn times() {
    for (seconds, text) in [
        (0, "1970-01-01T00:00:00.000000Z"),
        (951_782_400, "2000-02-29T00:00:00.000000Z"),
        (1_709_251_199, "2024-02-29T23:59:59.000000Z"),
        (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
    ] {
        let event = EventLine {
            time: Some(UNIX_EPOCH + Duration::from_secs(seconds)),
            ..EventLine::new(Outcome::Allow, Event::Open, false)
        };
        assert_eq!(rendered("{time}", &event), text);
    }
}

/// Bytes with what is most likely to do harm in them.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        any::<u8>().prop_map(|byte| vec![byte]),
        any::<char>().prop_map(|c| c.to_string().into_bytes()),
        prop::sample::select(vec![
            "\n",
            "\r",
            "\\",
            "'",
            "\\n",
            "\\x0a",
            "\u{85}",
            "\u{2028}",
            "\u{202e}",
            "\u{2066}",
            "\u{1b}[2J",
            "\u{7f}",
            "\u{0}",
            "\\u{85}",
            "é",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
    ];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

fn harmless(text: &str) -> bool {
    !text.chars().any(|c| {
        c.is_control()
            || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn one_event_is_one_line(path in bytes(), comm in bytes(), tag in "\\PC*|[\\x00-\\x20]*") {
        let tags = BTreeMap::from([(tag.clone(), tag.clone())]);
        let event = EventLine {
            path: Some(&path),
            comm: Some(&comm),
            tags: Some(&tags),
            subject: Some(&tag),
            ..EventLine::new(Outcome::Deny, Event::Open, false)
        };
        let line = rendered("{path} {comm} {tags} {subject}", &event);
        prop_assert!(harmless(&line));
        prop_assert!(harmless(&json(&event)));
        prop_assert!(harmless(&Printable(&tag).to_string()));
        let value: serde_json::Value = serde_json::from_str(&json(&event)).unwrap();
        prop_assert_eq!(value["path"].as_str().unwrap(), String::from_utf8_lossy(&path));
        // A quote inside would end the path for whoever reads the default format.
        let quoted = rendered("'{path}'", &event);
        let mut inside = quoted[1..quoted.len() - 1].chars();
        while let Some(c) = inside.next() {
            prop_assert_ne!(c, '\'');
            if c == '\\' {
                inside.next();
            }
        }
    }

    #[test]
    fn two_paths_never_look_the_same(a in bytes(), b in bytes()) {
        let line = |path: &[u8]| {
            rendered("{path}", &EventLine { path: Some(path), ..EventLine::new(Outcome::Deny, Event::Open, false) })
        };
        let object = |path: &[u8]| {
            json(&EventLine { path: Some(path), ..EventLine::new(Outcome::Deny, Event::Open, false) })
        };
        prop_assert_eq!(a == b, line(&a) == line(&b));
        prop_assert_eq!(a == b, object(&a) == object(&b));
    }

    #[test]
    fn no_template_is_too_odd(written in "[{}a-z\\n\\t\\\\]{0,30}|(\\{(path|pid|tags|x)\\}|\\{\\{|.){0,9}") {
        if let Ok(format) = LogFormat::parse(&written) {
            let event = EventLine::new(Outcome::Allow, Event::Open, false);
            let mut out = String::new();
            render(&format, &event, &mut out);
            prop_assert!(!out.contains('\n'));
        }
    }
}

//! A template, two paths, a process's name and a tag, divided by NULs: a line is one line, steers no terminal, and can be
//! read back.

use std::collections::BTreeMap;

use janusd::line::{EventLine, LogFormat, Printable, Specifier, escaped, render, render_json};
use janusd::policy::{Event, Outcome, Piece};
use serde_json::Value;

/// # Panics
/// When a line breaks a promise.
pub(crate) fn run(data: &[u8]) {
    let mut parts = data.split(|&byte| byte == 0);
    let mut part = || parts.next().unwrap_or_default();
    let (template, path, other, comm) = (part(), part(), part(), part());
    let (key, value) = (String::from_utf8_lossy(part()), String::from_utf8_lossy(part()));
    for bytes in [template, path, other, comm] {
        let shown = escaped(bytes);
        calm(&shown);
        assert_eq!(undo(&shown), bytes);
    }
    let text = String::from_utf8_lossy(data);
    calm(&Printable(&text).to_string());

    let tags = BTreeMap::from([(key.to_string(), value.to_string()), ("k".to_owned(), text.to_string())]);
    let event = EventLine {
        path: Some(path),
        comm: Some(comm),
        exe: Some(other),
        container: Some(&value),
        rule: Some(&key),
        pid: Some(7),
        tags: Some(&tags),
        ..EventLine::new(Outcome::Deny, Event::Open, false)
    };
    assert_eq!(pairs(&line(&LogFormat::parse("{tags}").expect("a template"), &event)), tags);
    if let Ok(format) = str::from_utf8(template).map_err(drop).and_then(|it| LogFormat::parse(it).map_err(drop)) {
        written(&format, &event);
        for tags in [None, Some(&tags)] {
            let one = line(&format, &EventLine { tags, ..event.clone() });
            let two = line(&format, &EventLine { tags, path: Some(other), ..event.clone() });
            assert!(one != two || path == other || !format.shows(Specifier::Path), "two paths look the same");
        }
    }
    json(&event, path, &tags);
}

fn line(format: &LogFormat, event: &EventLine<'_>) -> String {
    let mut out = "before ".to_owned();
    render(format, event, &mut out);
    out.strip_prefix("before ").expect("what was there stays").to_owned()
}

fn written(format: &LogFormat, event: &EventLine<'_>) {
    assert_eq!(LogFormat::parse(&format.to_string()).as_ref(), Ok(format));
    let shown = line(format, event);
    calm(&shown.replace('\t', " "));
    let texts = format.pieces().iter().map(|piece| match piece {
        Piece::Text(text) => text.matches('\t').count(),
        Piece::Field(_) => 0,
    });
    assert_eq!(shown.matches('\t').count(), texts.sum::<usize>(), "tabs are the author's only");
}

fn json(event: &EventLine<'_>, path: &[u8], tags: &BTreeMap<String, String>) {
    let mut out = String::new();
    render_json(event, &mut out);
    calm(&out);
    let object: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(object["path"], Value::from(String::from_utf8_lossy(path)));
    let hex = path.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(object.get("path_hex"), str::from_utf8(path).is_err().then(|| Value::from(hex)).as_ref());
    assert_eq!(object["tags"], serde_json::to_value(tags).expect("a map of strings"));
    assert_eq!(object["pid"], 7);
}

/// Nothing in it breaks a line, steers a terminal, or reorders what stands beside it.
fn calm(shown: &str) {
    let wild = |c: char| {
        c.is_control()
            || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    assert!(!shown.contains(wild), "{shown:?}");
}

/// One character of an escaped text, what it stands for, and whether it was escaped.
fn next(shown: &mut &str) -> Option<(Vec<u8>, bool)> {
    let mut chars = shown.chars();
    let first = chars.next()?;
    if first != '\\' {
        *shown = chars.as_str();
        return Some((first.to_string().into_bytes(), false));
    }
    let meant = match chars.next().expect("a backslash escapes something") {
        'n' => b"\n".to_vec(),
        'r' => b"\r".to_vec(),
        't' => b"\t".to_vec(),
        'x' => {
            let (digits, rest) = chars.as_str().split_at(2);
            chars = rest.chars();
            vec![u8::from_str_radix(digits, 16).expect("hexadecimal")]
        }
        'u' => {
            let (digits, rest) = chars.as_str().strip_prefix('{').and_then(|it| it.split_once('}')).expect("in braces");
            chars = rest.chars();
            let number = u32::from_str_radix(digits, 16).expect("hexadecimal");
            char::from_u32(number).expect("a character").to_string().into_bytes()
        }
        other => {
            assert!(matches!(other, '\\' | '\'' | ',' | '='), "{other:?} is escaped");
            vec![other as u8]
        }
    };
    *shown = chars.as_str();
    Some((meant, true))
}

fn undo(mut shown: &str) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some((meant, escaped)) = next(&mut shown) {
        assert!(escaped || meant != b"'", "a quote ends the field");
        out.extend(meant);
    }
    out
}

/// Reads `k=v,k=v`.
fn pairs(mut shown: &str) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut now = (Vec::new(), None::<Vec<u8>>);
    let mut end = |(key, value): (Vec<u8>, Option<Vec<u8>>)| {
        let text = |bytes| String::from_utf8(bytes).expect("text");
        assert!(all.insert(text(key), text(value.expect("a value"))).is_none(), "one key twice");
    };
    while let Some((meant, escaped)) = next(&mut shown) {
        match (&mut now, meant.as_slice(), escaped) {
            (_, b",", false) => end(std::mem::take(&mut now)),
            ((_, value @ None), b"=", false) => *value = Some(Vec::new()),
            ((_, Some(value)), meant, _) => value.extend(meant),
            ((key, None), meant, _) => key.extend(meant),
        }
    }
    end(now);
    all
}

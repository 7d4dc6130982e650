//! One event, one line.
//!
//! Paths, process names and tags come from tenants. Whatever they hold, a rendered event is one line, cannot steer a
//! terminal, and two different paths never look the same.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};

use crate::policy::{Event, Outcome, Piece};
pub use crate::policy::{LogFormat, Specifier};

/// What is told about one event. What is not known is `None`, and shown as `-`.
#[derive(Debug, Clone)]
pub struct EventLine<'a> {
    /// When it was answered.
    pub time: Option<SystemTime>,
    /// What became of it.
    pub outcome: Outcome,
    /// What was asked for.
    pub event: Event,
    /// Whether the file is a directory.
    pub directory: bool,
    /// The file as the container sees it.
    pub path: Option<&'a [u8]>,
    /// The pod's name.
    pub pod: Option<&'a str>,
    /// The node's name.
    pub node: Option<&'a str>,
    /// The subject's tags.
    pub tags: Option<&'a BTreeMap<String, String>>,
    /// The guard's namespace.
    pub namespace: Option<&'a str>,
    /// The guard's name.
    pub guard: Option<&'a str>,
    /// The name (or index) of the subject that decided.
    pub subject: Option<&'a str>,
    /// The container's name.
    pub container: Option<&'a str>,
    /// The path of the rule that decided, as written.
    pub rule: Option<&'a str>,
    /// Why it fell so: [`crate::policy::Reason::word`].
    pub reason: Option<&'a str>,
    /// Where the process comes from: [`crate::policy::Origin::word`].
    pub origin: Option<&'a str>,
    /// The process.
    pub pid: Option<u32>,
    /// Its name.
    pub comm: Option<&'a [u8]>,
    /// Its executable.
    pub exe: Option<&'a [u8]>,
    /// Its user, as the container sees it.
    pub uid: Option<u32>,
}

impl EventLine<'_> {
    /// A line of which only the unavoidable is known.
    pub fn new(outcome: Outcome, event: Event, directory: bool) -> EventLine<'static> {
        EventLine {
            time: None,
            outcome,
            event,
            directory,
            path: None,
            pod: None,
            node: None,
            tags: None,
            namespace: None,
            guard: None,
            subject: None,
            container: None,
            rule: None,
            reason: None,
            origin: None,
            pid: None,
            comm: None,
            exe: None,
            uid: None,
        }
    }

    fn ftype(&self) -> &'static str {
        if self.directory { "directory" } else { "file" }
    }

    /// A field that is text.
    fn text(&self, field: Specifier) -> Option<Cow<'_, [u8]>> {
        fn borrowed(text: &str) -> Cow<'_, [u8]> {
            Cow::Borrowed(text.as_bytes())
        }
        Some(match field {
            Specifier::Response => borrowed(self.outcome.word()),
            Specifier::Event => borrowed(self.event.kernel_name()),
            Specifier::Ftype => borrowed(self.ftype()),
            Specifier::Path => Cow::Borrowed(self.path?),
            Specifier::Pod => borrowed(self.pod?),
            Specifier::Node => borrowed(self.node?),
            Specifier::Namespace => borrowed(self.namespace?),
            Specifier::Guard => borrowed(self.guard?),
            Specifier::Subject => borrowed(self.subject?),
            Specifier::Container => borrowed(self.container?),
            Specifier::Rule => borrowed(self.rule?),
            Specifier::Reason => borrowed(self.reason?),
            Specifier::Origin => borrowed(self.origin?),
            Specifier::Comm => Cow::Borrowed(self.comm?),
            Specifier::Exe => Cow::Borrowed(self.exe?),
            Specifier::Time => Cow::Owned(rfc3339(self.time?).into_bytes()),
            Specifier::Pid => Cow::Owned(self.pid?.to_string().into_bytes()),
            Specifier::Uid => Cow::Owned(self.uid?.to_string().into_bytes()),
            Specifier::Tags => return None,
        })
    }
}

/// Appends the line for `event` to `out`, without a newline.
pub fn render(format: &LogFormat, event: &EventLine<'_>, out: &mut String) {
    // What lies behind is the author's own text.
    let mut fields_end = out.len();
    let no_tags = event.tags.is_none_or(BTreeMap::is_empty);
    for piece in format.pieces() {
        match piece {
            Piece::Text(text) => {
                // A tab is the author's way to separate fields; nothing else of the kind gets through.
                for (index, part) in text.split('\t').enumerate() {
                    if index > 0 {
                        out.push('\t');
                    }
                    escape(part.as_bytes(), Quoting::Plain, out);
                }
            }
            Piece::Field(Specifier::Tags) => push_tags(event.tags, out),
            Piece::Field(field) => {
                match event.text(*field) {
                    Some(text) => escape(&text, Quoting::Quoted, out),
                    None => out.push('-'),
                }
                fields_end = out.len();
            }
        }
    }
    // Nothing to show at the end of the default format leaves no blank there. A blank that ends a path stays.
    if no_tags && format.pieces().last() == Some(&Piece::Field(Specifier::Tags)) {
        let end = out[fields_end..].trim_end_matches(' ').len();
        out.truncate(fields_end + end);
    }
}

/// Appends `k=v,k=v`. A comma (in a key also `=`) gets a backslash, so that the pairs can be told apart.
fn push_tags(tags: Option<&BTreeMap<String, String>>, out: &mut String) {
    let part = |text: &str, stops: &[char], out: &mut String| {
        let mut rest = text;
        while let Some(at) = rest.find(stops) {
            let (before, from) = rest.split_at(at);
            escape(before.as_bytes(), Quoting::Quoted, out);
            out.push('\\');
            let (stop, after) = from.split_at(1);
            out.push_str(stop);
            rest = after;
        }
        escape(rest.as_bytes(), Quoting::Quoted, out);
    };
    for (index, (key, value)) in tags.into_iter().flatten().enumerate() {
        if index > 0 {
            out.push(',');
        }
        part(key, &[',', '='], out);
        out.push('=');
        part(value, &[','], out);
    }
}

/// Appends the JSON form of `event` to `out`, without a newline: one object with every specifier as a key, null for what
/// is not known. Where bytes are no UTF-8, the text is approximate, and `<key>_hex` holds them all.
pub fn render_json(event: &EventLine<'_>, out: &mut String) {
    let mut object = Map::new();
    for field in Specifier::ALL {
        let key = field.word();
        let value = match field {
            Specifier::Tags => Value::Object(
                event
                    .tags
                    .into_iter()
                    .flatten()
                    .map(|(key, value)| (key.clone(), Value::String(value.clone())))
                    .collect(),
            ),
            Specifier::Pid => event.pid.map_or(Value::Null, Value::from),
            Specifier::Uid => event.uid.map_or(Value::Null, Value::from),
            _ => match event.text(field) {
                None => Value::Null,
                Some(bytes) => {
                    let text = String::from_utf8_lossy(&bytes);
                    if matches!(text, Cow::Owned(_)) {
                        let hex = bytes.iter().fold(String::new(), |mut hex, byte| {
                            let _ = write!(hex, "{byte:02x}");
                            hex
                        });
                        object.insert(format!("{key}_hex"), Value::String(hex));
                    }
                    Value::String(text.into_owned())
                }
            },
        };
        object.insert(key.to_owned(), value);
    }
    // JSON leaves alone what is beyond ASCII, and DEL; all of it can only stand inside a string here.
    for c in Value::Object(object).to_string().chars() {
        if is_unsafe(c) {
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
}

/// Text of unknown origin, shown on one line: what could break the line or steer a terminal is escaped.
#[derive(Debug, Clone, Copy)]
pub struct Printable<'a>(pub &'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = String::with_capacity(self.0.len());
        escape(self.0.as_bytes(), Quoting::Plain, &mut out);
        formatter.write_str(&out)
    }
}

/// Bytes of unknown origin, as a field of a log line: [`Printable`] for what need not be UTF-8.
pub fn escaped(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    escape(bytes, Quoting::Quoted, &mut out);
    out
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quoting {
    /// For a reader who only must not be deceived by control characters.
    Plain,
    /// For a field of a line: also undone by a program, so backslash and quote are escaped too.
    Quoted,
}

/// Control characters, line and paragraph separators, and what reorders the text around it.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// What comes before the first character that is escaped, that one, and what comes behind it.
fn split_at_escape(text: &str, quotes: bool) -> Option<(&str, char, &str)> {
    let at = text.find(|c| is_unsafe(c) || quotes && matches!(c, '\\' | '\''))?;
    let (plain, from) = text.split_at(at);
    let mut chars = from.chars();
    let c = chars.next()?;
    Some((plain, c, chars.as_str()))
}

/// Appends `bytes`: `\n`, `\r`, `\t`, `\xNN` for other bytes below 0x80 and those that are no UTF-8, `\u{N}` for the
/// rest of what [`is_unsafe`] names. With [`Quoting::Quoted`] no two inputs give the same output.
fn escape(bytes: &[u8], quoting: Quoting, out: &mut String) {
    for chunk in bytes.utf8_chunks() {
        let quotes = quoting == Quoting::Quoted;
        let mut rest = chunk.valid();
        while let Some((plain, c, behind)) = split_at_escape(rest, quotes) {
            out.push_str(plain);
            match c {
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\\' | '\'' => {
                    out.push('\\');
                    out.push(c);
                }
                c if c.is_ascii() => {
                    let _ = write!(out, "\\x{:02x}", u32::from(c));
                }
                c => {
                    let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
                }
            }
            rest = behind;
        }
        out.push_str(rest);
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
}

/// `2026-11-23T08:38:00.123456Z`. Times before 1970 are shown as its first moment, those beyond the year 9999 as `-`.
fn rfc3339(time: SystemTime) -> String {
    let mut text = String::new();
    match write!(text, "{}", humantime::format_rfc3339_micros(time.max(UNIX_EPOCH))) {
        Ok(()) => text,
        Err(_) => "-".to_owned(),
    }
}

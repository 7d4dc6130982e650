//! The template of an event line, `spec.logFormat`: parsed here, rendered by [`crate::line`].

use std::fmt;

/// Most code points of a template.
const MAX_LENGTH: usize = 1024;

/// The template of a guard that has none of its own, as in v0.1.0.
pub const DEFAULT_LOG_FORMAT: &str = "<{response}> {event} {ftype} '{path}' ({pod}:{node}) {tags}";

/// One field of an event, as a template names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Specifier {
    /// `{pod}`
    Pod,
    /// `{node}`
    Node,
    /// `{response}`: ALLOW, DENY, AUDIT.
    Response,
    /// `{event}`: OPEN_PERM, ACCESS_PERM, OPEN_EXEC_PERM.
    Event,
    /// `{path}`: as the container sees it.
    Path,
    /// `{ftype}`: file, directory.
    Ftype,
    /// `{tags}`: `k=v,k=v`.
    Tags,
    /// `{namespace}`
    Namespace,
    /// `{guard}`
    Guard,
    /// `{subject}`
    Subject,
    /// `{container}`
    Container,
    /// `{rule}`: the path of the rule that decided, as written.
    Rule,
    /// `{reason}`
    Reason,
    /// `{origin}`
    Origin,
    /// `{pid}`
    Pid,
    /// `{comm}`
    Comm,
    /// `{exe}`
    Exe,
    /// `{uid}`
    Uid,
    /// `{time}`: RFC 3339.
    Time,
}

impl Specifier {
    /// All of them, in the order of the JSON form.
    pub const ALL: [Specifier; 19] = [
        Specifier::Time,
        Specifier::Response,
        Specifier::Event,
        Specifier::Ftype,
        Specifier::Path,
        Specifier::Pod,
        Specifier::Node,
        Specifier::Tags,
        Specifier::Namespace,
        Specifier::Guard,
        Specifier::Subject,
        Specifier::Container,
        Specifier::Rule,
        Specifier::Reason,
        Specifier::Origin,
        Specifier::Pid,
        Specifier::Comm,
        Specifier::Exe,
        Specifier::Uid,
    ];

    /// The word between the braces, which is also the key of the JSON form.
    pub const fn word(self) -> &'static str {
        match self {
            Specifier::Pod => "pod",
            Specifier::Node => "node",
            Specifier::Response => "response",
            Specifier::Event => "event",
            Specifier::Path => "path",
            Specifier::Ftype => "ftype",
            Specifier::Tags => "tags",
            Specifier::Namespace => "namespace",
            Specifier::Guard => "guard",
            Specifier::Subject => "subject",
            Specifier::Container => "container",
            Specifier::Rule => "rule",
            Specifier::Reason => "reason",
            Specifier::Origin => "origin",
            Specifier::Pid => "pid",
            Specifier::Comm => "comm",
            Specifier::Exe => "exe",
            Specifier::Uid => "uid",
            Specifier::Time => "time",
        }
    }
}

/// Why a template was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LogFormatError(String);

/// A piece of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text as it is to appear.
    Text(String),
    /// A field of the event.
    Field(Specifier),
}

/// A template of one event line, checked. It displays as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFormat {
    written: String,
    pieces: Vec<Piece>,
}

impl LogFormat {
    /// Parses a template: `{word}` is a field, `{{` and `}}` are braces. An empty one is the default. Newlines at its end,
    /// as a YAML block leaves them, are not part of the line.
    ///
    /// # Errors
    /// [`LogFormatError`] for a template that is longer than 1,024 characters, has an unknown specifier or a lone brace.
    pub fn parse(written: &str) -> Result<LogFormat, LogFormatError> {
        let refuse = |why: String| Err(LogFormatError(why));
        if written.is_empty() {
            return Ok(LogFormat::default());
        }
        if written.chars().count() > MAX_LENGTH {
            return refuse(format!("must be at most {MAX_LENGTH} characters long"));
        }
        let mut pieces = Vec::new();
        let mut text = String::new();
        let mut rest = written.trim_end_matches(['\r', '\n']);
        while let Some(at) = rest.find(['{', '}']) {
            let (before, from) = rest.split_at(at);
            text.push_str(before);
            if let Some(after) = from.strip_prefix("{{") {
                text.push('{');
                rest = after;
            } else if let Some(after) = from.strip_prefix("}}") {
                text.push('}');
                rest = after;
            } else if let Some(inner) = from.strip_prefix('{') {
                let Some((word, after)) = inner.split_once('}') else {
                    return refuse("`{` is not closed; write `{{` for a brace".to_owned());
                };
                let Some(field) = Specifier::ALL.into_iter().find(|field| field.word() == word) else {
                    return refuse(format!("unknown specifier `{{{word}}}`"));
                };
                if !text.is_empty() {
                    pieces.push(Piece::Text(std::mem::take(&mut text)));
                }
                pieces.push(Piece::Field(field));
                rest = after;
            } else {
                return refuse("`}` without `{`; write `}}` for a brace".to_owned());
            }
        }
        text.push_str(rest);
        if !text.is_empty() {
            pieces.push(Piece::Text(text));
        }
        Ok(LogFormat { written: written.to_owned(), pieces })
    }

    /// The pieces, in order.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Whether the template shows `field`: what is not shown need not be looked up.
    pub fn shows(&self, field: Specifier) -> bool {
        self.pieces.contains(&Piece::Field(field))
    }
}

impl Default for LogFormat {
    fn default() -> LogFormat {
        // The default is a constant that a test parses; a plain text is what would be left of a broken one.
        LogFormat::parse(DEFAULT_LOG_FORMAT).unwrap_or(LogFormat { written: String::new(), pieces: Vec::new() })
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.written)
    }
}

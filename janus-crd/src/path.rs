//! The schema of a path or glob: what of its grammar a `pattern` can hold.
//!
//! The API server's patterns are RE2: no look-around, so that "no segment is `..`" is written as the `not` of a pattern.
//! They are unanchored, and count code points.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

/// Code points in a path.
const MAX_LENGTH: u32 = 1024;

/// Absolute, and no segment has more than 255 characters or is written as `.` or `..`. The one pattern whose failure is
/// common, hence apart from the others: the API server puts it into its message.
const SEGMENTS: &str = r"^(/([^/.][^/]{0,254}|\.[^/.][^/]{0,253}|\.\.[^/]{1,253})?)+$";

/// A segment that exceeds 255 bytes although it has fewer characters: it begins with enough wide ones. Anchored to a
/// slash, so that the matcher keeps one counter at a time.
const WIDE_SEGMENT: &str = r"/([^/\x00-\x7f]{128}|[^/\x00-\x{7ff}]{86}|[^/\x00-\x{ffff}]{64})";

/// Stands in for the type of a path in [`crate::Subject`] and [`crate::ProcessMatcher`], where it is a plain string.
pub(crate) struct PathText;

impl JsonSchema for PathText {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Path".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "minLength": 1,
            "maxLength": MAX_LENGTH,
            "pattern": SEGMENTS,
            "allOf": [{ "pattern": grammar() }],
            "not": { "pattern": format!("{}|{WIDE_SEGMENT}", dots()) },
        })
    }
}

/// A path without any of `*?[{\` is taken as it stands; any other is a glob.
fn grammar() -> String {
    let escape = r"\\[^/\p{Cc}]";
    // No escapes and no `[` inside a class: shells and libraries disagree on them, and `[[:alpha:]]` would not mean
    // letters.
    let class = r"\[([^!^\[\]/\\\p{Cc}][^\[\]/\\\p{Cc}]*|[!^][^\[\]/\\\p{Cc}]+)\]";
    // A star is never followed by a star, but in a segment that is `**`.
    let alternative = format!(r"(\*?([^/\\\[{{}},*\p{{Cc}}]|{escape}|{class}))*\*?");
    let brace = format!(r"\{{{alternative}(,{alternative})*\}}");
    let segment = format!(r"\*\*?|(\*?([^/\\\[{{}}*\p{{Cc}}]|{escape}|{class}|{brace}))+\*?");
    format!(r"^((/[^/*?\[{{\\\p{{Cc}}]*)+|(/({segment})?)+)$")
}

/// A segment that is `.` or `..` by expansion, or that may expand to nothing.
fn dots() -> String {
    let dot = r"(\\?\.|\[\.+\])";
    // Other alternatives of a brace, up to a comma that is neither escaped nor in a class.
    let others = r"(\\.|\[[^\]]*\]|[^{}\\\[])*";
    let brace = format!(r"\{{({others},)?{dot}{{0,2}}(,{others})?\}}");
    format!(r"/({dot}{{1,2}}|{dot}*{brace}({dot}|{brace})*)(/|$)")
}

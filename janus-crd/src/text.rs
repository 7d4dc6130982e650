//! The schemas of short texts: names, the log format, tags, user ids.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

/// A container's name, a DNS label.
pub(crate) struct ContainerName;

/// The template of an event line.
pub(crate) struct LogFormat;

/// The value of a tag.
pub(crate) struct TagValue;

/// A uid; the largest 32-bit number is `(uid_t)-1`, which is nobody's.
pub(crate) struct Uid;

/// What a `logFormat` may put between single braces.
const SPECIFIERS: [&str; 19] = [
    "pod",
    "node",
    "response",
    "event",
    "path",
    "ftype",
    "tags",
    "namespace",
    "guard",
    "subject",
    "container",
    "rule",
    "reason",
    "origin",
    "pid",
    "comm",
    "exe",
    "uid",
    "time",
];

impl JsonSchema for ContainerName {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "ContainerName".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "minLength": 1,
            "maxLength": 63,
            "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        })
    }
}

impl JsonSchema for LogFormat {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "LogFormat".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 1024,
            "pattern": format!(r"^([^{{}}]|\{{\{{|\}}\}}|\{{({})\}})*$", SPECIFIERS.join("|")),
        })
    }
}

impl JsonSchema for TagValue {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "TagValue".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "maxLength": 256 })
    }
}

impl JsonSchema for Uid {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Uid".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "format": "int64", "minimum": 0, "maximum": 4_294_967_294_u32 })
    }
}

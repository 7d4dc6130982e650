//! The shape of a JanusGuard: which fields there are and of what type. What they may hold is [`crate::policy`]'s.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::node::{Node, Value};
use crate::policy::raw::{RawGuard, RawMatcher, RawRequirement, RawSelector, RawSubject};

const API_VERSION: &str = "januscontroller.clustergarage.io/v1alpha1";
const KIND: &str = "JanusGuard";

/// A field that has the wrong shape.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) line: Option<u64>,
    pub(super) field: String,
    pub(super) reason: String,
}

/// A guard of the right shape, or with gaps where something had the wrong one.
#[derive(Debug)]
pub(super) struct Shaped {
    pub(super) raw: RawGuard,
    /// Where it begins.
    pub(super) line: Option<u64>,
    /// What stands before its field paths: `items[0].` in a List.
    pub(super) prefix: String,
    pub(super) lines: Lines,
}

/// What was found in one document.
#[derive(Debug, Default)]
pub(super) struct Document {
    pub(super) guards: Vec<Shaped>,
    pub(super) problems: Vec<Problem>,
}

/// The line of every field of a guard.
#[derive(Debug, Default)]
pub(super) struct Lines {
    lines: HashMap<String, Option<u64>>,
    refused: HashSet<String>,
}

impl Lines {
    /// The line of a field, or of what it would be in.
    pub(super) fn of(&self, field: &str) -> Option<u64> {
        let mut field = field;
        loop {
            if let Some(line) = self.lines.get(field) {
                return *line;
            }
            let end = field.rfind(['.', '[']);
            if field.is_empty() {
                return None;
            }
            field = &field[..end.unwrap_or(0)];
        }
    }

    /// Whether the field, or what it is in, has been refused already.
    pub(super) fn was_refused(&self, field: &str) -> bool {
        let mut field = field;
        loop {
            if self.refused.contains(field) {
                return true;
            }
            match field.rfind(['.', '[']) {
                Some(end) => field = &field[..end],
                None => return false,
            }
        }
    }
}

/// Reads one document.
pub(super) fn document(node: &Node) -> Document {
    let mut document = Document::default();
    if let Some(items) = list_items(node) {
        for (index, item) in items.iter().enumerate() {
            guard(item, format!("items[{index}]."), &mut document);
        }
    } else {
        guard(node, String::new(), &mut document);
    }
    document
}

/// The items of a `v1` List, which is what kubectl prints for several objects.
fn list_items(node: &Node) -> Option<&[Node]> {
    let Value::Map(entries) = &node.value else {
        return None;
    };
    let get = |name: &str| entries.iter().find(|(key, _)| key == name).map(|(_, node)| &node.value);
    match (get("apiVersion"), get("kind"), get("items")) {
        (Some(Value::Text(version)), Some(Value::Text(kind)), Some(Value::List(items)))
            if (version == "v1" && kind == "List") || (version == API_VERSION && kind == "JanusGuardList") =>
        {
            Some(items)
        }
        _ => None,
    }
}

fn guard(node: &Node, prefix: String, document: &mut Document) {
    let mut reader = Reader { lines: Lines::default(), problems: Vec::new() };
    let raw = reader.guard(node);
    document.problems.extend(reader.problems.into_iter().map(|problem| Problem {
        field: if problem.field.is_empty() {
            prefix.trim_end_matches('.').to_owned()
        } else {
            format!("{prefix}{}", problem.field)
        },
        ..problem
    }));
    if let Some(raw) = raw {
        document.guards.push(Shaped { raw, line: node.line, prefix, lines: reader.lines });
    }
}

/// The fields of an object that have not been asked for yet.
struct Fields<'n> {
    path: String,
    entries: Vec<(&'n str, &'n Node)>,
}

impl<'n> Fields<'n> {
    fn take(&mut self, name: &str) -> Option<(String, &'n Node)> {
        let at = self.entries.iter().position(|(key, _)| *key == name)?;
        let (_, node) = self.entries.swap_remove(at);
        // The API server drops a null from a field that may be absent, so null is absence here too.
        (!matches!(node.value, Value::Null)).then(|| (join(&self.path, name), node))
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

struct Reader {
    lines: Lines,
    problems: Vec<Problem>,
}

impl Reader {
    fn refuse(&mut self, field: &str, line: Option<u64>, reason: impl Into<String>) {
        self.lines.refused.insert(field.to_owned());
        self.problems.push(Problem { line, field: field.to_owned(), reason: reason.into() });
    }

    fn note(&mut self, field: &str, node: &Node) {
        self.lines.lines.insert(field.to_owned(), node.line);
    }

    fn expected<T>(&mut self, field: &str, node: &Node, wanted: &str) -> Option<T> {
        self.refuse(field, node.line, format!("must be {wanted}, is {}", node.value.kind()));
        None
    }

    fn object<'n>(&mut self, path: &str, node: &'n Node) -> Option<Fields<'n>> {
        self.note(path, node);
        match &node.value {
            Value::Map(entries) => Some(Fields {
                path: path.to_owned(),
                entries: entries.iter().map(|(key, node)| (key.as_str(), node)).collect(),
            }),
            _ => self.expected(path, node, "an object"),
        }
    }

    /// Refuses the fields that nobody has asked for.
    fn finish(&mut self, fields: Fields<'_>) {
        let mut left = fields.entries;
        left.sort_by_key(|(_, node)| node.line);
        for (name, node) in left {
            self.refuse(&join(&fields.path, name), node.line, "unknown field");
        }
    }

    fn text(&mut self, path: &str, node: &Node) -> Option<String> {
        self.note(path, node);
        match &node.value {
            Value::Text(text) => Some(text.clone()),
            Value::Bool(_) | Value::Integer(_) | Value::Float => self.expected(path, node, "a string (quote it)"),
            _ => self.expected(path, node, "a string"),
        }
    }

    fn boolean(&mut self, path: &str, node: &Node) -> Option<bool> {
        self.note(path, node);
        match node.value {
            Value::Bool(value) => Some(value),
            _ => self.expected(path, node, "true or false"),
        }
    }

    fn integer(&mut self, path: &str, node: &Node) -> Option<i64> {
        self.note(path, node);
        match &node.value {
            Value::Integer(value) => match i64::try_from(*value) {
                Ok(value) => Some(value),
                Err(_) => {
                    self.refuse(path, node.line, "is out of range");
                    None
                }
            },
            Value::Float => {
                self.refuse(path, node.line, "must be an integer");
                None
            }
            _ => self.expected(path, node, "an integer"),
        }
    }

    /// A list whose items `read` reads. One that it refuses leaves a default in its place, so that those after it keep
    /// their indices; what is then said about the default is not passed on (see [`Lines::was_refused`]).
    fn list<T: Default>(
        &mut self,
        path: &str,
        node: &Node,
        mut read: impl FnMut(&mut Reader, &str, &Node) -> Option<T>,
    ) -> Option<Vec<T>> {
        self.note(path, node);
        let Value::List(items) = &node.value else {
            return self.expected(path, node, "a list");
        };
        let read = |(index, item)| read(self, &format!("{path}[{index}]"), item).unwrap_or_default();
        Some(items.iter().enumerate().map(read).collect())
    }

    fn texts(&mut self, path: &str, node: &Node) -> Option<Vec<String>> {
        self.list(path, node, Reader::text)
    }

    fn map(&mut self, path: &str, node: &Node) -> Option<BTreeMap<String, String>> {
        let fields = self.object(path, node)?;
        let mut map = BTreeMap::new();
        for (key, node) in fields.entries {
            if let Some(value) = self.text(&join(path, key), node) {
                map.insert(key.to_owned(), value);
            }
        }
        Some(map)
    }

    fn guard(&mut self, node: &Node) -> Option<RawGuard> {
        let mut fields = self.object("", node)?;
        let version = self.constant(&mut fields, node, "apiVersion", API_VERSION);
        let kind = self.constant(&mut fields, node, "kind", KIND);
        if !(version && kind) {
            // Another kind of object has other fields; to name them all would bury the error.
            return None;
        }
        let mut raw = RawGuard { namespace: "default".to_owned(), ..RawGuard::default() };
        match fields.take("metadata") {
            Some((path, node)) => self.metadata(&path, node, &mut raw),
            None => self.refuse("metadata.name", node.line, "is required"),
        }
        // What `kubectl get -o yaml` prints is to be accepted, and a status says nothing about what is wanted.
        fields.take("status");
        match fields.take("spec") {
            Some((path, node)) => self.spec(&path, node, &mut raw),
            None => self.refuse("spec", node.line, "is required"),
        }
        self.finish(fields);
        Some(raw)
    }

    fn constant(&mut self, fields: &mut Fields<'_>, whole: &Node, name: &str, wanted: &str) -> bool {
        let Some((path, node)) = fields.take(name) else {
            self.refuse(name, whole.line, format!("is required: {wanted}"));
            return false;
        };
        match self.text(&path, node) {
            Some(text) if text == wanted => true,
            Some(text) => {
                self.refuse(&path, node.line, format!("must be {wanted}, is `{text}`"));
                false
            }
            None => false,
        }
    }

    /// Other fields of the metadata are Kubernetes' own affair.
    fn metadata(&mut self, path: &str, node: &Node, raw: &mut RawGuard) {
        let Some(mut fields) = self.object(path, node) else {
            return;
        };
        match fields.take("name") {
            Some((path, node)) => raw.name = self.text(&path, node).unwrap_or_default(),
            None => self.refuse("metadata.name", node.line, "is required"),
        }
        if let Some((path, node)) = fields.take("namespace") {
            raw.namespace = self.text(&path, node).unwrap_or_default();
        }
    }

    fn spec(&mut self, path: &str, node: &Node, raw: &mut RawGuard) {
        let Some(mut fields) = self.object(path, node) else {
            return;
        };
        if let Some((path, node)) = fields.take("selector") {
            raw.selector = self.selector(&path, node);
        }
        if let Some((path, node)) = fields.take("containers") {
            raw.containers = self.texts(&path, node).unwrap_or_default();
        }
        if let Some((path, node)) = fields.take("subjects") {
            raw.subjects = self.list(&path, node, Reader::subject).unwrap_or_default();
        }
        if let Some((path, node)) = fields.take("logFormat") {
            raw.log_format = self.text(&path, node);
        }
        if let Some((path, node)) = fields.take("enforcement") {
            raw.enforcement = self.text(&path, node);
        }
        if let Some((path, node)) = fields.take("failurePolicy") {
            raw.failure_policy = self.text(&path, node);
        }
        self.finish(fields);
    }

    fn selector(&mut self, path: &str, node: &Node) -> Option<RawSelector> {
        let mut fields = self.object(path, node)?;
        let mut raw = RawSelector::default();
        if let Some((path, node)) = fields.take("matchLabels") {
            raw.match_labels = self.map(&path, node).unwrap_or_default();
        }
        if let Some((path, node)) = fields.take("matchExpressions") {
            raw.match_expressions = self.list(&path, node, Reader::requirement).unwrap_or_default();
        }
        self.finish(fields);
        Some(raw)
    }

    fn requirement(&mut self, path: &str, node: &Node) -> Option<RawRequirement> {
        let mut fields = self.object(path, node)?;
        let mut raw = RawRequirement::default();
        match fields.take("key") {
            Some((path, node)) => raw.key = self.text(&path, node).unwrap_or_default(),
            None => self.refuse(&join(path, "key"), node.line, "is required"),
        }
        match fields.take("operator") {
            Some((path, node)) => raw.operator = self.text(&path, node).unwrap_or_default(),
            None => self.refuse(&join(path, "operator"), node.line, "is required"),
        }
        if let Some((path, node)) = fields.take("values") {
            raw.values = self.texts(&path, node).unwrap_or_default();
        }
        self.finish(fields);
        Some(raw)
    }

    fn subject(&mut self, path: &str, node: &Node) -> Option<RawSubject> {
        let mut fields = self.object(path, node)?;
        let mut raw = RawSubject::default();
        if let Some((path, node)) = fields.take("name") {
            raw.name = self.text(&path, node);
        }
        if let Some((at, node)) = fields.take("allow") {
            raw.allow = self.paths(&at, node);
        }
        if let Some((at, node)) = fields.take("deny") {
            raw.deny = self.paths(&at, node);
        }
        if let Some((path, node)) = fields.take("events") {
            raw.events = self.texts(&path, node).unwrap_or_default();
        }
        if let Some((path, node)) = fields.take("recursive") {
            raw.recursive = self.boolean(&path, node);
        }
        if let Some((path, node)) = fields.take("maxDepth") {
            raw.max_depth = self.integer(&path, node);
        }
        if let Some((path, node)) = fields.take("onlyDir") {
            raw.only_dir = self.boolean(&path, node);
        }
        if let Some((path, node)) = fields.take("mount") {
            raw.mount = self.boolean(&path, node);
        }
        if let Some((path, node)) = fields.take("autoAllowOwner") {
            raw.auto_allow_owner = self.boolean(&path, node);
        }
        if let Some((path, node)) = fields.take("except") {
            raw.except = self.list(&path, node, Reader::matcher).unwrap_or_default();
        }
        if let Some((path, node)) = fields.take("audit") {
            raw.audit = self.boolean(&path, node);
        }
        if let Some((path, node)) = fields.take("tags") {
            raw.tags = self.map(&path, node).unwrap_or_default();
        }
        if let Some((path, node)) = fields.take("log") {
            raw.log = self.text(&path, node);
        }
        self.finish(fields);
        Some(raw)
    }

    /// A list of paths. One that cannot be read counts as holding something: its subject is not empty as well.
    fn paths(&mut self, path: &str, node: &Node) -> Vec<String> {
        self.texts(path, node).unwrap_or_else(|| vec![String::new()])
    }

    fn matcher(&mut self, path: &str, node: &Node) -> Option<RawMatcher> {
        let mut fields = self.object(path, node)?;
        let mut raw = RawMatcher::default();
        if let Some((path, node)) = fields.take("executables") {
            raw.executables = self.texts(&path, node).or(Some(Vec::new()));
        }
        if let Some((path, node)) = fields.take("users") {
            raw.users = self.list(&path, node, Reader::integer).or(Some(Vec::new()));
        }
        if let Some((path, node)) = fields.take("origins") {
            raw.origins = self.texts(&path, node).or(Some(Vec::new()));
        }
        self.finish(fields);
        Some(raw)
    }
}

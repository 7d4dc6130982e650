//! Objects, and what happened to them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

/// Changes that are remembered of each kind. Whoever is further behind has to list again.
const REMEMBERED: usize = 20_000;
/// Fields that can be selected by.
const FIELDS: [&str; 4] = ["metadata.name", "metadata.namespace", "spec.nodeName", "status.phase"];

/// What there can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Pod,
    Guard,
    Lease,
    Event,
    Namespace,
}

impl Kind {
    pub(super) fn of(plural: &str) -> Option<Kind> {
        Some(match plural {
            "pods" => Kind::Pod,
            "janusguards" => Kind::Guard,
            "leases" => Kind::Lease,
            "events" => Kind::Event,
            "namespaces" => Kind::Namespace,
            _ => return None,
        })
    }

    /// `apiVersion` and `kind`.
    pub(super) fn words(self) -> (&'static str, &'static str) {
        match self {
            Kind::Pod => ("v1", "Pod"),
            Kind::Guard => ("januscontroller.clustergarage.io/v1alpha1", "JanusGuard"),
            Kind::Lease => ("coordination.k8s.io/v1", "Lease"),
            Kind::Event => ("events.k8s.io/v1", "Event"),
            Kind::Namespace => ("v1", "Namespace"),
        }
    }
}

/// Why something was not done.
#[derive(Debug, Clone)]
pub(super) enum Refused {
    NotFound,
    AlreadyExists,
    Conflict(String),
    Invalid(String),
}

/// One object, as it was at one version.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) text: String,
    namespace: String,
    labels: BTreeMap<String, String>,
    /// Those of [`FIELDS`] that it has.
    fields: Vec<(&'static str, String)>,
}

/// From what to what.
#[derive(Debug, Clone)]
pub(super) struct Change {
    version: u64,
    old: Option<Arc<Object>>,
    new: Option<Arc<Object>>,
    /// The old one at the version of its end.
    end: Option<Arc<Object>>,
}

/// Which objects are asked for.
#[derive(Debug, Clone, Default)]
pub(super) struct Selection {
    pub(super) namespace: Option<String>,
    /// Field, whether it has to be so, value.
    pub(super) fields: Vec<(String, bool, String)>,
    pub(super) labels: Vec<(String, bool, String)>,
}

impl Selection {
    fn holds(&self, object: &Object) -> bool {
        let field = |name: &str| object.fields.iter().find(|it| it.0 == name).map_or("", |it| it.1.as_str());
        let label = |name: &str| object.labels.get(name).map_or("", String::as_str);
        self.namespace.as_ref().is_none_or(|it| *it == object.namespace)
            && self.fields.iter().all(|(name, same, value)| (field(name) == value) == *same)
            && self.labels.iter().all(|(name, same, value)| (label(name) == value) == *same)
    }
}

#[derive(Default)]
struct Shelf {
    objects: BTreeMap<(String, String), Arc<Object>>,
    history: VecDeque<Change>,
    /// What happened up to this version is forgotten.
    forgotten: u64,
}

pub(super) struct Store {
    version: u64,
    uids: u64,
    shelves: HashMap<Kind, Shelf>,
}

/// A page of a list.
pub(super) struct Page {
    pub(super) objects: Vec<Arc<Object>>,
    pub(super) version: u64,
    /// Where the next one begins.
    pub(super) next: Option<(String, String)>,
}

impl Store {
    pub(super) fn new() -> Store {
        Store { version: 1, uids: 0, shelves: HashMap::new() }
    }

    fn shelf(&mut self, kind: Kind) -> &mut Shelf {
        self.shelves.entry(kind).or_default()
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Whoever watches has to list again.
    pub(super) fn forget_history(&mut self) {
        // Otherwise those who have just listed would seem to be up to date.
        self.version += 1;
        let version = self.version;
        for shelf in self.shelves.values_mut() {
            shelf.history.clear();
            shelf.forgotten = version;
        }
    }

    pub(super) fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<Value> {
        let object = self.shelves.get(&kind)?.objects.get(&(namespace.to_owned(), name.to_owned()))?;
        Some(serde_json::from_str(&object.text).unwrap())
    }

    pub(super) fn all(&self, kind: Kind) -> Vec<Value> {
        let objects = self.shelves.get(&kind).into_iter().flat_map(|shelf| shelf.objects.values());
        objects.map(|object| serde_json::from_str(&object.text).unwrap()).collect()
    }

    pub(super) fn list(
        &mut self,
        kind: Kind,
        selection: &Selection,
        after: Option<(String, String)>,
        limit: usize,
    ) -> Page {
        let version = self.version;
        let mut page = Page { objects: Vec::new(), version, next: None };
        let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        for (key, object) in self.shelf(kind).objects.range((from, std::ops::Bound::Unbounded)) {
            if !selection.holds(object) {
                continue;
            }
            page.objects.push(object.clone());
            if page.objects.len() == limit {
                page.next = Some(key.clone());
                break;
            }
        }
        page
    }

    /// What happened after `version`, as lines of a watch, and up to which version that is; `None`: it is forgotten.
    pub(super) fn since(&mut self, kind: Kind, selection: &Selection, version: u64) -> Option<(Vec<String>, u64)> {
        let now = self.version;
        let shelf = self.shelf(kind);
        if version < shelf.forgotten {
            return None;
        }
        let from = shelf.history.partition_point(|change| change.version <= version);
        let line = |change: &Change| {
            let held = |object: &Option<Arc<Object>>| object.as_ref().is_some_and(|it| selection.holds(it));
            let (kind, object) = match (held(&change.old), held(&change.new)) {
                (false, true) => ("ADDED", &change.new),
                (true, true) => ("MODIFIED", &change.new),
                (true, false) => ("DELETED", if change.new.is_some() { &change.new } else { &change.end }),
                (false, false) => return None,
            };
            Some(event(kind, &object.as_ref()?.text))
        };
        Some((shelf.history.range(from..).filter_map(line).collect(), now))
    }

    pub(super) fn create(&mut self, kind: Kind, object: Value) -> Result<Value, Refused> {
        if self.shelf(kind).objects.contains_key(&names(&object)) {
            return Err(Refused::AlreadyExists);
        }
        Ok(self.put(kind, object))
    }

    /// Puts an object in the place of the one of its name, if that is of the version that it says, or it says none.
    pub(super) fn replace(&mut self, kind: Kind, object: Value) -> Result<Value, Refused> {
        let (namespace, name) = names(&object);
        let old = self.get(kind, &namespace, &name).ok_or(Refused::NotFound)?;
        for field in ["resourceVersion", "uid"] {
            let (asked, have) = (&object["metadata"][field], &old["metadata"][field]);
            if asked.as_str().is_some_and(|asked| !asked.is_empty()) && asked != have {
                return Err(Refused::Conflict(format!("{field} is {have}, not {asked}")));
            }
        }
        Ok(self.put(kind, object))
    }

    /// Deletes an object, or marks it as to be deleted while it has finalizers.
    pub(super) fn delete(&mut self, kind: Kind, namespace: &str, name: &str, uid: Option<&str>) -> Result<(), Refused> {
        let mut object = self.get(kind, namespace, name).ok_or(Refused::NotFound)?;
        if uid.is_some_and(|uid| object["metadata"]["uid"] != uid) {
            return Err(Refused::Conflict("it has another UID".to_owned()));
        }
        let held = has_finalizers(&object);
        // A pod may always have a grace, and so it is seen to go even where that is none.
        if (held || kind == Kind::Pod) && object["metadata"].get("deletionTimestamp").is_none() {
            object["metadata"]["deletionTimestamp"] = now();
            let generation = object["metadata"]["generation"].as_i64().unwrap_or(0);
            object["metadata"]["generation"] = (generation + 1).into();
            self.write(kind, object);
        }
        if held {
            return Ok(());
        }
        self.remove(kind, namespace, name);
        Ok(())
    }

    /// Removes an object.
    pub(super) fn remove(&mut self, kind: Kind, namespace: &str, name: &str) {
        let Some(old) = self.shelf(kind).objects.remove(&(namespace.to_owned(), name.to_owned())) else { return };
        self.version += 1;
        let version = self.version;
        let mut end: Value = serde_json::from_str(&old.text).unwrap();
        end["metadata"]["resourceVersion"] = version.to_string().into();
        let end = Some(Arc::new(made(&end)));
        self.remember(kind, Change { version, old: Some(old), new: None, end });
    }

    /// Puts an object there, whatever there was; the server's own fields are filled in.
    pub(super) fn put(&mut self, kind: Kind, mut object: Value) -> Value {
        let (namespace, name) = names(&object);
        let (version, word) = kind.words();
        object["apiVersion"] = version.into();
        object["kind"] = word.into();
        let old = self.get(kind, &namespace, &name);
        let metadata = &mut object["metadata"];
        match &old {
            Some(old) => {
                for field in ["uid", "creationTimestamp", "generation", "deletionTimestamp"] {
                    if let Some(value) = old["metadata"].get(field) {
                        metadata[field] = value.clone();
                    }
                }
                if kind == Kind::Guard && old["spec"] != object["spec"] {
                    let generation = old["metadata"]["generation"].as_i64().unwrap_or(0);
                    object["metadata"]["generation"] = (generation + 1).into();
                }
            }
            None => {
                self.uids += 1;
                // A namespace of UIDs that nothing else makes.
                let uid = format!("9a9e7000-0000-4000-8000-{:012x}", self.uids);
                let given = metadata.get("uid").and_then(Value::as_str).is_some_and(|uid| !uid.is_empty());
                if !given {
                    metadata["uid"] = uid.into();
                }
                if metadata.get("creationTimestamp").is_none_or(Value::is_null) {
                    metadata["creationTimestamp"] = now();
                }
                if kind == Kind::Guard {
                    metadata["generation"] = 1.into();
                }
            }
        }
        if old.is_some() && object["metadata"].get("deletionTimestamp").is_some() && !has_finalizers(&object) {
            self.remove(kind, &namespace, &name);
            return object;
        }
        self.write(kind, object)
    }

    fn write(&mut self, kind: Kind, mut object: Value) -> Value {
        self.version += 1;
        let version = self.version;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let new = Arc::new(made(&object));
        let old = self.shelf(kind).objects.insert(names(&object), new.clone());
        self.remember(kind, Change { version, old, new: Some(new), end: None });
        object
    }

    fn remember(&mut self, kind: Kind, change: Change) {
        let shelf = self.shelf(kind);
        shelf.history.push_back(change);
        if shelf.history.len() > REMEMBERED
            && let Some(forgotten) = shelf.history.pop_front()
        {
            shelf.forgotten = forgotten.version;
        }
    }
}

/// A line of a watch.
pub(super) fn event(kind: &str, object: &str) -> String {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n")
}

/// Where a watch has come to.
pub(super) fn bookmark(kind: Kind, version: u64, initial: bool) -> String {
    let (api_version, word) = kind.words();
    let mut metadata = json!({ "resourceVersion": version.to_string() });
    if initial {
        metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
    }
    event("BOOKMARK", &json!({ "apiVersion": api_version, "kind": word, "metadata": metadata }).to_string())
}

fn made(object: &Value) -> Object {
    let fields = FIELDS.iter().filter_map(|field| {
        let mut value = object;
        for part in field.split('.') {
            value = value.get(part)?;
        }
        Some((*field, value.as_str()?.to_owned()))
    });
    let labels = object["metadata"]["labels"].as_object().into_iter().flatten();
    Object {
        text: object.to_string(),
        namespace: names(object).0,
        labels: labels.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect(),
        fields: fields.collect(),
    }
}

fn names(object: &Value) -> (String, String) {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

fn has_finalizers(object: &Value) -> bool {
    object["metadata"]["finalizers"].as_array().is_some_and(|all| !all.is_empty())
}

fn now() -> Value {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now).to_string().into()
}

//! The guard itself: what to guard, in which pods, against whom.
//!
//! The doc comments of the fields are what `kubectl explain` shows. Defaults of the spec are in the schema; those of a
//! subject are in the text and in its methods only, because a default inside a list turns every client-side apply of an
//! unchanged file into a change.
//!
//! Nothing is nullable, so that the API server takes a null for an absent field before anything else looks.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    JanusGuardStatus, LabelSelector,
    path::PathText,
    text::{ContainerName, LogFormat, TagValue, Uid},
};

/// What to guard, in which pods.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "januscontroller.clustergarage.io",
    version = "v1alpha1",
    kind = "JanusGuard",
    plural = "janusguards",
    singular = "janusguard",
    shortname = "jg",
    category = "janus",
    namespaced,
    status = "JanusGuardStatus",
    doc = "A JanusGuard allows or denies processes the use of files in the containers of the pods that it selects.",
    derive = "PartialEq",
    printcolumn = r#"{"name": "Observable", "type": "integer", "jsonPath": ".status.observablePods",
        "description": "Number of pods that can be guarded"}"#,
    printcolumn = r#"{"name": "Guarded", "type": "integer", "jsonPath": ".status.guardedPods",
        "description": "Number of pods currently being guarded"}"#,
    printcolumn = r#"{"name": "Enforcement", "type": "string", "jsonPath": ".spec.enforcement",
        "description": "Whether denials are real"}"#,
    printcolumn = r#"{"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status",
        "description": "Whether every pod that can be guarded is"}"#,
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct JanusGuardSpec {
    /// Which pods of the guard's namespace are guarded. Required. An empty selector matches every pod of the namespace.
    #[schemars(extend("x-kubernetes-map-type" = "atomic"))]
    pub selector: LabelSelector,

    /// Names of the containers to guard in a selected pod: app, sidecar, init and ephemeral ones. At most 64.
    /// Default: every container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<ContainerName>", length(max = 64), extend("x-kubernetes-list-type" = "atomic"))]
    pub containers: Vec<String>,

    /// What is guarded, and how: 1 to 32 subjects. Each is judged by itself, and a deny from any subject of any guard
    /// denies. The list is replaced as a whole.
    #[schemars(length(min = 1, max = 32), extend("x-kubernetes-list-type" = "atomic"))]
    pub subjects: Vec<Subject>,

    /// Template of one line in the daemon's log for each event, at most 1024 characters. Specifiers: {pod}, {node},
    /// {response} (ALLOW, DENY, or AUDIT for what would have been denied), {event} (OPEN_PERM, ACCESS_PERM,
    /// OPEN_EXEC_PERM), {path} (as the container sees it), {ftype} (file, directory), {tags} (k=v,k=v), {namespace},
    /// {guard}, {subject}, {container}, {rule}, {reason}, {origin}, {pid}, {comm}, {exe}, {uid} and {time} (RFC 3339).
    /// {{ and }} are literal braces. Default, also when empty:
    /// "<{response}> {event} {ftype} '{path}' ({pod}:{node}) {tags}".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "LogFormat")]
    pub log_format: Option<String>,

    /// Enforce: denials are real. Audit: everything is allowed, and what Enforce would have denied is counted and
    /// logged. Default: Enforce.
    #[serde(default)]
    pub enforcement: Enforcement,

    /// The answer to an event that cannot be judged, because a deadline has passed, a lookup has failed or a worker is
    /// restarting: Allow or Deny. Once the whole daemon has died without a holder the kernel allows, whatever this says.
    /// Default: Allow.
    #[serde(default)]
    pub failure_policy: FailurePolicy,
}

/// Whether a guard's denials are real.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Enforcement {
    /// They are.
    #[default]
    Enforce,
    /// Everything is allowed; what would have been denied is counted and logged as such.
    Audit,
}

/// The answer to an event that cannot be judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FailurePolicy {
    /// Fail open.
    #[default]
    Allow,
    /// Fail closed.
    Deny,
}

/// Files, and what may be done with them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.allow) && size(self.allow) > 0 || has(self.deny) && size(self.deny) > 0")
        .message("at least one path in allow or deny is required"),
    validation = Rule::new("!has(self.maxDepth) || !has(self.recursive) || self.recursive")
        .message("maxDepth bounds a recursion that recursive: false turns off")
        .field_path(".maxDepth"),
    validation = Rule::new(concat!(
        "!has(self.onlyDir) || !self.onlyDir || ",
        r"!has(self.allow) || !self.allow.exists(p, p.matches(r'[*?\[{\\]'))",
    ))
        .message("onlyDir does not go with a glob in allow")
        .field_path(".onlyDir"),
    validation = Rule::new(concat!(
        "!has(self.onlyDir) || !self.onlyDir || ",
        r"!has(self.deny) || !self.deny.exists(p, p.matches(r'[*?\[{\\]'))",
    ))
        .message("onlyDir does not go with a glob in deny")
        .field_path(".onlyDir"),
)]
pub struct Subject {
    /// A name for logs and reasons, 1 to 63 characters, none of them a control character. Default: the subject's index
    /// in the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1, max = 63), regex(pattern = r"^\P{Cc}*$"))]
    pub name: Option<String>,

    /// Paths whose events are allowed and logged, at most 128; allow or deny must hold at least one. The most specific
    /// matching path of a subject decides (the longest literal prefix; a literal beats a glob of the same length), on a
    /// tie deny wins, and a path that nothing matches is allowed. A path is absolute and as the container sees it, at
    /// most 1024 characters, without control characters and without a segment . or .., also after expansion. A path
    /// that holds any of * ? [ { \ is a glob: * and ? match within a segment, [a-z] and [!a-z] one character of it, ** as
    /// a whole segment any number of them, {a,b} (not nested, within a segment) either, and \ (not inside of [ ]) takes
    /// the next character literally. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<PathText>", length(max = 128), extend("x-kubernetes-list-type" = "atomic"))]
    pub allow: Vec<String>,

    /// Paths whose events are denied, at most 128, written as those of allow. A denied process gets EPERM.
    /// Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<PathText>", length(max = 128), extend("x-kubernetes-list-type" = "atomic"))]
    pub deny: Vec<String>,

    /// What is judged, at least one of: open; access (read, and listing a directory); execute (execve, and the opening
    /// of a program by its interpreter); all (the three). Required.
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub events: Vec<Event>,

    /// Whether a directory stands for everything below it; with false it stands for itself and its direct children.
    /// Default: true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "bool")]
    pub recursive: Option<bool>,

    /// How many levels below a directory are guarded, at least 1, which is its direct children. Refused with
    /// recursive: false. Default: no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i32", range(min = 1, max = 2_147_483_647))]
    pub max_depth: Option<i32>,

    /// Whether a path that is not a directory is left out, and said so in the status. Refused with globs.
    /// Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "bool")]
    pub only_dir: Option<bool>,

    /// Whether each path stands for the whole mountpoint on which it lies, as the container sees it. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "bool")]
    pub mount: Option<bool>,

    /// Short for an entry {origins: [Owner]} in except: the container's own processes are not denied. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "bool")]
    pub auto_allow_owner: Option<bool>,

    /// Processes that this subject's deny does not reach: those that any of these matchers holds for. At most 16.
    /// Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub except: Vec<ProcessMatcher>,

    /// Whether the response is written to the kernel's audit log as well, as a FANOTIFY record. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "bool")]
    pub audit: Option<bool>,

    /// Tags on every log line of this subject: at most 32, keys of 1 to 63 characters, values of at most 256.
    /// Default: none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<String, TagValue>", extend("maxProperties" = 32))]
    #[x_kube(validation = Rule::new("self.all(k, size(k) >= 1 && size(k) <= 63)")
        .message("tags: a key has 1 to 63 characters"))]
    pub tags: BTreeMap<String, String>,

    /// Which events make a line: All; Denied (with enforcement Audit, those that would have been denied); None. With
    /// Denied or None the daemon may let the kernel answer repeated allowed opens by itself, and those are then not
    /// counted. Default: All.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Log")]
    pub log: Option<Log>,
}

impl Subject {
    /// Whether a directory stands for everything below it.
    pub fn recursive(&self) -> bool {
        self.recursive.unwrap_or(true)
    }

    /// Whether paths that are not directories are left out.
    pub fn only_dir(&self) -> bool {
        self.only_dir.unwrap_or(false)
    }

    /// Whether each path stands for its whole mountpoint.
    pub fn mount(&self) -> bool {
        self.mount.unwrap_or(false)
    }

    /// Whether the container's own processes are excepted, besides what `except` says.
    pub fn auto_allow_owner(&self) -> bool {
        self.auto_allow_owner.unwrap_or(false)
    }

    /// Whether the kernel's audit log gets the response.
    pub fn audit(&self) -> bool {
        self.audit.unwrap_or(false)
    }

    /// Which events make a line.
    pub fn log(&self) -> Log {
        self.log.unwrap_or_default()
    }
}

/// What a process does with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Event {
    /// It opens it.
    Open,
    /// It reads it, or lists a directory.
    Access,
    /// It executes it.
    Execute,
    /// Any of the three.
    All,
}

/// Which events of a subject make a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Log {
    /// Every one that a path of the subject matches.
    #[default]
    All,
    /// Denied ones, or in Audit those that would have been.
    Denied,
    /// None.
    None,
}

/// Processes: those for which every field that is set holds. At least one field must be set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("minProperties" = 1))]
pub struct ProcessMatcher {
    /// Executables that the process may run, as absolute paths or globs in the container, written as those of allow;
    /// compared by the file's identity and not by its name. 1 to 16. Default: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<PathText>", length(min = 1, max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub executables: Vec<String>,

    /// Numeric user ids that the process may run as, as the container sees them. 1 to 32. Default: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<Uid>", length(min = 1, max = 32), extend("x-kubernetes-list-type" = "atomic"))]
    pub users: Vec<u32>,

    /// Where the process may come from. Owner: the guarded container's own tree, from its entrypoint down. Session:
    /// brought into the container from outside, as kubectl exec and exec probes are. Pod: another container of the same
    /// pod. Node: anything else. At least one. Default: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub origins: Vec<Origin>,
}

/// Where a process comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Origin {
    /// The guarded container's own tree.
    Owner,
    /// Inside the container, but brought in from outside.
    Session,
    /// Another container of the same pod.
    Pod,
    /// Anything else.
    Node,
}

//! From a raw guard to a checked one: every bound of the contract, and every default.

use std::collections::BTreeMap;

use super::path::is_written_as_glob;
use super::raw::{RawGuard, RawMatcher, RawSubject};
use super::selector::{self, check_dns_label};
use super::spec::{
    Enforcement, FailurePolicy, GuardName, GuardSpec, Log, MAX_SUBJECTS, Origin, ProcessMatcher, SpecError, Subject,
};
use super::{Event, Events, LogFormat, PathPattern, Selector};

const MAX_CONTAINERS: usize = 64;
const MAX_PATHS: usize = 128;
const MAX_NAME: usize = 63;
const MAX_TAGS: usize = 32;
const MAX_TAG_LENGTH: usize = 256;
const MAX_MATCHERS: usize = 16;
const MAX_EXECUTABLES: usize = 16;
const MAX_USERS: usize = 32;
/// A word may be repeated.
const MAX_ORIGINS: usize = 16;
const MAX_EVENTS: usize = 16;
/// The last uid: `(uid_t) -1` means "no user" to the kernel.
const MAX_UID: i64 = u32::MAX as i64 - 1;

/// What is wrong with a guard, so far.
#[derive(Debug, Default)]
pub(super) struct Findings(Vec<SpecError>);

impl Findings {
    pub(super) fn add(&mut self, field: &str, reason: impl Into<String>) {
        self.0.push(SpecError { field: field.to_owned(), reason: reason.into() });
    }

    pub(super) fn check(&mut self, field: &str, result: Result<(), String>) {
        if let Err(reason) = result {
            self.add(field, reason);
        }
    }

    pub(super) fn at_most(&mut self, field: &str, count: usize, bound: usize) {
        if count > bound {
            self.add(field, format!("must have at most {bound} items, has {count}"));
        }
    }

    /// One of some words; the default when absent.
    fn choice<T: Copy + Default>(&mut self, field: &str, word: Option<&str>, words: &[(&str, T)]) -> T {
        let Some(word) = word else {
            return T::default();
        };
        if let Some((_, choice)) = words.iter().find(|(known, _)| *known == word) {
            return *choice;
        }
        let known: Vec<&str> = words.iter().map(|(known, _)| *known).collect();
        self.add(field, format!("unknown value `{word}`: must be {}", one_of(&known)));
        T::default()
    }

    fn paths(&mut self, field: &str, written: &[String]) -> Vec<PathPattern> {
        let mut paths = Vec::new();
        for (index, written) in written.iter().enumerate() {
            match PathPattern::parse(written) {
                Ok(path) => paths.push(path),
                Err(error) => self.add(&format!("{field}[{index}]"), error.to_string()),
            }
        }
        paths
    }

    pub(super) fn into_errors(self) -> Vec<SpecError> {
        self.0
    }
}

fn one_of(words: &[&str]) -> String {
    match words {
        [head @ .., last] if !head.is_empty() => format!("{} or {last}", head.join(", ")),
        words => words.concat(),
    }
}

/// Destructures exhaustively, so that a new field breaks the build where it must be thought about.
pub(super) fn guard(raw: RawGuard) -> Result<GuardSpec, Vec<SpecError>> {
    let RawGuard { namespace, name, selector, containers, subjects, log_format, enforcement, failure_policy } = raw;
    let mut findings = Findings(selector::check_guard_name(&namespace, &name));
    let selector = match selector {
        Some(selector) => Selector::parse(selector, &mut findings),
        None => {
            findings.add("spec.selector", "is required; an empty one, `{}`, selects every pod of the namespace");
            Selector::default()
        }
    };
    findings.at_most("spec.containers", containers.len(), MAX_CONTAINERS);
    for (index, container) in containers.iter().enumerate() {
        findings.check(&format!("spec.containers[{index}]"), check_dns_label(container));
    }
    if subjects.is_empty() {
        findings.add("spec.subjects", "must have at least one item");
    }
    findings.at_most("spec.subjects", subjects.len(), MAX_SUBJECTS);
    let subjects = subjects.into_iter().enumerate().map(|(index, raw)| subject(index, raw, &mut findings)).collect();
    let log_format = match log_format.as_deref().map(LogFormat::parse) {
        None => LogFormat::default(),
        Some(Ok(format)) => format,
        Some(Err(error)) => {
            findings.add("spec.logFormat", error.to_string());
            LogFormat::default()
        }
    };
    let enforcement = findings.choice(
        "spec.enforcement",
        enforcement.as_deref(),
        &[("Enforce", Enforcement::Enforce), ("Audit", Enforcement::Audit)],
    );
    let failure_policy = findings.choice(
        "spec.failurePolicy",
        failure_policy.as_deref(),
        &[("Allow", FailurePolicy::Allow), ("Deny", FailurePolicy::Deny)],
    );
    let errors = findings.into_errors();
    if errors.is_empty() {
        let name = GuardName { namespace, name };
        Ok(GuardSpec { name, selector, containers, subjects, log_format, enforcement, failure_policy })
    } else {
        Err(errors)
    }
}

fn subject(index: usize, raw: RawSubject, findings: &mut Findings) -> Subject {
    let RawSubject {
        name,
        allow,
        deny,
        events,
        recursive,
        max_depth,
        only_dir,
        mount,
        auto_allow_owner,
        except,
        audit,
        tags,
        log,
    } = raw;
    let at = format!("spec.subjects[{index}]");
    if let Some(name) = &name {
        findings.check(&format!("{at}.name"), check_name(name));
    }
    if allow.is_empty() && deny.is_empty() {
        findings.add(&at, "must have at least one path in allow or deny");
    }
    findings.at_most(&format!("{at}.allow"), allow.len(), MAX_PATHS);
    findings.at_most(&format!("{at}.deny"), deny.len(), MAX_PATHS);
    let only_dir = only_dir.unwrap_or(false);
    if only_dir && let Some(glob) = allow.iter().chain(&deny).find(|path| is_written_as_glob(path)) {
        findings.add(&format!("{at}.onlyDir"), format!("may not be true with a glob: `{glob}`"));
    }
    let allow = findings.paths(&format!("{at}.allow"), &allow);
    let deny = findings.paths(&format!("{at}.deny"), &deny);
    findings.at_most(&format!("{at}.events"), events.len(), MAX_EVENTS);
    let events = parse_events(&format!("{at}.events"), &events, findings);
    let recursive = recursive.unwrap_or(true);
    let max_depth = max_depth.and_then(|depth| {
        let field = format!("{at}.maxDepth");
        if !recursive {
            findings.add(&field, "may not be set with recursive: false");
        }
        match u32::try_from(depth) {
            Ok(depth) if depth >= 1 && depth <= i32::MAX as u32 => Some(depth),
            _ => {
                findings.add(&field, format!("must be from 1 to {}, is {depth}", i32::MAX));
                None
            }
        }
    });
    findings.at_most(&format!("{at}.except"), except.len(), MAX_MATCHERS);
    let except = (0..)
        .zip(except)
        .map(|(number, raw): (usize, _)| matcher(&format!("{at}.except[{number}]"), raw, findings))
        .collect();
    check_tags(&format!("{at}.tags"), &tags, findings);
    let log = findings.choice(
        &format!("{at}.log"),
        log.as_deref(),
        &[("All", Log::All), ("Denied", Log::Denied), ("None", Log::None)],
    );
    Subject {
        name: name.unwrap_or_else(|| index.to_string()),
        allow,
        deny,
        events,
        recursive,
        max_depth,
        only_dir,
        mount: mount.unwrap_or(false),
        auto_allow_owner: auto_allow_owner.unwrap_or(false),
        except,
        audit: audit.unwrap_or(false),
        tags,
        log,
    }
}

fn parse_events(field: &str, words: &[String], findings: &mut Findings) -> Events {
    if words.is_empty() {
        findings.add(field, "must have at least one of open, access, execute, all");
    }
    let mut events = Events::NONE;
    for (index, word) in words.iter().enumerate() {
        if word == "all" {
            events = Event::ALL.into_iter().fold(events, Events::with);
        } else if let Some(event) = Event::ALL.into_iter().find(|event| event.word() == word) {
            events = events.with(event);
        } else {
            findings.add(
                &format!("{field}[{index}]"),
                format!("unknown event `{word}`: must be open, access, execute or all"),
            );
        }
    }
    events
}

fn matcher(field: &str, raw: RawMatcher, findings: &mut Findings) -> ProcessMatcher {
    let RawMatcher { executables, users, origins } = raw;
    if executables.is_none() && users.is_none() && origins.is_none() {
        findings.add(field, "must set at least one of executables, users, origins");
    }
    let empty = |count: Option<usize>, name: &str, findings: &mut Findings| {
        // An empty list that is set holds for no process; one that is left out, for every process. Nobody means it.
        if count == Some(0) {
            findings.add(&format!("{field}.{name}"), "must have at least one item when set");
        }
    };
    empty(executables.as_ref().map(Vec::len), "executables", findings);
    empty(users.as_ref().map(Vec::len), "users", findings);
    empty(origins.as_ref().map(Vec::len), "origins", findings);
    let executables = executables.map(|written| {
        findings.at_most(&format!("{field}.executables"), written.len(), MAX_EXECUTABLES);
        findings.paths(&format!("{field}.executables"), &written)
    });
    let users = users.map(|users| {
        findings.at_most(&format!("{field}.users"), users.len(), MAX_USERS);
        let mut known = Vec::new();
        for (index, user) in users.into_iter().enumerate() {
            match u32::try_from(user) {
                Ok(uid) if user <= MAX_UID => known.push(uid),
                _ => findings.add(&format!("{field}.users[{index}]"), format!("must be a uid from 0 to {MAX_UID}")),
            }
        }
        known
    });
    let origins = origins.map(|words| {
        findings.at_most(&format!("{field}.origins"), words.len(), MAX_ORIGINS);
        let mut known = Vec::new();
        for (index, word) in words.iter().enumerate() {
            match Origin::ALL.into_iter().find(|origin| origin.word() == word) {
                Some(origin) => known.push(origin),
                None => findings.add(
                    &format!("{field}.origins[{index}]"),
                    format!("unknown origin `{word}`: must be Owner, Session, Pod or Node"),
                ),
            }
        }
        known
    });
    ProcessMatcher { executables, users, origins }
}

fn check_tags(field: &str, tags: &BTreeMap<String, String>, findings: &mut Findings) {
    if tags.len() > MAX_TAGS {
        findings.add(field, format!("must have at most {MAX_TAGS} entries, has {}", tags.len()));
    }
    for (key, value) in tags {
        let length = key.chars().count();
        if length == 0 || length > MAX_NAME {
            findings.add(field, format!("a key must be 1 to {MAX_NAME} characters long, `{key}` is {length}"));
        } else if value.chars().count() > MAX_TAG_LENGTH {
            findings.add(&format!("{field}.{key}"), format!("must be at most {MAX_TAG_LENGTH} characters long"));
        }
    }
}

fn check_name(name: &str) -> Result<(), String> {
    let length = name.chars().count();
    if length == 0 || length > MAX_NAME {
        Err(format!("must be 1 to {MAX_NAME} characters long"))
    } else if name.chars().any(char::is_control) {
        Err("may not contain control characters".to_owned())
    } else {
        Ok(())
    }
}

//! A guard's spec: from the wire's message to the raw guard that a manifest becomes too.

use janus_proto::v1;

use crate::policy::raw::{RawGuard, RawMatcher, RawSelector, RawSubject};

/// Most items of any list that are looked at. More than any bound of the contract, so that a longer list is refused all
/// the same, and without an error for each of its items.
const MOST: usize = 256;

/// Takes a spec apart. An enum's number that is not known becomes a word that is not known, which is refused with the
/// field that it is in.
pub(super) fn raw(namespace: String, name: String, sent: v1::GuardSpec) -> RawGuard {
    let v1::GuardSpec { containers, subjects, log_format, enforcement, failure_policy } = sent;
    RawGuard {
        namespace,
        name,
        // Whoever sends a guard to a pod has selected it.
        selector: Some(RawSelector::default()),
        containers: few(containers),
        subjects: few(subjects).into_iter().map(subject).collect(),
        log_format: Some(log_format).filter(|format| !format.is_empty()),
        enforcement: Some(match v1::Enforcement::try_from(enforcement) {
            Ok(v1::Enforcement::Enforce) => "Enforce".to_owned(),
            Ok(v1::Enforcement::Audit) => "Audit".to_owned(),
            Ok(v1::Enforcement::Unspecified) | Err(_) => unknown(enforcement),
        }),
        failure_policy: Some(match v1::FailurePolicy::try_from(failure_policy) {
            Ok(v1::FailurePolicy::Allow) => "Allow".to_owned(),
            Ok(v1::FailurePolicy::Deny) => "Deny".to_owned(),
            Ok(v1::FailurePolicy::Unspecified) | Err(_) => unknown(failure_policy),
        }),
    }
}

fn subject(sent: v1::Subject) -> RawSubject {
    let v1::Subject {
        name,
        allow,
        deny,
        events,
        recursion,
        only_dir,
        mount,
        except,
        audit,
        tags,
        log,
        auto_allow_owner,
    } = sent;
    RawSubject {
        name,
        allow: few(allow),
        deny: few(deny),
        events: few(events).into_iter().map(event).collect(),
        recursive: Some(true),
        max_depth: recursion.map(|v1::Recursion { max_depth }| i64::from(max_depth)),
        only_dir: Some(only_dir),
        mount: Some(mount),
        auto_allow_owner: Some(auto_allow_owner),
        except: few(except).into_iter().map(matcher).collect(),
        audit: Some(audit),
        tags: tags.into_iter().take(MOST).collect(),
        log: Some(match v1::LogPolicy::try_from(log) {
            Ok(v1::LogPolicy::All) => "All".to_owned(),
            Ok(v1::LogPolicy::Denied) => "Denied".to_owned(),
            Ok(v1::LogPolicy::None) => "None".to_owned(),
            Ok(v1::LogPolicy::Unspecified) | Err(_) => unknown(log),
        }),
    }
}

fn event(number: i32) -> String {
    match v1::Event::try_from(number) {
        Ok(v1::Event::Open) => "open".to_owned(),
        Ok(v1::Event::Access) => "access".to_owned(),
        Ok(v1::Event::Execute) => "execute".to_owned(),
        Ok(v1::Event::Unspecified) | Err(_) => unknown(number),
    }
}

fn origin(number: i32) -> String {
    match v1::Origin::try_from(number) {
        Ok(v1::Origin::Owner) => "Owner".to_owned(),
        Ok(v1::Origin::Session) => "Session".to_owned(),
        Ok(v1::Origin::Pod) => "Pod".to_owned(),
        Ok(v1::Origin::Node) => "Node".to_owned(),
        Ok(v1::Origin::Unspecified) | Err(_) => unknown(number),
    }
}

/// A list that is empty is not set: the wire cannot tell the two apart.
fn matcher(sent: v1::ProcessMatcher) -> RawMatcher {
    let v1::ProcessMatcher { executables, users, origins } = sent;
    RawMatcher {
        executables: set(executables),
        users: set(users).map(|users| users.into_iter().map(i64::from).collect()),
        origins: set(origins).map(|origins| origins.into_iter().map(origin).collect()),
    }
}

fn set<T>(list: Vec<T>) -> Option<Vec<T>> {
    if list.is_empty() { None } else { Some(few(list)) }
}

fn few<T>(mut list: Vec<T>) -> Vec<T> {
    list.truncate(MOST);
    list
}

/// No word of a manifest has a digit in it.
fn unknown(number: i32) -> String {
    if number == 0 { "0 (unspecified)".to_owned() } else { number.to_string() }
}

//! A guard's spec in the words of the wire, every default filled in.

use janus_crd::{Enforcement, Event, FailurePolicy, JanusGuardSpec, Log, Origin, ProcessMatcher, Subject};
use janus_proto::v1;

/// What daemons know, as far as guards can need it (`StateHeader.features`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Every field of `GuardSpec`.
    pub guard_v1: bool,
    /// The kernel's audit log: a kernel may lack it.
    pub audit_log: bool,
}

impl Features {
    /// What a daemon says that it knows; words that this release does not know are of no use to it.
    pub fn told(words: &[String]) -> Features {
        let has = |word: &str| words.iter().any(|it| it == word);
        Features { guard_v1: has("guard-v1"), audit_log: has("audit-log") }
    }

    /// The first feature that is needed and not there.
    pub fn lack(self, needs: Features) -> Option<Lack> {
        if needs.guard_v1 && !self.guard_v1 {
            Some(Lack::Daemon("guard-v1"))
        } else if needs.audit_log && !self.audit_log {
            Some(Lack::Kernel("audit-log"))
        } else {
            None
        }
    }
}

/// A feature that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// The daemon is older than the guard.
    Daemon(&'static str),
    /// The node's kernel has no such thing, or janusd not the capability.
    Kernel(&'static str),
}

/// The spec as a daemon gets it.
pub fn wire(spec: &JanusGuardSpec) -> v1::GuardSpec {
    // Taken apart, so that a new field has to be thought about here. The selector has been applied by whoever sends.
    let JanusGuardSpec { selector: _, containers, subjects, log_format, enforcement, failure_policy } = spec;
    v1::GuardSpec {
        containers: containers.clone(),
        subjects: subjects.iter().map(subject).collect(),
        log_format: log_format.clone().unwrap_or_default(),
        enforcement: match enforcement {
            Enforcement::Enforce => v1::Enforcement::Enforce,
            Enforcement::Audit => v1::Enforcement::Audit,
        }
        .into(),
        failure_policy: match failure_policy {
            FailurePolicy::Allow => v1::FailurePolicy::Allow,
            FailurePolicy::Deny => v1::FailurePolicy::Deny,
        }
        .into(),
    }
}

/// What a daemon must know to honour the spec.
pub fn needs(spec: &JanusGuardSpec) -> Features {
    Features { guard_v1: true, audit_log: spec.subjects.iter().any(Subject::audit) }
}

fn subject(subject: &Subject) -> v1::Subject {
    let Subject {
        name,
        allow,
        deny,
        events,
        recursive: _,
        max_depth: _,
        only_dir: _,
        mount: _,
        auto_allow_owner: _,
        except,
        audit: _,
        tags,
        log: _,
    } = subject;
    v1::Subject {
        name: name.clone(),
        allow: allow.clone(),
        deny: deny.clone(),
        events: wire_events(events),
        recursion: recursion(subject),
        only_dir: subject.only_dir(),
        mount: subject.mount(),
        except: except.iter().map(matcher).collect(),
        audit: subject.audit(),
        tags: tags.clone(),
        log: match subject.log() {
            Log::All => v1::LogPolicy::All,
            Log::Denied => v1::LogPolicy::Denied,
            Log::None => v1::LogPolicy::None,
        }
        .into(),
        auto_allow_owner: subject.auto_allow_owner(),
    }
}

/// `recursive: false` is one level. The two together are refused before they come here; the narrower would hold.
fn recursion(subject: &Subject) -> Option<v1::Recursion> {
    let levels = |max_depth| v1::Recursion { max_depth };
    match subject.max_depth {
        _ if !subject.recursive() => Some(levels(1)),
        // A depth below 1 cannot be told as one: 0 is what the daemon refuses, with the field's name.
        Some(depth) => Some(levels(depth.try_into().unwrap_or(0))),
        None => None,
    }
}

/// `all` written out, each once, in the wire's order.
fn wire_events(events: &[Event]) -> Vec<i32> {
    let asked = |event| events.contains(&event) || events.contains(&Event::All);
    let pairs =
        [(Event::Open, v1::Event::Open), (Event::Access, v1::Event::Access), (Event::Execute, v1::Event::Execute)];
    pairs.into_iter().filter(|(event, _)| asked(*event)).map(|(_, wire)| wire.into()).collect()
}

fn matcher(matcher: &ProcessMatcher) -> v1::ProcessMatcher {
    let ProcessMatcher { executables, users, origins } = matcher;
    v1::ProcessMatcher {
        executables: executables.clone(),
        users: users.clone(),
        origins: origins.iter().map(|origin| origin_on_the_wire(*origin).into()).collect(),
    }
}

fn origin_on_the_wire(origin: Origin) -> v1::Origin {
    match origin {
        Origin::Owner => v1::Origin::Owner,
        Origin::Session => v1::Origin::Session,
        Origin::Pod => v1::Origin::Pod,
        Origin::Node => v1::Origin::Node,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(subject: serde_json::Value) -> JanusGuardSpec {
        serde_json::from_value(serde_json::json!({ "selector": {}, "subjects": [subject] })).unwrap()
    }

    #[test]
    fn defaults_are_filled_in() {
        let sent = wire(&spec(serde_json::json!({ "deny": ["/etc/shadow"], "events": ["open"] })));
        assert_eq!(sent.enforcement(), v1::Enforcement::Enforce);
        assert_eq!(sent.failure_policy(), v1::FailurePolicy::Allow);
        let subject = &sent.subjects[0];
        assert_eq!(subject.recursion, None);
        assert_eq!(subject.log(), v1::LogPolicy::All);
        assert_eq!(subject.name, None);
    }

    #[test]
    fn all_is_written_out_once() {
        let sent = wire(&spec(serde_json::json!({ "deny": ["/a"], "events": ["execute", "all", "open"] })));
        let all = [v1::Event::Open, v1::Event::Access, v1::Event::Execute].map(i32::from);
        assert_eq!(sent.subjects[0].events, all);
    }

    #[test]
    fn not_recursive_is_one_level() {
        let sent = wire(&spec(serde_json::json!({ "deny": ["/a"], "events": ["open"], "recursive": false })));
        assert_eq!(sent.subjects[0].recursion, Some(v1::Recursion { max_depth: 1 }));
        let sent = wire(&spec(serde_json::json!({ "deny": ["/a"], "events": ["open"], "maxDepth": 3 })));
        assert_eq!(sent.subjects[0].recursion, Some(v1::Recursion { max_depth: 3 }));
    }

    #[test]
    fn audit_needs_the_kernels_log() {
        let audited = spec(serde_json::json!({ "deny": ["/a"], "events": ["open"], "audit": true }));
        let old = Features::told(&[]);
        let plain = Features::told(&["guard-v1".to_owned(), "from-the-future".to_owned()]);
        assert_eq!(old.lack(needs(&audited)), Some(Lack::Daemon("guard-v1")));
        assert_eq!(plain.lack(needs(&audited)), Some(Lack::Kernel("audit-log")));
        let plain_spec = spec(serde_json::json!({ "deny": ["/a"], "events": ["open"] }));
        assert_eq!(plain.lack(needs(&plain_spec)), None);
    }
}

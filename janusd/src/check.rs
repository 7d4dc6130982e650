//! `janusd check`: are these manifests right, and what would they say about one file?
//!
//! Pure: it is given bytes and gives text, so that the command, the tests and later the kubectl plugin say the same.

use std::fmt::Write as _;

use crate::line::Printable;
use crate::manifest;
use crate::policy::{
    Bindings, Event, Events, Exceptions, GuardSpec, List, Origin, Outcome, PathPattern, Policy, Process, Question,
    Reason, Subject, Who,
};

/// Exit status when everything is right.
pub const OK: u8 = 0;
/// Exit status of a bad manifest.
pub const REFUSED: u8 = 2;

/// What `--explain` asks about.
#[derive(Debug, Clone, Default)]
pub struct Inquiry {
    /// The file as the container sees it; a `/` at the end makes it a directory.
    pub path: Vec<u8>,
    /// The event; all three when absent.
    pub event: Option<Event>,
    /// Where the process comes from.
    pub origin: Option<Origin>,
    /// Its executable.
    pub executable: Option<String>,
    /// Its user.
    pub user: Option<u32>,
}

/// What the command prints and how it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// For stdout.
    pub text: String,
    /// For stderr: errors and warnings, one a line.
    pub complaints: String,
    /// The exit status.
    pub status: u8,
}

/// Checks sources (name and content) and, if asked, explains one file.
pub fn check(sources: &[(String, Vec<u8>)], inquiry: Option<&Inquiry>) -> Report {
    let mut report = Report { text: String::new(), complaints: String::new(), status: OK };
    let borrowed = sources.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice()));
    let guards = match manifest::parse_all(borrowed) {
        Ok(guards) => guards,
        Err(errors) => {
            for error in errors {
                let _ = writeln!(report.complaints, "error: {error}");
            }
            report.status = REFUSED;
            return report;
        }
    };
    for guard in &guards {
        for warning in warnings(guard) {
            let _ = writeln!(report.complaints, "warning: {}: {}", guard.name(), Printable(&warning));
        }
    }
    match inquiry {
        None => {
            for guard in &guards {
                let rules = guard.rules().count();
                let subjects = guard.subjects().len();
                let _ = writeln!(report.text, "ok: {}: {subjects} subjects, {rules} paths", guard.name());
            }
        }
        Some(inquiry) if !inquiry.path.starts_with(b"/") => {
            report.complaints.push_str("error: the path to explain must be absolute\n");
            report.status = REFUSED;
        }
        Some(inquiry) => report.text.push_str(&explain(&guards, inquiry)),
    }
    report
}

/// What is allowed to be written but does not do all that one might think.
pub fn warnings(guard: &GuardSpec) -> Vec<String> {
    let mut warnings = Vec::new();
    for (index, subject) in guard.subjects().iter().enumerate() {
        let at = format!("spec.subjects[{index}]");
        if !subject.deny().is_empty() && !open_denied(subject.events()) {
            if subject.events().contains(Event::Execute) {
                warnings.push(format!(
                    "{at}.events: execute without open: a copy of the file, of its loader or of its interpreter dodges \
                     this; also deny open"
                ));
            }
            if subject.events().contains(Event::Access) {
                warnings.push(format!(
                    "{at}.events: access without open: a file opened before, or mapped into memory, is read without an \
                     event; also deny open"
                ));
            }
        }
        for (list, path) in same_paths(subject) {
            warnings.push(format!("{at}.{list}: `{path}` is in deny as well, and deny wins"));
        }
    }
    warnings
}

fn open_denied(events: Events) -> bool {
    events.contains(Event::Open)
}

fn same_paths(subject: &Subject) -> Vec<(String, String)> {
    let denied = |path: &crate::policy::PathPattern| subject.deny().iter().any(|other| other.means_the_same(path));
    (0..)
        .zip(subject.allow())
        .filter(|(_, path)| denied(path))
        .map(|(index, path): (usize, _)| (format!("allow[{index}]"), path.to_string()))
        .collect()
}

fn explain(guards: &[GuardSpec], inquiry: &Inquiry) -> String {
    let mut text = String::new();
    let directory = inquiry.path.ends_with(b"/");
    let mut name: Vec<u8> = Vec::new();
    for segment in inquiry.path.split(|&byte| byte == b'/').filter(|segment| !segment.is_empty()) {
        name.push(b'/');
        name.extend_from_slice(segment);
    }
    if name.is_empty() {
        name.push(b'/');
    }
    let names: [&[u8]; 1] = [&name];
    let shown = String::from_utf8_lossy(&name);
    let kind = if directory { "directory" } else { "file" };
    for event in Event::ALL.into_iter().filter(|event| inquiry.event.is_none_or(|asked| asked == *event)) {
        let _ = writeln!(text, "{} of {kind} {}", event.word(), Printable(&shown));
        let mut denying = Vec::new();
        let mut auditing = Vec::new();
        for guard in guards {
            let question = Question { event, directory, names: &names, mount: None, who: None };
            let outcome = explain_guard(guard, &question, inquiry, &mut text);
            match outcome {
                Outcome::Deny => denying.push(guard.name().to_string()),
                Outcome::Audit => auditing.push(guard.name().to_string()),
                Outcome::Allow => {}
            }
        }
        let _ = match (denying.as_slice(), auditing.as_slice()) {
            ([], []) => writeln!(text, "  answer: ALLOW"),
            ([], auditing) => writeln!(text, "  answer: ALLOW (AUDIT: {} would deny)", auditing.join(", ")),
            (denying, _) => writeln!(text, "  answer: DENY, by {}", denying.join(", ")),
        };
    }
    for note in notes(guards, inquiry) {
        let _ = writeln!(text, "note: {note}");
    }
    text
}

fn explain_guard(guard: &GuardSpec, question: &Question<'_>, inquiry: &Inquiry, text: &mut String) -> Outcome {
    let policy = Policy::new(guard, &Bindings::default());
    let who = who(guard, inquiry);
    let decision = policy.decide(&Question { who: Some(who), ..*question });
    let matches = policy.explain(question);
    let _ = writeln!(text, "  guard {}: {} ({})", guard.name(), decision.outcome().word(), decision.reason.word());
    for (index, subject) in (0..).zip(guard.subjects()) {
        let _ = write!(text, "    subject {}: ", Printable(subject.name()));
        if !subject.events().contains(question.event) {
            let _ = writeln!(text, "does not speak of {}", question.event.word());
            continue;
        }
        if subject.mount() {
            text.push_str("mount: true, matched by mount when a root is guarded\n");
            continue;
        }
        let of_subject: Vec<_> = matches.iter().filter(|found| found.rule.subject == index).collect();
        let Some(best) = of_subject.first() else {
            text.push_str("no path matches\n");
            continue;
        };
        let _ = writeln!(text, "{}", best.rule.list.word());
        for found in &of_subject {
            let written = guard.rule(found.rule).map(ToString::to_string).unwrap_or_default();
            let _ = writeln!(
                text,
                "      {} {} `{}`: {}, {} literal bytes{}",
                if found.decides { "decided by" } else { "outranked:" },
                found.rule,
                Printable(&written),
                if found.glob { "glob" } else { "literal" },
                found.specificity,
                if found.stable { ", without the kubelet's versioned directory" } else { "" },
            );
        }
        if best.rule.list == List::Deny {
            explain_exceptions(guard.subjects().get(usize::from(index)), inquiry, text);
        }
    }
    let interprets = Who { interpreter: Some(true), ..who };
    let run = policy.decide(&Question { who: Some(interprets), ..*question });
    if let (Reason::Interpreter, Some(rule)) = (run.reason, run.rule) {
        let _ =
            writeln!(text, "    an open by the file's own program interpreter: {}, by {rule}", run.outcome().word());
    }
    decision.outcome()
}

/// The guard's exceptions, weighed for the process that is asked about. What is not told of it holds for no matcher.
fn who(guard: &GuardSpec, inquiry: &Inquiry) -> Who {
    let exceptions = Exceptions::new(guard);
    let process = Process { origin: inquiry.origin, maybe: None, user: inquiry.user };
    let who = exceptions.weigh(exceptions.subjects(), &process, |path| is_executable(path, inquiry));
    Who { interpreter: Some(false), ..who }
}

/// By name: what a name leads to is known only where a root is guarded.
fn is_executable(path: &PathPattern, inquiry: &Inquiry) -> bool {
    inquiry.executable.as_ref().is_some_and(|executable| path.matches(executable.as_bytes()))
}

/// Whether each exception of a subject whose deny matched holds, and if not for what.
fn explain_exceptions(subject: Option<&Subject>, inquiry: &Inquiry, text: &mut String) {
    let Some(subject) = subject else { return };
    if subject.auto_allow_owner() {
        let _ = writeln!(
            text,
            "      {}",
            holds("autoAllowOwner", &[field("origins", inquiry.origin, |origin| { origin == Origin::Owner })])
        );
    }
    for (index, matcher) in subject.except().iter().enumerate() {
        let fields = [
            matcher.executables().map(|those| {
                let told = inquiry.executable.as_ref();
                field("executables", told, |_| those.iter().any(|path| is_executable(path, inquiry)))
            }),
            matcher.users().map(|those| field("users", inquiry.user, |user| those.contains(&user))),
            matcher.origins().map(|those| field("origins", inquiry.origin, |origin| those.contains(&origin))),
        ];
        let fields: Vec<_> = fields.into_iter().flatten().collect();
        let _ = writeln!(text, "      {}", holds(&format!("except[{index}]"), &fields));
    }
}

/// A field of a matcher, and whether it holds; `None`: that is not told.
type Field = (&'static str, Option<bool>);

fn field<T>(name: &'static str, told: Option<T>, holds: impl FnOnce(T) -> bool) -> Field {
    (name, told.map(holds))
}

fn holds(exception: &str, fields: &[Field]) -> String {
    let those = |wanted| {
        let names: Vec<_> = fields.iter().filter(|(_, holds)| *holds == wanted).map(|(name, _)| *name).collect();
        names.join(", ")
    };
    let (failing, untold) = (those(Some(false)), those(None));
    match (failing.as_str(), untold.as_str()) {
        ("", "") => format!("lifted by {exception}"),
        ("", untold) => format!("{exception} would lift it, depending on {untold}"),
        (failing, _) => format!("{exception} does not hold: {failing}"),
    }
}

fn notes(guards: &[GuardSpec], inquiry: &Inquiry) -> Vec<&'static str> {
    let mut notes = vec!["symlinks, other names of the file and mounts are known only where a root is guarded"];
    let excepting = |subject: &Subject| subject.auto_allow_owner() || !subject.except().is_empty();
    if guards.iter().any(|guard| guard.subjects().iter().any(excepting)) {
        if inquiry.origin.is_none() || inquiry.executable.is_none() || inquiry.user.is_none() {
            notes.push("what is not told of who asks (--as, --exe, --uid) holds for no exception");
        }
        if inquiry.executable.is_some() {
            notes.push("executables are compared by name here, and by identity where a root is guarded");
        }
    }
    notes
}

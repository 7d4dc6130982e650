//! The table of decisions, `tests/vectors/decisions`: the decision core and `check --explain` must both agree with it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::PathBuf;

use janusd::check::{self, Inquiry};
use janusd::manifest;
use janusd::policy::{Bindings, Event, Exceptions, GuardSpec, Origin, PathPattern, Policy, Process, Question, Who};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    why: String,
    subjects: Value,
    enforcement: Option<String>,
    ask: Vec<Ask>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ask {
    path: Option<String>,
    paths: Option<Vec<String>>,
    event: Option<String>,
    answer: String,
    rule: Option<String>,
    line: Option<bool>,
    /// Who asks: origin, executable (by name), user.
    #[serde(rename = "as")]
    origin: Option<String>,
    /// What it cannot be told apart from.
    maybe: Option<String>,
    exe: Option<String>,
    uid: Option<u32>,
    /// It runs the file's program interpreter.
    interpreter: Option<bool>,
    reason: Option<String>,
}

impl Case {
    /// JSON is YAML, so this is a manifest like any other.
    fn manifest(&self) -> Vec<u8> {
        let mut guard = json!({
            "apiVersion": "januscontroller.clustergarage.io/v1alpha1",
            "kind": "JanusGuard",
            "metadata": {"name": "guard"},
            "spec": {"selector": {}, "subjects": self.subjects},
        });
        if let Some(enforcement) = &self.enforcement {
            guard["spec"]["enforcement"] = json!(enforcement);
        }
        guard.to_string().into_bytes()
    }
}

#[test]
fn decisions() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors/decisions");
    let mut asked = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let cases: Vec<Case> = serde_saphyr::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        for case in &cases {
            let bytes = case.manifest();
            let guards = manifest::parse("case", &bytes).unwrap_or_else(|errors| {
                panic!("{}: {}: {errors:?}", path.display(), case.why);
            });
            let policy = Policy::new(&guards[0], &Bindings::default());
            for ask in &case.ask {
                asked += 1;
                let about = format!("{}: {}: {:?} {:?}", path.display(), case.why, ask.path, ask.paths);
                let written: Vec<&str> =
                    ask.path.iter().chain(ask.paths.iter().flatten()).map(String::as_str).collect();
                let names: Vec<&[u8]> = written
                    .iter()
                    .map(|name| if *name == "/" { *name } else { name.trim_end_matches('/') })
                    .map(str::as_bytes)
                    .collect();
                let event = event(ask.event.as_deref());
                let directory = written[0].ends_with('/');
                let who = ask.who(&guards[0]);
                let decision =
                    policy.decide(&Question { event, directory, names: &names, mount: None, who: Some(who) });
                assert!(decision.depends.is_nothing(), "{about}: {:?}", decision.depends);
                if let Some(reason) = &ask.reason {
                    assert_eq!(decision.reason.word(), reason, "{about}: reason");
                }
                // Not knowing who asks never allows what would be denied, and it is asked for when it matters.
                let blind = policy.decide(&Question { event, directory, names: &names, mount: None, who: None });
                assert!(blind == decision || !blind.depends.is_nothing(), "{about}: {blind:?}");
                assert_eq!(decision.outcome().word(), ask.answer, "{about}");
                assert_eq!(decision.rule.map(|rule| rule.to_string()), ask.rule, "{about}");
                if let Some(line) = ask.line {
                    assert_eq!(decision.line, line, "{about}: line");
                }
                if let Some(path) = ask.path.as_ref().filter(|_| ask.maybe.is_none() && ask.interpreter.is_none()) {
                    agree(&bytes, path, event, ask, &about);
                }
            }
        }
    }
    assert!(asked > 60, "only {asked} questions");
}

impl Ask {
    fn origin(word: Option<&String>) -> Option<Origin> {
        word.map(|word| Origin::ALL.into_iter().find(|origin| origin.word() == word).unwrap())
    }

    fn inquiry(&self) -> Inquiry {
        let origin = Ask::origin(self.origin.as_ref());
        Inquiry { origin, executable: self.exe.clone(), user: self.uid, ..Inquiry::default() }
    }

    fn who(&self, guard: &GuardSpec) -> Who {
        let exceptions = Exceptions::new(guard);
        let maybe = Ask::origin(self.maybe.as_ref());
        let process = Process { origin: Ask::origin(self.origin.as_ref()), maybe, user: self.uid };
        let exe = |path: &PathPattern| self.exe.as_ref().is_some_and(|exe| path.matches(exe.as_bytes()));
        let who = exceptions.weigh(exceptions.subjects(), &process, exe);
        Who { interpreter: Some(self.interpreter.unwrap_or(false)), ..who }
    }
}

fn event(word: Option<&str>) -> Event {
    let word = word.unwrap_or("open");
    Event::ALL.into_iter().find(|event| event.word() == word).unwrap()
}

/// `check --explain` gives the same answer and names the same rule.
fn agree(manifest: &[u8], path: &str, event: Event, ask: &Ask, about: &str) {
    let inquiry = Inquiry { path: path.into(), event: Some(event), ..ask.inquiry() };
    let report = check::check(&[("case".to_owned(), manifest.to_vec())], Some(&inquiry));
    assert_eq!(report.status, check::OK, "{about}: {}", report.complaints);
    assert!(report.text.contains(&format!("guard default/guard: {} (", ask.answer)), "{about}:\n{}", report.text);
    if let Some(rule) = &ask.rule {
        assert!(report.text.contains(&format!("decided by {rule} ")), "{about}:\n{}", report.text);
    }
}

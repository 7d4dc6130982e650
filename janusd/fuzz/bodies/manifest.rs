//! Any bytes as a manifest: an answer, never a panic, and errors that are one line each.

use janusd::manifest;
use janusd::policy::{Bindings, Event, Policy, Question};

/// # Panics
/// When the parser breaks a promise.
pub(crate) fn run(data: &[u8]) {
    match manifest::parse("fuzz.yaml", data) {
        Ok(guards) => {
            assert!(!guards.is_empty());
            for guard in &guards {
                let policy = Policy::new(guard, &Bindings::default());
                for (id, pattern) in guard.rules() {
                    let base = pattern.base();
                    assert!(guard.rule(id).is_some() && base.starts_with(b"/"));
                    let names = [base];
                    policy.decide(&Question {
                        event: Event::Open,
                        directory: true,
                        names: &names,
                        mount: None,
                        who: None,
                    });
                }
            }
        }
        Err(errors) => {
            assert!(!errors.is_empty());
            for error in errors {
                assert!(!error.to_string().chars().any(char::is_control));
            }
        }
    }
}

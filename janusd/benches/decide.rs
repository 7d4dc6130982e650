//! The decision alone, with a thousand rules: `cargo bench -p janusd --bench decide`. Goal: a microsecond at most, and no
//! allocation, which `tests/no_allocation.rs` holds it to.
#![allow(missing_docs, clippy::unwrap_used, reason = "a bench")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use janusd::policy::raw::{RawGuard, RawSelector, RawSubject};
use janusd::policy::{Bindings, Event, GuardSpec, Policy, Question};

/// `subjects` with a hundred and twenty-five paths each, `globs` of them globs.
fn policy(subjects: usize, globs: usize) -> Policy {
    let subject = |index: usize| RawSubject {
        allow: (0..100).map(|path| format!("/srv/{index}/static/{path}")).collect(),
        deny: (0..25 - globs)
            .map(|path| format!("/srv/{index}/private/{path}"))
            .chain((0..globs).map(|glob| format!("/srv/{index}/**/{glob}*.key")))
            .collect(),
        events: vec!["open".to_owned()],
        ..RawSubject::default()
    };
    let raw = RawGuard {
        namespace: "default".to_owned(),
        name: "guard".to_owned(),
        selector: Some(RawSelector::default()),
        subjects: (0..subjects).map(subject).collect(),
        ..RawGuard::default()
    };
    Policy::new(&GuardSpec::new(raw).unwrap(), &Bindings::default())
}

fn decide(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decide");
    for (name, policy) in [
        ("30 rules, 3 globs", small()),
        ("1,000 rules", policy(8, 0)),
        ("1,000 rules, 8 globs", policy(8, 1)),
        ("1,000 rules, 80 globs", policy(8, 10)),
    ] {
        for (what, path) in [
            ("a denied file", "/srv/3/private/7"),
            ("an allowed one, deep", "/srv/7/static/99/css/site/main.css"),
            ("one that no rule names", "/usr/lib/x86_64-linux-gnu/libc.so.6"),
        ] {
            let names = [path.as_bytes()];
            group.bench_function(format!("{name}: {what}"), |bencher| {
                bencher.iter(|| {
                    let question =
                        Question { event: Event::Open, directory: false, names: &names, mount: None, who: None };
                    black_box(policy.decide(black_box(&question)))
                });
            });
        }
    }
    group.finish();
}

fn small() -> Policy {
    let raw = RawGuard {
        namespace: "default".to_owned(),
        name: "guard".to_owned(),
        selector: Some(RawSelector::default()),
        subjects: vec![RawSubject {
            allow: (0..14).map(|path| format!("/srv/3/static/{path}")).collect(),
            deny: (0..13)
                .map(|path| format!("/srv/3/private/{path}"))
                .chain(["/srv/**/*.key", "/home/*/.ssh", "/etc/{shadow,gshadow}"].map(str::to_owned))
                .collect(),
            events: vec!["open".to_owned()],
            ..RawSubject::default()
        }],
        ..RawGuard::default()
    };
    Policy::new(&GuardSpec::new(raw).unwrap(), &Bindings::default())
}

criterion_group!(benches, decide);
criterion_main!(benches);

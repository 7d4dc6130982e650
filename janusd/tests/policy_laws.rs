//! The laws of the decision core, and its answers against a slow reference that is written straight from the contract.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use janusd::policy::raw::{RawGuard, RawSelector, RawSubject};
use janusd::policy::{
    Bindings, Decision, Event, GuardSpec, PathPattern, Policy, Question, Reason, Response, Subjects, Who,
};
use proptest::prelude::*;

const VERSION: &str = "..2026_11_23_07_33_24.2418249251";

/// A pattern as a list of segments, so that the reference need not share the parser.
#[derive(Debug, Clone)]
struct Pattern(Vec<&'static str>);

impl Pattern {
    fn written(&self) -> String {
        format!("/{}", self.0.join("/"))
    }

    /// Without the segments that the kubelet puts between a volume and its files.
    fn stable(&self) -> Pattern {
        Pattern(self.0.iter().copied().filter(|segment| !is_versioned(segment)).collect())
    }

    /// Literal bytes up to the first glob character.
    fn specificity(&self) -> usize {
        let written = self.stable().written();
        written.find(['*', '?', '[', '{']).unwrap_or(written.len())
    }

    fn is_glob(&self) -> bool {
        self.written().contains(['*', '?', '[', '{'])
    }

    fn matches(&self, name: &[&str]) -> bool {
        segments_match(&self.0, name)
    }
}

fn is_versioned(segment: &str) -> bool {
    segment == "..data" || segment == VERSION
}

fn segments_match(pattern: &[&str], name: &[&str]) -> bool {
    match pattern {
        [] => name.is_empty(),
        ["**"] => !name.is_empty(),
        ["**", rest @ ..] => (0..=name.len()).any(|skip| segments_match(rest, &name[skip..])),
        [first, rest @ ..] => match name {
            [] => false,
            [head, tail @ ..] => text_matches(first, head) && segments_match(rest, tail),
        },
    }
}

fn text_matches(pattern: &str, text: &str) -> bool {
    if let Some(open) = pattern.find('{') {
        let close = pattern.find('}').unwrap();
        return pattern[open + 1..close]
            .split(',')
            .any(|branch| text_matches(&format!("{}{branch}{}", &pattern[..open], &pattern[close + 1..]), text));
    }
    let mut pattern_chars = pattern.chars();
    let mut text_chars = text.chars();
    match pattern_chars.next() {
        None => text.is_empty(),
        Some('*') => {
            let rest = pattern_chars.as_str();
            text.char_indices().map(|(at, _)| at).chain([text.len()]).any(|at| text_matches(rest, &text[at..]))
        }
        Some('?') => text_chars.next().is_some() && text_matches(pattern_chars.as_str(), text_chars.as_str()),
        Some('[') => {
            let close = pattern.find(']').unwrap();
            let members = &pattern[1..close];
            let (negated, members) = members.strip_prefix('!').map_or((false, members), |rest| (true, rest));
            text_chars.next().is_some_and(|c| members.contains(c) != negated)
                && text_matches(&pattern[close + 1..], text_chars.as_str())
        }
        Some(c) => text_chars.next() == Some(c) && text_matches(pattern_chars.as_str(), text_chars.as_str()),
    }
}

#[derive(Debug, Clone)]
struct Subject {
    allow: Vec<Pattern>,
    deny: Vec<Pattern>,
    depth: Option<u32>,
    only_dir: bool,
}

impl Subject {
    fn raw(&self) -> RawSubject {
        RawSubject {
            allow: self.allow.iter().map(Pattern::written).collect(),
            deny: self.deny.iter().map(Pattern::written).collect(),
            events: vec!["open".to_owned()],
            recursive: (self.depth == Some(1)).then_some(false),
            max_depth: self.depth.filter(|&depth| depth > 1).map(i64::from),
            only_dir: Some(self.only_dir),
            ..RawSubject::default()
        }
    }

    /// What this subject says about a file by one of its names: true for deny.
    fn judge(&self, name: &str, directory: bool) -> Option<bool> {
        let raw: Vec<&str> = name.split('/').filter(|segment| !segment.is_empty()).collect();
        let stable: Vec<&str> = raw.iter().copied().filter(|segment| !is_versioned(segment)).collect();
        let deny = self.deny.iter().map(|pattern| (pattern, true));
        self.allow
            .iter()
            .map(|pattern| (pattern, false))
            .chain(deny)
            .filter(|(pattern, _)| {
                self.reaches(pattern, &raw, directory) || self.reaches(&pattern.stable(), &stable, directory)
            })
            .map(|(pattern, denies)| (pattern.specificity(), !pattern.is_glob(), denies))
            .max()
            .map(|(_, _, denies)| denies)
    }

    fn reaches(&self, pattern: &Pattern, name: &[&str], directory: bool) -> bool {
        (0..=name.len()).any(|end| {
            let left = name.len() - end;
            let in_reach = if left == 0 {
                directory || !self.only_dir
            } else {
                self.depth.is_none_or(|depth| left as u32 <= depth)
            };
            in_reach && pattern.matches(&name[..end])
        })
    }
}

fn guard(subjects: &[Subject]) -> GuardSpec {
    let raw = RawGuard {
        namespace: "default".to_owned(),
        name: "guard".to_owned(),
        selector: Some(RawSelector::default()),
        subjects: subjects.iter().map(Subject::raw).collect(),
        ..RawGuard::default()
    };
    GuardSpec::new(raw).unwrap()
}

fn decide(subjects: &[Subject], names: &[&str], directory: bool) -> Decision {
    let names: Vec<&[u8]> = names.iter().map(|name| name.as_bytes()).collect();
    ask(&Policy::new(&guard(subjects), &Bindings::default()), &names, directory)
}

fn ask(policy: &Policy, names: &[&[u8]], directory: bool) -> Decision {
    policy.decide(&Question { event: Event::Open, directory, names, mount: None, who: None })
}

fn reference(subjects: &[Subject], names: &[&str], directory: bool) -> Reason {
    let mut matched = false;
    for subject in subjects {
        for name in names {
            match subject.judge(name, directory) {
                Some(true) => return Reason::RuleDeny,
                Some(false) => matched = true,
                None => {}
            }
        }
    }
    if matched { Reason::RuleAllow } else { Reason::NoRule }
}

fn literal_segment() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["a", "b", "é", ".h", "ab", "..data"])
}

fn glob_segment() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "*", "?", "**", "a*", "*b", "?b", "[ab]", "[!a]", "[é]", "{a,b}", "{a,}b", "a{b,*}", "??", "*a*", "{é,?}", ".*",
    ])
}

fn pattern(globs: bool) -> BoxedStrategy<Pattern> {
    let segment = if globs {
        prop_oneof![3 => literal_segment(), 2 => glob_segment()].boxed()
    } else {
        literal_segment().boxed()
    };
    prop::collection::vec(segment, 0..4).prop_map(Pattern).boxed()
}

fn name() -> impl Strategy<Value = String> {
    let segment = prop::sample::select(vec!["a", "b", "é", ".h", "ab", "aé", "bb", "..data", VERSION]);
    prop::collection::vec(segment, 0..5).prop_map(|segments| format!("/{}", segments.join("/")))
}

fn subject() -> impl Strategy<Value = Subject> {
    (any::<bool>(), prop_oneof![Just(None), (1u32..4).prop_map(Some)]).prop_flat_map(|(only_dir, depth)| {
        let paths = prop::collection::vec(pattern(!only_dir), 0..4);
        (paths.clone(), prop::collection::vec(pattern(!only_dir), 1..4)).prop_map(move |(allow, deny)| Subject {
            allow,
            deny,
            depth,
            only_dir,
        })
    })
}

fn subjects() -> impl Strategy<Value = Vec<Subject>> {
    prop::collection::vec(subject(), 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn decides_as_the_reference_does(
        subjects in subjects(),
        names in prop::collection::vec(name(), 1..3),
        directory: bool,
    ) {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let decision = decide(&subjects, &names, directory);
        prop_assert_eq!(decision.reason, reference(&subjects, &names, directory));
        prop_assert_eq!(decision.response == Response::Deny, decision.reason == Reason::RuleDeny);
    }

    #[test]
    fn a_pattern_matches_as_the_reference_does(pattern in pattern(true), name in name()) {
        let raw: Vec<&str> = name.split('/').filter(|segment| !segment.is_empty()).collect();
        let stable: Vec<&str> = raw.iter().copied().filter(|segment| !is_versioned(segment)).collect();
        let wanted = pattern.matches(&raw) || pattern.stable().matches(&stable);
        let parsed = PathPattern::parse(&pattern.written()).unwrap();
        prop_assert_eq!(parsed.matches(name.as_bytes()), wanted);
    }

    #[test]
    fn where_a_name_matches_a_mark_is_wanted(pattern in pattern(true), name in name()) {
        let parsed = PathPattern::parse(&pattern.written()).unwrap();
        if parsed.matches(name.as_bytes()) {
            for (at, _) in name.match_indices('/') {
                prop_assert!(parsed.may_match_below(&name.as_bytes()[..at.max(1)]));
            }
            prop_assert!(parsed.may_match_below(name.as_bytes()));
            let deeper = [name.as_bytes(), b"/below/it"].concat();
            prop_assert!(parsed.may_match_below(&deeper));
        }
    }

    #[test]
    fn the_order_of_paths_does_not_matter(mut subjects in subjects(), name in name(), directory: bool) {
        let before = decide(&subjects, &[&name], directory);
        for subject in &mut subjects {
            subject.allow.reverse();
            subject.deny.reverse();
        }
        let after = decide(&subjects, &[&name], directory);
        prop_assert_eq!((before.response, before.reason), (after.response, after.reason));
        subjects.reverse();
        let after = decide(&subjects, &[&name], directory);
        prop_assert_eq!((before.response, before.reason), (after.response, after.reason));
    }

    #[test]
    fn the_order_of_names_does_not_matter(
        subjects in subjects(),
        names in prop::collection::vec(name(), 1..4),
    ) {
        let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
        let before = decide(&subjects, &names, false);
        names.reverse();
        prop_assert_eq!(before, decide(&subjects, &names, false));
    }

    #[test]
    fn another_deny_lifts_no_deny(
        mut subjects in subjects(),
        at: prop::sample::Index,
        more in pattern(true),
        name in name(),
    ) {
        let before = decide(&subjects, &[&name], false);
        let at = at.index(subjects.len());
        let mut apart = subjects.clone();
        apart.push(Subject { allow: Vec::new(), deny: vec![more.clone()], depth: None, only_dir: false });
        subjects[at].only_dir = false;
        let loosened = decide(&subjects, &[&name], false);
        subjects[at].deny.push(more);
        if before.response == Response::Deny {
            prop_assert_eq!(decide(&apart, &[&name], false).response, Response::Deny);
        }
        if loosened.response == Response::Deny {
            prop_assert_eq!(decide(&subjects, &[&name], false).response, Response::Deny);
        }
    }

    #[test]
    fn more_depth_denies_more(deny in prop::collection::vec(pattern(true), 1..4), name in name()) {
        let denied = |depth| {
            let subject = Subject { allow: Vec::new(), deny: deny.clone(), depth, only_dir: false };
            decide(&[subject], &[&name], false).response == Response::Deny
        };
        let reach = [Some(1), Some(2), Some(3), None].map(denied);
        prop_assert!(reach.is_sorted(), "{:?}", reach);
    }

    #[test]
    fn a_rotation_changes_nothing(
        // Globs may tell versions apart; the law is for guards that do not look at them.
        deny in prop::collection::vec(pattern(false), 1..4),
        allow in prop::collection::vec(pattern(false), 0..4),
        depth in prop_oneof![Just(None), (1u32..4).prop_map(Some)],
        before in name(),
        after in name(),
    ) {
        let subjects = [Subject { allow, deny, depth, only_dir: false }];
        let join = |version: &str| format!("{}/{version}{after}", before.trim_end_matches('/'));
        let old = join("..2025_01_02_03_04_05.1");
        let new = join("..2026_11_23_07_33_24.987654321");
        prop_assert_eq!(decide(&subjects, &[&old], false), decide(&subjects, &[&new], false));
    }

    #[test]
    fn a_written_data_link_means_its_absence(
        deny in pattern(false),
        at: prop::sample::Index,
        allow in pattern(false),
        name in name(),
    ) {
        let mut linked = deny.clone();
        linked.0.insert(at.index(deny.0.len() + 1), "..data");
        let with = |deny: &Pattern| {
            let subject = Subject {
                allow: vec![allow.clone()],
                deny: vec![deny.clone()],
                depth: None,
                only_dir: false,
            };
            decide(&[subject], &[&name], false)
        };
        prop_assert_eq!(with(&deny), with(&linked));
    }

    #[test]
    fn slashes_are_normalised(pattern in pattern(true), more in 1usize..3) {
        let plain = PathPattern::parse(&pattern.written()).unwrap();
        let slashes = "/".repeat(more);
        let written = format!("{}{slashes}", pattern.written().replace('/', &slashes));
        let spread = PathPattern::parse(&written).unwrap();
        prop_assert!(plain.means_the_same(&spread));
        prop_assert!(PathPattern::parse(&spread.to_string()).unwrap().means_the_same(&plain));
        prop_assert_eq!(plain.rebase(plain.base().to_vec()), PathPattern::parse(&plain.rebase(plain.base().to_vec()).to_string()).unwrap());
    }

    #[test]
    fn no_name_is_too_odd(subjects in subjects(), bytes: Vec<u8>, prefix in name()) {
        let policy = Policy::new(&guard(&subjects), &Bindings::default());
        let odd = [prefix.as_bytes(), b"/", &bytes].concat();
        for directory in [false, true] {
            ask(&policy, &[&bytes], directory);
            ask(&policy, &[&odd, &bytes], directory);
        }
        for subject in &subjects {
            for pattern in subject.allow.iter().chain(&subject.deny) {
                let pattern = PathPattern::parse(&pattern.written()).unwrap();
                pattern.matches(&odd);
                pattern.may_match_below(&odd);
                pattern.rebase(odd.clone()).matches(&odd);
            }
        }
    }

    #[test]
    fn no_pattern_is_too_odd(written in "/?[a*?{},\\[\\]!^\\\\./é-]{0,40}", name in name()) {
        if let Ok(pattern) = PathPattern::parse(&written) {
            pattern.matches(name.as_bytes());
            prop_assert!(pattern.specificity() >= 1);
            prop_assert!(pattern.base().starts_with(b"/"));
        }
    }

    /// What `*` and `?` match is any name there can be, so that an odd one does not slip past a deny.
    #[test]
    fn a_star_matches_every_byte(bytes in prop::collection::vec(1..=255u8, 1..64)) {
        let bytes: Vec<u8> = bytes.into_iter().map(|byte| if byte == b'/' { b'x' } else { byte }).collect();
        let name = [b"/d/", bytes.as_slice()].concat();
        prop_assume!(!name.starts_with(b"/d/..data") && !name.starts_with(b"/d/..2"));
        prop_assert!(PathPattern::parse("/d/*").unwrap().matches(&name));
        prop_assert!(PathPattern::parse("/**").unwrap().matches(&name));
        prop_assert!(PathPattern::parse("/d/?*").unwrap().matches(&name));
        prop_assert!(!PathPattern::parse("/*").unwrap().matches(&name));
    }
}

/// Every set of a few subjects.
fn some_subjects() -> impl Strategy<Value = Subjects> {
    prop::collection::vec(0..4u16, 0..4).prop_map(|those| those.into_iter().fold(Subjects::NONE, Subjects::with))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Guards with exceptions for everybody in some subjects and none in others: a deny falls exactly if every subject
    /// that denies has an exception that holds, and who asks is asked for only if that could be.
    #[test]
    fn exceptions_lift_their_own_subjects_denies(
        subjects in subjects(),
        excepting in some_subjects(),
        lifted in some_subjects(),
        execute: bool,
        interpreter: bool,
        name in name(),
    ) {
        let raw = |(index, subject): (u16, &Subject)| RawSubject {
            auto_allow_owner: Some(excepting.contains(index)),
            events: vec![if execute { "execute" } else { "open" }.to_owned()],
            ..subject.raw()
        };
        let spec = GuardSpec::new(RawGuard {
            namespace: "default".to_owned(),
            name: "guard".to_owned(),
            selector: Some(RawSelector::default()),
            subjects: (0..).zip(&subjects).map(raw).collect(),
            ..RawGuard::default()
        });
        let policy = Policy::new(&spec.unwrap(), &Bindings::default());
        let names = [name.as_bytes()];
        let ask = |who| policy.decide(&Question { event: Event::Open, directory: false, names: &names, mount: None, who });
        let denying: Vec<u16> =
            (0..).zip(&subjects).filter(|(_, it)| it.judge(&name, false) == Some(true)).map(|(at, _)| at).collect();
        let weighed = (0..4).fold(Subjects::NONE, Subjects::with);
        let known = ask(Some(Who { weighed, lifted, interpreter: Some(interpreter), ..Who::default() }));
        prop_assert!(known.depends.is_nothing());
        let counts = !execute || interpreter;
        let denies = counts && denying.iter().any(|at| !(excepting.contains(*at) && lifted.contains(*at)));
        prop_assert_eq!(known.response == Response::Deny, denies);
        let blind = ask(None);
        let liftable = denying.iter().all(|at| excepting.contains(*at));
        prop_assert_eq!(blind.depends.is_nothing(), denying.is_empty() || !execute && !liftable);
        prop_assert_eq!(blind.depends.interpreter, execute && !denying.is_empty());
        if blind.depends.is_nothing() {
            prop_assert_eq!(blind.response, known.response);
        }
    }
}

/// A pattern that makes backtracking matchers take exponential time.
#[test]
fn no_pattern_is_slow() {
    let nasty = format!("/{}b", "{*a,*a}".repeat(36));
    let deep = format!("{}/b", "/**/a*".repeat(170));
    let name = format!("/{}", "a".repeat(255));
    let deep_name = "/a".repeat(2_000);
    let start = std::time::Instant::now();
    for written in [nasty, deep] {
        let pattern = PathPattern::parse(&written).unwrap();
        assert!(!pattern.matches(name.as_bytes()));
        assert!(!pattern.matches(deep_name.as_bytes()));
    }
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
}

/// The pattern with the most states is compiled, and every state is reached.
#[test]
fn the_largest_patterns_fit() {
    let commas = format!("/x{{{}b}}", ",".repeat(200));
    let segments = format!("/{}", [commas.trim_start_matches('/'); 4].join("/"));
    let pattern = PathPattern::parse(&segments).unwrap();
    assert!(pattern.matches(b"/x/xb/x/xb"));
    assert!(!pattern.matches(b"/x/xb/x/xc"));
}

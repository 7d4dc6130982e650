//! A guard's rules compiled for one root, and how they judge.

use super::rules::{Hit, Place, Rule, Rules, Sink};
use super::spec::MAX_SUBJECTS;
use super::{Bindings, Decision, Enforcement, GuardSpec, Log, Question, Reason, Response, RuleId};

/// A guard's rules, compiled for one root.
#[derive(Debug)]
pub struct Policy {
    rules: Rules,
    subjects: Vec<Speaker>,
    enforcement: Enforcement,
}

/// What of a subject matters once one of its rules has matched.
#[derive(Debug)]
struct Speaker {
    log: Log,
    audit: bool,
}

impl Speaker {
    /// Whether an event that this subject judged so makes a line.
    fn wants_line(&self, denied: bool) -> bool {
        match self.log {
            Log::All => true,
            Log::Denied => denied,
            Log::None => false,
        }
    }
}

/// One rule that matched, for [`Policy::explain`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Match<'q> {
    /// The rule.
    pub rule: RuleId,
    /// Bytes of literal text of the path (or alias, or mountpoint) by which it matched.
    pub specificity: u32,
    /// It matched by a glob.
    pub glob: bool,
    /// The name that it matched.
    pub name: &'q [u8],
    /// It matched that name only without the segments that the kubelet puts into a Secret's paths.
    pub stable: bool,
    /// It is the one that decides for its subject.
    pub decides: bool,
}

/// The rule of each subject that judges, so far. An array, since judging must not allocate.
#[derive(Clone, Copy)]
struct Verdicts<'r>([Option<&'r Rule>; MAX_SUBJECTS]);

impl<'r> Verdicts<'r> {
    const NONE: Verdicts<'static> = Verdicts([None; MAX_SUBJECTS]);

    fn of(&self, subject: u16) -> Option<&'r Rule> {
        self.0.get(usize::from(subject)).copied().flatten()
    }

    /// Folds in what was found for another name of the same file: deny wins over allow.
    fn join(&mut self, other: &Verdicts<'r>) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine = match (*mine, theirs) {
                (Some(a), Some(b)) if a.denies() == b.denies() => Some(if outranks(b, a) { b } else { a }),
                (Some(a), Some(b)) => Some(if a.denies() { a } else { b }),
                (a, b) => a.or(b),
            };
        }
    }
}

/// Whether `rule` wins over `other` in the same subject; among equals the one that is written first.
fn outranks(rule: &Rule, other: &Rule) -> bool {
    rule.rank > other.rank || rule.rank == other.rank && rule.id < other.id
}

impl<'r> Sink<'r> for Verdicts<'r> {
    fn wants(&self, rule: &Rule) -> bool {
        self.of(rule.id.subject).is_none_or(|best| outranks(rule, best))
    }

    fn take(&mut self, hit: Hit<'r>) {
        if let Some(verdict) = self.0.get_mut(usize::from(hit.rule.id.subject)) {
            *verdict = Some(hit.rule);
        }
    }
}

/// Keeps everything that matched.
struct All<'r>(Vec<Hit<'r>>);

impl<'r> Sink<'r> for All<'r> {
    fn wants(&self, _rule: &Rule) -> bool {
        true
    }

    fn take(&mut self, hit: Hit<'r>) {
        self.0.push(hit);
    }
}

impl Policy {
    /// Compiles `spec` as `bindings` found it.
    pub fn new(spec: &GuardSpec, bindings: &Bindings) -> Policy {
        Policy {
            rules: Rules::new(spec, bindings),
            subjects: spec
                .subjects()
                .iter()
                .map(|subject| Speaker { log: subject.log(), audit: subject.audit() })
                .collect(),
            enforcement: spec.enforcement(),
        }
    }

    /// Judges one event. Allocates nothing.
    pub fn decide(&self, question: &Question<'_>) -> Decision {
        let mut verdicts = Verdicts::NONE;
        for (index, name) in question.names.iter().enumerate() {
            if index == 0 {
                self.rules.search(place(question, name), &mut verdicts);
            } else {
                let mut others = Verdicts::NONE;
                self.rules.search(place(question, name), &mut others);
                verdicts.join(&others);
            }
        }
        self.conclude(&verdicts)
    }

    /// From what each subject says to what is done: a deny from any of them denies.
    fn conclude(&self, verdicts: &Verdicts<'_>) -> Decision {
        // The rule named is that of the first subject whose answer this is, preferring one that wants a line.
        let mut rule: Option<(&Rule, bool)> = None;
        let mut line = false;
        let mut audit = false;
        for (speaker, verdict) in self.subjects.iter().zip(verdicts.0) {
            let Some(verdict) = verdict else { continue };
            let wanted = speaker.wants_line(verdict.denies());
            line |= wanted;
            audit |= speaker.audit;
            let better = match rule {
                None => true,
                Some((best, best_wanted)) => (verdict.denies(), wanted) > (best.denies(), best_wanted),
            };
            if better {
                rule = Some((verdict, wanted));
            }
        }
        let rule = rule.map(|(rule, _)| rule);
        let deny = rule.is_some_and(Rule::denies);
        let real = self.enforcement == Enforcement::Enforce;
        Decision {
            response: if deny && real { Response::Deny } else { Response::Allow },
            would_deny: deny && !real,
            rule: rule.map(|rule| rule.id),
            reason: match rule {
                None => Reason::NoRule,
                Some(rule) if rule.denies() => Reason::RuleDeny,
                Some(_) => Reason::RuleAllow,
            },
            line,
            audit,
        }
    }

    /// Every rule that matches, the strongest of each subject first: what `janusd check --explain` shows.
    pub fn explain<'q>(&self, question: &Question<'q>) -> Vec<Match<'q>> {
        let mut verdicts = Verdicts::NONE;
        let mut found: Vec<(&Rule, Match<'q>)> = Vec::new();
        for name in question.names {
            let mut best = Verdicts::NONE;
            self.rules.search(place(question, name), &mut best);
            verdicts.join(&best);
            let mut all = All(Vec::new());
            self.rules.search(place(question, name), &mut all);
            for Hit { rule, stable } in all.0 {
                if found.iter().any(|(known, seen)| std::ptr::eq(*known, rule) && seen.name == *name) {
                    continue;
                }
                let glob = rule.pattern.is_glob();
                let specificity = rule.specificity();
                found.push((rule, Match { rule: rule.id, specificity, glob, name, stable, decides: false }));
            }
        }
        found.sort_by(|(a, _), (b, _)| a.id.subject.cmp(&b.id.subject).then(b.rank.cmp(&a.rank)).then(a.id.cmp(&b.id)));
        found
            .into_iter()
            .map(|(rule, found)| {
                let decides = verdicts.of(rule.id.subject).is_some_and(|verdict| std::ptr::eq(verdict, rule));
                Match { decides, ..found }
            })
            .collect()
    }
}

fn place<'a>(question: &Question<'a>, name: &'a [u8]) -> Place<'a> {
    Place { name, event: question.event, directory: question.directory, mount: question.mount }
}

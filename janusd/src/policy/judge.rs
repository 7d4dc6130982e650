//! A guard's rules compiled for one root, and how they judge.

use super::rules::{Hit, Place, Rule, Rules, Sink};
use super::spec::MAX_SUBJECTS;
use super::{
    Bindings, Decision, Depends, Enforcement, Event, GuardSpec, Log, Question, Reason, Response, RuleId, Subject, Who,
};

/// A guard's rules, compiled for one root.
#[derive(Debug)]
pub struct Policy {
    rules: Rules,
    subjects: Vec<Speaker>,
    enforcement: Enforcement,
    /// Whether an open may have to be judged as an execution.
    opens_may_execute: bool,
}

/// What of a subject matters once one of its rules has matched.
#[derive(Debug)]
struct Speaker {
    log: Log,
    audit: bool,
    /// It has exceptions: who asks may lift its deny.
    excepts: bool,
    /// It denies execution and says nothing of opens.
    opens_may_execute: bool,
}

/// What a subject says of an event, once it is known (or not) who asks. In the order in which one is told rather than
/// another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Allows,
    /// It denies, but not to this process.
    Lifted,
    /// It denies, unless one of its exceptions holds.
    Depends,
    Denies,
}

/// What is gathered from all subjects.
struct Tally<'r> {
    best: Option<(&'r Rule, Standing, bool, Reason)>,
    line: bool,
    audit: bool,
    depends: Depends,
}

impl<'r> Tally<'r> {
    /// Adds what a subject says. `denial`: why, if it denies.
    fn add(&mut self, speaker: &Speaker, rule: &'r Rule, denial: Reason, who: Option<&Who>) {
        let subject = rule.id.subject;
        let (standing, reason) = match (rule.denies(), speaker.excepts, who.and_then(|who| who.lifts(subject))) {
            (false, ..) => (Standing::Allows, Reason::RuleAllow),
            (true, false, _) => (Standing::Denies, denial),
            (true, true, None) => (Standing::Depends, denial),
            (true, true, Some(true)) => (Standing::Lifted, Reason::Except),
            (true, true, Some(false)) if who.is_some_and(|who| who.undecided.contains(subject)) => {
                (Standing::Denies, Reason::OriginUndecided)
            }
            (true, true, Some(false)) => (Standing::Denies, denial),
        };
        if standing == Standing::Depends {
            self.depends.exceptions = self.depends.exceptions.with(subject);
        }
        let denies = standing >= Standing::Depends;
        let wanted = speaker.wants_line(denies);
        self.line |= wanted;
        self.audit |= speaker.audit;
        // Told is the first subject whose answer this is, preferring one that wants a line.
        let rank = |standing: Standing, wanted| (standing.max(Standing::Lifted), wanted, standing);
        if self.best.is_none_or(|(_, best, best_wanted, _)| rank(standing, wanted) > rank(best, best_wanted)) {
            self.best = Some((rule, standing, wanted, reason));
        }
    }

    fn standing(&self) -> Option<Standing> {
        self.best.map(|(_, standing, ..)| standing)
    }
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
                .map(|subject| Speaker {
                    log: subject.log(),
                    audit: subject.audit(),
                    excepts: subject.auto_allow_owner() || !subject.except().is_empty(),
                    opens_may_execute: subject.opens_may_execute(),
                })
                .collect(),
            enforcement: spec.enforcement(),
            opens_may_execute: spec.subjects().iter().any(Subject::opens_may_execute),
        }
    }

    /// Judges one event. Allocates nothing.
    pub fn decide(&self, question: &Question<'_>) -> Decision {
        let who = question.who.as_ref();
        let mut tally = Tally { best: None, line: false, audit: false, depends: Depends::NOTHING };
        let verdicts = self.verdicts(question, question.event);
        for (speaker, rule) in self.subjects.iter().zip(verdicts.0) {
            if let Some(rule) = rule {
                tally.add(speaker, rule, Reason::RuleDeny, who);
            }
        }
        let open_of_file = question.event == Event::Open && !question.directory;
        if self.opens_may_execute && open_of_file && tally.standing() != Some(Standing::Denies) {
            self.judge_as_execution(question, &mut tally);
        }
        self.conclude(tally)
    }

    /// What each subject says of `event`.
    fn verdicts(&self, question: &Question<'_>, event: Event) -> Verdicts<'_> {
        let mut verdicts = Verdicts::NONE;
        for (index, name) in question.names.iter().enumerate() {
            if index == 0 {
                self.rules.search(place(question, event, name), &mut verdicts);
            } else {
                let mut others = Verdicts::NONE;
                self.rules.search(place(question, event, name), &mut others);
                verdicts.join(&others);
            }
        }
        verdicts
    }

    /// An open by the program interpreter of a file is an execution of it.
    fn judge_as_execution<'r>(&'r self, question: &Question<'_>, tally: &mut Tally<'r>) {
        let who = question.who.as_ref();
        let interprets = who.and_then(|who| who.interpreter);
        if interprets == Some(false) {
            return;
        }
        let verdicts = self.verdicts(question, Event::Execute);
        for (speaker, rule) in self.subjects.iter().zip(verdicts.0) {
            let Some(rule) = rule.filter(|rule| speaker.opens_may_execute && rule.denies()) else { continue };
            if interprets.is_some() {
                tally.add(speaker, rule, Reason::Interpreter, who);
            } else {
                tally.depends.interpreter = true;
                if speaker.excepts {
                    tally.depends.exceptions = tally.depends.exceptions.with(rule.id.subject);
                }
            }
        }
    }

    /// From what each subject says to what is done: a deny from any of them denies.
    fn conclude(&self, tally: Tally<'_>) -> Decision {
        let deny = tally.standing() >= Some(Standing::Depends);
        // No exception of one subject lifts another's deny.
        let certain = tally.standing() == Some(Standing::Denies);
        let real = self.enforcement == Enforcement::Enforce;
        Decision {
            response: if deny && real { Response::Deny } else { Response::Allow },
            would_deny: deny && !real,
            rule: tally.best.map(|(rule, ..)| rule.id),
            reason: tally.best.map_or(Reason::NoRule, |(.., reason)| reason),
            line: tally.line,
            audit: tally.audit,
            depends: if certain { Depends::NOTHING } else { tally.depends },
        }
    }

    /// Every rule that matches, the strongest of each subject first: what `janusd check --explain` shows.
    pub fn explain<'q>(&self, question: &Question<'q>) -> Vec<Match<'q>> {
        let mut verdicts = Verdicts::NONE;
        let mut found: Vec<(&Rule, Match<'q>)> = Vec::new();
        for name in question.names {
            let mut best = Verdicts::NONE;
            self.rules.search(place(question, question.event, name), &mut best);
            verdicts.join(&best);
            let mut all = All(Vec::new());
            self.rules.search(place(question, question.event, name), &mut all);
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

fn place<'a>(question: &Question<'a>, event: Event, name: &'a [u8]) -> Place<'a> {
    Place { name, event, directory: question.directory, mount: question.mount }
}

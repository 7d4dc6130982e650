//! Rules, laid out so that one walk over a name finds all that could match it.
//!
//! A rule applies to a name if its pattern matches the name or one of the directories above it. So the literal base of
//! every rule is a key of one hash table, and a name is looked up prefix by prefix: a thousand rules cost what ten do,
//! as long as they do not share a base. Globs hang at their base and run over what is below it.

use super::glob::Glob;
use super::name::{self, Form, Segments};
use super::{Bindings, Event, Events, GuardSpec, List, PathPattern, RuleId, Subject};

/// One way in which a rule of the guard matches: its path as written, one of its aliases, or its mount.
#[derive(Debug)]
pub(super) struct Rule {
    /// Which rule of the guard.
    pub(super) id: RuleId,
    /// What is matched.
    pub(super) pattern: PathPattern,
    /// Greater is more specific: bytes of literal text, then literal before glob, then deny before allow.
    pub(super) rank: u32,
    /// How many segments below a match still count.
    depth: u32,
    /// A match of the name itself counts only if that is a directory.
    only_dir: bool,
    /// The mount through which the file must be opened.
    mount: Option<u64>,
    /// It speaks of stable names only: what is left of a pattern that names a version of a volume.
    stable_only: bool,
    events: Events,
}

impl Rule {
    fn new(id: RuleId, pattern: PathPattern, subject: &Subject, mount: Option<u64>) -> Rule {
        // Paths are at most 4,095 bytes as written; what a survey brings is bounded by the kernel's PATH_MAX.
        let specificity = u32::try_from(pattern.specificity()).unwrap_or(u32::MAX).min(u32::MAX >> 2);
        let rank = specificity << 2 | u32::from(!pattern.is_glob()) << 1 | u32::from(id.list == List::Deny);
        Rule {
            id,
            pattern,
            rank,
            depth: subject.depth(),
            only_dir: subject.only_dir(),
            mount,
            stable_only: false,
            events: subject.events(),
        }
    }

    /// `pattern` without the segments of the kubelet's AtomicWriter.
    fn stable(id: RuleId, pattern: &PathPattern, subject: &Subject) -> Rule {
        let stable_only = pattern.is_volatile();
        Rule { stable_only, ..Rule::new(id, pattern.stable(), subject, None) }
    }

    /// Bytes of literal text in the pattern.
    pub(super) fn specificity(&self) -> u32 {
        self.rank >> 2
    }

    /// Whether it denies.
    pub(super) fn denies(&self) -> bool {
        self.rank & 1 != 0
    }

    /// Whether a match that leaves `left` segments of the name below it counts.
    fn reaches(&self, left: u32, directory: bool) -> bool {
        if left == 0 { directory || !self.only_dir } else { left <= self.depth }
    }
}

/// A rule that matched a name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hit<'r> {
    pub(super) rule: &'r Rule,
    /// It did so in the name's stable form only.
    pub(super) stable: bool,
}

/// Takes what [`Rules::search`] finds.
pub(super) trait Sink<'r> {
    /// Whether this rule, should it match, could make a difference: spares running globs that could not.
    fn wants(&self, rule: &Rule) -> bool;
    /// This rule matches.
    fn take(&mut self, hit: Hit<'r>);
}

/// Where a file is looked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) name: &'a [u8],
    pub(super) event: Event,
    pub(super) directory: bool,
    pub(super) mount: Option<u64>,
}

/// One walk over a name.
#[derive(Debug, Clone, Copy)]
struct Walk {
    form: Form,
    /// The name in this form has no segment that the next rotation changes.
    stable: bool,
    /// How many segments it has.
    total: u32,
}

/// All rules with one base: a range of the rule list, the most specific first.
#[derive(Debug)]
struct Node {
    hash: u64,
    base: Vec<u8>,
    rules: std::ops::Range<u32>,
}

/// The rules of a guard.
#[derive(Debug)]
pub(super) struct Rules {
    rules: Vec<Rule>,
    nodes: Vec<Node>,
    /// Open addressing: index into `nodes` plus one, 0 for empty. A power of two, at most half full.
    slots: Vec<u32>,
}

impl Rules {
    pub(super) fn new(spec: &GuardSpec, bindings: &Bindings) -> Rules {
        let mut rules = Vec::new();
        for (id, pattern) in spec.rules() {
            let Some(subject) = spec.subject(id.subject) else {
                continue;
            };
            if !subject.mount() {
                rules.push(Rule::new(id, pattern.clone(), subject, None));
                if pattern.is_volatile() {
                    rules.push(Rule::stable(id, pattern, subject));
                }
            }
        }
        for (id, pattern) in &bindings.aliases {
            let Some(subject) = spec.subject(id.subject).filter(|subject| !subject.mount()) else {
                continue;
            };
            // Where a path leads in a Secret is true until the next rotation only; its stable form stays true.
            rules.push(Rule::stable(*id, pattern, subject));
        }
        for (id, binding) in &bindings.mounts {
            let Some(subject) = spec.subject(id.subject).filter(|subject| subject.mount()) else {
                continue;
            };
            let pattern = PathPattern::literal(binding.mountpoint.clone());
            rules.push(Rule::new(*id, pattern, subject, Some(binding.mount)));
        }
        // A written `..data` means the same as its absence, so the longer form may not weigh more.
        for rule in &mut rules {
            if rule.mount.is_none() && rule.pattern.is_volatile() {
                let stable = u32::try_from(rule.pattern.stable().specificity()).unwrap_or(u32::MAX >> 2);
                rule.rank = stable << 2 | rule.rank & 0b11;
            }
        }
        rules.sort_by(|a, b| a.pattern.base().cmp(b.pattern.base()).then(b.rank.cmp(&a.rank)).then(a.id.cmp(&b.id)));
        let mut nodes: Vec<Node> = Vec::new();
        for (index, rule) in (0..).zip(&rules) {
            match nodes.last_mut() {
                Some(node) if node.base == rule.pattern.base() => node.rules.end = index + 1,
                _ => nodes.push(Node {
                    hash: Segments::new(rule.pattern.base(), Form::Raw).fold(SEED, mix),
                    base: rule.pattern.base().to_vec(),
                    rules: index..index + 1,
                }),
            }
        }
        let mut slots = vec![0; (nodes.len() * 2).next_power_of_two().max(2)];
        let mask = slots.len() - 1;
        for (index, node) in (1..).zip(&nodes) {
            let mut at = node.hash as usize & mask;
            while slots[at] != 0 {
                at = (at + 1) & mask;
            }
            slots[at] = index;
        }
        Rules { rules, nodes, slots }
    }

    /// Every rule that speaks of the event and matches the name, in its raw or its stable form, once per form.
    pub(super) fn search<'r>(&'r self, place: Place<'_>, sink: &mut impl Sink<'r>) {
        let (raw, stable) = name::count(place.name);
        if raw == stable {
            self.walk(place, Walk { form: Form::Raw, stable: true, total: raw }, sink);
        } else {
            self.walk(place, Walk { form: Form::Raw, stable: false, total: raw }, sink);
            self.walk(place, Walk { form: Form::Stable, stable: true, total: stable }, sink);
        }
    }

    fn walk<'r>(&'r self, place: Place<'_>, walk: Walk, sink: &mut impl Sink<'r>) {
        let Walk { form, stable, total } = walk;
        let mut segments = Segments::new(place.name, form);
        let mut hash = SEED;
        let mut left = total;
        loop {
            if let Some(node) = self.node(hash, &segments, place.name, form) {
                let rules = self.rules.get(node.rules.start as usize..node.rules.end as usize).unwrap_or_default();
                for rule in rules {
                    if rule.events.contains(place.event)
                        && (stable || !rule.stable_only)
                        && (rule.mount.is_none() || rule.mount == place.mount)
                        && sink.wants(rule)
                        && matches(rule, &segments, left, place.directory, form)
                    {
                        sink.take(Hit { rule, stable: form == Form::Stable });
                    }
                }
            }
            let Some(segment) = segments.next() else {
                break;
            };
            hash = mix(hash, segment);
            left = left.saturating_sub(1);
        }
    }

    /// The node whose base is what `walked` has gone over.
    fn node(&self, hash: u64, walked: &Segments<'_>, name: &[u8], form: Form) -> Option<&Node> {
        let mask = self.slots.len().checked_sub(1)?;
        let mut at = hash as usize & mask;
        loop {
            let index = self.slots.get(at)?.checked_sub(1)?;
            let node = self.nodes.get(index as usize)?;
            if node.hash == hash {
                let same = node.base == walked.walked()
                    || name::below(&node.base, name, form).is_some_and(|rest| rest.rest() == walked.rest());
                if same {
                    return Some(node);
                }
            }
            at = (at + 1) & mask;
        }
    }
}

/// Whether a rule at this place of the walk reaches the name, of which `left` segments are still to come.
fn matches(rule: &Rule, segments: &Segments<'_>, left: u32, directory: bool, form: Form) -> bool {
    match rule.pattern.tail() {
        None => rule.reaches(left, directory),
        Some(glob) => may_begin(glob, segments, form) && glob_matches(rule, glob, segments, left, directory),
    }
}

/// A cheap look before a glob runs: most names differ from it at once.
fn may_begin(glob: &Glob, segments: &Segments<'_>, form: Form) -> bool {
    form == Form::Stable || segments.rest().starts_with(glob.prefix())
}

fn glob_matches(rule: &Rule, glob: &Glob, segments: &Segments<'_>, left: u32, directory: bool) -> bool {
    let mut found = false;
    glob.run(segments.clone(), |consumed| {
        found = rule.reaches(left.saturating_sub(consumed), directory);
        found
    });
    found
}

const SEED: u64 = 0x243f_6a88_85a3_08d3;

/// Extends the hash of a path by a segment. Only the guard's own rules are keys, so nobody can crowd the table from
/// outside.
fn mix(hash: u64, segment: &[u8]) -> u64 {
    let fold = |hash: u64, word: u64| (hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    let mut hash = fold(hash, segment.len() as u64);
    let mut chunks = segment.chunks_exact(8);
    for chunk in &mut chunks {
        let mut word = [0; 8];
        word.copy_from_slice(chunk);
        hash = fold(hash, u64::from_le_bytes(word));
    }
    let mut word = [0; 8];
    for (to, from) in word.iter_mut().zip(chunks.remainder()) {
        *to = *from;
    }
    hash = fold(hash, u64::from_le_bytes(word));
    // The low bits choose the slot; a multiplication carries upward only.
    hash ^ hash >> 32
}

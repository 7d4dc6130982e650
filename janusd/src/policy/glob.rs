//! The glob part of a pattern: parsed into segments, run as a small automaton.
//!
//! Why not globset: it compiles to a byte regex, so that `?` matches half of `é`, `[é]` matches either of its bytes, and
//! its lazy automaton allocates while it matches. This one steps through characters (a byte that is no UTF-8 counts as
//! one character), reports every ancestor that matches in one pass, allocates nothing while matching, and takes time
//! proportional to the name, whatever the pattern: the set of live states is a bit set.

use super::path::PathError;

/// 64-bit words of a state set: enough for any pattern of 1,024 code points (see [`Glob::compile`]).
const MOST_WORDS: usize = 34;

/// One item of a segment, as parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Item {
    /// This character.
    Char(char),
    /// `?`
    Any,
    /// `*`
    Star,
    /// `[...]`
    Class(Class),
    /// `{a,b}`: one of these.
    Alternatives(Vec<Vec<Item>>),
}

/// A set of characters: `[a-z]`, `[!a-z]`, `[^a-z]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Class {
    negated: bool,
    ranges: Vec<(char, char)>,
}

impl Class {
    fn contains(&self, unit: Unit) -> bool {
        let listed = match unit {
            Unit::Char(c) => self.ranges.iter().any(|&(low, high)| low <= c && c <= high),
            Unit::Byte => false,
        };
        listed != self.negated
    }
}

/// One segment of a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Segment {
    /// `**`: any number of segments.
    Deep,
    /// Anything else.
    Items(Vec<Item>),
}

/// What a segment can spell by choosing among its alternatives, where that could be nothing but dots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Dots(u8);

impl Segment {
    /// Parses one segment as written: no `/` in it. `glob` says whether anything in the path makes it a glob; if not,
    /// closing brackets and braces stand for themselves.
    pub(super) fn parse(written: &str, glob: bool) -> Result<Segment, PathError> {
        if written == "**" {
            return Ok(Segment::Deep);
        }
        let items = if glob {
            parse_items(&mut written.chars().peekable(), false)?.0
        } else {
            written.chars().map(Item::Char).collect()
        };
        let dots = dots(&items, Dots(1));
        if dots.0 & 0b110 != 0 {
            let why = "a segment may not be `.` or `..`, nor become one by expansion";
            return Err(PathError(why.to_owned()));
        }
        if dots.0 & 1 != 0 {
            return Err(PathError("a segment may not become empty by expansion".to_owned()));
        }
        Ok(Segment::Items(items))
    }

    /// The text, when the segment holds no glob character.
    pub(super) fn literal(&self) -> Option<String> {
        match self {
            Segment::Deep => None,
            Segment::Items(items) => items
                .iter()
                .map(|item| match item {
                    Item::Char(c) => Some(*c),
                    _ => None,
                })
                .collect(),
        }
    }

    /// The text before the first glob character.
    fn literal_prefix(&self) -> String {
        match self {
            Segment::Deep => String::new(),
            Segment::Items(items) => items
                .iter()
                .map_while(|item| match item {
                    Item::Char(c) => Some(*c),
                    _ => None,
                })
                .collect(),
        }
    }
}

type Chars<'a> = std::iter::Peekable<std::str::Chars<'a>>;

/// Parses items up to the end, or (inside braces) up to `,` or `}`, which is returned.
fn parse_items(chars: &mut Chars<'_>, braced: bool) -> Result<(Vec<Item>, Option<char>), PathError> {
    let mut items = Vec::new();
    while let Some(c) = chars.next() {
        let item = match c {
            ',' | '}' if braced => return Ok((items, Some(c))),
            '\\' => match chars.next() {
                Some(escaped) => Item::Char(escaped),
                None => {
                    return Err(PathError("a backslash must be followed by the character it escapes".to_owned()));
                }
            },
            '?' => Item::Any,
            '*' if chars.peek() == Some(&'*') => {
                return Err(PathError("`**` must be a whole segment".to_owned()));
            }
            '*' => Item::Star,
            '[' => Item::Class(parse_class(chars)?),
            '}' => return Err(PathError("`}` without `{`; write `\\}`".to_owned())),
            '{' if braced => return Err(PathError("`{a,b}` may not be nested".to_owned())),
            '{' => {
                let mut branches = Vec::new();
                loop {
                    let (branch, end) = parse_items(chars, true)?;
                    branches.push(branch);
                    match end {
                        Some('}') => break,
                        Some(_) => {}
                        None => {
                            return Err(PathError("`{` is not closed by `}` within its segment".to_owned()));
                        }
                    }
                }
                Item::Alternatives(branches)
            }
            c => Item::Char(c),
        };
        items.push(item);
    }
    Ok((items, None))
}

/// Parses a class after its `[`. Neither escapes nor a `[` may stand in it: shells and libraries disagree on what they
/// mean, and `[[:alpha:]]` would silently be something else than letters.
fn parse_class(chars: &mut Chars<'_>) -> Result<Class, PathError> {
    let negated = chars.next_if(|&c| c == '!' || c == '^').is_some();
    let mut members = Vec::new();
    loop {
        match chars.next() {
            None => {
                return Err(PathError("`[` is not closed by `]` within its segment".to_owned()));
            }
            Some(']') if members.is_empty() => return Err(PathError("`[]` is empty".to_owned())),
            Some(']') => break,
            Some('\\' | '[') => {
                return Err(PathError("`[...]` may hold neither a backslash nor another `[`".to_owned()));
            }
            Some(c) => members.push(c),
        }
    }
    let mut ranges = Vec::new();
    let mut rest = members.as_slice();
    while let [low, after @ ..] = rest {
        // A `-` at either end stands for itself.
        let (high, after) = match after {
            ['-', high, after @ ..] => (high, after),
            after => (low, after),
        };
        if high < low {
            return Err(PathError("a range in `[...]` ends before it begins".to_owned()));
        }
        ranges.push((*low, *high));
        rest = after;
    }
    Ok(Class { negated, ranges })
}

/// From the sets of dot counts that are possible before `items` to those after: bit n stands for n dots and nothing
/// else, n up to 2. A class of one member is that member written oddly.
fn dots(items: &[Item], before: Dots) -> Dots {
    items.iter().fold(before, |dots_so_far, item| match item {
        Item::Char('.') => Dots(dots_so_far.0 << 1 & 0b111),
        Item::Class(Class { negated: false, ranges }) if ranges.iter().all(|&range| range == ('.', '.')) => {
            Dots(dots_so_far.0 << 1 & 0b111)
        }
        Item::Alternatives(branches) => {
            Dots(branches.iter().fold(0, |union, branch| union | dots(branch, dots_so_far).0))
        }
        _ => Dots(0),
    })
}

/// One character of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Char(char),
    /// A byte that is part of no UTF-8 character: matched by `?`, `*` and negated classes only.
    Byte,
}

/// The first character of `bytes` and how many bytes it takes.
fn unit(bytes: &[u8]) -> Option<(Unit, usize)> {
    let &first = bytes.first()?;
    let length = match first {
        0..=0x7f => return Some((Unit::Char(first as char), 1)),
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => return Some((Unit::Byte, 1)),
    };
    let decoded = bytes.get(..length).and_then(|bytes| str::from_utf8(bytes).ok()).and_then(|text| text.chars().next());
    Some(decoded.map_or((Unit::Byte, 1), |c| (Unit::Char(c), length)))
}

/// One state of the automaton. Every edge leads forward, so one ascending pass over the live states is a closure.
#[derive(Debug, Clone)]
enum Op {
    /// Consumes the slash before a segment.
    Slash,
    Char(char),
    Any,
    Class(Class),
    /// Consumes any character and stays, or goes on.
    Star,
    /// Goes on, and also to another state.
    Split(u16),
    /// Goes to another state.
    Jump(u16),
    /// `**` before its first segment: consumes a slash; if `optional` it may also be left out.
    Deep {
        optional: bool,
    },
    /// Inside the segments of `**`: consumes anything and stays, or goes on.
    DeepInside,
}

/// The glob tail of a pattern: everything below its literal base.
#[derive(Debug)]
pub(super) struct Glob {
    source: String,
    prefix: Vec<u8>,
    deep: bool,
    ops: Vec<Op>,
}

impl PartialEq for Glob {
    fn eq(&self, other: &Glob) -> bool {
        self.source == other.source
    }
}

impl Eq for Glob {}

impl Glob {
    /// Compiles the segments of a tail, each with the text it was parsed from.
    ///
    /// A code point makes two states at most (a comma between alternatives does), which is what bounds their number.
    pub(super) fn compile(segments: &[(&str, Segment)]) -> Result<Glob, PathError> {
        let mut ops = Vec::new();
        let mut source = String::new();
        for (index, (text, segment)) in segments.iter().enumerate() {
            source.push('/');
            source.push_str(text);
            match segment {
                // At the end `**` stands for one segment or more: `/etc/**` is what is in /etc, and not /etc.
                Segment::Deep => {
                    let optional = index + 1 < segments.len();
                    ops.push(Op::Deep { optional });
                    ops.push(Op::DeepInside);
                }
                Segment::Items(items) => {
                    ops.push(Op::Slash);
                    emit(items, &mut ops);
                }
            }
        }
        if ops.len() >= MOST_WORDS * 64 {
            return Err(PathError("the glob is too complex".to_owned()));
        }
        let prefix = match segments.first() {
            Some((_, first)) if *first != Segment::Deep => {
                format!("/{}", first.literal_prefix())
            }
            _ => String::new(),
        };
        let deep = segments.iter().any(|(_, segment)| *segment == Segment::Deep);
        Ok(Glob { source, prefix: prefix.into_bytes(), deep, ops })
    }

    /// The tail as written, with its leading slash.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// How many bytes of literal text follow the base: at least its slash.
    pub(super) fn literal_length(&self) -> usize {
        self.prefix.len().max(1)
    }

    /// What every matching tail begins with.
    pub(super) fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    /// Whether there is a `**`.
    pub(super) fn crosses_directories(&self) -> bool {
        self.deep
    }

    /// Runs over `segments`, the part of a name below this tail's base. `matched` is called with the number of segments
    /// consumed, for each leading part that the glob matches, and stops the run by returning true; the result says
    /// whether it did. Otherwise `alive` tells whether a longer name could still match.
    pub(super) fn run<'n>(
        &self,
        segments: impl Iterator<Item = &'n [u8]>,
        matched: impl FnMut(u32) -> bool,
    ) -> Outcome {
        // Nearly every glob fits one word, and then a step is a few instructions.
        if self.ops.len() < 64 {
            self.run_in::<1, _>(segments, matched)
        } else {
            self.run_in::<MOST_WORDS, _>(segments, matched)
        }
    }

    fn run_in<'n, const WORDS: usize, M: FnMut(u32) -> bool>(
        &self,
        segments: impl Iterator<Item = &'n [u8]>,
        mut matched: M,
    ) -> Outcome {
        let mut states = States::<WORDS>::new(self);
        if states.accepts() && matched(0) {
            return Outcome::Stopped;
        }
        for (consumed, mut segment) in (1..).zip(segments) {
            states.step(Unit::Char('/'));
            while let Some((unit, length)) = unit(segment) {
                if states.is_empty() {
                    return Outcome::Dead;
                }
                states.step(unit);
                segment = segment.get(length..).unwrap_or_default();
            }
            if states.accepts() && matched(consumed) {
                return Outcome::Stopped;
            }
        }
        if states.is_empty() { Outcome::Dead } else { Outcome::Alive }
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The caller stopped it at a match.
    Stopped,
    /// A longer name could match.
    Alive,
    /// No longer name can match.
    Dead,
}

fn state(index: usize) -> u16 {
    // Patterns are bounded far below this; `compile` refuses the rest.
    u16::try_from(index).unwrap_or(u16::MAX)
}

fn emit(items: &[Item], ops: &mut Vec<Op>) {
    for item in items {
        match item {
            Item::Char(c) => ops.push(Op::Char(*c)),
            Item::Any => ops.push(Op::Any),
            Item::Star => ops.push(Op::Star),
            Item::Class(class) => ops.push(Op::Class(class.clone())),
            Item::Alternatives(branches) => {
                let mut ends = Vec::new();
                for (index, branch) in branches.iter().enumerate() {
                    let last = index + 1 == branches.len();
                    let split = ops.len();
                    if !last {
                        ops.push(Op::Split(0));
                    }
                    emit(branch, ops);
                    if !last {
                        ends.push(ops.len());
                        ops.push(Op::Jump(0));
                        ops[split] = Op::Split(state(ops.len()));
                    }
                }
                let end = state(ops.len());
                for jump in ends {
                    ops[jump] = Op::Jump(end);
                }
            }
        }
    }
}

/// The live states of a run: bit n is the state before `ops[n]`, the one past the last means a match.
struct States<'g, const WORDS: usize> {
    ops: &'g [Op],
    now: [u64; WORDS],
}

impl<'g, const WORDS: usize> States<'g, WORDS> {
    fn new(glob: &'g Glob) -> States<'g, WORDS> {
        let mut states = States { ops: &glob.ops, now: [0; WORDS] };
        set(&mut states.now, 0);
        states.close();
        states
    }

    fn is_empty(&self) -> bool {
        self.now.iter().all(|&word| word == 0)
    }

    fn accepts(&self) -> bool {
        self.now[self.ops.len() / 64] & 1 << (self.ops.len() % 64) != 0
    }

    /// Follows the edges that consume nothing. They all lead forward.
    fn close(&mut self) {
        for word in 0..WORDS {
            let mut pending = self.now[word];
            while pending != 0 {
                let bit = pending.trailing_zeros() as usize;
                let at = word * 64 + bit;
                match self.ops.get(at) {
                    Some(Op::Star | Op::DeepInside) => set(&mut self.now, at + 1),
                    Some(Op::Split(other)) => {
                        set(&mut self.now, at + 1);
                        set(&mut self.now, usize::from(*other));
                    }
                    Some(Op::Jump(other)) => set(&mut self.now, usize::from(*other)),
                    Some(Op::Deep { optional: true }) => set(&mut self.now, at + 2),
                    _ => {}
                }
                // Only what lies beyond this state is still to be visited.
                let beyond = if bit == 63 { 0 } else { u64::MAX << (bit + 1) };
                pending = self.now[word] & beyond;
            }
        }
    }

    /// Consumes one character.
    fn step(&mut self, unit: Unit) {
        let slash = unit == Unit::Char('/');
        let mut next = [0; WORDS];
        for word in 0..WORDS {
            let mut pending = self.now[word];
            while pending != 0 {
                let at = word * 64 + pending.trailing_zeros() as usize;
                pending &= pending - 1;
                match self.ops.get(at) {
                    Some(Op::Slash | Op::Deep { .. }) if slash => set(&mut next, at + 1),
                    Some(Op::DeepInside) => set(&mut next, at),
                    _ if slash => {}
                    Some(Op::Char(c)) if unit == Unit::Char(*c) => set(&mut next, at + 1),
                    Some(Op::Any) => set(&mut next, at + 1),
                    Some(Op::Star) => set(&mut next, at),
                    Some(Op::Class(class)) if class.contains(unit) => set(&mut next, at + 1),
                    _ => {}
                }
            }
        }
        self.now = next;
        self.close();
    }
}

fn set(words: &mut [u64], state: usize) {
    if let Some(word) = words.get_mut(state / 64) {
        *word |= 1 << (state % 64);
    }
}

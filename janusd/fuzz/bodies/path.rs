//! A pattern and a name, divided by the first NUL: whatever they are, matching ends, its parts agree, and it matches what a
//! slow reference does, which is written straight from the contract.

use janusd::policy::PathPattern;

/// # Panics
/// When the pattern breaks a promise.
pub(crate) fn run(data: &[u8]) {
    let mut parts = data.splitn(2, |&byte| byte == 0);
    let (Some(written), name) = (parts.next(), parts.next().unwrap_or(b"/")) else {
        return;
    };
    let Ok(written) = str::from_utf8(written) else {
        return;
    };
    let Ok(pattern) = PathPattern::parse(written) else {
        return;
    };
    assert!(pattern.base().starts_with(b"/"));
    assert!(pattern.is_glob() || pattern.matches(pattern.base()));
    assert!(pattern.may_match_below(b"/"));
    assert!(pattern.may_match_below(pattern.base()));
    let again = PathPattern::parse(&pattern.to_string()).expect("what was written parses again");
    assert!(again.means_the_same(&pattern));
    if let Some(wanted) = reference::matches(written, name) {
        assert_eq!(pattern.matches(name), wanted, "{written} {}", name.escape_ascii());
    }
    let absolute = name.starts_with(b"/") && !name.windows(2).any(|two| two == b"//");
    if pattern.matches(name) && absolute {
        assert!(pattern.may_match_below(name));
        let moved = pattern.rebase(b"/moved/\xff".to_vec());
        if let Some(rest) = name.strip_prefix(pattern.base())
            && pattern.base() != b"/"
            && !name.windows(3).any(|three| three == b"/..")
        {
            assert!(moved.matches(&[b"/moved/\xff", rest].concat()));
        }
    }
}

/// Nothing here is shared with the code that it checks.
mod reference {
    /// More ways to choose among alternatives are not tried.
    const MOST_CHOICES: usize = 64;

    #[derive(Debug, Clone)]
    enum Token {
        One(char),
        Any,
        Star,
        Class(bool, Vec<(char, char)>),
    }

    #[derive(Debug, Clone)]
    enum Segment {
        Deep,
        /// Each way to choose among its alternatives.
        Choices {
            tokens: Vec<Vec<Token>>,
            braces: bool,
        },
    }

    /// Whether a pattern that parses matches a name; `None`: too many alternatives.
    pub(super) fn matches(written: &str, name: &[u8]) -> Option<bool> {
        let glob = written.contains(['*', '?', '[', '{', '\\']);
        let segments = written.split('/').filter(|text| !text.is_empty()).map(|text| match text {
            "**" => Some(Segment::Deep),
            text if glob => choices(text),
            text => Some(Segment::Choices { tokens: vec![text.chars().map(Token::One).collect()], braces: false }),
        });
        let segments = segments.collect::<Option<Vec<Segment>>>()?;
        let names: Vec<&[u8]> = name.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
        // What the kubelet puts between a volume and its files may be left out.
        let stable: Vec<Segment> = segments.iter().filter(|it| !literal(it).is_some_and(volatile)).cloned().collect();
        let lasting: Vec<&[u8]> = names.iter().copied().filter(|name| !volatile(name.to_vec())).collect();
        Some(all(&segments, &names) || all(&stable, &lasting))
    }

    fn volatile(segment: Vec<u8>) -> bool {
        let Some(rest) = segment.strip_prefix(b"..") else { return false };
        let shape: Vec<u8> = rest.iter().map(|byte| if byte.is_ascii_digit() { b'd' } else { *byte }).collect();
        let serial = shape.strip_prefix(b"dddd_dd_dd_dd_dd_dd.");
        rest == b"data" || serial.is_some_and(|serial| !serial.is_empty() && serial.iter().all(|byte| *byte == b'd'))
    }

    fn literal(segment: &Segment) -> Option<Vec<u8>> {
        let Segment::Choices { tokens, braces: false } = segment else { return None };
        let [tokens] = tokens.as_slice() else { return None };
        let text: Option<String> = tokens
            .iter()
            .map(|token| match token {
                Token::One(c) => Some(*c),
                _ => None,
            })
            .collect();
        text.map(String::into_bytes)
    }

    fn all(segments: &[Segment], names: &[&[u8]]) -> bool {
        // Which numbers of names the segments so far can stand for.
        let mut reached = vec![false; names.len() + 1];
        reached[0] = true;
        for (index, segment) in segments.iter().enumerate() {
            let mut next = vec![false; names.len() + 1];
            for from in (0..=names.len()).filter(|from| reached[*from]) {
                match segment {
                    Segment::Deep => {
                        // At the end it stands for one at least.
                        let least = usize::from(index + 1 == segments.len());
                        next.iter_mut().skip(from + least).for_each(|it| *it = true);
                    }
                    Segment::Choices { tokens, .. } => {
                        if names.get(from).is_some_and(|name| tokens.iter().any(|tokens| one(tokens, name))) {
                            next[from + 1] = true;
                        }
                    }
                }
            }
            reached = next;
        }
        reached[names.len()]
    }

    fn one(tokens: &[Token], name: &[u8]) -> bool {
        // A byte of no character counts as one.
        let units = name.utf8_chunks().flat_map(|chunk| {
            chunk.valid().chars().map(Some).chain(chunk.invalid().iter().map(|_| None)).collect::<Vec<_>>()
        });
        let mut reached = vec![false; tokens.len() + 1];
        reached[0] = true;
        let skip_stars = |reached: &mut Vec<bool>| {
            for at in 0..tokens.len() {
                if reached[at] && matches!(tokens[at], Token::Star) {
                    reached[at + 1] = true;
                }
            }
        };
        skip_stars(&mut reached);
        for unit in units {
            let mut next = vec![false; tokens.len() + 1];
            for at in (0..tokens.len()).filter(|at| reached[*at]) {
                match &tokens[at] {
                    Token::Star => next[at] = true,
                    Token::Any => next[at + 1] = true,
                    Token::One(c) => next[at + 1] |= unit == Some(*c),
                    Token::Class(negated, ranges) => {
                        let within = ranges.iter().any(|(low, high)| unit.is_some_and(|c| (*low..=*high).contains(&c)));
                        next[at + 1] |= within != *negated;
                    }
                }
            }
            skip_stars(&mut next);
            reached = next;
        }
        reached[tokens.len()]
    }

    fn choices(text: &str) -> Option<Segment> {
        let mut all = vec![Vec::new()];
        let mut braces = false;
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            let branches = match c {
                '{' => {
                    braces = true;
                    let mut branches = vec![Vec::new()];
                    loop {
                        match chars.next()? {
                            '}' => break,
                            ',' => branches.push(Vec::new()),
                            c => branches.last_mut()?.push(token(c, &mut chars)?),
                        }
                    }
                    branches
                }
                c => vec![vec![token(c, &mut chars)?]],
            };
            if all.len() * branches.len() > MOST_CHOICES {
                return None;
            }
            all = all
                .iter()
                .flat_map(|before| branches.iter().map(|branch| [before.as_slice(), branch].concat()))
                .collect();
        }
        Some(Segment::Choices { tokens: all, braces })
    }

    fn token(first: char, chars: &mut std::str::Chars<'_>) -> Option<Token> {
        Some(match first {
            '\\' => Token::One(chars.next()?),
            '?' => Token::Any,
            '*' => Token::Star,
            '[' => {
                let (mut members, rest) = chars.as_str().split_once(']')?;
                *chars = rest.chars();
                let negated = members.starts_with(['!', '^']);
                if negated {
                    members = &members[1..];
                }
                let members: Vec<char> = members.chars().collect();
                let mut ranges = Vec::new();
                let mut at = 0;
                while at < members.len() {
                    let range = members.get(at + 1) == Some(&'-') && at + 2 < members.len();
                    ranges.push((members[at], members[if range { at + 2 } else { at }]));
                    at += if range { 3 } else { 1 };
                }
                Token::Class(negated, ranges)
            }
            c => Token::One(c),
        })
    }
}

//! Kubernetes names, labels and label selectors: their syntax, as the API server checks it.

use std::collections::BTreeMap;

use super::SpecError;
use super::raw::RawSelector;
use super::validate::Findings;

/// Most characters of a DNS subdomain.
const MAX_SUBDOMAIN: usize = 253;
/// Most characters of a DNS label, and of the name part of a label's key.
const MAX_LABEL: usize = 63;

const MAX_MATCH_LABELS: usize = 64;
const MAX_EXPRESSIONS: usize = 32;
const MAX_VALUES: usize = 128;

/// How a requirement compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// The label is there and has one of the values.
    In,
    /// The label is not there, or has none of the values.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is not there.
    DoesNotExist,
}

/// One of `matchExpressions`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

/// Which pods of its namespace a guard is for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selector {
    labels: BTreeMap<String, String>,
    expressions: Vec<Requirement>,
}

impl Selector {
    /// Whether a pod with these labels is selected. The empty selector selects every pod.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.expressions.iter().all(|requirement| {
                let value = labels.get(&requirement.key);
                match requirement.operator {
                    Operator::In => value.is_some_and(|value| requirement.values.contains(value)),
                    Operator::NotIn => value.is_none_or(|value| !requirement.values.contains(value)),
                    Operator::Exists => value.is_some(),
                    Operator::DoesNotExist => value.is_none(),
                }
            })
    }

    pub(super) fn parse(raw: RawSelector, findings: &mut Findings) -> Selector {
        let RawSelector { match_labels, match_expressions } = raw;
        findings.at_most("spec.selector.matchLabels", match_labels.len(), MAX_MATCH_LABELS);
        for (key, value) in &match_labels {
            match check_label_key(key) {
                Ok(()) => {
                    findings.check(&format!("spec.selector.matchLabels.{key}"), check_label_value(value));
                }
                Err(reason) => findings.add("spec.selector.matchLabels", format!("the key `{key}` {reason}")),
            }
        }
        findings.at_most("spec.selector.matchExpressions", match_expressions.len(), MAX_EXPRESSIONS);
        let mut expressions = Vec::new();
        for (index, raw) in match_expressions.into_iter().enumerate() {
            let field = format!("spec.selector.matchExpressions[{index}]");
            findings.check(&format!("{field}.key"), check_label_key(&raw.key));
            let operator = match raw.operator.as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                _ => {
                    findings.add(&format!("{field}.operator"), "must be In, NotIn, Exists or DoesNotExist");
                    continue;
                }
            };
            let listed = !raw.values.is_empty();
            match operator {
                Operator::In | Operator::NotIn if !listed => {
                    findings.add(&format!("{field}.values"), "must have at least one value with In and NotIn");
                }
                Operator::Exists | Operator::DoesNotExist if listed => {
                    findings.add(&format!("{field}.values"), "must be empty with Exists and DoesNotExist");
                }
                _ => {}
            }
            findings.at_most(&format!("{field}.values"), raw.values.len(), MAX_VALUES);
            for (at, value) in raw.values.iter().enumerate() {
                findings.check(&format!("{field}.values[{at}]"), check_label_value(value));
            }
            expressions.push(Requirement { key: raw.key, operator, values: raw.values });
        }
        Selector { labels: match_labels, expressions }
    }
}

fn is_alphanumeric(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// A DNS-1123 label: lower-case letters, digits and inner `-`.
///
/// # Errors
/// What it must be.
pub fn check_dns_label(text: &str) -> Result<(), String> {
    let bytes = text.as_bytes();
    let ends = |byte: Option<&u8>| byte.is_some_and(|&byte| is_alphanumeric(byte));
    if bytes.len() <= MAX_LABEL
        && ends(bytes.first())
        && ends(bytes.last())
        && bytes.iter().all(|&byte| is_alphanumeric(byte) || byte == b'-')
    {
        Ok(())
    } else {
        Err("must be a DNS label: at most 63 of a-z, 0-9 and `-`, with a letter or digit at either end".to_owned())
    }
}

/// A DNS-1123 subdomain: dot-separated parts like DNS labels, 253 characters in all.
///
/// # Errors
/// What it must be.
pub fn check_dns_subdomain(text: &str) -> Result<(), String> {
    let part = |part: &str| {
        let bytes = part.as_bytes();
        let ends = |byte: Option<&u8>| byte.is_some_and(|&byte| is_alphanumeric(byte));
        ends(bytes.first()) && ends(bytes.last()) && bytes.iter().all(|&byte| is_alphanumeric(byte) || byte == b'-')
    };
    if text.len() <= MAX_SUBDOMAIN && text.split('.').all(part) {
        Ok(())
    } else {
        Err("must be a DNS subdomain: at most 253 of a-z, 0-9, `-` and `.`, each part with a letter or digit at \
             either end"
            .to_owned())
    }
}

/// The name part of a label's key, or a value: letters, digits and inner `-`, `_`, `.`.
fn is_qualified(text: &str) -> bool {
    let bytes = text.as_bytes();
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    bytes.len() <= MAX_LABEL
        && ends(bytes.first())
        && ends(bytes.last())
        && bytes.iter().all(|&byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

fn check_label_key(key: &str) -> Result<(), String> {
    let valid = match key.split_once('/') {
        None => is_qualified(key),
        Some((prefix, name)) => check_dns_subdomain(prefix).is_ok() && is_qualified(name),
    };
    if valid {
        Ok(())
    } else {
        Err("must be a label key: an optional DNS subdomain and `/`, then at most 63 of A-Z, a-z, 0-9, `-`, `_` and \
             `.`, with a letter or digit at either end"
            .to_owned())
    }
}

fn check_label_value(value: &str) -> Result<(), String> {
    if value.is_empty() || is_qualified(value) {
        Ok(())
    } else {
        Err("must be a label value: at most 63 of A-Z, a-z, 0-9, `-`, `_` and `.`, with a letter or digit at either \
             end"
        .to_owned())
    }
}

/// Checks the names of a guard as the API server does.
pub(super) fn check_guard_name(namespace: &str, name: &str) -> Vec<SpecError> {
    let mut findings = Findings::default();
    findings.check("metadata.name", check_dns_subdomain(name));
    findings.check("metadata.namespace", check_dns_label(namespace));
    findings.into_errors()
}

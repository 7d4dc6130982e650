//! `spec.selector` as something that matches labels, by the semantics of Kubernetes: kube's.

use janus_crd::{LabelSelector, Operator, Requirement};
use kube::core::{Expression, Selector};

/// A selector that the API server would have refused; objects that were stored under an older definition have one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("spec.selector.matchExpressions[{index}].values: {reason}")]
pub struct BadRequirement {
    index: usize,
    reason: &'static str,
}

/// Compiles a selector. An empty one matches everything.
///
/// # Errors
/// An expression whose operator and values do not go together: what it means cannot be guessed.
pub fn compile(selector: &LabelSelector) -> Result<Selector, BadRequirement> {
    let LabelSelector { match_labels, match_expressions } = selector;
    let labels = match_labels.iter().map(|(key, value)| Ok(Expression::Equal(key.clone(), value.clone())));
    let expressions = match_expressions.iter().enumerate().map(|(index, requirement)| {
        let Requirement { key, operator, values } = requirement;
        let (key, values) = (key.clone(), values.iter().cloned().collect());
        match (operator, requirement.values.is_empty()) {
            (Operator::In, false) => Ok(Expression::In(key, values)),
            (Operator::NotIn, false) => Ok(Expression::NotIn(key, values)),
            (Operator::Exists, true) => Ok(Expression::Exists(key)),
            (Operator::DoesNotExist, true) => Ok(Expression::DoesNotExist(key)),
            (Operator::In | Operator::NotIn, true) => Err(BadRequirement { index, reason: "at least one is needed" }),
            (Operator::Exists | Operator::DoesNotExist, false) => {
                Err(BadRequirement { index, reason: "this operator takes none" })
            }
        }
    });
    labels.chain(expressions).collect::<Result<Vec<Expression>, _>>().map(Selector::from_iter)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kube::core::SelectorExt;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn requirement(key: &str, operator: Operator, values: &[&str]) -> LabelSelector {
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        let match_expressions = vec![Requirement { key: key.to_owned(), operator, values }];
        LabelSelector { match_expressions, ..Default::default() }
    }

    #[test]
    fn an_empty_selector_matches_all() {
        let all = compile(&LabelSelector::default()).unwrap();
        assert!(all.matches(&labels(&[])));
        assert!(all.matches(&labels(&[("a", "b")])));
    }

    #[test]
    fn not_in_matches_an_absent_label() {
        let selector = compile(&requirement("tier", Operator::NotIn, &["db"])).unwrap();
        assert!(selector.matches(&labels(&[])));
        assert!(selector.matches(&labels(&[("tier", "web")])));
        assert!(!selector.matches(&labels(&[("tier", "db")])));
    }

    #[test]
    fn labels_and_expressions_hold_together() {
        let mut selector = requirement("tier", Operator::In, &["db", "web"]);
        selector.match_labels = labels(&[("app", "shop")]);
        let selector = compile(&selector).unwrap();
        assert!(selector.matches(&labels(&[("app", "shop"), ("tier", "db")])));
        assert!(!selector.matches(&labels(&[("app", "shop")])));
        assert!(!selector.matches(&labels(&[("tier", "db")])));
    }

    #[test]
    fn what_means_nothing_is_refused_by_field() {
        let refused = compile(&requirement("a", Operator::In, &[])).unwrap_err();
        assert_eq!(refused.to_string(), "spec.selector.matchExpressions[0].values: at least one is needed");
        assert!(compile(&requirement("a", Operator::Exists, &["x"])).is_err());
    }
}

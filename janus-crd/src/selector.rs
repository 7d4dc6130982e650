//! `spec.selector`: a LabelSelector with bounds and with its syntax checked, which the type of k8s-openapi is not.

use std::{borrow::Cow, collections::BTreeMap};

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Which pods of the guard's namespace are guarded. A pod matches when all of matchLabels and matchExpressions hold; an
/// empty selector matches every pod of the namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LabelSelector {
    /// Labels that a pod must have, with these values. At most 64. Default: none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<String, LabelValue>", extend("maxProperties" = 64))]
    #[x_kube(validation = Rule::new(LABEL_KEYS).message(LABEL_KEYS_MESSAGE))]
    pub match_labels: BTreeMap<String, String>,

    /// Requirements on a pod's labels, all of which must hold. At most 32. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "atomic"))]
    pub match_expressions: Vec<Requirement>,
}

/// A requirement on one label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(OPERATOR_VALUES)
    .message("values: In and NotIn need at least one, Exists and DoesNotExist take none")
    .field_path(".values"))]
pub struct Requirement {
    /// The label's key.
    #[schemars(with = "LabelKey")]
    pub key: String,

    /// How the label is compared with values: In, NotIn, Exists or DoesNotExist.
    pub operator: Operator,

    /// The values of In and NotIn, at most 128; Exists and DoesNotExist take none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<LabelValue>", length(max = 128), extend("x-kubernetes-list-type" = "atomic"))]
    pub values: Vec<String>,
}

/// How a requirement compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Operator {
    /// The label's value is one of the values.
    In,
    /// The label is absent, or its value none of the values.
    NotIn,
    /// The label is present.
    Exists,
    /// The label is absent.
    DoesNotExist,
}

const OPERATOR_VALUES: &str = "self.operator in ['In', 'NotIn'] == (has(self.values) && size(self.values) > 0)";

// A schema has no word for the keys of a map. The estimate counts a key's length as nothing, so this is cheap.
const LABEL_KEYS: &str = concat!(
    "self.all(k, k.matches(r'^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?",
    "[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$') && k.matches(r'^([^/]{1,253}/)?[^/]{1,63}$'))",
);
const LABEL_KEYS_MESSAGE: &str = "matchLabels: each key is a label key: an optional DNS subdomain of at most 253 \
    characters and a slash, then at most 63 letters, digits, '-', '_' or '.' that begin and end with a letter or digit";

struct LabelKey;

impl JsonSchema for LabelKey {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "LabelKey".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "minLength": 1,
            "maxLength": 317,
            "pattern": concat!(
                r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?",
                "[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
            ),
            "allOf": [{ "pattern": "^([^/]{1,253}/)?[^/]{1,63}$" }],
        })
    }
}

struct LabelValue;

impl JsonSchema for LabelValue {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "LabelValue".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 63,
            "pattern": "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$",
        })
    }
}

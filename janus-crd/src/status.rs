//! What the controller says about a guard.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the controller last saw of the guard, from daemons' answers only.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JanusGuardStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i64")]
    pub observed_generation: Option<i64>,

    /// Number of pods that can be guarded: selected, bound to a node, neither Succeeded nor Failed, with a started
    /// container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i32")]
    pub observable_pods: Option<i32>,

    /// Number of pods being guarded: every guardable path of every selected started container is in force at this
    /// generation, by a recent answer of the pod's daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i32")]
    pub guarded_pods: Option<i32>,

    /// Ready: observablePods equals guardedPods. Degraded: a path, a pod or a feature is unguarded. Stalled: the spec
    /// cannot be decoded or honoured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,

    /// What keeps pods from being guarded, worst first; at most 20.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20), extend("x-kubernetes-list-type" = "atomic"))]
    pub problems: Vec<Problem>,
}

/// One thing that is not guarded, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// The pod, in the guard's namespace; empty when it is not about one pod.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pod: String,

    /// The node; empty when it is not about one node.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node: String,

    /// One word for the cause, for programs.
    pub reason: String,

    /// The cause in words, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

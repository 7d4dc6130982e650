//! What becomes of each named failure on the wire, as the proto says it.

use janus_proto::rpc;
use janus_proto::v1::{Exhausted, InvalidField, Refusal as Detail, exhausted, refusal};
use janusd::registry::port::{Failure, Limit};
use janusd::registry::{Denied, Refusal};
use janusd::wire::{Invalid, WrongNode};
use prost::Message;
use prost_types::Any;
use tonic::{Code, Status};

pub(super) fn invalid(invalid: &Invalid) -> Status {
    let detail =
        |field: &str, reason: &str| InvalidField { field: field.to_owned(), reason: reason.to_owned() }.encode_to_vec();
    let details = invalid.fields().map(|it| any("InvalidField", detail(&it.field, &it.reason))).collect();
    status(Code::InvalidArgument, &invalid.to_string(), details)
}

pub(super) fn wrong_node(wrong: &WrongNode) -> Status {
    refused(refusal::Cause::WrongNode, &wrong.have, &wrong.to_string())
}

pub(super) fn denied(denied: &Denied) -> Status {
    let text = denied.to_string();
    match denied {
        Denied::Refused(Refusal::StaleEpoch { have }) => refused(refusal::Cause::StaleEpoch, &have.to_string(), &text),
        Denied::Refused(Refusal::StaleGeneration { have }) => {
            refused(refusal::Cause::StaleGeneration, &have.to_string(), &text)
        }
        Denied::Refused(Refusal::AnotherSpec { generation, .. }) => {
            refused(refusal::Cause::AnotherSpec, &generation.to_string(), &text)
        }
        Denied::Refused(Refusal::Draining) | Denied::Ended => Status::unavailable(text),
        Denied::Failed(Failure::Limit { limit, at, text }) => {
            let limit = match limit {
                Limit::Guards => exhausted::Limit::Guards,
                Limit::Namespace => exhausted::Limit::Namespace,
                Limit::Groups => exhausted::Limit::Groups,
                Limit::Process => exhausted::Limit::Process,
            };
            let detail = Exhausted { limit: limit.into(), at: at.unwrap_or_default() }.encode_to_vec();
            status(Code::ResourceExhausted, text, vec![any("Exhausted", detail)])
        }
        Denied::Failed(Failure::Kernel(feature)) => refused(refusal::Cause::KernelLacksFeature, feature, &text),
        Denied::Failed(Failure::Internal(_)) => Status::internal(text),
        Denied::Lifted => Status::aborted(text),
    }
}

fn refused(cause: refusal::Cause, have: &str, text: &str) -> Status {
    let detail = Detail { cause: cause.into(), have: have.to_owned() }.encode_to_vec();
    status(Code::FailedPrecondition, text, vec![any("Refusal", detail)])
}

fn status(code: Code, text: &str, details: Vec<Any>) -> Status {
    let details = rpc::Status { code: code.into(), message: text.to_owned(), details }.encode_to_vec();
    Status::with_details(code, text, details.into())
}

fn any(name: &str, value: Vec<u8>) -> Any {
    Any { type_url: format!("type.googleapis.com/janus.v1.{name}"), value }
}

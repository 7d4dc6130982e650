//! What becomes of each named failure on the wire: the one place that says so.

use janus_proto::rpc;
use janus_proto::v1::{Exhausted, InvalidField, Refusal as RefusalDetail, exhausted, refusal};
use prost::Message;
use prost_types::Any;
use tonic::{Code, Status};

use crate::registry::port::{Failure, Limit};
use crate::registry::{Denied, Refusal};
use crate::wire::{Invalid, WrongNode};

/// The longest message, bytes: it travels in a header.
const MESSAGE: usize = 1024;

/// INVALID_ARGUMENT, with every field.
pub(super) fn invalid(invalid: &Invalid) -> Status {
    let fields = invalid.fields();
    let details =
        fields.map(|it| detail("InvalidField", &InvalidField { field: it.field.clone(), reason: it.reason.clone() }));
    status(Code::InvalidArgument, &invalid.to_string(), details.collect())
}

/// INVALID_ARGUMENT, for a field of a request that is no guard.
pub(super) fn invalid_field(field: &str, reason: &str) -> Status {
    let invalid = InvalidField { field: field.to_owned(), reason: reason.to_owned() };
    status(Code::InvalidArgument, &format!("{field}: {reason}"), vec![detail("InvalidField", &invalid)])
}

/// FAILED_PRECONDITION: meant for another node.
pub(super) fn wrong_node(wrong: &WrongNode) -> Status {
    refused(refusal::Cause::WrongNode, &wrong.have, &wrong.to_string())
}

/// NOT_FOUND: no guard stands in this pod.
pub(super) fn no_guard_in(pod: &str) -> Status {
    Status::not_found(short(&format!("no guard that is asked for stands in a pod of this name: {pod}")))
}

/// RESOURCE_EXHAUSTED without a limit: too many at once.
pub(super) fn busy(what: &str) -> Status {
    Status::resource_exhausted(format!("too many {what} at once; try later"))
}

/// A call that the registry did not carry out, or that came to nothing.
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
            let exhausted = Exhausted { limit: limit.into(), at: at.unwrap_or_default() };
            status(Code::ResourceExhausted, text, vec![detail("Exhausted", &exhausted)])
        }
        Denied::Failed(Failure::Kernel(feature)) => refused(refusal::Cause::KernelLacksFeature, feature, &text),
        Denied::Failed(Failure::Internal(_)) => Status::internal(short(&text)),
        Denied::Lifted => Status::aborted(text),
    }
}

fn refused(cause: refusal::Cause, have: &str, text: &str) -> Status {
    let refusal = RefusalDetail { cause: cause.into(), have: short(have) };
    status(Code::FailedPrecondition, text, vec![detail("Refusal", &refusal)])
}

fn status(code: Code, text: &str, details: Vec<Any>) -> Status {
    let text = short(text);
    let details = rpc::Status { code: code.into(), message: text.clone(), details }.encode_to_vec();
    Status::with_details(code, text, details.into())
}

fn detail(name: &str, message: &impl Message) -> Any {
    Any { type_url: format!("type.googleapis.com/janus.v1.{name}"), value: message.encode_to_vec() }
}

fn short(text: &str) -> String {
    let end = text.floor_char_boundary(MESSAGE);
    crate::line::Printable(&text[..end]).to_string()
}

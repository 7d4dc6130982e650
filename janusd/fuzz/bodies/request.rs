//! Any bytes as a call of the controller's: what is taken is taken again when it is repeated, and a refusal is short and
//! printable.

use janus_proto::v1;
use janusd::policy::{Bindings, Policy};
use janusd::wire::{Create, Destroy, Invalid};
use prost::Message;

/// # Panics
/// When the parser breaks a promise.
pub(crate) fn run(data: &[u8]) {
    if let Ok(request) = v1::CreateGuardRequest::decode(data) {
        match Create::try_from(request) {
            Ok(create) => taken(&create),
            Err(invalid) => refused(&invalid),
        }
    }
    // Its fields are the first three of the other's.
    if let Ok(request) = v1::DestroyGuardRequest::decode(data) {
        match Destroy::try_from(request) {
            Ok(destroy) => assert!(destroy.generation >= 1 && destroy.caller.epoch() >= 1),
            Err(invalid) => refused(&invalid),
        }
    }
}

fn taken(create: &Create) {
    assert!(create.generation >= 1 && create.caller.epoch() >= 1 && create.containers.len() <= 256);
    assert_eq!(create.pod.namespace(), create.spec.name().namespace);
    assert!((1..=32).contains(&create.spec.subjects().len()));
    // A UID becomes the name of a cgroup and of a file.
    for uid in [&create.unit.guard, &create.unit.pod, create.pod.cgroup_uid()] {
        assert!((1..=64).contains(&uid.as_str().len()));
        assert!(uid.as_str().bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'));
    }
    for container in &create.containers {
        assert!((1..=128).contains(&container.id().len()) && !container.id().contains('/'));
        assert!(!container.id().starts_with('.'));
    }
    Policy::new(&create.spec, &Bindings::default());

    let request = create.request(create.caller.epoch(), &create.containers);
    let again = Create::try_from(request.clone()).expect("what was taken is taken again");
    assert_eq!((&again.caller, &again.unit, again.generation), (&create.caller, &create.unit, create.generation));
    assert_eq!((&again.pod, &again.sent, &again.containers), (&create.pod, &create.sent, &create.containers));
    assert_eq!(again.request(again.caller.epoch(), &again.containers), request);
}

/// It travels in trailers.
fn refused(invalid: &Invalid) {
    let mut count = 0;
    let mut length = 0;
    for fault in invalid.fields() {
        count += 1;
        length += fault.field.len() + fault.reason.len();
        assert!(!fault.to_string().chars().any(char::is_control));
    }
    assert!((1..=20).contains(&count) && length < 8200, "{count} fields, {length} bytes");
}

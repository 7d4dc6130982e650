//! What a client that knows only the descriptors finds.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use janus_proto::v1::FILE_DESCRIPTOR_SET;
use prost::Message;
use prost_types::{EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet};

fn file() -> FileDescriptorProto {
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
    // Beside it: google.rpc, and what that imports.
    set.file.into_iter().find(|file| file.package() == "janus.v1").unwrap()
}

#[test]
fn the_service_has_its_four_calls() {
    let file = file();
    assert_eq!(file.package(), "janus.v1");
    let calls: Vec<_> = file
        .service
        .iter()
        .flat_map(|service| service.method.iter().map(|call| (service.name(), call.name(), call.server_streaming())))
        .collect();
    assert_eq!(
        calls,
        [
            ("Janusd", "CreateGuard", false),
            ("Janusd", "DestroyGuard", false),
            ("Janusd", "GetGuardState", true),
            ("Janusd", "WatchEvents", true),
        ]
    );
    assert!(file.service.iter().flat_map(|service| &service.method).all(|call| !call.client_streaming()));
}

/// A field that an older peer did not set must not read as a choice.
#[test]
fn the_zero_of_every_enum_is_unspecified() {
    let file = file();
    let nested = file.message_type.iter().flat_map(|message| &message.enum_type);
    let zero =
        |choice: &EnumDescriptorProto| choice.value.iter().find(|value| value.number() == 0).unwrap().name().to_owned();
    for choice in file.enum_type.iter().chain(nested) {
        assert!(zero(choice).ends_with("_UNSPECIFIED"), "{}: {}", choice.name(), zero(choice));
    }
}

//! The wire between janus-controller and janusd: generated code, and nothing else.
//!
//! `janus/v1/janusd.proto` is the source and holds the documentation. What comes off the wire is untrusted on both sides:
//! janusd turns it into its own checked types, the controller into its own view of a node.

/// Package `janus.v1`.
pub mod v1 {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        reason = "generated"
    )]

    tonic::include_proto!("janus.v1");

    /// The encoded `FileDescriptorSet`, for the reflection service.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/janus.v1.binpb"));
}

/// Package `google.rpc`: details of a status, in the trailer `grpc-status-details-bin`.
pub mod rpc {
    #![allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]

    tonic::include_proto!("google.rpc");
}

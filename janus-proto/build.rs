//! Generates the code of `janus/v1/janusd.proto`, without protoc.

use std::{env, fs, path::PathBuf};

use anyhow::Context;
use prost::Message;

fn main() -> anyhow::Result<()> {
    println!("cargo:rerun-if-changed=janus");
    println!("cargo:rerun-if-changed=google");
    let descriptors = protox::compile(["janus/v1/janusd.proto", "google/rpc/status.proto"], ["."])?;

    let out = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR")?);
    fs::write(out.join("janus.v1.binpb"), descriptors.encode_to_vec()).context("writing the descriptors")?;

    tonic_prost_build::configure()
        // Who connects, and with which certificates, is the business of the crates that do.
        .build_transport(false)
        // The same message, the same bytes.
        .btree_map(".")
        .compile_fds(descriptors)
        .context("generating code")
}

//! The command line.

use clap::{Parser, Subcommand};

/// The Kubernetes side of Janus: keeps each node's janusd in agreement with the cluster's JanusGuards.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Prints the JanusGuard CustomResourceDefinition as YAML, ready for `kubectl apply -f -`.
    Crd,
}

//! The controller.

mod args;
mod crd;

use clap::Parser;

use crate::args::{Args, Command};

fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Command::Crd => crd::print(&mut std::io::stdout().lock()),
    }
}

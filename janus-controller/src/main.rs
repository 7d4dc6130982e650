//! The controller's entry: the command line, the log, the exit status.

mod crd;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use janus_controller::args::{Args, Command, LogFormat};
use janus_controller::{certificates, run, uninstall};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // Bad arguments end with 2, as clap has it.
    let args = Args::parse();
    log(args.log_format);
    match carry_out(args.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn carry_out(command: Command) -> anyhow::Result<()> {
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match command {
        Command::Crd => crd::print(&mut std::io::stdout().lock()),
        Command::Run(options) => runtime()?.block_on(run::run(*options)),
        Command::Uninstall => {
            let released = runtime()?.block_on(uninstall::uninstall())?;
            tracing::info!("{released} guards let go");
            Ok(())
        }
        Command::Certificates { namespace } => Ok(runtime()?.block_on(certificates::run(&namespace))?),
    }
}

fn log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,kube=warn"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let lines = lines.with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().init(),
    }
}

//! The janusd command.

mod args;

use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;

use args::{Arguments, CheckArguments, Command, EventFormat, EventWord, LogFormat, OriginWord, Output, ServeArguments};
use clap::Parser;
use janusd::check::Inquiry;
use janusd::commands::guard::{Options, RootPlace};
use janusd::flood::{Dam, DamKeeper};
use janusd::gate::Settings;
use janusd::server::tls::Files;
use janusd::{commands, events, policy, rights};
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

fn main() -> ExitCode {
    let status = match Arguments::parse().command {
        Command::Guard(arguments) => {
            let _flushed_at_the_end = begin_service(arguments.log_format);
            commands::guard::run(Options {
                files: arguments.manifests.files,
                place: match arguments.pid {
                    Some(pid) => RootPlace::Process(pid),
                    None => RootPlace::Directory(arguments.root),
                },
                admin_listen: arguments.admin_listen,
                event_format: event_format(arguments.event_format),
            })
        }
        Command::Serve(arguments) => {
            let _flushed_at_the_end = begin_service(arguments.log_format);
            commands::serve::run(serve_options(arguments))
        }
        Command::Hold(arguments) => {
            let _flushed_at_the_end = begin_service(arguments.log_format);
            let options = commands::hold::Options { state_dir: arguments.state_dir, deadline: arguments.deadline };
            commands::hold::run(&options)
        }
        Command::Check(arguments) => {
            let inquiry = inquiry(&arguments);
            commands::check::run(&arguments.manifests.files, inquiry.as_ref())
        }
        Command::Preflight(arguments) => commands::preflight::run(arguments.output == Output::Json),
        Command::Demo => {
            let _flushed_at_the_end = log_to_stderr(LogFormat::Text);
            commands::demo::run()
        }
    };
    ExitCode::from(status)
}

/// What every command does that runs for long: gives up rights while there is one thread, then starts the log's.
fn begin_service(format: LogFormat) -> Log {
    let given_up = rights::give_up_capabilities();
    let guard = log_to_stderr(format);
    if let Err(error) = given_up {
        tracing::warn!("janusd keeps rights that it does not need: {error}");
    }
    guard
}

/// The log's threads. In this order: what was held back is told before the last lines are written.
struct Log {
    _floods: Option<DamKeeper>,
    _writer: WorkerGuard,
}

/// Lines of the log that may wait for their writer. Room for them is made at the start: by default for 128,000, 4 MiB.
const LOG_QUEUE: usize = 4096;

/// `RUST_LOG` chooses what is told, as everywhere. Through a thread and a queue of its own: a reader of stderr that has
/// stopped costs log lines, and never holds up the thread that would restart a worker.
fn log_to_stderr(format: LogFormat) -> Log {
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_default_directive(tracing::level_filters::LevelFilter::INFO.into())
        .from_env_lossy();
    let appender = tracing_appender::non_blocking::NonBlockingBuilder::default().buffered_lines_limit(LOG_QUEUE);
    let (stderr, guard) = appender.finish(std::io::stderr());
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    let (dam, keeper) = match Dam::new() {
        Ok((dam, keeper)) => (Some(dam), Some(keeper)),
        Err(_) => (None, None),
    };
    match format {
        LogFormat::Text => {
            let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
            subscriber.with_ansi(terminal).finish().with(dam).init();
        }
        LogFormat::Json => subscriber.json().finish().with(dam).init(),
    }
    if keeper.is_none() {
        tracing::warn!("no thread to tell of held back log lines: none is held back");
    }
    Log { _floods: keeper, _writer: guard }
}

fn event_format(format: EventFormat) -> events::EventFormat {
    match format {
        EventFormat::Guard => events::EventFormat::Guard,
        EventFormat::Json => events::EventFormat::Json,
    }
}

fn serve_options(arguments: ServeArguments) -> commands::serve::Options {
    let ServeArguments {
        listen,
        admin_listen,
        node_name,
        namespace,
        tls_cert,
        tls_key,
        tls_client_ca,
        // Then there are no files: clap sees to that.
        insecure: _,
        state_dir,
        node_agent,
        start_limit,
        runtime,
        sysctl,
        event_format: format,
        log_format: _,
    } = arguments;
    let files = match (tls_cert, tls_key, tls_client_ca) {
        (Some(certificate), Some(key), Some(client_ca)) => Some(Files { certificate, key, client_ca }),
        _ => None,
    };
    commands::serve::Options {
        listen,
        admin_listen,
        node: node_name,
        namespace,
        files,
        state_dir,
        agents: node_agent,
        starts: (!start_limit.is_zero()).then_some(Settings { limit: start_limit, runtimes: runtime }),
        event_format: event_format(format),
        sysctl,
    }
}

fn inquiry(arguments: &CheckArguments) -> Option<Inquiry> {
    Some(Inquiry {
        path: arguments.explain.clone()?.into_os_string().into_vec(),
        event: arguments.event.map(|event| match event {
            EventWord::Open => policy::Event::Open,
            EventWord::Access => policy::Event::Access,
            EventWord::Execute => policy::Event::Execute,
        }),
        origin: arguments.origin.map(|origin| match origin {
            OriginWord::Owner => policy::Origin::Owner,
            OriginWord::Session => policy::Origin::Session,
            OriginWord::Pod => policy::Origin::Pod,
            OriginWord::Node => policy::Origin::Node,
        }),
        executable: arguments.exe.clone(),
        user: arguments.uid,
    })
}

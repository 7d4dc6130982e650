//! Guards on pods, in a process of their own on the node: the library as `janusd` will use it, without the wire.
//!
//! `guards SOCKET AGENT...`: one JSON value a line on a socket, event lines as JSON on stdout. Ends by SIGTERM, or with the
//! node.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use janusd::commands::engine::Engine;
use janusd::container::{Finder, PodUid};
use janusd::events::EventFormat;
use janusd::metrics::Metrics;
use janusd::node::PodGuard;
use janusd::process::agents::Agents;
use serde::{Deserialize, Serialize};

const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// The pod's UID in its cgroups, its name, and the manifest.
    Create(String, String, String),
    Destroy(String),
    State(String),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Told {
    Done,
    State(Option<State>),
    Failed(String),
}

/// How a guard is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct State {
    /// Selected containers that have started: name, id, whether the guard is in force there.
    pub(crate) containers: Vec<(String, String, bool)>,
    /// Reasons.
    pub(crate) problems: Vec<String>,
    pub(crate) marks: u64,
}

pub(crate) fn serve(words: &[&OsStr]) -> io::Result<()> {
    let [socket, agents @ ..] = words else { return Err(io::Error::other("guards SOCKET AGENT...")) };
    let mut engine =
        Engine::start(EventFormat::Json, 64).map_err(|failed| io::Error::other(failed.lines.join("; ")))?;
    let agents: Vec<PathBuf> = agents.iter().map(PathBuf::from).collect();
    let agents = Agents::find(&agents, &engine.shared.features).map_err(io::Error::other)?;
    engine.shared.agents = Some(Arc::new(agents));
    let (finder, _thread) = Finder::start()?;
    let metrics = Metrics::default();
    let mut guards: BTreeMap<String, PodGuard> = BTreeMap::new();
    let mut perform = |ask: Ask| -> io::Result<Told> {
        match ask {
            Ask::Create(uid, name, manifest) => {
                let mut specs = janusd::manifest::parse("test", manifest.as_bytes())
                    .map_err(|errors| io::Error::other(format!("{errors:?}")))?;
                let spec = Arc::new(specs.remove(0));
                if let Some(guard) = guards.get(&uid) {
                    guard.update(spec).map_err(io::Error::other)?;
                    return Ok(Told::Done);
                }
                let pod = PodUid::new(&uid).ok_or_else(|| io::Error::other("no UID"))?;
                let handles = metrics.guard(spec.name());
                let guard = PodGuard::start(spec, pod, name.into(), handles, &engine.shared, &finder);
                guards.insert(uid, guard.map_err(io::Error::other)?);
                Ok(Told::Done)
            }
            Ask::Destroy(uid) => match guards.remove(&uid).map(|guard| guard.stop(PATIENCE)) {
                Some(false) => Ok(Told::Failed("it does not stop".to_owned())),
                Some(true) | None => Ok(Told::Done),
            },
            Ask::State(uid) => Ok(Told::State(guards.get(&uid).map(|guard| {
                let report = guard.report();
                State {
                    containers: report
                        .sites
                        .iter()
                        .map(|site| (site.name.as_deref().unwrap_or("").to_owned(), site.id.to_string(), site.in_force))
                        .collect(),
                    problems: report.problems.iter().map(|problem| problem.reason.word().to_owned()).collect(),
                    marks: report.marks.total(),
                }
            }))),
        }
    };
    let listener = UnixListener::bind(socket)?;
    for client in listener.incoming() {
        let mut client = client?;
        for line in BufReader::new(client.try_clone()?).lines() {
            let told = perform(serde_json::from_str(&line?)?);
            let told = told.unwrap_or_else(|error| Told::Failed(error.to_string()));
            writeln!(client, "{}", serde_json::to_string(&told)?)?;
        }
    }
    Ok(())
}

//! Event lines: from a worker, after its answer, through a bounded queue to the one thread that writes them.
//!
//! A reader of stdout that is slow, or stopped, costs lines (counted), never an opener's time: the reader may be the very
//! process that waits for an answer.

pub mod relay;

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, Sender, bounded};
use smallvec::SmallVec;

use crate::guard::opener::{Opener, Wanted};
use crate::line::{EventLine, LogFormat, Specifier, render, render_json};
use crate::metrics::Dropped;
use crate::policy::{Decision, Event, GuardSpec, Origin};

/// Lines that may wait for their writer.
const QUEUE: usize = 16_384;
/// Lines are written together up to this many bytes.
const CHUNK: usize = 64 * 1024;

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EventFormat {
    /// As each guard's `logFormat` says.
    #[default]
    Guard,
    /// One JSON object a line.
    Json,
}

/// The pod and the guard that events are about, where a cluster names them.
#[derive(Debug, Default)]
pub struct Whose {
    /// The pod's name.
    pub pod: String,
    /// The pod's UID, as the API server knows it.
    pub pod_uid: String,
    /// The guard's UID.
    pub guard_uid: String,
    /// The guard's generation that is in force.
    pub generation: AtomicI64,
}

/// The parts of a line that are the same for every event of a guard.
#[derive(Debug)]
pub struct GuardText {
    namespace: String,
    guard: String,
    /// The pod that is guarded; `None`: the writer's place says.
    whose: Option<Arc<Whose>>,
    format: LogFormat,
    subjects: Vec<SubjectText>,
    dropped: Dropped,
}

#[derive(Debug)]
struct SubjectText {
    name: String,
    tags: BTreeMap<String, String>,
    allow: Vec<String>,
    deny: Vec<String>,
}

impl GuardText {
    /// Copies what lines show out of a guard. `dropped` counts those that cannot be written.
    pub fn new(spec: &GuardSpec, whose: Option<Arc<Whose>>, dropped: Dropped) -> GuardText {
        let written = |paths: &[crate::policy::PathPattern]| paths.iter().map(ToString::to_string).collect();
        GuardText {
            namespace: spec.name().namespace.clone(),
            guard: spec.name().name.clone(),
            whose,
            format: spec.log_format().clone(),
            subjects: spec
                .subjects()
                .iter()
                .map(|subject| SubjectText {
                    name: subject.name().to_owned(),
                    tags: subject.tags().clone(),
                    allow: written(subject.allow()),
                    deny: written(subject.deny()),
                })
                .collect(),
            dropped,
        }
    }

    /// The guard's namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The guard's name.
    pub fn guard(&self) -> &str {
        &self.guard
    }

    /// The pod and the guard, where a cluster names them.
    pub fn whose(&self) -> Option<&Whose> {
        self.whose.as_deref()
    }

    /// Counts a line that cannot be told.
    pub fn dropped(&self) {
        self.dropped.inc();
    }

    /// The subject and the rule that decided: its name, its tags, and the rule's path in the guard's writing.
    pub fn decided(&self, decision: &Decision) -> Option<(&str, &BTreeMap<String, String>, Option<&str>)> {
        let rule = decision.rule?;
        let subject = self.subjects.get(usize::from(rule.subject))?;
        let paths = match rule.list {
            crate::policy::List::Allow => &subject.allow,
            crate::policy::List::Deny => &subject.deny,
        };
        Some((&subject.name, &subject.tags, paths.get(usize::from(rule.index)).map(String::as_str)))
    }

    /// What the format asks to know about the opener.
    pub fn wanted(&self) -> Wanted {
        let shows = |field| self.format.shows(field);
        Wanted {
            status: shows(Specifier::Comm) || shows(Specifier::Uid),
            exe: shows(Specifier::Exe),
            origin: shows(Specifier::Origin),
        }
    }
}

/// A path on its way to a line: of usual length it takes no allocation.
pub type ShownPath = SmallVec<[u8; 88]>;

/// One event that makes a line.
#[derive(Debug, Clone)]
pub struct Line {
    /// When it was answered.
    pub at: SystemTime,
    /// The guard's part.
    pub text: Arc<GuardText>,
    /// What was decided.
    pub decision: Decision,
    /// What was asked.
    pub event: Event,
    /// Whether the file is a directory.
    pub directory: bool,
    /// The file, as the container sees it.
    pub path: ShownPath,
    /// The container whose name for the file that is.
    pub container: Option<Arc<str>>,
    /// The process that asked.
    pub pid: i32,
    /// What was looked up about it.
    pub opener: Option<Opener>,
}

/// Where lines say they come from.
#[derive(Debug, Clone)]
pub struct Place {
    /// The pod's name.
    pub pod: String,
    /// The node's name.
    pub node: String,
}

/// The thread that writes lines.
#[derive(Debug)]
pub struct LineWriter {
    thread: JoinHandle<()>,
    hurry: Arc<AtomicBool>,
}

impl LineWriter {
    /// Starts it. It ends when every sender is gone and every line is written.
    ///
    /// # Errors
    /// The kernel's, when no thread can be had.
    pub fn start(
        out: impl Write + Send + 'static,
        format: EventFormat,
        place: Place,
    ) -> std::io::Result<(Sender<Line>, LineWriter)> {
        let (sender, lines) = bounded(QUEUE);
        let hurry = Arc::new(AtomicBool::new(false));
        let writer = Writer { out, format, place, hurry: hurry.clone() };
        let thread = std::thread::Builder::new().name("janus-lines".into()).spawn(move || writer.write_all(&lines))?;
        Ok((sender, LineWriter { thread, hurry }))
    }

    /// Waits until all lines are written, at most `patience`: whoever reads them may have stopped reading. Drop every
    /// sender first. False when lines are lost.
    pub fn finish(self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while !self.thread.is_finished() {
            if Instant::now() >= deadline {
                self.hurry.store(true, Ordering::Relaxed);
                return false;
            }
            std::thread::park_timeout(Duration::from_millis(1));
        }
        self.thread.join().is_ok()
    }
}

struct Writer<W> {
    out: W,
    format: EventFormat,
    place: Place,
    hurry: Arc<AtomicBool>,
}

impl<W: Write> Writer<W> {
    fn write_all(mut self, lines: &Receiver<Line>) {
        let mut text = String::new();
        let mut guards = Vec::new();
        while let Ok(line) = lines.recv() {
            self.render(&line, &mut text);
            guards.push(line.text);
            while text.len() < CHUNK {
                let Ok(line) = lines.try_recv() else { break };
                self.render(&line, &mut text);
                guards.push(line.text);
            }
            let written = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
            text.clear();
            if let Err(error) = written {
                for guard in guards {
                    guard.dropped.inc();
                }
                // The queue closes, so that workers count what comes as dropped.
                tracing::error!(%error, "event lines cannot be written; enforcement goes on without them");
                return;
            }
            guards.clear();
            if self.hurry.load(Ordering::Relaxed) {
                return;
            }
            if lines.is_empty() {
                // What comes meanwhile wakes nobody, and is written together.
                std::thread::sleep(relay::GATHER);
            }
        }
    }

    fn render(&self, line: &Line, out: &mut String) {
        let text = &*line.text;
        let decided = text.decided(&line.decision);
        let event = EventLine {
            time: Some(line.at),
            path: Some(&*line.path).filter(|path| !path.is_empty()),
            pod: Some(text.whose.as_ref().map_or(&self.place.pod, |whose| &whose.pod)),
            node: Some(&self.place.node),
            tags: decided.map(|(_, tags, _)| tags),
            namespace: Some(&text.namespace),
            guard: Some(&text.guard),
            subject: decided.map(|(subject, ..)| subject),
            rule: decided.and_then(|(.., rule)| rule),
            container: line.container.as_deref(),
            reason: Some(line.decision.reason.word()),
            origin: line.opener.as_ref().and_then(|opener| opener.origin).map(Origin::word),
            pid: u32::try_from(line.pid).ok().filter(|pid| *pid != 0),
            comm: line.opener.as_ref().and_then(|opener| opener.comm.as_deref()),
            exe: line.opener.as_ref().and_then(|opener| opener.exe.as_deref()),
            uid: line.opener.as_ref().and_then(|opener| opener.uid),
            ..EventLine::new(line.decision.outcome(), line.event, line.directory)
        };
        match self.format {
            EventFormat::Guard => render(&text.format, &event, out),
            EventFormat::Json => render_json(&event, out),
        }
        out.push('\n');
    }
}

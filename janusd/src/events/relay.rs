//! Decisions for whoever watches: each line passes here on its way to the writer.
//!
//! One thread, `janus-relay`. A reader has a bounded queue of its own and names what it is interested in, so that what it
//! misses is its own: when its queue is full, decisions are counted instead, and the count is told in their place. Neither
//! a reader nor the writer of lines can hold anything up: for both it is a try, and a count.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use crossbeam_channel::{Receiver, Sender, bounded, never, unbounded};
use tokio::sync::mpsc;

use super::{GuardText, Line};
use crate::policy::{Event, Outcome};

/// Lines that may wait for the relay, which waits for nobody: those that pile up do so before the writer.
const PASSING: usize = 4096;
/// Decisions that may wait for one reader.
const READER_QUEUE: usize = 1024;
/// While lines come, they gather for so long before they are passed on together: a thread that were woken for each of
/// them would take the CPU that the next opener waits for. [`PASSING`] holds what gathers at 400,000 a second.
pub(super) const GATHER: Duration = Duration::from_millis(10);

/// What a reader wants to see; a field that is not set holds for all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interest {
    /// Of guards in this namespace.
    pub namespace: Option<String>,
    /// Of guards with this name.
    pub guard: Option<String>,
    /// In the pod with this name.
    pub pod: Option<String>,
    /// Of these events; empty: all.
    pub events: Vec<Event>,
    /// Answered like this; empty: anyhow.
    pub outcomes: Vec<Outcome>,
}

impl Interest {
    /// Whether lines of this guard, in this pod, may be of interest.
    pub fn concerns(&self, text: &GuardText) -> bool {
        let is = |wanted: &Option<String>, is: Option<&str>| wanted.as_deref().is_none_or(|wanted| is == Some(wanted));
        is(&self.namespace, Some(text.namespace()))
            && is(&self.guard, Some(text.guard()))
            && is(&self.pod, text.whose().map(|whose| whose.pod.as_str()))
    }

    /// Whether a line is of interest.
    pub fn admits(&self, line: &Line) -> bool {
        self.concerns(&line.text)
            && (self.events.is_empty() || self.events.contains(&line.event))
            && (self.outcomes.is_empty() || self.outcomes.contains(&line.decision.outcome()))
    }
}

/// Who watches, for workers: about an opener in whom nobody is interested nothing is found out. Asked between an event and
/// its answer, so it never waits.
#[derive(Debug, Clone, Default)]
pub struct Watched(Arc<ArcSwap<Vec<(u64, Interest)>>>);

impl Watched {
    /// Whether anybody is interested in lines of this guard, in this pod.
    pub fn concerns(&self, text: &GuardText) -> bool {
        self.0.load().iter().any(|(_, interest)| interest.concerns(text))
    }

    fn begin(&self, interest: &Interest) -> Watching {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        self.0.rcu(|all| {
            let mut all = Vec::clone(all);
            all.push((number, interest.clone()));
            all
        });
        Watching { watched: self.clone(), number }
    }
}

/// Somebody watches, until this is dropped.
#[derive(Debug)]
struct Watching {
    watched: Watched,
    number: u64,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.watched.0.rcu(|all| {
            let mut all = Vec::clone(all);
            all.retain(|(number, _)| *number != self.number);
            all
        });
    }
}

/// What a reader is told.
#[derive(Debug)]
pub enum Told {
    /// A decision.
    Line(Arc<Line>),
    /// So many were missed here.
    Missed(u64),
}

/// A reader's end.
#[derive(Debug)]
pub struct Reader {
    queue: mpsc::Receiver<(u64, Arc<Line>)>,
    missed: Arc<AtomicU64>,
    held: Option<Arc<Line>>,
    _watching: Watching,
}

impl Reader {
    /// The next thing to tell; `None` when there will be none.
    pub async fn next(&mut self) -> Option<Told> {
        if let Some(line) = self.held.take() {
            return Some(Told::Line(line));
        }
        let next = match self.queue.try_recv() {
            Ok(next) => next,
            Err(mpsc::error::TryRecvError::Disconnected) => return None,
            // What was missed behind the last one that came.
            Err(mpsc::error::TryRecvError::Empty) => match self.missed.swap(0, Ordering::Relaxed) {
                0 => self.queue.recv().await?,
                missed => return Some(Told::Missed(missed)),
            },
        };
        Some(match next {
            (0, line) => Told::Line(line),
            (missed, line) => {
                self.held = Some(line);
                Told::Missed(missed)
            }
        })
    }
}

struct Audience {
    interest: Interest,
    queue: mpsc::Sender<(u64, Arc<Line>)>,
    missed: Arc<AtomicU64>,
}

/// The way to the relay's thread.
#[derive(Debug, Clone)]
pub struct Relay {
    joins: Sender<Audience>,
    watched: Watched,
}

impl std::fmt::Debug for Audience {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Audience").field(&self.interest).finish()
    }
}

/// The thread, to be joined.
#[derive(Debug)]
pub struct RelayThread(JoinHandle<()>);

impl Relay {
    /// Starts the thread before `writer`; gives the way in for lines. It ends when every sender of lines has gone.
    ///
    /// # Errors
    /// The kernel's, when no thread can be had.
    pub fn start(writer: Sender<Line>) -> std::io::Result<(Sender<Line>, Relay, RelayThread)> {
        let (sender, lines) = bounded(PASSING);
        let (joins, joined) = unbounded();
        let hall = Hall { writer, lines, joined, audience: Vec::new() };
        let thread = std::thread::Builder::new().name("janus-relay".into()).spawn(move || hall.run())?;
        Ok((sender, Relay { joins, watched: Watched::default() }, RelayThread(thread)))
    }

    /// Who watches.
    pub fn watched(&self) -> &Watched {
        &self.watched
    }

    /// Watches from now on.
    pub fn watch(&self, interest: Interest) -> Reader {
        let (sender, queue) = mpsc::channel(READER_QUEUE);
        let missed = Arc::new(AtomicU64::new(0));
        let _watching = self.watched.begin(&interest);
        // The thread has ended: the reader is told so at once.
        let _ended = self.joins.send(Audience { interest, queue: sender, missed: missed.clone() });
        Reader { queue, missed, held: None, _watching }
    }
}

impl RelayThread {
    /// Waits for its end; drop every sender of lines first.
    pub fn join(self) {
        if self.0.join().is_err() {
            tracing::error!("the relay of event lines panicked");
        }
    }
}

struct Hall {
    writer: Sender<Line>,
    lines: Receiver<Line>,
    joined: Receiver<Audience>,
    audience: Vec<Audience>,
}

impl Hall {
    fn run(mut self) {
        loop {
            crossbeam_channel::select! {
                recv(self.lines) -> line => match line {
                    Ok(line) => {
                        self.admit();
                        self.pass(line);
                    }
                    Err(_) => return,
                },
                recv(self.joined) -> audience => match audience {
                    Ok(audience) => {
                        self.audience.push(audience);
                        continue;
                    }
                    Err(_) => {
                        self.joined = never();
                        continue;
                    }
                },
            }
            // The first line passed at once. Those behind it wait for one another, until none came.
            loop {
                std::thread::sleep(GATHER);
                self.admit();
                let Ok(line) = self.lines.try_recv() else { break };
                self.pass(line);
                while let Ok(line) = self.lines.try_recv() {
                    self.pass(line);
                }
            }
        }
    }

    /// Lets in who came before the lines that are passed next.
    fn admit(&mut self) {
        self.audience.extend(self.joined.try_iter());
    }

    fn pass(&mut self, line: Line) {
        self.audience.retain(|one| !one.queue.is_closed());
        if self.audience.iter().any(|one| one.interest.admits(&line)) {
            let shared = Arc::new(line.clone());
            for one in self.audience.iter().filter(|one| one.interest.admits(&line)) {
                match one.queue.try_reserve() {
                    Ok(place) => place.send((one.missed.swap(0, Ordering::Relaxed), shared.clone())),
                    Err(_) => drop(one.missed.fetch_add(1, Ordering::Relaxed)),
                }
            }
        }
        if let Err(lost) = self.writer.try_send(line) {
            lost.into_inner().text.dropped();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::super::{GuardText, Whose};
    use super::*;
    use crate::metrics::Metrics;
    use crate::policy::Decision;

    fn text(name: &str, pod: &str) -> Arc<GuardText> {
        let manifest = format!(
            "apiVersion: januscontroller.clustergarage.io/v1alpha1\nkind: JanusGuard\nmetadata: {{name: {name}, namespace: ns}}\n\
             spec: {{selector: {{}}, subjects: [{{deny: [/x], events: [open]}}]}}\n"
        );
        let spec = crate::manifest::parse("test", manifest.as_bytes()).unwrap().remove(0);
        let whose = Whose { pod: pod.to_owned(), ..Whose::default() };
        let dropped = Metrics::default().guard(spec.name()).log_dropped();
        Arc::new(GuardText::new(&spec, Some(Arc::new(whose)), dropped))
    }

    fn line(text: &Arc<GuardText>, pid: i32) -> Line {
        Line {
            at: SystemTime::UNIX_EPOCH,
            text: text.clone(),
            decision: Decision::ALLOW,
            event: Event::Open,
            directory: false,
            path: crate::events::ShownPath::new(),
            container: None,
            pid,
            opener: None,
        }
    }

    async fn told(reader: &mut Reader) -> Told {
        tokio::time::timeout(Duration::from_secs(10), reader.next()).await.unwrap().unwrap()
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_slow_reader_is_told_how_many_it_missed_and_each_decision_is_told_or_counted() {
        let (writer, written) = bounded(4 * READER_QUEUE);
        let (lines, relay, thread) = Relay::start(writer).unwrap();
        let (mine, others) = (text("mine", "pod"), text("others", "pod"));
        let mut slow = relay.watch(Interest { guard: Some("mine".to_owned()), ..Interest::default() });
        let mut idle = relay.watch(Interest { pod: Some("elsewhere".to_owned()), ..Interest::default() });
        let sent = READER_QUEUE + 100;
        for pid in 0..sent {
            lines.send(line(&mine, pid as i32)).unwrap();
            lines.send(line(&others, -1)).unwrap();
        }
        // All have passed once the writer has them.
        for _ in 0..2 * sent {
            written.recv_timeout(Duration::from_secs(10)).unwrap();
        }
        for pid in 0..READER_QUEUE {
            match told(&mut slow).await {
                Told::Line(line) => assert_eq!(line.pid, pid as i32),
                Told::Missed(_) => panic!("none was missed before {pid}"),
            }
        }
        assert!(matches!(told(&mut slow).await, Told::Missed(100)));
        lines.send(line(&mine, 7)).unwrap();
        assert!(matches!(told(&mut slow).await, Told::Line(line) if line.pid == 7));
        drop(lines);
        thread.join();
        assert!(slow.next().await.is_none());
        assert!(idle.next().await.is_none(), "others' decisions are none of its");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_was_missed_is_told_before_what_came_after() {
        let (writer, written) = bounded(4 * READER_QUEUE);
        let (lines, relay, _thread) = Relay::start(writer).unwrap();
        let mine = text("mine", "pod");
        let mut slow = relay.watch(Interest::default());
        let pass = |count: usize| {
            for _ in 0..count {
                lines.send(line(&mine, 0)).unwrap();
            }
            (0..count).for_each(|_| drop(written.recv_timeout(Duration::from_secs(10)).unwrap()));
        };
        pass(READER_QUEUE + 3);
        assert!(matches!(told(&mut slow).await, Told::Line(_)));
        pass(2);
        let mut lines_told = 1;
        loop {
            match told(&mut slow).await {
                Told::Line(_) => lines_told += 1,
                Told::Missed(count) => {
                    assert_eq!((count, lines_told), (3, READER_QUEUE), "where the first gap is");
                    break;
                }
            }
        }
        assert!(matches!(told(&mut slow).await, Told::Line(_)));
        assert!(matches!(told(&mut slow).await, Told::Missed(1)));
    }

    #[test]
    fn whoever_watches_is_known_until_the_reader_goes() {
        let (writer, _written) = bounded(1);
        let (_lines, relay, _thread) = Relay::start(writer).unwrap();
        let watched = relay.watched().clone();
        let (mine, others) = (text("mine", "pod"), text("others", "pod"));
        assert!(!watched.concerns(&mine));
        let reader = relay.watch(Interest { guard: Some("mine".to_owned()), ..Interest::default() });
        assert!(watched.concerns(&mine) && !watched.concerns(&others));
        let elsewhere = relay.watch(Interest { pod: Some("elsewhere".to_owned()), ..Interest::default() });
        assert!(!watched.concerns(&others));
        let all = relay.watch(Interest::default());
        drop((reader, elsewhere));
        assert!(watched.concerns(&mine) && watched.concerns(&others));
        drop(all);
        assert!(!watched.concerns(&mine));
    }
}

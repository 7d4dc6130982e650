//! `janusd hold`: keeps group descriptors while janusd is away. One thread, one loop.
//!
//! Flow: janusd deposits each guard's groups, with what to answer if nobody comes, and a parcel that nobody opens here. Its
//! connection ends when it does. A guard that was not withdrawn before waits, and so does whoever opens its files, until a
//! janusd takes it ([`super::take`]) or its deadline has passed; from then on all that comes is answered as was told, until
//! a janusd takes it. A connection that has ended while its janusd lives is no death: that one answers by itself, and what it
//! had deposited is let go.
//!
//! A janusd that is stopped as a whole is no death either, and answers nobody. It beats while it goes on; once it has been
//! silent for the deadline, the holder answers in its place, until it beats again ([`super::life`] has the law by which the two
//! never answer each other's events wrongly). What was answered is then told, to be counted.
//!
//! Owns: the descriptors, the deadline. Must never: judge, look at a file, parse what a guard says, or read a group whose
//! janusd goes on.
//!
//! What the dead janusd had read and not answered is known to nobody. It is answered by every number that it can have had:
//! by this one at the deadline, before its first read, or by whoever takes the guard, before its own.
//!
//! Of a gate of starts it holds a share as well, and reads it only where its janusd, alive, has left something queued for
//! seconds: a janusd that is stopped as a whole would keep the node's runtime from doing anything, also from killing it. Its
//! marks are taken away then, and whoever waits is let go. The share goes with the connection.
//!
//! Caveat: a read can hang inside of an open (a FUSE server that does not answer), and with it the one thread: what else is
//! due waits for that server, and so does a janusd that comes. Such a file system under a guard takes a janusd that lives.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, unbounded};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::life::{LOOK, Life};
use super::link::{Link, LinkError};
use super::message::{
    Answers, Counted, Deposit, DepositKnown, End, Gate, Highest, Hold, Part, Pulse, Refuse, Stood, Taken,
};
use super::place::HoldPlace;
use crate::fanotify::answer::{Answer, Outcome, answer_all};
use crate::fanotify::group::ReadBuffer;
use crate::fanotify::{Group, PermissionEvent, sys};
use crate::policy::{Event, Failure, Response};

/// For a frame that has begun to come.
const FRAME: Duration = Duration::from_secs(1);
/// For a janusd whose connection has ended to have ended as well: the kernel closes its connections first.
const DYING: Duration = Duration::from_secs(1);
/// For a janusd that takes guards to hear of all of them.
const GIVING: Duration = Duration::from_secs(5);
/// Batches that are answered of one group before the others have their turn.
const READS: usize = 4;
/// How often it is looked whether a janusd reads the starts that it holds.
const GATES: Duration = Duration::from_secs(1);
/// So many times in a row something is queued there, and then it does not.
const UNREAD: u32 = 3;
/// Parcels of what is known, for each guard: beyond that it is learned anew.
const MOST_PARCELS: usize = 128;

/// What was deposited of one guard.
struct Unit {
    /// Whose: the connection.
    owner: u64,
    deposit: Deposit,
    known: Vec<DepositKnown>,
    groups: [Group; 2],
    /// Since when its janusd is dead.
    orphaned: Option<Instant>,
    /// What that one had read is answered.
    settled: bool,
    /// How it was held before it was given to its owner, which has not said yet that it has it.
    before: Option<Before>,
    /// What was answered here, by event.
    answered: [u64; Event::ALL.len()],
}

/// A unit before it was given to a janusd.
#[derive(Clone, Copy)]
struct Before {
    owner: u64,
    orphaned: Option<Instant>,
    settled: bool,
}

impl Unit {
    fn response(&self) -> Response {
        if self.deposit.deny { Response::Deny } else { Response::Allow }
    }

    /// Answers whatever its dead janusd may have read and not answered.
    fn settle(&mut self) {
        self.answer_numbers(0..=self.deposit.highest);
        self.settled = true;
    }

    /// Answers those events that another process has read under these numbers.
    fn answer_numbers(&mut self, numbers: impl IntoIterator<Item = i32>) {
        let answers: Vec<Answer> =
            numbers.into_iter().map(|number| Answer::new(number, self.response(), false)).collect();
        let mut answered = 0;
        for group in &self.groups {
            answer_all(&mut &*group, &answers, |_, outcome| answered += u64::from(outcome == Outcome::Answered));
        }
        // What was asked is not known. Most often it is an open.
        self.answered[Event::Open as usize] += answered;
    }

    /// Answers what is queued, up to [`READS`] batches of each group: one guard's flood must not keep the others waiting, nor
    /// a janusd that comes for them. What is left makes the next wait end at once. `janus`: processes that are never denied.
    fn answer(&mut self, buffer: &mut ReadBuffer, janus: &[i32]) {
        let response = self.response();
        for group in &self.groups {
            let mut events: Vec<PermissionEvent> = Vec::new();
            for _ in 0..READS {
                // Events that were read before an error are answered. None is left behind by one: the kernel has denied
                // the event at the head.
                let read = group.read(buffer, &mut events);
                let own = |event: &PermissionEvent| janus.contains(&event.pid);
                let answer = |event: &PermissionEvent| {
                    let response = if own(event) { Response::Allow } else { response };
                    Answer::new(event.file.as_raw_fd(), response, false)
                };
                let answers: Vec<Answer> = events.iter().map(answer).collect();
                let answered = &mut self.answered;
                answer_all(&mut &*group, &answers, |at, outcome| {
                    if outcome == Outcome::Answered
                        && let Some(event) = events.get(at).filter(|event| !own(event))
                    {
                        answered[event.event as usize] += 1;
                    }
                });
                // Closed after their answers.
                events.clear();
                if read.is_err() {
                    break;
                }
            }
        }
    }

    /// What was answered here, as whoever takes the guard counts it.
    fn counted(&self) -> Counted {
        let answers = Event::ALL.into_iter().map(|event| Answers {
            event: event.word().to_owned(),
            response: if self.deposit.deny { "deny" } else { "allow" }.to_owned(),
            count: self.answered[event as usize],
        });
        let sum = self.answered.iter().sum();
        let fallbacks =
            vec![Answers { event: String::new(), response: Failure::Deadline.word().to_owned(), count: sum }];
        Counted { answers: answers.filter(|it| it.count > 0).collect(), fallbacks, ..Counted::default() }
    }
}

/// A gate of starts, whose janusd lives.
struct Watched {
    group: Group,
    highest: i32,
    /// How often in a row something was queued, and its janusd had not run at all.
    queued: u32,
    /// CPU time that its janusd had used at the last look.
    used: Option<Duration>,
}

impl Watched {
    /// Looks whether its janusd reads; lets go of whatever waits if it has not for a while. A gate that is merely busy has
    /// something queued at every look, too.
    fn look(&mut self, janusd: i32) {
        let mut fds = [PollFd::new(&self.group, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // A failure (EINTR) is as good as nothing there.
        let is_queued = poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0);
        let used = sys::cpu_time(janusd);
        let stands = used.is_none() || used == self.used;
        self.used = used;
        self.queued = if is_queued && stands { self.queued + 1 } else { 0 };
        if self.queued < UNREAD {
            return;
        }
        if self.queued == UNREAD {
            tracing::warn!("a janusd does not read the starts that it holds: they are let go");
        }
        // It lays them again once it goes on.
        if let Err(error) = self.group.flush_inodes() {
            tracing::error!(%error, "marks on runtimes could not be removed");
        }
        let mut buffer = ReadBuffer::default();
        let mut events: Vec<PermissionEvent> = Vec::new();
        while self.group.read(&mut buffer, &mut events).is_ok() {}
        // What it had read itself is known by no more than its numbers.
        let numbers = (0..=self.highest).chain(events.iter().map(|event| event.file.as_raw_fd()));
        let answers: Vec<Answer> = numbers.map(|number| Answer::new(number, Response::Allow, false)).collect();
        answer_all(&mut &self.group, &answers, |_, _| {});
    }
}

/// The holder.
pub struct Holder {
    listener: UnixListener,
    deadline: Duration,
    links: HashMap<u64, Link>,
    /// Those that have ended, while guards of theirs are held.
    ended: HashMap<u64, Link>,
    /// Of those that beat.
    lives: HashMap<u64, Life>,
    /// When they are looked at next.
    look: Instant,
    next: u64,
    units: BTreeMap<String, Unit>,
    /// To let go of groups may take the kernel seconds, if nobody else has them any more.
    closing: Sender<Unit>,
    /// Ends after the other end is dropped.
    closer: JoinHandle<()>,
    /// By connection.
    gates: HashMap<u64, Watched>,
    /// When they were last looked at.
    looked: Instant,
    buffer: ReadBuffer,
}

impl Holder {
    /// Takes its place, and offers itself to those janusd that run.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(place: HoldPlace, deadline: Duration) -> std::io::Result<Holder> {
        place.listener.set_nonblocking(true)?;
        let (closing, closed) = unbounded();
        let closer = std::thread::Builder::new().name("janus-close".into());
        let closer = closer.spawn(move || closed.into_iter().for_each(drop::<Unit>))?;
        let mut holder = Holder {
            listener: place.listener,
            deadline,
            links: HashMap::new(),
            ended: HashMap::new(),
            lives: HashMap::new(),
            look: Instant::now(),
            next: 0,
            units: BTreeMap::new(),
            closing,
            closer,
            gates: HashMap::new(),
            looked: Instant::now(),
            buffer: ReadBuffer::default(),
        };
        for stream in place.others {
            match Link::new(stream, Arc::default()) {
                Ok(link) if link.say(Part::Hold(Hold {}), &[], Instant::now() + FRAME).is_ok() => holder.attach(link),
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "a connection in the state directory is not used"),
            }
        }
        Ok(holder)
    }

    fn attach(&mut self, link: Link) {
        self.next += 1;
        self.links.insert(self.next, link);
    }

    /// Holds, for good.
    ///
    /// # Errors
    /// The kernel's: it cannot wait any more.
    pub fn hold(mut self) -> std::io::Result<()> {
        let ended = self.keep_on();
        let Holder { closing, closer, units, .. } = self;
        drop((closing, units));
        if closer.join().is_err() {
            tracing::error!("the thread that closes groups panicked");
        }
        ended
    }

    fn keep_on(&mut self) -> std::io::Result<()> {
        loop {
            let ready = self.wait()?;
            // Those that have ended first: whoever has come to take their guards finds them.
            for id in ready {
                self.heed(id);
            }
            while let Ok((stream, _)) = self.listener.accept() {
                match Link::new(stream, Arc::default()) {
                    Ok(link) => self.attach(link),
                    Err(error) => tracing::warn!(%error, "a connection is refused"),
                }
            }
            let now = Instant::now();
            if now.duration_since(self.looked) >= GATES {
                self.looked = now;
                for (id, gate) in &mut self.gates {
                    if let Some(link) = self.links.get(id) {
                        gate.look(link.peer);
                    }
                }
            }
            let deadline = self.deadline;
            let is_due = |unit: &Unit| unit.orphaned.is_some_and(|since| now.duration_since(since) >= deadline);
            let due = self.units.values().filter(|unit| is_due(unit) && !unit.settled);
            let owners: BTreeSet<u64> = due.map(|unit| unit.owner).collect();
            self.let_go_of_the_living(|id| owners.contains(&id), Duration::ZERO);
            self.look_at_the_silent(now);
            let janus: Vec<i32> = self.links.values().map(|link| link.peer).collect();
            for (name, unit) in &mut self.units {
                let stood_for = self.lives.get_mut(&unit.owner).filter(|life| life.is_stood_for());
                if let Some(life) = stood_for {
                    life.keep_numbers();
                } else if !is_due(unit) {
                    continue;
                } else if !unit.settled {
                    tracing::warn!(guard = name, "no janusd has come back in time: failurePolicy answers");
                    unit.settle();
                }
                unit.answer(&mut self.buffer, &janus);
            }
        }
    }

    /// Stands in for those that have stopped, and no more for those that go on.
    fn look_at_the_silent(&mut self, now: Instant) {
        let goes_on = |(id, life): (&u64, &mut Life)| (life.is_stood_for() && life.has_beaten()).then_some(*id);
        let back: Vec<u64> = self.lives.iter_mut().filter_map(goes_on).collect();
        back.into_iter().for_each(|id| self.step_back(id));
        if now < self.look {
            return;
        }
        self.look = now + LOOK;
        for (id, life) in &mut self.lives {
            let (of, peer) = (*id, self.links.get(id).map(|link| link.peer));
            let units = || self.units.values().filter(move |unit| unit.owner == of);
            let Some(highest) = units().map(|unit| unit.deposit.highest).max() else { continue };
            if !life.has_stopped(self.deadline) {
                continue;
            }
            let again = life.is_stood_for();
            let numbers = match life.stand(highest) {
                Ok(numbers) => numbers,
                Err(error) => {
                    tracing::error!(%error, "a janusd has stopped, and cannot be stood for");
                    continue;
                }
            };
            if !again {
                let guards = units().count();
                tracing::warn!(peer, guards, "a janusd has stopped: failurePolicy answers until it goes on");
            }
            // It may have gone on while its numbers were told.
            if life.has_beaten() {
                continue;
            }
            for unit in self.units.values_mut().filter(|unit| unit.owner == *id) {
                unit.answer_numbers(numbers.iter().copied());
            }
        }
    }

    /// A janusd goes on: tells it what was answered for it.
    fn step_back(&mut self, id: u64) {
        let Some(life) = self.lives.get_mut(&id).filter(|life| life.is_stood_for()) else { return };
        life.step_back();
        let mut answered: u64 = 0;
        for (name, unit) in self.units.iter_mut().filter(|(_, unit)| unit.owner == id) {
            let sum = unit.answered.iter().sum::<u64>();
            let Some(link) = self.links.get(&id).filter(|_| sum > 0) else { continue };
            answered += sum;
            let stood = Stood { name: name.clone(), answered: Some(unit.counted()) };
            // Not said: it is told to whoever takes the guard.
            if link.say(Part::Stood(stood), &[], Instant::now() + FRAME).is_ok() {
                unit.answered = Default::default();
            }
        }
        tracing::warn!(peer = self.links.get(&id).map(|link| link.peer), answered, "it goes on");
    }

    /// Waits for something to happen; gives the connections on which something has.
    fn wait(&self) -> std::io::Result<Vec<u64>> {
        let now = Instant::now();
        let stood_for = |unit: &Unit| self.lives.get(&unit.owner).is_some_and(Life::is_stood_for);
        let is_due = |unit: &&Unit| {
            unit.orphaned.is_some_and(|since| now.duration_since(since) >= self.deadline) || stood_for(unit)
        };
        let mut fds = vec![PollFd::new(&self.listener, PollFlags::IN)];
        let links: Vec<_> = self.links.iter().collect();
        fds.extend(links.iter().map(|(_, link)| PollFd::from_borrowed_fd(link.as_fd(), PollFlags::IN)));
        for unit in self.units.values().filter(is_due) {
            fds.extend(unit.groups.iter().map(|group| PollFd::new(group, PollFlags::IN)));
        }
        let waiting = self.units.values().filter(|unit| !is_due(unit)).filter_map(|unit| unit.orphaned);
        let standing = self.lives.values().filter(|life| life.is_stood_for());
        fds.extend(standing.map(|life| PollFd::from_borrowed_fd(life.as_fd(), PollFlags::IN)));
        let look = (!self.lives.is_empty()).then_some(self.look);
        let gates = (!self.gates.is_empty()).then(|| self.looked + GATES);
        let due = waiting.map(|since| since + self.deadline).chain(look).chain(gates).min();
        let due = due.map(|due| due.saturating_duration_since(now));
        let due = due.map(|due| Timespec { tv_sec: due.as_secs().cast_signed(), tv_nsec: due.subsec_nanos().into() });
        match poll(&mut fds, due.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let told = fds.iter().skip(1).zip(&links).filter(|(fd, _)| !fd.revents().is_empty());
        Ok(told.map(|(_, (id, _))| **id).collect())
    }

    fn heed(&mut self, id: u64) {
        let Some(link) = self.links.get(&id) else { return };
        let heard = link.hear_any(Instant::now() + FRAME);
        let result = heard.and_then(|heard| match heard {
            None => Ok(()),
            Some((part, descriptors)) => self.take(id, part, descriptors),
        });
        if let Err(error) = result {
            // If it is dead, whatever waits there goes as the group closes.
            self.gates.remove(&id);
            self.ended.extend(self.links.remove_entry(&id));
            self.lives.remove(&id);
            let now = Instant::now();
            let mut orphans = 0;
            for unit in self.units.values_mut().filter(|unit| unit.owner == id) {
                unit.orphaned.get_or_insert(now);
                orphans += 1;
            }
            if orphans > 0 {
                tracing::warn!(%error, orphans, "a janusd has gone, and its guards are held");
            }
            self.ended.retain(|id, _| self.units.values().any(|unit| unit.owner == *id));
        }
    }

    fn take(&mut self, id: u64, part: Part, descriptors: Vec<OwnedFd>) -> Result<(), LinkError> {
        match part {
            Part::Deposit(deposit) => self.keep(id, deposit, descriptors),
            Part::Gate(Gate { highest }) => {
                let Ok([group]) = <[OwnedFd; 1]>::try_from(descriptors) else { return Err(LinkError::Unexpected) };
                let group = Group::adopt(group, false);
                self.gates.insert(id, Watched { group, highest, queued: 0, used: None });
                Ok(())
            }
            Part::DepositKnown(known) => {
                if let Some(unit) = self.units.get_mut(&known.name).filter(|unit| unit.owner == id)
                    && unit.known.len() < MOST_PARCELS
                {
                    unit.known.push(known);
                }
                Ok(())
            }
            Part::Withdraw(withdraw) => {
                self.let_go(|name, unit| *name == withdraw.name && unit.owner == id);
                Ok(())
            }
            Part::Ask(ask) if ask.agreed().is_some() => self.give(id, ask.highest),
            Part::Highest(Highest { highest }) => {
                self.raise(id, highest);
                Ok(())
            }
            Part::Taken(taken) => {
                self.taken(id, &taken);
                Ok(())
            }
            Part::Pulse(Pulse { beats }) => {
                self.step_back(id);
                self.lives.remove(&id);
                if let (true, Some(on), Some(link)) = (beats, descriptors.into_iter().next(), self.links.get(&id)) {
                    self.lives.insert(id, Life::new(link.peer, on));
                }
                Ok(())
            }
            Part::Ask(_) => {
                let reason = "the holder does not speak that version".to_owned();
                self.say(id, Part::Refuse(Refuse { reason }))
            }
            _ => Err(LinkError::Unexpected),
        }
    }

    /// Whoever lives reads its groups by itself: to read them here as well would answer one opener for another.
    fn let_go_of_the_living(&mut self, concerned: impl Fn(u64) -> bool, patience: Duration) {
        let until = Instant::now() + patience;
        let mut living = BTreeSet::new();
        for (id, link) in self.ended.iter().filter(|(id, _)| concerned(**id)) {
            if !link.ends_within(until.saturating_duration_since(Instant::now())) {
                tracing::warn!(peer = link.peer, "a janusd has broken off and lives: its guards are not held any more");
                living.insert(*id);
            }
        }
        self.let_go(|_, unit| living.contains(&unit.owner));
        self.ended.retain(|id, _| self.units.values().any(|unit| unit.owner == *id));
    }

    fn let_go(&mut self, those: impl Fn(&String, &Unit) -> bool) {
        for (_, unit) in self.units.extract_if(.., |name, unit| those(name, unit)) {
            // It ends after this thread.
            let _never_gone = self.closing.send(unit);
        }
    }

    fn keep(&mut self, id: u64, deposit: Deposit, descriptors: Vec<OwnedFd>) -> Result<(), LinkError> {
        let Ok(groups) = <[OwnedFd; 2]>::try_from(descriptors) else { return Err(LinkError::Unexpected) };
        let unit = Unit {
            owner: id,
            groups: groups.map(|group| Group::adopt(group, false)),
            known: Vec::new(),
            orphaned: None,
            settled: false,
            before: None,
            answered: Default::default(),
            deposit,
        };
        self.raise(id, unit.deposit.highest);
        // Before the older one of the same guard goes: they may be the same groups.
        let name = unit.deposit.name.clone();
        if let Some(older) = self.units.insert(name.clone(), unit) {
            if older.owner == id
                && let Some(unit) = self.units.get_mut(&name)
            {
                // Not told yet.
                unit.answered = older.answered;
            }
            // It ends after this thread.
            let _never_gone = self.closing.send(older);
        }
        Ok(())
    }

    /// Numbers are given to a process, not to a guard.
    fn raise(&mut self, id: u64, highest: i32) {
        for unit in self.units.values_mut().filter(|unit| unit.owner == id) {
            unit.deposit.highest = unit.deposit.highest.max(highest);
        }
    }

    fn say(&self, id: u64, part: Part) -> Result<(), LinkError> {
        self.links.get(&id).map_or(Ok(()), |link| link.say(part, &[], Instant::now() + FRAME))
    }

    /// Gives what no janusd has to one that has come. It may read what it has been told of, so each is its own from that
    /// moment on, whenever it says so: nobody else reads before it is dead.
    fn give(&mut self, id: u64, highest: i32) -> Result<(), LinkError> {
        self.let_go_of_the_living(|_| true, DYING);
        let Some(link) = self.links.get(&id) else { return Ok(()) };
        let until = Instant::now() + GIVING;
        for unit in self.units.values_mut().filter(|unit| unit.orphaned.is_some()) {
            let mut deposit = unit.deposit.clone();
            if unit.settled {
                deposit.highest = -1;
            }
            deposit.answered = Some(unit.counted());
            unit.before = Some(Before { owner: unit.owner, orphaned: unit.orphaned, settled: unit.settled });
            (unit.owner, unit.orphaned, unit.settled) = (id, None, false);
            unit.deposit.highest = unit.deposit.highest.max(highest);
            link.say(Part::Deposit(deposit), &unit.groups.each_ref().map(AsFd::as_fd), until)?;
            for known in &unit.known {
                link.say(Part::DepositKnown(known.clone()), &[], until)?;
            }
        }
        link.say(Part::End(End { epoch: 0, highest: -1 }), &[], until)
    }

    /// A janusd says that it has what was given to it: what was answered here counts there. What it does not take is held
    /// as before.
    fn taken(&mut self, id: u64, taken: &Taken) {
        let mut guards = 0;
        for (name, unit) in self.units.iter_mut().filter(|(_, unit)| unit.owner == id) {
            let Some(before) = unit.before.take() else { continue };
            if taken.without.contains(name) {
                tracing::warn!(guard = name, "not taken: it is held until its deadline");
                (unit.owner, unit.orphaned, unit.settled) = (before.owner, before.orphaned, before.settled);
            } else {
                unit.answered = Default::default();
                guards += 1;
            }
        }
        tracing::info!(guards, peer = self.links.get(&id).map(|link| link.peer), "another janusd has the guards");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fanotify::record::METADATA;
    use crate::fanotify::{Features, MarkTarget};
    use crate::policy::Events;
    use rustix::io::ioctl_fionread;

    /// As many as wait at once, read one at a time: no more than [`READS`] are answered in one turn, and all in the end.
    #[test]
    fn a_flood_is_answered_by_turns() {
        const OPENERS: usize = 3 * READS;
        let features = Features::default();
        // Only root may.
        let (Ok(wide), Ok(near)) = (Group::new(&features, false), Group::new(&features, false)) else { return };
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || std::fs::File::open(file.path());
        near.mark(MarkTarget::Inode, Events::NONE.with(Event::Open), open().unwrap().as_fd()).unwrap();
        let mut unit = Unit {
            owner: 0,
            deposit: Deposit { deny: true, highest: -1, ..Deposit::default() },
            known: Vec::new(),
            groups: [wide, near],
            orphaned: None,
            settled: true,
            before: None,
            answered: Default::default(),
        };
        let mut turns = Vec::new();
        let denied = std::thread::scope(|scope| {
            let openers: Vec<_> = (0..OPENERS).map(|_| scope.spawn(|| open().is_err())).collect();
            let deadline = Instant::now() + Duration::from_secs(10);
            let queued = |group: &Group| ioctl_fionread(group).unwrap() as usize / METADATA;
            while queued(&unit.groups[1]) < OPENERS && Instant::now() < deadline {
                std::thread::park_timeout(Duration::from_millis(1));
            }
            let mut buffer = ReadBuffer::for_one();
            while queued(&unit.groups[1]) > 0 {
                let before: u64 = unit.answered.iter().sum();
                unit.answer(&mut buffer, &[]);
                turns.push(unit.answered.iter().sum::<u64>() - before);
            }
            openers.into_iter().filter_map(|opener| opener.join().ok()).filter(|denied| *denied).count()
        });
        assert_eq!(denied, OPENERS);
        assert_eq!(turns, [READS as u64; 3]);
    }
}

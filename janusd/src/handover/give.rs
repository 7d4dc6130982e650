//! The old one's part: hands its guards to whoever comes for them. One thread, `janus-handover`.
//!
//! It also waits for the end of the janusd whose guards this one has taken ([`Heir`]).

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::deposit::{Depot, highest_number};
use super::link::{Link, LinkError};
use super::message::{Ask, End, Estate, GuardCounts, Known, Parked, Part, Ready, Refuse, Rest, Unit};
use super::take::Heir;
use crate::admin::Admin;
use crate::doorbell::{self, Bell, Mailbox, Speaker};
use crate::fanotify::Group;
use crate::guard::kin::Kin;
use crate::guard::known::Learned;
use crate::guard::transfer::{Resting, Transfer};
use crate::guard::watchdog::Watchdog;
use crate::metrics::Handover;
use crate::registry::{Bequest, Registry};

/// For anything that is said while this one still answers events.
const UNHURRIED: Duration = Duration::from_secs(60);
/// Who connects has something to say.
const GREETING: Duration = Duration::from_secs(10);
/// For keepers to stop changing things, and workers to share what they know.
const SHARING: Duration = Duration::from_secs(2);
/// For workers to answer what they have read. More than a lookup takes ([`crate::guard::lookup::DEADLINE`]).
const PARKING: Duration = Duration::from_millis(300);
/// From then on nobody reads, until the other one does. After this, this one does again.
const TAKING: Duration = Duration::from_secs(2);
/// For the other one to have in force what it arms anew, and to deposit all of it.
const SETTLING: Duration = Duration::from_secs(30);
/// Files in one frame: a name is 4,096 bytes at most, so they fit.
const FILES: usize = 1024;

/// What is handed over, and who is told.
#[derive(Debug)]
pub struct Host {
    /// The units.
    pub registry: Registry,
    /// Not ready any more once they are gone; and the counters.
    pub admin: Arc<Admin>,
    /// Who is Janus.
    pub kin: Kin,
    /// Beats for the holder.
    pub watchdog: Watchdog,
    /// What holds starts, if anything does: the holder lets go of them should this process be stopped.
    pub gate: Option<Group>,
}

impl Host {
    fn share_of_gate(&self) -> Option<Group> {
        self.gate.as_ref().and_then(|gate| gate.try_clone().ok())
    }
}

/// The thread, to be joined.
#[derive(Debug)]
pub struct GiveThread {
    thread: JoinHandle<()>,
    stop: Arc<AtomicBool>,
    door: Speaker<()>,
}

impl GiveThread {
    /// Starts it.
    ///
    /// # Errors
    /// The kernel's, when no descriptor or thread can be had.
    pub fn start(
        listener: UnixListener,
        heir: Option<Heir>,
        holder: Option<Link>,
        host: Host,
    ) -> std::io::Result<GiveThread> {
        let (door, mailbox) = doorbell::channel()?;
        host.registry.ring(door.bell());
        listener.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let held = host.registry.units().into_iter().flatten().map(|unit| unit.unit);
        let depot = holder.map(|link| Depot::new(link, door.bell(), host.watchdog.clone(), host.share_of_gate(), held));
        let bell = door.bell();
        // So that what there is gets deposited.
        bell.ring();
        let giver = Giver { listener: Some(listener), heir, depot, host, mailbox, bell, stop: stop.clone() };
        let thread = std::thread::Builder::new().name("janus-handover".into()).spawn(move || giver.keep())?;
        Ok(GiveThread { thread, stop, door })
    }

    /// Ends it; a hand-over that is under way comes to nothing.
    pub fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.door);
        if self.thread.join().is_err() {
            tracing::error!("the thread that hands guards over panicked");
        }
    }
}

struct Giver {
    /// `None`: all is handed over.
    listener: Option<UnixListener>,
    heir: Option<Heir>,
    depot: Option<Depot>,
    host: Host,
    mailbox: Mailbox<()>,
    /// The mailbox's.
    bell: Bell,
    stop: Arc<AtomicBool>,
}

impl Giver {
    fn keep(mut self) {
        loop {
            let mut fds = vec![PollFd::from_borrowed_fd(self.mailbox.as_fd(), PollFlags::IN)];
            fds.extend(self.listener.as_ref().map(|listener| PollFd::new(listener, PollFlags::IN)));
            fds.extend(
                self.heir
                    .as_ref()
                    .and_then(Heir::process)
                    .map(|process| PollFd::from_borrowed_fd(process, PollFlags::IN)),
            );
            let depot_at = fds.len();
            fds.extend(self.depot.as_ref().map(|depot| PollFd::from_borrowed_fd(depot.link.as_fd(), PollFlags::IN)));
            let pause = self.heir.as_ref().and_then(Heir::pause);
            let pause = pause.into_iter().chain(self.depot.as_ref().and_then(Depot::pause)).min();
            let pause = pause.map(|pause| Timespec { tv_sec: 0, tv_nsec: pause.subsec_nanos().into() });
            // A failure (EINTR) is as good as nothing there.
            let _asked_again = poll(&mut fds, pause.as_ref());
            let holder_speaks = fds.get(depot_at).is_some_and(|fd| !fd.revents().is_empty());
            self.mailbox.quiet();
            if self.mailbox.take().is_err() {
                self.withdraw();
                return;
            }
            if let Some(depot) = &mut self.depot
                && let Err(error) = if holder_speaks { depot.hear(&self.host.registry) } else { Ok(()) }
                    .and_then(|()| depot.keep_up(&self.host.registry))
            {
                tracing::warn!(%error, "the holder has gone: should janusd be killed, the kernel allows what waits");
                self.depot = None;
            }
            let deposited = self.depot.as_ref().is_none_or(Depot::is_complete);
            if let Some(heir) = &mut self.heir {
                heir.settle(deposited);
                if heir.is_alone() {
                    self.heir = None;
                    self.host.kin.part();
                }
            }
            let Some(Ok((stream, _))) = self.listener.as_ref().map(UnixListener::accept) else { continue };
            if self.meet(stream) {
                // Whoever comes next finds the new one.
                self.listener = None;
            }
        }
    }

    fn withdraw(&mut self) {
        if let Some(depot) = self.depot.take() {
            // Gone: then nothing is held.
            let _gone = depot.withdraw_all();
        }
    }

    /// True once all is handed over.
    fn meet(&mut self, stream: UnixStream) -> bool {
        let met = Link::new(stream, self.stop.clone()).and_then(|link| {
            let (greeting, _) = link.hear(Instant::now() + GREETING)?;
            Ok((link, greeting))
        });
        let met = met.and_then(|(link, greeting)| match greeting {
            Part::Ask(ask) => Ok((link, Some(ask))),
            Part::Hold(_) => Ok((link, None)),
            _ => Err(LinkError::Unexpected),
        });
        let (link, ask) = match met {
            Ok((link, Some(ask))) => (link, ask),
            Ok((link, None)) => {
                tracing::info!(peer = link.peer, "a holder has come");
                // Of two, one would take the end of our connection for ours.
                self.withdraw();
                let gate = self.host.share_of_gate();
                self.depot = Some(Depot::new(link, self.bell.clone(), self.host.watchdog.clone(), gate, []));
                self.mailbox.remind();
                return false;
            }
            Err(error) => {
                tracing::warn!(%error, "somebody has come to the state directory, and gone");
                return false;
            }
        };
        tracing::info!(peer = link.peer, "another janusd comes for the guards");
        // The other one may read, before the holder knows of it.
        if let Some(depot) = &mut self.depot
            && let Err(error) = depot.be_still()
        {
            tracing::warn!(%error, "the holder has gone: should janusd be killed, the kernel allows what waits");
            self.depot = None;
        }
        let metrics = &self.host.admin.metrics;
        match self.give(&link, &ask) {
            Ok(()) => {
                self.host.admin.ready.store(false, Ordering::Release);
                metrics.handed_over(Handover::Given);
                tracing::info!("the guards are another janusd's now: this one waits to be ended");
                // What is armed anew there is still guarded here, and deposited from here. Not said in time: it has ended,
                // or this one is to.
                let _done = link.hear(Instant::now() + SETTLING);
                // What they held here goes; who waits for that is nobody.
                self.host.registry.bequeathed();
                self.withdraw();
                true
            }
            Err(error) => {
                metrics.handed_over(Handover::Kept);
                tracing::warn!(%error, "the guards are not handed over, and go on here");
                false
            }
        }
    }

    fn give(&self, link: &Link, ask: &Ask) -> Result<(), LinkError> {
        if ask.agreed().is_none() {
            let Ask { oldest, newest, .. } = ask;
            let reason = format!("this one does not speak versions {oldest} to {newest}");
            link.say(Part::Refuse(Refuse { reason: reason.clone() }), &[], Instant::now() + GREETING)?;
            return Err(LinkError::Refused(reason));
        }
        self.host.kin.adopt(link.peer);
        let (bequests, epoch) = self.host.registry.bequeath().ok_or(LinkError::Stopped)?;
        hand(link, &bequests, epoch).inspect_err(|_| {
            for (transfer, _) in bequests.iter().filter_map(|bequest| bequest.run.as_ref()) {
                transfer.take_up();
            }
            self.host.registry.resume();
            self.host.kin.part();
        })
    }
}

fn hand(link: &Link, bequests: &[Bequest], epoch: u64) -> Result<(), LinkError> {
    let unhurried = || Instant::now() + UNHURRIED;
    let begun: Vec<_> = bequests.iter().map(|it| it.run.as_ref().map(|(transfer, _)| transfer.begin())).collect();
    let until = Instant::now() + SHARING;
    let mut given = Vec::new();
    for (index, (bequest, begun)) in (0..).zip(bequests.iter().zip(&begun)) {
        let run = bequest.run.as_ref().map(|(transfer, _)| transfer);
        let estate = run.zip(begun.as_ref()).and_then(|(transfer, begun)| transfer.share(begun, until));
        if estate.is_none() {
            tracing::warn!(guard = %bequest.guard, pod = %bequest.unit.pod, "not handed over whole: it is armed anew");
        }
        let told = estate.as_ref().map(|it| Estate::new(it.audits(), &it.numbers, &it.fingerprints));
        let unit = Part::Unit(Unit {
            index,
            request: Some(bequest.create.request(bequest.epoch, &bequest.containers)),
            estate: told,
        });
        match (&estate, run) {
            (Some(estate), Some(transfer)) => {
                link.say(unit, &estate.descriptors(), unhurried())?;
                tell_known(link, index, &estate.known)?;
                given.push((index, transfer));
            }
            _ => link.say(unit, &[], unhurried())?,
        }
    }
    link.say(Part::End(End { epoch, highest: highest_number() }), &[], unhurried())?;
    let (Part::Ready(Ready { without }), _) = link.hear(unhurried())? else { return Err(LinkError::Unexpected) };
    given.retain(|(index, _)| !without.contains(index));

    let began = Instant::now();
    let parking: Vec<_> = given.iter().map(|(index, transfer)| (*index, *transfer, transfer.park())).collect();
    let until = began + PARKING;
    let mut units = Vec::new();
    for (index, transfer, parking) in &parking {
        let outstanding = match transfer.parked(parking, until) {
            Resting::Settled(learned) => {
                tell_known(link, *index, &learned)?;
                Vec::new()
            }
            Resting::Late(outstanding) => outstanding.into_iter().map(Into::into).collect(),
            Resting::Reading => continue,
        };
        units.push(Rest { index: *index, outstanding });
    }
    let parked = Part::Parked(Parked { units, guards: counts(bequests) });
    link.say(parked, &[], Instant::now() + TAKING)?;
    hear_taken(link, Instant::now() + TAKING)?;
    tracing::info!(guards = bequests.len(), paused = ?began.elapsed(), "handed over");
    Ok(())
}

/// Whether the new one reads, or will: decided when this returns.
fn hear_taken(link: &Link, until: Instant) -> Result<(), LinkError> {
    let why_not = match link.hear(until) {
        Ok((Part::Taken(_), _)) => return Ok(()),
        Ok(_) => LinkError::Unexpected,
        Err(error) => error,
    };
    // It may be saying so right now. From here on it either has, or cannot.
    while let Ok((part, _)) = link.hear_last() {
        if let Part::Taken(_) = part {
            return Ok(());
        }
    }
    Err(why_not)
}

fn tell_known(link: &Link, index: u32, known: &[Learned]) -> Result<(), LinkError> {
    for files in known.chunks(FILES) {
        let files = files.iter().cloned().map(Into::into).collect();
        link.say(Part::Known(Known { index, files }), &[], Instant::now() + UNHURRIED)?;
    }
    Ok(())
}

fn counts(bequests: &[Bequest]) -> Vec<GuardCounts> {
    let mut told = BTreeSet::new();
    let counts = (0..).zip(bequests).filter_map(|(index, bequest)| {
        let (transfer, tally): &(Transfer, _) = bequest.run.as_ref()?;
        let first = told.insert((&bequest.guard.namespace, &bequest.guard.name));
        let all = first.then(|| transfer.metrics().count().into());
        Some(GuardCounts { index, own: Some(tally.count().into()), all })
    });
    counts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handover::message::Taken;

    fn pair() -> Option<(Link, Link)> {
        let (one, other) = UnixStream::pair().unwrap();
        let link = |stream| Link::new(stream, Arc::default());
        // Only root may.
        Some((link(one).ok()?, link(other).ok()?))
    }

    fn taken() -> Part {
        Part::Taken(Taken::default())
    }

    #[test]
    fn whoever_was_waited_for_in_vain_cannot_say_that_it_reads() {
        let soon = || Instant::now() + Duration::from_secs(10);
        let Some((old, new)) = pair() else { return };
        assert!(matches!(hear_taken(&old, Instant::now()), Err(LinkError::Late)));
        assert!(matches!(new.say(taken(), &[], soon()), Err(LinkError::Gone)));
        // And whoever has said so reads, whatever else it has said.
        let Some((old, new)) = pair() else { return };
        new.say(Part::Ready(Ready::default()), &[], soon()).unwrap();
        new.say(taken(), &[], soon()).unwrap();
        assert!(hear_taken(&old, soon()).is_ok());
    }
}

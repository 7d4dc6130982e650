//! The new one's part: takes guards from a janusd that has them.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use super::deposit::highest_number;
use super::link::{Link, LinkError};
use super::message::{Ask, Awaiting, Deposit, DepositKnown, Done, End, Known, Parked, Part, Ready, Taken, Unit};
use super::occupy::Occupied;
use crate::guard::kin::Kin;
use crate::guard::transfer::{Estate, Legacy, Outstanding, Renewed, Transfer};
use crate::metrics::{Counts, Handover, Metrics, Tally};
use crate::policy::Event;
use crate::registry::{Denied, Registry, UnitState};
use crate::wire::{Create, UnitId};

/// For anything that is said while the other one still answers events.
const UNHURRIED: Duration = Duration::from_secs(30);
/// For all guards to be ready.
const ARMING: Duration = Duration::from_secs(30);
/// For the other one's workers to park, and to say so. A little more than it takes for that itself.
const PARKING: Duration = Duration::from_secs(5);
/// For what it has left unanswered.
const SETTLING: Duration = Duration::from_millis(250);
/// A process whose connection has ended may take so long to end itself.
const ENDING: Duration = Duration::from_millis(250);
/// How often a number that was in use is tried again.
const AGAIN: Duration = Duration::from_millis(20);

/// Where guards are brought to.
#[derive(Debug)]
pub struct Home<'a> {
    /// Takes the units.
    pub registry: &'a Registry,
    /// Counts.
    pub metrics: &'a Arc<Metrics>,
    /// Who is Janus.
    pub kin: &'a Kin,
    /// This node.
    pub node: &'a str,
    /// To wait in.
    pub runtime: &'a Runtime,
}

/// What is left of a hand-over while the process that guards came from lives.
#[derive(Debug)]
pub struct Heir {
    link: Link,
    occupied: Option<Occupied>,
    /// Guards that were begun anew, until the other one is told that all of it is in force here; then `None`.
    renewed: Option<Vec<Renewed>>,
}

impl Heir {
    /// That process: can be polled for its end.
    pub(super) fn process(&self) -> Option<BorrowedFd<'_>> {
        self.link.process()
    }

    /// When [`Heir::is_alone`] is to be asked again at the latest.
    pub(super) fn pause(&self) -> Option<Duration> {
        let lacks_some = self.occupied.as_ref().is_some_and(Occupied::lacks_some);
        (lacks_some || self.renewed.is_some()).then_some(AGAIN)
    }

    /// Tells that process, once, that all guards are in force here. `deposited`: and the holder has them, if there is one.
    pub(super) fn settle(&mut self, deposited: bool) {
        let in_force = |renewed: &Vec<Renewed>| renewed.iter().all(Renewed::is_in_force);
        if deposited && self.renewed.take_if(|renewed| in_force(renewed)).is_some() {
            // Gone: then it waits for nothing.
            let _gone = self.link.say(Part::Done(Done {}), &[], Instant::now() + SETTLING);
        }
    }

    /// Whether that process has ended. Until then its numbers are kept from being given out here.
    pub(super) fn is_alone(&mut self) -> bool {
        if let Some(occupied) = &mut self.occupied {
            occupied.again();
        }
        self.link.has_ended()
    }
}

/// Takes guards from the first of these that has any to give.
pub fn take(others: Vec<UnixStream>, home: &Home<'_>) -> Option<Heir> {
    for stream in others {
        let link = match Link::new(stream, Arc::default()) {
            Ok(link) => link,
            Err(error) => {
                tracing::warn!(%error, "a connection in the state directory is not used");
                continue;
            }
        };
        tracing::info!(peer = link.peer, "taking the guards of another janusd");
        home.kin.adopt(link.peer);
        let mut taking = Taking { home, link, units: BTreeMap::new(), highest: 0 };
        match taking.take() {
            Ok((occupied, renewed)) => {
                home.metrics.handed_over(Handover::Taken);
                return Some(Heir { link: taking.link, occupied, renewed: Some(renewed) });
            }
            Err(error) => {
                tracing::error!(%error, "the guards of another janusd were not taken");
                home.metrics.handed_over(Handover::Missed);
                taking.make_do();
                home.kin.part();
            }
        }
    }
    None
}

/// Takes what a janusd that was killed has left with the holder. Gives the connection back, for deposits.
pub fn take_held(stream: UnixStream, home: &Home<'_>) -> Option<Link> {
    let link = match Link::new(stream, Arc::default()) {
        Ok(link) => link,
        Err(error) => {
            tracing::warn!(%error, "the holder is not used");
            return None;
        }
    };
    let mut taking = Taking { home, link, units: BTreeMap::new(), highest: 0 };
    match taking.take_held() {
        Ok(0) => Some(taking.link),
        Ok(_) => {
            home.metrics.handed_over(Handover::Taken);
            Some(taking.link)
        }
        Err(error) => {
            tracing::error!(%error, "what the holder has was not taken");
            home.metrics.handed_over(Handover::Missed);
            None
        }
    }
}

/// A unit on its way.
struct Coming {
    id: UnitId,
    /// It has come with its groups.
    whole: bool,
    /// Files are told apart as the sender does.
    alike: bool,
    answer: Option<oneshot::Receiver<Result<Box<UnitState>, Denied>>>,
    ready: bool,
}

struct Taking<'a> {
    home: &'a Home<'a>,
    link: Link,
    units: BTreeMap<u32, Coming>,
    highest: i32,
}

/// A unit of which not all has been told.
struct Opened {
    index: u32,
    create: Create,
    estate: Option<Estate>,
    alike: bool,
}

impl Taking<'_> {
    fn take(&mut self) -> Result<(Option<Occupied>, Vec<Renewed>), LinkError> {
        self.link.say(Part::Ask(Ask::ours()), &[], Instant::now() + UNHURRIED)?;
        self.receive()?;
        self.arm();
        let transfers = self.transfers();
        let without = self.units.iter().filter(|(_, unit)| !unit.ready).map(|(index, _)| *index).collect();
        self.link.say(Part::Ready(Ready { without }), &[], Instant::now() + UNHURRIED)?;
        let until = Instant::now() + PARKING;
        let parked = loop {
            match self.link.hear(until)?.0 {
                Part::Known(known) => {
                    if let Some(unit) = self.units.get(&known.index)
                        && let Some((transfer, _)) = transfers.get(&unit.id)
                    {
                        transfer.learn(known.files.into_iter().map(|file| file.learned(unit.alike)).collect());
                    }
                }
                Part::Parked(parked) => break parked,
                _ => return Err(LinkError::Unexpected),
            }
        };
        self.take_up(parked, &transfers)
    }

    /// Hears what there is, and has it put in force beside what the other one has.
    fn receive(&mut self) -> Result<(), LinkError> {
        let mut opened: Option<Opened> = None;
        let mut all = Vec::new();
        let (epoch, highest) = loop {
            let (part, descriptors) = self.link.hear(Instant::now() + UNHURRIED)?;
            match part {
                Part::Unit(unit) => all.extend(std::mem::replace(&mut opened, self.open(unit, descriptors))),
                Part::Known(known) => {
                    if let Some(opened) = opened.as_mut().filter(|opened| opened.index == known.index)
                        && let Some(estate) = &mut opened.estate
                    {
                        estate.known.extend(known.files.into_iter().map(|file| file.learned(opened.alike)));
                    }
                }
                Part::End(End { epoch, highest }) => break (epoch, highest),
                _ => return Err(LinkError::Unexpected),
            }
        };
        self.highest = highest;
        for Opened { index, create, estate, alike } in all.into_iter().chain(opened) {
            let (id, whole) = (create.unit.clone(), estate.is_some());
            let answer = Some(self.home.registry.inherit(create, estate, epoch));
            self.units.insert(index, Coming { id, whole, alike, answer, ready: false });
        }
        Ok(())
    }

    /// How many. Nobody reads those groups, so they are read as soon as there is somebody to read them.
    fn take_held(&mut self) -> Result<usize, LinkError> {
        let ask = Ask { highest: highest_number(), ..Ask::ours() };
        self.link.say(Part::Ask(ask), &[], Instant::now() + UNHURRIED)?;
        let mut all: BTreeMap<String, (Opened, Deposit)> = BTreeMap::new();
        // What cannot be used: the holder goes on holding it.
        let mut without = BTreeSet::new();
        loop {
            let (part, descriptors) = self.link.hear(Instant::now() + UNHURRIED)?;
            match part {
                Part::Deposit(deposit) => {
                    let name = deposit.name.clone();
                    let opened = Unit::decode(&*deposit.unit).ok().and_then(|unit| self.open(unit, descriptors));
                    if opened.as_ref().is_none_or(|opened| opened.estate.is_none()) {
                        without.insert(name.clone());
                    }
                    all.extend(opened.map(|opened| (name, (opened, deposit))));
                }
                Part::DepositKnown(DepositKnown { name, known }) => {
                    if let Some((opened, _)) = all.get_mut(&name)
                        && let Some(estate) = &mut opened.estate
                        // What is not understood is learned anew.
                        && let Ok(known) = Known::decode(&*known)
                    {
                        estate.known.extend(known.files.into_iter().map(|file| file.learned(opened.alike)));
                    }
                }
                Part::End(_) => break,
                _ => return Err(LinkError::Unexpected),
            }
        }
        if all.is_empty() && without.is_empty() {
            return Ok(0);
        }
        // Taken from another janusd before. What the holder has of those is taken too, and our own deposits take its place.
        let running = self.transfers();
        all.retain(|_, (opened, _)| !running.contains_key(&opened.create.unit));
        let mut deposits = Vec::new();
        for (index, (opened, deposit)) in (0..).zip(all.into_values()) {
            let Opened { create, estate, alike, .. } = opened;
            let (id, whole, epoch) = (create.unit.clone(), estate.is_some(), create.caller.epoch());
            let answer = Some(self.home.registry.inherit(create, estate, epoch));
            deposits.push((id.clone(), deposit));
            self.units.insert(index, Coming { id, whole, alike, answer, ready: false });
        }
        let transfers = self.transfers();
        let mut untaken = Vec::new();
        for (id, deposit) in deposits.iter().filter(|(_, deposit)| !without.contains(&deposit.name)) {
            let Some((transfer, tally)) = transfers.get(id) else {
                untaken.push(deposit.name.clone());
                continue;
            };
            transfer.settle(unknown(deposit.highest), Instant::now() + SETTLING * 4);
            transfer.read_on();
            if let Some(answered) = deposit.answered.clone() {
                let counts = Counts::from(answered);
                tally.add(&counts);
                transfer.metrics().add(&counts);
            }
        }
        let without: Vec<String> = without.into_iter().chain(untaken).collect();
        for name in &without {
            tracing::error!(guard = name, "not taken from the holder, which holds it until its deadline");
        }
        self.link.say(Part::Taken(Taken { without }), &[], Instant::now() + UNHURRIED)?;
        self.arm();
        let ready = self.units.values().filter(|unit| unit.ready && unit.whole).count();
        self.home.metrics.inherited(ready, self.units.len() - ready);
        tracing::info!(guards = self.units.len(), whole = ready, "took the guards of a janusd that was killed");
        Ok(self.units.len())
    }

    fn open(&self, unit: Unit, descriptors: Vec<OwnedFd>) -> Option<Opened> {
        let Unit { index, request, estate } = unit;
        let mut request = request?;
        if let Some(caller) = &mut request.caller {
            self.home.node.clone_into(&mut caller.node);
        }
        let create = match Create::try_from(request) {
            Ok(create) => create,
            Err(error) => {
                tracing::error!(%error, "a guard of another janusd is not understood, and not taken");
                return None;
            }
        };
        let groups = <[OwnedFd; 2]>::try_from(descriptors).ok();
        let (mut all_alike, mut taken) = (true, None);
        if let Some((told, [wide, near])) = estate.zip(groups) {
            let (fingerprints, alike) = told.fingerprints();
            let legacy = Legacy { wide, near, audit: told.audit };
            all_alike = alike;
            taken = Some(Estate::new(legacy, told.numbers(), Vec::new(), fingerprints));
        }
        Some(Opened { index, create, estate: taken, alike: all_alike })
    }

    /// Waits until all is in force that can be.
    fn arm(&mut self) {
        let until = tokio::time::Instant::now() + ARMING;
        for unit in self.units.values_mut() {
            let Some(answer) = unit.answer.take() else { continue };
            let answered = self.home.runtime.block_on(async { tokio::time::timeout_at(until, answer).await });
            match answered {
                Ok(Ok(Ok(_in_force))) => unit.ready = true,
                Ok(Ok(Err(denied))) => {
                    tracing::error!(unit = ?unit.id, %denied, "a guard of another janusd is not in force")
                }
                Ok(Err(_)) | Err(_) => {
                    tracing::error!(unit = ?unit.id, "a guard of another janusd is not in force in time")
                }
            }
        }
    }

    fn transfers(&self) -> BTreeMap<UnitId, (Transfer, Arc<Tally>)> {
        let units = self.home.registry.units().unwrap_or_default();
        units.into_iter().filter_map(|unit| Some((unit.unit, unit.run?))).collect()
    }

    /// The other one reads no more, until it hears nothing.
    fn take_up(
        &self,
        parked: Parked,
        transfers: &BTreeMap<UnitId, (Transfer, Arc<Tally>)>,
    ) -> Result<(Option<Occupied>, Vec<Renewed>), LinkError> {
        let Parked { units: rests, guards } = parked;
        let numbers: BTreeSet<i32> =
            rests.iter().flat_map(|rest| rest.outstanding.iter().map(|awaiting| awaiting.number)).collect();
        // Before anything is read.
        let occupied = (!numbers.is_empty()).then(|| Occupied::take(numbers).ok()).flatten();
        // Before anything is read too: said, it is ours, whatever becomes of the other one. Not said, it reads on by itself.
        self.link.say(Part::Taken(Taken::default()), &[], Instant::now() + UNHURRIED)?;
        let found = |index: u32| self.units.get(&index).filter(|unit| unit.whole && unit.ready);
        let mut taken = BTreeSet::new();
        for rest in &rests {
            let Some(unit) = found(rest.index) else { continue };
            let Some((transfer, _)) = transfers.get(&unit.id) else { continue };
            if !rest.outstanding.is_empty() {
                let outstanding = rest.outstanding.iter().map(Awaiting::outstanding).collect();
                transfer.settle(outstanding, Instant::now() + SETTLING);
            }
            transfer.take_up();
            taken.insert(rest.index);
        }
        let mut renewed = Vec::new();
        for (index, unit) in self.units.iter().filter(|(index, unit)| unit.whole && !taken.contains(*index)) {
            tracing::warn!(index, unit = ?unit.id, "armed anew: its groups are still read by the other janusd");
            if let Some((transfer, _)) = transfers.get(&unit.id) {
                renewed.push(transfer.begin_anew());
            }
        }
        for counts in guards {
            let Some((transfer, tally)) = self.units.get(&counts.index).and_then(|unit| transfers.get(&unit.id)) else {
                continue;
            };
            if let Some(own) = counts.own {
                tally.add(&own.into());
            }
            if let Some(all) = counts.all {
                transfer.metrics().add(&Counts::from(all));
            }
        }
        self.home.metrics.inherited(taken.len(), self.units.len() - taken.len());
        tracing::info!(guards = self.units.len(), whole = taken.len(), "took the guards of another janusd");
        Ok((occupied, renewed))
    }

    /// It has come to nothing. If the other one is dead, its groups live on here: what it had read is answered by every
    /// number that it can have had. Otherwise it goes on reading them, and guards get others.
    fn make_do(&self) {
        let dead = self.link.ends_within(ENDING);
        let transfers = self.transfers();
        let whole = self.units.values().filter(|unit| unit.whole);
        for (transfer, _) in whole.filter_map(|unit| transfers.get(&unit.id)) {
            if dead {
                transfer.settle(unknown(self.highest), Instant::now() + SETTLING * 4);
                transfer.take_up();
            } else {
                let _nobody_waits = transfer.begin_anew();
            }
        }
        self.home.metrics.inherited(0, self.units.len());
    }
}

/// Whatever a process that is dead may have read and not answered. What was asked is not known; it counts as an open.
fn unknown(highest: i32) -> Vec<Outstanding> {
    let of = |near| (0..=highest).map(move |number| Outstanding { number, near, event: Event::Open, own: false });
    of(false).chain(of(true)).collect()
}

//! Laws of the election: several candidates, each with a clock of its own, over one Lease, by way of a network that delays
//! and loses. Never two that may act at once, never an epoch twice, and somebody acts again
//! once a leader is gone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::time::Duration;

use janus_controller::lease::Moment;
use janus_controller::lease::candidate::{Candidate, Failed, Kind, Record, Step, Timing, Write};
use proptest::prelude::*;

/// Since 1970, when the world begins.
const MINUTES: i32 = 29_000_000;

/// Real time, which nobody sees: microseconds.
type Real = u64;

const fn ms(milliseconds: u64) -> Real {
    milliseconds * 1000
}

/// The API server's Lease: a write holds only over the version that it names.
#[derive(Default)]
struct Server {
    lease: Option<Record>,
    versions: u64,
}

impl Server {
    fn write(&mut self, write: &Write, identity: &str) -> Result<Record, Failed> {
        if self.lease.as_ref().map(|lease| &lease.version) != write.over.as_ref() {
            return Err(Failed::Conflict);
        }
        let old = self.lease.clone();
        let transitions = old.as_ref().map_or(0, |old| old.transitions);
        self.versions += 1;
        let (holder, transitions) = match write.kind {
            Kind::Take(transitions) | Kind::Reserve(transitions) => (Some(identity.to_owned()), transitions),
            Kind::Renew => (old.and_then(|old| old.holder), transitions),
            Kind::Release => (None, transitions),
        };
        let duration = Duration::from_secs(15);
        let record = Record { version: self.versions.to_string(), holder, transitions, duration };
        self.lease = Some(record.clone());
        Ok(record)
    }
}

#[derive(Clone)]
enum Request {
    Look,
    Write(Write),
}

enum Answer {
    Look(Option<Record>),
    Write(Write, Result<Record, Failed>),
}

/// A request on its way. One that is given up may still arrive.
struct Flight {
    who: usize,
    life: u32,
    number: u64,
    at: Real,
    request: Request,
    /// None: the answer is lost.
    back: Option<Real>,
}

struct Back {
    who: usize,
    life: u32,
    number: u64,
    at: Real,
    answer: Answer,
}

struct Node {
    candidate: Candidate,
    life: u32,
    /// Its clock: this much when the world began, and so many millionths of a second each microsecond.
    offset: Real,
    rate: u64,
    /// The request that is waited for: its number, when it was sent by its own clock, when it is given up.
    waits: Option<(u64, Moment, Real)>,
    wakes: Real,
    /// Stopped until then.
    stopped: Real,
    dead: bool,
}

/// A later life has another name.
fn name(who: usize, life: u32) -> String {
    format!("{who}_{life}")
}

impl Node {
    fn new(who: usize, life: u32, elect: bool, offset: Real, rate: u64, wakes: Real) -> Node {
        let candidate = Candidate::new(name(who, life), elect, Timing::USUAL);
        Node { candidate, life, offset, rate, waits: None, wakes, stopped: 0, dead: false }
    }

    fn clock(&self, now: Real) -> Moment {
        Moment::at(Duration::from_micros(self.offset + now * self.rate / 1000))
    }

    /// When its clock will show that.
    fn real(&self, moment: Moment) -> Real {
        let shown = moment.since(Moment::FIRST).as_micros() as u64;
        (shown.saturating_sub(self.offset) * 1000).div_ceil(self.rate)
    }

    fn may_act(&self, now: Real) -> bool {
        !self.dead && self.candidate.lead(self.clock(now)).is_some()
    }
}

#[derive(Debug, Clone)]
enum Fate {
    /// Milliseconds there, milliseconds back.
    Answered(u64, u64),
    LostThere,
    LostBack(u64),
}

#[derive(Debug, Clone)]
enum Event {
    /// SIGSTOP, for so many milliseconds.
    Stop(usize, u64),
    /// Killed, and started anew after so many milliseconds.
    Kill(usize, u64),
    /// Somebody takes the Lease out of its holder's hands, as kubectl edit would.
    Touch,
    Delete,
}

struct World {
    now: Real,
    server: Server,
    nodes: Vec<Node>,
    flights: Vec<Flight>,
    backs: Vec<Back>,
    fates: Vec<Fate>,
    sent: u64,
    jitter: u64,
    /// By whom it was led: each epoch once.
    epochs: BTreeSet<u64>,
    /// Leaders change more than once a minute here: whoever makes a Lease anew may not know how far they were.
    deleted: bool,
    led: Vec<Option<u64>>,
    conflicts: u32,
}

impl World {
    fn new(clocks: &[(u64, u64)], fates: Vec<Fate>) -> World {
        let node = |(who, (offset, rate)): (usize, &(u64, u64))| {
            Node::new(who, 0, true, ms(*offset), *rate, ms(who as u64 * 37))
        };
        let nodes: Vec<Node> = clocks.iter().enumerate().map(node).collect();
        let led = vec![None; nodes.len()];
        World {
            now: 0,
            server: Server::default(),
            nodes,
            flights: Vec::new(),
            backs: Vec::new(),
            fates,
            sent: 0,
            jitter: 0,
            epochs: BTreeSet::new(),
            deleted: false,
            led,
            conflicts: 0,
        }
    }

    fn fate(&self) -> Fate {
        match self.fates.len() {
            0 => Fate::Answered(5, 5),
            fates => self.fates[self.sent as usize % fates].clone(),
        }
    }

    fn leaders(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|who| self.nodes[*who].may_act(self.now)).collect()
    }

    /// What has to hold whenever something has happened.
    fn check(&mut self) {
        let leaders = self.leaders();
        assert!(leaders.len() <= 1, "at {} µs: {leaders:?} may act", self.now);
        for who in 0..self.nodes.len() {
            let node = &self.nodes[who];
            let epoch = node.may_act(self.now).then(|| node.candidate.lead(node.clock(self.now)).unwrap().epoch());
            if epoch != self.led[who] {
                if let Some(epoch) = epoch {
                    let newest = self.epochs.last().copied().unwrap_or_default();
                    assert!(epoch > newest || self.deleted, "epoch {epoch} after {newest}");
                    self.epochs.insert(epoch);
                }
                self.led[who] = epoch;
            }
        }
    }

    /// As `Election::run` does it.
    fn act(&mut self, who: usize) {
        let node = &mut self.nodes[who];
        let clock = node.clock(self.now);
        let step = node.candidate.step(clock);
        let (request, patience) = match step {
            Step::Wait(until) => {
                self.jitter = (self.jitter * 31 + 17) % 400;
                node.wakes = node.real(until).max(self.now) + ms(self.jitter);
                return;
            }
            Step::Look(patience) => (Request::Look, patience),
            Step::Write(write, patience) => (Request::Write(write), patience),
        };
        let given_up = node.real(clock.plus(patience)).max(self.now + 1);
        self.sent += 1;
        node.waits = Some((self.sent, clock, given_up));
        node.wakes = given_up;
        let (at, back) = match self.fate() {
            Fate::Answered(there, back) => (self.now + ms(there), Some(ms(back))),
            Fate::LostThere => return,
            Fate::LostBack(there) => (self.now + ms(there), None),
        };
        self.flights.push(Flight { who, life: self.nodes[who].life, number: self.sent, at, request, back });
    }

    fn arrive(&mut self, flight: Flight) {
        let Flight { who, life, number, at, request, back } = flight;
        let answer = match request {
            Request::Look => Answer::Look(self.server.lease.clone()),
            Request::Write(write) => {
                let written = self.server.write(&write, &name(who, life));
                self.conflicts += u32::from(written.is_err());
                Answer::Write(write, written)
            }
        };
        if let Some(back) = back {
            self.backs.push(Back { who, life, number, at: at + back, answer });
        }
    }

    fn hear(&mut self, back: Back) {
        let node = &mut self.nodes[back.who];
        let Some((number, sent, _)) = node.waits else { return };
        if number != back.number || node.life != back.life || node.dead {
            return;
        }
        node.waits = None;
        node.wakes = self.now;
        let clock = node.clock(self.now);
        let minutes = MINUTES + i32::try_from(self.now / ms(60_000)).unwrap();
        match back.answer {
            Answer::Look(record) => node.candidate.looked(record, clock, minutes).unwrap(),
            Answer::Write(write, Ok(record)) => node.candidate.wrote(&write, record, sent, clock),
            Answer::Write(_, Err(why)) => node.candidate.failed(why, sent, clock),
        }
    }

    fn suffer(&mut self, event: &Event) {
        match *event {
            Event::Stop(who, long) => self.nodes[who].stopped = self.now + ms(long),
            Event::Kill(who, long) => {
                let Node { life, offset, rate, .. } = self.nodes[who];
                self.nodes[who] = Node::new(who, life + 1, true, offset, rate, self.now + ms(long));
            }
            Event::Touch => {
                if let Some(lease) = &mut self.server.lease {
                    self.server.versions += 1;
                    lease.version = self.server.versions.to_string();
                }
            }
            Event::Delete => {
                self.deleted = true;
                self.server.lease = None;
            }
        }
    }

    /// Until then, with these events at their times.
    fn run(&mut self, until: Real, events: &[(Real, Event)]) {
        let mut events: Vec<_> = events.to_vec();
        events.sort_by_key(|(at, _)| *at);
        let mut events = events.into_iter().peekable();
        loop {
            let wake = (0..self.nodes.len())
                .filter(|who| !self.nodes[*who].dead)
                .map(|who| (self.nodes[who].wakes.max(self.nodes[who].stopped), who))
                .min();
            let flight = (0..self.flights.len()).min_by_key(|at| self.flights[*at].at);
            // What a stopped process is answered waits for it.
            let heard = |back: &Back, nodes: &[Node]| back.at.max(nodes[back.who].stopped);
            let back = (0..self.backs.len()).min_by_key(|at| heard(&self.backs[*at], &self.nodes));
            let times = [
                wake.map(|(at, _)| at),
                flight.map(|at| self.flights[at].at),
                back.map(|at| heard(&self.backs[at], &self.nodes)),
                events.peek().map(|(at, _)| *at),
            ];
            let next = times.iter().flatten().min().copied();
            let Some(next) = next.filter(|next| *next <= until) else { break };
            self.now = self.now.max(next);
            if times[3] == Some(next) {
                if let Some((_, event)) = events.next() {
                    self.suffer(&event);
                }
            } else if times[1] == Some(next) {
                let flight = self.flights.swap_remove(flight.unwrap());
                self.arrive(flight);
            } else if times[2] == Some(next) {
                let back = self.backs.swap_remove(back.unwrap());
                self.hear(back);
            } else if let Some((_, who)) = wake {
                let node = &mut self.nodes[who];
                if let Some((_, sent, _)) = node.waits.take() {
                    let clock = node.clock(self.now);
                    node.candidate.failed(Failed::Unknown, sent, clock);
                }
                self.act(who);
            }
            self.check();
        }
        self.now = until;
        self.check();
    }
}

fn fates() -> impl Strategy<Value = Vec<Fate>> {
    let fate = prop_oneof![
        8 => (0..200u64, 0..200u64).prop_map(|(there, back)| Fate::Answered(there, back)),
        2 => (0..20_000u64, 0..20_000u64).prop_map(|(there, back)| Fate::Answered(there, back)),
        1 => Just(Fate::LostThere),
        1 => (0..20_000u64).prop_map(Fate::LostBack),
    ];
    prop::collection::vec(fate, 1..40)
}

fn events(nodes: usize) -> impl Strategy<Value = Vec<(Real, Event)>> {
    let event = prop_oneof![
        (0..nodes, 0..60_000u64).prop_map(|(who, long)| Event::Stop(who, long)),
        (0..nodes, 0..30_000u64).prop_map(|(who, long)| Event::Kill(who, long)),
        Just(Event::Touch),
    ];
    prop::collection::vec(((0..300_000u64).prop_map(ms), event), 0..12)
}

/// Thousandths of real time: a fifth too fast or too slow, which no clock is.
fn clocks() -> impl Strategy<Value = Vec<(u64, u64)>> {
    prop::collection::vec((0..10_000_000u64, 850..=1150u64), 2..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn never_two_may_act_and_no_epoch_comes_twice(clocks in clocks(), fates in fates(), events in events(2)) {
        World::new(&clocks, fates).run(ms(300_000), &events);
    }

    #[test]
    fn nor_when_somebody_deletes_the_lease(
        clocks in clocks(), fates in fates(), stops in events(2), deletions in prop::collection::vec(60_000..300_000u64, 1..4),
    ) {
        // Started anew, it would not know that there has been one.
        let stops = stops.into_iter().filter(|(_, event)| matches!(event, Event::Stop(..)));
        let events: Vec<_> = stops.chain(deletions.into_iter().map(|at| (ms(at), Event::Delete))).collect();
        let mut world = World::new(&clocks, Vec::new());
        // All have seen it.
        world.run(ms(50_000), &[]);
        world.fates = fates;
        world.run(ms(300_000), &events);
    }

    #[test]
    fn somebody_acts_again_in_time(
        offsets in prop::collection::vec(0..10_000_000u64, 2..5), at in 20_000..40_000u64, there in 0..100u64, back in 0..100u64,
    ) {
        let clocks: Vec<_> = offsets.iter().map(|offset| (*offset, 1000)).collect();
        let mut world = World::new(&clocks, vec![Fate::Answered(there, back)]);
        world.run(ms(at), &[]);
        let [leader] = world.leaders()[..] else { panic!("{:?} lead", world.leaders()) };
        world.nodes[leader].dead = true;
        // The lease, a retry with its jitter, and a few requests.
        world.run(ms(at + 15_000 + 2_400 + 400 + 4 * (there + back)), &[]);
        prop_assert_eq!(world.leaders().len(), 1);
    }

    #[test]
    fn a_leader_stays_one_while_most_requests_are_answered(
        offset in 0..10_000_000u64, delays in prop::collection::vec((0..400u64, 0..400u64), 1..20), at in 0..20u64,
    ) {
        let mut fates: Vec<_> = delays.into_iter().map(|(there, back)| Fate::Answered(there, back)).collect();
        let mut world = World::new(&[(offset, 1000)], fates.clone());
        world.run(ms(10_000), &[]);
        let before = world.epochs.clone();
        // One in six or more is lost, whichever it is.
        fates.extend(vec![Fate::Answered(1, 1); 5]);
        let at = at as usize % (fates.len() + 1);
        fates.insert(at, Fate::LostBack(1));
        world.fates = fates;
        world.run(ms(200_000), &[]);
        prop_assert_eq!(&world.epochs, &before);
    }
}

#[test]
fn a_stopped_leader_may_not_act_when_it_goes_on() {
    let mut world = World::new(&[(5, 1000), (900, 1000)], Vec::new());
    world.run(ms(20_000), &[]);
    let [leader] = world.leaders()[..] else { panic!("{:?} lead", world.leaders()) };
    world.run(ms(60_000), &[(ms(20_000), Event::Stop(leader, 30_000))]);
    assert_eq!(world.leaders(), [1 - leader]);
    assert_eq!(world.epochs.len(), 2);
}

#[test]
fn the_world_does_what_it_is_to_do() {
    // Three begin at once: one is first, and the others are told so.
    let mut world = World::new(&[(1, 1000), (2, 1000), (3, 1000)], vec![Fate::Answered(80, 5)]);
    world.run(ms(60_000), &[]);
    assert!(world.conflicts >= 1, "nobody was second");
    assert_eq!(world.epochs.iter().copied().collect::<Vec<_>>(), [MINUTES as u64 + 1]);
}

//! The registry's state machine against a history that is looked up anew for each call, and an engine that fails, dies,
//! dawdles and repeats itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use janusd::registry::{
    Effect, FIRST_RETRY, Health, Input, LONGEST_RETRY, Leader, Phase, Refusal, STEADY, Standing, Target, Ticket, Unit,
};
use proptest::prelude::*;

const NOW: Duration = Duration::ZERO;

/// What a test may do next.
#[derive(Debug, Clone)]
enum Move {
    Create(u64, i64, u8),
    Destroy(u64, i64),
    /// The engine's next report, if it owes one.
    Done(Health),
    Fail,
    Die,
    EndStop,
    /// The health of what is in force changes.
    Ail(Health),
    /// A wait of those that were ever asked for is over: mostly long stale.
    Ring(prop::sample::Index),
    /// A report that was given before comes again.
    Repeat(prop::sample::Index),
    Drain,
}

fn health() -> impl Strategy<Value = Health> {
    prop::sample::select(vec![Health::InForce, Health::Degraded])
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        8 => (1..4_u64, 1..4_i64, 0..3_u8).prop_map(|(e, g, s)| Move::Create(e, g, s)),
        4 => (1..4_u64, 1..4_i64).prop_map(|(e, g)| Move::Destroy(e, g)),
        6 => health().prop_map(Move::Done),
        4 => Just(Move::Fail),
        2 => Just(Move::Die),
        4 => Just(Move::EndStop),
        2 => health().prop_map(Move::Ail),
        4 => any::<prop::sample::Index>().prop_map(Move::Ring),
        3 => any::<prop::sample::Index>().prop_map(Move::Repeat),
    ];
    // A drain ends the game for creates, so it comes late or not at all.
    (prop::collection::vec(one, 0..40), any::<bool>(), prop::collection::vec((1..4_u64, 1..4_i64), 0..3)).prop_map(
        |(mut moves, drain, late)| {
            if drain {
                moves.push(Move::Drain);
            }
            moves.extend(late.into_iter().map(|(e, g)| Move::Create(e, g, 0)));
            moves
        },
    )
}

/// A call that was made, and whether it was accepted.
#[derive(Debug, Clone)]
struct Call {
    epoch: u64,
    generation: i64,
    spec: Option<u8>,
    accepted: bool,
}

/// Every call so far. Knows no state but that.
#[derive(Debug, Default)]
struct History {
    calls: Vec<Call>,
    drained: bool,
}

impl History {
    fn refusal(&self, epoch: u64, generation: i64, spec: Option<u8>) -> Option<Refusal> {
        if self.drained && spec.is_some() {
            return Some(Refusal::Draining);
        }
        let newest = self.calls.iter().map(|call| call.epoch).max().unwrap_or(0);
        if epoch < newest {
            return Some(Refusal::StaleEpoch { have: newest });
        }
        let accepted = || self.calls.iter().filter(|call| call.accepted);
        let highest = accepted().map(|call| call.generation).max().unwrap_or(0);
        if generation < highest {
            return Some(Refusal::StaleGeneration { have: highest });
        }
        let mut same = accepted().filter(|call| call.generation == generation && call.spec.is_some());
        match (same.next_back(), spec) {
            (Some(last), Some(spec)) if last.spec != Some(spec) && epoch <= last.epoch => {
                Some(Refusal::AnotherSpec { generation, epoch: last.epoch })
            }
            _ => None,
        }
    }

    fn note(&mut self, epoch: u64, generation: i64, spec: Option<u8>) -> Option<Refusal> {
        let refusal = self.refusal(epoch, generation, spec);
        if refusal != Some(Refusal::Draining) {
            self.calls.push(Call { epoch, generation, spec, accepted: refusal.is_none() });
        }
        refusal
    }

    /// What the last accepted call left to be in force.
    fn wanted(&self) -> Option<Target<u8>> {
        if self.drained {
            return None;
        }
        let last = self.calls.iter().rev().find(|call| call.accepted)?;
        last.spec.map(|spec| Target { generation: last.generation, spec })
    }
}

/// A run of the engine.
#[derive(Debug)]
struct Run {
    run: Ticket,
    step: Option<(Ticket, Target<u8>)>,
    in_force: Option<(Ticket, Target<u8>)>,
    stopping: bool,
}

/// The unit, and the world that it commands.
#[derive(Debug, Default)]
struct World {
    unit: Unit<u8>,
    history: History,
    run: Option<Run>,
    waits: Vec<Ticket>,
    told: Vec<Input<u8>>,
    steps: u32,
}

impl World {
    fn tell(&mut self, input: Input<u8>) -> Effect<u8> {
        let effect = self.unit.apply(input.clone(), NOW);
        if !matches!(input, Input::Create { .. } | Input::Destroy { .. } | Input::Drain) {
            self.told.push(input);
        }
        self.carry_out(effect.clone());
        effect
    }

    /// Does as it is told, and complains about orders that make no sense.
    fn carry_out(&mut self, effect: Effect<u8>) {
        match effect {
            Effect::Nothing | Effect::Refuse(_) => {}
            Effect::Start { ticket, target } => {
                assert!(self.run.is_none(), "a second run: {self:?}");
                self.steps += 1;
                self.run = Some(Run { run: ticket, step: Some((ticket, target)), in_force: None, stopping: false });
            }
            Effect::Update { run, ticket, target } => {
                self.steps += 1;
                let have = self.run.as_mut().expect("an update without a run");
                assert!(have.run == run && !have.stopping && have.step.is_none() && have.in_force.is_some());
                assert_ne!(have.in_force.as_ref().map(|(_, target)| target), Some(&target));
                have.step = Some((ticket, target));
            }
            Effect::Stop { run } => {
                let have = self.run.as_mut().expect("a stop without a run");
                assert!(have.run == run && !have.stopping, "stopped twice, or another: {have:?}");
                have.stopping = true;
            }
            Effect::Retry { ticket, after } => {
                assert!(FIRST_RETRY <= after && after <= LONGEST_RETRY);
                assert!(!self.waits.contains(&ticket));
                self.waits.push(ticket);
            }
        }
    }

    fn play(&mut self, next: Move) {
        match next {
            Move::Create(epoch, generation, spec) => {
                let expected = self.history.note(epoch, generation, Some(spec));
                let before = self.unit.clone();
                let effect = self.tell(Input::Create { epoch, generation, spec });
                match expected {
                    Some(refusal) => {
                        assert_eq!(effect, Effect::Refuse(refusal));
                        assert_eq!(self.unit.accepted(), before.accepted());
                        assert_eq!((self.unit.phase(), self.unit.in_force()), (before.phase(), before.in_force()));
                    }
                    None => assert!(!matches!(effect, Effect::Refuse(_) | Effect::Stop { .. }), "{effect:?}"),
                }
                if before.accepted() == Some(&Target { generation, spec }) && expected.is_none() {
                    assert_eq!(effect, Effect::Nothing, "nothing differs");
                }
            }
            Move::Destroy(epoch, generation) => {
                let expected = self.history.note(epoch, generation, None);
                match (self.tell(Input::Destroy { epoch, generation }), expected) {
                    (Effect::Refuse(refusal), expected) => assert_eq!(Some(refusal), expected),
                    (Effect::Nothing | Effect::Stop { .. }, None) => {
                        assert!(matches!(self.unit.phase(), Phase::Stopped | Phase::Draining));
                    }
                    (effect, expected) => panic!("{effect:?}, {expected:?}"),
                }
            }
            Move::Done(health) => {
                let Some(run) = &mut self.run else { return };
                let Some((ticket, target)) = run.step.take() else { return };
                run.in_force = Some((ticket, target));
                self.tell(Input::Done { ticket, health });
            }
            Move::Fail => {
                let Some(run) = &mut self.run else { return };
                let Some((ticket, _)) = run.step.take() else { return };
                if ticket == run.run {
                    self.run = None;
                }
                self.tell(Input::Failed { ticket });
            }
            Move::Die => {
                if let Some(run) = self.run.take() {
                    self.tell(Input::Gone { run: run.run });
                }
            }
            Move::EndStop => {
                if self.run.as_ref().is_some_and(|run| run.stopping) {
                    self.play(Move::Die);
                }
            }
            Move::Ail(health) => {
                if let Some((ticket, _)) = self.run.as_ref().and_then(|run| run.in_force.clone()) {
                    self.tell(Input::Done { ticket, health });
                }
            }
            Move::Ring(which) => {
                if !self.waits.is_empty() {
                    let ticket = *which.get(&self.waits);
                    let due = self.waits.last() == Some(&ticket);
                    let before = self.unit.clone();
                    let effect = self.tell(Input::RetryDue { ticket });
                    if !due {
                        assert_eq!((effect, &before), (Effect::Nothing, &self.unit), "a stale wait");
                    }
                }
            }
            Move::Repeat(which) => {
                if self.told.is_empty() {
                    return;
                }
                let input = which.get(&self.told).clone();
                // The health of what is in force may be told any number of times, and a wait rings when it likes.
                let current = match (&input, &self.run) {
                    (Input::Done { ticket, .. }, Some(run)) => {
                        run.in_force.as_ref().is_some_and(|(step, _)| step == ticket)
                    }
                    (Input::RetryDue { .. }, _) => true,
                    _ => false,
                };
                if !current {
                    let before = self.unit.clone();
                    assert_eq!(self.tell(input), Effect::Nothing);
                    assert_eq!(before, self.unit, "a report about what is over");
                }
            }
            Move::Drain => {
                self.history.drained = true;
                let effect = self.tell(Input::Drain);
                assert!(matches!(effect, Effect::Nothing | Effect::Stop { .. }));
            }
        }
        self.check();
    }

    /// What holds at any time.
    fn check(&self) {
        assert_eq!(self.unit.accepted().cloned(), self.history.wanted());
        let run = self.run.as_ref();
        let stopping = run.is_some_and(|run| run.stopping);
        let in_force = run.filter(|run| !run.stopping).and_then(|run| run.in_force.as_ref()).map(|(_, target)| target);
        assert_eq!(self.unit.in_force(), in_force, "{self:?}");
        assert_eq!(stopping, self.unit.phase() == Phase::Draining);
        assert_eq!(run.is_none(), matches!(self.unit.phase(), Phase::Stopped | Phase::Failed));
        match self.unit.standing() {
            Standing::InForce => assert!(in_force.is_some() && in_force == self.unit.accepted()),
            Standing::Degraded => assert!(in_force.is_some()),
            Standing::Absent => assert!(run.is_none() && self.unit.accepted().is_none()),
            Standing::Draining => assert!(stopping && self.unit.accepted().is_none()),
            Standing::Failed => assert!(in_force.is_none() && self.unit.accepted().is_some()),
            Standing::Pending => assert!(self.unit.accepted().is_some()),
        }
        if in_force.is_some() && in_force == self.unit.accepted() && self.unit.phase() == Phase::Guarding {
            assert_eq!(self.unit.failures(), 0);
        }
    }

    /// From now on all goes well.
    fn settle(&mut self) {
        for _ in 0..8 {
            self.play(Move::EndStop);
            self.play(Move::Done(Health::InForce));
            self.play(Move::Ail(Health::InForce));
            if let Some(&ticket) = self.waits.last() {
                self.tell(Input::RetryDue { ticket });
                self.check();
            }
        }
        let wanted = self.history.wanted();
        let have = self.run.as_ref().and_then(|run| run.in_force.as_ref()).map(|(_, target)| target.clone());
        assert_eq!(have, wanted, "{self:?}");
        let standing = if wanted.is_some() { Standing::InForce } else { Standing::Absent };
        assert_eq!(self.unit.standing(), standing);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_last_accepted_call_is_carried_out(moves in moves()) {
        let mut world = World::default();
        for next in moves {
            world.play(next);
        }
        world.settle();
    }

    /// Calls that were sent once each, then come in any order, some of them twice: the highest generation of the last
    /// epoch wins, if that epoch speaks last or it was in force before.
    #[test]
    fn no_order_of_calls_brings_back_an_older_generation(
        order in Just((1..=6_i64).collect::<Vec<_>>()).prop_shuffle(),
        again in prop::collection::vec(0..6_usize, 0..6),
    ) {
        let mut world = World::default();
        for generation in order.iter().chain(again.iter().map(|&at| &order[at])) {
            world.play(Move::Create(1, *generation, *generation as u8));
            world.play(Move::Done(Health::InForce));
        }
        world.settle();
        prop_assert_eq!(world.unit.in_force(), Some(&Target { generation: 6, spec: 6 }));
    }

    #[test]
    fn the_same_call_any_number_of_times_is_one_step(times in 1..20_usize, at in 0..20_usize) {
        let mut world = World::default();
        for time in 0..times {
            world.play(Move::Create(1 + time as u64 / 3, 1, 0));
            if time == at {
                world.play(Move::Done(Health::InForce));
            }
        }
        prop_assert_eq!(world.steps, 1);
    }

    #[test]
    fn a_leader_is_deposed_for_every_unit(epochs in prop::collection::vec(1..6_u64, 0..20)) {
        let mut leader = Leader::default();
        let mut highest = 0;
        for epoch in epochs {
            let heard = leader.hear(epoch);
            let expected = if epoch < highest { Err(Refusal::StaleEpoch { have: highest }) } else { Ok(()) };
            prop_assert_eq!(heard, expected);
            highest = highest.max(epoch);
            prop_assert_eq!(leader.epoch(), highest);
        }
    }
}

fn create(epoch: u64, generation: i64, spec: u8) -> Input<u8> {
    Input::Create { epoch, generation, spec }
}

fn started(unit: &mut Unit<u8>, input: Input<u8>) -> Ticket {
    match unit.apply(input, NOW) {
        Effect::Start { ticket, .. } => ticket,
        effect => panic!("{effect:?}"),
    }
}

#[test]
fn what_is_absent_is_lifted() {
    let mut unit: Unit<u8> = Unit::default();
    assert_eq!(unit.apply(Input::Destroy { epoch: 1, generation: 4 }, NOW), Effect::Nothing);
    assert_eq!(unit.standing(), Standing::Absent);
    // It was destroyed at generation 4: an older create comes too late.
    assert_eq!(unit.apply(create(1, 3, 0), NOW), Effect::Refuse(Refusal::StaleGeneration { have: 4 }));
}

#[test]
fn destroyed_while_starting() {
    for late in [0, 1, 2] {
        let mut unit = Unit::default();
        let run = started(&mut unit, create(1, 1, 0));
        assert_eq!(unit.apply(Input::Destroy { epoch: 1, generation: 1 }, NOW), Effect::Stop { run });
        match late {
            // The start succeeds all the same, and then ends.
            0 => {
                assert_eq!(unit.apply(Input::Done { ticket: run, health: Health::InForce }, NOW), Effect::Nothing);
                assert_eq!((unit.phase(), unit.in_force()), (Phase::Draining, None));
                assert_eq!(unit.apply(Input::Gone { run }, NOW), Effect::Nothing);
            }
            // It fails, so that there is nothing to end.
            1 => assert_eq!(unit.apply(Input::Failed { ticket: run }, NOW), Effect::Nothing),
            _ => assert_eq!(unit.apply(Input::Gone { run }, NOW), Effect::Nothing),
        }
        assert_eq!(unit.phase(), Phase::Stopped);
    }
}

#[test]
fn created_while_draining() {
    let mut unit = Unit::default();
    let run = started(&mut unit, create(1, 1, 0));
    unit.apply(Input::Done { ticket: run, health: Health::InForce }, NOW);
    unit.apply(Input::Destroy { epoch: 1, generation: 1 }, NOW);
    assert_eq!(unit.standing(), Standing::Draining);
    // Never two runs at once: it waits.
    assert_eq!(unit.apply(create(1, 1, 0), NOW), Effect::Nothing);
    assert_eq!((unit.phase(), unit.standing()), (Phase::Draining, Standing::Pending));
    let again = started(&mut unit, Input::Gone { run });
    assert_ne!(run, again);
    // And lifted again before the old one had gone.
    let mut unit = Unit::default();
    let run = started(&mut unit, create(1, 1, 0));
    unit.apply(Input::Destroy { epoch: 1, generation: 1 }, NOW);
    unit.apply(create(1, 2, 1), NOW);
    assert_eq!(unit.apply(Input::Destroy { epoch: 1, generation: 2 }, NOW), Effect::Nothing);
    assert_eq!(unit.apply(Input::Gone { run }, NOW), Effect::Nothing);
    assert_eq!(unit.standing(), Standing::Absent);
}

#[test]
fn another_spec_of_the_same_generation() {
    let mut unit = Unit::default();
    let run = started(&mut unit, create(2, 1, 0));
    unit.apply(Input::Done { ticket: run, health: Health::InForce }, NOW);
    assert_eq!(unit.apply(create(2, 1, 1), NOW), Effect::Refuse(Refusal::AnotherSpec { generation: 1, epoch: 2 }));
    assert_eq!(unit.apply(create(1, 1, 1), NOW), Effect::Refuse(Refusal::StaleEpoch { have: 2 }));
    assert!(matches!(unit.apply(create(3, 1, 1), NOW), Effect::Update { .. }));
    // A leader that confirms a spec has brought it: it cannot have two at one generation.
    let mut unit = Unit::default();
    started(&mut unit, create(1, 1, 0));
    assert_eq!(unit.apply(create(2, 1, 0), NOW), Effect::Nothing);
    assert_eq!(unit.apply(create(2, 1, 1), NOW), Effect::Refuse(Refusal::AnotherSpec { generation: 1, epoch: 2 }));
}

#[test]
fn an_update_that_fails_leaves_what_was_in_force() {
    let mut unit = Unit::default();
    let run = started(&mut unit, create(1, 1, 0));
    unit.apply(Input::Done { ticket: run, health: Health::InForce }, NOW);
    let Effect::Update { ticket, .. } = unit.apply(create(1, 2, 1), NOW) else { panic!() };
    assert_eq!(unit.standing(), Standing::Pending);
    let Effect::Retry { ticket: wait, after } = unit.apply(Input::Failed { ticket }, NOW) else { panic!() };
    assert_eq!((after, unit.failures(), unit.standing()), (FIRST_RETRY, 1, Standing::Degraded));
    assert_eq!(unit.in_force().map(|target| target.generation), Some(1));
    let Effect::Update { ticket, .. } = unit.apply(Input::RetryDue { ticket: wait }, NOW) else { panic!() };
    assert_eq!(unit.standing(), Standing::Degraded);
    unit.apply(Input::Done { ticket, health: Health::InForce }, NOW);
    assert_eq!((unit.failures(), unit.standing()), (0, Standing::InForce));
}

#[test]
fn waits_double_up_to_a_bound() {
    let mut unit = Unit::default();
    let mut ticket = started(&mut unit, create(1, 1, 0));
    let mut waits = Vec::new();
    for failures in 1..=40 {
        let Effect::Retry { ticket: wait, after } = unit.apply(Input::Failed { ticket }, NOW) else { panic!() };
        waits.push(after.as_secs());
        assert_eq!((unit.failures(), unit.standing()), (failures, Standing::Failed));
        // The same call again does not hurry it.
        assert_eq!(unit.apply(create(1, 1, 0), NOW), Effect::Nothing);
        ticket = started(&mut unit, Input::RetryDue { ticket: wait });
        assert_eq!(unit.standing(), Standing::Failed);
    }
    assert_eq!(waits[..9], [1, 2, 4, 8, 16, 32, 64, 64, 64]);
    assert_eq!(waits[39], 64);
    // Another spec is tried at once, and has not failed yet.
    unit.apply(Input::Failed { ticket }, NOW);
    let ticket = started(&mut unit, create(1, 2, 1));
    assert_eq!(unit.failures(), 0);
    assert!(matches!(unit.apply(Input::Failed { ticket }, NOW), Effect::Retry { after: FIRST_RETRY, .. }));
}

#[test]
fn a_run_that_keeps_dying_is_started_less_and_less_often() {
    let mut unit = Unit::default();
    let mut run = started(&mut unit, create(1, 1, 0));
    let mut now = Duration::ZERO;
    let mut waits = Vec::new();
    // The fifth holds for a good while.
    for life in [Duration::ZERO, Duration::from_secs(1), STEADY / 2, Duration::ZERO, STEADY, Duration::ZERO] {
        unit.apply(Input::Done { ticket: run, health: Health::InForce }, now);
        now += life;
        let Effect::Retry { ticket, after } = unit.apply(Input::Gone { run }, now) else { panic!() };
        assert_eq!(unit.standing(), Standing::Failed);
        waits.push(after.as_secs());
        now += after;
        run = started(&mut unit, Input::RetryDue { ticket });
    }
    assert_eq!(waits, [1, 2, 4, 8, 1, 2]);
    assert_eq!(unit.restarts(), 5, "the sixth is on its way");
    unit.apply(Input::Done { ticket: run, health: Health::InForce }, now);
    assert_eq!((unit.restarts(), unit.failures()), (6, 0));
}

#[test]
fn a_drain_is_for_good() {
    let mut unit = Unit::default();
    let run = started(&mut unit, create(1, 1, 0));
    unit.apply(Input::Destroy { epoch: 1, generation: 1 }, NOW);
    unit.apply(create(1, 2, 0), NOW);
    assert_eq!(unit.apply(Input::Drain, NOW), Effect::Nothing, "it is being stopped already");
    assert_eq!(unit.apply(create(1, 3, 0), NOW), Effect::Refuse(Refusal::Draining));
    assert_eq!(unit.apply(Input::Gone { run }, NOW), Effect::Nothing);
    assert_eq!(unit.apply(Input::Destroy { epoch: 1, generation: 3 }, NOW), Effect::Nothing);
    assert_eq!(unit.phase(), Phase::Stopped);
}

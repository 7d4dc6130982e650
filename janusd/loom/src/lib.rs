//! The protocol of `janusd/src/guard/slots.rs`, in every interleaving that loom finds.
//!
//! A worker reads two events from a kernel that has few numbers and gives each out again as soon as it is closed; a
//! watchdog finds everything overdue, always. Laws:
//!
//! - an answer that the kernel takes was meant for the event that it hits;
//! - every event that was read is answered, also when the worker stops for ever at any step;
//! - every descriptor is closed once, by its owner, after its event was answered.
//!
//! Each law is seen to fail when the protocol is broken on purpose: the tests that should panic.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --manifest-path janusd/loom/Cargo.toml`
#![cfg(all(loom, test))]

#[allow(dead_code, reason = "what only looks is not modelled")]
#[path = "../../src/guard/slots.rs"]
mod slots;

use std::panic::resume_unwind;

use loom::sync::atomic::{AtomicU64, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;

use slots::{Phase, Post, Release, Slots};

const EVENTS: usize = 2;
/// Everything is overdue.
const LATER: u64 = 1_000;

/// What the kernel knows.
struct Kernel {
    /// Events that were not read yet.
    queued: Vec<usize>,
    /// Descriptor number to event, while open.
    open: [Option<usize>; EVENTS],
    answers: [u32; EVENTS],
    closed: [u32; EVENTS],
}

/// All that the two threads share.
struct World {
    kernel: Mutex<Kernel>,
    slots: Slots,
    phase: Phase,
    /// The buffer that a read fills, an event a word: 0, or one more than number * EVENTS + event.
    buffer: [AtomicU64; EVENTS],
}

impl World {
    fn new() -> Arc<World> {
        let kernel = Kernel {
            queued: (0..EVENTS).rev().collect(),
            open: [None; EVENTS],
            answers: [0; EVENTS],
            closed: [0; EVENTS],
        };
        Arc::new(World {
            kernel: Mutex::new(kernel),
            slots: Slots::new(EVENTS),
            phase: Phase::new(),
            buffer: std::array::from_fn(|_| AtomicU64::new(0)),
        })
    }

    /// Reads up to `most` events into the buffer. As the kernel does it: the record is written before anybody can answer.
    fn read(&self, most: usize) -> Vec<(usize, usize)> {
        let mut read = Vec::new();
        for word in &self.buffer[..most] {
            let mut kernel = self.kernel.lock().unwrap();
            let Some(event) = kernel.queued.pop() else { break };
            let number = kernel.open.iter().position(Option::is_none).unwrap();
            word.store((number * EVENTS + event + 1) as u64, Ordering::Relaxed);
            kernel.open[number] = Some(event);
            read.push((number, event));
        }
        read
    }

    /// Answers the event that has the number now; `meant`: which one the writer thinks that is.
    fn write(&self, number: usize, meant: usize) {
        let mut kernel = self.kernel.lock().unwrap();
        // ENOENT otherwise, which is no answer.
        if let Some(event) = kernel.open[number]
            && kernel.answers[event] == 0
        {
            assert_eq!(event, meant, "an answer hits another event");
            kernel.answers[event] += 1;
        }
    }

    fn close(&self, number: usize, event: usize) {
        let mut kernel = self.kernel.lock().unwrap();
        assert_eq!(kernel.open[number].take(), Some(event), "not its own");
        assert_eq!(kernel.answers[event], 1, "closed unanswered");
        kernel.closed[event] += 1;
    }

    fn watch(&self) {
        self.slots.rescue(LATER, 1, |post, _| self.write(post.number as usize, usize::from(post.kind)));
        self.scan();
    }

    fn scan(&self) {
        self.phase.scan(self.phase.now(), || self.answer_buffer());
    }

    fn answer_buffer(&self) {
        for word in &self.buffer {
            if let Some(found) = (word.load(Ordering::Relaxed) as usize).checked_sub(1) {
                self.write(found / EVENTS, found % EVENTS);
            }
        }
    }
}

/// How a worker errs.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// Closes without asking the slot.
    ClosesAnyway,
    /// Leaves a read while it is being scanned.
    LeavesScan,
    /// Leaves what it has read in the buffer.
    KeepsBuffer,
    /// Ends the read before it has published.
    PublishesLate,
}

/// Ends a worker's part after so many steps.
struct Steps(usize);

impl Steps {
    fn go(&mut self) -> Option<()> {
        self.0 = self.0.checked_sub(1)?;
        Some(())
    }
}

/// What a worker does; `None`: it stopped on the way, for ever.
fn work(world: &World, batch: usize, fault: Fault, mut steps: Steps) -> Option<()> {
    let mut time = 1;
    let mut limbo: Vec<(usize, usize, usize)> = Vec::new();
    loop {
        time += 1;
        if fault != Fault::KeepsBuffer {
            world.buffer.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        }
        steps.go()?;
        world.phase.begin_read(false, time);
        steps.go()?;
        let read = world.read(batch);
        steps.go()?;
        let mut fresh = Vec::new();
        let publish = |fresh: &mut Vec<_>, steps: &mut Steps| {
            for (number, event) in &read {
                // A slot is named like the event here: free, since each event is read once.
                let post = Post { number: *number as i32, near: false, kind: *event as u8, own: false };
                world.slots.publish(*event, post, time);
                steps.go()?;
                fresh.push((*event, *number, *event));
            }
            Some(())
        };
        if fault != Fault::PublishesLate {
            publish(&mut fresh, &mut steps)?;
        }
        match fault {
            Fault::LeavesScan => world.phase.working(time),
            _ => world.phase.end_read(time),
        }
        steps.go()?;
        if fault == Fault::PublishesLate {
            publish(&mut fresh, &mut steps)?;
        }
        for (_, number, event) in &fresh {
            world.write(*number, *event);
            steps.go()?;
        }
        limbo.append(&mut fresh);
        limbo.retain(|(slot, number, event)| {
            let release = world.slots.release(*slot);
            if release == Release::Close || fault == Fault::ClosesAnyway {
                world.close(*number, *event);
                false
            } else {
                true
            }
        });
        world.phase.idle(time);
        steps.go()?;
        if read.is_empty() {
            break;
        }
    }
    // Where a real one would go on polling.
    while let Some((slot, number, event)) = limbo.pop() {
        if world.slots.release(slot) == Release::Close {
            world.close(number, event);
        } else {
            limbo.push((slot, number, event));
            thread::yield_now();
        }
    }
    Some(())
}

fn model(batch: usize, watches: usize, fault: Fault) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        let world = World::new();
        let watchdog = {
            let world = world.clone();
            thread::spawn(move || (0..watches).for_each(|_| world.watch()))
        };
        work(&world, batch, fault, Steps(usize::MAX));
        if let Err(panic) = watchdog.join() {
            resume_unwind(panic);
        }
        let kernel = world.kernel.lock().unwrap();
        assert_eq!((kernel.answers, kernel.closed), ([1; EVENTS], [1; EVENTS]));
    });
}

#[test]
fn one_after_the_other() {
    // The second event gets the first one's number, while the watchdog may still be at the first.
    model(1, 2, Fault::None);
}

#[test]
fn both_in_one_read() {
    model(2, 2, Fault::None);
}

/// The watchdog is at work while the worker goes on, and once more after it has stopped for good.
fn stopped_anywhere(batch: usize, fault: Fault) {
    for steps in 0..22 {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(2);
        builder.check(move || {
            let world = World::new();
            let watchdog = {
                let world = world.clone();
                thread::spawn(move || world.watch())
            };
            let finished = work(&world, batch, fault, Steps(steps)).is_some();
            if let Err(panic) = watchdog.join() {
                resume_unwind(panic);
            }
            world.watch();
            let kernel = world.kernel.lock().unwrap();
            assert!(finished || kernel.closed.iter().all(|closed| *closed <= 1));
            for event in 0..EVENTS {
                let read = !kernel.queued.contains(&event);
                assert_eq!(kernel.answers[event], u32::from(read), "event {event}, stopped after {steps} steps");
            }
        });
    }
}

#[test]
fn whatever_a_stopped_worker_has_read_is_answered() {
    stopped_anywhere(1, Fault::None);
    stopped_anywhere(2, Fault::None);
}

#[test]
#[should_panic(expected = "an answer hits another event")]
fn closing_without_asking_is_seen() {
    model(1, 1, Fault::ClosesAnyway);
}

#[test]
#[should_panic(expected = "an answer hits another event")]
fn leaving_a_scan_is_seen() {
    model(1, 1, Fault::LeavesScan);
}

#[test]
#[should_panic(expected = "an answer hits another event")]
fn a_stale_buffer_is_seen() {
    model(1, 1, Fault::KeepsBuffer);
}

#[test]
#[should_panic(expected = "stopped after")]
fn publishing_late_is_seen() {
    stopped_anywhere(2, Fault::PublishesLate);
}

/// The watchdog writes to numbers that it has not pinned.
#[test]
#[should_panic(expected = "an answer hits another event")]
fn writing_unpinned_is_seen() {
    loom::model(|| {
        let world = World::new();
        let watchdog = {
            let world = world.clone();
            thread::spawn(move || world.answer_buffer())
        };
        work(&world, 1, Fault::None, Steps(usize::MAX));
        if let Err(panic) = watchdog.join() {
            resume_unwind(panic);
        }
    });
}

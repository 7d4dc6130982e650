//! Inside an agent: threads that open files, and count what they met.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::protocol::{Answers, Openers, Tally};

/// A load that runs.
pub(crate) struct Hammer {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Tally>>,
    paths: usize,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    opened: AtomicU64,
}

impl Hammer {
    pub(crate) fn start(openers: &Openers) -> Hammer {
        let shared = Arc::new(Shared::default());
        let openers = Arc::new(openers.clone());
        let threads = (0..openers.threads)
            .map(|first| {
                let (shared, openers) = (Arc::clone(&shared), Arc::clone(&openers));
                let builder = std::thread::Builder::new().stack_size(64 * 1024);
                builder.spawn(move || open_all(&shared, &openers, first)).unwrap()
            })
            .collect();
        Hammer { shared, threads, paths: openers.paths.len() }
    }

    pub(crate) fn opened(&self) -> u64 {
        self.shared.opened.load(Ordering::Relaxed)
    }

    pub(crate) fn stop(self) -> Tally {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.join()
    }

    pub(crate) fn join(self) -> Tally {
        let nothing = Tally { paths: vec![Answers::default(); self.paths], slowest: Duration::ZERO };
        self.threads.into_iter().map(|thread| thread.join().unwrap()).fold(nothing, |mut sum, one| {
            for (sum, one) in sum.paths.iter_mut().zip(one.paths) {
                sum.allowed += one.allowed;
                sum.denied += one.denied;
                sum.failed += one.failed;
            }
            sum.slowest = sum.slowest.max(one.slowest);
            sum
        })
    }
}

fn open_all(shared: &Shared, openers: &Openers, first: usize) -> Tally {
    let mut tally = Tally { paths: vec![Answers::default(); openers.paths.len()], slowest: Duration::ZERO };
    for turn in first.. {
        if shared.stop.load(Ordering::Relaxed) {
            break;
        }
        let path = turn % openers.paths.len();
        let before = Instant::now();
        let opened = rustix::fs::open(&openers.paths[path], OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        tally.slowest = tally.slowest.max(before.elapsed());
        let answers = &mut tally.paths[path];
        match opened {
            Ok(_closed_at_once) => answers.allowed += 1,
            Err(Errno::PERM) => answers.denied += 1,
            Err(_) => answers.failed += 1,
        }
        shared.opened.fetch_add(1, Ordering::Relaxed);
        if openers.once {
            break;
        }
    }
    tally
}

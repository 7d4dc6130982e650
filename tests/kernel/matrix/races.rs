//! Races: something becomes a guarded file, and is opened at once, while others open it all the time.
//!
//! Flow: the guarded container's process prepares (writes aside, removes, links), opens what is not guarded yet, so that
//! whoever remembers that this file is allowed does so, moves it to where it is guarded, and opens it: that is one try.
//! Meanwhile two amplifiers spin on the old and the new name.
//!
//! Guarantee: not one open by a guarded name goes through, neither by the one who tries nor by an amplifier, in
//! `JANUS_TEST_TRIES` tries (2,000 if not set, 500 copies up; 100,000 on demand). In the control every try does.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::World;
use super::room::{Guard, Room, SECRET};
use super::situation::Situation::{self, Directory, HostPath, Overlay, PodVolume, Tmpfs};
use super::stage::drop_caches;
use crate::atomic_writer;
use crate::case::{Case, Janus};

crate::kernel_tests![
    atomic_write_into_a_denied_directory.lasting(LONG),
    atomic_write_onto_a_denied_file.lasting(LONG),
    removed_and_made_anew.lasting(LONG),
    made_anew_with_the_same_number.lasting(LONG),
    hard_link_into_a_denied_directory.lasting(LONG),
    data_swap.lasting(LONG),
    dropped_caches.lasting(LONG),
    copy_up.lasting(LONG),
];

/// 100,000 tries must fit.
const LONG: u64 = 600;

fn atomic_write_into_a_denied_directory(case: &Case) {
    race(case, "race-atomic-write", Guard::Tree, &[Overlay, Tmpfs, PodVolume, HostPath, Directory]);
}

fn atomic_write_onto_a_denied_file(case: &Case) {
    race(case, "race-atomic-write", Guard::File, &[Overlay, Tmpfs, PodVolume, HostPath, Directory]);
}

fn removed_and_made_anew(case: &Case) {
    race(case, "race-made-anew", Guard::File, &[Overlay, Tmpfs, PodVolume, HostPath, Directory]);
}

/// A file that was allowed is removed, and the next, with its number, is made where it is denied, without an open.
fn made_anew_with_the_same_number(case: &Case) {
    race(case, "race-same-number", Guard::Tree, &[Overlay, PodVolume, HostPath, Directory]);
}

fn hard_link_into_a_denied_directory(case: &Case) {
    race(case, "race-hard-link", Guard::Tree, &[Overlay, Tmpfs, PodVolume, HostPath, Directory]);
}

fn data_swap(case: &Case) {
    race(case, "race-data-swap", Guard::Key, &[Tmpfs, PodVolume, Overlay]);
}

/// The kernel forgets inodes, and with them whatever mark does not hold them.
fn dropped_caches(case: &Case) {
    race(case, "race-dropped-caches", Guard::Tree, &[Overlay, PodVolume, Directory]);
}

/// Lower files, copied up one after the other.
fn copy_up(case: &Case) {
    race(case, COPY_UP, Guard::Tree, &[Overlay]);
}

/// How many tries there are.
fn tries(race: &str) -> u64 {
    // The kernel writes each copied file to the disk.
    let if_not_set = if race == COPY_UP { 500 } else { 2_000 };
    std::env::var("JANUS_TEST_TRIES").ok().and_then(|tries| tries.parse().ok()).unwrap_or(if_not_set)
}

fn race(case: &Case, name: &str, guard: Guard, situations: &[Situation]) {
    let lost: Vec<String> = situations
        .iter()
        .filter_map(|situation| {
            let raced = race_in(case, name, guard, *situation);
            let held = raced.as_ref().is_ok_and(|raced| match case.janus {
                Janus::Guards => raced.escaped == 0 && raced.spun_escaped == 0 && raced.denied >= raced.tries,
                Janus::Absent => raced.escaped >= raced.tries && raced.denied == 0,
            });
            (!held).then(|| format!("{situation:?}: {raced:?}"))
        })
        .collect();
    assert!(lost.is_empty(), "{}", lost.join("\n  "));
}

fn race_in(case: &Case, name: &str, guard: Guard, situation: Situation) -> Result<Raced, String> {
    let rooms = vec![(name.to_owned(), guard, Room::name(name, guard))];
    let world = World::start_in(case, &format!("{situation:?}"), situation, rooms);
    let room = world.room(name, guard);
    let _janusd = world.guard(case, std::slice::from_ref(&room));
    world.inside.race(room)
}

/// What came of a race.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Raced {
    tries: u64,
    /// Opens by a guarded name that went through, and that were refused.
    escaped: u64,
    denied: u64,
    /// Opens by the amplifiers, by either name; and those by the guarded name.
    spun: u64,
    spun_escaped: u64,
    spun_denied: u64,
}

/// Files that the lower layer holds for [`copy_up`].
pub(super) const COPY_UP: &str = "race-copy-up";

/// They are there before the container is.
pub(super) fn fill(dir: &Path) -> io::Result<()> {
    (0..tries(COPY_UP)).try_for_each(|turn| fs::write(dir.join("denied").join(turn.to_string()), SECRET))
}

/// Inside an agent: the race of this room.
pub(crate) fn run(room: &Room) -> io::Result<Raced> {
    let (target, aside) = (room.target(), room.at("aside"));
    let tries = tries(&room.route);
    let spinners = [Spinner::start(&target, true)?, Spinner::start(&aside, false)?];
    let mut raced = Raced { tries, ..Raced::default() };
    for turn in 0..tries {
        let opened = match room.route.as_str() {
            "race-atomic-write" => write_aside(&aside).and_then(|()| fs::rename(&aside, &target)).map(|()| &target),
            "race-made-anew" => fs::remove_file(&target)
                .and_then(|()| write_aside(&aside))
                .and_then(|()| fs::rename(&aside, &target))
                .map(|()| &target),
            "race-same-number" => same_number(&aside, &target).map(|()| &target),
            "race-hard-link" => {
                // Another file each time: one that was seen inside is denied by its other name as well.
                write_aside(&aside)
                    .and_then(|()| fs::remove_file(&target))
                    .and_then(|()| fs::hard_link(&aside, &target))
                    .and_then(|()| fs::remove_file(&aside))
                    .map(|()| &target)
            }
            "race-data-swap" => atomic_writer::rotate(&room.at("keys")).map(|()| &target),
            "race-dropped-caches" => {
                if turn % 8 == 0 {
                    drop_caches();
                }
                Ok(&target)
            }
            COPY_UP => {
                let file = room.at("denied").join(turn.to_string());
                raced.count(open(&file))?;
                fs::set_permissions(&file, Permissions::from_mode(0o600))?;
                raced.count(open(&file))?;
                Ok(&target)
            }
            other => Err(io::Error::other(format!("no such race: {other}"))),
        }?;
        raced.count(open(opened))?;
    }
    for spinner in spinners {
        spinner.stop(&mut raced)?;
    }
    Ok(raced)
}

impl Raced {
    fn count(&mut self, opened: io::Result<Opened>) -> io::Result<()> {
        match opened? {
            Opened::Passed => self.escaped += 1,
            Opened::Denied => self.denied += 1,
            Opened::Absent => {}
        }
        Ok(())
    }
}

/// Written under a name that no rule denies, and opened by it until whoever remembers has remembered.
fn write_aside(aside: &Path) -> io::Result<()> {
    fs::write(aside, SECRET)?;
    for _ in 0..2 {
        let _allowed = File::open(aside)?;
    }
    Ok(())
}

fn same_number(aside: &Path, target: &Path) -> io::Result<()> {
    write_aside(aside)?;
    if target.exists() {
        fs::remove_file(target)?;
    }
    fs::remove_file(aside)?;
    Ok(mknodat(CWD, target, FileType::RegularFile, Mode::from_raw_mode(0o644), 0)?)
}

#[derive(Clone, Copy)]
enum Opened {
    Passed,
    Denied,
    /// Between two tries there is none.
    Absent,
}

fn open(path: &Path) -> io::Result<Opened> {
    match rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(_closed_at_once) => Ok(Opened::Passed),
        Err(Errno::PERM) => Ok(Opened::Denied),
        Err(Errno::NOENT) => Ok(Opened::Absent),
        Err(error) => Err(error.into()),
    }
}

/// An amplifier: opens one name all the time.
struct Spinner {
    shared: Arc<Spun>,
    thread: JoinHandle<io::Result<()>>,
    guarded: bool,
}

#[derive(Default)]
struct Spun {
    stop: AtomicBool,
    total: AtomicU64,
    passed: AtomicU64,
    denied: AtomicU64,
}

impl Spinner {
    fn start(path: &Path, guarded: bool) -> io::Result<Spinner> {
        let shared = Arc::new(Spun::default());
        let (spun, path): (_, PathBuf) = (Arc::clone(&shared), path.to_owned());
        let thread = std::thread::Builder::new().spawn(move || {
            while !spun.stop.load(Ordering::Relaxed) {
                match open(&path)? {
                    Opened::Passed => spun.passed.fetch_add(1, Ordering::Relaxed),
                    Opened::Denied => spun.denied.fetch_add(1, Ordering::Relaxed),
                    Opened::Absent => 0,
                };
                spun.total.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        })?;
        // It takes part in the first try as well.
        while shared.total.load(Ordering::Relaxed) == 0 && !thread.is_finished() {
            std::thread::yield_now();
        }
        Ok(Spinner { shared, thread, guarded })
    }

    fn stop(self, raced: &mut Raced) -> io::Result<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_panic| io::Error::other("a spinner panicked"))??;
        raced.spun += self.shared.total.load(Ordering::Relaxed);
        if self.guarded {
            raced.spun_escaped += self.shared.passed.load(Ordering::Relaxed);
            raced.spun_denied += self.shared.denied.load(Ordering::Relaxed);
        }
        Ok(())
    }
}

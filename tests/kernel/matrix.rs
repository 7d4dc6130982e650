//! The attack matrix: every route to a guarded file, in every situation, tried on the real kernel.
//!
//! Flow: [`rows`] states what is expected of each route in each situation. For one situation a node and a container are
//! built, with a [`room`] for each route under each guard; the routes are prepared; one janusd with one guard denies
//! what all the rooms want denied; then every route is tried with cold caches and its answer compared.
//!
//! Guarantees: a cell fails in either direction, also when what is documented as open is denied; in the control,
//! without janusd, every route that exists must reach the file's bytes; and the table in README.md is what [`readme`]
//! makes of the same rows.

pub(crate) mod races;
pub(crate) mod readme;
pub(crate) mod room;
mod routes;
mod rows;
pub(crate) mod situation;
pub(crate) mod stage;
pub(crate) mod table;
pub(crate) mod world;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::agent;
use crate::case::{Case, Janus};
use crate::container::Agent;
use crate::daemon::{Janusd, Target};
use crate::watchdog::wait_until;

use room::Room;
use situation::{DIRECTORIES, Situation};
use stage::{Answer, Cue, Played};
use table::{Actor, Cell, Route};
use world::{Plan, rooms_inside, rooms_on_node};

crate::kernel_tests![
    overlay.lasting(120),
    overlay_index_on.lasting(120),
    user_namespace.lasting(120),
    secret.lasting(120),
    pod_volume.lasting(120),
    host_path.lasting(120),
    volume_ext4.needing("mkfs.ext4").lasting(120),
    volume_btrfs.needing("mkfs.btrfs").lasting(120),
    volume_xfs.needing("mkfs.xfs").lasting(120),
    one_file.lasting(120),
    directory.lasting(120),
    directory_ext4.needing("mkfs.ext4").lasting(120),
    directory_btrfs.needing("mkfs.btrfs").lasting(120),
    directory_xfs.needing("mkfs.xfs").lasting(120),
];

fn overlay(case: &Case) {
    try_every_route(case, Situation::Overlay);
}

fn overlay_index_on(case: &Case) {
    try_every_route(case, Situation::OverlayIndex);
}

fn user_namespace(case: &Case) {
    try_every_route(case, Situation::UserNamespace);
}

fn secret(case: &Case) {
    try_every_route(case, Situation::Tmpfs);
}

fn pod_volume(case: &Case) {
    try_every_route(case, Situation::PodVolume);
}

fn host_path(case: &Case) {
    try_every_route(case, Situation::HostPath);
}

fn volume_ext4(case: &Case) {
    try_every_route(case, Situation::Ext4);
}

fn volume_btrfs(case: &Case) {
    try_every_route(case, Situation::Btrfs);
}

fn volume_xfs(case: &Case) {
    try_every_route(case, Situation::Xfs);
}

fn one_file(case: &Case) {
    try_every_route(case, Situation::OneFile);
}

fn directory(case: &Case) {
    try_every_route(case, Situation::Directory);
}

fn directory_ext4(case: &Case) {
    try_every_route(case, Situation::DirectoryExt4);
}

fn directory_btrfs(case: &Case) {
    try_every_route(case, Situation::DirectoryBtrfs);
}

fn directory_xfs(case: &Case) {
    try_every_route(case, Situation::DirectoryXfs);
}

/// How long a cell that is gated soon may take.
const SOON: Duration = Duration::from_secs(2);

/// A node, what is guarded on it, and a janusd that starts there.
struct World {
    node: Agent,
    inside: Agent,
    situation: Situation,
    scratch: PathBuf,
}

impl World {
    fn start(case: &Case, situation: Situation, rooms: Vec<(String, room::Guard, String)>) -> World {
        World::start_in(case, "world", situation, rooms)
    }

    /// The same, beside another.
    fn start_in(case: &Case, scratch: &str, situation: Situation, rooms: Vec<(String, room::Guard, String)>) -> World {
        let scratch = case.scratch(scratch);
        fs::create_dir(&scratch).unwrap();
        Plan { situation, rooms }.write(&scratch).unwrap();
        let node = Agent::start(&case.watch, &["node".as_ref(), &scratch]);
        let (pid, this) = (PathBuf::from(node.pid.to_string()), std::env::current_exe().unwrap());
        let on_node = ["enter".as_ref(), pid.as_path(), &this, agent::WORD.as_ref()];
        let mode: &[&Path] =
            if situation.is(DIRECTORIES) { &["host".as_ref()] } else { &["matrix-container".as_ref(), &scratch] };
        let inside = Agent::start(&case.watch, &[&on_node, mode].concat());
        World { node, inside, situation, scratch }
    }

    fn room(&self, route: &str, guard: room::Guard) -> Room {
        let name = Room::name(route, guard);
        let on_node = rooms_on_node(self.situation, &self.scratch).map(|rooms| rooms.join(&name));
        let inside = Path::new(rooms_inside(self.situation)).join(&name);
        let dir = match &on_node {
            Some(dir) if self.situation.is(DIRECTORIES) => dir.clone(),
            _ => inside,
        };
        let named = if self.situation.is(DIRECTORIES) { Path::new("/").join(&name) } else { dir.clone() };
        Room {
            route: route.to_owned(),
            guard,
            situation: self.situation,
            dir,
            named,
            on_node,
            scratch: self.scratch.clone(),
            pid: self.inside.pid,
        }
    }

    fn actor(&self, actor: Actor) -> &Agent {
        match actor {
            Actor::Inside => &self.inside,
            Actor::Node => &self.node,
        }
    }

    fn prepare(&self, route: &Route, room: &Room) -> Played {
        if route.hold.is_some() {
            self.inside.play(Cue::Hold(room.clone()))?;
        }
        self.actor(route.actor).play(Cue::Prepare(room.clone()))
    }

    fn guard(&self, case: &Case, rooms: &[Room]) -> Janusd {
        if case.janus == Janus::Absent {
            return Janusd::absent();
        }
        let directory = rooms_on_node(self.situation, &self.scratch).filter(|_| self.situation.is(DIRECTORIES));
        let target = match &directory {
            Some(root) => Target::Root(root),
            None => Target::Pid(self.inside.pid),
        };
        Janusd::start_on(case, Some(self.node.pid), target, &room::manifest(rooms), &[])
    }
}

/// One cell under one guard, ready to be tried.
struct Entry {
    route: &'static Route,
    expected: Cell,
    room: Room,
}

fn try_every_route(case: &Case, situation: Situation) {
    let exists = |route: &&Route| !matches!(route.expected(situation), Cell::NotApplicable(_));
    let wanted: Vec<(&'static Route, room::Guard)> = table::routes()
        .filter(exists)
        .flat_map(|route| route.guards_in(situation).into_iter().map(move |guard| (route, guard)))
        .collect();
    let named = wanted.iter().map(|(route, guard)| (route.name.to_owned(), *guard, Room::name(route.name, *guard)));
    let world = World::start(case, situation, named.collect());
    let mut differences = Vec::new();
    let mut cells = Vec::new();
    for (route, guard) in wanted {
        let room = world.room(route.name, guard);
        match world.prepare(route, &room) {
            Ok(_) => cells.push(Entry { route, expected: route.expected(situation), room }),
            Err(why) => differences.push(format!("{} cannot be prepared: {why}", Room::name(route.name, guard))),
        }
    }
    let rooms: Vec<Room> = cells.iter().map(|cell| cell.room.clone()).collect();
    let _janusd = world.guard(case, &rooms);
    for cell in &cells {
        if let Err(difference) = try_cell(case, &world, cell) {
            differences.push(format!("{}: {difference}", Room::name(cell.route.name, cell.room.guard)));
        }
    }
    let (tried, failed) = (cells.len(), differences.len());
    assert!(differences.is_empty(), "{situation:?}: {failed} of {tried} differ\n  {}", differences.join("\n  "));
}

fn try_cell(case: &Case, world: &World, cell: &Entry) -> Result<(), String> {
    stage::drop_caches();
    let name = Room::name(&cell.room.route, cell.room.guard);
    let attempt = || {
        let played = world.actor(cell.route.actor).play(Cue::Attempt(name.clone()))?;
        played.ok_or_else(|| "no answer".to_owned())
    };
    let expected = match (case.janus, cell.expected) {
        (Janus::Absent, _) | (_, Cell::Open(_)) => Answer::Passed,
        (_, Cell::Gated) => Answer::Denied,
        (_, Cell::Soon(_)) => {
            wait_until(SOON, || attempt() == Ok(Answer::Denied));
            Answer::Denied
        }
        (_, Cell::Unsteady(_) | Cell::NotApplicable(_)) => return attempt().map(drop),
    };
    match attempt() {
        Ok(answer) if answer == expected => Ok(()),
        Ok(answer) => Err(format!("{answer:?}, expected {expected:?}")),
        Err(why) => Err(format!("expected {expected:?}, but {why}")),
    }
}

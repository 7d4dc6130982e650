//! The matrix itself: every route, and what is expected of it in every situation. README's table comes from here.

use std::io;

use super::room::{Guard, Room};
use super::routes::children::{self, Child};
use super::rows;
use super::situation::Situation;
use super::stage::{Attempt, Held};

/// What is expected of a route in a situation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cell {
    /// Denied at the first try.
    Gated,
    /// Denied within a moment and from then on, and why not at once.
    Soon(&'static str),
    /// Goes through, and why.
    Open(&'static str),
    /// May go through, and why nobody can tell.
    Unsteady(&'static str),
    /// There is no such thing, and why.
    NotApplicable(&'static str),
}

/// Who makes the attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Actor {
    /// A process of the guarded container; with `--root`, a process of the node.
    Inside,
    /// A process of the node.
    Node,
}

pub(crate) type Prepare = fn(&Room) -> io::Result<Attempt>;
pub(crate) type Hold = fn(&Room) -> io::Result<Held>;
pub(crate) type Except = (&'static [Situation], Cell);

/// One row.
pub(crate) struct Route {
    pub(crate) name: &'static str,
    /// For the README.
    pub(crate) title: &'static str,
    pub(crate) guards: &'static [Guard],
    pub(crate) actor: Actor,
    /// What the guarded container's process holds from before the guard.
    pub(crate) hold: Option<Hold>,
    pub(crate) prepare: Prepare,
    /// The first that names the situation counts.
    pub(crate) except: &'static [Except],
    pub(crate) otherwise: Cell,
}

impl Route {
    /// A route that is gated everywhere.
    pub(crate) const fn new(
        name: &'static str,
        title: &'static str,
        guards: &'static [Guard],
        prepare: Prepare,
    ) -> Route {
        Route { name, title, guards, actor: Actor::Inside, hold: None, prepare, except: &[], otherwise: Cell::Gated }
    }

    pub(crate) const fn by_node(self) -> Route {
        Route { actor: Actor::Node, ..self }
    }

    pub(crate) const fn held(self, hold: Hold) -> Route {
        Route { hold: Some(hold), ..self }
    }

    pub(crate) const fn except(self, except: &'static [Except]) -> Route {
        Route { except, ..self }
    }

    pub(crate) const fn otherwise(self, otherwise: Cell) -> Route {
        Route { otherwise, ..self }
    }

    pub(crate) const fn open(self, why: &'static str) -> Route {
        self.otherwise(Cell::Open(why))
    }

    /// The guards under which the route exists in a situation.
    pub(crate) fn guards_in(&self, situation: Situation) -> Vec<Guard> {
        let possible = |guard: &Guard| situation != Situation::OneFile || matches!(guard, Guard::File | Guard::Read);
        self.guards.iter().copied().filter(possible).collect()
    }

    pub(crate) fn expected(&self, situation: Situation) -> Cell {
        if self.guards_in(situation).is_empty() {
            return Cell::NotApplicable(rows::ONE_FILE_ONLY);
        }
        self.except.iter().find(|(group, _)| group.contains(&situation)).map_or(self.otherwise, |(_, cell)| *cell)
    }
}

/// Rows under a heading.
pub(crate) struct Group {
    pub(crate) title: &'static str,
    pub(crate) routes: &'static [Route],
}

pub(crate) fn routes() -> impl Iterator<Item = &'static Route> {
    rows::GROUPS.iter().flat_map(|group| group.routes)
}

pub(crate) fn route(name: &str) -> Option<&'static Route> {
    routes().find(|route| route.name == name)
}

/// What a child process of an agent can be asked for.
pub(crate) const CHILDREN: &[(&str, Child)] = &[
    ("user-namespace", children::in_a_user_namespace),
    ("overlay", children::by_an_overlay),
    ("execveat", children::execveat),
    ("execveat-o-path", children::execveat_o_path),
];

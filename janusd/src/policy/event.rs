//! The three events that a guard can speak of.

/// What a process asks the kernel for: one fanotify permission event (`fanotify(7)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Event {
    /// `FAN_OPEN_PERM`: open a file or a directory.
    Open,
    /// `FAN_ACCESS_PERM`: read a file, or list a directory.
    Access,
    /// `FAN_OPEN_EXEC_PERM`: open a file in order to execute it.
    Execute,
}

impl Event {
    /// All of them, in the order in which metrics and documentation list them.
    pub const ALL: [Event; 3] = [Event::Open, Event::Access, Event::Execute];

    /// The word that manifests and metric labels use: `open`, `access`, `execute`.
    pub const fn word(self) -> &'static str {
        match self {
            Event::Open => "open",
            Event::Access => "access",
            Event::Execute => "execute",
        }
    }

    /// The kernel's name as event lines show it: `OPEN_PERM`, `ACCESS_PERM`, `OPEN_EXEC_PERM`.
    pub const fn kernel_name(self) -> &'static str {
        match self {
            Event::Open => "OPEN_PERM",
            Event::Access => "ACCESS_PERM",
            Event::Execute => "OPEN_EXEC_PERM",
        }
    }
}

/// A set of [`Event`]s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Events(u8);

impl Events {
    /// No event.
    pub const NONE: Events = Events(0);

    /// This set and `event`.
    #[must_use]
    pub const fn with(self, event: Event) -> Events {
        Events(self.0 | 1 << event as u8)
    }

    /// Everything in either set.
    #[must_use]
    pub const fn union(self, other: Events) -> Events {
        Events(self.0 | other.0)
    }

    /// Whether `event` is in the set.
    pub const fn contains(self, event: Event) -> bool {
        self.0 & (1 << event as u8) != 0
    }

    /// Whether the set is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl FromIterator<Event> for Events {
    fn from_iter<I: IntoIterator<Item = Event>>(events: I) -> Self {
        events.into_iter().fold(Events::NONE, Events::with)
    }
}

//! Daemons that do as they are told and note what they were told, reached through the ports of `reconcile`.
//!
//! One is honest unless told otherwise: it keeps books, refuses lower epochs and generations, and names its state by a
//! digest. How it answers can be changed while a call waits.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use janus_controller::reconcile::port::{CallError, Daemon, Daemons, Lead, Lost, Refused, State};
use janus_proto::v1;
use tokio::sync::watch;
use tokio::time::{Duration, Instant};

/// Guard and pod.
pub(crate) type Unit = (String, String);

/// How something is answered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Reply {
    /// At once, and well.
    Well,
    /// Not yet: until this is another one.
    Not,
    /// With a no.
    Refused(Refused),
    /// The connection breaks over it.
    Broken,
    /// Well, and nothing is in force yet: until the daemon is told to arm it.
    Pending,
    /// Well, and nothing is done: the unit is on its way out.
    Leaving,
    /// Well, and nothing is done: the unit is what it was, or nothing.
    Ignored,
}

/// What a daemon was told.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Told {
    /// A connection is asked for.
    Connect,
    /// Its state is; with a digest, or without.
    Look(bool),
    /// CreateGuard: the unit, its generation and containers.
    Create(Unit, i64, Vec<String>),
    /// DestroyGuard.
    Destroy(Unit),
}

/// One daemon.
#[derive(Debug)]
pub(crate) struct Fake {
    pub(crate) node: String,
    /// Whether it can be reached.
    pub(crate) up: bool,
    pub(crate) features: Vec<String>,
    pub(crate) units: BTreeMap<Unit, v1::GuardState>,
    /// How calls are answered, by guard; well, where nothing is said.
    pub(crate) create: HashMap<String, Reply>,
    pub(crate) destroy: Reply,
    pub(crate) look: Reply,
    /// Whoever connects next panics.
    pub(crate) panics: bool,
    /// Whether a state that has not changed is said to be so.
    pub(crate) digests: bool,
    /// It says that its state has not changed, whatever was named.
    pub(crate) lies: bool,
    pub(crate) epoch: u64,
    /// Differs with each run, and each change.
    version: u64,
    /// Grows when connections are cut.
    cut: u64,
    pub(crate) told: Vec<(Instant, Told)>,
}

impl Fake {
    fn new(node: &str) -> Fake {
        Fake {
            node: node.to_owned(),
            up: true,
            features: vec!["guard-v1".to_owned(), "audit-log".to_owned()],
            units: BTreeMap::new(),
            create: HashMap::new(),
            destroy: Reply::Well,
            look: Reply::Well,
            panics: false,
            digests: true,
            lies: false,
            epoch: 0,
            version: 1,
            cut: 0,
            told: Vec::new(),
        }
    }

    /// How CreateGuard of a guard is answered from now on.
    pub(crate) fn answers(&mut self, guard: &str, reply: Reply) {
        self.create.insert(guard.to_owned(), reply);
    }

    /// It starts anew, with nothing.
    pub(crate) fn restart(&mut self) {
        self.units.clear();
        self.version += 1000;
        self.cut += 1;
    }

    /// Changes what it holds, as if by itself.
    pub(crate) fn changed(&mut self) {
        self.version += 1;
    }

    pub(crate) fn count(&self, is: impl Fn(&Told) -> bool) -> usize {
        self.told.iter().filter(|(_, told)| is(told)).count()
    }

    pub(crate) fn creates(&self) -> usize {
        self.count(|told| matches!(told, Told::Create(..)))
    }

    fn note(&mut self, told: Told) {
        self.told.push((Instant::now(), told));
    }
}

/// All daemons, by address.
#[derive(Clone)]
pub(crate) struct Script {
    daemons: Arc<Mutex<HashMap<IpAddr, Fake>>>,
    changes: Arc<watch::Sender<u64>>,
}

impl Script {
    pub(crate) fn new() -> Script {
        Script { daemons: Arc::default(), changes: Arc::new(watch::Sender::new(0)) }
    }

    pub(crate) fn add(&self, address: &str, node: &str) {
        self.lock().insert(address.parse().unwrap(), Fake::new(node));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Fake>> {
        self.daemons.lock().unwrap()
    }

    /// Does something with, or to, a daemon.
    pub(crate) fn at<T>(&self, address: &str, act: impl FnOnce(&mut Fake) -> T) -> T {
        self.with(&address.parse().unwrap(), act)
    }

    fn with<T>(&self, address: &IpAddr, act: impl FnOnce(&mut Fake) -> T) -> T {
        let result = act(self.lock().get_mut(address).expect("a daemon of the script"));
        self.changes.send_modify(|changes| *changes += 1);
        result
    }

    /// Waits until a daemon is as asked, for a minute of the test's clock.
    pub(crate) async fn until(&self, address: &str, what: &str, is: impl Fn(&Fake) -> bool) {
        let address = address.parse().unwrap();
        let wait = self.wait(|| is(&self.lock()[&address]));
        if tokio::time::timeout(Duration::from_secs(60), wait).await.is_err() {
            panic!("not within a minute: {what}: {:?}", self.lock()[&address]);
        }
    }

    async fn wait(&self, is: impl Fn() -> bool) {
        let mut changes = self.changes.subscribe();
        while !is() {
            changes.changed().await.unwrap();
        }
    }
}

/// A connection.
#[derive(Clone)]
pub(crate) struct Link {
    script: Script,
    address: IpAddr,
    cut: u64,
}

fn lost(text: &str) -> Lost {
    Lost { word: "closed", text: text.to_owned() }
}

fn refused(cause: Refused) -> CallError {
    CallError::Refused { cause, message: "no".to_owned() }
}

impl Daemons for Script {
    type Daemon = Link;

    async fn connect(&self, address: IpAddr) -> Result<Link, Lost> {
        if !self.lock().contains_key(&address) {
            return Err(lost("nobody there"));
        }
        let panics = self.with(&address, |fake| std::mem::take(&mut fake.panics));
        assert!(!panics, "as the script has it");
        self.with(&address, |fake| {
            fake.note(Told::Connect);
            if fake.up { Ok(fake.cut) } else { Err(lost("down")) }
        })
        .map(|cut| Link { script: self.clone(), address, cut })
    }
}

impl Link {
    fn is_cut(&self, fake: &Fake) -> bool {
        fake.cut != self.cut || !fake.up
    }

    /// The reply, once there is one.
    async fn reply(&self, of: impl Fn(&Fake) -> Reply) -> Result<Reply, CallError> {
        let ready = |fake: &Fake| self.is_cut(fake) || of(fake) != Reply::Not;
        self.script.wait(|| ready(&self.script.lock()[&self.address])).await;
        let daemons = self.script.lock();
        let fake = &daemons[&self.address];
        let reply = of(fake);
        if self.is_cut(fake) || reply == Reply::Broken { Err(lost("cut").into()) } else { Ok(reply) }
    }
}

impl Daemon for Link {
    async fn closed(&self) {
        self.script.wait(|| self.is_cut(&self.script.lock()[&self.address])).await;
    }

    async fn state(&self, digest: Vec<u8>) -> Result<State, CallError> {
        // What it says is how it is now, whenever it says so.
        let state = self.script.with(&self.address, |fake| {
            fake.note(Told::Look(!digest.is_empty()));
            let name = format!("{}", fake.version).into_bytes();
            let unchanged = fake.digests && digest == name || fake.lies;
            let guards: Vec<_> = if unchanged { Vec::new() } else { fake.units.values().cloned().collect() };
            let header = v1::StateHeader {
                node: fake.node.clone(),
                digest: if fake.digests { name } else { Vec::new() },
                unchanged,
                guards: guards.len().try_into().unwrap(),
                features: fake.features.clone(),
                ..Default::default()
            };
            State { header, guards }
        });
        match self.reply(|fake| fake.look).await? {
            Reply::Refused(cause) => Err(refused(cause)),
            _ => Ok(state),
        }
    }

    async fn create(&self, request: v1::CreateGuardRequest) -> Result<v1::GuardState, CallError> {
        let (caller, guard, pod) = (request.caller.unwrap(), request.guard.unwrap(), request.pod.unwrap());
        let unit = (guard.uid.clone(), pod.uid.clone());
        let ids = request.container_ids;
        self.script.with(&self.address, |fake| {
            let ids = ids.iter().map(|it| it.id.clone()).collect();
            fake.note(Told::Create(unit.clone(), guard.generation, ids));
        });
        let reply = self.reply(|fake| fake.create.get(&guard.uid).copied().unwrap_or(Reply::Well)).await?;
        if let Reply::Refused(cause) = reply {
            return Err(refused(cause));
        }
        self.script.with(&self.address, |fake| {
            if caller.epoch < fake.epoch {
                return Err(refused(Refused::StaleEpoch));
            }
            fake.epoch = caller.epoch;
            let before = fake.units.get(&unit);
            if before.is_some_and(|before| before.accepted_generation > guard.generation) {
                return Err(refused(Refused::StaleGeneration));
            }
            let pending = reply == Reply::Pending;
            let mut containers = before.map_or_else(Vec::new, |before| before.containers.clone());
            containers.retain(|old| ids.iter().all(|new| new.id != old.id));
            let named = |it: &v1::ContainerId| v1::ContainerState {
                name: it.name.clone(),
                id: it.id.clone(),
                in_force: !pending,
            };
            containers.extend(ids.iter().map(named));
            let in_force = if pending { before.map_or(0, generation) } else { guard.generation };
            let phase = if pending { v1::GuardPhase::Pending } else { v1::GuardPhase::InForce };
            if matches!(reply, Reply::Leaving | Reply::Ignored) {
                let phase = if reply == Reply::Leaving { v1::GuardPhase::Draining } else { v1::GuardPhase::Pending };
                let accepted_generation = before.map_or(0, |before| before.accepted_generation);
                let names = v1::GuardRef { generation: accepted_generation, ..guard };
                let (guard, pod, phase) = (Some(names), Some(pod), phase.into());
                return Ok(v1::GuardState { guard, pod, phase, accepted_generation, ..Default::default() });
            }
            let state = v1::GuardState {
                accepted_generation: guard.generation,
                guard: Some(v1::GuardRef { generation: in_force, ..guard.clone() }),
                pod: Some(pod.clone()),
                phase: phase.into(),
                containers,
                ..Default::default()
            };
            fake.units.insert(unit.clone(), state.clone());
            fake.changed();
            Ok(state)
        })
    }

    async fn destroy(&self, request: v1::DestroyGuardRequest) -> Result<bool, CallError> {
        let (caller, guard, pod) = (request.caller.unwrap(), request.guard.unwrap(), request.pod.unwrap());
        let unit = (guard.uid.clone(), pod.uid.clone());
        self.script.with(&self.address, |fake| fake.note(Told::Destroy(unit.clone())));
        match self.reply(|fake| fake.destroy).await? {
            Reply::Refused(cause) => return Err(refused(cause)),
            Reply::Pending => {
                self.script.with(&self.address, |fake| {
                    if let Some(state) = fake.units.get_mut(&unit) {
                        state.set_phase(v1::GuardPhase::Draining);
                        fake.changed();
                    }
                });
                return Ok(false);
            }
            _ => {}
        }
        self.script.with(&self.address, |fake| {
            if caller.epoch < fake.epoch {
                return Err(refused(Refused::StaleEpoch));
            }
            fake.epoch = caller.epoch;
            fake.units.remove(&unit);
            fake.changed();
            Ok(true)
        })
    }
}

fn generation(state: &v1::GuardState) -> i64 {
    state.guard.as_ref().map_or(0, |guard| guard.generation)
}

/// A mandate that a test can take away.
#[derive(Clone)]
pub(crate) struct Mandate {
    epoch: Arc<AtomicU64>,
    holds: Arc<AtomicBool>,
}

impl Mandate {
    pub(crate) fn new(epoch: u64) -> Mandate {
        Mandate { epoch: Arc::new(epoch.into()), holds: Arc::new(true.into()) }
    }

    pub(crate) fn take_away(&self) {
        self.holds.store(false, Ordering::SeqCst);
    }
}

impl Lead for Mandate {
    fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    fn may_act(&self) -> bool {
        self.holds.load(Ordering::SeqCst)
    }
}

/// Lets the test's clock go on by so much, and all that happens meanwhile happen.
pub(crate) async fn wind(by: Duration) {
    tokio::time::sleep(by).await;
}

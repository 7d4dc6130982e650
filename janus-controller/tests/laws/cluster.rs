//! An API server that keeps guards and pods, tells watches of them, and notes what is written.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use janus_controller::reconcile::cluster::{Annotation, Cluster, GuardName, Happening, WriteError};
use janus_controller::reconcile::hub::Input;
use janus_crd::JanusGuardStatus;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::objects::{watched_guard, watched_pod};

/// What was written, and when.
#[derive(Debug, Default)]
pub(crate) struct Written {
    pub(crate) statuses: Vec<(Instant, String, JanusGuardStatus)>,
    pub(crate) finalizers: Vec<(Instant, String, Vec<String>)>,
    pub(crate) events: Vec<(Instant, String, Happening)>,
    pub(crate) annotations: Vec<(Instant, Annotation)>,
    /// Writes that were refused.
    pub(crate) refused: usize,
}

#[derive(Default)]
struct Objects {
    guards: BTreeMap<String, Value>,
    pods: BTreeMap<String, Value>,
    version: u64,
}

/// See the module.
#[derive(Clone)]
pub(crate) struct Api {
    objects: Arc<Mutex<Objects>>,
    written: Arc<Mutex<Written>>,
    watch: mpsc::UnboundedSender<Input>,
    behaviour: Arc<Mutex<Behaviour>>,
}

/// How it fails.
#[derive(Clone, Debug, Default)]
pub(crate) struct Behaviour {
    /// No write is taken.
    pub(crate) down: bool,
    /// Watches are told of nothing that was written by us.
    pub(crate) mute: bool,
    /// Annotations of this pod are refused.
    pub(crate) stubborn: Option<&'static str>,
}

impl Api {
    pub(crate) fn new() -> (Api, mpsc::UnboundedReceiver<Input>) {
        let (watch, inputs) = mpsc::unbounded_channel();
        let api = Api { objects: Arc::default(), written: Arc::default(), watch, behaviour: Arc::default() };
        (api, inputs)
    }

    /// The same, with watches that begin anew.
    pub(crate) fn rewatched(self) -> (Api, mpsc::UnboundedReceiver<Input>) {
        let (watch, inputs) = mpsc::unbounded_channel();
        (Api { watch, ..self }, inputs)
    }

    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap()
    }

    pub(crate) fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap()
    }

    pub(crate) fn behave(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap() = behaviour;
    }

    fn tell(&self, input: Input) {
        // A hub that has ended hears nothing.
        self.watch.send(input).ok();
    }

    // -- listings

    pub(crate) fn list_guards(&self) {
        self.tell(Input::Guards(Event::Init));
        for guard in self.objects().guards.values() {
            self.tell(Input::Guards(Event::InitApply(watched_guard(guard))));
        }
        self.tell(Input::Guards(Event::InitDone));
    }

    pub(crate) fn list_pods(&self) {
        self.tell(Input::Pods(Event::Init));
        for pod in self.objects().pods.values() {
            self.tell(Input::Pods(Event::InitApply(watched_pod(pod))));
        }
        self.tell(Input::Pods(Event::InitDone));
    }

    // -- what people do

    /// A guard is made, or its spec replaced: then its generation grows.
    pub(crate) fn guard(&self, mut guard: Value) {
        let uid = guard["metadata"]["uid"].as_str().unwrap().to_owned();
        let mut objects = self.objects();
        if let Some(before) = objects.guards.get(&uid) {
            let generation = before["metadata"]["generation"].as_i64().unwrap();
            guard["metadata"] = before["metadata"].clone();
            guard["metadata"]["generation"] = (generation + i64::from(before["spec"] != guard["spec"])).into();
            guard["status"] = before["status"].clone();
        }
        self.put(&mut objects, &uid, guard, false);
    }

    fn put(&self, objects: &mut Objects, uid: &str, mut guard: Value, echo: bool) {
        objects.version += 1;
        guard["metadata"]["resourceVersion"] = objects.version.to_string().into();
        objects.guards.insert(uid.to_owned(), guard.clone());
        if !(echo && self.behaviour.lock().unwrap().mute) {
            self.tell(Input::Guards(Event::Apply(watched_guard(&guard))));
        }
    }

    /// A guard is deleted; it stays while it has finalizers.
    pub(crate) fn delete_guard(&self, uid: &str) {
        let mut objects = self.objects();
        let mut guard = objects.guards[uid].clone();
        guard["metadata"]["deletionTimestamp"] = "2026-01-02T03:04:05Z".into();
        self.put(&mut objects, uid, guard, false);
    }

    pub(crate) fn has_guard(&self, uid: &str) -> bool {
        self.objects().guards.contains_key(uid)
    }

    pub(crate) fn pod(&self, pod: Value) {
        let uid = pod["metadata"]["uid"].as_str().unwrap().to_owned();
        self.tell(Input::Pods(Event::Apply(watched_pod(&pod))));
        self.objects().pods.insert(uid, pod);
    }

    pub(crate) fn delete_pod(&self, uid: &str) {
        if let Some(pod) = self.objects().pods.remove(uid) {
            self.tell(Input::Pods(Event::Delete(watched_pod(&pod))));
        }
    }

    // -- what is asked of it

    /// The status that was written last.
    pub(crate) fn status(&self, uid: &str) -> JanusGuardStatus {
        let written = self.written();
        let status = written.statuses.iter().rfind(|(_, of, _)| of == uid);
        status.unwrap_or_else(|| panic!("no status of {uid}")).2.clone()
    }

    /// A condition, as `True AsSpecified`.
    pub(crate) fn condition(&self, uid: &str, kind: &str) -> String {
        let status = self.status(uid);
        let condition = status.conditions.iter().find(|it| it.type_ == kind).unwrap();
        format!("{} {}", condition.status, condition.reason)
    }

    /// Events of a guard, by reason.
    pub(crate) fn events(&self, uid: &str, reason: &str) -> Vec<String> {
        let written = self.written();
        let events = written.events.iter().filter(|(_, of, happening)| of == uid && happening.reason == reason);
        events.map(|(_, _, happening)| happening.note.clone()).collect()
    }

    fn refuse(&self, why: WriteError) -> Result<(), WriteError> {
        self.written().refused += 1;
        Err(why)
    }

    fn is_down(&self) -> bool {
        self.behaviour.lock().unwrap().down
    }
}

impl Cluster for Api {
    async fn status(&self, guard: GuardName, status: JanusGuardStatus) -> Result<(), WriteError> {
        if self.is_down() {
            return self.refuse(WriteError::Failed("down".to_owned()));
        }
        let mut objects = self.objects();
        let Some(mut object) = objects.guards.get(&*guard.uid).cloned() else { return self.refuse(WriteError::Gone) };
        object["status"] = serde_json::to_value(&status).unwrap();
        self.written().statuses.push((Instant::now(), guard.uid.to_string(), status));
        self.put(&mut objects, &guard.uid, object, true);
        Ok(())
    }

    async fn finalizers(&self, guard: GuardName, version: Box<str>, finalizers: Vec<String>) -> Result<(), WriteError> {
        if self.is_down() {
            return self.refuse(WriteError::Failed("down".to_owned()));
        }
        let mut objects = self.objects();
        let Some(mut object) = objects.guards.get(&*guard.uid).cloned() else { return self.refuse(WriteError::Gone) };
        if object["metadata"]["resourceVersion"] != *version {
            return self.refuse(WriteError::Conflict);
        }
        let last = finalizers.is_empty();
        object["metadata"]["finalizers"] = json!(finalizers);
        self.written().finalizers.push((Instant::now(), guard.uid.to_string(), finalizers));
        if last && object["metadata"]["deletionTimestamp"].is_string() {
            objects.guards.remove(&*guard.uid);
            self.tell(Input::Guards(Event::Delete(watched_guard(&object))));
        } else {
            self.put(&mut objects, &guard.uid, object, true);
        }
        Ok(())
    }

    async fn publish(&self, guard: GuardName, happening: Happening) -> Result<(), WriteError> {
        if self.is_down() {
            return self.refuse(WriteError::Failed("down".to_owned()));
        }
        self.written().events.push((Instant::now(), guard.uid.to_string(), happening));
        Ok(())
    }

    async fn annotate(&self, annotation: Annotation) -> Result<(), WriteError> {
        if self.behaviour.lock().unwrap().stubborn == Some(&*annotation.pod) {
            return self.refuse(WriteError::Failed("no".to_owned()));
        }
        let pod = self.objects().pods.get(&*annotation.uid).cloned();
        let Some(mut pod) = pod else { return self.refuse(WriteError::Gone) };
        match &annotation.guards {
            Some(guards) => pod["metadata"]["annotations"]["clustergarage.io/janus-guard"] = guards.as_str().into(),
            None => pod["metadata"]["annotations"] = json!({}),
        }
        self.written().annotations.push((Instant::now(), annotation));
        self.pod(pod);
        Ok(())
    }
}

//! Requests as clients of Kubernetes make them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, stream};
use serde_json::{Value, json};

use super::store::{Kind, Refused, Selection, bookmark, event};
use super::{Desk, Faults, SPARED, patch};

/// The largest body.
const LARGEST: usize = 3 * 1024 * 1024;
/// Objects on a page when nobody says how many.
const PAGE: usize = 100_000;
/// Between two bookmarks.
const BOOKMARKS: Duration = Duration::from_secs(5);

/// What a path names.
struct Place {
    kind: Kind,
    namespace: Option<String>,
    name: Option<String>,
    status: bool,
}

impl Place {
    fn of(path: &str) -> Option<Place> {
        let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        // api/v1, or apis/GROUP/VERSION.
        parts.drain(..if parts.first() == Some(&"api") { 2 } else { 3.min(parts.len()) });
        let (namespace, rest) = match parts.as_slice() {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some((*namespace).to_owned()), rest),
            rest => (None, rest),
        };
        let (plural, name, status) = match rest {
            [plural] => (plural, None, false),
            [plural, name] => (plural, Some((*name).to_owned()), false),
            [plural, name, "status"] => (plural, Some((*name).to_owned()), true),
            _ => return None,
        };
        Some(Place { kind: Kind::of(plural)?, namespace, name, status })
    }
}

pub(super) async fn answer(State(desk): State<Arc<Desk>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let Some(place) = Place::of(head.uri.path()) else { return refused(&Refused::NotFound) };
    let query: HashMap<String, String> = head.uri.query().map(parse_query).unwrap_or_default();
    let media = head.headers.get(header::CONTENT_TYPE).and_then(|it| it.to_str().ok()).unwrap_or_default().to_owned();
    let Ok(body) = axum::body::to_bytes(body, LARGEST).await else { return StatusCode::BAD_REQUEST.into_response() };
    let writes = head.method != Method::GET;
    let (faults, number) = {
        let mut counted = desk.counted.lock();
        counted.requests += 1;
        counted.writes += u64::from(writes);
        counted.leases += u64::from(place.kind == Kind::Lease);
        let spared = head.headers.contains_key(SPARED);
        (if spared { Faults::default() } else { desk.faults.lock().clone() }, counted.requests)
    };
    tokio::time::sleep(faults.slow).await;
    if faults.silent && place.kind != Kind::Lease {
        return std::future::pending().await;
    }
    if faults.busy && place.kind != Kind::Lease {
        return failed(429, "TooManyRequests", "as the test has it");
    }
    let hit = |one_of: u64| one_of > 0 && number.is_multiple_of(one_of);
    if hit(faults.errors) {
        return failed(500, "InternalError", "as the test has it");
    }
    if writes && hit(faults.conflicts) {
        return refused(&Refused::Conflict("as the test has it".to_owned()));
    }
    let answer = if writes { write(&desk, &head.method, place, &media, &body) } else { read(&desk, place, &query) };
    if writes && hit(faults.lies) {
        return failed(500, "InternalError", "it was done all the same");
    }
    answer
}

fn read(desk: &Arc<Desk>, place: Place, query: &HashMap<String, String>) -> Response {
    let Place { kind, namespace, name, .. } = place;
    if let Some(name) = name {
        let found = desk.store.lock().get(kind, &namespace.unwrap_or_default(), &name);
        return found.map_or_else(|| refused(&Refused::NotFound), |object| done(&object));
    }
    let selection = match select(namespace, query) {
        Ok(selection) => selection,
        Err(wrong) => return failed(400, "BadRequest", &wrong),
    };
    let text = |key: &str| query.get(key).map(String::as_str).unwrap_or_default();
    if matches!(text("watch"), "true" | "1") {
        desk.counted.lock().watches += 1;
        return watch(desk.clone(), kind, selection, text("resourceVersion"), text("sendInitialEvents") == "true");
    }
    desk.counted.lock().lists += 1;
    let limit = text("limit").parse().ok().filter(|limit| *limit > 0).unwrap_or(PAGE);
    // `version/namespace/name`: what a list says of its version is what its first page saw.
    let mut place = text("continue").splitn(3, '/');
    let first = place.next().and_then(|it| it.parse().ok());
    let after = place.next().zip(place.next()).map(|(namespace, name)| (namespace.to_owned(), name.to_owned()));
    let page = desk.store.lock().list(kind, &selection, after, limit);
    let version: u64 = first.unwrap_or(page.version);
    let next = page.next.map(|(namespace, name)| format!("{version}/{namespace}/{name}")).unwrap_or_default();
    let (api_version, word) = kind.words();
    let mut text = format!(
        "{{\"apiVersion\":\"{api_version}\",\"kind\":\"{word}List\",\
         \"metadata\":{{\"resourceVersion\":\"{version}\",\"continue\":\"{next}\"}},\"items\":["
    );
    for (index, object) in page.objects.iter().enumerate() {
        text.push_str(if index == 0 { "" } else { "," });
        text.push_str(&object.text);
    }
    text.push_str("]}");
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// Where a watch is.
struct Watching {
    desk: Arc<Desk>,
    kind: Kind,
    selection: Selection,
    version: u64,
    news: tokio::sync::watch::Receiver<u64>,
    ends: tokio::sync::watch::Receiver<u64>,
    over: bool,
}

fn watch(desk: Arc<Desk>, kind: Kind, selection: Selection, version: &str, initial: bool) -> Response {
    let mut first = Vec::new();
    let (news, mut ends) = (desk.news.subscribe(), desk.watches.subscribe());
    ends.mark_unchanged();
    let version = if initial || matches!(version, "" | "0") {
        let page = desk.store.lock().list(kind, &selection, None, usize::MAX);
        first.extend(page.objects.iter().map(|object| event("ADDED", &object.text)));
        if initial {
            first.push(bookmark(kind, page.version, true));
        }
        page.version
    } else {
        version.parse().unwrap_or_default()
    };
    let watching = Watching { desk, kind, selection, version, news, ends, over: false };
    let later = stream::unfold(watching, |mut watching| async move {
        if watching.over {
            return None;
        }
        loop {
            watching.news.mark_unchanged();
            let since = {
                let mut store = watching.desk.store.lock();
                store.since(watching.kind, &watching.selection, watching.version)
            };
            match since {
                None => {
                    watching.over = true;
                    let status = status(410, "Expired", "too old resource version");
                    return Some((event("ERROR", &status.to_string()), watching));
                }
                Some((lines, version)) => {
                    watching.version = version;
                    if !lines.is_empty() {
                        return Some((lines.concat(), watching));
                    }
                }
            }
            tokio::select! {
                Ok(()) = watching.news.changed() => {}
                () = tokio::time::sleep(BOOKMARKS) => {
                    return Some((bookmark(watching.kind, watching.version, false), watching));
                }
                _ = watching.ends.changed() => return None,
            }
        }
    });
    let lines = stream::iter(first).chain(later).map(|line| Ok::<_, std::convert::Infallible>(Bytes::from(line)));
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(lines)).into_response()
}

fn write(desk: &Desk, method: &Method, place: Place, media: &str, body: &[u8]) -> Response {
    let Place { kind, namespace, name, status } = place;
    let namespace = namespace.unwrap_or_default();
    let sent: Value = match serde_json::from_slice(body) {
        Ok(sent) => sent,
        Err(_) if body.is_empty() => Value::Null,
        Err(error) => return failed(400, "BadRequest", &error.to_string()),
    };
    let mut store = desk.store.lock();
    let written = match (method, name) {
        (&Method::POST, None) => {
            let mut object = sent;
            if !namespace.is_empty() {
                object["metadata"]["namespace"] = namespace.into();
            }
            if let Some(prefix) = object["metadata"]["generateName"].as_str()
                && object["metadata"]["name"].is_null()
            {
                object["metadata"]["name"] = format!("{prefix}{}", store.version()).into();
            }
            store.create(kind, object)
        }
        (&Method::DELETE, Some(name)) => {
            let uid = sent["preconditions"]["uid"].as_str();
            store.delete(kind, &namespace, &name, uid).map(|()| json!({ "kind": "Status", "status": "Success" }))
        }
        (&Method::PUT | &Method::PATCH, Some(name)) => {
            let old = store.get(kind, &namespace, &name);
            changed(old, method, media, &sent, status).and_then(|mut object| {
                object["metadata"]["namespace"] = namespace.into();
                object["metadata"]["name"] = name.into();
                store.replace(kind, object)
            })
        }
        _ => Err(Refused::Invalid(format!("{method} is not known here"))),
    };
    drop(store);
    desk.tell();
    match written {
        Ok(object) => done(&object),
        Err(why) => refused(&why),
    }
}

/// The object as a PUT or a PATCH wants it.
fn changed(old: Option<Value>, method: &Method, media: &str, sent: &Value, status: bool) -> Result<Value, Refused> {
    let old = old.ok_or(Refused::NotFound)?;
    let mut new = old.clone();
    if method == Method::PUT {
        new = sent.clone();
    } else if media.contains("json-patch+json") {
        patch::operate(&mut new, sent).map_err(Refused::Invalid)?;
    } else if status && media.contains("apply-patch") {
        new["status"] = sent["status"].clone();
    } else {
        patch::merge(&mut new, sent);
    }
    // A subresource changes nothing else; the resource does not change it. Annotations of pods go by their status, too.
    if status {
        let (status, metadata) = (new["status"].clone(), new["metadata"]["annotations"].clone());
        new = old;
        new["status"] = status;
        if !metadata.is_null() {
            new["metadata"]["annotations"] = metadata;
        }
    } else if let Some(status) = old.get("status") {
        new["status"] = status.clone();
    }
    for field in ["resourceVersion", "uid"] {
        match sent.pointer(&format!("/metadata/{field}")) {
            Some(asked) => new["metadata"][field] = asked.clone(),
            // Of a patch that says nothing of it.
            None => new["metadata"][field] = Value::String(String::new()),
        }
    }
    Ok(new)
}

fn select(namespace: Option<String>, query: &HashMap<String, String>) -> Result<Selection, String> {
    let parse = |key: &str| {
        let text = query.get(key).map(String::as_str).unwrap_or_default();
        let parts = text.split(',').filter(|part| !part.is_empty());
        let one = |part: &str| {
            let (name, same, value) = match part.split_once("!=") {
                Some((name, value)) => (name, false, value),
                None => part.split_once('=').map(|(name, value)| (name, true, value)).ok_or(part.to_owned())?,
            };
            Ok((name.to_owned(), same, value.trim_start_matches('=').to_owned()))
        };
        parts.map(one).collect::<Result<Vec<_>, String>>()
    };
    Ok(Selection { namespace, fields: parse("fieldSelector")?, labels: parse("labelSelector")? })
}

fn parse_query(query: &str) -> HashMap<String, String> {
    let decode = |text: &str| {
        let mut bytes = Vec::new();
        let mut rest = text.bytes();
        while let Some(byte) = rest.next() {
            match byte {
                b'+' => bytes.push(b' '),
                b'%' => {
                    let hex: String = rest.by_ref().take(2).map(char::from).collect();
                    bytes.push(u8::from_str_radix(&hex, 16).unwrap_or(b'?'));
                }
                byte => bytes.push(byte),
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (decode(key), decode(value))).collect()
}

fn done(object: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], object.to_string()).into_response()
}

fn refused(why: &Refused) -> Response {
    match why {
        Refused::NotFound => failed(404, "NotFound", "it is not there"),
        Refused::AlreadyExists => failed(409, "AlreadyExists", "it is there already"),
        Refused::Conflict(why) => failed(409, "Conflict", why),
        Refused::Invalid(why) => failed(422, "Invalid", why),
    }
}

fn failed(code: u16, reason: &str, message: &str) -> Response {
    let code_of = StatusCode::from_u16(code).unwrap();
    let body = status(code, reason, message).to_string();
    (code_of, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "reason": reason, "message": message, "code": code,
    })
}

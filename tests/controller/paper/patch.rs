//! Patches: RFC 7386, and of RFC 6902 what is used.

use serde_json::Value;

/// Puts `patch` into `target`; null removes.
pub(super) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Value::Object(into) = target else { return };
    for (key, value) in fields {
        if value.is_null() {
            into.remove(key);
        } else {
            merge(into.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// Carries out a list of operations. `Err`: one of them cannot be, or a test has failed.
pub(super) fn operate(target: &mut Value, operations: &Value) -> Result<(), String> {
    for operation in operations.as_array().ok_or("not a list")? {
        let text = |key: &str| operation[key].as_str().unwrap_or_default().to_owned();
        let (what, path) = (text("op"), text("path"));
        let (parent, last) = path.rsplit_once('/').ok_or("no path")?;
        let last = last.replace("~1", "/").replace("~0", "~");
        if what == "test" {
            let have = target.pointer(&path).cloned().unwrap_or_default();
            if have != operation["value"] {
                return Err(format!("{path} is {have}"));
            }
            continue;
        }
        let parent = target.pointer_mut(parent).ok_or_else(|| format!("{path}: not there"))?;
        match (what.as_str(), parent) {
            ("add" | "replace", Value::Object(fields)) => drop(fields.insert(last, operation["value"].clone())),
            ("remove", Value::Object(fields)) => drop(fields.remove(&last)),
            ("add", Value::Array(items)) if last == "-" => items.push(operation["value"].clone()),
            ("remove", Value::Array(items)) => {
                let index: usize = last.parse().map_err(|_| "no index")?;
                if index >= items.len() {
                    return Err(format!("{path}: not there"));
                }
                items.remove(index);
            }
            (what, _) => return Err(format!("{what} of {path} is not known here")),
        }
    }
    Ok(())
}

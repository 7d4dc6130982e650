//! What the API server accepts and refuses, against `tests/vectors`, as `kubectl` sends it: fields are validated
//! strictly. Nothing is stored.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::Request;
use kube::Client;
use serde_json::Value;

use crate::case::Case;
use crate::cluster_tests;

cluster_tests![accepted, refused_and_the_field_named];

const LIMIT: Duration = Duration::from_secs(60);

/// What only janusd refuses, as `janus-crd` documents it. The rest of what is said there, unknown fields and `metadata`,
/// `apiVersion` and `kind`, the API server refuses by itself.
const LET_PASS: [&str; 2] = ["glob-class-reversed.yaml", "path-segment-256-mixed.yaml"];

/// What it refuses without naming the field as `kubectl` would: it looks at these before it looks at fields.
const IN_OTHER_WORDS: [&str; 4] =
    ["api-version-group.yaml", "api-version-missing.yaml", "api-version-wrong.yaml", "metadata-namespace-syntax.yaml"];

struct Vector {
    name: String,
    text: String,
}

impl Vector {
    fn head(&self, key: &str) -> Option<&str> {
        self.text.lines().take(3).find_map(|line| line.strip_prefix(key))
    }
}

fn vectors(verdict: &str) -> Vec<Vector> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors/manifests").join(verdict);
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let vector = |file: PathBuf| Vector {
        name: file.file_name().unwrap().to_string_lossy().into_owned(),
        text: fs::read_to_string(&file).unwrap(),
    };
    files.into_iter().map(vector).collect()
}

/// What the API server says to a manifest: nothing, or why not.
async fn refusal(client: &Client, vector: &Vector) -> Option<String> {
    let manifest: Value = serde_saphyr::from_str(&vector.text).unwrap();
    let namespace = manifest["metadata"]["namespace"].as_str().unwrap_or("default");
    let path = format!("/apis/januscontroller.clustergarage.io/v1alpha1/namespaces/{namespace}/janusguards");
    let request = Request::post(format!("{path}?dryRun=All&fieldValidation=Strict"))
        .header("content-type", "application/yaml")
        .body(vector.text.clone().into_bytes())
        .unwrap();
    match client.request::<Value>(request).await {
        Ok(_) => None,
        Err(kube::Error::Api(status)) => Some(status.message.clone()),
        Err(error) => panic!("{}: {error}", vector.name),
    }
}

fn accepted(case: &Case) {
    let api = case.api();
    api.admin().kubectl(&["create", "namespace", "web"]).success();
    let wrong = case.within(LIMIT, async {
        let client = api.admin().client().await;
        let mut wrong = Vec::new();
        for vector in vectors("accepted") {
            wrong.extend(refusal(&client, &vector).await.map(|why| format!("{}: {why}", vector.name)));
        }
        wrong
    });
    assert!(wrong.is_empty(), "refused:\n{}", wrong.join("\n"));
}

fn refused_and_the_field_named(case: &Case) {
    let api = case.api();
    let wrong = case.within(LIMIT, async {
        let client = api.admin().client().await;
        let mut wrong = Vec::new();
        for vector in vectors("refused") {
            let field = vector.head("# field: ").unwrap();
            let name = vector.name.as_str();
            let (passes, in_other_words) = (LET_PASS.contains(&name), IN_OTHER_WORDS.contains(&name));
            match refusal(&client, &vector).await {
                None if passes => assert_eq!(vector.head("# by: "), Some("daemon"), "{name}"),
                None => wrong.push(format!("{name}: accepted")),
                Some(why) if passes => wrong.push(format!("{name}: refused, but said to pass: {why}")),
                Some(why) if why.contains(field) == in_other_words => {
                    wrong.push(format!("{name}: is {field} named? {why}"));
                }
                Some(_) => {}
            }
        }
        wrong
    });
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

//! Debian's Prometheus beside the cluster, with the scrape configuration, the rules and the dashboard's queries of `deploy/`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::case::{Case, NODES};
use crate::deputy::Process;
use crate::e2e_tests;
use crate::janus::{Janus, Kind, NAMESPACE, deploy, level};
use crate::tenant::{Opened, PATIENCE, denies, deployment};

e2e_tests![
    prometheus_counts_what_pods_counted.needs("prometheus"),
    an_alert_fires_and_resolves.needs("prometheus"),
    every_query_of_the_dashboard_is_one.needs("prometheus"),
];

/// Nobody else is in the room.
const ADDRESS: &str = "127.0.0.1:9090";

const STOP: Duration = Duration::from_secs(10);

/// Denials that each pod sees.
const DENIALS: u64 = 40;

/// Opens by each pod's app.
const OPENS: u64 = 5;

fn prometheus_counts_what_pods_counted(case: &Case) {
    let janus = case.janus();
    let tenant = janus.tenant("counted");
    let prometheus = Prometheus::start(&janus);
    let pods = tenant.deploy(&deployment("web", NODES));
    // On a machine with too much to do an open may be answered by this, and counts all the same.
    let mut spec = denies("web", &["/etc/secret"], true);
    spec["failurePolicy"] = json!("Deny");
    tenant.guard("web", &spec, NODES.into());
    let script = format!(
        "n=0; i=0; while [ $i -lt {DENIALS} ]; do cat /etc/secret >/dev/null 2>&1 || n=$((n+1)); i=$((i+1)); done; echo $n"
    );
    let (mut counted, mut read) = (0, 0_u64);
    for (pod, _) in &pods {
        counted += tenant.kubectl(&["exec", pod, "--", "sh", "-c", &script]).success().trim().parse::<u64>().unwrap();
        for _ in 0..OPENS {
            match tenant.app(pod, "/etc/secret") {
                Opened::Read => read += 1,
                Opened::Denied => counted += 1,
            }
        }
    }
    assert!(counted >= DENIALS * u64::from(NODES) && read > 0, "{counted} denied, {read} read");
    let sum = |response: &str| {
        let labels = format!("namespace=\"{}\",guard=\"web\",event=\"open\",response=\"{response}\"", tenant.name);
        prometheus.value(&format!("sum by (namespace, guard) (janus_guard_events_total{{{labels}}})"))
    };
    let (denied, allowed) = (counted as f64, read as f64);
    // Whatever else is opened on the file system that the guard has marked is allowed, and counted too.
    let equal = level(PATIENCE, || sum("deny") == Some(denied) && sum("allow").is_some_and(|all| all >= allowed));
    assert!(equal, "pods counted {denied} and {allowed}, Prometheus {:?} and {:?}", sum("deny"), sum("allow"));
    eprintln!("pods counted {denied} denials, and so did Prometheus");
}

fn an_alert_fires_and_resolves(case: &Case) {
    const ALERT: &str = "JanusGuardUnguarded";
    let janus = case.janus();
    let tenant = janus.tenant("alert");
    let prometheus = Prometheus::start(&janus);
    let pods = tenant.deploy(&deployment("web", 1));
    tenant.guard("web", &denies("web", &["/etc/secret"], false), 1);
    let alerts = || prometheus.query(&format!("ALERTS{{alertname=\"{ALERT}\",alertstate=\"firing\"}}"));
    assert!(prometheus.scrapes(&janus));
    assert_eq!(alerts(), Vec::<Value>::new());
    // What lies in procfs cannot be guarded, and that is never silent.
    tenant.apply(&crate::tenant::guard("web", &denies("web", &["/proc/1/environ"], false)));
    assert!(level(PATIENCE, || !alerts().is_empty()), "{ALERT} does not fire\n{}", prometheus.server.stderr());
    assert_eq!(alerts()[0]["metric"]["node"], pods[0].1.as_str());
    tenant.guard("web", &denies("web", &["/etc/secret"], false), 1);
    assert!(level(PATIENCE, || alerts().is_empty()), "{ALERT} does not resolve");
}

fn every_query_of_the_dashboard_is_one(case: &Case) {
    let janus = case.janus();
    let tenant = janus.tenant("dashboard");
    let prometheus = Prometheus::start(&janus);
    let pods = tenant.deploy(&deployment("web", 1));
    tenant.guard("web", &denies("web", &["/etc/secret"], false), 1);
    assert_eq!(tenant.exec(&pods[0].0, "/etc/secret"), Opened::Denied);
    assert!(prometheus.scrapes(&janus));
    let dashboard = std::fs::read_to_string(deploy().join("components/monitoring/dashboard/janus.json")).unwrap();
    let mut queries = Vec::new();
    collect_queries(&serde_json::from_str(&dashboard).unwrap(), &mut queries);
    let answered = || queries.iter().filter(|query| !prometheus.query(query).is_empty()).count();
    let mut most = 0;
    // Some are of what does not happen here; those of rates want a second sample.
    level(Duration::from_secs(5), || {
        most = answered();
        most == queries.len()
    });
    eprintln!("dashboard: {} queries, {most} with an answer", queries.len());
    assert!(most * 2 > queries.len(), "most of the dashboard is empty: {queries:#?}");
}

fn collect_queries(value: &Value, queries: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(query) = fields.get("expr").and_then(Value::as_str) {
                queries.push(without_variables(query));
            }
            fields.values().for_each(|value| collect_queries(value, queries));
        }
        Value::Array(values) => values.iter().for_each(|value| collect_queries(value, queries)),
        _ => {}
    }
}

/// What Grafana puts in for its variables: everything.
fn without_variables(query: &str) -> String {
    let query = query.replace("$__rate_interval", "10s");
    let mut parts = query.split('$');
    let first = parts.next().unwrap_or_default().to_owned();
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    parts.fold(first, |all, part| all + ".*" + part.trim_start_matches(word))
}

struct Prometheus {
    server: Process,
}

impl Prometheus {
    fn start(janus: &Janus) -> Prometheus {
        let home = janus.cluster.api.deputy.scratch().join("prometheus");
        std::fs::create_dir_all(&home).unwrap();
        let write = |name: &str, value: &Value| std::fs::write(home.join(name), value.to_string()).unwrap();
        write("rules.json", &hurried_rules());
        write("prometheus.json", &configuration(janus, &home));
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", home.join("prometheus.json").display()));
        command.arg(format!("--storage.tsdb.path={}", home.join("data").display()));
        command.arg(format!("--web.listen-address={ADDRESS}"));
        let prometheus = Prometheus { server: janus.cluster.api.deputy.spawn(&command) };
        let ready = level(PATIENCE, || get("/-/ready").is_some());
        assert!(ready, "{:?} {}", prometheus.server.ended(), prometheus.server.stderr());
        prometheus
    }

    /// Whether everything that has a port for it is scraped.
    fn scrapes(&self, janus: &Janus) -> bool {
        let pods = ["janusd", "janus-controller"]
            .map(|name| janus.list(Kind::Pod, NAMESPACE, &format!("app.kubernetes.io/name={name}")).len());
        level(PATIENCE, || {
            let up = |job: &str| self.value(&format!("sum(up{{job=\"{job}\"}})")).unwrap_or(0.0);
            let all = pods.map(|pods| pods as f64);
            [up("janusd"), up("janus-controller")] == all
        })
    }

    /// Series that answer a query.
    fn query(&self, query: &str) -> Vec<Value> {
        assert!(self.server.ended().is_none(), "{}", self.server.stderr());
        let escaped: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer = get(&format!("/api/v1/query?query={escaped}")).unwrap_or_else(|| panic!("no answer: {query}"));
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        answer["data"]["result"].as_array().unwrap().clone()
    }

    /// The value of the only series that answers a query.
    fn value(&self, query: &str) -> Option<f64> {
        let series = self.query(query);
        series.first()?.pointer("/value/1")?.as_str()?.parse().ok()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // The next test wants its port, whatever became of this one.
        self.server.end(Signal::KILL, STOP);
    }
}

/// What is deployed, but for time, and for who finds the pods: Debian's Prometheus asks no API server. What it would have
/// been told of each port of each pod it is given, so that the relabelling is as it is deployed.
fn configuration(janus: &Janus, home: &Path) -> Value {
    let text = std::fs::read_to_string(deploy().join("patterns/prometheus/stack/prometheus.yaml")).unwrap();
    let mut config: Value = serde_saphyr::from_str(&text).unwrap();
    config["global"] = json!({"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"});
    config["rule_files"] = json!([home.join("rules.json")]);
    config.as_object_mut().unwrap().remove("alerting");
    let job = config["scrape_configs"][0].as_object_mut().unwrap();
    job.remove("kubernetes_sd_configs").unwrap();
    let pods = janus.list(Kind::Pod, NAMESPACE, "app.kubernetes.io/part-of=janus");
    let mut targets = Vec::new();
    for pod in &pods {
        for port in pod["spec"]["containers"][0]["ports"].as_array().into_iter().flatten() {
            let address = format!("{}:{}", pod["status"]["podIP"].as_str().unwrap_or_default(), port["containerPort"]);
            targets.push(json!({"targets": [address], "labels": {
                "__meta_kubernetes_namespace": NAMESPACE,
                "__meta_kubernetes_pod_name": pod["metadata"]["name"],
                "__meta_kubernetes_pod_node_name": pod["spec"]["nodeName"],
                "__meta_kubernetes_pod_container_port_name": port["name"],
                "__meta_kubernetes_pod_label_app_kubernetes_io_name": pod["metadata"]["labels"]["app.kubernetes.io/name"],
                "__meta_kubernetes_pod_label_app_kubernetes_io_part_of": "janus",
            }}));
        }
    }
    job.insert("static_configs".to_owned(), json!(targets));
    config
}

/// The alerts that are deployed, with a second where they wait for minutes.
fn hurried_rules() -> Value {
    let text = std::fs::read_to_string(deploy().join("patterns/prometheus/stack/rules.yaml")).unwrap();
    let mut rules: Value = serde_saphyr::from_str(&text).unwrap();
    let groups = rules["groups"].as_array_mut().unwrap().iter_mut();
    for rule in groups.flat_map(|group| group["rules"].as_array_mut().unwrap()) {
        if rule["for"].is_string() {
            rule["for"] = json!("1s");
        }
    }
    rules
}

/// What a plain GET brings; `None`: nothing, or an error.
fn get(path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(ADDRESS).ok()?;
    stream.set_read_timeout(Some(STOP)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    // An error of a query has a body to show.
    let found = [" 200 ", " 400 ", " 422 "].iter().any(|code| head.lines().next().is_some_and(|it| it.contains(code)));
    found.then(|| body.to_owned())
}

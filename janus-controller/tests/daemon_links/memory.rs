//! What an idle connection takes, measured: the daemons are in a process of their own.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

use janus_controller::daemon::connect::{Dialer, Patience};
use janus_controller::daemon::tls::Tls;
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::daemon::{Ca, Daemon, NAMESPACE, files, server_config, write};

const CONNECTIONS: usize = 2000;

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

fn many_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// The other process: daemons whose CA is theirs, told of on stdout as an address and where the client's files are.
#[tokio::test]
#[ignore = "a part of the measurement"]
async fn daemons() {
    many_files();
    let (ca, directory) = (Ca::new(), tempfile::tempdir().unwrap());
    write(&files(directory.path()), &ca, &ca.controller());
    let daemon = Daemon::start(Some(server_config(&ca.daemon(), &ca))).await;
    println!("\ndaemon {} {}", daemon.address, directory.path().display());
    std::io::stdout().flush().unwrap();
    // Until whoever started it goes.
    tokio::task::spawn_blocking(|| std::io::stdin().lines().count()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: cargo test --release --test daemon_links -- --ignored --nocapture what_an_idle"]
async fn what_an_idle_connection_takes() {
    many_files();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "memory::daemons", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = lines.find_map(|line| line.unwrap().strip_prefix("daemon ").map(ToOwned::to_owned)).unwrap();
    let (address, directory) = line.split_once(' ').unwrap();
    let (tls, _reload) = Tls::open(files(directory.as_ref()), NAMESPACE).unwrap();
    let dialer = Dialer::new(NAMESPACE, Some(tls), Patience::default()).unwrap();
    let address = address.parse().unwrap();
    // What only the first takes.
    let first = dialer.connect(address).await.unwrap();
    crate::node(&first).await;
    let (before, began) = (resident(), Instant::now());
    let mut links = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        let link = dialer.connect(address).await.unwrap();
        crate::node(&link).await;
        links.push(link);
    }
    let (took, taken) = (began.elapsed(), resident() - before);
    println!(
        "{CONNECTIONS} connections: {:.1} KiB each, {took:?} one after the other",
        taken as f64 / CONNECTIONS as f64
    );
    assert!(links.iter().all(|link| !link.is_closed()));
    drop(child.stdin.take());
    child.wait().unwrap();
    // 40.7 KiB when this was written: most of it the first buffers of HTTP/2, TLS and of the channel's two queues.
    assert!(taken / (CONNECTIONS as u64) < 48, "{taken} KiB");
}

//! The controller, as a process: started, stopped, continued, killed, and looked at from outside.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::certificates::{Authority, NAMESPACE};
use crate::fake::wait_until;

const BINARY: &str = env!("CARGO_BIN_EXE_janus-controller");

/// How it is started.
pub(crate) struct Setting<'a> {
    pub(crate) kubeconfig: &'a Path,
    /// Where daemons serve; over TLS.
    pub(crate) port: u16,
    pub(crate) authority: &'a Authority,
    pub(crate) resync: Duration,
    /// Waits for the Lease to be free; otherwise takes it.
    pub(crate) elect: bool,
    /// POD_NAME: who it is.
    pub(crate) name: &'a str,
}

pub(crate) struct Controller {
    process: Child,
    admin: SocketAddr,
    scratch: TempDir,
}

impl Controller {
    pub(crate) fn start(setting: &Setting<'_>) -> Controller {
        let scratch = tempfile::tempdir().unwrap();
        setting.authority.write_controller(scratch.path());
        let admin = free_address();
        let mut command = Command::new(BINARY);
        command.arg("run").arg("--admin-listen").arg(admin.to_string()).args(["--namespace", NAMESPACE]);
        command.arg("--daemon-port").arg(setting.port.to_string());
        command.arg("--resync").arg(format!("{}ms", setting.resync.as_millis()));
        command.arg(format!("--leader-elect={}", setting.elect));
        for (flag, file) in [("--tls-cert", "tls.crt"), ("--tls-key", "tls.key"), ("--tls-ca", "ca.crt")] {
            command.arg(flag).arg(scratch.path().join(file));
        }
        command.env("KUBECONFIG", setting.kubeconfig).env("POD_NAME", setting.name);
        if std::env::var_os("RUST_LOG").is_none() {
            command.env("RUST_LOG", "info");
        }
        let log = File::create(scratch.path().join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Controller { process: command.spawn().unwrap(), admin, scratch }
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    pub(crate) fn log_file(&self) -> PathBuf {
        self.scratch.path().join("log")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.process.id().cast_signed()).unwrap(), signal).unwrap();
    }

    /// Whether it has ended, which it should not.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.process.try_wait(), Ok(None))
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        // Ended meanwhile.
        let _ended = self.process.kill();
        self.process.wait().unwrap();
    }

    /// SIGTERM; its exit status, `None` if it does not end in time.
    pub(crate) fn end(&mut self, within: Duration) -> Option<i32> {
        self.signal(Signal::TERM);
        let mut code = None;
        wait_until(within, || {
            code = self.process.try_wait().unwrap().and_then(|status| status.code());
            code.is_some()
        });
        code
    }

    /// Resident memory, KiB: now, and at most.
    pub(crate) fn memory(&self) -> (u64, u64) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
        };
        (field("VmRSS"), field("VmHWM"))
    }

    /// CPU time so far.
    pub(crate) fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        // utime and stime, in ticks of 10 ms.
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }

    /// The sum of a metric's samples with such labels; `None` if nobody answers.
    pub(crate) fn metric(&self, name: &str, labels: &str) -> Option<f64> {
        let text = get(self.admin, "/metrics")?;
        let samples = text.lines().filter(|line| line.starts_with(name) && line.contains(labels));
        let end = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
        Some(samples.filter_map(end).sum())
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        if !self.has_ended() {
            self.kill();
        }
        if std::thread::panicking() {
            let log = self.log();
            let from = log.len().saturating_sub(6000);
            let tail = log.get(from..).unwrap_or(&log);
            // The test has failed already.
            let _lost = writeln!(std::io::stderr(), "-- the controller's log, its end:\n{tail}");
        }
    }
}

fn free_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

fn get(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

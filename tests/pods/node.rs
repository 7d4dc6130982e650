//! The tests' side of the node: starts it with its containerd, has programs run there, takes it down.
//!
//! Owns: the scratch directory, whose `run` and `lib` are the node's `/run` and `/var/lib`, and the pipe on whose end
//! the node lives. One node serves the whole run; a test that says what a node leaves behind makes one of its own.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::cri::Cri;
use crate::image;
use crate::inside::{self, Output, Reply, Request};
use crate::installed;
use crate::watchdog::wait_until;

/// How long the node's server may take for what it does at once, and for a program beyond the program's own limit.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long containerd may take to answer its first call.
const CONTAINERD: Duration = Duration::from_secs(30);

/// A negative `oom_score_adj` needs CAP_SYS_RESOURCE, which not every root has. No network: pods are on the node's.
const CONFIG: &str = r#"version = 2
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "IMAGE"
  stream_server_address = "127.0.0.1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
        BinaryName = "RUNTIMES/runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.STRANGE]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.STRANGE.options]
        SystemdCgroup = false
        BinaryName = "RUNTIMES/STRANGE"
"#;

/// A runtime that is runc by another name: one that nobody knows.
pub(crate) const STRANGE: &str = "strange";

/// A machine with a container runtime.
pub(crate) struct Node {
    pub(crate) cri: Cri,
    scratch: TempDir,
    server: Mutex<Option<Server>>,
    /// The process outside of the node, which cleans up.
    outside: Mutex<Child>,
    /// Its PID 1, as the machine counts. Once that is killed everything on the node ends, and is cleaned up.
    pub(crate) init: u32,
    next: AtomicU32,
}

/// The pipe to the node. Replies come through a thread, so that every wait can have a deadline.
struct Server {
    requests: ChildStdin,
    replies: mpsc::Receiver<String>,
}

static SHARED: Mutex<Option<Arc<Node>>> = Mutex::new(None);

impl Node {
    /// The node of this run, started when it is first asked for.
    pub(crate) fn shared() -> Arc<Node> {
        // A test that failed to start it does not keep the next one from trying.
        let mut shared = SHARED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // Nor does one whose node was killed because it hung.
        drop(shared.take_if(|node| node.has_ended()));
        Arc::clone(shared.get_or_insert_with(|| Arc::new(Node::start())))
    }

    /// Takes the node of this run down, if there is one.
    pub(crate) fn end_shared() {
        let shared = SHARED.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        if let Some(node) = shared {
            node.end();
        }
    }

    pub(crate) fn start() -> Node {
        let started = Instant::now();
        let scratch = TempDir::with_prefix("janus-pods-").unwrap();
        for directory in ["run/containerd", "lib", "images", "logs", "sbin"] {
            fs::create_dir_all(scratch.path().join(directory)).unwrap();
        }
        // Copies, not links: agents are known by their files, which must not be others' as well.
        fs::copy(std::env::current_exe().unwrap(), scratch.path().join("kubelet")).unwrap();
        fs::copy(image::BUSYBOX, scratch.path().join("busybox")).unwrap();
        let runc = installed("runc").expect("runc");
        for runtime in ["runc", STRANGE] {
            fs::copy(&runc, scratch.path().join("sbin").join(runtime)).unwrap();
        }
        let mut outside = Command::new(std::env::current_exe().unwrap())
            .args([inside::WORD, "node"])
            .arg(scratch.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let requests = outside.stdin.take().unwrap();
        let replies = lines(BufReader::new(outside.stdout.take().unwrap()));
        let server = Server { requests, replies };
        let Reply::Serving(init) = server.reply(PATIENCE) else { panic!("no node") };
        let node = Node {
            cri: Cri::at(&seen_from_outside(init, "/run/containerd/containerd.sock")),
            scratch,
            server: Mutex::new(Some(server)),
            outside: Mutex::new(outside),
            init,
            next: AtomicU32::new(1),
        };
        let process = started.elapsed();
        node.start_containerd();
        let containerd = started.elapsed() - process;
        node.import_image();
        let all = started.elapsed();
        let _lost = writeln!(
            std::io::stderr(),
            "node: {:.1} s (containerd {:.1} s, image {:.1} s)",
            all.as_secs_f32(),
            containerd.as_secs_f32(),
            (all - process - containerd).as_secs_f32()
        );
        node
    }

    fn start_containerd(&self) {
        let config = self.scratch("containerd.toml");
        let text =
            CONFIG.replace("IMAGE", image::NAME).replace("STRANGE", STRANGE).replace("RUNTIMES", inside::RUNTIMES);
        fs::write(&config, text).unwrap();
        let (pid, log) = self.spawn("containerd", &["-c", config.to_str().unwrap()]);
        let mut last = None;
        let answers = wait_until(CONTAINERD, || {
            assert!(!self.ended(pid), "containerd has ended: {}", log.stderr());
            // Before its socket is there a call fails at once.
            last = self.cri.version().err();
            last.is_none()
        });
        assert!(answers, "containerd does not answer: {last:?}: {}", log.stderr());
    }

    fn import_image(&self) {
        let archive = self.scratch("images/image.tar");
        image::write(&self.scratch("images"), &archive).unwrap();
        let output = self.run("ctr", &["-n", "k8s.io", "images", "import", archive.to_str().unwrap()]);
        assert_eq!(output.code, Some(0), "{output:?}");
    }

    fn has_ended(&self) -> bool {
        let mut outside = self.outside.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        !matches!(outside.try_wait(), Ok(None))
    }

    /// A path of the node's own `/run` or `/var/lib`, for us.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        seen_from_outside(self.init, path)
    }

    /// A path of the scratch directory, which has the same name on the node.
    pub(crate) fn scratch(&self, name: impl AsRef<Path>) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// The cgroup of all pods, as CRI wants it.
    pub(crate) fn cgroup(&self) -> String {
        format!("/{}", inside::cgroup_name(self.scratch.path()))
    }

    /// A number that this node has not given out before.
    pub(crate) fn number(&self) -> u32 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Server>> {
        self.server.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn ask(&self, request: &Request, limit: Duration) -> Reply {
        let mut server = self.lock();
        let server = server.as_mut().expect("the node was taken down");
        let line = serde_json::to_string(request).unwrap();
        writeln!(server.requests, "{line}").expect("the node's server listens");
        server.reply(limit)
    }

    /// Runs a program on the node to its end, ten seconds at most.
    pub(crate) fn run(&self, program: impl Into<OsString>, arguments: &[&str]) -> Output {
        let limit = Duration::from_secs(10);
        let arguments = arguments.iter().map(OsString::from).collect();
        match self.ask(&Request::Run(program.into(), arguments, limit), limit + PATIENCE) {
            Reply::Ran(output) => output,
            other => panic!("{other:?}"),
        }
    }

    /// Runs a word of the kubelet's stand-in.
    pub(crate) fn kubelet(&self, word: &str, path: &str) -> Output {
        self.run(self.scratch("kubelet"), &[inside::WORD, "kubelet", word, path])
    }

    /// Starts a program on the node: its pid there, and what it writes.
    pub(crate) fn spawn(&self, program: impl Into<OsString>, arguments: &[&str]) -> (u32, Streams) {
        let program = program.into();
        let name = Path::new(&program).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let log = self.scratch(format!("logs/{name}-{}", self.number()));
        let streams = Streams { stdout: log.with_extension("out"), stderr: log.with_extension("err") };
        let request = Request::Start {
            program,
            arguments: arguments.iter().map(OsString::from).collect(),
            stdout: streams.stdout.clone(),
            stderr: streams.stderr.clone(),
        };
        match self.ask(&request, PATIENCE) {
            Reply::Started(pid) => (pid, streams),
            other => panic!("{other:?}"),
        }
    }

    /// Starts a process that does nothing, under a pid that was another's.
    pub(crate) fn start_as(&self, pid: u32) {
        let reply = self.ask(&Request::StartAs(pid), PATIENCE);
        assert!(matches!(reply, Reply::Started(_)), "{reply:?}");
    }

    pub(crate) fn signal(&self, pid: u32, signal: Signal) {
        let reply = self.ask(&Request::Signal(pid, signal.as_raw()), PATIENCE);
        assert!(matches!(reply, Reply::Done), "{reply:?}");
    }

    /// Whether a program that was started has ended.
    pub(crate) fn ended(&self, pid: u32) -> bool {
        match self.ask(&Request::Ended(pid), PATIENCE) {
            Reply::Ended(ended) => ended,
            other => panic!("{other:?}"),
        }
    }

    /// Takes it down, and waits until it has cleaned up after itself.
    pub(crate) fn end(&self) {
        // Its server reads to the end of this pipe; everything else follows.
        drop(self.lock().take());
        let mut outside = self.outside.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut status = None;
        wait_until(Duration::from_secs(20), || {
            status = outside.try_wait().unwrap();
            status.is_some()
        });
        if status.is_none_or(|status| !status.success()) {
            // Its children die with it.
            let _ended_since = outside.kill();
            let _reaped = outside.wait();
            panic!("the node did not clean up: {status:?}");
        }
    }
}

/// A path of the node's own, as everybody else has to write it.
fn seen_from_outside(init: u32, path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{init}/root{path}"))
}

impl Server {
    fn reply(&self, limit: Duration) -> Reply {
        let line = self.replies.recv_timeout(limit).expect("the node's server answers");
        serde_json::from_str(&line).unwrap()
    }
}

fn lines(stream: impl BufRead + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in stream.lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// What a program on the node has written so far.
pub(crate) struct Streams {
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Streams {
    pub(crate) fn stdout(&self) -> String {
        read(&self.stdout)
    }

    pub(crate) fn stderr(&self) -> String {
        read(&self.stderr)
    }
}

fn read(file: &Path) -> String {
    String::from_utf8_lossy(&fs::read(file).unwrap_or_default()).into_owned()
}

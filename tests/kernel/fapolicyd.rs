//! The peer of the table: fapolicyd, where it is installed, allowing everything on a file system that only a scratch loop
//! mount has. Its configuration and its state are those of a mount namespace of its own.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Signal, kill_process};

use crate::case::Case;
use crate::matrix::world::{mount_new, run};
use crate::watchdog::kernel_pid;

const PROGRAM: &str = "/usr/sbin/fapolicyd";
const RULES: &str = "allow perm=any all : all\n";
/// What its package ships, but for the file systems, and for whom it runs as.
const CONFIGURATION: &str = "permissive = 0
nice_val = 0
q_size = 2048
uid = root
gid = root
do_stat_report = 0
detailed_report = 0
db_max_size = 50
subj_cache_size = 1549
obj_cache_size = 8191
watch_fs = xfs
trust = file
integrity = none
syslog_format = rule,dec,perm,auid,pid,exe,:,path,ftype,trust
rpm_sha256_only = 0
allow_filesystem_mark = 1
";

/// The file system, and the configuration.
pub(crate) struct Fapolicyd {
    configuration: PathBuf,
    pub(crate) place: PathBuf,
    pub(crate) file: PathBuf,
}

impl Fapolicyd {
    /// `None` where it is not installed, or another file system of the kind is mounted, which it would gate as well.
    pub(crate) fn prepare(case: &Case) -> Option<Fapolicyd> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        if !Path::new(PROGRAM).exists() || mounts.contains(" xfs ") {
            return None;
        }
        let scratch = case.scratch("fapolicyd");
        let configuration = scratch.join("configuration");
        fs::create_dir_all(configuration.join("rules.d")).unwrap();
        fs::create_dir_all(configuration.join("trust.d")).unwrap();
        for (name, content) in [
            ("fapolicyd.conf", CONFIGURATION),
            ("fapolicyd.trust", ""),
            ("compiled.rules", RULES),
            ("rules.d/10-all.rules", RULES),
        ] {
            fs::write(configuration.join(name), content).unwrap();
        }
        // Its files have to be readable for its group, which it gives up root's rights for.
        run(Command::new("chown").args(["-R", "root:fapolicyd"]).arg(&configuration)).unwrap();
        mount_new("xfs", &scratch).unwrap();
        let place = scratch.join("mounted");
        let file = place.join("file");
        fs::write(&file, "x").unwrap();
        Some(Fapolicyd { configuration, place, file })
    }

    /// Starts it, and waits until it listens.
    pub(crate) fn start(&self) -> Running {
        let script = format!(
            "mount --bind '{}' /etc/fapolicyd && mount -t tmpfs none /var/lib/fapolicyd && mkdir -p /run/fapolicyd && \
             mount -t tmpfs none /run/fapolicyd && exec {PROGRAM} --debug-deny",
            self.configuration.display()
        );
        // It dies with us.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--mount", "sh", "-c", &script]);
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let listens = lines.by_ref().map_while(Result::ok).any(|line| line.contains("listen for events"));
        assert!(listens, "fapolicyd does not listen");
        // Read on, or it would wait for that.
        let reader = std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Running { process, reader: Some(reader) }
    }
}

impl Drop for Fapolicyd {
    fn drop(&mut self) {
        unmount(&self.place, UnmountFlags::DETACH).unwrap();
    }
}

/// Runs until it is dropped.
pub(crate) struct Running {
    process: Child,
    reader: Option<JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        kill_process(kernel_pid(self.process.id()), Signal::TERM).unwrap();
        self.process.wait().unwrap();
        self.reader.take().unwrap().join().unwrap();
    }
}

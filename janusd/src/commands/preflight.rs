//! `janusd preflight`: what this kernel can gate, by trying.

use std::io::Write;

use serde::Serialize;

use super::engine::missing_capabilities;
use super::{DONE, FAILED};
use crate::fanotify::Features;
use crate::fanotify::behaviour::{self, Behaviour};
use crate::fanotify::probe::Marks;
use crate::limits::Node;

/// One line of the report.
#[derive(Debug, Serialize)]
struct Finding {
    feature: &'static str,
    ok: bool,
    /// Without it nothing is enforced.
    required: bool,
    detail: String,
}

/// Probes and prints; status 1 when something is missing without which nothing can be enforced.
pub fn run(json: bool) -> u8 {
    let findings = findings();
    let able = findings.iter().all(|finding| finding.ok || !finding.required);
    let text = if json {
        let kernel = rustix::system::uname();
        let report = serde_json::json!({
            "kernel": kernel.release().to_string_lossy(),
            "able": able,
            "features": findings,
        });
        format!("{report}\n")
    } else {
        findings.iter().map(Finding::line).collect()
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) if able => DONE,
        _ => FAILED,
    }
}

impl Finding {
    fn line(&self) -> String {
        let word = match (self.ok, self.required) {
            (true, _) => "yes",
            (false, true) => "NO",
            (false, false) => "no",
        };
        format!("{word:<4} {:<24} {}\n", self.feature, self.detail)
    }
}

fn findings() -> Vec<Finding> {
    let missing = missing_capabilities();
    let features = Features::probe();
    let marks = Marks::probe();
    let refusal = marks.as_ref().err().map(|error| format!(" ({error})")).unwrap_or_default();
    let marks = marks.unwrap_or_default();
    let finding = |feature, ok, required, detail: &str| Finding { feature, ok, required, detail: detail.to_owned() };
    let mut findings = vec![
        Finding {
            feature: "capabilities",
            ok: missing.is_empty(),
            required: true,
            detail: if missing.is_empty() {
                "all that enforcement needs".into()
            } else {
                format!("missing: {}", missing.join(", "))
            },
        },
        finding("inode marks", marks.inode, true, &format!("open and access of single files{refusal}")),
        finding("directory marks", marks.directory, true, "open and access of a directory and its direct children"),
        finding("mount marks", marks.mount, true, "everything opened through one mount: disk volumes"),
        finding(
            "filesystem marks",
            marks.filesystem,
            true,
            "everything in one file system: container roots, tmpfs volumes",
        ),
        finding("execute events", marks.execute, true, "FAN_OPEN_EXEC_PERM"),
        finding(
            "unique mount ids",
            features.unique_mount_ids,
            false,
            "names of files opened through foreign mounts, without reuse of ids",
        ),
        finding(
            "file handles",
            features.handles,
            false,
            "AT_HANDLE_FID: identity that outlives copy-up and is never reused",
        ),
        finding("audit", features.audit, false, "FAN_ENABLE_AUDIT: audit: true reaches the kernel's audit log"),
        finding(
            "event fd errors",
            features.fd_error,
            false,
            "FAN_REPORT_FD_ERROR: an event without a descriptor is counted",
        ),
        finding("pidfd", features.pidfd, false, "FAN_REPORT_PIDFD with permission events"),
        finding("pre-content events", marks.pre_content, false, "FAN_PRE_ACCESS on tmpfs (not used)"),
    ];
    // Without a group there is nothing to be asked.
    if marks.inode {
        findings.extend(behaviour::all().into_iter().map(|Behaviour { name, about, required, outcome }| Finding {
            feature: name,
            ok: outcome.is_ok(),
            required,
            detail: outcome.map_or_else(|seen| format!("{about}: {seen}"), |()| about.to_owned()),
        }));
    }
    findings.extend(limits());
    findings
}

/// What the node lets us have.
fn limits() -> Vec<Finding> {
    let limits = Node::here().limits();
    let capacity = limits.capacity();
    let line = |feature, value: Option<u64>, meaning: &str| Finding {
        feature,
        ok: true,
        required: false,
        detail: value.map_or_else(|| format!("no limit found; {meaning}"), |value| format!("{value} {meaning}")),
    };
    let groups = if limits.groups_writable {
        "at most (fs.fanotify.max_user_groups); a guard takes two; raised at start for as many guards as asked"
    } else {
        "at most (fs.fanotify.max_user_groups); a guard takes two; cannot be raised from here"
    };
    vec![
        Finding {
            feature: "guards",
            ok: capacity.guards > 0,
            required: true,
            detail: match capacity.bound {
                None => "as many as memory holds".into(),
                Some(bound) => format!("{} fit: {bound}", capacity.guards),
            },
        },
        Finding { ok: limits.groups.is_some(), ..line("fanotify groups", limits.groups, groups) },
        line("fanotify marks", limits.marks, "at most for a user without CAP_SYS_ADMIN, which janusd has"),
        line("inotify instances", limits.inotify_instances, "at most; janusd takes two"),
        line("inotify watches", limits.inotify_watches, "directories whose changes are noticed"),
        line("inotify queue", limits.inotify_queue, "changes that wait at most; beyond, every guard surveys its root"),
        line("threads", limits.threads, "at most on the node; a guard takes two"),
        line("pids cgroup", limits.pids_left, "threads left; a guard takes two"),
        line("open files", limits.open_files, "at most; one for each waiting event"),
    ]
}

//! `janusd preflight`: what this kernel can gate, by trying.

use std::io::Write;

use serde::Serialize;

use super::engine::{missing_capabilities, raise_open_files};
use super::{DONE, FAILED};
use crate::fanotify::Features;
use crate::fanotify::probe::Marks;

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
        format!("{word:<4} {:<22} {}\n", self.feature, self.detail)
    }
}

fn findings() -> Vec<Finding> {
    let missing = missing_capabilities();
    let features = Features::probe();
    let marks = Marks::probe();
    let refusal = marks.as_ref().err().map(|error| format!(" ({error})")).unwrap_or_default();
    let marks = marks.unwrap_or_default();
    let finding = |feature, ok, required, detail: &str| Finding { feature, ok, required, detail: detail.to_owned() };
    vec![
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
        limit("fanotify groups", "/proc/sys/fs/fanotify/max_user_groups", "at most; a guard needs two"),
        limit(
            "fanotify marks",
            "/proc/sys/fs/fanotify/max_user_marks",
            "marks at most for a user without CAP_SYS_ADMIN",
        ),
        limit("inotify watches", "/proc/sys/fs/inotify/max_user_watches", "directories whose changes are noticed"),
        Finding {
            feature: "open files",
            ok: true,
            required: false,
            detail: raise_open_files()
                .map_or("no limit".into(), |limit| format!("{limit}; one for each waiting event")),
        },
    ]
}

fn limit(feature: &'static str, path: &str, meaning: &str) -> Finding {
    match std::fs::read_to_string(path) {
        Ok(value) => Finding { feature, ok: true, required: false, detail: format!("{} {meaning}", value.trim()) },
        Err(error) => Finding { feature, ok: false, required: false, detail: format!("{path}: {error}") },
    }
}

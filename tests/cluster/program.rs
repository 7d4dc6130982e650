//! Programs that run to their end.

use std::io::{self, Read, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::watchdog::wait_until;

/// How a program ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Output {
    /// None: killed by a signal.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Output {
    /// What it wrote to stdout. It must have succeeded.
    #[track_caller]
    pub(crate) fn success(self) -> String {
        assert_eq!(self.code, Some(0), "{}{}", self.stdout, self.stderr);
        self.stdout
    }
}

/// Runs a program to its end, or kills it at the limit.
pub(crate) fn run(mut command: Command, stdin: &str, limit: Duration) -> io::Result<Output> {
    let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (stdout, stderr) = (collect(process.stdout.take()), collect(process.stderr.take()));
    // On a thread of its own: who does not read must not keep us waiting.
    let (input, stdin) = (process.stdin.take(), stdin.to_owned());
    let feeder = spawn(move || input.map_or(Ok(()), |mut input| input.write_all(stdin.as_bytes())));
    let mut status: io::Result<Option<ExitStatus>> = Ok(None);
    wait_until(limit, || {
        status = process.try_wait();
        !matches!(status, Ok(None))
    });
    let status = match status? {
        Some(status) => status,
        None => {
            process.kill()?;
            process.wait()?
        }
    };
    // A program need not read all of it.
    let _unread = feeder.join();
    let text = |thread: JoinHandle<String>| thread.join().unwrap_or_default();
    Ok(Output { code: status.code(), stdout: text(stdout), stderr: text(stderr) })
}

fn collect(stream: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            // What was read before an error is all there is.
            let _cut_short = stream.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

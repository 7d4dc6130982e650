//! Files that the kernel was told to answer for: moved or linked to where they are denied, they are denied at once.
//!
//! An ignore mark lies on an inode and goes where it goes. The naive way (tell the kernel after the first allowed open,
//! and trust to that) is run here too, and seen to let such a file through: a test that cannot fail proves nothing.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use janusd::fanotify::answer::{Answer, answer_all};
use janusd::fanotify::group::ReadBuffer;
use janusd::fanotify::{Features, Group, MarkTarget, close};
use janusd::policy::{Event, Events, Response};
use janusd::root::Root;

use crate::case::{Case, Janus};
use crate::container::Container;
use crate::daemon::Janusd;
use crate::kernel_tests;
use crate::manifest::guard;
use crate::protocol::{hard_link, open, rename, write};
use crate::watchdog::wait_until;

kernel_tests! {
    moved_into_a_denied_directory,
    linked_into_a_denied_directory,
    moved_onto_a_denied_file,
    denied_by_an_update,
    naive_ignore_marks_let_it_through.without_control(),
}

const SUBJECT: &str = "{deny: [/denied, /secret], events: [open], log: Denied}";

/// Opens a file until the kernel answers by itself: janusd counts its opens no more.
fn left_to_the_kernel(janusd: &Janusd, container: &Container, path: &str) {
    let Some(janusd) = janusd.running() else { return };
    let opens = || janusd.events(&[("event", "open")]);
    let left = wait_until(Duration::from_secs(10), || {
        let before = opens();
        for _ in 0..10 {
            assert!(container.open(path).is_ok());
        }
        opens() == before
    });
    assert!(left, "janusd is asked about every open of {path}");
}

fn guarded(case: &Case) -> (Container, Janusd) {
    let container = case.container();
    let janusd = case.guard(&container, &guard(&[SUBJECT]));
    container.prepare([write("/beside/aside", "x")]);
    left_to_the_kernel(&janusd, &container, "/beside/aside");
    (container, janusd)
}

fn moved_into_a_denied_directory(case: &Case) {
    let (container, _janusd) = guarded(case);
    case.denied(container.after([rename("/beside/aside", "/denied/in")], open("/denied/in")));
    // And it is the file that is denied from now on, wherever it goes.
    case.denied(container.after([rename("/denied/in", "/beside/out")], open("/beside/out")));
}

fn linked_into_a_denied_directory(case: &Case) {
    let (container, _janusd) = guarded(case);
    case.denied(container.after([hard_link("/beside/aside", "/denied/in")], open("/denied/in")));
    case.denied(container.open("/beside/aside"));
}

fn moved_onto_a_denied_file(case: &Case) {
    let (container, _janusd) = guarded(case);
    case.denied(container.after([rename("/beside/aside", "/secret")], open("/secret")));
}

/// Rules that change are in force for files that the kernel answered for.
fn denied_by_an_update(case: &Case) {
    let (container, janusd) = guarded(case);
    if janusd.running().is_some() {
        janusd.update(&guard(&["{deny: [/beside], events: [open], log: Denied}"]));
    }
    case.denied(container.open("/beside/aside"));
}

/// A file system mark, and an ignore mark for each file that is allowed: nothing else.
fn naive_ignore_marks_let_it_through(case: &Case) {
    if case.janus == Janus::Absent {
        return;
    }
    let container = case.container();
    container.prepare([write("/beside/aside", "x")]);
    let opens = Events::NONE.with(Event::Open);
    let group = Group::new(&Features::probe(), false).unwrap();
    let root = Root::of_process(i32::try_from(container.pid).unwrap()).unwrap().open().unwrap();
    group.mark(MarkTarget::Filesystem, opens, root.as_fd()).unwrap();
    drop(root);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| answer_naively(&group, opens, &done));
        assert!(container.open("/denied/file").is_err(), "it does deny what it is asked about");
        assert!(container.open("/beside/aside").is_ok());
        let moved = container.after([rename("/beside/aside", "/denied/in")], open("/denied/in"));
        done.store(true, Ordering::Relaxed);
        assert!(moved.is_ok(), "ignore marks alone are safe on this kernel? then `near` is not needed: {moved:?}");
    });
}

fn answer_naively(group: &Group, opens: Events, done: &AtomicBool) {
    let (mut buffer, mut events) = (ReadBuffer::default(), Vec::new());
    while !done.load(Ordering::Relaxed) {
        wait_until(Duration::from_millis(20), || group.read(&mut buffer, &mut events).is_ok());
        let mut files = Vec::new();
        for event in events.drain(..) {
            let number = event.file.as_raw_fd();
            let path = std::fs::read_link(format!("/proc/self/fd/{number}")).unwrap();
            let denied = path.starts_with("/denied");
            let response = if denied { Response::Deny } else { Response::Allow };
            answer_all(&mut &*group, &[Answer::new(number, response, false)], |_, _| {});
            if !denied {
                let _for_what_is_open_for_writing = group.ignore_file(opens, event.file.as_fd());
            }
            files.push(event.file);
        }
        close(&mut files);
    }
}

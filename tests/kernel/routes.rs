//! Every route to the bytes of a guarded file in a container's overlay root, with `janusd guard --pid`.
//!
//! Guarantee shown: a rule holds for the file and not for its name (contract 1, meaning, points 2 to 5).

use std::fs;

use rustix::io::Errno;

use crate::case::Case;
use crate::manifest;
use crate::protocol::{
    bind, create, execute, execute_reopened, hard_link, list, make_directories, make_executable, open, read, rename,
    reopen, replace, size, symlink, truncate, unlink, write,
};

crate::kernel_tests![
    own_path,
    allowed_files_open,
    from_the_host,
    through_symlinks,
    rule_names_a_symlink,
    absolute_symlink_stays_in_the_container,
    new_files_in_a_denied_directory,
    new_deep_directories,
    written_but_not_read_in_new_deep_directories,
    path_made_later,
    path_made_later_in_a_directory_made_later,
    atomic_replace,
    re_created,
    copied_up,
    hard_link_of_a_denied_file,
    hard_link_made_before,
    reopened_through_o_path,
    in_a_new_mount_namespace,
    through_a_bind_mount_of_the_file,
    through_a_bind_mount_of_the_directory,
    new_file_first_seen_through_a_bind_mount,
    execute_denied_open_allowed,
    execute_by_other_ways,
    script_denied,
    interpreter_denied,
    readdir_denied,
    read_denied,
    truncation_denied_leaves_the_content,
    every_process_of_the_host,
];

const SECRET: &str = "{deny: [/secret], events: [open]}";
const TREE: &str = "{deny: [/denied], events: [open]}";

/// A file by the name that the rule gives, and a directory with all below it.
fn own_path(case: &Case) {
    let container = case.container();
    let _janusd = case.guard(&container, &manifest::guard(&[SECRET, TREE]));
    for path in ["/secret", "/denied", "/denied/file", "/denied/sub", "/denied/sub/file", "/denied/sub/deep/file"] {
        case.denied(container.open(path));
    }
    for path in ["//secret", "/denied/../secret", "/./denied//sub/../file"] {
        case.denied(container.open(path));
    }
    case.denied(container.act(read("/secret")));
    case.denied(container.act(create("/secret")));
}

/// What no rule denies opens, also beside and below what is denied.
fn allowed_files_open(case: &Case) {
    let container = case.container();
    let subject = "{allow: [/denied/open], deny: [/secret, /denied], events: [open]}";
    let _janusd = case.guard(&container, &manifest::guard(&[subject]));
    for path in ["/public", "/", "/etc/passwd", "/beside/file", "/denied/open", "/denied/open/file", "/s/token"] {
        case.allowed(container.open(path));
    }
    case.allowed(container.act(write("/new", "new")));
    assert_eq!(container.act(read("/new")), Ok(b"new".to_vec()));
    assert_eq!(container.act(execute("/bin/cat", ["/public"])), Ok(b"/public\n".to_vec()));
    case.denied(container.open("/secret"));
    case.denied(container.open("/denied/file"));
}

/// A host process that goes through `/proc/PID/root`.
fn from_the_host(case: &Case) {
    let container = case.container();
    let host = case.host();
    let _janusd = case.guard(&container, &manifest::guard(&[SECRET, TREE]));
    case.denied(host.open(container.seen_from_host("/secret")));
    case.denied(host.open(container.seen_from_host("/denied/sub/deep/file")));
    case.denied(host.act(reopen(container.seen_from_host("/secret"))));
    case.allowed(host.open(container.seen_from_host("/public")));
    let node_file = case.scratch("secret");
    fs::write(&node_file, "the node's").unwrap();
    case.allowed(host.open(node_file));
}

/// Symlinks to what is denied: relative, absolute, in the middle, at the end, and a chain of them.
fn through_symlinks(case: &Case) {
    let container = case.container();
    let _janusd = case.guard(&container, &manifest::guard(&[SECRET, TREE]));
    for path in
        ["/absolute-link", "/relative-link", "/denied-link/file", "/beside/up/sub/file", "/chain/deep/file", "/chain"]
    {
        case.denied(container.open(path));
    }
    case.denied(container.after([symlink("/secret", "/made-later")], open("/made-later")));
    case.denied(container.after([symlink("denied/sub", "/way-in")], open("/way-in/file")));
}

/// A rule whose path is or goes through symlinks holds for what that leads to.
fn rule_names_a_symlink(case: &Case) {
    let container = case.container();
    let subject = "{deny: [/relative-link, /beside/up/sub], events: [open]}";
    let _janusd = case.guard(&container, &manifest::guard(&[subject]));
    for path in ["/relative-link", "/secret", "/absolute-link", "/denied/sub/file", "/denied/sub/deep/file"] {
        case.denied(container.open(path));
    }
    case.allowed(container.open("/denied/file"));
}

/// An absolute symlink leads to the container's file, and never to the node's file of that name.
fn absolute_symlink_stays_in_the_container(case: &Case) {
    let container = case.container();
    let host = case.host();
    let (both, node_only) = (case.scratch("both"), case.scratch("node-only"));
    for file in [&both, &node_only] {
        fs::write(file, "the node's").unwrap();
    }
    container.prepare([
        make_directories(both.parent().unwrap()),
        write(&both, "the container's"),
        symlink(&both, "/etc/leak"),
        symlink(&node_only, "/etc/dangling"),
    ]);
    let subject = "{deny: [/etc/leak, /etc/dangling], events: [open]}";
    let _janusd = case.guard(&container, &manifest::guard(&[subject]));
    case.denied(container.open("/etc/leak"));
    case.denied(container.open(&both));
    case.denied(host.open(container.seen_from_host(both.to_str().unwrap())));
    case.allowed(host.open(&both));
    case.allowed(host.open(&node_only));
}

/// Files that come into a denied directory, by creation and by rename.
fn new_files_in_a_denied_directory(case: &Case) {
    let container = case.container();
    let _janusd = case.guard(&container, &manifest::guard(&[TREE]));
    // Refused, but the kernel has created the file by then (fanotify.md): it must be closed to all that follows.
    case.denied(container.act(create("/denied/created")));
    case.denied(container.open("/denied/created"));
    for turn in 0..50 {
        let aside = format!("/aside-{turn}");
        let inside = format!("/denied/sub/moved-{turn}");
        case.denied(container.after([write(&aside, "new"), rename(&aside, &inside)], open(&inside)));
    }
    case.denied(container.after([hard_link("/public", "/denied/linked")], open("/denied/linked")));
}

/// Directories made at any depth, and files in them, opened in the same breath.
fn new_deep_directories(case: &Case) {
    let container = case.container();
    let _janusd = case.guard(&container, &manifest::guard(&[TREE]));
    for turn in 0..50 {
        let directory = format!("/denied/new-{turn}/a/b/c/d");
        let file = format!("{directory}/file");
        case.denied(container.after([make_directories(&directory)], create(&file)));
        let moved = format!("{directory}/moved");
        case.denied(container.after([write("/aside", "new"), rename("/aside", &moved)], open(&moved)));
        case.denied(container.open(&directory));
    }
    // A whole tree that moves in.
    case.denied(container.after(
        [make_directories("/tree/x/y"), write("/tree/x/y/file", "new"), rename("/tree", "/denied/tree")],
        open("/denied/tree/x/y/file"),
    ));
}

/// mkdir -p, write, read at once: with `access` the write goes through and the read does not.
fn written_but_not_read_in_new_deep_directories(case: &Case) {
    let container = case.container();
    let _janusd = case.guard(&container, &manifest::guard(&["{deny: [/denied], events: [access]}"]));
    for turn in 0..50 {
        let directory = format!("/denied/new-{turn}/a/b/c");
        let file = format!("{directory}/file");
        case.denied(container.after([make_directories(&directory), write(&file, "new")], read(&file)));
        case.denied(container.act(list(&directory)));
    }
}

/// A path that does not exist when the guard is laid.
fn path_made_later(case: &Case) {
    let container = case.container();
    let _janusd = case.guard(&container, &manifest::guard(&["{deny: [/later, /etc/later.d], events: [open]}"]));
    case.denied(container.after([write("/aside", "new"), rename("/aside", "/later")], open("/later")));
    case.denied(container.after([unlink("/later")], create("/later")));
    case.denied(container.after([make_directories("/etc/later.d/deep")], create("/etc/later.d/deep/file")));
    case.allowed(container.act(create("/other")));
}

/// The same, where the directories on the way to it do not exist either.
fn path_made_later_in_a_directory_made_later(case: &Case) {
    let container = case.container();
    let _janusd = case.guard(&container, &manifest::guard(&["{deny: [/to/be/made], events: [open]}"]));
    case.denied(container.after([make_directories("/to/be")], create("/to/be/made")));
    case.denied(container.open("/to/be/made"));
    case.allowed(container.act(create("/to/be/other")));
    // A way that comes to lead elsewhere.
    case.denied(container.after(
        [rename("/to", "/moved"), make_directories("/to/be"), write("/aside", "new"), rename("/aside", "/to/be/made")],
        open("/to/be/made"),
    ));
}

/// Written aside and renamed over the denied name, opened in the same breath.
fn atomic_replace(case: &Case) {
    let container = case.container();
    let subject = "{deny: [/secret, /srv/a], events: [open]}";
    let _janusd = case.guard(&container, &manifest::guard(&[subject]));
    for turn in 0..50 {
        let content = format!("version {turn}");
        case.denied(container.after([replace("/secret", &content)], open("/secret")));
        case.denied(
            container.after([write("/aside", &content), rename("/aside", "/srv/a/b/key")], open("/srv/a/b/key")),
        );
    }
    case.denied(container.open("/absolute-link"));
}

/// Removed and made anew under the same name.
fn re_created(case: &Case) {
    let container = case.container();
    let _janusd = case.guard(&container, &manifest::guard(&[SECRET]));
    for _ in 0..20 {
        let anew = [unlink("/secret"), write("/aside", "new"), rename("/aside", "/secret")];
        case.denied(container.after(anew, open("/secret")));
    }
    case.allowed(container.after([write("/aside", "new")], open("/aside")));
}

/// Copied up from the lower layer while guarded.
fn copied_up(case: &Case) {
    let container = case.container();
    let _janusd = case.guard(&container, &manifest::guard(&[SECRET, TREE]));
    case.denied(container.after([make_executable("/secret")], open("/secret")));
    case.denied(container.after([make_executable("/denied/sub/file")], open("/denied/sub/file")));
}

/// Another name for a denied file, made while it is guarded.
fn hard_link_of_a_denied_file(case: &Case) {
    let container = case.container();
    let _janusd = case.guard(&container, &manifest::guard(&[SECRET]));
    case.denied(container.after([hard_link("/secret", "/alias")], open("/alias")));
    case.denied(container.after([hard_link("/alias", "/beside/alias")], open("/beside/alias")));
    case.denied(container.open("/secret"));
}

/// Another name for a denied file, made before the guard.
fn hard_link_made_before(case: &Case) {
    let container = case.container();
    container.prepare([hard_link("/secret", "/alias")]);
    let _janusd = case.guard(&container, &manifest::guard(&[SECRET]));
    case.denied(container.open("/alias"));
    case.denied(container.open("/secret"));
}

/// `O_PATH` is never gated; what is opened through it is.
fn reopened_through_o_path(case: &Case) {
    let container = case.container();
    let _janusd = case.guard(&container, &manifest::guard(&[SECRET, TREE]));
    case.denied(container.act(reopen("/secret")));
    case.denied(container.act(reopen("/denied/sub/file")));
    case.allowed(container.act(reopen("/public")));
}

/// A process of the container that enters a mount namespace of its own.
fn in_a_new_mount_namespace(case: &Case) {
    let container = case.container();
    let _janusd = case.guard(&container, &manifest::guard(&[SECRET, TREE]));
    case.denied(container.after_in_new_mount_namespace([], open("/secret")));
    case.denied(container.after_in_new_mount_namespace([], open("/denied/sub/deep/file")));
    case.denied(container.after_in_new_mount_namespace([bind("/denied", "/bound")], open("/bound/file")));
    case.allowed(container.after_in_new_mount_namespace([], open("/public")));
}

/// The denied file, bind-mounted elsewhere.
fn through_a_bind_mount_of_the_file(case: &Case) {
    let container = case.container();
    let _janusd = case.guard(&container, &manifest::guard(&[SECRET]));
    case.denied(container.after([write("/here", ""), bind("/secret", "/here")], open("/here")));
    case.denied(container.open("/secret"));
}

/// The denied directory, and one above it, bind-mounted elsewhere.
fn through_a_bind_mount_of_the_directory(case: &Case) {
    let container = case.container();
    let _janusd = case.guard(&container, &manifest::guard(&[TREE]));
    case.denied(container.after([bind("/denied/sub", "/bound")], open("/bound/file")));
    case.denied(container.open("/bound/deep/file"));
    case.denied(container.after([make_directories("/all"), bind("/", "/all")], open("/all/denied/file")));
    case.allowed(container.open("/all/public"));
}

/// A file that the denied directory gets, and that is first opened through a bind mount of that directory.
fn new_file_first_seen_through_a_bind_mount(case: &Case) {
    let container = case.container();
    let _janusd = case.guard(&container, &manifest::guard(&[TREE]));
    container.prepare([bind("/denied", "/bound")]);
    case.denied(container.after([write("/aside", "new"), rename("/aside", "/denied/new")], open("/bound/new")));
    case.denied(container.after([make_directories("/denied/newer")], create("/bound/newer/file")));
}

/// `execute` alone: execve is refused, reading is not.
fn execute_denied_open_allowed(case: &Case) {
    let container = case.container();
    let _janusd = case.guard(&container, &manifest::guard(&["{deny: [/bin/cat], events: [execute]}"]));
    case.denied(container.act(execute("/bin/cat", ["/public"])));
    case.allowed(container.open("/bin/cat"));
    case.allowed(container.act(execute("/bin/true", [])));
}

/// A denied program by a symlink, a hard link and an `O_PATH` descriptor.
fn execute_by_other_ways(case: &Case) {
    let container = case.container();
    let _janusd = case.guard(&container, &manifest::guard(&["{deny: [/bin/true], events: [execute]}"]));
    case.denied(container.act(execute_reopened("/bin/true")));
    case.denied(container.after([symlink("/bin/true", "/bin/link")], execute("/bin/link", [])));
    case.denied(container.after([hard_link("/bin/true", "/bin/alias")], execute("/bin/alias", [])));
    case.denied(container.after_in_new_mount_namespace([], execute("/bin/true", [])));
}

/// A denied script does not start.
fn script_denied(case: &Case) {
    let container = case.container();
    let _janusd = case.guard(&container, &manifest::guard(&["{deny: [/bin/script], events: [execute]}"]));
    case.denied(container.act(execute("/bin/script", [])));
    // Not by `cat`: that is the script's interpreter, and would run it.
    case.allowed(container.open("/bin/script"));
}

/// A script whose interpreter is denied does not start.
fn interpreter_denied(case: &Case) {
    let container = case.container();
    let _janusd = case.guard(&container, &manifest::guard(&["{deny: [/bin/cat], events: [execute]}"]));
    case.denied(container.act(execute("/bin/script", [])));
    case.allowed(container.open("/bin/script"));
}

/// `access` on a directory refuses to list it: it opens, and what it holds opens.
fn readdir_denied(case: &Case) {
    let container = case.container();
    let subject = "{deny: [/denied], recursive: false, events: [access]}";
    let _janusd = case.guard(&container, &manifest::guard(&[subject]));
    case.denied(container.act(list("/denied")));
    case.allowed(container.open("/denied"));
    case.allowed(container.open("/denied/file"));
    case.allowed(container.act(list("/beside")));
}

/// `access` on a file refuses to read it: it opens, and may be written.
fn read_denied(case: &Case) {
    let container = case.container();
    let _janusd = case.guard(&container, &manifest::guard(&["{deny: [/secret], events: [access]}"]));
    case.denied(container.act(read("/secret")));
    case.allowed(container.open("/secret"));
    case.allowed(container.act(write("/secret", "new")));
    case.allowed(container.act(read("/public")));
}

/// A denied open with `O_TRUNC` leaves the content alone.
fn truncation_denied_leaves_the_content(case: &Case) {
    let container = case.container();
    let _janusd = case.guard(&container, &manifest::guard(&[SECRET]));
    case.denied(container.act(truncate("/secret")));
    let whole = "/secret\n".len().to_string().into_bytes();
    case.holds(container.act(size("/secret")) == Ok(whole), "the content is whole");
}

/// A second container process and the host at once: the rule knows no exceptions by who opens.
fn every_process_of_the_host(case: &Case) {
    let container = case.container();
    let (one, other) = (case.host(), case.host());
    let _janusd = case.guard(&container, &manifest::guard(&[SECRET]));
    for agent in [&one, &other] {
        case.denied(agent.open(container.seen_from_host("/secret")));
        assert_eq!(agent.open(container.seen_from_host("/absent")), Err(Errno::NOENT));
    }
    // The program reports that it was refused, and so fails.
    case.holds(container.act(execute("/bin/cat", ["/secret"])) == Err(Errno::IO), "cat cannot read it");
}

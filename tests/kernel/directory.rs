//! A plain directory of the node's disk, with `janusd guard --root DIR`: inode and directory marks only.
//!
//! Guarantee shown: what the marks reach is denied at once; new subdirectories are reached soon; nothing outside the
//! directory is touched.

use std::fs;
use std::time::Duration;

use crate::case::Case;
use crate::manifest;
use crate::protocol::{
    bind, create, hard_link, list, make_directories, open, read, rename, reopen, replace, size, symlink, truncate,
    write,
};

crate::kernel_tests![
    own_path,
    other_ways,
    moved_back_and_forth,
    symlinks,
    absolute_symlink_stays_in_the_root,
    hard_links,
    atomic_replace,
    new_files,
    path_made_later,
    path_made_later_in_a_directory_made_later,
    new_subdirectories,
    tree_moved_in,
    access,
    execute_denied,
    nothing_outside,
];

const SUBJECT: &str = "{allow: [/denied/open], deny: [/secret, /denied, /later], events: [open]}";

/// How long a new subdirectory may stay open: directory marks do not reach grandchildren.
const SOON: Duration = Duration::from_secs(2);

/// Files and directories by the names that the rules give.
fn own_path(case: &Case) {
    let place = case.directory();
    let _janusd = case.guard(&place, &manifest::guard(&[SUBJECT]));
    for path in ["/secret", "/denied", "/denied/file", "/denied/sub", "/denied/sub/file", "/denied/sub/deep/file"] {
        case.denied(place.open(place.at(path)));
    }
    for path in ["/", "/public", "/beside/file", "/denied/open", "/denied/open/file", "/etc/passwd"] {
        case.allowed(place.open(place.at(path)));
    }
    case.denied(place.act(truncate(place.at("/secret"))));
    let whole = "/secret\n".len().to_string().into_bytes();
    case.holds(place.act(size(place.at("/secret"))) == Ok(whole), "the content is whole");
}

/// `O_PATH`, a bind mount, a new mount namespace, a process's root, a second process.
fn other_ways(case: &Case) {
    let place = case.directory();
    let other = case.host();
    let _janusd = case.guard(&place, &manifest::guard(&[SUBJECT]));
    let (secret, inside) = (place.at("/secret"), place.at("/denied/sub/file"));
    for path in [&secret, &inside] {
        case.denied(place.act(reopen(path)));
        case.denied(other.open(path));
        case.denied(place.after_in_new_mount_namespace([], open(path)));
        let through = format!("/proc/{}/root{}", other.pid, path.display());
        case.denied(place.open(through));
    }
    let bound = place.at("/beside");
    case.denied(place.after_in_new_mount_namespace([bind(place.at("/denied"), &bound)], open(bound.join("sub/file"))));
}

/// A denied directory that is moved away and back, over and over: under either name its files are denied. Surveys see now
/// the one name and now the other, and must not take marks from what a moment later is there again.
fn moved_back_and_forth(case: &Case) {
    let place = case.directory();
    let _janusd = case.guard(&place, &manifest::guard(&["{deny: [/denied], events: [open], log: None}"]));
    let (here, away) = (place.at("/denied"), place.at("/away"));
    for _ in 0..1_000 {
        case.denied(place.after([rename(&here, &away)], open(away.join("file"))));
        case.denied(place.after([rename(&away, &here)], open(here.join("file"))));
    }
}

/// Symlinks below the root lead where they lead inside it.
fn symlinks(case: &Case) {
    let place = case.directory();
    let subject = "{deny: [/relative-link, /absolute-link, /beside/up/sub], events: [open]}";
    let _janusd = case.guard(&place, &manifest::guard(&[subject]));
    for path in ["/secret", "/relative-link", "/denied/sub/file", "/beside/up/sub/deep/file", "/chain/file"] {
        case.denied(place.open(place.at(path)));
    }
    case.denied(place.after([symlink("secret", place.at("/made-later"))], open(place.at("/made-later"))));
    case.allowed(place.open(place.at("/denied/file")));
}

/// A rule on an absolute symlink does not reach the node's file of that name.
fn absolute_symlink_stays_in_the_root(case: &Case) {
    let place = case.directory();
    let node = case.scratch("node-file");
    fs::write(&node, "the node's").unwrap();
    let inside = place.at(node.to_str().unwrap());
    place.prepare([
        make_directories(inside.parent().unwrap()),
        write(&inside, "the root's"),
        symlink(&node, place.at("/leak")),
    ]);
    let _janusd = case.guard(&place, &manifest::guard(&["{deny: [/leak], events: [open]}"]));
    case.denied(place.open(&inside));
    case.allowed(place.open(&node));
}

/// Another name for a literal denied file: made before and after, inside the root and beside it.
fn hard_links(case: &Case) {
    let place = case.directory();
    let (before, after) = (place.at("/before"), place.at("/beside/after"));
    let outside = case.scratch("outside");
    place.prepare([hard_link(place.at("/secret"), &before)]);
    let _janusd = case.guard(&place, &manifest::guard(&[SUBJECT]));
    case.denied(place.open(&before));
    case.denied(place.after([hard_link(place.at("/secret"), &after)], open(&after)));
    case.denied(place.after([hard_link(place.at("/secret"), &outside)], open(&outside)));
}

/// A replaced file is denied at once: its directory has a mark.
fn atomic_replace(case: &Case) {
    let place = case.directory();
    let _janusd = case.guard(&place, &manifest::guard(&[SUBJECT]));
    for turn in 0..50 {
        let content = format!("version {turn}");
        case.denied(place.after([replace(place.at("/secret"), &content)], open(place.at("/secret"))));
        let inside = place.at("/denied/sub/file");
        let aside = place.at("/aside");
        case.denied(place.after([write(&aside, &content), rename(&aside, &inside)], open(&inside)));
    }
}

/// New files in directories that exist are denied at once.
fn new_files(case: &Case) {
    let place = case.directory();
    let _janusd = case.guard(&place, &manifest::guard(&[SUBJECT]));
    for directory in ["/denied", "/denied/sub", "/denied/sub/deep"] {
        let (created, moved) = (place.at(directory).join("created"), place.at(directory).join("moved"));
        let aside = place.at("/aside");
        case.denied(place.act(create(&created)));
        case.denied(place.open(&created));
        case.denied(place.after([write(&aside, "new"), rename(&aside, &moved)], open(&moved)));
    }
}

/// A path that does not exist yet, in a directory that does: denied from the moment it exists.
fn path_made_later(case: &Case) {
    let place = case.directory();
    let _janusd = case.guard(&place, &manifest::guard(&[SUBJECT]));
    let (aside, later) = (place.at("/aside"), place.at("/later"));
    for _ in 0..20 {
        case.denied(place.after([write(&aside, "new"), rename(&aside, &later)], open(&later)));
    }
    case.allowed(place.act(create(place.at("/other"))));
}

/// A path whose directories are made later as well.
fn path_made_later_in_a_directory_made_later(case: &Case) {
    let place = case.directory();
    let _janusd = case.guard(&place, &manifest::guard(&["{deny: [/to/be/made], events: [open]}"]));
    let made = place.at("/to/be/made");
    let aside = place.at("/aside");
    place.prepare([make_directories(place.at("/to/be")), write(&aside, "new"), rename(&aside, &made)]);
    case.becomes_denied(SOON, || place.open(&made));
    case.allowed(place.act(create(place.at("/to/be/other"))));
    // In force by now for whatever takes its place.
    case.denied(place.after([write(&aside, "newer"), rename(&aside, &made)], open(&made)));
}

/// New subdirectories at depth, each soon.
fn new_subdirectories(case: &Case) {
    let place = case.directory();
    let _janusd = case.guard(&place, &manifest::guard(&[SUBJECT]));
    for turn in 0..5 {
        let directory = place.at(&format!("/denied/sub/deep/new-{turn}/a/b/c"));
        let (aside, file) = (place.at("/aside"), directory.join("file"));
        place.prepare([make_directories(&directory), write(&aside, "new"), rename(&aside, &file)]);
        case.becomes_denied(SOON, || place.open(&file));
        case.denied(place.act(create(directory.join("newer"))));
        case.denied(place.open(&directory));
    }
}

/// A filled tree that is moved into a denied directory.
fn tree_moved_in(case: &Case) {
    let place = case.directory();
    let _janusd = case.guard(&place, &manifest::guard(&[SUBJECT]));
    let (from, to) = (place.at("/tree"), place.at("/denied/tree"));
    place.prepare([make_directories(from.join("x/y")), write(from.join("x/y/file"), "new"), rename(&from, &to)]);
    case.becomes_denied(SOON, || place.open(to.join("x/y/file")));
}

/// `access`: reading and listing are refused, opening is not.
fn access(case: &Case) {
    let place = case.directory();
    let _janusd = case.guard(&place, &manifest::guard(&["{deny: [/secret, /denied], events: [access]}"]));
    case.allowed(place.open(place.at("/secret")));
    case.denied(place.act(read(place.at("/secret"))));
    case.denied(place.act(list(place.at("/denied"))));
    case.denied(place.act(list(place.at("/denied/sub/deep"))));
    case.denied(place.act(read(place.at("/denied/sub/file"))));
    case.allowed(place.act(read(place.at("/public"))));
    case.allowed(place.act(list(place.at("/beside"))));
}

/// `execute` of a program that lies in the directory.
fn execute_denied(case: &Case) {
    use crate::protocol::Act;
    let place = case.directory();
    for program in ["/denied/program", "/beside/program"] {
        fs::copy("/bin/true", place.at(program)).unwrap();
    }
    let _janusd = case.guard(&place, &manifest::guard(&["{deny: [/denied], events: [execute]}"]));
    let run = |path: &str| place.act(Act::Execute(place.at(path).into(), vec![]));
    case.denied(run("/denied/program"));
    case.allowed(run("/beside/program"));
    case.allowed(place.open(place.at("/denied/program")));
}

/// A rule on `/` stands for the directory, not for the node.
fn nothing_outside(case: &Case) {
    let place = case.directory();
    let beside = case.scratch("beside");
    fs::write(&beside, "the node's").unwrap();
    let _janusd = case.guard(&place, &manifest::guard(&["{deny: [/], events: [all]}"]));
    case.denied(place.open(place.at("/public")));
    case.denied(place.open(place.at("/denied/sub/deep/file")));
    for path in [beside.as_path(), case.scratch("").as_path(), "/etc/passwd".as_ref(), "/bin/true".as_ref()] {
        case.allowed(place.open(path));
    }
    case.allowed(place.act(write(&beside, "written")));
}

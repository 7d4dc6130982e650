//! Paths and globs, on the real kernel: which rule reaches what, and which one wins.
//!
//! Guarantee shown: contract 1, meaning, point 1, and the subject's path fields. The laws behind them are the decision
//! core's own tests; these show that marks reach what the rules say.

use crate::case::Case;
use crate::manifest;
use crate::protocol::{create, make_directories, read, write};

crate::kernel_tests![
    star_stays_in_its_segment,
    double_star_crosses_directories,
    classes_and_alternatives,
    escaped_characters,
    glob_of_new_files,
    glob_in_a_directory_of_the_disk,
    most_specific_wins,
    literal_beats_glob,
    deny_wins_a_tie,
    not_recursive,
    max_depth,
    only_directories,
    normalised_paths,
    example_of_v0_1_0,
];

/// `*` does not cross a slash, `?` is one character.
fn star_stays_in_its_segment(case: &Case) {
    let container = case.container();
    container.prepare([
        make_directories("/g/x.d"),
        write("/g/a.key", ""),
        write("/g/b", ""),
        write("/g/x.d/a.key", ""),
    ]);
    container.prepare([write("/g/one1", ""), write("/g/one22", "")]);
    let subject = "{deny: ['/g/*.key', '/g/one?'], events: [open]}";
    let _janusd = case.guard(&container, &manifest::guard(&[subject]));
    case.denied(container.open("/g/a.key"));
    case.denied(container.open("/g/one1"));
    for path in ["/g/b", "/g/x.d/a.key", "/g/one22", "/g"] {
        case.allowed(container.open(path));
    }
}

/// `**` stands for any number of whole segments, none included.
fn double_star_crosses_directories(case: &Case) {
    let container = case.container();
    let subject = "{deny: ['/srv/**/key'], events: [open]}";
    container.prepare([write("/srv/key", ""), write("/srv/a/b/other", "")]);
    let _janusd = case.guard(&container, &manifest::guard(&[subject]));
    for path in ["/srv/key", "/srv/a/b/key"] {
        case.denied(container.open(path));
    }
    case.denied(container.after([make_directories("/srv/x/y/z")], create("/srv/x/y/z/key")));
    for path in ["/srv", "/srv/a/b", "/srv/a/b/other"] {
        case.allowed(container.open(path));
    }
}

/// `[a-c]` and `{x,y}`.
fn classes_and_alternatives(case: &Case) {
    let container = case.container();
    container.prepare([make_directories("/g")]);
    for name in ["/g/fa", "/g/fd", "/g/x.conf", "/g/y.conf", "/g/z.conf"] {
        container.prepare([write(name, "")]);
    }
    let subject = "{deny: ['/g/f[a-c]', '/g/{x,y}.conf'], events: [open]}";
    let _janusd = case.guard(&container, &manifest::guard(&[subject]));
    for path in ["/g/fa", "/g/x.conf", "/g/y.conf"] {
        case.denied(container.open(path));
    }
    for path in ["/g/fd", "/g/z.conf"] {
        case.allowed(container.open(path));
    }
}

/// An escaped star is a star.
fn escaped_characters(case: &Case) {
    let container = case.container();
    container.prepare([make_directories("/g"), write("/g/*", ""), write("/g/a", ""), write("/g/{x}", "")]);
    let subject = r"{deny: ['/g/\*', '/g/\{x\}'], events: [open]}";
    let _janusd = case.guard(&container, &manifest::guard(&[subject]));
    case.denied(container.open("/g/*"));
    case.denied(container.open("/g/{x}"));
    case.allowed(container.open("/g/a"));
}

/// A glob holds for what comes later.
fn glob_of_new_files(case: &Case) {
    let container = case.container();
    let subject = "{deny: ['/etc/*.conf', '/new/**/*.pem'], events: [open]}";
    let _janusd = case.guard(&container, &manifest::guard(&[subject]));
    case.denied(container.act(create("/etc/later.conf")));
    case.denied(container.after([make_directories("/new/a/b")], create("/new/a/b/key.pem")));
    case.allowed(container.act(create("/new/a/b/key.pub")));
}

/// The same on a directory of the disk.
fn glob_in_a_directory_of_the_disk(case: &Case) {
    let place = case.directory();
    let subject = "{deny: ['/etc/*/*.conf', '/denied/**/file'], allow: ['/denied/open/**'], events: [open]}";
    let _janusd = case.guard(&place, &manifest::guard(&[subject]));
    for path in ["/etc/nginx/nginx.conf", "/denied/file", "/denied/sub/deep/file"] {
        case.denied(place.open(place.at(path)));
    }
    for path in ["/etc/nginx/conf.d/default.conf", "/denied", "/denied/open/file", "/etc/passwd"] {
        case.allowed(place.open(place.at(path)));
    }
    case.denied(place.act(create(place.at("/etc/nginx/later.conf"))));
    case.allowed(place.act(create(place.at("/etc/nginx/later.other"))));
}

/// The longest matching path decides, whatever list it is in.
fn most_specific_wins(case: &Case) {
    let container = case.container();
    let subject = "{allow: [/denied/open], deny: [/denied, /denied/open/shut], events: [open]}";
    let _janusd = case.guard(&container, &manifest::guard(&[subject]));
    for path in ["/denied/file", "/denied/sub/file", "/denied/open/shut", "/denied/open/shut/file"] {
        case.denied(container.open(path));
    }
    for path in ["/denied/open", "/denied/open/file", "/public"] {
        case.allowed(container.open(path));
    }
    case.allowed(container.after([make_directories("/denied/open/new")], create("/denied/open/new/file")));
    case.denied(container.after([make_directories("/denied/open/shut/new")], create("/denied/open/shut/new/file")));
}

/// A literal path beats a glob with the same literal prefix, both ways.
fn literal_beats_glob(case: &Case) {
    let container = case.container();
    let subject =
        "{allow: [/denied/file, '/etc/init.d/*'], deny: ['/denied/file*', /etc/init.d/nginx], events: [open]}";
    container.prepare([write("/denied/file2", "")]);
    let _janusd = case.guard(&container, &manifest::guard(&[subject]));
    case.allowed(container.open("/denied/file"));
    case.denied(container.open("/denied/file2"));
    case.denied(container.open("/etc/init.d/nginx"));
    case.allowed(container.open("/etc/init.d/cron"));
}

/// One path in both lists.
fn deny_wins_a_tie(case: &Case) {
    let container = case.container();
    let subject = "{allow: [/secret, '/srv/**'], deny: [/secret, '/srv/**'], events: [open]}";
    let _janusd = case.guard(&container, &manifest::guard(&[subject]));
    case.denied(container.open("/secret"));
    case.denied(container.open("/srv/a/b/key"));
    case.allowed(container.open("/public"));
}

/// `recursive: false`: the directory and its direct children, as v0.1.0 did.
fn not_recursive(case: &Case) {
    let container = case.container();
    let place = case.directory();
    let manifest = manifest::guard(&["{deny: [/denied], recursive: false, events: [open]}"]);
    {
        let _janusd = case.guard(&container, &manifest);
        for path in ["/denied", "/denied/file", "/denied/sub"] {
            case.denied(container.open(path));
        }
        case.denied(container.act(create("/denied/new")));
        for path in ["/denied/sub/file", "/denied/sub/deep", "/denied/open/file"] {
            case.allowed(container.open(path));
        }
    }
    let _janusd = case.guard(&place, &manifest);
    for path in ["/denied", "/denied/file", "/denied/sub"] {
        case.denied(place.open(place.at(path)));
    }
    case.allowed(place.open(place.at("/denied/sub/file")));
}

/// `maxDepth: 2`: children and grandchildren.
fn max_depth(case: &Case) {
    let container = case.container();
    let place = case.directory();
    let manifest = manifest::guard(&["{deny: [/denied], maxDepth: 2, events: [open]}"]);
    {
        let _janusd = case.guard(&container, &manifest);
        for path in ["/denied", "/denied/file", "/denied/sub", "/denied/sub/file", "/denied/sub/deep"] {
            case.denied(container.open(path));
        }
        case.allowed(container.open("/denied/sub/deep/file"));
        case.allowed(container.after([make_directories("/denied/a/b/c")], create("/denied/a/b/c/file")));
        case.denied(container.act(create("/denied/a/file")));
    }
    let _janusd = case.guard(&place, &manifest);
    for path in ["/denied/file", "/denied/sub/file", "/denied/sub/deep"] {
        case.denied(place.open(place.at(path)));
    }
    case.allowed(place.open(place.at("/denied/sub/deep/file")));
}

/// `onlyDir`: a path that is a file is left out, and said so.
fn only_directories(case: &Case) {
    let container = case.container();
    let subject = "{deny: [/secret, /denied], onlyDir: true, events: [open]}";
    let janusd = case.guard(&container, &manifest::guard(&[subject]));
    case.allowed(container.open("/secret"));
    case.denied(container.open("/denied"));
    case.denied(container.open("/denied/sub/file"));
    if let Some(janusd) = janusd.running() {
        janusd.says(&["/secret"]);
    }
}

/// `//` and a trailing slash mean nothing.
fn normalised_paths(case: &Case) {
    let container = case.container();
    let _janusd = case.guard(&container, &manifest::guard(&["{deny: ['//secret', '/denied//sub/'], events: [open]}"]));
    case.denied(container.open("/secret"));
    case.denied(container.open("/denied/sub/file"));
    case.allowed(container.open("/denied/file"));
}

/// The example of v0.1.0's documentation, unchanged.
fn example_of_v0_1_0(case: &Case) {
    let container = case.container();
    let manifest = "\
apiVersion: januscontroller.clustergarage.io/v1alpha1
kind: JanusGuard
metadata:
  name: nginx-janus-guard
spec:
  selector:
    matchLabels:
      run: nginx
  subjects:
  - allow:
    - /etc/nginx
    deny:
    - /etc/init.d/nginx
    events:
    - all
";
    let janusd = case.guard(&container, manifest);
    case.denied(container.open("/etc/init.d/nginx"));
    for path in ["/etc/init.d/cron", "/etc/init.d", "/etc/nginx", "/etc/nginx/nginx.conf"] {
        case.allowed(container.open(path));
    }
    case.allowed(container.act(read("/etc/nginx/conf.d/default.conf")));
    case.allowed(container.open("/etc/passwd"));
    if let Some(janusd) = janusd.running() {
        janusd.line_with(&["<DENY> OPEN_PERM file '/etc/init.d/nginx' (local:"]);
        janusd.line_with(&["<ALLOW> OPEN_PERM file '/etc/nginx/nginx.conf' (local:"]);
        janusd.line_with(&["<ALLOW> ACCESS_PERM file '/etc/nginx/conf.d/default.conf' (local:"]);
    }
}

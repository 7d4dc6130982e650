//! The rows of the matrix.
//!
//! What is written here is what the contract promises (a rule holds for the file, whatever its name), and where the
//! kernel gives no way to keep that promise, what happens instead and why. A cell that turns out otherwise, in either
//! direction, fails.

use super::room::Guard::{self, Execute, ExecuteTree, File, Key, Read, ReadTree, Tree};
use super::routes::{access, changes, descriptors, elsewhere, execute, links, mounts, names, silent};
use super::situation::Situation::*;
use super::situation::{DIRECTORIES, ONE_FILE, OVERLAYS, SHARED, Situation, USER};
use super::table::Cell::{NotApplicable, Open, Soon, Unsteady};
use super::table::{Except, Group, Route};

pub(crate) const ONE_FILE_ONLY: &str = "one file is mounted, not its directory";

const ACROSS: Except =
    (ONE_FILE, NotApplicable("a mounted file cannot be linked, renamed or replaced through its mountpoint"));
const NO_HANDLES: Except =
    (OVERLAYS, NotApplicable("an overlay gives no handles that can be opened, unless mounted with nfs_export"));
const NEW_DIRECTORIES: &str = "a directory that appears below DIR gets its marks a moment later";
const NEW_MOUNTS: &str = "a mount that appears in the container gets its mark a moment later";
const OWN_MOUNTS: &str = "a volume that others may hold is guarded through the container's own mounts, and a mount in \
                          another namespace, or in none, is not one of them";
const OTHERS: &str = "another holder of the volume is never denied: a guard does not reach past its namespace";
const BEFORE: &str = "opened before the guard: the kernel asks at open";
const FIXED_AT_OPEN: &str = "opened before the guard: whether reads are asked about is settled at open, \
                             by what else on that file system was guarded then";
const MAPPED: &str = "`access` is asked about at read, and a mapping reads nothing: deny `open`";
const NO_EVENT: &str = "no content is read, and the kernel has no event for it";
const SPECIAL: &str = "the kernel asks nobody about FIFOs, devices and sockets";
const BENEATH: &str = "beneath the file system that is guarded: the node's own view of the layers or the disk";
const MEMORY: &str = "what an allowed process has read is in its memory; who may trace it may read it";
const A_COPY: &str = "a copy is another file: deny `open` as well, so that none can be made";
const A_SNAPSHOT: &str = "a snapshot is a copy, made by the node without opening a file";
const ONLY_MAPPED: &str = "`execute` is asked about at execve, and a mapping executes nothing: deny `open`";
const NOT_OVERLAY: &str = "not an overlay";
const SEPARATED: &str =
    "a copy-up made it another file: overlayfs without an index separates the names of a lower file";
const NO_RIGHTS: &str = "the kernel refuses it in a user namespace";

const LAYERS_ONLY: Except = (
    &[Tmpfs, PodVolume, HostPath, Ext4, Btrfs, Xfs, OneFile, Directory, DirectoryExt4, DirectoryBtrfs, DirectoryXfs],
    NotApplicable(NOT_OVERLAY),
);
const SOON_IN_DIRECTORIES: Except = (DIRECTORIES, Soon(NEW_DIRECTORIES));
const SOON_IF_SHARED: Except = (SHARED, Soon(NEW_MOUNTS));
const OPEN_IF_SHARED: Except = (SHARED, Open(OWN_MOUNTS));

const OPEN_ONCE_SEPARATED: Except = (&[Overlay, UserNamespace], Open(SEPARATED));

const OPENED: &[Guard] = &[File, Tree];
const EXECUTED: &[Guard] = &[Execute, ExecuteTree];

pub(crate) const GROUPS: &[Group] = &[
    Group { title: "Paths", routes: PATHS },
    Group { title: "Other names", routes: NAMES },
    Group { title: "Made or replaced while guarded", routes: CHANGES },
    Group { title: "Lower files of an overlay", routes: LOWER },
    Group { title: "Mounts and roots", routes: MOUNTS },
    Group { title: "Descriptors, mappings, memory", routes: DESCRIPTORS },
    Group { title: "Other holders, and beneath", routes: ELSEWHERE },
    Group { title: "`access`: read and list", routes: ACCESS },
    Group { title: "`execute`", routes: EXECUTE },
    Group { title: "Nothing is asked", routes: SILENT },
];

const PATHS: &[Route] = &[
    Route::new("own-path", "its own path", OPENED, names::own_path),
    Route::new("untidy-path", "`//`, `/./` and `x/../` in it", OPENED, names::untidy),
    Route::new("relative-path", "relative, from a working directory inside", OPENED, names::relative),
    Route::new(
        "dirfd-before",
        "openat from a directory opened before the guard",
        OPENED,
        names::directory_opened_before,
    ),
    Route::new("dirfd-o-path", "openat from an `O_PATH` directory", OPENED, names::directory_by_o_path),
    Route::new("openat2", "openat2 with each `RESOLVE_` flag", OPENED, names::every_resolution),
    Route::new("every-mode", "write, append, `O_NOATIME`, `O_NONBLOCK`, access mode 3", OPENED, names::every_mode),
    Route::new("truncated", "`O_TRUNC` (the content stays whole)", OPENED, changes::truncated),
    Route::new("io-uring-open", "io_uring `OPENAT`", OPENED, names::io_uring),
    Route::new("handle", "open_by_handle_at", OPENED, names::handle).except(&[NO_HANDLES]),
    Route::new("own-cwd-link", "`/proc/self/cwd`", OPENED, names::own_cwd_link),
    Route::new("own-root-link", "`/proc/self/root`", OPENED, names::own_root_link),
    Route::new("root-of-a-process", "the node, by `/proc/PID/root`", OPENED, names::root_of_a_process).by_node(),
    Route::new("cwd-of-a-process", "the node, by `/proc/PID/cwd`", OPENED, names::cwd_of_a_process)
        .by_node()
        .held(names::hold_cwd),
    Route::new("list-open", "listing the directory", &[Tree], names::listed),
];

const NAMES: &[Route] = &[
    Route::new("symlink-relative", "relative symlink", OPENED, names::symlink_relative),
    Route::new("symlink-absolute", "absolute symlink", OPENED, names::symlink_absolute),
    Route::new("symlink-chain", "chain of symlinks", OPENED, names::symlink_chain),
    Route::new("symlink-middle", "symlink in the middle of the path", OPENED, names::symlink_in_the_middle),
    Route::new("symlink-later", "symlink made while guarded", OPENED, names::symlink_made_later),
    Route::new("hard-link-before", "hard link made before the guard", OPENED, links::hard_link_before)
        .except(&[ACROSS]),
    Route::new("hard-link-after", "hard link made while guarded", OPENED, links::hard_link_after).except(&[ACROSS]),
    Route::new("hard-link-instead", "hard link elsewhere, the guarded name removed", OPENED, links::hard_link_instead)
        .except(&[ACROSS]),
    Route::new("renamed", "renamed or moved out", OPENED, links::renamed).except(&[ACROSS]),
    Route::new("exchanged", "exchanged with another (`RENAME_EXCHANGE`)", OPENED, links::exchanged).except(&[ACROSS]),
    Route::new("directory-renamed", "denied directory renamed, the file below it", &[Tree], links::directory_renamed),
    Route::new("subdirectory-out", "subdirectory moved out of it", &[Tree], links::subdirectory_moved_out),
    Route::new("parent-renamed", "directory above renamed", OPENED, links::parent_renamed).except(&[ACROSS]),
];

const CHANGES: &[Route] = &[
    Route::new("moved-in", "file moved into a denied directory", &[Tree], links::moved_in),
    Route::new("linked-in", "hard link into a denied directory", &[Tree], links::linked_in),
    Route::new(
        "linked-in-old-name",
        "the same, by its old name, once seen inside",
        &[Tree],
        links::linked_in_by_its_old_name,
    ),
    Route::new("tree-moved-in", "directory moved into a denied one, the file below it", &[Tree], links::tree_moved_in)
        .except(&[SOON_IN_DIRECTORIES]),
    Route::new("new-directories", "file in directories made below a denied one", &[Tree], changes::new_directories)
        .except(&[SOON_IN_DIRECTORIES]),
    Route::new("directory-anew", "denied directory removed and made anew", &[Tree], changes::directory_made_anew)
        .except(&[SOON_IN_DIRECTORIES]),
    Route::new("created", "`O_CREAT` (refused, though the empty file is made)", OPENED, changes::created)
        .except(&[ACROSS]),
    Route::new("nameless", "`O_TMPFILE`, then linkat to the guarded name", OPENED, links::nameless_linked_in)
        .except(&[ACROSS]),
    Route::new("made-anew", "removed and made anew", OPENED, changes::made_anew).except(&[ACROSS]),
    Route::new("replaced", "replaced by rename", OPENED, changes::replaced).except(&[ACROSS]),
    Route::new("data-swapped", "`..data` swapped, as the kubelet does", &[Key], changes::data_swapped)
        .except(&[SOON_IN_DIRECTORIES]),
];

const LOWER: &[Route] = &[
    Route::new("copied-up-before", "copied up before the guard", OPENED, links::copied_up_before)
        .except(&[LAYERS_ONLY]),
    Route::new("copied-up", "copied up while guarded", OPENED, links::copied_up_after).except(&[LAYERS_ONLY]),
    Route::new("lower-own", "several names: the rule's", &[File], names::own_path).except(&[LAYERS_ONLY]),
    Route::new("lower-twin", "several names: another", &[File], links::other_name).except(&[LAYERS_ONLY]),
    Route::new("lower-own-up-before", "the rule's, copied up before the guard", &[File], links::copied_up_before)
        .except(&[LAYERS_ONLY]),
    Route::new("lower-own-up", "the rule's, copied up while guarded", &[File], links::copied_up_after)
        .except(&[LAYERS_ONLY]),
    Route::new(
        "lower-twin-own-up-before",
        "another, the rule's copied up before the guard",
        &[File],
        links::other_name_after_copy_up_before,
    )
    .except(&[LAYERS_ONLY, OPEN_ONCE_SEPARATED]),
    Route::new(
        "lower-twin-own-up",
        "another, the rule's copied up while guarded",
        &[File],
        links::other_name_after_copy_up,
    )
    .except(&[LAYERS_ONLY]),
    Route::new(
        "lower-twin-up-before",
        "another, copied up before the guard",
        &[File],
        links::other_name_copied_up_before,
    )
    .except(&[LAYERS_ONLY, OPEN_ONCE_SEPARATED]),
    Route::new("lower-twin-up", "another, copied up while guarded", &[File], links::other_name_copied_up)
        .except(&[LAYERS_ONLY, OPEN_ONCE_SEPARATED]),
    Route::new(
        "lower-own-twin-up",
        "the rule's, another copied up while guarded",
        &[File],
        links::after_copy_up_of_the_other_name,
    )
    .except(&[LAYERS_ONLY]),
];

const MOUNTS: &[Route] = &[
    Route::new("bind-file", "bind mount of the file", OPENED, mounts::bind_of_the_file).except(&[SOON_IF_SHARED]),
    Route::new("bind-directory", "bind mount of its directory", OPENED, mounts::bind_of_the_directory)
        .except(&[SOON_IF_SHARED, FILE_UNDER_BIND]),
    Route::new("bind-parent", "bind mount of a directory above", OPENED, mounts::bind_of_a_parent)
        .except(&[SOON_IF_SHARED, FILE_UNDER_BIND]),
    Route::new(
        "bind-recursive",
        "recursive bind mount of `/`, in a mount namespace of one's own",
        OPENED,
        mounts::recursive_bind,
    )
    .except(&[OPEN_IF_SHARED]),
    Route::new("mount-moved", "`mount --move`", OPENED, mounts::moved_mount).except(&[SOON_IF_SHARED, FILE_UNDER_BIND]),
    Route::new("open-tree", "open_tree (detached mount)", OPENED, mounts::detached_tree)
        .except(&[OPEN_IF_SHARED, FILE_UNDER_BIND]),
    Route::new("open-tree-attached", "open_tree and move_mount", OPENED, mounts::attached_tree)
        .except(&[SOON_IF_SHARED, FILE_UNDER_BIND]),
    Route::new("mount-namespace", "new mount namespace", OPENED, mounts::new_mount_namespace).except(&[OPEN_IF_SHARED]),
    Route::new("user-namespace", "new user and mount namespace", OPENED, mounts::new_user_namespace)
        .except(&[OPEN_IF_SHARED]),
    Route::new("chroot", "chroot", OPENED, mounts::changed_root),
    Route::new("pivot-root", "pivot_root in a mount namespace of one's own", OPENED, mounts::pivoted_root)
        .except(&[OPEN_IF_SHARED, FILE_UNDER_BIND]),
    Route::new(
        "overlay-above",
        "an overlay over its directory, in a user namespace of one's own",
        OPENED,
        mounts::overlay_above,
    )
    .except(&[OPEN_IF_SHARED, FILE_UNDER_BIND]),
    Route::new("loop-device", "loop device over the file", OPENED, mounts::loop_device).by_node(),
    Route::new("swap", "swapon", OPENED, mounts::swap).by_node(),
];

const FILE_UNDER_BIND: Except =
    (ONE_FILE, NotApplicable("a bind mount that is not recursive shows the mountpoint, not what is mounted"));

const DESCRIPTORS: &[Route] = &[
    Route::new("o-path", "`O_PATH`, then `/proc/self/fd`", OPENED, descriptors::o_path_after),
    Route::new(
        "o-path-before",
        "`O_PATH` from before the guard, then `/proc/self/fd`",
        OPENED,
        descriptors::o_path_before,
    ),
    Route::new(
        "fd-of-another",
        "`/proc/PID/fd` of a process that has it open",
        OPENED,
        descriptors::descriptor_of_another,
    )
    .by_node()
    .held(descriptors::hold_open),
    Route::new(
        "mapping-of-another",
        "`/proc/PID/map_files` of a process that has it mapped",
        OPENED,
        descriptors::mapping_of_another,
    )
    .by_node()
    .held(descriptors::hold_mapped),
    Route::new(
        "exe-of-another",
        "`/proc/PID/exe` of a process that runs it",
        OPENED,
        descriptors::executable_of_another,
    )
    .by_node()
    .held(descriptors::hold_running),
    Route::new("fd-before", "descriptor opened before, read", OPENED, descriptors::opened_before).open(BEFORE),
    Route::new(
        "fd-passed",
        "descriptor opened before, passed on (`SCM_RIGHTS`)",
        OPENED,
        descriptors::passed_over_a_socket,
    )
    .open(BEFORE),
    Route::new("fd-taken", "descriptor opened before, taken (pidfd_getfd)", OPENED, descriptors::descriptor_taken)
        .by_node()
        .held(descriptors::hold_open)
        .open(BEFORE),
    Route::new("mapped-before", "descriptor opened before, mapped", OPENED, descriptors::mapped_before).open(BEFORE),
    Route::new(
        "memory",
        "memory of a process that has read it (ptrace, `/proc/PID/mem`)",
        OPENED,
        descriptors::memory_of_another,
    )
    .by_node()
    .held(descriptors::hold_read)
    .open(MEMORY),
];

const ON_NODE_OVERLAY: Except = (OVERLAYS, NotApplicable("the container's own root has no other mount"));
const OPEN_TO_OTHERS: Except = (SHARED, Open(OTHERS));

const ELSEWHERE: &[Route] = &[
    Route::new("other-holder", "the node, by its own path to the volume", OPENED, elsewhere::other_holder)
        .by_node()
        .except(&[ON_NODE_OVERLAY, OPEN_TO_OTHERS]),
    Route::new(
        "other-holder-namespace",
        "the same, in another mount namespace",
        OPENED,
        elsewhere::other_holder_in_new_mount_namespace,
    )
    .by_node()
    .except(&[ON_NODE_OVERLAY, OPEN_TO_OTHERS]),
    Route::new(
        "other-holder-link",
        "the node, by a hard link that it made outside of the volume",
        OPENED,
        elsewhere::other_holders_hard_link,
    )
    .by_node()
    .except(&[ON_NODE_OVERLAY, OPEN_TO_OTHERS, (&[Tmpfs], NotApplicable("all of the file system is the volume"))]),
    Route::new(
        "replaced-by-other",
        "replaced by the node, opened in the container",
        OPENED,
        elsewhere::replaced_by_another_holder,
    )
    .by_node()
    .except(&[ON_NODE_OVERLAY, (ONE_FILE, NotApplicable("the mount goes on showing the file that it showed"))]),
    Route::new("lower-layer", "the node, straight from the lower layer", OPENED, elsewhere::lower_layer)
        .by_node()
        .except(&[LAYERS_ONLY])
        .open(BENEATH),
    Route::new("upper-layer", "the node, straight from the upper layer", OPENED, elsewhere::upper_layer)
        .by_node()
        .held(elsewhere::hold_copied_up)
        .except(&[LAYERS_ONLY])
        .open(BENEATH),
    Route::new("second-overlay", "the node, by a second overlay of the same layers", OPENED, elsewhere::second_overlay)
        .by_node()
        .except(&[LAYERS_ONLY])
        .open(BENEATH),
    Route::new("snapshot", "the node, by a snapshot of the file system", OPENED, elsewhere::snapshot)
        .by_node()
        .except(&[(NO_SNAPSHOTS, NotApplicable("no snapshots"))])
        .open(A_SNAPSHOT),
    Route::new("block-device", "the node, by the disk's bytes", OPENED, elsewhere::block_device)
        .by_node()
        .except(&[(NO_DISK, NotApplicable("not tried on the node's own disk"))])
        .open(BENEATH),
];

const NO_SNAPSHOTS: &[Situation] = &[
    Overlay,
    OverlayIndex,
    UserNamespace,
    Tmpfs,
    PodVolume,
    HostPath,
    Ext4,
    Xfs,
    OneFile,
    Directory,
    DirectoryExt4,
    DirectoryXfs,
];
const NO_DISK: &[Situation] = &[Overlay, OverlayIndex, UserNamespace, Tmpfs, PodVolume, HostPath, OneFile, Directory];
const ON_THE_NODES_DISK: &[Situation] = &[PodVolume, HostPath, OneFile, Directory];

const ACCESS: &[Route] = &[
    Route::new("read", "read", &[Read, ReadTree], access::read),
    Route::new("pread", "pread", &[Read, ReadTree], access::pread),
    Route::new("readv", "readv", &[Read, ReadTree], access::read_vectored),
    Route::new("preadv2", "preadv2", &[Read, ReadTree], access::pread_vectored),
    Route::new("sendfile", "sendfile", &[Read, ReadTree], access::send_file),
    Route::new("splice", "splice", &[Read, ReadTree], access::splice_to_pipe),
    Route::new("copy-file-range", "copy_file_range", &[Read, ReadTree], access::copy_range)
        .except(&[(ONE_FILE, NotApplicable("copies only within one file system"))]),
    Route::new("reflink", "`FICLONE`", &[Read, ReadTree], access::cloned)
        .except(&[(NO_CLONES, NotApplicable("no reflinks"))]),
    Route::new("io-uring-read", "io_uring `READ`", &[Read, ReadTree], access::io_uring),
    Route::new("list", "list the directory", &[ReadTree], access::listed),
    Route::new("list-o-path", "list it through `/proc/self/fd`", &[ReadTree], access::listed_through_o_path),
    Route::new("map", "mmap", &[Read, ReadTree], access::mapped).open(MAPPED),
    Route::new("read-fd-before", "read a descriptor opened before", &[Read, ReadTree], descriptors::opened_before)
        .except(&[(ON_THE_NODES_DISK, Unsteady(FIXED_AT_OPEN))])
        .open(FIXED_AT_OPEN),
    Route::new(
        "list-fd-before",
        "list a directory opened before",
        &[ReadTree],
        access::listed_by_a_descriptor_from_before,
    ),
];

const NO_CLONES: &[Situation] =
    &[Overlay, OverlayIndex, UserNamespace, Tmpfs, PodVolume, HostPath, Ext4, OneFile, Directory, DirectoryExt4];

const EXECUTE: &[Route] = &[
    Route::new("execve", "execve", EXECUTED, execute::execve),
    Route::new("execveat", "execveat of a descriptor", EXECUTED, execute::descriptor),
    Route::new("execveat-o-path", "execveat of an `O_PATH` descriptor", EXECUTED, execute::descriptor_o_path),
    Route::new(
        "exec-fd-link",
        "execve of `/proc/PID/fd`, `O_PATH` from before the guard",
        EXECUTED,
        execute::o_path_reopened,
    ),
    Route::new("exec-symlink", "by a symlink", EXECUTED, execute::by_symlink),
    Route::new("exec-hard-link", "by a hard link", EXECUTED, execute::by_hard_link),
    Route::new("exec-renamed", "renamed", EXECUTED, execute::renamed),
    Route::new("exec-replaced", "replaced by another program", EXECUTED, execute::replaced),
    Route::new("exec-bind", "by a bind mount", EXECUTED, execute::by_bind_mount).except(&[SOON_IF_SHARED]),
    Route::new("exec-namespace", "in a new mount namespace", EXECUTED, execute::in_new_mount_namespace)
        .except(&[OPEN_IF_SHARED]),
    Route::new("script", "a script, by its `#!`", EXECUTED, execute::execve),
    Route::new("interpreter", "as the interpreter of a script", EXECUTED, execute::as_interpreter),
    Route::new("loader", "`ld.so program`", EXECUTED, execute::by_the_loader),
    Route::new("shell", "`sh script`, where its `#!` names sh", EXECUTED, execute::by_the_shell),
    Route::new("shell-script", "`sh script`, where it has no `#!`", EXECUTED, execute::by_a_shell_without_a_line)
        .open("the file names no interpreter: to a shell it is a file like any other"),
    Route::new("copied-loader", "a copy of ld.so, given the program", EXECUTED, execute::by_a_copied_loader)
        .open(A_COPY),
    Route::new("exec-copy", "a copy of the program", EXECUTED, execute::copied).open(A_COPY),
    Route::new("exec-memfd", "a copy in memory (memfd)", EXECUTED, execute::copied_to_memory).open(A_COPY),
    Route::new("exec-map", "mapped executable, as a library is", EXECUTED, execute::mapped_executable)
        .open(ONLY_MAPPED),
];

const SILENT: &[Route] = &[
    Route::new("stat", "stat", OPENED, silent::stat).open(NO_EVENT),
    Route::new("o-path-alone", "`O_PATH`", OPENED, silent::o_path).open(NO_EVENT),
    Route::new("chmod", "chmod", OPENED, silent::change_mode).open(NO_EVENT),
    Route::new("utimes", "utimensat", OPENED, silent::change_times).open(NO_EVENT),
    Route::new("truncate", "truncate by path (the content is lost)", OPENED, silent::truncate).open(NO_EVENT),
    Route::new("rename-alone", "rename", OPENED, silent::rename).except(&[ACROSS]).open(NO_EVENT),
    Route::new("unlink-alone", "unlink", OPENED, silent::unlink).except(&[ACROSS]).open(NO_EVENT),
    Route::new("link-alone", "link", OPENED, silent::link).except(&[ACROSS]).open(NO_EVENT),
    Route::new("mkdir", "mkdir and symlink in a denied directory", &[Tree], silent::make_entries).open(NO_EVENT),
    Route::new("fifo", "a FIFO in a denied directory", &[Tree], silent::fifo).open(SPECIAL),
    Route::new("device", "a device in a denied directory", &[Tree], silent::device)
        .except(&[(USER, NotApplicable(NO_RIGHTS))])
        .open(SPECIAL),
    Route::new("socket", "connecting to a socket in a denied directory", &[Tree], silent::socket).open(SPECIAL),
];

//! The rights that janusd keeps: four capabilities, and the system calls that its work takes.
//!
//! Two steps, in this order: [`give_up_capabilities`] before any thread is started (capabilities belong to threads),
//! [`confine`] once the kernel has been probed (for which janusd makes a file system of its own) and before anything is
//! guarded; it holds for threads that run already as well.
//!
//! Why a refused call gets an error and the process is not killed: when janusd dies the kernel *allows* all that waits. A
//! call that is on no list gets ENOSYS, so that libc falls back to an older one; what would let an intruder out gets EPERM.
//! Either is told in the kernel's log (audit record 1326, with the call's number), so that a call that a library has come to
//! need is found. janusd starts no process: neither execve nor a clone that is no thread is allowed.
//!
//! Caveats: no thread may be started with clone3, whose flags a filter cannot see; libc falls back to clone, and as that is
//! its everyday way, it is not told. A call of another architecture (`int 0x80`) kills: none of our code makes one. Where
//! musl is the libc, `abort()` ends by SIGSEGV instead of SIGABRT: its tkill could reach any process.

use std::collections::BTreeMap;

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use crate::fanotify::sys::{Refusals, filter_calls};

/// The capabilities that are kept. AUDIT_WRITE is for `audit: true`; without the others nothing can be enforced.
pub const KEPT: CapabilitySet = CapabilitySet::SYS_ADMIN
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::AUDIT_WRITE);

/// Rights that could not be given up. What could be, was.
#[derive(Debug, thiserror::Error)]
pub enum RightsError {
    /// The kernel refused.
    #[error("{what}: {source}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// Why not.
        source: Errno,
    },
    /// No system call filter for this architecture, or the kernel takes none.
    #[error("system calls are not filtered: {0}")]
    Filter(#[source] Box<dyn std::error::Error + Send + Sync>),
}

fn refused(what: &'static str) -> impl Fn(Errno) -> RightsError {
    move |source| RightsError::Refused { what, source }
}

/// Keeps of this thread's capabilities those in [`KEPT`] and sees to it that none comes back. Call it before any thread is
/// started: each has its own.
///
/// # Errors
/// [`RightsError::Refused`]; the other steps are done all the same.
pub fn give_up_capabilities() -> Result<(), RightsError> {
    // The bounding set first: to change it takes a capability that goes.
    let bounding = shrink_bounding_set();
    let ambient = rustix::thread::clear_ambient_capability_set().map_err(refused("ambient capabilities"));
    let privileges = rustix::thread::set_no_new_privs(true).map_err(refused("no_new_privs"));
    let capabilities = rustix::thread::capabilities(None)
        .and_then(|held| {
            let kept = held.permitted.intersection(KEPT);
            let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
            rustix::thread::set_capabilities(None, sets)
        })
        .map_err(refused("capabilities"));
    bounding.and(ambient).and(privileges).and(capabilities)
}

fn shrink_bounding_set() -> Result<(), RightsError> {
    for number in 0..u64::BITS {
        // By number: the kernel may know more of them than we do.
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if KEPT.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // Beyond the last one.
            Err(Errno::INVAL) => break,
            // Without CAP_SETPCAP, as in most containers: it binds execve only, which is refused anyway.
            Err(Errno::PERM) => return Ok(()),
            Err(errno) => return Err(refused("bounding set")(errno)),
        }
    }
    Ok(())
}

/// Filters the system calls of every thread of this process, for good.
///
/// # Errors
/// [`RightsError::Filter`]; what was filtered before it stays filtered.
pub fn confine() -> Result<(), RightsError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| RightsError::Filter(error.into()))?;
    let filters =
        [(allowing(arch)?, Refusals::Told), (refusing(arch)?, Refusals::Told), (avoiding(arch)?, Refusals::Untold)];
    // All that may fail in us has been done. Without it, only who has CAP_SYS_ADMIN may filter.
    rustix::thread::set_no_new_privs(true).map_err(refused("no_new_privs"))?;
    // In this order: of several errors the kernel gives that of the youngest filter, and tells if that one asks for it.
    for (program, refusals) in filters {
        filter_calls(&program, refusals).map_err(|error| RightsError::Filter(error.into()))?;
    }
    Ok(())
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;
type Built<T> = Result<T, seccompiler::BackendError>;

fn filter_error(error: seccompiler::BackendError) -> RightsError {
    RightsError::Filter(error.into())
}

fn error(errno: Errno) -> SeccompAction {
    SeccompAction::Errno(errno.raw_os_error().unsigned_abs())
}

/// What janusd calls; the rest does not exist.
fn allowing(arch: TargetArch) -> Result<BpfProgram, RightsError> {
    allowed()
        .and_then(|rules| SeccompFilter::new(rules, error(Errno::NOSYS), SeccompAction::Allow, arch)?.try_into())
        .map_err(filter_error)
}

/// What janusd is never to do.
fn refusing(arch: TargetArch) -> Result<BpfProgram, RightsError> {
    forbidden()
        .and_then(|rules| SeccompFilter::new(rules, SeccompAction::Allow, error(Errno::PERM), arch)?.try_into())
        .map_err(filter_error)
}

/// What libc tries first for every thread, and can do without.
fn avoiding(arch: TargetArch) -> Result<BpfProgram, RightsError> {
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    SeccompFilter::new(rules, SeccompAction::Allow, error(Errno::NOSYS), arch)
        .and_then(TryInto::try_into)
        .map_err(filter_error)
}

/// A rule that holds when each of these arguments compares so.
fn rule<const N: usize>(conditions: [(u8, SeccompCmpOp, u64); N]) -> Built<SeccompRule> {
    let conditions: Built<Vec<_>> = conditions
        .into_iter()
        .map(|(argument, operator, value)| SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value))
        .collect();
    SeccompRule::new(conditions?)
}

/// One rule for each value that an argument may have.
fn one_of(argument: u8, values: &[libc::c_int]) -> Built<Vec<SeccompRule>> {
    values.iter().map(|value| rule([(argument, SeccompCmpOp::Eq, u64::from(value.cast_unsigned()))])).collect()
}

const FAMILIES: [libc::c_int; 3] = [libc::AF_INET, libc::AF_INET6, libc::AF_UNIX];

fn allowed() -> Built<Rules> {
    let mut rules: Rules = ALLOWED.iter().chain(ALLOWED_HERE).map(|call| (*call, Vec::new())).collect();
    let threads = u64::from(libc::CLONE_THREAD.cast_unsigned());
    let own_pid = u64::from(std::process::id());
    rules.extend([
        (libc::SYS_clone, vec![rule([(0, SeccompCmpOp::MaskedEq(threads), threads)])?]),
        (libc::SYS_socket, one_of(0, &FAMILIES)?),
        (libc::SYS_socketpair, one_of(0, &[libc::AF_UNIX])?),
        // Their own limits only.
        (libc::SYS_prlimit64, vec![rule([(0, SeccompCmpOp::Eq, 0)])?]),
        // abort() signals its own thread.
        (libc::SYS_tgkill, vec![rule([(0, SeccompCmpOp::Eq, own_pid)])?]),
        (
            libc::SYS_ioctl,
            IOCTLS.iter().map(|ioctl| rule([(1, SeccompCmpOp::Eq, u64::from(*ioctl))])).collect::<Built<_>>()?,
        ),
        (libc::SYS_prctl, one_of(0, &PRCTLS)?),
    ]);
    Ok(rules)
}

fn forbidden() -> Built<Rules> {
    let mut rules: Rules = FORBIDDEN.iter().chain(FORBIDDEN_HERE).map(|call| (*call, Vec::new())).collect();
    let threads = u64::from(libc::CLONE_THREAD.cast_unsigned());
    let family = |at: usize| (0, SeccompCmpOp::Ne, u64::from(FAMILIES[at].cast_unsigned()));
    rules.extend([
        (libc::SYS_clone, vec![rule([(0, SeccompCmpOp::MaskedEq(threads), 0)])?]),
        (libc::SYS_socket, vec![rule([family(0), family(1), family(2)])?]),
    ]);
    Ok(rules)
}

/// Descriptors that do not block, terminals asked whether they are one. Each libc has a type of its own for them; the kernel
/// reads 32 bits.
const IOCTLS: [u32; 5] =
    [libc::FIONBIO as u32, libc::FIOCLEX as u32, libc::FIONREAD as u32, libc::TCGETS as u32, libc::TIOCGWINSZ as u32];

/// What the kernel told this process at its start: where rustix finds the clocks of the vDSO (Linux 6.4). Not in libc.
const PR_GET_AUXV: libc::c_int = 0x4155_5856;

/// Names of threads and of memory; more filters, which can only refuse more.
const PRCTLS: [libc::c_int; 7] = [
    libc::PR_SET_NAME,
    libc::PR_GET_NAME,
    libc::PR_SET_VMA,
    libc::PR_SET_NO_NEW_PRIVS,
    libc::PR_GET_NO_NEW_PRIVS,
    libc::PR_CAPBSET_READ,
    PR_GET_AUXV,
];

/// Seen in the test suites, or known to be a variant that libc, std or tokio fall back to or may come to prefer.
const ALLOWED: &[i64] = &[
    // Files.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_name_to_handle_at,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    // Guards.
    libc::SYS_fanotify_init,
    libc::SYS_fanotify_mark,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    libc::SYS_pidfd_open,
    // Waiting.
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_membarrier,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_sched_yield,
    // Threads and memory.
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_rseq,
    libc::SYS_set_tid_address,
    libc::SYS_sched_getaffinity,
    libc::SYS_getcpu,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Signals.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    // Who and when we are.
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getsid,
    libc::SYS_capget,
    libc::SYS_getrandom,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrusage,
    libc::SYS_times,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    // Serving. Nobody is called: there is no connect.
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    // More filters.
    libc::SYS_seccomp,
];

/// Older variants of the same.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[i64] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_wait,
    libc::SYS_dup2,
    libc::SYS_getrlimit,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[i64] = &[];

/// Refused by name, so that the refusal reads as one.
const FORBIDDEN: &[i64] = &[
    // Other programs and processes.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kill,
    // Namespaces and mounts.
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_chroot,
    libc::SYS_pivot_root,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_mount_setattr,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    // Files past their permissions.
    libc::SYS_open_by_handle_at,
    libc::SYS_mknodat,
    // The kernel.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_reboot,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_syslog,
];

#[cfg(target_arch = "x86_64")]
const FORBIDDEN_HERE: &[i64] =
    &[libc::SYS_fork, libc::SYS_vfork, libc::SYS_kexec_file_load, libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_mknod];
#[cfg(not(target_arch = "x86_64"))]
const FORBIDDEN_HERE: &[i64] = &[];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_both_allowed_and_refused() {
        let allowed: Vec<i64> = ALLOWED.iter().chain(ALLOWED_HERE).copied().collect();
        let refused: Vec<i64> = FORBIDDEN.iter().chain(FORBIDDEN_HERE).copied().collect();
        for call in &refused {
            assert!(!allowed.contains(call), "{call}");
        }
        assert!(!allowed.contains(&libc::SYS_clone3) && !allowed.contains(&libc::SYS_connect));
    }

    #[test]
    fn both_filters_can_be_built_for_both_architectures() {
        for arch in [TargetArch::x86_64, TargetArch::aarch64] {
            assert!(!allowing(arch).unwrap().is_empty());
            assert!(!refusing(arch).unwrap().is_empty());
            assert!(!avoiding(arch).unwrap().is_empty());
        }
        assert!(TargetArch::try_from("sparc").is_err());
    }
}

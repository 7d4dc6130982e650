//! Which of a container's processes is its first. Pure.
//!
//! A container has a PID 1 of its own, or shares the pid namespace of its pod or of the node. Either way its first process
//! is the oldest of those that no other process of the container has begotten. Sessions (`kubectl exec`) and orphans that
//! someone outside has adopted are such *heads* as well, and younger.

use std::collections::HashSet;

use crate::process::facts::Stat;

/// A process of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// As our pid namespace numbers it.
    pub pid: i32,
    /// Its parent, and when it began.
    pub stat: Stat,
    /// As its own pid namespace numbers it.
    pub innermost: Option<i32>,
}

impl Member {
    /// Whether it is PID 1 of a pid namespace that is not the node's.
    fn leads(&self) -> bool {
        self.innermost == Some(1) && self.pid != 1
    }
}

/// The heads among a container's processes, the likeliest first: the older, and of those that began in the same tick the
/// one that is a PID 1.
///
/// `ended`: the tick in which a former first process of this container was seen to have ended. What is older was brought
/// in while that one lived, and is a session that has outlived it, unless it is a PID 1.
pub fn heads(members: &[Member], ended: Option<u64>) -> Vec<Member> {
    let inside: HashSet<i32> = members.iter().map(|member| member.pid).collect();
    let could_be = |member: &&Member| {
        !inside.contains(&member.stat.parent) && (member.leads() || ended.is_none_or(|ended| member.stat.start > ended))
    };
    let mut heads: Vec<Member> = members.iter().filter(could_be).copied().collect();
    heads.sort_by_key(|member| (member.stat.start, !member.leads(), member.pid));
    heads
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SHIM: i32 = 500;

    fn member(pid: i32, parent: i32, start: u64, innermost: i32) -> Member {
        Member { pid, stat: Stat { parent, session: pid, start }, innermost: Some(innermost) }
    }

    fn order(members: &[Member], ended: Option<u64>) -> Vec<i32> {
        heads(members, ended).iter().map(|head| head.pid).collect()
    }

    #[test]
    fn a_pid_namespace_of_its_own() {
        let init = member(1000, SHIM, 50, 1);
        let child = member(1001, 1000, 60, 7);
        let session = member(900, SHIM, 70, 20);
        // Numbers wrap around: the session's is lower.
        assert_eq!(order(&[session, child, init], None), [1000, 900]);
        // `runc init` in three stages: all of one parent, the first of them in the node's pid namespace.
        let stages = [member(1000, SHIM, 50, 1000), member(1001, SHIM, 50, 1001), member(1002, SHIM, 50, 1)];
        assert_eq!(order(&stages, None)[0], 1002);
    }

    #[test]
    fn a_shared_pid_namespace() {
        let init = member(1000, SHIM, 50, 9);
        let orphan = member(1001, 400, 55, 10);
        let session = member(1002, SHIM, 70, 11);
        // What a container on the node's pid namespace puts into a namespace of its own, and orphans: not its first.
        let sandboxed = member(1003, 1, 80, 1);
        assert_eq!(order(&[sandboxed, session, orphan, init], None), [1000, 1001, 1002, 1003]);
        // The first has ended, and the session not yet: it does not move up.
        assert_eq!(order(&[session, orphan], Some(75)), [0i32; 0]);
        assert_eq!(order(&[session, member(1004, SHIM, 90, 12)], Some(75)), [1004]);
    }

    #[test]
    fn the_nodes_own_first_process_leads_no_container() {
        assert_eq!(order(&[member(1, 0, 1, 1)], Some(5)), [0i32; 0]);
        assert_eq!(order(&[member(7, 0, 5, 1)], Some(5)), [7]);
        assert_eq!(order(&[], None), [0i32; 0]);
    }

    fn any_member() -> impl Strategy<Value = Member> {
        (1..40i32, 0..40i32, 0..30u64, prop::option::of(0..4i32))
            .prop_map(|(pid, parent, start, innermost)| Member { innermost, ..member(pid, parent, start, 0) })
    }

    proptest! {
        #[test]
        fn heads_are_nobodys_children_and_in_order(
            members in prop::collection::vec(any_member(), 0..30), ended in prop::option::of(0..30u64)
        ) {
            let heads = heads(&members, ended);
            prop_assert!(heads.iter().all(|head| members.iter().all(|it| it.pid != head.stat.parent)));
            prop_assert!(heads.is_sorted_by_key(|head| head.stat.start));
            prop_assert!(ended.is_some() || members.is_empty() || !heads.is_empty()
                || members.iter().all(|it| members.iter().any(|other| other.pid == it.stat.parent)));
        }
    }
}

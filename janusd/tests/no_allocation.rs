//! Judging allocates nothing: a guard thread must not wait for the allocator's lock, nor fail for want of memory.

// A counting allocator is the only way to see it, and an allocator is unsafe to implement.
#![allow(unsafe_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;

use janusd::policy::raw::{RawGuard, RawSelector, RawSubject};
use janusd::policy::{Bindings, Event, GuardSpec, MountBinding, Policy, Question, Subjects, Who};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is passed on unchanged to the system's allocator; the count is a const-initialised thread-local
// without a destructor, so that touching it allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `alloc` above, hence from the system, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn judging_allocates_nothing() {
    let subject = |index: usize| RawSubject {
        allow: (0..100).map(|path| format!("/srv/{index}/allow/{path}")).collect(),
        deny: (0..20)
            .map(|path| format!("/srv/{index}/deny/{path}"))
            .chain(["/srv/**/{a,b}*.key".to_owned(), "/s/token".to_owned(), format!("/{}*", "?".repeat(200))])
            .collect(),
        // One that denies execution only has opens judged as executions too.
        events: vec![if index == 5 { "execute" } else { "all" }.to_owned()],
        mount: Some(index == 7),
        auto_allow_owner: Some(index.is_multiple_of(2)),
        ..RawSubject::default()
    };
    let raw = RawGuard {
        namespace: "default".to_owned(),
        name: "guard".to_owned(),
        selector: Some(RawSelector::default()),
        subjects: (0..8).map(subject).collect(),
        ..RawGuard::default()
    };
    let spec = GuardSpec::new(raw).unwrap();
    let (mounted, _) = spec.rules().find(|(id, _)| id.subject == 7).unwrap();
    let binding = MountBinding { mount: 9, mountpoint: b"/srv".to_vec() };
    let bindings = Bindings { aliases: Vec::new(), mounts: vec![(mounted, binding)] };
    let policy = Policy::new(&spec, &bindings);
    let long = [b"/".as_slice(), &b"x".repeat(250)].concat().repeat(16);
    let names: [&[u8]; 8] = [
        b"/srv/3/deny/7",
        b"/srv/3/allow/99/x/y",
        b"/srv/deep/er/and/deeper/b.key",
        b"/s/..2026_11_23_07_33_24.2418249251/token",
        b"/",
        b"",
        b"\xff/\xfe//..",
        &long,
    ];
    let before = ALLOCATIONS.with(Cell::get);
    let weighed = (0..8).fold(Subjects::NONE, Subjects::with);
    let lifting = Who { weighed, lifted: weighed, interpreter: Some(true), ..Who::default() };
    for who in [None, Some(lifting), Some(Who { lifted: Subjects::NONE, ..lifting })] {
        for event in Event::ALL {
            for directory in [false, true] {
                black_box(policy.decide(&Question { event, directory, names: &names, mount: Some(9), who }));
                for name in names {
                    let names = [name];
                    black_box(policy.decide(&Question { event, directory, names: &names, mount: None, who }));
                }
            }
        }
    }
    assert_eq!(ALLOCATIONS.with(Cell::get) - before, 0);
}

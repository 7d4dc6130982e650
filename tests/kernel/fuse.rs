//! A FUSE file system of one file, whose server answers an open when the test says so.
//!
//! The file is the root of the file system, mounted onto a file. Closing the device ends every request that waits.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const FORGET: u32 = 2;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;
/// ENOSYS, as an answer.
const UNKNOWN: i32 = -38;

/// The file, while it is mounted.
pub(crate) struct Fuse {
    pub(crate) path: PathBuf,
    server: Arc<Server>,
}

struct Server {
    device: File,
    answering: AtomicBool,
    opens: AtomicUsize,
    waiting: Mutex<Vec<u64>>,
}

impl Fuse {
    pub(crate) fn mount(at: &Path) -> Fuse {
        Fuse::mounted(at, |options| {
            fs::write(at, "").unwrap();
            mount("janus-test", at, "fuse", MountFlags::NOSUID | MountFlags::NODEV, Some(options)).unwrap();
        })
    }

    /// In the mount namespace of another process, which takes it along when it ends.
    pub(crate) fn mount_inside(process: u32, at: &Path) -> Fuse {
        Fuse::mounted(at, |options| {
            let namespace = File::open(format!("/proc/{process}/ns/mnt")).unwrap();
            // A thread of its own enters it, and ends there.
            let entered = std::thread::scope(|scope| {
                let inside = scope.spawn(|| {
                    enter(&namespace);
                    fs::write(at, "").unwrap();
                    mount("janus-test", at, "fuse", MountFlags::NOSUID | MountFlags::NODEV, Some(options)).unwrap();
                });
                inside.join()
            });
            entered.unwrap();
        })
    }

    fn mounted(at: &Path, mount: impl FnOnce(&std::ffi::CStr)) -> Fuse {
        let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=100644,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let options = std::ffi::CString::new(options).unwrap();
        mount(&options);
        let (answering, opens, waiting) = Default::default();
        let server = Arc::new(Server { device, answering, opens, waiting });
        let serving = server.clone();
        // Ends when the file system is unmounted.
        std::thread::spawn(move || serving.serve());
        Fuse { path: at.to_owned(), server }
    }

    /// How many opens have come.
    pub(crate) fn opens(&self) -> usize {
        self.server.opens.load(Ordering::SeqCst)
    }

    /// From now on opens are answered, those that wait as well.
    pub(crate) fn answer(&self) {
        self.server.answering.store(true, Ordering::SeqCst);
        for unique in std::mem::take(&mut *self.server.waiting.lock().unwrap()) {
            self.server.opened(unique);
        }
    }
}

/// This thread sees another mount namespace from now on.
fn enter(namespace: &File) {
    use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
    #[expect(deprecated, reason = "this thread shares nothing that it would take along")]
    rustix::thread::unshare(UnshareFlags::FS).unwrap();
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount)).unwrap();
}

impl Drop for Fuse {
    fn drop(&mut self) {
        self.answer();
        // Whoever still has it open does not keep it.
        let _not_mounted = unmount(&self.path, UnmountFlags::DETACH);
    }
}

impl Server {
    fn serve(&self) {
        let mut request = vec![0; 1 << 20];
        while let Ok(length) = (&self.device).read(&mut request) {
            let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap());
            assert!(length >= 40, "a request of {length} bytes");
            let (opcode, unique) = (word(4), u64::from_ne_bytes(request[8..16].try_into().unwrap()));
            match opcode {
                INIT => {
                    let mut body = [7_u32, 31, 0, 0, 0, 1 << 16].map(u32::to_ne_bytes).concat();
                    body.resize(64, 0);
                    self.reply(unique, 0, &body);
                }
                GETATTR => {
                    let mut body = [1_u64, 0, 1, 0, 0, 0, 0, 0].map(u64::to_ne_bytes).concat();
                    body.extend([0_u32, 0, 0, 0o100_644, 1, 0, 0, 0, 4096, 0].map(u32::to_ne_bytes).concat());
                    self.reply(unique, 0, &body);
                }
                OPEN => {
                    let mut waiting = self.waiting.lock().unwrap();
                    self.opens.fetch_add(1, Ordering::SeqCst);
                    if self.answering.load(Ordering::SeqCst) {
                        self.opened(unique);
                    } else {
                        waiting.push(unique);
                    }
                }
                RELEASE | FLUSH => self.reply(unique, 0, &[]),
                FORGET | BATCH_FORGET | INTERRUPT => {}
                _ => self.reply(unique, UNKNOWN, &[]),
            }
        }
    }

    fn opened(&self, unique: u64) {
        self.reply(unique, 0, &[0; 16]);
    }

    fn reply(&self, unique: u64, error: i32, body: &[u8]) {
        let mut reply = u32::try_from(16 + body.len()).unwrap().to_ne_bytes().to_vec();
        reply.extend(error.to_ne_bytes());
        reply.extend(unique.to_ne_bytes());
        reply.extend(body);
        // ENOENT: whoever asked has gone.
        let _gone = (&self.device).write(&reply);
    }
}

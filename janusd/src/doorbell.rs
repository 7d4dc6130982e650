//! A channel that can be polled: the message travels over crossbeam, an eventfd beside it rings.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};
use rustix::event::EventfdFlags;

/// The sending end.
#[derive(Debug)]
pub(crate) struct Speaker<T> {
    /// `None` only while it is dropped.
    messages: Option<Sender<T>>,
    bell: Arc<OwnedFd>,
}

/// The receiving end. Clones share one queue: a restarted worker goes on where the last one stopped.
#[derive(Debug)]
pub(crate) struct Mailbox<T> {
    messages: Receiver<T>,
    bell: Arc<OwnedFd>,
}

/// Rings without a message. Does not keep the channel open.
#[derive(Debug, Clone)]
pub(crate) struct Bell(Arc<OwnedFd>);

impl Bell {
    /// Never blocks, takes no lock, allocates nothing.
    pub(crate) fn ring(&self) {
        // Fails only when the count is at its maximum, and then the bell is ringing already.
        let _ringing = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

/// The other end is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the other end of the channel is gone")]
pub(crate) struct Gone;

/// A new channel.
///
/// # Errors
/// The kernel's: EMFILE.
pub(crate) fn channel<T>() -> std::io::Result<(Speaker<T>, Mailbox<T>)> {
    let bell = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let (sender, receiver) = unbounded();
    Ok((Speaker { messages: Some(sender), bell: bell.clone() }, Mailbox { messages: receiver, bell }))
}

impl<T> Speaker<T> {
    /// Sends, then rings. Never blocks.
    ///
    /// # Errors
    /// [`Gone`].
    pub(crate) fn send(&self, message: T) -> Result<(), Gone> {
        self.messages.as_ref().ok_or(Gone)?.send(message).map_err(|_| Gone)?;
        self.ring();
        Ok(())
    }

    /// The bell alone.
    pub(crate) fn bell(&self) -> Bell {
        Bell(self.bell.clone())
    }

    fn ring(&self) {
        // Fails only when the count is at its maximum, and then the bell is ringing already.
        let _ringing = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }
}

impl<T> Drop for Speaker<T> {
    /// Lets go, then rings: the last one's end is a message too.
    fn drop(&mut self) {
        self.messages = None;
        self.ring();
    }
}

impl<T> Clone for Speaker<T> {
    fn clone(&self) -> Self {
        Speaker { messages: self.messages.clone(), bell: self.bell.clone() }
    }
}

impl<T> Clone for Mailbox<T> {
    fn clone(&self) -> Self {
        Mailbox { messages: self.messages.clone(), bell: self.bell.clone() }
    }
}

impl<T> Mailbox<T> {
    /// Quiets the bell. Call it before the messages are taken: whoever sends afterwards rings again.
    pub(crate) fn quiet(&self) {
        // EAGAIN: it was not ringing.
        let _silent = rustix::io::read(&self.bell, &mut [0u8; 8]);
    }

    /// Rings for whoever takes messages here: some are left.
    pub(crate) fn remind(&self) {
        // Fails only when the count is at its maximum, and then the bell is ringing already.
        let _ringing = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    /// The next message, if one is there.
    ///
    /// # Errors
    /// [`Gone`]: none is there and none can come.
    pub(crate) fn take(&self) -> Result<Option<T>, Gone> {
        match self.messages.try_recv() {
            Ok(message) => Ok(Some(message)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(Gone),
        }
    }
}

impl<T> AsFd for Mailbox<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

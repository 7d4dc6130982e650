//! The node daemons: how they are reached, and what they are asked.

pub mod calls;
pub mod connect;
pub mod tls;

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::core::observation::plain;
use crate::reconcile::port::{Daemons, Lost};

use calls::Janusd;
use connect::Dialer;

/// Connections that begin at once: a controller that starts greets thousands of daemons, and each greeting has a deadline
/// that begins with it.
const GREETINGS: usize = 64;
/// How long one keeps its place. A greeting takes milliseconds; those that hang hold up nobody else.
const PLACE: Duration = Duration::from_millis(250);

/// All daemons, at one port.
#[derive(Clone, Debug)]
pub struct Nodes {
    dialer: Dialer,
    port: u16,
    places: Arc<Semaphore>,
}

impl Nodes {
    /// Reached by `dialer`, at `port`.
    pub fn new(dialer: Dialer, port: u16) -> Nodes {
        Nodes { dialer, port, places: Arc::new(Semaphore::new(GREETINGS)) }
    }
}

impl Daemons for Nodes {
    type Daemon = Janusd;

    async fn connect(&self, address: IpAddr) -> Result<Janusd, Lost> {
        // The semaphore is never closed; were it, there would be no bound and all else the same.
        let place = self.places.acquire().await;
        let mut greeting = pin!(self.dialer.connect(SocketAddr::new(address, self.port)));
        let link = match tokio::time::timeout(PLACE, &mut greeting).await {
            Ok(link) => link,
            Err(_elapsed) => {
                drop(place);
                greeting.await
            }
        };
        link.map(Janusd::new).map_err(|error| Lost { word: error.word(), text: plain(&error.to_string()).into() })
    }
}

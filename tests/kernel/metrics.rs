//! The admin server, by plain HTTP, and the Prometheus text that it serves.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// One scrape.
pub(crate) struct Metrics(String);

impl Metrics {
    pub(crate) fn read(admin: SocketAddr) -> Metrics {
        let (status, text) = get(admin, "/metrics");
        assert_eq!(status, 200, "/metrics: {text}");
        Metrics(text)
    }

    /// The sum of a metric's samples that carry all of these labels.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let carries = |written: &str| {
            labels.iter().all(|(label, value)| written.split(',').any(|pair| pair == format!("{label}=\"{value}\"")))
        };
        self.samples(name).filter(|(written, _)| carries(written)).map(|(_, value)| value).sum()
    }

    /// Whether a metric has any sample.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.samples(name).next().is_some()
    }

    /// The samples of a metric: labels as written, value.
    fn samples<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, u64)> {
        self.0.lines().filter_map(move |line| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = match rest.strip_prefix('{') {
                Some(labelled) => labelled.rsplit_once("} ")?,
                None => ("", rest.strip_prefix(' ')?),
            };
            // Counters here are far below 2^53, so that a float's whole part is exact.
            let value = value.split(['.', ' ']).next()?.parse().ok()?;
            Some((labels, value))
        })
    }
}

/// GET: status and body.
pub(crate) fn get(admin: SocketAddr, route: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(admin).expect("the admin server listens");
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let request = format!("GET {route} HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, body.to_owned())
}

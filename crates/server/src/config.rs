//! What a server takes, and how long it waits.

use std::time::Duration;

use crate::ServerError;

/// Limits and doors of a server. The default is for one machine and few people: loopback is up to the listener that
/// [`Server::start`](crate::Server::start) is given.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServerConfig {
    /// Pictures that wait for the network; further requests are answered by 503.
    pub queue: usize,
    /// Waiting pictures of one size, network and precision that are segmented at once, at most.
    pub batch: usize,
    /// Threads that segment. On a CPU one of them keeps all processors busy.
    pub workers: usize,
    /// Bytes of a request's body.
    pub max_bytes: usize,
    /// Pixels of a picture.
    pub max_pixels: u64,
    /// Bytes of bodies and decoded pictures of all requests together; further requests are answered by 503.
    pub memory: u64,
    /// Connections at a time; further ones are answered by 503 and closed.
    pub max_connections: usize,
    /// Bytes of a request's head.
    pub max_header_bytes: usize,
    /// Time in which the head of a request, the first and each that follows on its connection, has to come.
    pub header_timeout: Duration,
    /// Time in which a body has to come.
    pub body_timeout: Duration,
    /// Time from the end of the body to the answer, and in which an answer's reader has to take some of it.
    pub timeout: Duration,
    /// What `Authorization: Bearer` has to say, if anything.
    pub token: Option<String>,
    /// Origins whose pages may ask, such as `https://example.org`; `*` for all.
    pub cors: Vec<String>,
    /// Width and height of a grey picture that each network segments before the server is ready.
    pub warm_up: Option<(usize, usize)>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            queue: 64,
            batch: 8,
            workers: 1,
            max_bytes: 32 << 20,
            // 3840x2160, and a little more.
            max_pixels: 1 << 23,
            memory: 512 << 20,
            max_connections: 512,
            max_header_bytes: 16 << 10,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            timeout: Duration::from_secs(60),
            token: None,
            cors: Vec::new(),
            warm_up: Some((256, 256)),
        }
    }
}

/// What hyper's buffers have at least.
const SMALLEST_HEAD: usize = 8 << 10;

impl ServerConfig {
    /// Whether a server can be run so, with pictures of at most `pixel` bytes a pixel in memory.
    pub(crate) fn validate(&self, pixel: u64) -> Result<(), ServerError> {
        let wrong = |key, expected: String, found: String| ServerError::Config {
            key,
            expected,
            found,
        };
        for (key, value) in [
            ("queue", self.queue),
            ("batch", self.batch),
            ("workers", self.workers),
            ("max_bytes", self.max_bytes),
            ("max_connections", self.max_connections),
        ] {
            if value == 0 {
                return Err(wrong(key, "at least 1".into(), "0".into()));
            }
        }
        if self.max_header_bytes < SMALLEST_HEAD {
            let expected = format!("at least {SMALLEST_HEAD}");
            let found = self.max_header_bytes.to_string();
            return Err(wrong("max_header_bytes", expected, found));
        }
        let times = [
            ("header_timeout", self.header_timeout),
            ("body_timeout", self.body_timeout),
            ("timeout", self.timeout),
        ];
        for (key, time) in times {
            if time.is_zero() {
                return Err(wrong(key, "a time".into(), "0 s".into()));
            }
        }
        if self.token.as_ref().is_some_and(|token| token.is_empty()) {
            return Err(wrong("token", "a text".into(), "an empty one".into()));
        }
        let one = (self.max_bytes as u64).saturating_add(self.max_pixels.saturating_mul(pixel));
        if self.memory < one {
            let expected = format!(
                "at least {one} bytes, for one picture of `max_bytes` ({}) and `max_pixels` ({})",
                self.max_bytes, self.max_pixels
            );
            return Err(wrong("memory", expected, self.memory.to_string()));
        }
        Ok(())
    }
}

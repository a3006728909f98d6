//! Requests, byte by byte, and networks that do what a test wants.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use halfseg_data::{Classes, LabelMap, PictureFormat, PictureRef, RgbImage, encode_rgb};
use halfseg_eval::Prediction;
use halfseg_predict::PredictError;
use halfseg_server::{Model, Network, Server, ServerConfig};
use serde_json::Value;

/// What a test waits for at most before it fails instead of hanging.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Reply {
    /// Reads one, to the end of the connection or of its length.
    pub fn read(stream: &mut TcpStream) -> Option<Self> {
        let mut bytes = Vec::new();
        let mut part = [0; 1 << 16];
        loop {
            if let Some(reply) = Self::parse(&bytes) {
                return Some(reply);
            }
            match stream.read(&mut part) {
                Ok(0) | Err(_) => return None,
                Ok(read) => bytes.extend_from_slice(&part[..read]),
            }
        }
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
        let head = std::str::from_utf8(&bytes[..end]).expect("heads are text");
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let header = |line: &str| {
            let (name, value) = line.split_once(':').expect("a header has a colon");
            (name.to_ascii_lowercase(), value.trim().to_owned())
        };
        let headers: BTreeMap<_, _> = lines.map(header).collect();
        let length: usize = headers
            .get("content-length")
            .map_or(0, |l| l.parse().unwrap());
        let body = bytes.get(end + 4..end + 4 + length)?.to_vec();
        Some(Self {
            status,
            headers,
            body,
        })
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// Asserts the status and that the body says each of these.
    #[track_caller]
    pub fn expect(self, status: u16, words: &[&str]) -> Self {
        assert_eq!(self.status, status, "{}", self.text());
        for word in words {
            assert!(
                self.text().contains(word),
                "expected `{word}` in {}",
                self.text()
            );
        }
        self
    }
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The bytes of a request.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    [head.as_bytes(), b"\r\n", body].concat()
}

#[track_caller]
pub fn send(address: SocketAddr, bytes: &[u8]) -> Reply {
    let mut stream = connect(address);
    // A server that refuses what it has not read to its end may close before.
    let _ = stream.write_all(bytes);
    Reply::read(&mut stream).expect("an answer")
}

#[track_caller]
pub fn get(address: SocketAddr, path: &str) -> Reply {
    send(address, &request("GET", path, &[], &[]))
}

#[track_caller]
pub fn post(address: SocketAddr, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    send(address, &request("POST", path, headers, body))
}

/// A number of `/metrics`.
#[track_caller]
pub fn metric(address: SocketAddr, name: &str) -> f64 {
    let text = get(address, "/metrics").expect(200, &[]).text();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{name} ")));
    line.unwrap_or_else(|| panic!("{name} in {text}"))
        .parse()
        .unwrap()
}

/// Asks for a number of `/metrics` until it is `expected`.
#[track_caller]
pub fn wait_for(address: SocketAddr, name: &str, expected: f64) {
    let began = std::time::Instant::now();
    while metric(address, name) != expected {
        assert!(
            began.elapsed() < PATIENCE,
            "{name} does not become {expected}"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn png(image: &RgbImage) -> Vec<u8> {
    let mut file = Vec::new();
    encode_rgb(&mut file, image).unwrap();
    file
}

/// A small picture of one colour.
pub fn small() -> Vec<u8> {
    png(&RgbImage::filled(8, 6, [10, 20, 30]))
}

/// Gives class 1 everywhere, once its gate lets it, and notes how many pictures came at once.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<Passed>, Condvar)>);

#[derive(Default)]
struct Passed {
    shut: bool,
    inside: usize,
    batches: Vec<usize>,
}

impl Gate {
    pub fn shut() -> Self {
        let gate = Self::default();
        gate.0.0.lock().unwrap().shut = true;
        gate
    }

    pub fn open(&self) {
        self.0.0.lock().unwrap().shut = false;
        self.0.1.notify_all();
    }

    pub fn batches(&self) -> Vec<usize> {
        self.0.0.lock().unwrap().batches.clone()
    }

    /// Waits until a picture waits at the gate.
    pub fn wait(&self) {
        let passed = self.0.0.lock().unwrap();
        let inside = self
            .0
            .1
            .wait_timeout_while(passed, PATIENCE, |passed| passed.inside == 0);
        assert!(!inside.unwrap().1.timed_out(), "nothing came");
    }
}

impl Network for Gate {
    fn predict(&self, pictures: &[PictureRef<'_>]) -> Result<Vec<Prediction>, PredictError> {
        let (lock, changed) = &*self.0;
        let mut passed = lock.lock().unwrap();
        passed.inside += 1;
        passed.batches.push(pictures.len());
        changed.notify_all();
        let mut passed = changed.wait_while(passed, |passed| passed.shut).unwrap();
        passed.inside -= 1;
        drop(passed);
        Ok(pictures
            .iter()
            .map(|picture| everywhere(*picture, 1))
            .collect())
    }

    fn warm_up(&self, _: usize, _: usize) -> Result<(), PredictError> {
        Ok(())
    }
}

/// Panics at pictures whose first value is 13.
pub struct Superstitious;

impl Network for Superstitious {
    fn predict(&self, pictures: &[PictureRef<'_>]) -> Result<Vec<Prediction>, PredictError> {
        let first = |picture: &PictureRef<'_>| match picture {
            PictureRef::Rgb(image) => image.data[0],
            PictureRef::Bands(_) => 0,
        };
        assert!(
            !pictures.iter().any(|picture| first(picture) == 13),
            "thirteen"
        );
        Ok(pictures
            .iter()
            .map(|picture| everywhere(*picture, 2))
            .collect())
    }

    fn warm_up(&self, _: usize, _: usize) -> Result<(), PredictError> {
        Ok(())
    }
}

fn everywhere(picture: PictureRef<'_>, class: u8) -> Prediction {
    let (width, height) = picture.size();
    Prediction {
        map: LabelMap::filled(width, height, [class]),
        not_finite: 0,
    }
}

pub fn model(network: impl Network) -> Model {
    let (classes, format) = (Classes::cityscapes(), PictureFormat::default());
    Model::of("stand-in", "f32", network, classes, format)
}

/// A server of `models` on a port of its own.
pub fn serve_all(models: Vec<Model>, change: impl FnOnce(&mut ServerConfig)) -> Server {
    let mut config = ServerConfig::default();
    change(&mut config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    Server::start(models, config, listener).unwrap()
}

pub fn serve(network: impl Network, change: impl FnOnce(&mut ServerConfig)) -> Server {
    serve_all(vec![model(network)], change)
}

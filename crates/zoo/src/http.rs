//! Fetching a file.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::thread;
use std::time::Duration;

use ureq::config::Config;
use ureq::http::{Response, StatusCode};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, Proxy};

use crate::error::ZooError;
use crate::progress::Progress;
use crate::verify::Hash;

/// Connections in a row that bring nothing before the download is given up.
const TRIES: u32 = 4;
/// Before the second try; doubled each time.
const PAUSE: Duration = Duration::from_millis(500);
/// Bytes between two reports.
const STEP: usize = 1 << 16;

/// Why there is no file.
pub(crate) enum Failure {
    /// What a caller can act on.
    Zoo(ZooError),
    /// The server, or the way to it.
    Connection(String),
}

/// Why a try ended.
enum Broken {
    /// The next one may bring the rest.
    Again(String),
    Never(Failure),
}

/// Fetches `url` into `part`, which may hold the beginning already, and checks that the hash begins
/// with `prefix`. A file of another hash is removed.
pub(crate) fn download(
    url: &str,
    part: &Path,
    prefix: &str,
    patience: Duration,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), Failure> {
    let agent = agent(url, patience).map_err(Failure::Connection)?;
    let mut fruitless = 0;
    loop {
        let before = length(part);
        match attempt(&agent, url, part, progress) {
            Ok(hash) => match hash.differs(prefix) {
                None => return Ok(()),
                // What was here before may have been of another file.
                Some(_) if before > 0 && fruitless < TRIES => {
                    remove(part)?;
                    fruitless += 1;
                }
                Some(found) => {
                    remove(part)?;
                    return Err(Failure::Zoo(ZooError::WrongHash {
                        file: url.to_owned(),
                        expected: prefix.to_owned(),
                        found,
                        remedy: "it was removed and is not used",
                    }));
                }
            },
            Err(Broken::Never(failure)) => return Err(failure),
            Err(Broken::Again(why)) => {
                fruitless = if length(part) > before {
                    0
                } else {
                    fruitless + 1
                };
                if fruitless >= TRIES {
                    return Err(Failure::Connection(why));
                }
                progress(Progress::Retrying { why: &why });
                thread::sleep(PAUSE * 2u32.pow(fruitless));
            }
        }
    }
}

fn agent(url: &str, patience: Duration) -> Result<Agent, String> {
    let patience = Some(patience);
    let mut config = Config::builder()
        .user_agent(concat!("halfseg/", env!("CARGO_PKG_VERSION")))
        // A redirect must not lead out of TLS.
        .https_only(url.starts_with("https:"))
        .http_status_as_error(false)
        .proxy(Proxy::try_from_env())
        .timeout_resolve(patience)
        .timeout_connect(patience)
        .timeout_recv_response(patience)
        .timeout_per_read(patience);
    if let Some(path) = env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty()) {
        let path = Path::new(&path);
        let told = |why: &dyn std::fmt::Display| {
            format!(
                "SSL_CERT_FILE, {}, holds no certificates: {why}",
                path.display()
            )
        };
        let pem = fs::read(path).map_err(|error| told(&error))?;
        let certificates: Vec<_> = parse_pem(&pem)
            .filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            })
            .collect();
        if certificates.is_empty() {
            return Err(told(&"expected blocks of `BEGIN CERTIFICATE`"));
        }
        let roots = RootCerts::from(certificates);
        config = config.tls_config(TlsConfig::builder().root_certs(roots).build());
    }
    Ok(config.build().new_agent())
}

/// Asks once for what is missing in `part` and gives the hash of the whole file.
fn attempt(
    agent: &Agent,
    url: &str,
    part: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Hash, Broken> {
    let again = |error: &dyn std::fmt::Display| Broken::Again(error.to_string());
    let have = length(part);
    let mut request = agent.get(url);
    if have > 0 {
        request = request.header("range", format!("bytes={have}-"));
    }
    let response = request.call().map_err(|error| match error {
        ureq::Error::RequireHttpsOnly(_)
        | ureq::Error::BadUri(_)
        | ureq::Error::InvalidProxyUrl => Broken::Never(Failure::Connection(error.to_string())),
        error => again(&error),
    })?;
    let (start, total) = match response.status() {
        StatusCode::OK => (0, header(&response, "content-length")),
        StatusCode::PARTIAL_CONTENT => {
            let range = header_text(&response, "content-range");
            let (first, total) = content_range(range.as_deref())
                .ok_or_else(|| again(&format!("the server sent the range {range:?}")))?;
            if first != have {
                let told = format!("the server sent bytes from {first} on, not from {have}");
                return Err(again(&told));
            }
            (have, total)
        }
        // Nothing is missing, or `part` is of another file: the hash tells.
        StatusCode::RANGE_NOT_SATISFIABLE if have > 0 => {
            let read = |source| Broken::Never(Failure::Zoo(read_error(part, source)));
            return Hash::of(part).map_err(read);
        }
        status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
            return Err(again(&format!("the server answers {status}")));
        }
        status => {
            let told = format!("the server answers {status}");
            return Err(Broken::Never(Failure::Connection(told)));
        }
    };
    let mut sink = Sink::open(part, start)?;
    receive(response, url, start, total, &mut sink, progress)?;
    Ok(sink.hash)
}

/// What is written, and its hash.
struct Sink<'a> {
    path: &'a Path,
    file: File,
    hash: Hash,
    bytes: u64,
}

impl<'a> Sink<'a> {
    /// Keeps the first `start` bytes of what is there.
    fn open(path: &'a Path, start: u64) -> Result<Self, Broken> {
        let hash = match start {
            0 => Ok(Hash::default()),
            _ => Hash::of(path),
        };
        let open = || -> io::Result<(Hash, File)> {
            let mut options = OpenOptions::new();
            let mut file = options
                .create(true)
                .write(true)
                .truncate(start == 0)
                .open(path)?;
            file.seek(SeekFrom::Start(start))?;
            Ok((hash?, file))
        };
        let (hash, file) = open().map_err(|source| write_error(path, start, source))?;
        Ok(Self {
            path,
            file,
            hash,
            bytes: start,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        self.file
            .write_all(bytes)
            .map_err(|source| write_error(self.path, self.bytes, source))?;
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

fn receive(
    response: Response<Body>,
    url: &str,
    start: u64,
    total: Option<u64>,
    sink: &mut Sink<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), Broken> {
    let mut body = response.into_body().into_reader();
    let mut buffer = vec![0; STEP];
    let mut report = |bytes| {
        progress(Progress::Fetching {
            url,
            bytes,
            of: total,
        });
    };
    report(start);
    loop {
        let count = match body.read(&mut buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Broken::Again(error.to_string())),
        };
        if count == 0 {
            break;
        }
        sink.write(&buffer[..count])?;
        report(sink.bytes);
    }
    match total {
        Some(total) if sink.bytes < total => Err(Broken::Again(format!(
            "the connection ended after {} of {total} bytes",
            sink.bytes
        ))),
        _ => Ok(()),
    }
}

/// `bytes FIRST-LAST/TOTAL`, of which the total may be `*`.
fn content_range(text: Option<&str>) -> Option<(u64, Option<u64>)> {
    let (range, total) = text?.strip_prefix("bytes ")?.split_once('/')?;
    let first = range.split_once('-')?.0.trim().parse().ok()?;
    Some((first, total.trim().parse().ok()))
}

fn header_text(response: &Response<Body>, name: &str) -> Option<String> {
    let value = response.headers().get(name)?;
    value.to_str().ok().map(str::to_owned)
}

fn header(response: &Response<Body>, name: &str) -> Option<u64> {
    header_text(response, name)?.trim().parse().ok()
}

fn length(path: &Path) -> u64 {
    // Not of what is no file.
    fs::metadata(path)
        .ok()
        .filter(|found| found.is_file())
        .map_or(0, |found| found.len())
}

fn remove(path: &Path) -> Result<(), Failure> {
    fs::remove_file(path).map_err(|source| {
        Failure::Zoo(ZooError::Write {
            path: path.to_owned(),
            kept: String::new(),
            source,
        })
    })
}

fn read_error(path: &Path, source: io::Error) -> ZooError {
    ZooError::Read {
        path: path.to_owned(),
        source,
    }
}

/// Of a full disk, say: what came is not lost.
fn write_error(path: &Path, bytes: u64, source: io::Error) -> Broken {
    let kept = match bytes {
        0 => String::new(),
        bytes => format!(" ({bytes} bytes are there, from which the next try goes on)"),
    };
    Broken::Never(Failure::Zoo(ZooError::Write {
        path: path.to_owned(),
        kept,
        source,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_servers_write_them() {
        for (text, range) in [
            ("bytes 5-9/10", Some((5, Some(10)))),
            ("bytes 0-0/*", Some((0, None))),
            ("bytes */10", None),
            ("items 5-9/10", None),
            ("", None),
        ] {
            assert_eq!(content_range(Some(text)), range, "{text}");
        }
        assert_eq!(content_range(None), None);
    }
}

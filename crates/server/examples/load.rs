//! Loads a server, politely or not, and says how it took it.
//!
//! ```sh
//! target/release/halfseg serve --checkpoint runs/demo --port 8080 &
//! cargo run --release -p halfseg-server --features http --example load -- 127.0.0.1:8080 --requests 100000
//! cargo run --release -p halfseg-server --features http --example load -- 127.0.0.1:8080 --hostile 10000
//! ```
//!
//! `--requests N` sends pictures of `--size WxH` (64x32) from `--clients N` (64) that each keep a connection; after a
//! 503 a client waits as `Retry-After` says, and tries again. `--hostile N` sends that many requests of eleven bad kinds
//! from as many clients, while one more client sends good ones. Both end with failure if anything but what is allowed
//! was answered, or if memory grew by more than 2 % after the first tenth, or the first 5,000
//! where these are more: until then each size of batch and each thread takes its memory once.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use halfseg_data::{Dataset, SyntheticStreets, encode_rgb};

/// What a client waits for an answer at most.
const PATIENCE: Duration = Duration::from_secs(120);
/// Kinds of bad requests.
const KINDS: [&str; 11] = [
    "cut body",
    "cut head",
    "bomb by header",
    "bomb by pixels",
    "wrong type",
    "damaged picture",
    "huge headers",
    "body of a terabyte",
    "length beyond numbers",
    "slow sender",
    "slow reader",
];

struct Args {
    address: SocketAddr,
    requests: usize,
    hostile: usize,
    clients: usize,
    size: (usize, usize),
    token: Option<String>,
}

fn args() -> Result<Args, String> {
    let mut args = std::env::args().skip(1);
    let address = args.next().ok_or("expected ADDRESS:PORT")?;
    let mut found = Args {
        address: address
            .parse()
            .map_err(|_| format!("`{address}` is no ADDRESS:PORT"))?,
        requests: 0,
        hostile: 0,
        clients: 64,
        size: (64, 32),
        token: None,
    };
    while let Some(flag) = args.next() {
        let value = args.next().ok_or(format!("{flag} expects a value"))?;
        let number = || {
            value
                .parse()
                .map_err(|_| format!("{flag}: `{value}` is no number"))
        };
        match flag.as_str() {
            "--requests" => found.requests = number()?,
            "--hostile" => found.hostile = number()?,
            "--clients" => found.clients = number()?,
            "--token" => found.token = Some(value),
            "--size" => {
                let size = value.split_once('x');
                let side = |text: &str| text.parse().ok();
                let size = size.and_then(|(w, h)| Some((side(w)?, side(h)?)));
                found.size = size.ok_or(format!("--size: `{value}` is no WxH"))?;
            }
            _ => return Err(format!("unknown flag {flag}")),
        }
    }
    Ok(found)
}

/// Status and seconds that an answer asks to wait.
type Answer = std::io::Result<(u16, Option<u64>)>;

/// Reads an answer, and gives its body, too.
fn read_reply(stream: &mut TcpStream) -> std::io::Result<(u16, Option<u64>, Vec<u8>)> {
    let mut bytes = Vec::with_capacity(4096);
    let mut part = [0; 1 << 14];
    let wrong = || std::io::Error::other("expected an answer, found the end");
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            let header = |name: &str| {
                let mut lines = head.lines().filter_map(|line| line.split_once(": "));
                lines
                    .find(|(found, _)| *found == name)?
                    .1
                    .trim()
                    .parse::<u64>()
                    .ok()
            };
            let length = header("content-length").unwrap_or(0) as usize;
            if let Some(body) = bytes.get(end + 4..end + 4 + length) {
                let status = head.split(' ').nth(1).and_then(|text| text.parse().ok());
                let status = status.ok_or_else(wrong)?;
                return Ok((status, header("retry-after"), body.to_vec()));
            }
        }
        match stream.read(&mut part)? {
            0 => return Err(wrong()),
            read => bytes.extend_from_slice(&part[..read]),
        }
    }
}

fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A client that keeps its connection as long as the server does.
struct Client {
    address: SocketAddr,
    stream: Option<TcpStream>,
}

impl Client {
    fn send(&mut self, request: &[u8]) -> Answer {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => connect(self.address)?,
        };
        stream.write_all(request)?;
        let (status, retry, _) = read_reply(&mut stream)?;
        self.stream = Some(stream);
        Ok((status, retry))
    }
}

fn request(token: Option<&str>, path: &str, body: &[u8]) -> Vec<u8> {
    let method = if body.is_empty() { "GET" } else { "POST" };
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n"));
    let token = token.unwrap_or_default();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: load\r\n{token}Content-Length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// The server's memory as it says itself.
fn resident(args: &Args) -> f64 {
    let read = || {
        let mut stream = connect(args.address).ok()?;
        stream
            .write_all(&request(args.token.as_deref(), "/metrics", &[]))
            .ok()?;
        let (_, _, body) = read_reply(&mut stream).ok()?;
        let text = String::from_utf8(body).ok()?;
        let line = text
            .lines()
            .find(|line| line.starts_with("process_resident_memory_bytes "))?;
        line.rsplit(' ').next()?.parse().ok()
    };
    read().unwrap_or(f64::NAN)
}

fn picture((width, height): (usize, usize), seed: u64) -> Vec<u8> {
    let sample = SyntheticStreets::new(width, height, 1, seed).get(0);
    let image = sample
        .expect("scenes are made")
        .image
        .into_rgb()
        .expect("scenes are RGB");
    let mut file = Vec::new();
    encode_rgb(&mut file, &image).expect("memory takes it");
    file
}

/// The value that a share of all do not exceed.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = (share * sorted.len() as f64).ceil() as usize;
    sorted
        .get(place.saturating_sub(1))
        .copied()
        .unwrap_or(f64::NAN)
}

/// What became of requests.
#[derive(Default)]
struct Tally {
    milliseconds: Vec<f64>,
    counts: BTreeMap<String, usize>,
}

impl Tally {
    fn count(&mut self, what: impl ToString) {
        *self.counts.entry(what.to_string()).or_default() += 1;
    }
}

/// How many of `all` requests come before the memory is that of a server at work.
fn warm_after(all: usize) -> usize {
    (all / 10).max((all / 2).min(5000))
}

/// What may be answered to good requests: 503 is tried again.
fn polite(args: &Args) -> (Tally, f64, [f64; 2]) {
    let bodies: Vec<_> = (0..16).map(|seed| picture(args.size, seed)).collect();
    let requests: Vec<_> = bodies
        .iter()
        .map(|body| request(args.token.as_deref(), "/predict", body))
        .collect();
    let (next, tally) = (AtomicUsize::new(0), Mutex::new(Tally::default()));
    let warm = Mutex::new(f64::NAN);
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..args.clients {
            scope.spawn(|| {
                let mut client = Client {
                    address: args.address,
                    stream: None,
                };
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    if place >= args.requests {
                        return;
                    }
                    if place == warm_after(args.requests) {
                        *warm.lock().unwrap() = resident(args);
                    }
                    loop {
                        let start = Instant::now();
                        let found = client.send(&requests[place % requests.len()]);
                        let took = start.elapsed().as_secs_f64() * 1e3;
                        let mut tally = tally.lock().unwrap();
                        match found {
                            Ok((503, Some(seconds))) => {
                                tally.count("503, tried again");
                                drop(tally);
                                thread::sleep(Duration::from_secs(seconds));
                            }
                            Ok((status, _)) => {
                                tally.milliseconds.push(took);
                                tally.count(status);
                                break;
                            }
                            Err(error) => {
                                tally.count(error);
                                break;
                            }
                        }
                    }
                }
            });
        }
    });
    let seconds = began.elapsed().as_secs_f64();
    let memory = [warm.into_inner().unwrap(), resident(args)];
    (tally.into_inner().unwrap(), seconds, memory)
}

/// A head for a body of `length` bytes.
fn promise(stream: &mut TcpStream, length: u64) {
    let head = format!("POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
    let _ = stream.write_all(head.as_bytes());
}

/// One bad request, and whether what came back may come back.
fn misbehave(args: &Args, kind: usize, good: &[u8]) -> Result<String, String> {
    let fail = |error: std::io::Error| format!("cannot connect: {error}");
    let mut stream = connect(args.address).map_err(fail)?;
    let body = |bytes: &[u8]| request(args.token.as_deref(), "/predict", bytes);
    let whole = body(good);
    let mut bomb = good.to_vec();
    let allowed: &[u16] = match KINDS[kind] {
        "cut body" => {
            let _ = stream.write_all(&whole[..whole.len() - good.len() / 2]);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            &[400]
        }
        "cut head" => {
            let _ = stream.write_all(&whole[..20]);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            &[400]
        }
        "bomb by header" => {
            bomb[16..24].copy_from_slice(&[0, 0, 0xEA, 0x60, 0, 0, 0xEA, 0x60]);
            let _ = stream.write_all(&body(&bomb));
            &[413, 422]
        }
        "bomb by pixels" => {
            // A JPEG of 65535x65535 pixels in a few bytes.
            let jpeg = b"\xff\xd8\xff\xc0\x00\x0b\x08\xff\xff\xff\xff\x01\x01\x11\x00\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00\x00\xff\xd9";
            let _ = stream.write_all(&body(jpeg));
            &[413, 422]
        }
        "wrong type" => {
            let _ = stream.write_all(&body(b"<svg xmlns='x'/>"));
            &[415]
        }
        "damaged picture" => {
            let middle = bomb.len() / 2;
            bomb[middle] ^= 0xFF;
            let _ = stream.write_all(&body(&bomb));
            &[422]
        }
        "huge headers" => {
            let head = format!(
                "GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n",
                "a".repeat(1 << 20)
            );
            let _ = stream.write_all(head.as_bytes());
            &[431]
        }
        "body of a terabyte" => {
            promise(&mut stream, 1 << 40);
            // The token comes first where there is one.
            &[413, 401]
        }
        "length beyond numbers" => {
            promise(&mut stream, u64::MAX);
            // That is a matter of the head.
            &[400, 431]
        }
        "slow sender" => {
            let _ = stream.write_all(&whole[..whole.len() - 10]);
            let _ = stream.set_read_timeout(Some(Duration::from_millis(500)));
            &[408]
        }
        _ => {
            let _ = stream.write_all(&whole);
            // Never read: closed with the answer in it.
            thread::sleep(Duration::from_millis(20));
            return Ok("left".into());
        }
    };
    match read_reply(&mut stream) {
        Ok((503, Some(_), _)) => Ok("503".into()),
        Ok((status, _, _)) if allowed.contains(&status) => Ok(status.to_string()),
        Ok((status, _, body)) => {
            let text = String::from_utf8_lossy(&body).into_owned();
            Err(format!("{}: {status} {text}", KINDS[kind]))
        }
        // Closed, cut, or left alone.
        Err(_) => Ok("no answer".into()),
    }
}

fn hostile(args: &Args) -> (Tally, Tally, f64, [f64; 2]) {
    let good = picture(args.size, 1);
    let polite = request(args.token.as_deref(), "/predict", &good);
    let (next, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (bad, fine) = (Mutex::new(Tally::default()), Mutex::new(Tally::default()));
    let warm = Mutex::new(f64::NAN);
    let began = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = Client {
                address: args.address,
                stream: None,
            };
            while !done.load(Ordering::Relaxed) {
                let start = Instant::now();
                let found = client.send(&polite);
                let mut fine = fine.lock().unwrap();
                fine.milliseconds.push(start.elapsed().as_secs_f64() * 1e3);
                match found {
                    Ok((status, _)) => fine.count(status),
                    Err(error) => fine.count(error),
                }
                drop(fine);
                thread::sleep(Duration::from_millis(20));
            }
        });
        let clients: Vec<_> = (0..args.clients)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        let place = next.fetch_add(1, Ordering::Relaxed);
                        if place >= args.hostile {
                            return;
                        }
                        if place == warm_after(args.hostile) {
                            *warm.lock().unwrap() = resident(args);
                        }
                        let kind = place % KINDS.len();
                        let found = misbehave(args, kind, &good);
                        let mut bad = bad.lock().unwrap();
                        match found {
                            Ok(what) => bad.count(format!("{}: {what}", KINDS[kind])),
                            Err(what) => bad.count(format!("NOT ALLOWED {what}")),
                        }
                    }
                })
            })
            .collect();
        for client in clients {
            client.join().expect("clients do not panic");
        }
        done.store(true, Ordering::Relaxed);
    });
    let seconds = began.elapsed().as_secs_f64();
    let memory = [warm.into_inner().unwrap(), resident(args)];
    (
        bad.into_inner().unwrap(),
        fine.into_inner().unwrap(),
        seconds,
        memory,
    )
}

/// Prints times and counts.
fn print(what: &str, tally: &mut Tally) {
    tally.milliseconds.sort_by(f64::total_cmp);
    let times = &tally.milliseconds;
    if !times.is_empty() {
        println!(
            "{what}: p50 {:.1} ms, p99 {:.1} ms, slowest {:.1} ms",
            percentile(times, 0.5),
            percentile(times, 0.99),
            percentile(times, 1.0)
        );
    }
    for (what, count) in &tally.counts {
        println!("  {count:>7} {what}");
    }
}

fn main() -> ExitCode {
    let args = match args() {
        Ok(args) => args,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    let mut sound = true;
    let mut memory_of = |[warm, end]: [f64; 2]| {
        let grown = 100.0 * (end / warm - 1.0);
        println!("memory: {warm:.0} bytes once warm, {end:.0} at the end ({grown:+.2} %)");
        sound &= grown.is_nan() || grown <= 2.0;
    };
    let mut failed = 0;
    if args.requests > 0 {
        let (mut tally, seconds, memory) = polite(&args);
        let rate = args.requests as f64 / seconds;
        println!(
            "{} requests from {} clients in {seconds:.1} s, {rate:.1}/s",
            args.requests, args.clients
        );
        print("answers", &mut tally);
        memory_of(memory);
        let allowed = |what: &&String| *what == "200" || what.starts_with("503");
        failed += tally.counts.keys().filter(|what| !allowed(what)).count();
    }
    if args.hostile > 0 {
        let (mut bad, mut fine, seconds, memory) = hostile(&args);
        println!(
            "{} bad requests from {} clients in {seconds:.1} s",
            args.hostile, args.clients
        );
        print("bad requests", &mut bad);
        print("good requests meanwhile", &mut fine);
        memory_of(memory);
        let allowed = |what: &&String| *what == "200" || *what == "503";
        failed += fine.counts.keys().filter(|what| !allowed(what)).count();
        failed += bad
            .counts
            .keys()
            .filter(|what| what.starts_with("NOT"))
            .count();
    }
    match sound && failed == 0 {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

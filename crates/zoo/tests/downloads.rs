//! Fetching from a server on this machine that behaves well, badly, or not at all.
#![cfg(feature = "http")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use halfseg_zoo::{Cache, Progress, Settings, ZooError};
use sha2::{Digest, Sha256};

/// What a server is asked for.
#[derive(Clone, Debug)]
struct Request {
    target: String,
    /// The first byte that is wanted.
    from: usize,
}

/// Answers the request of this number, from 0 on.
type Answer = dyn Fn(usize, &Request, &mut TcpStream) + Send + Sync;

struct Server {
    address: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    fn new(answer: impl Fn(usize, &Request, &mut TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer): (_, Arc<Answer>) = (requests.clone(), Arc::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (seen, answer) = (seen.clone(), answer.clone());
                thread::spawn(move || serve(&mut stream.unwrap(), &seen, &*answer));
            }
        });
        Self { address, requests }
    }

    /// One that has `content` under every name, and knows ranges.
    fn of(content: &[u8]) -> Self {
        let content = content.to_vec();
        Self::new(move |_, request, stream| send(stream, &content, request.from))
    }

    fn count(&self) -> usize {
        self.requests.lock().unwrap().len()
    }
}

fn serve(stream: &mut TcpStream, seen: &Mutex<Vec<Request>>, answer: &Answer) {
    loop {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let Some(Ok(first)) = lines.next() else {
            return;
        };
        let head: Vec<String> = lines
            .map_while(Result::ok)
            .take_while(|line| !line.is_empty())
            .collect();
        // A proxy is asked for a way to the server first.
        if first.starts_with("CONNECT ") {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            continue;
        }
        let range = head.iter().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            let value = value.trim().strip_prefix("bytes=")?.strip_suffix('-')?;
            name.eq_ignore_ascii_case("range")
                .then(|| value.parse().unwrap())
        });
        let request = Request {
            target: first.split(' ').nth(1).unwrap_or_default().to_owned(),
            from: range.unwrap_or(0),
        };
        let number = {
            let mut seen = seen.lock().unwrap();
            seen.push(request.clone());
            seen.len() - 1
        };
        answer(number, &request, stream);
        return;
    }
}

fn send(stream: &mut TcpStream, content: &[u8], from: usize) {
    let _ = stream.write_all(head(content.len(), from).as_bytes());
    let _ = stream.write_all(&content[from.min(content.len())..]);
}

fn head(total: usize, from: usize) -> String {
    let left = total.saturating_sub(from);
    let close = "connection: close\r\n\r\n";
    match from {
        0 => format!("HTTP/1.1 200 OK\r\ncontent-length: {total}\r\n{close}"),
        from if from >= total => {
            format!("HTTP/1.1 416 Range Not Satisfiable\r\ncontent-length: 0\r\n{close}")
        }
        from => format!(
            "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes {from}-{}/{total}\r\n\
             content-length: {left}\r\n{close}",
            total - 1
        ),
    }
}

fn status(stream: &mut TcpStream, line: &str) {
    let _ = write!(
        stream,
        "HTTP/1.1 {line}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    );
}

/// A file larger than the buffers on its way.
fn content() -> Vec<u8> {
    (0..3_000_000u32)
        .map(|i| (i.wrapping_mul(i) >> 7) as u8)
        .collect()
}

/// A cache in a folder of its own, whose one entry, `it`, has this content.
struct Place {
    folder: tempfile::TempDir,
    file: String,
}

impl Place {
    fn new(server: &Server, content: &[u8]) -> Self {
        let digits: String = Sha256::digest(content)[..4]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let folder = tempfile::tempdir().unwrap();
        let file = format!("it-{digits}.pth");
        let line = format!(
            "it\t-\tfcn\tR-18-D8\tnothing\t-\t-\tf32\t-\t-\t-\t{}/models/{file}\t-\n",
            server.address
        );
        fs::write(folder.path().join("table.tsv"), line).unwrap();
        Self { folder, file }
    }

    fn settings(&self) -> Settings {
        let mut settings = Settings::default();
        settings.folder = Some(self.folder.path().join("cache"));
        settings.table = Some(self.folder.path().join("table.tsv"));
        settings.patience = Duration::from_millis(500);
        settings
    }

    fn fetch(&self) -> Result<PathBuf, ZooError> {
        Cache::new(self.settings())?.fetch("it", &mut |_| {})
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("cache").join(&self.file)
    }

    fn part(&self) -> PathBuf {
        let hidden = format!(".{}.part", self.file);
        self.folder.path().join("cache").join(hidden)
    }

    /// Names in the cache that are no lock.
    fn files(&self) -> Vec<String> {
        let names = fs::read_dir(self.folder.path().join("cache")).unwrap();
        let names = names.map(|name| name.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !name.ends_with(".lock")).collect()
    }
}

#[test]
fn a_file_is_fetched_once_and_looked_at_each_time() {
    let content = content();
    let server = Server::of(&content);
    let place = Place::new(&server, &content);
    let mut seen = Vec::new();
    let cache = Cache::new(place.settings()).unwrap();
    let path = cache
        .fetch("it", &mut |progress| {
            if let Progress::Fetching { bytes, of, .. } = progress {
                seen.push((bytes, of));
            }
        })
        .unwrap();
    assert_eq!(path, place.path());
    assert_eq!(fs::read(&path).unwrap(), content);
    assert_eq!(seen[0], (0, Some(content.len() as u64)));
    assert_eq!(seen.last().unwrap().0, content.len() as u64);
    assert!(seen.is_sorted());
    place.fetch().unwrap();
    assert_eq!(server.count(), 1);
    assert_eq!(place.files(), [place.file.as_str()]);

    fs::write(&path, b"something else").unwrap();
    let error = place.fetch().unwrap_err();
    assert!(matches!(error, ZooError::WrongHash { .. }), "{error}");
    assert!(error.to_string().contains("remove it"), "{error}");
    assert_eq!(server.count(), 1);
}

#[test]
fn a_cut_connection_goes_on_from_where_it_was() {
    let content = content();
    let whole = content.clone();
    let server = Server::new(move |number, request, stream| {
        let _ = stream.write_all(head(whole.len(), request.from).as_bytes());
        let until = match number {
            0 => 1_000_000,
            1 => 1_700_000,
            _ => whole.len(),
        };
        let _ = stream.write_all(&whole[request.from..until]);
    });
    let place = Place::new(&server, &content);
    assert_eq!(fs::read(place.fetch().unwrap()).unwrap(), content);
    let from: Vec<usize> = server
        .requests
        .lock()
        .unwrap()
        .iter()
        .map(|r| r.from)
        .collect();
    assert_eq!(from, [0, 1_000_000, 1_700_000]);
}

#[test]
fn what_a_killed_process_left_is_used() {
    let content = content();
    let server = Server::of(&content);
    let place = Place::new(&server, &content);
    fs::create_dir_all(place.path().parent().unwrap()).unwrap();
    for (left, requests) in [
        (&content[..1234], vec![1234]),
        // Complete, but not renamed.
        (&content[..], vec![content.len()]),
        // Of another file: begun anew.
        (&[7; 5000][..], vec![5000, 0]),
    ] {
        fs::write(place.part(), left).unwrap();
        server.requests.lock().unwrap().clear();
        assert_eq!(fs::read(place.fetch().unwrap()).unwrap(), content);
        let from: Vec<usize> = server
            .requests
            .lock()
            .unwrap()
            .iter()
            .map(|r| r.from)
            .collect();
        assert_eq!(from, requests);
        assert_eq!(place.files(), [place.file.as_str()]);
        fs::remove_file(place.path()).unwrap();
    }
}

#[test]
fn a_server_without_ranges_sends_all_again() {
    let content = content();
    let whole = content.clone();
    let server = Server::new(move |number, _, stream| {
        let _ = stream.write_all(head(whole.len(), 0).as_bytes());
        let until = if number == 0 { 500_000 } else { whole.len() };
        let _ = stream.write_all(&whole[..until]);
    });
    let place = Place::new(&server, &content);
    assert_eq!(fs::read(place.fetch().unwrap()).unwrap(), content);
    assert_eq!(server.count(), 2);
}

#[test]
fn redirects_are_followed_but_not_in_circles() {
    let content = content();
    let whole = content.clone();
    let server = Server::new(move |_, request, stream| match request.target.as_str() {
        "/elsewhere" => send(stream, &whole, request.from),
        _ => {
            let _ = stream.write_all(
                b"HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\
                  connection: close\r\n\r\n",
            );
        }
    });
    let place = Place::new(&server, &content);
    // The range goes along.
    fs::create_dir_all(place.path().parent().unwrap()).unwrap();
    fs::write(place.part(), &content[..99]).unwrap();
    assert_eq!(fs::read(place.fetch().unwrap()).unwrap(), content);
    assert_eq!(server.requests.lock().unwrap()[1].from, 99);

    let circle = Server::new(|_, request, stream| {
        let _ = write!(
            stream,
            "HTTP/1.1 302 Found\r\nlocation: {}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
            request.target
        );
    });
    let place = Place::new(&circle, &content);
    let error = place.fetch().unwrap_err();
    assert!(matches!(error, ZooError::Absent { .. }), "{error}");
}

#[test]
fn a_file_of_another_hash_is_not_used_and_not_kept() {
    let server = Server::of(b"not what was published");
    let place = Place::new(&server, &content());
    let error = place.fetch().unwrap_err();
    assert!(matches!(error, ZooError::WrongHash { .. }), "{error}");
    assert_eq!(place.files(), [""; 0]);
    assert_eq!(server.count(), 1);
}

#[test]
fn without_a_network_the_error_says_what_to_put_where() {
    let server = Server::of(b"");
    let place = Place::new(&server, &content());
    let told = |error: ZooError| {
        assert!(matches!(error, ZooError::Absent { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(&place.path().display().to_string()), "{text}");
        let url = format!("{}/models/{}", server.address, place.file);
        assert!(text.contains(&url), "{text}");
        text
    };
    let mut settings = place.settings();
    settings.offline = true;
    let cache = Cache::new(settings.clone()).unwrap();
    let text = told(cache.fetch("it", &mut |_| {}).unwrap_err());
    assert!(text.contains("offline"), "{text}");
    assert_eq!(server.count(), 0);
    // A port that nobody listens at.
    settings.offline = false;
    settings.mirror = Some("http://127.0.0.1:1".to_owned());
    let cache = Cache::new(settings).unwrap();
    told(cache.fetch("it", &mut |_| {}).unwrap_err());
}

#[test]
fn a_server_in_trouble_is_asked_again_and_one_that_refuses_is_not() {
    let content = content();
    let whole = content.clone();
    let server = Server::new(move |number, request, stream| match number {
        0 => status(stream, "503 Service Unavailable"),
        1 => status(stream, "429 Too Many Requests"),
        _ => send(stream, &whole, request.from),
    });
    let place = Place::new(&server, &content);
    place.fetch().unwrap();
    assert_eq!(server.count(), 3);

    let server = Server::new(|_, _, stream| status(stream, "404 Not Found"));
    let place = Place::new(&server, &content);
    let error = place.fetch().unwrap_err().to_string();
    assert!(error.contains("404"), "{error}");
    assert_eq!(server.count(), 1);
}

#[test]
fn a_server_that_stops_sending_is_left() {
    let content = content();
    let whole = content.clone();
    let server = Server::new(move |number, request, stream| {
        if number > 0 {
            return send(stream, &whole, request.from);
        }
        let _ = stream.write_all(head(whole.len(), 0).as_bytes());
        let _ = stream.write_all(&whole[..4321]);
        thread::sleep(Duration::from_secs(20));
    });
    let place = Place::new(&server, &content);
    assert_eq!(fs::read(place.fetch().unwrap()).unwrap(), content);
    assert_eq!(server.requests.lock().unwrap()[1].from, 4321);
}

#[test]
fn a_mirror_is_asked_for_the_files_name() {
    let content = content();
    let (server, mirror) = (Server::of(b""), Server::of(&content));
    let place = Place::new(&server, &content);
    let mut settings = place.settings();
    settings.mirror = Some(format!("{}/mirror/", mirror.address));
    let cache = Cache::new(settings).unwrap();
    cache.fetch("it", &mut |_| {}).unwrap();
    assert_eq!(server.count(), 0);
    let asked = mirror.requests.lock().unwrap()[0].target.clone();
    assert_eq!(asked, format!("/mirror/{}", place.file));
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_told_with_the_file() {
    let content = content();
    let server = Server::of(&content);
    let place = Place::new(&server, &content);
    fs::create_dir_all(place.path().parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("/dev/full", place.part()).unwrap();
    let error = place.fetch().unwrap_err();
    assert!(matches!(error, ZooError::Write { .. }), "{error}");
    assert!(error.to_string().contains(".part"), "{error}");
    assert!(!place.path().exists());
    assert_eq!(server.count(), 1);
}

/// Not a test of its own: what the processes of other tests do.
#[test]
fn child() {
    let Some(folder) = std::env::var_os("HALFSEG_TEST_CHILD") else {
        return;
    };
    let mut settings = Settings::of_environment().unwrap();
    settings.folder = Some(Path::new(&folder).join("cache"));
    settings.table = Some(Path::new(&folder).join("table.tsv"));
    settings.patience = Duration::from_secs(10);
    let cache = Cache::new(settings).unwrap();
    cache.fetch("it", &mut |_| {}).unwrap();
}

fn start_child(place: &Place, set: impl FnOnce(&mut Command)) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args(["--exact", "child"])
        .env("HALFSEG_TEST_CHILD", place.folder.path());
    set(&mut child);
    child.spawn().unwrap()
}

#[test]
fn two_processes_at_once_fetch_once() {
    let content = content();
    let whole = content.clone();
    let server = Server::new(move |_, request, stream| {
        let _ = stream.write_all(head(whole.len(), request.from).as_bytes());
        for piece in whole[request.from..].chunks(300_000) {
            thread::sleep(Duration::from_millis(100));
            let _ = stream.write_all(piece);
        }
    });
    let place = Place::new(&server, &content);
    let children: Vec<Child> = (0..2).map(|_| start_child(&place, |_| {})).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(server.count(), 1);
    assert_eq!(fs::read(place.path()).unwrap(), content);
    assert_eq!(place.files(), [place.file.as_str()]);
}

#[test]
fn a_process_that_is_killed_leaves_nothing_that_is_taken_for_the_file() {
    let content = content();
    let whole = content.clone();
    let server = Server::new(move |number, request, stream| {
        if number > 0 {
            return send(stream, &whole, request.from);
        }
        let _ = stream.write_all(head(whole.len(), 0).as_bytes());
        let _ = stream.write_all(&whole[..2_000_000]);
        thread::sleep(Duration::from_secs(20));
    });
    let place = Place::new(&server, &content);
    let mut child = start_child(&place, |_| {});
    let there = || fs::metadata(place.part()).map_or(0, |found| found.len());
    while there() < 2_000_000 {
        thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!place.path().exists());
    assert_eq!(fs::read(place.fetch().unwrap()).unwrap(), content);
    assert_eq!(server.requests.lock().unwrap()[1].from, 2_000_000);
}

#[test]
fn proxies_of_the_environment_are_used() {
    let content = content();
    let (server, proxy) = (Server::of(b"not by the proxy"), Server::of(&content));
    let place = Place::new(&server, &content);
    // No such host, which only the proxy could know.
    let table = place.folder.path().join("table.tsv");
    let line = fs::read_to_string(&table).unwrap();
    let line = line.replace(&server.address, "http://models.invalid");
    fs::write(&table, line).unwrap();
    let mut child = start_child(&place, |child| {
        for name in [
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "NO_PROXY",
            "http_proxy",
            "no_proxy",
        ] {
            child.env_remove(name);
        }
        child.env("ALL_PROXY", &proxy.address);
    });
    assert!(child.wait().unwrap().success());
    assert_eq!(fs::read(place.path()).unwrap(), content);
    assert_eq!(server.count(), 0);
}

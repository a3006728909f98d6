//! `halfseg serve`.

use std::fs;

use crate::support::*;

#[cfg(not(feature = "serve"))]
#[test]
fn a_build_without_the_server_says_so() {
    check(
        &["serve", "--checkpoint", "x"],
        2,
        &["without the server", "--features serve"],
    );
}

#[test]
fn flags_of_the_server_are_listed_and_checked() {
    let help = run(&["serve", "--help"]);
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for word in [
        "--port",
        "--token-file",
        "--cors",
        "[default: 127.0.0.1]",
        "bf16",
    ] {
        assert!(help.contains(word), "expected `{word}` in:\n{help}");
    }
    check(&["serve"], 2, &["--checkpoint"]);
    check(
        &["serve", "--checkpoint", "x", "--queue", "0"],
        2,
        &["--queue"],
    );
    check(
        &["serve", "--checkpoint", "x", "--host", "here"],
        2,
        &["--host"],
    );
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man");
    check(&["man", "--out", text(&pages)], 0, &[]);
    assert!(
        fs::read_to_string(pages.join("halfseg-serve.1"))
            .unwrap()
            .contains("token")
    );
}

#[cfg(all(feature = "serve", unix))]
mod built_in {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpStream;
    use std::path::Path;
    use std::process::{Child, Stdio};

    use super::*;

    /// A server, and the address that it says.
    fn started(args: &[&str]) -> (Child, String) {
        let args = [&["serve", "--port", "0"], args].concat();
        let mut child = halfseg(&args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line
            .trim()
            .strip_prefix("http://")
            .and_then(|a| a.strip_suffix('/'));
        match address {
            Some(address) => (child, address.to_owned()),
            None => {
                let output = child.wait_with_output().unwrap();
                panic!("{line}: {}", stderr(&output));
            }
        }
    }

    fn ask(address: &str, path: &str, headers: &str, body: &[u8]) -> (String, Vec<u8>) {
        let mut stream = TcpStream::connect(address).unwrap();
        let method = if body.is_empty() { "GET" } else { "POST" };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).unwrap();
        let end = reply
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .unwrap();
        let head = String::from_utf8_lossy(&reply[..end]).into_owned();
        (head, reply.split_off(end + 4))
    }

    fn stop(child: Child, by: &str) -> String {
        signal(&child, by);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        stderr(&output)
    }

    #[test]
    fn a_server_gives_the_maps_of_predict_and_ends_when_it_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = trained(&folder, "fcn");
        let other = trained(&folder, "pspnet");
        let picture = folder.path().join("x.png");
        write_png(
            &picture,
            (40, 32),
            png::ColorType::Rgb,
            &[90, 120, 200].repeat(40 * 32),
        );
        let out = folder.path().join("out");
        let predicted = |checkpoint: &Path, more: &[&str]| {
            let args = [
                &predict_flags(checkpoint, &out)[..],
                more,
                &[text(&picture)],
            ]
            .concat();
            check(&args, 0, &[]);
            fs::read(out.join("x_trainIds.png")).unwrap()
        };
        let last = other.join("iter_2.safetensors");
        let token = folder.path().join("token");
        fs::write(&token, "secret\n").unwrap();
        for signal in ["-TERM", "-INT"] {
            let (child, address) = started(&[
                "--checkpoint",
                text(&checkpoint),
                "--checkpoint",
                text(&last),
                "--token-file",
                text(&token),
            ]);
            let body = fs::read(&picture).unwrap();
            let ask = |path: &str| ask(&address, path, "Authorization: Bearer secret\r\n", &body);
            for (path, checkpoint, more) in [
                ("/predict", &checkpoint, &[][..]),
                (
                    "/predict?precision=f16",
                    &checkpoint,
                    &["--precision", "f16"],
                ),
                ("/predict?model=iter_2", &last, &[]),
            ] {
                let (head, map) = ask(path);
                assert!(head.starts_with("HTTP/1.1 200"), "{head}");
                assert!(map == predicted(checkpoint, more), "{path}");
            }
            let (_, classes) = super::built_in::ask(
                &address,
                "/classes",
                "Authorization: Bearer secret\r\n",
                b"",
            );
            let classes: serde_json::Value = serde_json::from_slice(&classes).unwrap();
            assert_eq!(classes["models"][0]["name"], "fcn");
            assert_eq!(classes["models"][1]["name"], "iter_2");
            let (head, _) = super::built_in::ask(&address, "/predict", "", &body);
            assert!(head.starts_with("HTTP/1.1 401"), "{head}");
            let said = stop(child, signal);
            assert!(
                said.contains("serving fcn, iter_2") && said.contains("stopped"),
                "{said}"
            );
            assert!(TcpStream::connect(&address).is_err());
        }
    }

    #[test]
    fn what_cannot_be_served_is_said_before_it_is_tried() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = trained(&folder, "fcn");
        let serve = ["serve", "--checkpoint", text(&checkpoint)];
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port().to_string();
        check(
            &[&serve[..], &["--port", &port]].concat(),
            1,
            &["cannot listen on 127.0.0.1", &port],
        );
        let token = folder.path().join("token");
        let with_token = [&serve[..], &["--port", "0", "--token-file", text(&token)]].concat();
        check(&with_token, 1, &["token"]);
        fs::write(&token, "two words").unwrap();
        check(&with_token, 1, &["expected a token in one line"]);
        check(
            &[&serve[..], &["--port", "0", "--memory", "1"]].concat(),
            1,
            &["`memory`", "at least"],
        );
        check(
            &[&serve[..], &["--port", "0", "--cors", "here"]].concat(),
            1,
            &["`cors`", "origins"],
        );
        check(
            &["serve", "--port", "0", "--checkpoint", "missing"],
            1,
            &["missing"],
        );
        let (child, _) = started(&["--checkpoint", text(&checkpoint), "--host", "0.0.0.0"]);
        assert!(stop(child, "-TERM").contains("warning: 0.0.0.0 is reached from other machines"));
    }
}

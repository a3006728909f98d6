//! Requests that mean no good.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use halfseg_data::RgbImage;

use crate::client::*;

/// A PNG whose header promises this size.
fn promising(width: u32, height: u32) -> Vec<u8> {
    let mut file = small();
    file[16..20].copy_from_slice(&width.to_be_bytes());
    file[20..24].copy_from_slice(&height.to_be_bytes());
    let crc = file[12..29].iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |c, _| {
            (c >> 1) ^ if c & 1 == 1 { 0xEDB8_8320 } else { 0 }
        })
    });
    file[29..33].copy_from_slice(&(!crc).to_be_bytes());
    file
}

#[test]
fn bodies_that_are_no_picture_or_too_much_are_refused_by_what_they_are() {
    let server = serve(Gate::default(), |config| {
        config.max_bytes = 20_000;
        config.max_pixels = 10_000;
    });
    let address = server.address();
    let ask = |body: &[u8]| post(address, "/predict", &[], body);
    ask(b"").expect(400, &["empty"]);
    ask(b"hello").expect(415, &["PNG", "JPEG", "TIFF"]);
    ask(&[0; 3]).expect(415, &["00"]);
    ask(&small()[..40]).expect(422, &["picture", "PNG"]);
    ask(&[0xFF, 0xD8, 0xFF, 0xE0, 0, 16, 1, 2]).expect(422, &["end marker"]);
    ask(b"II*\0\xff\xff\xff\x7f").expect(422, &["TIFF"]);
    let mut damaged = png(&RgbImage::filled(64, 64, [7, 8, 9]));
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0xFF;
    ask(&damaged).expect(422, &["PNG"]);
    // Bombs: by header, by pixels, and by bytes.
    ask(&promising(60_000, 60_000)).expect(413, &["at most 10000 pixels, found 60000x60000"]);
    ask(&promising(100, 100)).expect(422, &["PNG"]);
    let large = png(&RgbImage::filled(2000, 1500, [0; 3]));
    assert!(large.len() < 20_000, "{}", large.len());
    ask(&large).expect(413, &["10000 pixels"]);
    ask(&vec![0x89; 20_001]).expect(413, &["20000 bytes"]);
    let promised = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n";
    send(address, promised).expect(413, &["20000 bytes"]);
    let mut chunks =
        b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..30 {
        chunks.extend(b"3e8\r\n");
        chunks.extend([0x89; 1000]);
        chunks.extend(b"\r\n");
    }
    send(address, &chunks).expect(413, &["20000 bytes"]);
    let zipped = [("Content-Encoding", "gzip")];
    post(address, "/predict", &zipped, &small()).expect(415, &["gzip"]);
    ask(&small()).expect(200, &[]);
    assert_eq!(metric(address, "halfseg_reserved_bytes"), 0.0);
}

#[test]
fn cut_bodies_end_their_connection_alone() {
    let server = serve(Gate::default(), |_| ());
    let address = server.address();
    let whole = request("POST", "/predict", &[], &small());
    for length in (1..whole.len()).step_by(7) {
        let mut stream = connect(address);
        stream.write_all(&whole[..length]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        if let Some(reply) = Reply::read(&mut stream) {
            assert_eq!(reply.status, 400, "{length}: {}", reply.text());
        }
    }
    // Without a word.
    for length in (1..whole.len()).step_by(7) {
        connect(address).write_all(&whole[..length]).unwrap();
    }
    post(address, "/predict", &[], &small()).expect(200, &[]);
    wait_for(address, "halfseg_reserved_bytes", 0.0);
}

#[test]
fn what_is_no_http_is_refused() {
    let server = serve(Gate::default(), |_| ());
    let address = server.address();
    let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(100_000));
    let header = format!(
        "GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n",
        "a".repeat(100_000)
    );
    let many = format!(
        "GET / HTTP/1.1\r\nHost: x\r\n{}\r\n",
        "X: y\r\n".repeat(2000)
    );
    for (bytes, statuses) in [
        (
            &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
            &[400][..],
        ),
        (b"GET\r\n\r\n", &[400]),
        (b"GET / HTTP/9.9\r\n\r\n", &[400]),
        (b"GET / HTTP/1.1\r\nbad header\r\n\r\n", &[400]),
        (
            b"POST /predict HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            &[400],
        ),
        (
            b"POST /predict HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
            &[400],
        ),
        (
            b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            &[400],
        ),
        (long.as_bytes(), &[414, 431]),
        (header.as_bytes(), &[431]),
        (many.as_bytes(), &[431]),
    ] {
        let mut stream = connect(address);
        let _ = stream.write_all(bytes);
        let start = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
        // What is closed while more was to come may be cut before the answer is read.
        if let Some(reply) = Reply::read(&mut stream) {
            assert!(
                statuses.contains(&reply.status),
                "{start:?}: {}",
                reply.status
            );
        }
        get(address, "/healthz").expect(200, &[]);
    }
}

#[test]
fn slow_senders_are_cut_off_and_hold_nobody_up() {
    let server = serve(Gate::default(), |config| {
        config.header_timeout = Duration::from_secs(2);
        config.body_timeout = Duration::from_secs(2);
    });
    let address = server.address();
    let whole = request("POST", "/predict", &[], &small());
    // Nothing at all, part of a head, and part of a body.
    let lengths = [0, 30, whole.len() - 20];
    let mut slow: Vec<_> = (0..90)
        .map(|place| {
            let mut stream = connect(address);
            stream.write_all(&whole[..lengths[place % 3]]).unwrap();
            stream
        })
        .collect();
    for _ in 0..20 {
        post(address, "/predict", &[], &small()).expect(200, &[]);
    }
    // A byte now and then does not help.
    let drip = thread::spawn(move || {
        let mut stream = connect(address);
        for byte in b"GET / HTTP/1.1\r\nX: ".iter().chain([b'a'; 500].iter()) {
            if stream.write_all(&[*byte]).is_err() {
                return true;
            }
            thread::sleep(Duration::from_millis(20));
        }
        false
    });
    for (place, stream) in slow.iter_mut().enumerate() {
        let reply = Reply::read(stream);
        match place % 3 {
            2 => drop(reply.unwrap().expect(408, &["2s"])),
            _ => assert!(reply.is_none_or(|reply| reply.status == 408)),
        }
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
    }
    assert!(drip.join().unwrap(), "a slow head is cut off");
    wait_for(address, "halfseg_connections", 1.0);
    assert_eq!(metric(address, "halfseg_reserved_bytes"), 0.0);
}

/// An answer of more bytes than the system keeps for a connection.
#[test]
fn slow_readers_are_cut_off() {
    let server = serve(Gate::default(), |config| {
        config.timeout = Duration::from_secs(20)
    });
    let address = server.address();
    let (width, height) = (2400, 1600);
    let mut state = 1u32;
    let noise = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let image = RgbImage {
        width,
        height,
        data: (0..3 * width * height).map(noise).collect(),
    };
    let path = "/predict?output=overlay&opacity=0";
    let bytes = request("POST", path, &[], &png(&image));
    let mut stream = connect(address);
    stream.write_all(&bytes).unwrap();
    // The answer begins, and nobody reads on.
    let mut first = [0; 12];
    stream.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    wait_for(address, "halfseg_connections", 1.0);
    get(address, "/healthz").expect(200, &[]);
}

#[test]
fn polygons_without_end_are_refused() {
    /// Classes like a chess board.
    struct Board;
    impl halfseg_server::Network for Board {
        fn predict(
            &self,
            pictures: &[halfseg_data::PictureRef<'_>],
        ) -> Result<Vec<halfseg_eval::Prediction>, halfseg_predict::PredictError> {
            let board = |picture: &halfseg_data::PictureRef<'_>| {
                let (width, height) = picture.size();
                let pixel = |i| ((i % width + i / width) % 2) as u8;
                halfseg_eval::Prediction {
                    map: halfseg_data::LabelMap {
                        width,
                        height,
                        data: (0..width * height).map(pixel).collect(),
                    },
                    not_finite: 0,
                }
            };
            Ok(pictures.iter().map(board).collect())
        }
        fn warm_up(&self, _: usize, _: usize) -> Result<(), halfseg_predict::PredictError> {
            Ok(())
        }
    }
    let server = serve(Board, |_| ());
    let json = [("Accept", "application/json")];
    let ask = |side: usize| {
        let picture = png(&RgbImage::filled(side, side, [1, 2, 3]));
        post(server.address(), "/predict", &json, &picture)
    };
    ask(600).expect(422, &["1440000 corners", "image/png"]);
    let json = ask(100).expect(200, &[]).json();
    assert_eq!(
        json["features"][0]["geometry"]["coordinates"]
            .as_array()
            .unwrap()
            .len(),
        5000
    );
}

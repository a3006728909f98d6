//! What is answered to whom.

use halfseg_amp::Policy;
use halfseg_data::{
    Dataset, IGNORE, LabelMap, PictureFormat, RgbImage, SyntheticStreets, read_image, read_label,
};
use halfseg_predict::{
    Polygon, Predictor, PredictorConfig, class_pixels, colorize, fill_polygons, overlay,
};
use halfseg_segmentor::{Depth, Method, Segmentor, SegmentorConfig};
use halfseg_server::{Model, Server, ServerConfig};
use serde_json::Value;

use crate::client::*;
use crate::drawn::drawn;

fn network(seed: u64) -> Segmentor {
    let mut config = SegmentorConfig::new(Method::Fcn, Depth::R18);
    config.stem_channels = 8;
    config.base_channels = 4;
    config.head_channels = 8;
    drawn(seed, |device| config.init(device))
}

fn predictor(model: &Segmentor, policy: Policy) -> Predictor {
    Predictor::new(model, policy, PredictorConfig::default())
}

fn street(seed: u64, width: usize, height: usize) -> RgbImage {
    let sample = SyntheticStreets::new(width, height, 1, seed).get(0);
    sample.unwrap().image.into_rgb().unwrap()
}

/// The file of a label map or a picture in an answer.
fn file(reply: &Reply) -> (tempfile::TempDir, std::path::PathBuf) {
    assert_eq!(reply.header("content-type"), "image/png");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("answer.png");
    std::fs::write(&path, &reply.body).unwrap();
    (folder, path)
}

fn label(reply: &Reply) -> LabelMap {
    let (_folder, path) = file(reply);
    read_label(&path).unwrap()
}

fn rings(json: &Value) -> Vec<Vec<[u32; 2]>> {
    let ring = |ring: &Value| {
        let corner = |corner: &Value| [0, 1].map(|i| corner[i].as_u64().unwrap() as u32);
        let mut corners: Vec<_> = ring.as_array().unwrap().iter().map(corner).collect();
        assert_eq!(corners.first(), corners.last(), "rings are closed");
        corners.pop();
        corners
    };
    json.as_array().unwrap().iter().map(ring).collect()
}

#[test]
fn every_output_is_that_of_the_library() {
    let model = network(1);
    let image = street(3, 72, 48);
    let map = predictor(&model, Policy::disabled())
        .predict(&image)
        .unwrap()
        .map;
    let served = Model::new("small", "f32", predictor(&model, Policy::disabled()));
    let palette = halfseg_data::PALETTE;
    let server = serve_all(vec![served], |_| ());
    let (address, body) = (server.address(), png(&image));
    let ask =
        |path: &str, headers: &[(&str, &str)]| post(address, path, headers, &body).expect(200, &[]);

    for headers in [&[][..], &[("Accept", "*/*")], &[("Accept", "image/png")]] {
        assert_eq!(label(&ask("/predict", headers)), map);
    }
    assert_eq!(
        label(&ask("/predict?output=map&model=small&precision=f32", &[])),
        map
    );
    let shown = |reply: Reply| {
        let (_folder, path) = file(&reply);
        read_image(&path).unwrap()
    };
    let accept = [("Accept", "image/png; output=overlay")];
    let expected = overlay(&image, &map, &palette, 0.5);
    assert_eq!(shown(ask("/predict", &accept)), expected);
    let expected = overlay(&image, &map, &palette, 0.25);
    assert_eq!(
        shown(ask("/predict?output=overlay&opacity=0.25", &[])),
        expected
    );
    assert_eq!(
        shown(ask("/predict?output=colors", &[])),
        colorize(&map, &palette)
    );

    let json = ask("/predict", &[("Accept", "application/json")]).json();
    assert_eq!((&json["width"], &json["height"]), (&72.into(), &48.into()));
    assert_eq!(
        (&json["model"], &json["precision"]),
        (&"small".into(), &"f32".into())
    );
    assert_eq!(json["type"], "FeatureCollection");
    let pixels = class_pixels(&map);
    let classes = json["classes"].as_array().unwrap();
    assert_eq!(classes.len(), 19);
    for (class, entry) in classes.iter().enumerate() {
        assert_eq!(entry["pixels"], pixels[class]);
        assert_eq!(entry["name"], halfseg_data::CLASS_NAMES[class]);
    }
    assert_eq!(classes[0]["color"], "#804080");
    let mut filled = LabelMap::filled(72, 48, [IGNORE]);
    for feature in json["features"].as_array().unwrap() {
        assert_eq!(feature["geometry"]["type"], "MultiPolygon");
        let class = feature["properties"]["class"].as_u64().unwrap() as u8;
        for polygon in feature["geometry"]["coordinates"].as_array().unwrap() {
            let mut rings = rings(polygon);
            let outer = rings.remove(0);
            let polygon = Polygon {
                outer,
                holes: rings,
            };
            fill_polygons(&mut filled, class, &[polygon]);
        }
    }
    assert_eq!(filled, map);
}

#[test]
fn pictures_come_as_a_body_of_any_type_or_in_a_form() {
    let server = serve(Gate::default(), |_| ());
    let address = server.address();
    let picture = small();
    for kind in [
        "image/png",
        "application/octet-stream",
        "application/x-www-form-urlencoded",
    ] {
        post(address, "/predict", &[("Content-Type", kind)], &picture).expect(200, &[]);
    }
    let chunked = [
        b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        format!("{:x}\r\n", picture.len()).as_bytes(),
        &picture,
        b"\r\n0\r\n\r\n",
    ]
    .concat();
    send(address, &chunked).expect(200, &[]);

    let form = |fields: &[(&str, &[u8])]| {
        let mut body = Vec::new();
        for (name, value) in fields {
            let head = format!(
                "--line\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"x\"\r\n\r\n"
            );
            body.extend([head.as_bytes(), value, b"\r\n"].concat());
        }
        body.extend(b"--line--\r\n");
        post(
            address,
            "/predict",
            &[("Content-Type", "multipart/form-data; boundary=line")],
            &body,
        )
    };
    assert_eq!(
        label(&form(&[("picture", &picture)]).expect(200, &[])).data,
        [1; 48]
    );
    form(&[("file", &picture)]).expect(200, &[]);
    form(&[]).expect(400, &["picture"]);
    form(&[("other", &picture)]).expect(400, &["`other`", "picture"]);
    form(&[("picture", &picture), ("picture", &picture)]).expect(400, &["another field"]);
    form(&[("picture", b"text")]).expect(415, &["JPEG"]);
    let cut = ("Content-Type", "multipart/form-data; boundary=other");
    post(address, "/predict", &[cut], b"--line\r\n").expect(400, &["form"]);
    let none = ("Content-Type", "multipart/form-data");
    post(address, "/predict", &[none], &picture).expect(400, &["form"]);
}

#[test]
fn networks_and_precisions_are_chosen_and_unknown_ones_are_listed() {
    let (one, other) = (network(1), network(2));
    let models = vec![
        Model::new("one", "f32", predictor(&one, Policy::disabled()))
            .with_precision("bf16", predictor(&one, Policy::bf16())),
        Model::new("other", "f16", predictor(&other, Policy::f16())),
    ];
    let server = serve_all(models, |_| ());
    let address = server.address();
    let image = street(5, 64, 40);
    for (query, model, policy) in [
        ("", &one, Policy::disabled()),
        ("?precision=f32", &one, Policy::disabled()),
        ("?precision=bf16", &one, Policy::bf16()),
        ("?model=one", &one, Policy::disabled()),
        ("?model=other", &other, Policy::f16()),
        ("?model=other&precision=f16", &other, Policy::f16()),
    ] {
        let reply = post(address, &format!("/predict{query}"), &[], &png(&image)).expect(200, &[]);
        let expected = predictor(model, policy).predict(&image).unwrap().map;
        assert_eq!(label(&reply), expected, "{query}");
    }
    for (query, words) in [
        ("?model=none", ["no model `none`", "\"one\",\"other\""]),
        ("?precision=f16", ["no precision `f16`", "\"f32\",\"bf16\""]),
        (
            "?model=other&precision=f32",
            ["no precision `f32`", "[\"f16\"]"],
        ),
        ("?output=svg", ["no output `svg`", "\"overlay\""]),
        ("?opacity=2", ["opacity", "0 to 1"]),
        ("?opacity=NaN", ["opacity", "0 to 1"]),
        ("?colour=red", ["`colour`", "`opacity`"]),
    ] {
        post(address, &format!("/predict{query}"), &[], &png(&image)).expect(400, &words);
    }
    let accept = [("Accept", "text/html, image/webp")];
    post(address, "/predict", &accept, &small()).expect(406, &["image/webp", "application/json"]);

    let json = get(address, "/classes").expect(200, &[]).json();
    let models = json["models"].as_array().unwrap();
    assert_eq!(models.len(), 2);
    assert_eq!(models[0]["precisions"], serde_json::json!(["f32", "bf16"]));
    assert_eq!(models[1]["name"], "other");
    assert_eq!(models[1]["classes"][13]["name"], "car");
    assert_eq!(json["max_pixels"], 1 << 23);
}

#[test]
fn pages_are_where_they_are_said_to_be() {
    let server = serve(Gate::default(), |_| ());
    let address = server.address();
    get(address, "/healthz").expect(200, &["ok"]);
    get(address, "/readyz").expect(200, &["ready"]);
    get(address, "/nothing").expect(404, &["/predict", "/metrics"]);
    get(address, "/predict").expect(405, &["POST"]);
    post(address, "/classes", &[], &[]).expect(405, &["GET"]);
    let page = get(address, "/").expect(200, &["<!doctype html>", "halfseg"]);
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    let policy = page.header("content-security-policy");
    assert!(
        policy.starts_with("default-src 'none'; script-src 'sha256-"),
        "{policy}"
    );
    assert!(!policy.contains("unsafe"), "{policy}");
    assert_eq!(page.header("x-content-type-options"), "nosniff");
    // Other sites are told nothing unless they are named.
    assert!(
        page.headers
            .keys()
            .all(|name| !name.starts_with("access-control"))
    );

    post(address, "/predict", &[], &small()).expect(200, &[]);
    let text = get(address, "/metrics").expect(200, &[]).text();
    for line in [
        "halfseg_requests_total{route=\"/predict\",status=\"200\"} 1",
        "halfseg_requests_total{route=\"other\",status=\"404\"} 1",
        "halfseg_pictures_total 1",
        "halfseg_queue_pictures 0",
        "halfseg_reserved_bytes 0",
        "# TYPE halfseg_predict_seconds histogram",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in {text}");
    }
    if cfg!(target_os = "linux") {
        assert!(metric(address, "process_resident_memory_bytes") > 1e6);
    }
}

#[test]
fn one_connection_carries_several_requests() {
    use std::io::Write;
    let server = serve(Gate::default(), |_| ());
    let mut stream = connect(server.address());
    for _ in 0..3 {
        stream
            .write_all(&request("POST", "/predict", &[], &small()))
            .unwrap();
        assert_eq!(Reply::read(&mut stream).unwrap().status, 200);
    }
    // Two before the first is answered.
    let two = [
        request("GET", "/healthz", &[], &[]),
        request("GET", "/readyz", &[], &[]),
    ]
    .concat();
    stream.write_all(&two).unwrap();
    let mut text = String::new();
    while !text.contains("ready") {
        let mut part = [0; 1024];
        let read = std::io::Read::read(&mut stream, &mut part).unwrap();
        assert!(read > 0, "{text}");
        text += std::str::from_utf8(&part[..read]).unwrap();
    }
    assert_eq!(text.matches("HTTP/1.1 200").count(), 2, "{text}");
}

#[test]
fn a_token_is_asked_for_where_pictures_are() {
    let server = serve(Gate::default(), |config| {
        config.token = Some("secret".into())
    });
    let address = server.address();
    for path in ["/", "/healthz", "/readyz"] {
        get(address, path).expect(200, &[]);
    }
    for header in [
        None,
        Some("Bearer wrong"),
        Some("Bearer secretx"),
        Some("Bearer"),
        Some("Basic secret"),
        Some("secret"),
    ] {
        let headers: Vec<_> = header
            .map(|value| ("Authorization", value))
            .into_iter()
            .collect();
        let reply = post(address, "/predict", &headers, &small()).expect(401, &["Bearer"]);
        assert_eq!(reply.header("www-authenticate"), "Bearer");
        for path in ["/classes", "/metrics"] {
            send(address, &request("GET", path, &headers, &[])).expect(401, &[]);
        }
    }
    let header = [("Authorization", "Bearer secret")];
    post(address, "/predict", &header, &small()).expect(200, &[]);
    send(address, &request("GET", "/classes", &header, &[])).expect(200, &[]);
}

#[test]
fn pages_of_named_origins_may_ask() {
    let server = serve(Gate::default(), |config| {
        config.cors = vec!["https://example.org".into()];
        config.token = Some("secret".into());
    });
    let address = server.address();
    let ask = |origin: &str| {
        let headers = [
            ("Origin", origin),
            ("Access-Control-Request-Method", "POST"),
            ("Access-Control-Request-Headers", "authorization"),
        ];
        let reply = send(address, &request("OPTIONS", "/predict", &headers, &[]));
        reply.header("access-control-allow-origin").to_owned()
    };
    assert_eq!(ask("https://example.org"), "https://example.org");
    assert_eq!(ask("https://example.com"), "");
    let headers = [
        ("Origin", "https://example.org"),
        ("Authorization", "Bearer secret"),
    ];
    let reply = post(address, "/predict", &headers, &small()).expect(200, &[]);
    assert_eq!(
        reply.header("access-control-allow-origin"),
        "https://example.org"
    );
}

#[test]
fn what_no_server_can_be_is_refused_by_name() {
    let start = |models: Vec<Model>, change: &dyn Fn(&mut ServerConfig)| {
        let mut config = ServerConfig::default();
        change(&mut config);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Server::start(models, config, listener)
            .unwrap_err()
            .to_string()
    };
    let one = || vec![model(Gate::default())];
    type Change<'a> = &'a dyn Fn(&mut ServerConfig);
    let cases: [(Change<'_>, &str); 8] = [
        (&|c| c.queue = 0, "`queue`: expected at least 1, found 0"),
        (&|c| c.workers = 0, "`workers`"),
        (
            &|c| c.max_header_bytes = 100,
            "`max_header_bytes`: expected at least 8192",
        ),
        (&|c| c.timeout = std::time::Duration::ZERO, "`timeout`"),
        (&|c| c.token = Some(String::new()), "`token`"),
        (&|c| c.memory = 1 << 20, "`memory`: expected at least"),
        (
            &|c| c.cors = vec!["example.org".into()],
            "`cors`: expected origins",
        ),
        (&|c| c.cors = vec!["*".into(), "*".into()], "`cors`"),
    ];
    for (change, expected) in cases {
        let said = start(one(), change);
        assert!(said.contains(expected), "expected `{expected}` in `{said}`");
    }
    assert!(start(Vec::new(), &|_| ()).contains("found none"));
    let twice = vec![model(Gate::default()), model(Gate::default())];
    assert!(start(twice, &|_| ()).contains("`stand-in` twice"));
    let twice = vec![model(Gate::default()).with_precision("f32", Gate::default())];
    assert!(start(twice, &|_| ()).contains("`f32` twice"));
    // A network that segments nothing, as one for pictures beyond memory.
    let huge = Model::new("huge", "f32", predictor(&network(1), Policy::disabled()));
    let said = start(vec![huge], &|c| c.warm_up = Some((1 << 20, 1 << 20)));
    assert!(said.contains("huge in f32 cannot be warmed up"), "{said}");
}

#[test]
fn pictures_of_other_channels_are_refused() {
    let format = PictureFormat::new(1, 16, vec![0.0], vec![1.0]).unwrap();
    let classes = halfseg_data::Classes::cityscapes();
    let grey = Model::of("grey", "f32", Gate::default(), classes, format);
    let server = serve_all(vec![grey], |_| ());
    post(server.address(), "/predict", &[], &small())
        .expect(422, &["picture: expected", "found 3 channels of 8 bits"]);
}

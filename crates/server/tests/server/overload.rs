//! More than a server can do, and its end.

use std::io::Write;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use halfseg_data::RgbImage;

use crate::client::*;

#[test]
fn beyond_the_queue_is_503_and_what_waited_is_answered() {
    let gate = Gate::shut();
    let server = serve(gate.clone(), |config| (config.queue, config.batch) = (3, 2));
    let address = server.address();
    thread::scope(|scope| {
        let ask = || scope.spawn(|| post(address, "/predict", &[], &small()).status);
        let first = ask();
        gate.wait();
        let waiting: Vec<_> = (0..3).map(|_| ask()).collect();
        wait_for(address, "halfseg_queue_pictures", 3.0);
        for _ in 0..5 {
            let reply = post(address, "/predict", &[], &small()).expect(503, &["3 pictures wait"]);
            assert_eq!(reply.header("retry-after"), "1");
        }
        // The rest of the server is not held up.
        get(address, "/healthz").expect(200, &[]);
        gate.open();
        assert_eq!(first.join().unwrap(), 200);
        assert!(
            waiting
                .into_iter()
                .all(|thread| thread.join().unwrap() == 200)
        );
    });
    // Of the three that waited, two went together.
    assert_eq!(gate.batches(), [1, 2, 1]);
    post(address, "/predict", &[], &small()).expect(200, &[]);
    assert_eq!(metric(address, "halfseg_reserved_bytes"), 0.0);
}

#[test]
fn waiting_pictures_go_together_by_size() {
    let gate = Gate::shut();
    let server = serve(gate.clone(), |config| config.batch = 8);
    let address = server.address();
    let wide = png(&RgbImage::filled(9, 6, [1, 2, 3]));
    thread::scope(|scope| {
        let mut threads = vec![scope.spawn(|| post(address, "/predict", &[], &small()).status)];
        gate.wait();
        for (place, picture) in [&small(), &wide, &small(), &wide, &small()]
            .into_iter()
            .enumerate()
        {
            let picture = picture.clone();
            threads.push(scope.spawn(move || post(address, "/predict", &[], &picture).status));
            // In this order.
            wait_for(address, "halfseg_queue_pictures", (place + 1) as f64);
        }
        gate.open();
        assert!(
            threads
                .into_iter()
                .all(|thread| thread.join().unwrap() == 200)
        );
    });
    assert_eq!(gate.batches(), [1, 3, 2]);
}

#[test]
fn who_waits_too_long_is_told_and_no_longer_waited_for() {
    let gate = Gate::shut();
    let server = serve(gate.clone(), |config| {
        config.timeout = Duration::from_millis(1500)
    });
    let address = server.address();
    thread::scope(|scope| {
        let ask = || scope.spawn(|| post(address, "/predict", &[], &small()));
        let threads: Vec<_> = (0..3).map(|_| ask()).collect();
        for thread in threads {
            let reply = thread
                .join()
                .unwrap()
                .expect(503, &["no answer within 1.5s"]);
            assert_eq!(reply.header("retry-after"), "1");
        }
    });
    gate.open();
    post(address, "/predict", &[], &small()).expect(200, &[]);
    // The one at the gate, and not those whose clients had left.
    assert!(gate.batches().len() <= 3, "{:?}", gate.batches());
    assert_eq!(metric(address, "halfseg_reserved_bytes"), 0.0);
}

#[test]
fn memory_of_all_requests_together_has_an_end() {
    let gate = Gate::shut();
    // Pixels for little more than two pictures.
    let picture = png(&RgbImage::filled(256, 256, [9, 9, 9]));
    let server = serve(gate.clone(), |config| {
        config.max_bytes = 8 << 10;
        config.max_pixels = 1 << 16;
        config.memory = 2 * (3 << 16) + (16 << 10);
    });
    let address = server.address();
    thread::scope(|scope| {
        let ask = || scope.spawn(|| post(address, "/predict", &[], &picture).status);
        let held: Vec<_> = (0..2).map(|_| ask()).collect();
        wait_for(address, "halfseg_reserved_bytes", 2.0 * f64::from(3 << 16));
        let reply = post(address, "/predict", &[], &picture).expect(503, &["memory"]);
        assert_eq!(reply.header("retry-after"), "1");
        gate.open();
        assert!(held.into_iter().all(|thread| thread.join().unwrap() == 200));
    });
    wait_for(address, "halfseg_reserved_bytes", 0.0);
    post(address, "/predict", &[], &picture).expect(200, &[]);
}

#[test]
fn connections_beyond_the_limit_are_told_so() {
    let server = serve(Gate::default(), |config| config.max_connections = 2);
    let address = server.address();
    let mut held: Vec<TcpStream> = (0..2).map(|_| connect(address)).collect();
    for stream in &mut held {
        stream
            .write_all(&request("GET", "/healthz", &[], &[]))
            .unwrap();
        assert_eq!(Reply::read(stream).unwrap().status, 200);
    }
    let mut third = connect(address);
    let reply = Reply::read(&mut third)
        .unwrap()
        .expect(503, &["too many connections"]);
    assert_eq!(reply.header("retry-after"), "1");
    drop(held.pop());
    let mut stream = loop {
        let mut stream = connect(address);
        let _ = stream.write_all(&request("GET", "/healthz", &[], &[]));
        match Reply::read(&mut stream) {
            Some(reply) if reply.status == 200 => break stream,
            _ => thread::sleep(Duration::from_millis(5)),
        }
    };
    stream
        .write_all(&request("GET", "/readyz", &[], &[]))
        .unwrap();
    assert_eq!(Reply::read(&mut stream).unwrap().status, 200);
}

#[test]
fn a_network_that_panics_fails_its_picture_alone() {
    let server = serve(Superstitious, |_| ());
    let address = server.address();
    let unlucky = png(&RgbImage::filled(8, 6, [13, 0, 0]));
    for _ in 0..3 {
        post(address, "/predict", &[], &unlucky).expect(500, &["thirteen"]);
        post(address, "/predict", &[], &small()).expect(200, &[]);
    }
    // Also where they go together.
    thread::scope(|scope| {
        let threads: Vec<_> = (0..24)
            .map(|i| {
                let (body, status) = match i % 3 {
                    0 => (unlucky.clone(), 500),
                    _ => (small(), 200),
                };
                scope.spawn(move || (post(address, "/predict", &[], &body).status, status))
            })
            .collect();
        for thread in threads {
            let (found, expected) = thread.join().unwrap();
            assert_eq!(found, expected);
        }
    });
}

#[test]
fn a_stop_finishes_what_was_accepted_and_takes_nothing_more() {
    let gate = Gate::shut();
    let server = serve(gate.clone(), |_| ());
    let address = server.address();
    // One that keeps its connection without asking.
    let mut idle = connect(address);
    idle.write_all(&request("GET", "/readyz", &[], &[]))
        .unwrap();
    assert_eq!(Reply::read(&mut idle).unwrap().status, 200);
    thread::scope(|scope| {
        let ask = || scope.spawn(|| post(address, "/predict", &[], &small()).status);
        let at_work = ask();
        gate.wait();
        let waiting = ask();
        wait_for(address, "halfseg_queue_pictures", 1.0);
        let stopping = scope.spawn(|| server.stop());
        // The port is closed before the answers are given.
        while TcpStream::connect(address).is_ok() {
            thread::sleep(Duration::from_millis(2));
        }
        assert!(!stopping.is_finished());
        gate.open();
        assert_eq!(at_work.join().unwrap(), 200);
        assert_eq!(waiting.join().unwrap(), 200);
        stopping.join().unwrap();
    });
    assert!(
        Reply::read(&mut idle).is_none(),
        "the idle connection is closed"
    );
}

#[test]
fn a_server_that_is_dropped_ends() {
    let address = serve(Gate::default(), |_| ()).address();
    assert!(TcpStream::connect(address).is_err());
}

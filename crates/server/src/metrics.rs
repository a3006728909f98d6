//! What is counted, in the text format of Prometheus.

use std::time::Duration;

use halfseg_devices::resident_memory;
use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder,
};

/// Seconds from a millisecond to a minute.
const SECONDS: [f64; 12] = [
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0,
];
const SIZES: [f64; 6] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0];

/// The numbers of one server.
pub(crate) struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    seconds: Histogram,
    pictures: IntCounter,
    inference_seconds: Histogram,
    batch: Histogram,
    queue: IntGauge,
    memory: IntGauge,
    pub(crate) connections: IntGauge,
    pub(crate) refused_connections: IntCounter,
    resident: IntGauge,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let registry = Registry::new();
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            let histogram = Histogram::with_opts(options).expect("names are constants");
            register(&registry, histogram)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help).expect("names are constants");
            register(&registry, gauge)
        };
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help).expect("names are constants");
            register(&registry, counter)
        };
        let requests = Opts::new("halfseg_requests_total", "Requests by route and status");
        let requests = IntCounterVec::new(requests, &["route", "status"]);
        Self {
            requests: register(&registry, requests.expect("names are constants")),
            seconds: histogram(
                "halfseg_predict_seconds",
                "From the head of a request for /predict to its answer",
                &SECONDS,
            ),
            pictures: counter("halfseg_pictures_total", "Pictures that were segmented"),
            inference_seconds: histogram(
                "halfseg_inference_seconds",
                "Of pictures that were segmented at once",
                &SECONDS,
            ),
            batch: histogram(
                "halfseg_batch_pictures",
                "Pictures that were segmented at once",
                &SIZES,
            ),
            queue: gauge("halfseg_queue_pictures", "Pictures that wait for a network"),
            memory: gauge(
                "halfseg_reserved_bytes",
                "Bodies and decoded pictures of all requests",
            ),
            connections: gauge("halfseg_connections", "Open connections"),
            refused_connections: counter(
                "halfseg_refused_connections_total",
                "Connections beyond the limit",
            ),
            resident: gauge("process_resident_memory_bytes", "Memory of the process"),
            registry,
        }
    }

    /// An answer.
    pub(crate) fn answered(&self, route: &'static str, status: u16) {
        let status = status.to_string();
        self.requests.with_label_values(&[route, &status]).inc();
    }

    /// An answer of `/predict`.
    pub(crate) fn took(&self, time: Duration) {
        self.seconds.observe(time.as_secs_f64());
    }

    /// Pictures that went through a network at once.
    pub(crate) fn segmented(&self, pictures: usize, time: Duration) {
        self.pictures.inc_by(pictures as u64);
        self.batch.observe(pictures as f64);
        self.inference_seconds.observe(time.as_secs_f64());
    }

    /// All of them, with what only the server knows.
    pub(crate) fn text(&self, queue: usize, reserved_bytes: u64) -> String {
        self.queue.set(queue as i64);
        self.memory.set(reserved_bytes as i64);
        if let Some((now, _)) = resident_memory() {
            self.resident.set(now.0 as i64);
        }
        let mut text = Vec::new();
        let encoded = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        encoded.expect("writing to memory does not fail");
        String::from_utf8_lossy(&text).into_owned()
    }
}

fn register<C: prometheus::core::Collector + Clone + 'static>(registry: &Registry, one: C) -> C {
    let registered = registry.register(Box::new(one.clone()));
    registered.expect("names differ");
    one
}

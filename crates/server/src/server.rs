//! From networks to a server that runs.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, available_parallelism};

use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, watch};

use crate::metrics::Metrics;
use crate::queue::Queue;
use crate::routes::{Shared, router};
use crate::upload::Memory;
use crate::worker::work;
use crate::{Model, ServerConfig, ServerError, connection, model};

/// Threads that talk; those that segment are others.
const TALKERS: usize = 2;

/// A server that runs, on threads of its own, until it is stopped or dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    talks: Option<JoinHandle<()>>,
    works: Vec<JoinHandle<()>>,
    shared: Handle,
}

/// What is shared with the threads.
struct Handle(Arc<Shared>);

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("..")
    }
}

impl Server {
    /// Serves `models` on `listener`, once each of them has segmented a grey picture in its first precision. Requests
    /// that name no model are for the first.
    ///
    /// # Errors
    /// Values of `config` and models that no server can have, a network that segments nothing, and a system without
    /// threads.
    pub fn start(
        models: Vec<Model>,
        config: ServerConfig,
        listener: TcpListener,
    ) -> Result<Self, ServerError> {
        model::check(&models)?;
        let pixel = models.iter().map(Model::pixel_bytes).max().unwrap_or(3);
        config.validate(pixel)?;
        if let Some((width, height)) = config.warm_up {
            for model in &models {
                let (precision, network) = &model.precisions[0];
                let warmed = network.warm_up(width, height);
                warmed.map_err(|source| ServerError::WarmUp {
                    model: model.name.clone(),
                    precision: precision.clone(),
                    source: Box::new(source),
                })?;
            }
        }
        let processors = available_parallelism().map_or(1, usize::from);
        let shared = Arc::new(Shared {
            queue: Queue::new(config.queue),
            memory: Memory::new(config.memory),
            codecs: Arc::new(Semaphore::new(processors)),
            metrics: Metrics::new(),
            ready: AtomicBool::new(true),
            models,
            config,
        });
        let router = router(&shared)?;
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(TALKERS)
            .max_blocking_threads(processors.max(2))
            .thread_name("halfseg-http")
            .enable_all()
            .build()?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let (stop, stopped) = watch::channel(false);
        let mut server = Self {
            address,
            stop,
            talks: None,
            works: Vec::new(),
            shared: Handle(shared.clone()),
        };
        for _ in 0..shared.config.workers {
            let shared = shared.clone();
            let started = thread::Builder::new()
                .name("halfseg-network".into())
                .spawn(move || {
                    let most = shared.config.batch;
                    work(&shared.queue, &shared.models, most, &shared.metrics);
                });
            server.works.push(started?);
        }
        let talks = move |runtime: Runtime| {
            runtime.block_on(connection::serve(listener, router, shared, stopped));
            runtime.shutdown_background();
        };
        let started = thread::Builder::new()
            .name("halfseg-server".into())
            .spawn(move || talks(runtime));
        server.talks = Some(started?);
        Ok(server)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more requests, answers those that it has, and ends. Connections that neither ask nor answer within the
    /// times of [`ServerConfig`] are not waited for.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.shared.0.ready.store(false, Ordering::SeqCst);
        self.stop.send_replace(true);
        // A thread that panicked has nothing left to be waited for.
        if let Some(talks) = self.talks.take() {
            let _ = talks.join();
        }
        self.shared.0.queue.close();
        for works in self.works.drain(..) {
            let _ = works.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

//! Connections: how many, how long, and how they end.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_io_timeout::TimeoutStream;

use crate::routes::Shared;

/// Wait after the system gave no socket, as where there are no more handles.
const PAUSE: Duration = Duration::from_millis(50);

/// What is said to connections beyond the limit.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n\
                      Content-Type: application/json\r\nContent-Length: 34\r\n\r\n\
                      {\"error\":\"too many connections\"}\r\n";

/// Serves until `stop` says so, and then finishes what was begun.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    shared: Arc<Shared>,
    mut stop: watch::Receiver<bool>,
) {
    let config = &shared.config;
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(config.header_timeout)
        .max_buf_size(config.max_header_bytes);
    let graceful = GracefulShutdown::new();
    let room = Arc::new(Semaphore::new(config.max_connections));
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            },
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let Ok(place) = room.clone().try_acquire_owned() else {
            shared.metrics.refused_connections.inc();
            // Nobody is waited for.
            let _ = refuse(stream);
            continue;
        };
        // Answers are written in one piece.
        let _ = stream.set_nodelay(true);
        let mut stream = TimeoutStream::new(stream);
        // Reading has its own times: of heads and of bodies.
        stream.set_write_timeout(Some(config.timeout));
        let service = TowerToHyperService::new(router.clone());
        let connection = http.serve_connection(TokioIo::new(Box::pin(stream)), service);
        let connection = graceful.watch(connection);
        let shared = shared.clone();
        shared.metrics.connections.inc();
        tokio::spawn(async move {
            // One that is cut or makes no sense ends, and nobody is left to be told.
            let _ = connection.await;
            shared.metrics.connections.dec();
            drop(place);
        });
    }
    drop(listener);
    let config = &shared.config;
    let longest = config.header_timeout + config.body_timeout + 2 * config.timeout;
    let _ = tokio::time::timeout(longest, graceful.shutdown()).await;
}

fn refuse(stream: TcpStream) -> io::Result<()> {
    let mut stream = stream.into_std()?;
    stream.write_all(FULL)?;
    stream.shutdown(std::net::Shutdown::Write)
}

//! What is asked and answered.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::http::header::{ACCEPT, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::{Semaphore, oneshot};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::metrics::Metrics;
use crate::model::Model;
use crate::output::Output;
use crate::problem::Problem;
use crate::queue::{Queue, Refused};
use crate::upload::{self, Memory};
use crate::worker::{Failure, Job};
use crate::{ServerConfig, ServerError, answer, page};

/// What all requests share.
pub(crate) struct Shared {
    pub config: ServerConfig,
    pub models: Vec<Model>,
    pub queue: Queue<Job>,
    pub memory: Memory,
    /// Pictures that are decoded or encoded at a time.
    pub codecs: Arc<Semaphore>,
    pub metrics: Metrics,
    pub ready: AtomicBool,
}

const ROUTES: [&str; 6] = [
    "/", "/predict", "/classes", "/healthz", "/readyz", "/metrics",
];

/// All routes.
pub(crate) fn router(shared: &Arc<Shared>) -> Result<Router, ServerError> {
    let open = Router::new()
        .route("/", get(page::page))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready));
    let guarded = Router::new()
        .route("/predict", post(predict))
        .route("/classes", get(classes))
        .route("/metrics", get(metrics))
        .layer(from_fn_with_state(shared.clone(), authorize));
    let router = open
        .merge(guarded)
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "no such page").expecting(ROUTES))
        .method_not_allowed_fallback(async || {
            let message = "another method is expected: POST for /predict, GET for the others";
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, message)
        })
        .layer(CatchPanicLayer::custom(|_: Box<dyn Any + Send>| {
            Problem::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the server made a mistake",
            )
            .into_response()
        }))
        .layer(from_fn_with_state(shared.clone(), observe));
    let router = match cors(&shared.config.cors)? {
        Some(cors) => router.layer(cors),
        None => router,
    };
    Ok(router.with_state(shared.clone()))
}

/// Whose pages may ask; nobody's where no origin is given.
fn cors(origins: &[String]) -> Result<Option<CorsLayer>, ServerError> {
    let allowed = match origins {
        [] => return Ok(None),
        [all] if all == "*" => AllowOrigin::any(),
        origins => {
            let value = |origin: &String| {
                let wrong = || ServerError::Config {
                    key: "cors",
                    expected: "origins such as https://example.org, or * alone".into(),
                    found: format!("`{origin}`"),
                };
                let is_origin = origin
                    .split_once("://")
                    .is_some_and(|(_, host)| !host.is_empty() && !host.contains('/'));
                let value = HeaderValue::from_str(origin).ok().filter(|_| is_origin);
                value.ok_or_else(wrong)
            };
            let values = origins.iter().map(value);
            AllowOrigin::list(values.collect::<Result<Vec<_>, _>>()?)
        }
    };
    let layer = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([AUTHORIZATION, CONTENT_TYPE, ACCEPT]);
    Ok(Some(layer))
}

/// Counts answers, and has nobody keep them.
async fn observe(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let path = request.uri().path();
    let route = ROUTES.into_iter().find(|route| *route == path);
    let mut response = next.run(request).await;
    let status = response.status().as_u16();
    shared.metrics.answered(route.unwrap_or("other"), status);
    if route == Some("/predict") {
        shared.metrics.took(began.elapsed());
    }
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let name = HeaderName::from_static("x-content-type-options");
    headers.insert(name, HeaderValue::from_static("nosniff"));
    response
}

/// Lets requests with the token pass, if there is one.
async fn authorize(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let Some(token) = &shared.config.token else {
        return next.run(request).await;
    };
    let said = request.headers().get(AUTHORIZATION);
    let said = said.and_then(|value| value.to_str().ok()?.split_once(' '));
    let said = said.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    // How long two digests take to compare tells nothing of the token.
    let digest = |text: &str| Sha256::digest(text.trim().as_bytes());
    match said.is_some_and(|(_, said)| digest(said) == digest(token)) {
        true => next.run(request).await,
        false => {
            let message = "expected `Authorization: Bearer` with this server's token";
            Problem::new(StatusCode::UNAUTHORIZED, message).into_response()
        }
    }
}

async fn ready(State(shared): State<Arc<Shared>>) -> Result<&'static str, Problem> {
    match shared.ready.load(Ordering::SeqCst) {
        true => Ok("ready\n"),
        false => Err(Problem::busy("the server is stopping")),
    }
}

async fn metrics(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    let text = shared
        .metrics
        .text(shared.queue.len(), shared.memory.reserved());
    ([(CONTENT_TYPE, kind)], text)
}

/// Networks, their precisions and classes, and the limits of requests.
async fn classes(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let models = shared.models.iter().map(|model| {
        let classes = 0..model.classes.len();
        let classes = classes.map(|class| answer::class_entry(&model.classes, class));
        json!({
            "name": model.name,
            "precisions": model.precision_names(),
            "classes": classes.collect::<Vec<_>>(),
            "channels": model.pictures.channels(),
            "bits": model.pictures.bits(),
        })
    });
    let body = json!({
        "models": models.collect::<Vec<_>>(),
        "max_bytes": shared.config.max_bytes,
        "max_pixels": shared.config.max_pixels,
    });
    ([(CONTENT_TYPE, "application/json")], format!("{body}\n"))
}

/// What stands behind the `?` of `/predict`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    model: Option<String>,
    precision: Option<String>,
    output: Option<String>,
    opacity: Option<f32>,
}

/// What a request wants.
struct Wanted {
    model: usize,
    precision: usize,
    output: Output,
    opacity: f32,
}

impl Wanted {
    fn of(shared: &Shared, asked: &Asked, headers: &HeaderMap) -> Result<Self, Problem> {
        let names = || shared.models.iter().map(|model| model.name.clone());
        let model = match &asked.model {
            None => 0,
            Some(name) => names()
                .position(|other| other == *name)
                .ok_or_else(|| Problem::bad(format!("no model `{name}`")).expecting(names()))?,
        };
        let precisions = shared.models[model].precision_names();
        let precision = match &asked.precision {
            None => 0,
            Some(name) => precisions
                .iter()
                .position(|other| other == name)
                .ok_or_else(|| {
                    Problem::bad(format!("no precision `{name}`")).expecting(&precisions)
                })?,
        };
        let output = match &asked.output {
            Some(name) => name.parse().map_err(|()| {
                Problem::bad(format!("no output `{name}`")).expecting(Output::NAMES)
            })?,
            None => {
                let said = headers.get_all(ACCEPT).iter();
                let said: Vec<_> = said.filter_map(|value| value.to_str().ok()).collect();
                let found = match said.is_empty() {
                    true => Some(Output::Map),
                    false => Output::accepted(&said.join(",")),
                };
                found.ok_or_else(|| {
                    let message = format!("nothing that `Accept: {}` takes", said.join(","));
                    Problem::new(StatusCode::NOT_ACCEPTABLE, message).expecting(Output::ACCEPTED)
                })?
            }
        };
        let opacity = asked.opacity.unwrap_or(0.5);
        if !(0.0..=1.0).contains(&opacity) {
            let message = format!("opacity: expected a number from 0 to 1, found {opacity}");
            return Err(Problem::bad(message));
        }
        Ok(Self {
            model,
            precision,
            output,
            opacity,
        })
    }
}

async fn predict(State(shared): State<Arc<Shared>>, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let asked = Query::<Asked>::try_from_uri(&parts.uri)
        .map_err(|error| Problem::bad(error.body_text()))?;
    let wanted = Wanted::of(&shared, &asked, &parts.headers)?;
    let config = &shared.config;
    let received = receive(&shared, &parts.headers, body);
    let upload = tokio::time::timeout(config.body_timeout, received)
        .await
        .map_err(|_| {
            let message = format!("the body did not come within {:?}", config.body_timeout);
            Problem::new(StatusCode::REQUEST_TIMEOUT, message)
        })??;
    let answered = answer(&shared, upload, wanted);
    tokio::time::timeout(config.timeout, answered)
        .await
        .map_err(|_| Problem::busy(format!("no answer within {:?}", config.timeout)))?
}

async fn receive(
    shared: &Shared,
    headers: &HeaderMap,
    body: Body,
) -> Result<upload::Upload, Problem> {
    let mut upload = upload::read(headers, body, shared.config.max_bytes, &shared.memory).await?;
    upload::file(headers, &mut upload).await?;
    Ok(upload)
}

/// Decodes a picture, has it segmented and encodes what comes of it.
async fn answer(
    shared: &Arc<Shared>,
    upload: upload::Upload,
    wanted: Wanted,
) -> Result<Response, Problem> {
    let network = (wanted.model, wanted.precision);
    let (picture, memory) = with_codec(shared, move |shared| {
        let model = &shared.models[network.0];
        let (most, each) = (shared.config.max_pixels, model.pixel_bytes());
        upload::decode(upload, &model.pictures, most, each, &shared.memory)
    })
    .await?;
    let (reply, done) = oneshot::channel();
    let job = Job {
        network,
        picture,
        memory,
        reply,
    };
    shared.queue.push(job).map_err(|refused| match refused {
        Refused::Full => Problem::busy(format!(
            "{} pictures wait already, and no more may",
            shared.config.queue
        )),
        Refused::Closed => Problem::busy("the server is stopping"),
    })?;
    let failed = |message: String| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, message);
    let done = done
        .await
        .map_err(|_| failed("the network ended without an answer".into()))?;
    let done = done.map_err(|failure| match failure {
        Failure::Predict(error) => Problem::of_prediction(&error),
        Failure::Panic(message) => failed(format!("the network failed: {message}")),
    })?;
    let Wanted {
        output, opacity, ..
    } = wanted;
    let body = with_codec(shared, move |shared| {
        let model = &shared.models[network.0];
        let precision = &model.precisions[network.1].0;
        answer::body(model, precision, output, opacity, done)
    })
    .await?;
    let kind = HeaderValue::from_static(output.media_type());
    Ok(([(CONTENT_TYPE, kind)], body).into_response())
}

/// Runs `work` on a thread for work that takes time, of which there are as many as processors.
async fn with_codec<T: Send + 'static>(
    shared: &Arc<Shared>,
    work: impl FnOnce(&Shared) -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    let failed = || {
        Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the server made a mistake",
        )
    };
    let turn = shared.codecs.clone().acquire_owned();
    let turn = turn.await.map_err(|_| failed())?;
    let shared = shared.clone();
    let done = tokio::task::spawn_blocking(move || {
        let done = work(&shared);
        drop(turn);
        done
    });
    done.await.map_err(|_| failed())?
}

//! Answers to requests that cannot be served.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use halfseg_data::DataError;
use halfseg_predict::PredictError;
use serde_json::json;

/// What is wrong with a request, or with the server: JSON with `error` and, where there is a choice, `expected`.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    message: String,
    expected: Vec<String>,
}

/// Seconds after which a client may ask again.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

impl Problem {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            expected: Vec::new(),
        }
    }

    /// A request that makes no sense.
    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// The server has too much to do.
    pub(crate) fn busy(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    /// The same with what could have been asked for.
    pub(crate) fn expecting<T: ToString>(mut self, expected: impl IntoIterator<Item = T>) -> Self {
        self.expected = expected.into_iter().map(|one| one.to_string()).collect();
        self
    }

    /// Of a picture that cannot be read.
    pub(crate) fn of_data(error: &DataError) -> Self {
        let status = match error {
            DataError::TooManyPixels { .. } | DataError::Memory { .. } => {
                StatusCode::PAYLOAD_TOO_LARGE
            }
            _ => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Self::new(status, error.to_string())
    }

    /// Of a picture that the network does not segment.
    pub(crate) fn of_prediction(error: &PredictError) -> Self {
        let status = match error {
            PredictError::Memory { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            PredictError::Channels { .. } | PredictError::Picture { .. } => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut body = json!({ "error": self.message });
        if !self.expected.is_empty() {
            body["expected"] = self.expected.into();
        }
        let json = HeaderValue::from_static("application/json");
        let head = [(header::CONTENT_TYPE, json)];
        let mut response = (self.status, head, format!("{body}\n")).into_response();
        let headers = response.headers_mut();
        match self.status {
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, RETRY_AFTER);
            }
            StatusCode::UNAUTHORIZED => {
                let bearer = HeaderValue::from_static("Bearer");
                headers.insert(header::WWW_AUTHENTICATE, bearer);
            }
            _ => {}
        }
        response
    }
}

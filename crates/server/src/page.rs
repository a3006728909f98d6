//! The page at `/`.

use std::sync::LazyLock;

use axum::http::HeaderValue;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

const PAGE: &str = include_str!("page.html");

/// The page may run its own script and style, ask its own server, and show what it made itself: nothing else.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; img-src 'self' blob: data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash_of("script"),
        hash_of("style")
    )
});

/// The hash of the page's element `name` in the words of Content Security Policy.
fn hash_of(name: &str) -> String {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let inner = PAGE
        .split_once(&open)
        .and_then(|(_, rest)| rest.split_once(&close));
    let (inner, _) = inner.expect("the page has one of each");
    format!("sha256-{}", STANDARD.encode(Sha256::digest(inner)))
}

pub(crate) async fn page() -> Response {
    let policy = HeaderValue::from_str(&POLICY).expect("the policy is ASCII");
    let head = [
        (
            CONTENT_TYPE,
            HeaderValue::from_static("text/html; charset=utf-8"),
        ),
        (CONTENT_SECURITY_POLICY, policy),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ];
    (head, PAGE).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_nothing_outside_itself() {
        for word in [
            "http:", "https:", "src=", "@import", "url(", "onclick", "style=",
        ] {
            assert!(!PAGE.contains(word), "the page has `{word}`");
        }
        // The link says that there is no icon.
        for element in ["<script", "<style", "<link"] {
            assert_eq!(PAGE.matches(element).count(), 1, "{element}");
        }
        assert!(PAGE.contains("<link rel=\"icon\" href=\"data:,\">"));
        assert!(POLICY.contains("script-src 'sha256-"));
    }
}

//! What keeps a server from being started.

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// A value of [`ServerConfig`](crate::ServerConfig) that no server can have.
    #[error("`{key}`: expected {expected}, found {found}")]
    Config {
        /// The field.
        key: &'static str,
        /// What it takes.
        expected: String,
        /// What was there.
        found: String,
    },
    /// The networks do not fit together, or there is none.
    #[error("networks: expected {expected}, found {found}")]
    Models {
        /// What could be served.
        expected: &'static str,
        /// What was given.
        found: String,
    },
    /// A network does not even segment a grey picture.
    #[error("{model} in {precision} cannot be warmed up")]
    WarmUp {
        /// The network.
        model: String,
        /// Its precision.
        precision: String,
        /// Why.
        source: Box<halfseg_predict::PredictError>,
    },
    /// The system gives no threads or no sockets.
    #[error("cannot start the server")]
    Io(#[from] std::io::Error),
}

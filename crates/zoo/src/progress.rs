//! What a download tells of itself.

/// What is happening to a file.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// Another process fetches it.
    Waiting,
    /// So many bytes of so many, if that is known, are here.
    Fetching {
        /// The address.
        url: &'a str,
        /// Bytes that are here.
        bytes: u64,
        /// Bytes of the whole file.
        of: Option<u64>,
    },
    /// The connection broke or was refused; the download goes on from where it was.
    Retrying {
        /// What went wrong.
        why: &'a str,
    },
    /// It is here and has the published hash.
    Ready,
}

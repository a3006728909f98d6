//! From a request's body to a picture in memory.

use std::sync::Arc;

use axum::body::Body;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use halfseg_data::{DataError, ImageReader, Picture, PictureFormat, is_picture};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::problem::Problem;

/// What pictures are called in messages, in place of a path.
pub(crate) const NAME: &str = "picture";
/// Fields of a form that hold the picture.
const FIELDS: [&str; 2] = ["picture", "file"];

/// The memory that all requests share.
pub(crate) struct Memory {
    free: Arc<Semaphore>,
    units: u64,
}

/// Bytes that are counted as one.
const UNIT: u64 = 1024;
/// Bytes that a body has room for at first.
const FEW: usize = 4096;

impl Memory {
    pub(crate) fn new(bytes: u64) -> Self {
        let units = (bytes / UNIT).min(u64::from(u32::MAX));
        Self {
            free: Arc::new(Semaphore::new(units as usize)),
            units,
        }
    }

    pub(crate) fn reserved(&self) -> u64 {
        (self.units - self.free.available_permits() as u64) * UNIT
    }

    /// Takes so much of it until that is dropped.
    pub(crate) fn reserve(&self, bytes: u64) -> Result<OwnedSemaphorePermit, Problem> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let taken = self.free.clone().try_acquire_many_owned(units);
        taken.map_err(|_| Problem::busy("other requests take all memory of the server"))
    }
}

/// A body and the memory that it takes.
pub(crate) struct Upload {
    bytes: Vec<u8>,
    memory: OwnedSemaphorePermit,
}

fn too_long(limit: usize) -> Problem {
    let message = format!("expected a body of at most {limit} bytes, found a longer one");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, message)
}

/// Reads a body of at most `limit` bytes. Memory is taken as they come, so that what is promised takes none.
pub(crate) async fn read(
    headers: &HeaderMap,
    mut body: Body,
    limit: usize,
    memory: &Memory,
) -> Result<Upload, Problem> {
    let length = headers.get(CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > limit as u64) {
        return Err(too_long(limit));
    }
    if let Some(encoding) = headers.get(CONTENT_ENCODING) {
        let message = format!("expected a body without Content-Encoding, found {encoding:?}");
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    let mut upload = Upload {
        bytes: Vec::new(),
        memory: memory.reserve(0)?,
    };
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Problem::bad(format!("the body was cut: {error}")))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        let bytes = &mut upload.bytes;
        let needed = bytes.len() + data.len();
        if needed > limit {
            return Err(too_long(limit));
        }
        if needed > bytes.capacity() {
            let room = needed
                .max(2 * bytes.capacity())
                .clamp(FEW.min(limit), limit);
            let more = memory.reserve((room - bytes.capacity()) as u64)?;
            upload.memory.merge(more);
            bytes.reserve_exact(room - bytes.len());
        }
        bytes.extend_from_slice(&data);
    }
    Ok(upload)
}

/// The picture's bytes: the body, or the field of a form.
pub(crate) async fn file(headers: &HeaderMap, upload: &mut Upload) -> Result<(), Problem> {
    let kind = headers.get(CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let is_form = kind.to_ascii_lowercase().starts_with("multipart/");
    if is_form {
        let unfit =
            |error: multer::Error| Problem::bad(format!("the form cannot be read: {error}"));
        let boundary = multer::parse_boundary(kind).map_err(unfit)?;
        let body = std::mem::take(&mut upload.bytes);
        let mut form = multer::Multipart::with_reader(&body[..], boundary);
        let mut found = None;
        while let Some(field) = form.next_field().await.map_err(unfit)? {
            let name = field.name().unwrap_or_default().to_owned();
            if !FIELDS.contains(&&*name) || found.is_some() {
                let message = format!("the form has another field, `{name}`");
                return Err(Problem::bad(message).expecting(["one field `picture` or `file`"]));
            }
            found = Some(field.bytes().await.map_err(unfit)?);
        }
        let Some(bytes) = found else {
            let none = Problem::bad("the form has no picture");
            return Err(none.expecting(["one field `picture` or `file`"]));
        };
        drop(form);
        upload.bytes = bytes.into();
    }
    if upload.bytes.is_empty() {
        return Err(Problem::bad("expected a picture, found an empty body"));
    }
    if !is_picture(&upload.bytes) {
        let start = &upload.bytes[..upload.bytes.len().min(4)];
        let message = format!("expected a picture, found bytes that start with {start:02x?}");
        let problem = Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message);
        return Err(problem.expecting(["PNG", "JPEG", "TIFF"]));
    }
    Ok(())
}

/// Decodes a picture, once there is memory for its pixels.
pub(crate) fn decode(
    upload: Upload,
    format: &PictureFormat,
    max_pixels: u64,
    pixel_bytes: u64,
    memory: &Memory,
) -> Result<(Picture, OwnedSemaphorePermit), Problem> {
    let failed = |error: DataError| Problem::of_data(&error);
    let reader = ImageReader { max_pixels };
    let Upload {
        bytes,
        memory: of_file,
    } = upload;
    let file: Arc<[u8]> = bytes.into();
    let opened = reader.opened(NAME, file, format).map_err(failed)?;
    let (width, height) = opened.size();
    let of_picture = memory.reserve(width as u64 * height as u64 * pixel_bytes)?;
    let picture = opened.read().map_err(failed)?;
    drop(of_file);
    Ok((picture, of_picture))
}

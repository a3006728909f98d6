//! Maps of ids read from PNG.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use png::{BitDepth, ColorType};

use crate::EvalError;

/// Ids row by row, with `(width, height)`.
pub(crate) struct IdMap<T> {
    pub(crate) ids: Vec<T>,
    pub(crate) size: (usize, usize),
}

/// An 8-bit map, grey or with a palette (whose indices are the ids).
pub(crate) fn read_ids(path: &Path) -> Result<IdMap<u8>, EvalError> {
    let (depth, map) = decode(path)?;
    match depth {
        BitDepth::Eight => Ok(map),
        other => Err(unfit(path, "an 8-bit map of ids", other)),
    }
}

/// A 16-bit map; an 8-bit one is widened.
pub(crate) fn read_instances(path: &Path) -> Result<IdMap<u16>, EvalError> {
    let (depth, map) = decode(path)?;
    let size = map.size;
    let ids = match depth {
        BitDepth::Sixteen => {
            let pairs = map.ids.chunks_exact(2);
            pairs.map(|b| u16::from_be_bytes([b[0], b[1]])).collect()
        }
        BitDepth::Eight => map.ids.into_iter().map(u16::from).collect(),
        other => return Err(unfit(path, "a 16-bit map of instance ids", other)),
    };
    Ok(IdMap { ids, size })
}

fn unfit(path: &Path, expected: &str, found: BitDepth) -> EvalError {
    EvalError::Image {
        path: path.to_owned(),
        expected: expected.into(),
        found: format!("{} bits a pixel", found as u8),
    }
}

fn decode(path: &Path) -> Result<(BitDepth, IdMap<u8>), EvalError> {
    let file = File::open(path).map_err(|e| EvalError::io(path, e))?;
    let image = |expected: &str, found: String| EvalError::Image {
        path: path.to_owned(),
        expected: expected.into(),
        found,
    };
    let damaged = |e: png::DecodingError| image("a whole PNG", e.to_string());
    let decoder = png::Decoder::new(BufReader::new(file));
    let mut reader = decoder.read_info().map_err(damaged)?;
    let (color, depth) = reader.output_color_type();
    if !matches!(color, ColorType::Grayscale | ColorType::Indexed) {
        return Err(image("one channel of ids", format!("colours ({color:?})")));
    }
    let size = reader
        .output_buffer_size()
        .ok_or_else(|| image("a PNG that fits in memory", "a larger one".into()))?;
    let mut bytes = vec![0; size];
    let info = reader.next_frame(&mut bytes).map_err(damaged)?;
    bytes.truncate(info.buffer_size());
    let size = (info.width as usize, info.height as usize);
    Ok((depth, IdMap { ids: bytes, size }))
}

//! From a class map to an answer's body.

use std::fmt::Write;

use axum::http::StatusCode;
use halfseg_data::{Classes, LabelMap, encode_label, encode_rgb};
use halfseg_predict::{class_pixels, colorize, count_corners, overlay, polygons};
use serde_json::{Value, json};

use crate::model::Model;
use crate::output::Output;
use crate::problem::Problem;
use crate::upload::NAME;
use crate::worker::Done;

/// Corners of all polygons of an answer: 16 bytes or less of JSON each.
const MOST_CORNERS: u64 = 1 << 20;

/// `#rrggbb`.
fn hex([r, g, b]: [u8; 3]) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

/// The answer's body.
pub(crate) fn body(
    model: &Model,
    precision: &str,
    output: Output,
    opacity: f32,
    done: Done,
) -> Result<Vec<u8>, Problem> {
    let map = done.found.finite(NAME).map_err(|error| {
        let message = format!("{error}: another precision may do");
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    })?;
    let palette = model.classes.colors();
    let mut out = Vec::new();
    let written = match output {
        Output::Map => encode_label(&mut out, &map),
        Output::Colors => encode_rgb(&mut out, &colorize(&map, palette)),
        Output::Overlay => {
            let shown = model.pictures.shown(&done.picture);
            encode_rgb(&mut out, &overlay(&shown, &map, palette, opacity))
        }
        Output::Json => return json_of(model, precision, &map).map(String::into_bytes),
    };
    written.expect("writing to memory does not fail");
    Ok(out)
}

/// Pixels of each class, and its polygons as GeoJSON has them (RFC 7946), in pixels from the upper left.
fn json_of(model: &Model, precision: &str, map: &LabelMap) -> Result<String, Problem> {
    let corners = count_corners(map);
    if corners > MOST_CORNERS {
        let message = format!(
            "the polygons have {corners} corners, and an answer at most {MOST_CORNERS}: ask for image/png"
        );
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, message));
    }
    let mut out = format!(
        "{{\"type\":\"FeatureCollection\",\"model\":{},\"precision\":{},\"width\":{},\"height\":{},\"classes\":[",
        json!(model.name),
        json!(precision),
        map.width,
        map.height
    );
    let pixels = class_pixels(map);
    for (class, count) in pixels.iter().take(model.classes.len()).enumerate() {
        let comma = if class > 0 { "," } else { "" };
        let entry = properties(&model.classes, class, *count);
        let _ = write!(out, "{comma}{entry}");
    }
    out.push_str("],\"features\":[");
    for (place, found) in polygons(map).iter().enumerate() {
        let comma = if place > 0 { "," } else { "" };
        let class = usize::from(found.class);
        let entry = properties(&model.classes, class, pixels[class]);
        let _ = write!(
            out,
            "{comma}{{\"type\":\"Feature\",\"properties\":{entry},\"geometry\":{{\"type\":\"MultiPolygon\",\
             \"coordinates\":["
        );
        for (place, polygon) in found.polygons.iter().enumerate() {
            out.push_str(if place > 0 { ",[" } else { "[" });
            let rings = std::iter::once(&polygon.outer).chain(&polygon.holes);
            for (place, ring) in rings.enumerate() {
                out.push_str(if place > 0 { ",[" } else { "[" });
                // Closed by its first corner.
                for (place, [x, y]) in ring.iter().chain(ring.first()).enumerate() {
                    let comma = if place > 0 { "," } else { "" };
                    let _ = write!(out, "{comma}[{x},{y}]");
                }
                out.push(']');
            }
            out.push(']');
        }
        out.push_str("]}}");
    }
    out.push_str("]}\n");
    Ok(out)
}

/// What a class is called and shown in.
pub(crate) fn class_entry(classes: &Classes, class: usize) -> Value {
    json!({
        "class": class,
        "name": classes.names().get(class),
        "color": classes.colors().get(class).map(|color| hex(*color)),
    })
}

fn properties(classes: &Classes, class: usize, pixels: u64) -> Value {
    let mut entry = class_entry(classes, class);
    entry["pixels"] = pixels.into();
    entry
}

//! Writing `.pth`: the archive that `torch.save` makes since PyTorch 1.6, without Python.

use std::io::{self, Write};
use std::path::Path;

use halfseg_files::write_atomically;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::ClassTable;
use super::pickle::Pickle;
use super::tensors::TensorFile;

/// What the archive's files are below; any name will do.
const ROOT: &str = "archive";
/// Where values begin in PyTorch's own files, so that they can be mapped into memory.
const ALIGNMENT: u16 = 64;

/// What is beside the tensors.
pub(crate) struct Meta<'a> {
    /// The configuration of MMSegmentation.
    pub config: &'a str,
    pub classes: Option<&'a ClassTable>,
}

/// Writes `tensors` to `path`, whole or not at all: with `meta`, below `state_dict` beside it, as MMSegmentation has it,
/// else alone.
pub(crate) fn write(path: &Path, tensors: TensorFile, meta: Option<&Meta<'_>>) -> io::Result<()> {
    let pickle = pickled(&tensors, meta);
    write_atomically(path, |out| {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .with_alignment(ALIGNMENT);
        let mut archive = ZipWriter::new(out);
        let mut file = |name: &str, bytes: &[u8]| -> io::Result<()> {
            let options = options.large_file(bytes.len() as u64 > u64::from(u32::MAX) / 2);
            archive.start_file(format!("{ROOT}/{name}"), options)?;
            archive.write_all(bytes)
        };
        file("data.pkl", &pickle)?;
        file("byteorder", b"little")?;
        let mut key = 0;
        tensors.for_each_value(|bytes| {
            file(&format!("data/{key}"), bytes)?;
            key += 1;
            Ok(())
        })?;
        file("version", b"3\n")?;
        archive.finish()?;
        Ok(())
    })
}

fn pickled(tensors: &TensorFile, meta: Option<&Meta<'_>>) -> Vec<u8> {
    let mut pickle = Pickle::new();
    let state = |pickle: &mut Pickle| {
        pickle.ordered_dict(|entries| {
            for (key, (name, storage, shape)) in tensors.shapes().enumerate() {
                entries.text(name);
                entries.tensor(storage, key, shape);
            }
        });
    };
    match meta {
        None => state(&mut pickle),
        Some(meta) => pickle.dict(|entries| {
            entries.text("meta");
            entries.dict(|entries| put_meta(entries, meta));
            entries.text("state_dict");
            state(entries);
        }),
    }
    pickle.finish()
}

/// As MMSegmentation 1.x keeps it, and the names and colours as 0.x did, too.
fn put_meta(entries: &mut Pickle, meta: &Meta<'_>) {
    for (key, text) in [
        ("cfg", meta.config),
        ("halfseg_version", env!("CARGO_PKG_VERSION")),
    ] {
        entries.text(key);
        entries.text(text);
    }
    let Some(classes) = meta.classes else {
        return;
    };
    let put = |entries: &mut Pickle, keys: [&str; 2]| {
        entries.text(keys[0]);
        entries.tuple(|names| classes.names.iter().for_each(|name| names.text(name)));
        entries.text(keys[1]);
        entries.list(|colors| {
            for color in &classes.palette {
                colors.list(|rgb| color.iter().for_each(|value| rgb.int((*value).into())));
            }
        });
    };
    entries.text("dataset_meta");
    entries.dict(|entries| put(entries, ["classes", "palette"]));
    put(entries, ["CLASSES", "PALETTE"]);
}

//! Damaged pictures and maps end in an error or a picture: never in a panic, a wait, or memory
//! beyond twice the file and 256 MiB.
//!
//! `HALFSEG_MUTANTS` is the number of damaged files, 2,000 without it; `HALFSEG_SEED` another seed.
//! Alone in its program: it counts all memory that the process has allocated.

#[path = "../../devices/tests/counted/mod.rs"]
mod counted;
mod files;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use files::{Png, chunk, exif, flat_jpeg, progressive_jpeg};
use halfseg_data::{
    Cityscapes, CropBox, DataError, Dataset, ImageReader, LabelMap, Picture, PictureFormat,
    read_image, read_instances, read_label,
};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Whole files of every kind.
fn originals() -> Vec<Vec<u8>> {
    let mut originals: Vec<Vec<u8>> = vec![
        include_bytes!("pictures/baseline.jpg").to_vec(),
        include_bytes!("pictures/progressive.jpg").to_vec(),
        include_bytes!("pictures/grey.jpg").to_vec(),
        flat_jpeg(700, 500),
        progressive_jpeg(1024, 1024, 3),
    ];
    let baseline = originals[0].clone();
    originals.push([&baseline[..2], &exif(6), &baseline[2..]].concat());
    let palette = chunk(b"PLTE", &(0..192).collect::<Vec<u8>>());
    for color in [0, 2, 3, 4, 6] {
        for interlaced in [false, true] {
            let mut png = Png::new(57, 43, color);
            png.interlaced = interlaced;
            png.chunk = 700;
            if color == 3 {
                png.before = [palette.clone(), chunk(b"tRNS", &[0, 128, 255])].concat();
            }
            let count = 57 * 43 * png.channels();
            let pixels = (0..count).map(|i| (i / 90 * 7 + i % 3 * (i % 40 / 39)) as u8 % 64);
            originals.push(png.file(&pixels.collect::<Vec<_>>()));
        }
    }
    originals
}

/// Numbers at which programs go wrong.
const EDGES: [u8; 8] = [0, 1, 2, 3, 8, 127, 128, 255];

/// Damages `file` in one to four places.
fn damage(file: &mut Vec<u8>, others: &[Vec<u8>], rng: &mut impl Rng) {
    for _ in 0..rng.random_range(1..=4) {
        // Headers decide more than pixels.
        let reach = match rng.random_bool(0.5) {
            true => file.len().min(200),
            false => file.len(),
        };
        if reach == 0 {
            return;
        }
        let at = rng.random_range(0..reach);
        let end = at + rng.random_range(0..=(file.len() - at).min(64));
        match rng.random_range(0..8) {
            0 => file[at] ^= 1 << rng.random_range(0..8),
            1 => file[at] = EDGES[rng.random_range(0..EDGES.len())],
            2 => file[at] = rng.random(),
            3 => file.truncate(at),
            4 => drop(file.drain(at..end)),
            5 => {
                let part = file[at..end].to_vec();
                let to = rng.random_range(0..=file.len());
                drop(file.splice(to..to, part));
            }
            6 => {
                let other = &others[rng.random_range(0..others.len())];
                let from = rng.random_range(0..other.len());
                let to = (from + 64).min(other.len());
                drop(file.splice(at..end, other[from..to].iter().copied()));
            }
            _ => file[at..end].fill(EDGES[rng.random_range(0..EDGES.len())]),
        }
    }
}

/// Makes the checksums of a PNG right again, so that decoders see what lies behind them.
fn mend(file: &mut [u8]) {
    let mut at = 8;
    while let Some(length) = file.get(at..at + 4) {
        let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
        let end = at.saturating_add(8).saturating_add(length);
        if end.saturating_add(4) > file.len() {
            return;
        }
        let crc = crc32fast::hash(&file[at + 4..end]).to_be_bytes();
        file[end..end + 4].copy_from_slice(&crc);
        at = end + 4;
    }
}

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().expect(name),
        Err(_) => default,
    }
}

#[test]
fn damaged_files_end_in_an_error_or_a_picture() {
    let (count, seed) = (number("HALFSEG_MUTANTS", 2000), number("HALFSEG_SEED", 1));
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let image = root.join("leftImg8bit/val/a/x_leftImg8bit.png");
    let label = root.join("gtFine/val/a/x_gtFine_labelIds.png");
    for path in [&image, &label] {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    }
    let originals = originals();
    let map = Png::new(57, 43, 0).file(&[7; 57 * 43]);
    let (mut read, mut slowest, mut largest) = (0, Duration::ZERO, 0);
    for mutant in 0..count {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(mutant);
        let mut file = originals[rng.random_range(0..originals.len())].clone();
        damage(&mut file, &originals, &mut rng);
        if rng.random_bool(0.7) && file.starts_with(b"\x89PNG") {
            mend(&mut file);
        }
        let is_map = rng.random_bool(0.3);
        let (damaged, whole) = if is_map {
            (&label, &image)
        } else {
            (&image, &label)
        };
        std::fs::write(damaged, &file).unwrap();
        std::fs::write(whole, &map).unwrap();

        let (before, start) = (counted::forget_peak(), Instant::now());
        let found = std::panic::catch_unwind(|| read_all(root, damaged));
        let (took, bytes) = (start.elapsed(), counted::peak() - before);
        let kept = || {
            let kept = std::env::temp_dir().join(format!("halfseg-mutant-{seed}-{mutant}"));
            std::fs::write(&kept, &file).unwrap();
            format!("mutant {mutant} of seed {seed}, kept as {}", kept.display())
        };
        match found {
            Ok(pictures) => read += pictures,
            Err(_) => panic!("a panic at {}", kept()),
        }
        assert!(took < Duration::from_secs(10), "{took:?} for {}", kept());
        let most = 2 * file.len() as u64 + (256 << 20);
        assert!(bytes <= most, "{bytes} bytes for {}", kept());
        (slowest, largest) = (slowest.max(took), largest.max(bytes));
    }
    println!("{count} mutants gave {read} pictures, at most {slowest:?} and {largest} bytes");
    assert!(read > 0 || count < 100, "no damage was harmless");
}

/// Reads `damaged` in every way, and counts the pictures that came of it.
fn read_all(root: &Path, damaged: &Path) -> usize {
    let says = |error: DataError| assert!(!error.to_string().is_empty());
    let picture = read_image(damaged).map_err(says).ok();
    let file: Arc<[u8]> = std::fs::read(damaged).expect("it was written").into();
    let (reader, format) = (ImageReader::default(), PictureFormat::default());
    let in_memory = reader.picture_of("it", file, &format).map_err(says).ok();
    assert_eq!(
        in_memory.as_ref().and_then(Picture::rgb),
        picture.as_ref(),
        "a file in memory differs from the same on the disk"
    );
    let _ = read_label(damaged).map_err(says);
    let _ = read_instances(damaged).map_err(says);
    let dataset = Cityscapes::open(root, "val").expect("both files are there");
    let mut corner = |_: &LabelMap| CropBox {
        left: 20,
        top: 11,
        width: 9,
        height: 5,
    };
    let part = dataset.get_part(0, &mut corner).map_err(says);
    let whole = dataset.get(0).map_err(says);
    if let (Ok(part), Ok(whole)) = (&part, &whole) {
        let (x, y) = (20 - part.image.origin.0, 11 - part.image.origin.1);
        let rgb = |picture: &'_ Picture| picture.rgb().expect("RGB of 8 bits").clone();
        let (part, whole) = (rgb(&part.image.image), rgb(&whole.image));
        for row in 0..5 {
            let ours = &part.row(y + row)[3 * x..][..27];
            assert_eq!(
                ours,
                &whole.row(11 + row)[60..87],
                "a part differs from the whole"
            );
        }
    }
    usize::from(picture.is_some()) + usize::from(whole.is_ok())
}

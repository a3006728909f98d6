//! Part of a PNG, for callers that need one: rows below it are not inflated, and rows above it and
//! columns to its right are not unfiltered where nothing depends on them. (PNG specification, third
//! edition, sections 5, 7 and 9. The `png` crate gives whole rows, from the first one on.)

use std::io::{BufRead, BufReader};

use crate::CropBox;
use crate::image::limits::reserve;
use crate::image::source::Source;

/// Reads `wanted` of a PNG of `size` (width, height) that is not interlaced and has `N` channels of
/// 8 bits.
///
/// All chunks are held against their checksums, those of the image data below `wanted`, too, so that
/// damage is noticed wherever it is. `None` stands for any damage: the `png` crate has words for it.
pub(crate) fn read<const N: usize>(
    source: &Source,
    size: (usize, usize),
    wanted: CropBox,
) -> Option<Vec<u8>> {
    let mut rows = Rows::<N>::new(size, wanted)?;
    let mut file = BufReader::with_capacity(1 << 16, source.reopen().ok()?);
    let _signature: [u8; 8] = bytes(&mut file)?;
    loop {
        let [a, b, c, d, kind @ ..] = bytes::<8>(&mut file)?;
        let mut left = u32::from_be_bytes([a, b, c, d]) as usize;
        let mut crc = crc32fast::Hasher::new();
        crc.update(&kind);
        while left > 0 {
            let buffer = file.fill_buf().ok().filter(|buffer| !buffer.is_empty())?;
            let data = &buffer[..left.min(buffer.len())];
            crc.update(data);
            if kind == *b"IDAT" {
                rows.take(data)?;
            }
            let taken = data.len();
            left -= taken;
            file.consume(taken);
        }
        if crc.finalize() != u32::from_be_bytes(bytes(&mut file)?) {
            return None;
        }
        if kind == *b"IEND" {
            return rows.finish();
        }
    }
}

fn bytes<const M: usize>(file: &mut impl BufRead) -> Option<[u8; M]> {
    let mut out = [0; M];
    file.read_exact(&mut out).ok()?;
    Some(out)
}

/// How far back deflate refers.
const WINDOW: usize = 1 << 15;
/// New bytes that are inflated before their rows are unfiltered, while they are in the cache.
const SLAB: usize = 1 << 17;

/// Inflates rows and keeps the part of them that is wanted.
struct Rows<const N: usize> {
    inflater: fdeflate::Decompressor,
    /// Filtered rows: what deflate may refer back to, and what comes after it.
    slab: Vec<u8>,
    /// Bytes of the slab that are inflated, and those that are unfiltered, too.
    inflated: usize,
    unfiltered: usize,
    /// Bytes that are yet to be inflated, and whether the image data has to end with them.
    missing: usize,
    to_the_end: bool,
    /// Bytes of a row with its filter.
    stride: usize,
    /// The next row.
    y: usize,
    wanted: CropBox,
    /// The previous row and the next one, as far as the last wanted column.
    above: Vec<u8>,
    row: Vec<u8>,
    part: Vec<u8>,
    /// Bytes that it is to have.
    part_len: usize,
}

impl<const N: usize> Rows<N> {
    /// Nothing where memory does not suffice.
    fn new((width, height): (usize, usize), wanted: CropBox) -> Option<Self> {
        let stride = width * N + 1;
        let rows = wanted.top + wanted.height;
        let columns = (wanted.left + wanted.width) * N;
        let slab = WINDOW + SLAB.max(stride);
        Vec::<u8>::new()
            .try_reserve_exact(slab + 2 * columns)
            .ok()?;
        let mut inflater = fdeflate::Decompressor::new();
        // A checksum of all pixels, while those of the file's chunks are there for any part.
        inflater.ignore_adler32();
        Some(Self {
            inflater,
            slab: vec![0; slab],
            inflated: 0,
            unfiltered: 0,
            missing: rows * stride,
            to_the_end: rows == height,
            stride,
            y: 0,
            wanted,
            above: vec![0; columns],
            row: vec![0; columns],
            part: Vec::new(),
            part_len: wanted.width * wanted.height * N,
        })
    }

    /// Goes on with the next bytes of the image data.
    fn take(&mut self, mut data: &[u8]) -> Option<()> {
        while !data.is_empty() && (self.missing > 0 || self.to_the_end && !self.inflater.is_done())
        {
            let end = self.slab.len().min(self.inflated + self.missing);
            let slab = &mut self.slab[..end];
            let (read, wrote) = self.inflater.read(data, slab, self.inflated, false).ok()?;
            if read + wrote == 0 {
                return None;
            }
            data = &data[read..];
            self.inflated += wrote;
            self.missing -= wrote;
            if self.inflated == end && wrote > 0 {
                self.unfilter()?;
            }
        }
        Some(())
    }

    fn finish(self) -> Option<Vec<u8>> {
        (self.missing == 0 && (!self.to_the_end || self.inflater.is_done())).then_some(self.part)
    }

    /// Unfilters all whole rows of the slab and makes room in it.
    fn unfilter(&mut self) -> Option<()> {
        let rows = self.slab[self.unfiltered..self.inflated].chunks_exact(self.stride);
        let count = rows.len();
        // Rows filtered with None or Sub do not depend on the row above, so the last one of them
        // above the wanted part is early enough to begin with.
        let above = rows
            .clone()
            .take((self.wanted.top + 1).saturating_sub(self.y));
        let skipped = above.clone().rposition(|row| row[0] <= 1).unwrap_or(0);
        self.y += skipped;
        let columns = self.wanted.left * N..self.row.len();
        for filtered in rows.skip(skipped) {
            let values = &filtered[1..][..columns.end];
            unfilter::<N>(filtered[0], values, &self.above, &mut self.row)?;
            if self.y >= self.wanted.top {
                reserve(&mut self.part, columns.len(), self.part_len).ok()?;
                self.part.extend_from_slice(&self.row[columns.clone()]);
            }
            std::mem::swap(&mut self.above, &mut self.row);
            self.y += 1;
        }
        self.unfiltered += count * self.stride;
        let kept = self.unfiltered.min(self.inflated.saturating_sub(WINDOW));
        self.slab.copy_within(kept..self.inflated, 0);
        self.unfiltered -= kept;
        self.inflated -= kept;
        Some(())
    }
}

/// Undoes the filter of one row.
fn unfilter<const N: usize>(
    filter: u8,
    filtered: &[u8],
    above: &[u8],
    out: &mut [u8],
) -> Option<()> {
    match filter {
        0 => out.copy_from_slice(filtered),
        1 => predicted::<N>(filtered, above, out, |left, _, _| left),
        2 => {
            for ((out, &x), &above) in out.iter_mut().zip(filtered).zip(above) {
                *out = x.wrapping_add(above);
            }
        }
        3 => predicted::<N>(filtered, above, out, |left, above, _| (left + above) >> 1),
        4 => predicted::<N>(filtered, above, out, paeth),
        _ => return None,
    }
    Some(())
}

/// Undoes a filter that predicts from the values to the left, above, and above to the left, and that
/// predicts the value itself where these are alike.
#[inline(always)]
fn predicted<const N: usize>(
    filtered: &[u8],
    above: &[u8],
    out: &mut [u8],
    predict: impl Fn(i32, i32, i32) -> i32,
) {
    if N > 1 {
        predicted_from::<N>([[0; N]; 2], filtered, above, out, &predict);
        return;
    }
    const BLOCK: usize = 32;
    let mut before = [[0; N]; 2];
    let (blocks, filtered) = filtered.as_chunks::<BLOCK>();
    let (blocks_above, above) = above.as_chunks::<BLOCK>();
    let (blocks_out, out) = out.as_chunks_mut::<BLOCK>();
    for ((filtered, above), out) in blocks.iter().zip(blocks_above).zip(blocks_out) {
        // Most blocks of a class map are flat.
        let value = before[0][0] as u8;
        let pairs = filtered.iter().zip(above);
        if before[0] == before[1]
            && pairs.fold(0, |bits, (&x, &above)| bits | x | (above ^ value)) == 0
        {
            *out = [value; BLOCK];
        } else {
            before = predicted_from::<N>(before, filtered, above, out, &predict);
        }
    }
    predicted_from::<N>(before, filtered, above, out, &predict);
}

/// [`predicted`] of part of a row, after the pixel to its left and the one above that; gives those
/// of what comes next. They are 0 to 255, in registers' own size, because each value waits for the
/// one to its left.
#[inline(always)]
fn predicted_from<const N: usize>(
    [mut left, mut corner]: [[i32; N]; 2],
    filtered: &[u8],
    above: &[u8],
    out: &mut [u8],
    predict: impl Fn(i32, i32, i32) -> i32,
) -> [[i32; N]; 2] {
    let pixels = filtered.as_chunks::<N>().0.iter();
    let pixels = pixels.zip(above.as_chunks::<N>().0);
    for ((x, above), out) in pixels.zip(out.as_chunks_mut::<N>().0) {
        let mut pixel = [0; N];
        for c in 0..N {
            let above = above[c] as i32;
            pixel[c] = x[c].wrapping_add(predict(left[c], above, corner[c]) as u8);
            (left[c], corner[c]) = (pixel[c] as i32, above);
        }
        *out = pixel;
    }
    [left, corner]
}

/// Whichever of `left`, `above` and `corner` is nearest to `left + above - corner`, the first of them
/// where several are.
///
/// Compared without distances: `corner` lies between the others, or else the result is the one of
/// them that lies further from it.
#[inline(always)]
fn paeth(left: i32, above: i32, corner: i32) -> i32 {
    let threshold = 3 * corner - above - left;
    let (low, high) = (left.min(above), left.max(above));
    let nearest = if high <= threshold { low } else { corner };
    if threshold <= low { high } else { nearest }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Plane, crop};
    use png::{BitDepth, ColorType, Filter};
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use std::fs::File;
    use std::path::Path;

    const FILTERS: [Filter; 6] = [
        Filter::NoFilter,
        Filter::Sub,
        Filter::Up,
        Filter::Avg,
        Filter::Paeth,
        Filter::Adaptive,
    ];

    /// Flat patches, edges and noise.
    fn picture<const N: usize>(width: usize, height: usize) -> Plane<N> {
        let value = |i: usize| {
            let (x, y, c) = (i / N % width, i / N / width, i % N);
            let patch = x / 41 * 83 + y / 17 * 29 + c;
            match patch % 4 {
                0 => (i * 7919 % 251) as u8,
                _ => (patch * 37) as u8,
            }
        };
        Plane {
            width,
            height,
            data: (0..width * height * N).map(value).collect(),
        }
    }

    /// Writes `plane` with image data in chunks of `chunk` bytes.
    fn write<const N: usize>(path: &Path, plane: &Plane<N>, filter: Filter, chunk: usize) {
        let file = File::create(path).unwrap();
        let mut encoder = png::Encoder::new(file, plane.width as u32, plane.height as u32);
        encoder.set_color(match N {
            1 => ColorType::Grayscale,
            2 => ColorType::GrayscaleAlpha,
            3 => ColorType::Rgb,
            _ => ColorType::Rgba,
        });
        encoder.set_depth(BitDepth::Eight);
        encoder.set_filter(filter);
        let mut writer = encoder.write_header().unwrap();
        let mut stream = writer.stream_writer_with_size(chunk).unwrap();
        std::io::Write::write_all(&mut stream, &plane.data).unwrap();
        stream.finish().unwrap();
    }

    fn check<const N: usize>(size: (usize, usize), chunk: usize) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("picture.png");
        let plane = picture::<N>(size.0, size.1);
        let part = |left, top, width, height| CropBox {
            left,
            top,
            width,
            height,
        };
        let (width, height) = size;
        for filter in FILTERS {
            write(&path, &plane, filter, chunk);
            for wanted in [
                CropBox::whole(size),
                part(0, 0, 1, 1),
                part(width / 3, height / 4, width / 2, height / 2),
                part(width - 1, height - 1, 1, 1),
                part(width / 2, height / 2, width / 5, height - height / 2),
            ] {
                let read = read::<N>(&Source::file(&path), size, wanted);
                assert!(
                    read == Some(crop(&plane, wanted).data),
                    "{N} channels, {size:?}, {filter:?}, {wanted:?}"
                );
            }
        }
    }

    #[test]
    fn a_part_of_any_filter_and_format_equals_the_crop_of_the_whole() {
        check::<1>((401, 611), 8192);
        check::<2>((301, 307), 8192);
        check::<3>((307, 401), 8192);
        check::<4>((203, 307), 1000);
        check::<3>((5, 3), 64);
    }

    #[test]
    fn rows_may_be_longer_than_the_slab() {
        const { assert!(60_000 * 3 > SLAB) };
        check::<3>((60_000, 7), 8192);
    }

    #[test]
    fn any_damaged_byte_of_the_image_data_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("picture.png");
        let size = (67, 41);
        write(&path, &picture::<3>(size.0, size.1), Filter::Adaptive, 300);
        let bytes = std::fs::read(&path).unwrap();
        let top = CropBox {
            left: 0,
            top: 0,
            width: 9,
            height: 3,
        };
        assert!(read::<3>(&Source::file(&path), size, top).is_some());
        let start = bytes.windows(4).position(|kind| kind == b"IDAT").unwrap();
        for at in start..bytes.len() - 12 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            std::fs::write(&path, &damaged).unwrap();
            assert_eq!(
                read::<3>(&Source::file(&path), size, top),
                None,
                "byte {at}"
            );
        }
        for len in (start..bytes.len()).step_by(7) {
            std::fs::write(&path, &bytes[..len]).unwrap();
            assert_eq!(
                read::<3>(&Source::file(&path), size, CropBox::whole(size)),
                None,
                "{len}"
            );
        }
    }

    /// What the `png` crate makes of the first rows of a file, until it meets damage.
    fn peer(path: &Path) -> Vec<u8> {
        let file = BufReader::new(File::open(path).unwrap());
        let Ok(mut reader) = png::Decoder::new(file).read_info() else {
            return Vec::new();
        };
        let mut rows = Vec::new();
        while let Ok(Some(row)) = reader.next_row() {
            rows.extend_from_slice(row.data());
        }
        rows
    }

    /// Any format, filter of each row, size of chunk, part and damage: what is read is what the
    /// `png` crate reads, and only damaged files are left to that.
    #[test]
    fn parts_of_any_file_are_those_of_the_peer() {
        fn check<const N: usize>(rng: &mut ChaCha8Rng, damaged: &mut [usize; 2]) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("picture.png");
            let (width, height) = (rng.random_range(1..90), rng.random_range(1..70));
            let mut rows = Vec::new();
            for _ in 0..height {
                rows.push(rng.random_range(0..5));
                let flat: u8 = rng.random();
                let noise = rng.random_bool(0.5);
                rows.extend((0..width * N).map(|_| if noise { rng.random() } else { flat }));
            }
            let mut data = fdeflate::compress_to_vec(&rows);
            let wrong = rng.random_bool(0.5);
            if wrong {
                let at = rng.random_range(0..data.len());
                data[at] ^= 1 << rng.random_range(0..8);
            }
            let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
            let mut chunk = |kind: &[u8; 4], data: &[u8]| {
                let body = [kind, data].concat();
                file.extend((data.len() as u32).to_be_bytes());
                file.extend(&body);
                file.extend(crc32fast::hash(&body).to_be_bytes());
            };
            let color = [0, 4, 2, 6][N - 1];
            let sides = [(width as u32).to_be_bytes(), (height as u32).to_be_bytes()].concat();
            chunk(b"IHDR", &[&sides[..], &[8, color, 0, 0, 0]].concat());
            for part in data.chunks(rng.random_range(1..=data.len())) {
                chunk(b"IDAT", part);
            }
            chunk(b"IEND", &[]);
            std::fs::write(&path, &file).unwrap();

            let (left, top) = (rng.random_range(0..width), rng.random_range(0..height));
            let wanted = CropBox {
                left,
                top,
                width: rng.random_range(1..=width - left),
                height: rng.random_range(1..=height - top),
            };
            let peers = peer(&path);
            let whole = peers.len() == width * height * N;
            assert!(wrong || whole, "the peer reads what is not damaged");
            let part = read::<N>(&Source::file(&path), (width, height), wanted);
            damaged[usize::from(part.is_some())] += usize::from(wrong);
            let context =
                || format!("{N} channels, {width}x{height}, {wanted:?}, damaged: {wrong}");
            match part {
                Some(part) => {
                    for (y, row) in part.chunks_exact(wanted.width * N).enumerate() {
                        let start = ((top + y) * width + left) * N;
                        // The peer gives no row of a slab with damage further down.
                        let theirs = peers.get(start..start + row.len());
                        let same = theirs.is_none_or(|theirs| theirs == row);
                        assert!(same, "row {y}: {}", context());
                    }
                }
                None => assert!(wrong, "{}", context()),
            }
        }
        let mut damaged = [0; 2];
        for seed in 0..300 {
            let rng = &mut ChaCha8Rng::seed_from_u64(seed);
            check::<1>(rng, &mut damaged);
            check::<2>(rng, &mut damaged);
            check::<3>(rng, &mut damaged);
            check::<4>(rng, &mut damaged);
        }
        assert!(
            damaged.iter().all(|&count| count > 0),
            "refused and read: {damaged:?}"
        );
    }

    /// As the specification words it.
    #[test]
    fn the_predictor_of_paeth_is_the_nearest_of_three() {
        for left in 0..=255 {
            for above in (0..=255).step_by(3) {
                for corner in 0..=255 {
                    let p = left + above - corner;
                    let distance = |v: i32| (p - v).abs();
                    let (a, b, c) = (distance(left), distance(above), distance(corner));
                    let expected = match () {
                        () if a <= b && a <= c => left,
                        () if b <= c => above,
                        () => corner,
                    };
                    assert_eq!(paeth(left, above, corner), expected);
                }
            }
        }
    }
}

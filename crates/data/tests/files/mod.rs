//! PNG and JPEG files of any shape, byte by byte.

use fdeflate::compress_to_vec;

/// A chunk of a PNG with its length and checksum.
pub fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let mut crc = crc32fast::Hasher::new();
    crc.update(kind);
    crc.update(data);
    let length = (data.len() as u32).to_be_bytes();
    [&length, &kind[..], data, &crc.finalize().to_be_bytes()].concat()
}

/// A PNG of 8 bits a channel whose rows are not filtered.
pub struct Png {
    pub width: u32,
    pub height: u32,
    /// 0 grey, 2 RGB, 3 palette, 4 grey with alpha, 6 RGB with alpha.
    pub color: u8,
    pub interlaced: bool,
    /// Chunks before the image data.
    pub before: Vec<u8>,
    /// Bytes of image data in a chunk.
    pub chunk: usize,
}

impl Png {
    pub fn new(width: u32, height: u32, color: u8) -> Self {
        Self {
            width,
            height,
            color,
            interlaced: false,
            before: Vec::new(),
            chunk: 1 << 16,
        }
    }

    pub fn channels(&self) -> usize {
        [1, 0, 3, 1, 2, 0, 4][self.color as usize]
    }

    /// The file of `pixels`, row by row.
    pub fn file(&self, pixels: &[u8]) -> Vec<u8> {
        let (width, height, n) = (self.width as usize, self.height as usize, self.channels());
        assert_eq!(pixels.len(), width * height * n);
        let mut rows = Vec::new();
        for (left, top, dx, dy) in match self.interlaced {
            false => vec![(0, 0, 1, 1)],
            true => ADAM7.to_vec(),
        } {
            for y in (top..height).step_by(dy) {
                let columns = (left..width).step_by(dx);
                if columns.len() > 0 {
                    rows.push(0);
                }
                for x in columns {
                    let at = (y * width + x) * n;
                    rows.extend_from_slice(&pixels[at..at + n]);
                }
            }
        }
        self.file_of(&compress_to_vec(&rows))
    }

    /// The file with this image data, right or not.
    pub fn file_of(&self, data: &[u8]) -> Vec<u8> {
        let sides = [self.width.to_be_bytes(), self.height.to_be_bytes()].concat();
        let rest = [8, self.color, 0, 0, self.interlaced.into()];
        let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
        file.extend(chunk(b"IHDR", &[&sides[..], &rest].concat()));
        file.extend(&self.before);
        for part in data.chunks(self.chunk) {
            file.extend(chunk(b"IDAT", part));
        }
        file.extend(chunk(b"IEND", &[]));
        file
    }
}

/// First column and row, and the steps, of the passes of an interlaced picture.
const ADAM7: [(usize, usize, usize, usize); 7] = [
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
];

/// A segment of a JPEG.
pub fn segment(marker: u8, data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u16 + 2).to_be_bytes();
    [&[0xFF, marker], &length[..], data].concat()
}

/// A grey JPEG that is 128 everywhere: a bit for the mean of each block and one for the end of it.
pub fn flat_jpeg(width: u16, height: u16) -> Vec<u8> {
    let table = |class: u8| {
        let mut table = vec![class];
        // One code of one bit, for the value 0.
        table.extend([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        segment(0xC4, &table)
    };
    let [y, x] = [height, width].map(u16::to_be_bytes);
    let frame = [8, y[0], y[1], x[0], x[1], 1, 1, 0x11, 0];
    let blocks = (width as usize).div_ceil(8) * (height as usize).div_ceil(8);
    let mut scan = vec![0; blocks / 4];
    if !blocks.is_multiple_of(4) {
        scan.push(0xFF >> (blocks % 4 * 2));
    }
    [
        &[0xFF, 0xD8],
        &segment(0xDB, &[&[0][..], &[1; 64]].concat())[..],
        &segment(0xC0, &frame),
        &table(0),
        &table(0x10),
        &segment(0xDA, &[1, 1, 0, 0, 63, 0]),
        &scan,
        &[0xFF, 0xD9],
    ]
    .concat()
}

/// The same in several scans: `scans` of them after the first say, for a coefficient each, that it is 0
/// in all blocks, in 15 bits for up to 32,767 of them.
///
/// # Panics
/// If there are fewer than 16,384 blocks.
pub fn progressive_jpeg(width: u16, height: u16, scans: usize) -> Vec<u8> {
    let table = |class: u8, value: u8| {
        let lengths = [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        segment(0xC4, &[&[class], &lengths[..], &[value]].concat())
    };
    let [y, x] = [height, width].map(u16::to_be_bytes);
    let blocks = (width as usize).div_ceil(8) * (height as usize).div_ceil(8);
    // A bit for each block's mean.
    let mut file = [
        &[0xFF, 0xD8],
        &segment(0xDB, &[&[0][..], &[1; 64]].concat())[..],
        &segment(0xC2, &[8, y[0], y[1], x[0], x[1], 1, 1, 0x11, 0]),
        &table(0, 0),
        // 16384 and as many more as 14 bits say.
        &table(0x10, 0xE0),
        &segment(0xDA, &[1, 1, 0, 0, 0, 0]),
        &vec![0; blocks.div_ceil(8)],
    ]
    .concat();
    let mut scan = Bits::default();
    let runs = blocks.div_ceil(0x7FFF);
    for i in 0..runs {
        let run = blocks * (i + 1) / runs - blocks * i / runs;
        assert!(run >= 0x4000, "too few blocks for a run of them");
        scan.push(0, 1);
        scan.push(run as u32 - 0x4000, 14);
    }
    let scan = scan.bytes();
    for i in 0..scans {
        let coefficient = 1 + (i % 63) as u8;
        file.extend(segment(0xDA, &[1, 1, 0, coefficient, coefficient, 0]));
        file.extend(&scan);
    }
    file.extend([0xFF, 0xD9]);
    file
}

/// Entropy-coded data.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    last: u32,
    count: u32,
}

impl Bits {
    fn push(&mut self, value: u32, count: u32) {
        for bit in (0..count).rev() {
            self.last = self.last << 1 | value >> bit & 1;
            self.count += 1;
            if self.count == 8 {
                self.bytes.push(self.last as u8);
                if self.last == 0xFF {
                    self.bytes.push(0);
                }
                (self.last, self.count) = (0, 0);
            }
        }
    }

    /// Filled up with ones.
    fn bytes(mut self) -> Vec<u8> {
        while self.count > 0 {
            self.push(1, 1);
        }
        self.bytes
    }
}

/// A block of Exif that notes `orientation`.
pub fn exif(orientation: u8) -> Vec<u8> {
    let mut block = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01".to_vec();
    block.extend([0x01, 0x12, 0, 3, 0, 0, 0, 1, 0, orientation, 0, 0]);
    block.extend([0; 4]);
    segment(0xE1, &block)
}

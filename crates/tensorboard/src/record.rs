//! TFRecord: a length, its checksum, the bytes and their checksum.

use std::io::{self, Read};

/// CRC-32C, rotated and moved, since checksums of what holds checksums are weak.
fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

/// Bytes of a record besides what it holds.
pub const FRAME: u64 = 16;
/// The longest record that is read: events of scalars have a few hundred bytes.
const LONGEST: u64 = 16 << 20;

/// The record of `bytes`.
pub fn framed(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(bytes.len() + FRAME as usize);
    out.extend(length);
    out.extend(masked(&length).to_le_bytes());
    out.extend(bytes);
    out.extend(masked(bytes).to_le_bytes());
    out
}

/// What reading a record gives.
#[derive(Debug, PartialEq)]
pub enum Found {
    Record(Vec<u8>),
    /// The end, or a record that was cut short there.
    End,
    /// A checksum or a length that cannot be.
    Damaged(String),
}

/// The next record of `from`.
pub fn next(from: &mut impl Read) -> io::Result<Found> {
    let mut head = [0; 12];
    if !filled(from, &mut head)? {
        return Ok(Found::End);
    }
    let (length, checksum) = head.split_at(8);
    if masked(length).to_le_bytes() != *checksum {
        return Ok(Found::Damaged("a length with another checksum".into()));
    }
    let length = u64::from_le_bytes(length.try_into().expect("eight bytes"));
    if length > LONGEST {
        return Ok(Found::Damaged(format!("a record of {length} bytes")));
    }
    let mut bytes = vec![0; length as usize + 4];
    if !filled(from, &mut bytes)? {
        return Ok(Found::End);
    }
    let checksum = bytes.split_off(length as usize);
    match masked(&bytes).to_le_bytes() == *checksum {
        true => Ok(Found::Record(bytes)),
        false => Ok(Found::Damaged("bytes with another checksum".into())),
    }
}

/// Fills `buffer`; `false` if there is less.
fn filled(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match from.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn checksums_are_those_of_tensorflow() {
        // RFC 3720, B.4, masked.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        let expected = 0x8a91_36aa_u32.rotate_right(15).wrapping_add(0xa282_ead8);
        assert_eq!(masked(&[0; 32]), expected);
    }

    proptest! {
        #[test]
        fn a_record_comes_back_and_damage_is_noticed(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            place in any::<prop::sample::Index>(),
            bit in 0u8..8,
        ) {
            let mut record = framed(&bytes);
            let read = |record: &[u8]| next(&mut &*record).unwrap();
            prop_assert_eq!(read(&record), Found::Record(bytes));
            for end in 0..record.len() {
                prop_assert_eq!(read(&record[..end]), Found::End);
            }
            let place = place.index(record.len());
            record[place] ^= 1 << bit;
            prop_assert!(matches!(read(&record), Found::Damaged(_)));
        }
    }
}

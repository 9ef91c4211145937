//! The numbers of a model file: variable-length integers, read with every bound checked.
//!
//! A varint has seven bits to a byte, low bits first, the top bit set in all but the last. Differences that may be
//! negative are folded first (0, -1, 1, -2 ... become 0, 1, 2, 3 ...), so that small ones of either sign take one byte.

/// Most bytes of a varint: a u64 in groups of seven bits.
const VARINT_BYTES_MAX: usize = 10;

/// Appends a number.
pub(crate) fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends the difference from `base` to `value`. Both must be below 2^63, as all block numbers are.
pub(crate) fn put_step(out: &mut Vec<u8>, base: u64, value: u64) {
    let step = (value as i64).wrapping_sub(base as i64);
    put(out, ((step << 1) ^ (step >> 63)) as u64);
}

/// Reads what [`put`] and [`put_step`] wrote; `None` when bytes are missing or make no number.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Reads from the first of these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next number.
    #[inline]
    pub fn take(&mut self) -> Option<u64> {
        // Nearly all numbers of a model are below 128.
        let (&first, rest) = self.0.split_first()?;
        if first < 0x80 {
            self.0 = rest;
            return Some(first.into());
        }
        self.take_long()
    }

    fn take_long(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for (at, &byte) in self.0.iter().take(VARINT_BYTES_MAX).enumerate() {
            let bits = u64::from(byte & 0x7F);
            if at + 1 == VARINT_BYTES_MAX && bits > 1 {
                return None;
            }
            value |= bits << (7 * at);
            if byte < 0x80 {
                self.0 = &self.0[at + 1..];
                return Some(value);
            }
        }
        None
    }

    /// The next number as one of 32 bits.
    #[inline]
    pub fn take_small(&mut self) -> Option<u32> {
        self.take()?.try_into().ok()
    }

    /// The next number as a difference from `base`; `None` when the sum is negative or too large.
    #[inline]
    pub fn take_step(&mut self, base: u64) -> Option<u64> {
        let folded = self.take()?;
        let step = (folded >> 1) as i64 ^ -((folded & 1) as i64);
        base.checked_add_signed(step)
    }

    /// A count of things that each take at least one byte: more than there are bytes left cannot be true, so what is
    /// reserved for them is bounded by the length of the file.
    pub fn take_count(&mut self) -> Option<usize> {
        let count = usize::try_from(self.take()?).ok()?;
        (count <= self.0.len()).then_some(count)
    }

    /// The next bytes as they are; `None` when there are fewer.
    pub fn take_bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    /// True when nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_put_is_taken(value: u64, base in 0..1u64 << 40, other in 0..1u64 << 40) {
            let mut bytes = Vec::new();
            put(&mut bytes, value);
            put_step(&mut bytes, base, other);
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(reader.take(), Some(value));
            prop_assert_eq!(reader.take_step(base), Some(other));
            prop_assert!(reader.is_empty());
            prop_assert_eq!(reader.take(), None);
        }

        #[test]
        fn a_cut_number_is_none(value in 0x80u64.., keep in 1usize..10) {
            let mut bytes = Vec::new();
            put(&mut bytes, value);
            bytes.truncate(keep.min(bytes.len() - 1));
            prop_assert_eq!(Reader::new(&bytes).take(), None);
        }
    }

    #[test]
    fn numbers_that_cannot_be_are_none() {
        assert_eq!(Reader::new(&[0xFF; 11]).take(), None);
        // The tenth byte of a u64 holds one bit.
        assert_eq!(Reader::new(&[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x02]).take(), None);
        assert_eq!(Reader::new(&[0x01]).take_step(0), None, "-1 is no block");
        assert_eq!(Reader::new(&[0x03, 0, 0]).take_count(), None, "three things in two bytes");
    }
}

//! The Range header (RFC 9110, section 14).
//!
//! One part is sent at most. Of a request for several ranges the first one that can be satisfied is answered, which
//! section 15.3.7 leaves to the server: the client sees in Content-Range what it got and may ask for the rest. The
//! other lawful answer, the whole file, would be many gigabytes for an image.

use std::ops::Range;

/// What a Range header asks for, given the size of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Everything: no header, or one that has to be ignored because it is malformed or of another unit.
    Whole,
    /// These bytes, never empty and within the file.
    Part(Range<u64>),
    /// Nothing the file has: 416.
    Unsatisfiable,
}

/// Reads the value of a Range header for a file of `size` bytes.
pub fn wanted(value: &str, size: u64) -> Wanted {
    let Some((unit, list)) = value.split_once('=') else { return Wanted::Whole };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Wanted::Whole;
    }
    let mut first = None;
    let mut any = false;
    for spec in list.split(',').map(|spec| spec.trim_matches([' ', '\t'])).filter(|spec| !spec.is_empty()) {
        // One malformed range makes the whole header invalid, and an invalid header is ignored.
        let Some(found) = one(spec, size) else { return Wanted::Whole };
        any = true;
        first = first.or(found);
    }
    match first {
        // A suffix of an empty file is satisfiable, but no Content-Range can say so.
        Some(range) if range.is_empty() => Wanted::Whole,
        Some(range) => Wanted::Part(range),
        None if any => Wanted::Unsatisfiable,
        None => Wanted::Whole,
    }
}

/// One range; `None` when malformed, `Some(None)` when it cannot be satisfied.
fn one(spec: &str, size: u64) -> Option<Option<Range<u64>>> {
    let (first, last) = spec.split_once('-')?;
    if first.is_empty() {
        let length = number(last)?;
        return Some((length > 0).then(|| size.saturating_sub(length)..size));
    }
    let first = number(first)?;
    let end = if last.is_empty() {
        size
    } else {
        let last = number(last)?;
        if last < first {
            return None;
        }
        last.saturating_add(1).min(size)
    };
    Some((first < size).then_some(first..end))
}

/// Digits only; a number that does not fit lies behind the end of any file.
fn number(digits: &str) -> Option<u64> {
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_all_forms() {
        for (value, expected) in [
            ("bytes=0-0", Wanted::Part(0..1)),
            ("bytes=10-19", Wanted::Part(10..20)),
            ("Bytes = 10-19", Wanted::Part(10..20)),
            ("bytes=90-", Wanted::Part(90..100)),
            ("bytes=90-1000", Wanted::Part(90..100)),
            ("bytes=0-99999999999999999999999", Wanted::Part(0..100)),
            ("bytes=-10", Wanted::Part(90..100)),
            ("bytes=-1000", Wanted::Part(0..100)),
            ("bytes=200-300, 5-6, 8-9", Wanted::Part(5..7)),
            ("bytes=,1-2,", Wanted::Part(1..3)),
            ("bytes=100-", Wanted::Unsatisfiable),
            ("bytes=-0", Wanted::Unsatisfiable),
            ("bytes=100-200,300-", Wanted::Unsatisfiable),
            ("bytes=18446744073709551615-", Wanted::Unsatisfiable),
            ("bytes=5-4", Wanted::Whole),
            ("bytes=1-2,5-4", Wanted::Whole),
            ("bytes=", Wanted::Whole),
            ("bytes=-", Wanted::Whole),
            ("bytes=+1-2", Wanted::Whole),
            ("bytes=1-2-3", Wanted::Whole),
            ("blocks=1-2", Wanted::Whole),
            ("0-1", Wanted::Whole),
        ] {
            assert_eq!(wanted(value, 100), expected, "{value}");
        }
    }

    #[test]
    fn an_empty_file_has_no_ranges() {
        assert_eq!(wanted("bytes=0-", 0), Wanted::Unsatisfiable);
        assert_eq!(wanted("bytes=-5", 0), Wanted::Whole);
    }
}

//! Validators: how an origin says that an image is still the same.
//!
//! A strong ETag names exact bytes. A Last-Modified date has a resolution of one second, so it names exact bytes
//! only when the answer that carried it was dated later than the second it speaks of (RFC 9110, section
//! 8.8.2.2): then no change can hide within that second. Both may then stand in `If-Range`, which makes the
//! server itself answer 200 instead of 206 when the image changed. A weak ETag promises "as good as the same"
//! and is of no use for a disk.

use std::time::UNIX_EPOCH;

use ureq::http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::source::Identity;

/// A value that changes when the image changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Validator {
    /// A strong ETag with its quotes.
    Tag(String),
    /// A Last-Modified date, as it was sent.
    Date(String),
}

impl Validator {
    /// What the headers of an answer offer: a strong ETag, else a date that is strong.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        if let Some(tag) = text(headers, &header::ETAG).filter(|tag| is_strong_tag(tag)) {
            return Some(Self::Tag(tag.to_owned()));
        }
        let date = text(headers, &header::LAST_MODIFIED)?;
        let modified = seconds(date)?;
        let answered = seconds(text(headers, &header::DATE)?)?;
        (modified < answered).then(|| Self::Date(date.to_owned()))
    }

    /// The validator of a pinned identity, which stores a tag or a date as the origin sent it.
    pub fn pinned(identity: &Identity) -> Option<Self> {
        let text = identity.validator.as_ref()?;
        Some(if is_strong_tag(text) { Self::Tag(text.clone()) } else { Self::Date(text.clone()) })
    }

    /// The text that an [`Identity`] keeps.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Tag(text) | Self::Date(text) => text,
        }
    }

    /// The value of `If-Range`; `None` when the text cannot be a header.
    pub fn header(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(self.as_str()).ok()
    }

    /// What `headers` say about this validator; `None` when they do not mention it.
    pub fn agrees(&self, headers: &HeaderMap) -> Option<bool> {
        let name = match self {
            Self::Tag(_) => header::ETAG,
            Self::Date(_) => header::LAST_MODIFIED,
        };
        headers.get(name).map(|value| value.as_bytes() == self.as_str().as_bytes())
    }
}

fn is_strong_tag(text: &str) -> bool {
    text.len() >= 2 && text.starts_with('"') && text.ends_with('"')
}

/// A header as text, without surrounding blanks; `None` when it is missing or not ASCII.
pub(super) fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// Seconds since 1970 of an HTTP date.
pub(super) fn seconds(date: &str) -> Option<i64> {
    let time = httpdate::parse_http_date(date).ok()?;
    i64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_secs()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines.iter().map(|&(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v))).collect()
    }

    const OLD: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const NEXT: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

    #[test]
    fn a_strong_tag_comes_first_and_a_weak_one_never() {
        let h = headers(&[("etag", "\"a\""), ("last-modified", OLD), ("date", NEXT)]);
        assert_eq!(Validator::of(&h), Some(Validator::Tag("\"a\"".into())));
        let h = headers(&[("etag", "W/\"a\""), ("last-modified", OLD), ("date", NEXT)]);
        assert_eq!(Validator::of(&h), Some(Validator::Date(OLD.into())));
        assert_eq!(Validator::of(&headers(&[("etag", "W/\"a\"")])), None);
        assert_eq!(Validator::of(&headers(&[("etag", "unquoted")])), None);
    }

    #[test]
    fn a_date_counts_only_when_the_answer_is_dated_later() {
        assert_eq!(Validator::of(&headers(&[("last-modified", OLD), ("date", OLD)])), None);
        assert_eq!(Validator::of(&headers(&[("last-modified", OLD)])), None);
        assert_eq!(Validator::of(&headers(&[("last-modified", "yesterday"), ("date", OLD)])), None);
    }

    #[test]
    fn agreement_is_exact_and_silence_is_not_disagreement() {
        let tag = Validator::Tag("\"a\"".into());
        assert_eq!(tag.agrees(&headers(&[("etag", "\"a\"")])), Some(true));
        assert_eq!(tag.agrees(&headers(&[("etag", "W/\"a\"")])), Some(false));
        assert_eq!(tag.agrees(&headers(&[])), None);
    }

    #[test]
    fn a_pinned_identity_gives_back_what_it_was_made_of() {
        for v in [Validator::Tag("\"x\"".into()), Validator::Date(OLD.into())] {
            let id = Identity { size: 1, validator: Some(v.as_str().to_owned()), mtime_s: None };
            assert_eq!(Validator::pinned(&id), Some(v));
        }
    }
}

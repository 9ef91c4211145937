//! The check that stands between a web server and a guest's disk.
//!
//! [`check`] looks at the status and the headers of an answer to a range request, before any byte of its body
//! is read, and either accepts the body as exactly the bytes that were asked for, or says what is wrong and
//! whether that may pass. It is pure, so every way a server can go wrong is a line in a test.

use std::time::{Duration, SystemTime};

use ureq::http::{HeaderMap, StatusCode, header};

use super::validator::{Validator, seconds, text};
use crate::error::errno;
use crate::source::ADVICE_CHANGED;

/// Longest wait a server may ask of us with Retry-After: beyond this a date is taken for a wrong clock.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// What was asked for and what is known of the image.
pub(super) struct Expected<'a> {
    /// First byte of the range.
    pub first: u64,
    /// Last byte of the range (inclusive, as HTTP counts).
    pub last: u64,
    /// Size of the image in bytes; `None` at the first contact.
    pub size: Option<u64>,
    pub validator: Option<&'a Validator>,
    /// Date of the image; counts only while no validator does.
    pub mtime_s: Option<i64>,
}

/// An answer whose body may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Accepted {
    /// Size of the image, in bytes.
    pub total: u64,
    /// The body says itself where it ends (a length or chunks), so the connection can be used again.
    pub framed: bool,
}

/// An answer that must not be used: what is wrong, in words that continue "URL: ".
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// May pass.
    Transient { message: String, retry_after: Option<Duration> },
    /// Never will.
    Fatal { errno: i32, message: String },
}

fn fatal(errno: i32, message: impl Into<String>) -> Refused {
    Refused::Fatal { errno, message: message.into() }
}

/// Judges an answer to a range request by its status and headers. `now` is used for a Retry-After date when the
/// server does not say what time it believes it is.
pub(super) fn check(
    status: StatusCode,
    headers: &HeaderMap,
    expected: &Expected<'_>,
    now: SystemTime,
) -> Result<Accepted, Refused> {
    match status.as_u16() {
        206 => partial(headers, expected),
        200 => whole(headers, expected),
        416 => Err(not_satisfiable(headers, expected)),
        404 | 410 => Err(fatal(errno::ENOENT, format!("not found ({status}); check the URL"))),
        401 | 403 => Err(fatal(errno::EACCES, format!("access denied ({status}); check user and password"))),
        407 => Err(fatal(
            errno::EACCES,
            format!("the proxy wants credentials ({status}); give proxy=http://USER:PASSWORD@HOST"),
        )),
        408 | 429 | 500..=599 => Err(Refused::Transient {
            message: format!("the server answered {status}"),
            retry_after: retry_after(headers, now),
        }),
        _ => Err(fatal(errno::EPROTO, format!("the server answered {status}, which no range request expects"))),
    }
}

/// What an answer says is the length of the whole file, in bytes. Not checked in any way.
pub(super) fn total(headers: &HeaderMap) -> Option<u64> {
    match text(headers, &header::CONTENT_RANGE) {
        Some(range) => ContentRange::parse(range)?.total,
        None => content_length(headers).ok()?,
    }
}

fn partial(headers: &HeaderMap, expected: &Expected<'_>) -> Result<Accepted, Refused> {
    if text(headers, &header::CONTENT_TYPE).is_some_and(|t| t.to_ascii_lowercase().starts_with("multipart/")) {
        return Err(fatal(errno::EPROTO, "the server sent several ranges (multipart) for one"));
    }
    encoding(headers)?;
    let mut ranges = headers.get_all(header::CONTENT_RANGE).iter();
    let range = match (ranges.next(), ranges.next()) {
        (Some(range), None) => range.to_str().ok().and_then(ContentRange::parse),
        _ => None,
    };
    let Some(ContentRange { span: Some((first, last)), total: Some(total) }) = range else {
        return Err(fatal(errno::EPROTO, "the server sent a part without a valid Content-Range"));
    };
    same_image(headers, expected, total)?;
    if (first, last) != (expected.first, expected.last) || last >= total {
        return Err(fatal(
            errno::EPROTO,
            format!("the server sent bytes {first}-{last}/{total} instead of those asked for"),
        ));
    }
    length(headers, last - first + 1).map(|framed| Accepted { total, framed })
}

/// A 200 carries the whole image: welcome only if the whole image is what was asked for.
fn whole(headers: &HeaderMap, expected: &Expected<'_>) -> Result<Accepted, Refused> {
    encoding(headers)?;
    let ignored =
        || fatal(errno::EPROTO, "the server ignores Range (status 200); use a server that honours range requests");
    let sent = content_length(headers)?;
    if let Some(total) = sent.or(expected.size) {
        same_image(headers, expected, total)?;
    }
    let Some(size) = expected.size.or(sent) else { return Err(ignored()) };
    let vouched = sent == Some(size) || expected.validator.and_then(|v| v.agrees(headers)) == Some(true);
    if expected.first != 0 || expected.last + 1 != size || !vouched {
        return Err(ignored());
    }
    length(headers, size).map(|framed| Accepted { total: size, framed })
}

fn not_satisfiable(headers: &HeaderMap, expected: &Expected<'_>) -> Refused {
    let total = text(headers, &header::CONTENT_RANGE).and_then(ContentRange::parse).and_then(|r| r.total);
    match (total, expected.size) {
        (Some(total), Some(size)) if total != size => changed(format!("it had {size} bytes and has {total} now")),
        (Some(0), None) => fatal(errno::EPROTO, "the image is empty"),
        _ => fatal(errno::EPROTO, "the server refused a range that lies within the image (416)"),
    }
}

fn changed(how: String) -> Refused {
    fatal(errno::ESTALE, format!("the image changed on the server: {how}{ADVICE_CHANGED}"))
}

fn same_image(headers: &HeaderMap, expected: &Expected<'_>, total: u64) -> Result<(), Refused> {
    if let Some(validator) = expected.validator {
        if validator.agrees(headers) == Some(false) {
            return Err(changed(format!("it was {}", validator.as_str())));
        }
    } else if let (Some(pinned), Some(date)) = (expected.mtime_s, text(headers, &header::LAST_MODIFIED))
        && seconds(date).is_some_and(|now| now != pinned)
    {
        return Err(changed(format!("it is of {date} now")));
    }
    match expected.size {
        Some(size) if size != total => Err(changed(format!("it had {size} bytes and has {total} now"))),
        _ => Ok(()),
    }
}

fn encoding(headers: &HeaderMap) -> Result<(), Refused> {
    for value in headers.get_all(header::CONTENT_ENCODING) {
        if !value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity") {
            let how = String::from_utf8_lossy(value.as_bytes());
            return Err(fatal(errno::EPROTO, format!("the server compresses the image ({how}); turn that off for it")));
        }
    }
    for value in headers.get_all(header::TRANSFER_ENCODING) {
        if !value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") {
            return Err(fatal(errno::EPROTO, "the server uses a transfer coding nobody asked for"));
        }
    }
    Ok(())
}

fn content_length(headers: &HeaderMap) -> Result<Option<u64>, Refused> {
    let mut length = None;
    for value in headers.get_all(header::CONTENT_LENGTH) {
        let number = value.to_str().ok().and_then(|v| v.trim().parse::<u64>().ok());
        if number.is_none() || (length.is_some() && length != number) {
            return Err(fatal(errno::EPROTO, "the server sent no valid Content-Length"));
        }
        length = number;
    }
    Ok(length)
}

/// Checks that the body's own length is the expected one; answers whether the body says where it ends.
fn length(headers: &HeaderMap, expected: u64) -> Result<bool, Refused> {
    match content_length(headers)? {
        Some(length) if length != expected => {
            Err(fatal(errno::EPROTO, format!("the server announced {length} bytes where {expected} were due")))
        }
        Some(_) => Ok(true),
        None => Ok(headers.contains_key(header::TRANSFER_ENCODING)),
    }
}

/// The server's wish in seconds or as a date, which is measured by the server's own clock where it shows it.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let wish = text(headers, &header::RETRY_AFTER)?;
    if !wish.is_empty() && wish.bytes().all(|b| b.is_ascii_digit()) {
        return Some(wish.parse().map_or(RETRY_AFTER_MAX, Duration::from_secs).min(RETRY_AFTER_MAX));
    }
    let then = httpdate::parse_http_date(wish).ok()?;
    let now = text(headers, &header::DATE).and_then(|d| httpdate::parse_http_date(d).ok()).unwrap_or(now);
    Some(then.duration_since(now).unwrap_or_default().min(RETRY_AFTER_MAX))
}

/// `Content-Range: bytes FIRST-LAST/TOTAL`, where either side of the slash may be `*`.
#[derive(Debug, PartialEq, Eq)]
struct ContentRange {
    span: Option<(u64, u64)>,
    total: Option<u64>,
}

impl ContentRange {
    fn parse(value: &str) -> Option<Self> {
        let (unit, rest) = value.trim().split_once(' ')?;
        if !unit.eq_ignore_ascii_case("bytes") {
            return None;
        }
        let (span, total) = rest.trim().split_once('/')?;
        let span = match span {
            "*" => None,
            _ => {
                let (first, last) = span.split_once('-')?;
                let (first, last) = (digits(first)?, digits(last)?);
                (first <= last).then_some(Some((first, last)))?
            }
        };
        let total = if total == "*" { None } else { Some(digits(total)?) };
        Some(Self { span, total })
    }
}

/// A number of digits only: `parse` alone would take a sign.
fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ureq::http::{HeaderName, HeaderValue};

    fn judge(status: u16, lines: &[(&'static str, &'static str)]) -> Result<Accepted, Refused> {
        let tag = Validator::Tag("\"v1\"".into());
        let expected = Expected { first: 4096, last: 8191, size: Some(10_000), validator: Some(&tag), mtime_s: None };
        judge_for(&expected, status, lines)
    }

    fn judge_for(
        expected: &Expected<'_>,
        status: u16,
        lines: &[(&'static str, &'static str)],
    ) -> Result<Accepted, Refused> {
        let headers = lines.iter().map(|&(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v))).fold(
            HeaderMap::new(),
            |mut map, (k, v)| {
                map.append(k, v);
                map
            },
        );
        check(StatusCode::from_u16(status).unwrap(), &headers, expected, SystemTime::UNIX_EPOCH)
    }

    const GOOD: (&str, &str) = ("content-range", "bytes 4096-8191/10000");

    fn errno_of(result: Result<Accepted, Refused>) -> i32 {
        match result {
            Err(Refused::Fatal { errno, .. }) => errno,
            other => panic!("{other:?} is not fatal"),
        }
    }

    #[test]
    fn the_exact_range_is_accepted_with_and_without_a_length() {
        assert_eq!(judge(206, &[GOOD, ("content-length", "4096")]), Ok(Accepted { total: 10_000, framed: true }));
        assert_eq!(judge(206, &[GOOD, ("transfer-encoding", "chunked")]), Ok(Accepted { total: 10_000, framed: true }));
        assert_eq!(judge(206, &[GOOD, ("etag", "\"v1\"")]), Ok(Accepted { total: 10_000, framed: false }));
        assert!(judge(206, &[GOOD, ("content-encoding", "identity")]).is_ok());
    }

    #[test]
    fn a_part_that_is_not_exactly_ours_is_a_protocol_error() {
        for lines in [
            &[][..],
            &[("content-range", "bytes 4096-8190/10000")],
            &[("content-range", "bytes 0-4095/10000")],
            &[("content-range", "bytes 4096-8191/*")],
            &[("content-range", "bytes */10000")],
            &[("content-range", "bytes +4096-8191/10000")],
            &[("content-range", "pages 4096-8191/10000")],
            &[("content-range", "bytes 4096-8191")],
            &[("content-range", "bytes 8191-4096/10000")],
            &[GOOD, GOOD],
            &[GOOD, ("content-length", "4095")],
            &[GOOD, ("content-length", "-1")],
            &[GOOD, ("content-encoding", "gzip")],
            &[GOOD, ("transfer-encoding", "gzip, chunked")],
            &[GOOD, ("content-type", "multipart/byteranges; boundary=x")],
        ] {
            assert_eq!(errno_of(judge(206, lines)), errno::EPROTO, "{lines:?}");
        }
    }

    #[test]
    fn another_size_or_validator_is_a_changed_image() {
        for (status, lines) in [
            (206, &[("content-range", "bytes 4096-8191/10001")][..]),
            (206, &[GOOD, ("etag", "\"v2\"")]),
            (206, &[GOOD, ("etag", "W/\"v1\"")]),
            (200, &[("etag", "\"v2\""), ("content-length", "10000")]),
            (200, &[("content-length", "5")]),
            (416, &[("content-range", "bytes */100")]),
        ] {
            assert_eq!(errno_of(judge(status, lines)), errno::ESTALE, "{status} {lines:?}");
        }
    }

    #[test]
    fn a_date_alone_pins_when_there_is_no_validator() {
        let expected = Expected { first: 0, last: 0, size: Some(9), validator: None, mtime_s: Some(784_111_777) };
        let range = ("content-range", "bytes 0-0/9");
        let same = ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT");
        let other = ("last-modified", "Sun, 06 Nov 1994 08:49:38 GMT");
        assert!(judge_for(&expected, 206, &[range, same]).is_ok());
        assert_eq!(errno_of(judge_for(&expected, 206, &[range, other])), errno::ESTALE);
    }

    #[test]
    fn the_whole_image_is_taken_only_for_a_request_of_the_whole_image() {
        assert_eq!(errno_of(judge(200, &[("content-length", "10000")])), errno::EPROTO);
        assert_eq!(errno_of(judge(200, &[])), errno::EPROTO);
        let all = Expected { first: 0, last: 9, size: Some(10), validator: None, mtime_s: None };
        assert_eq!(judge_for(&all, 200, &[("content-length", "10")]), Ok(Accepted { total: 10, framed: true }));
        // Without a length or a validator nothing says that this is our image.
        assert_eq!(errno_of(judge_for(&all, 200, &[("transfer-encoding", "chunked")])), errno::EPROTO);
        assert_eq!(
            errno_of(judge_for(&all, 200, &[("content-length", "10"), ("content-encoding", "br")])),
            errno::EPROTO
        );
    }

    #[test]
    fn statuses_fall_into_their_classes() {
        for (status, errno) in [
            (404, errno::ENOENT),
            (410, errno::ENOENT),
            (401, errno::EACCES),
            (403, errno::EACCES),
            (407, errno::EACCES),
            (400, errno::EPROTO),
            (416, errno::EPROTO),
            (204, errno::EPROTO),
            (304, errno::EPROTO),
        ] {
            assert_eq!(errno_of(judge(status, &[])), errno, "{status}");
        }
        for status in [408, 429, 500, 502, 503, 599] {
            assert!(matches!(judge(status, &[]), Err(Refused::Transient { retry_after: None, .. })), "{status}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_bounded() {
        let wait = |lines: &[_]| match judge(503, lines) {
            Err(Refused::Transient { retry_after, .. }) => retry_after,
            other => panic!("{other:?}"),
        };
        assert_eq!(wait(&[("retry-after", "7")]), Some(Duration::from_secs(7)));
        assert_eq!(wait(&[("retry-after", "99999999999999999999")]), Some(RETRY_AFTER_MAX));
        assert_eq!(wait(&[("retry-after", "soon")]), None);
        let then = ("retry-after", "Sun, 06 Nov 1994 08:49:40 GMT");
        assert_eq!(wait(&[then, ("date", "Sun, 06 Nov 1994 08:49:37 GMT")]), Some(Duration::from_secs(3)));
        assert_eq!(wait(&[then, ("date", "Sun, 06 Nov 1994 09:49:37 GMT")]), Some(Duration::ZERO));
        assert_eq!(wait(&[then]), Some(RETRY_AFTER_MAX));
    }

    #[test]
    fn at_first_contact_the_size_is_learnt() {
        let first = Expected { first: 0, last: 0, size: None, validator: None, mtime_s: None };
        let accepted = judge_for(&first, 206, &[("content-range", "bytes 0-0/77"), ("content-length", "1")]);
        assert_eq!(accepted, Ok(Accepted { total: 77, framed: true }));
        assert_eq!(errno_of(judge_for(&first, 200, &[("content-length", "77")])), errno::EPROTO);
        assert!(judge_for(&first, 200, &[("content-length", "1")]).is_ok());
        let empty = judge_for(&first, 416, &[("content-range", "bytes */0")]);
        assert!(matches!(empty, Err(Refused::Fatal { message, .. }) if message.contains("empty")));
    }
}

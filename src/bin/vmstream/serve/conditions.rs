//! Conditional requests (RFC 9110, section 13): If-Match, If-None-Match, If-Modified-Since, If-Unmodified-Since
//! and If-Range, in the order that section 13.2.2 prescribes.

use std::time::{Duration, SystemTime};

use hyper::header::{HeaderMap, HeaderName, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE};

/// What tells one version of a file from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Validators {
    /// Strong entity tag, with its quotes.
    pub etag: String,
    /// Last modification in whole seconds; `None` when it is no date that HTTP can express or lies in the future.
    pub modified: Option<SystemTime>,
}

/// What the conditions of a request come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Answer it; `range` says whether a Range header holds.
    Proceed {
        /// False when If-Range names another version: the whole file is wanted then.
        range: bool,
    },
    /// 304: the client has this version.
    NotModified,
    /// 412: the client wanted another version.
    PreconditionFailed,
}

/// Weighs the conditions of a GET or HEAD request for a file that has `validators`; `now` is the date of the answer.
pub fn judge(headers: &HeaderMap, validators: &Validators, now: SystemTime) -> Verdict {
    if let Some(tags) = list(headers, &IF_MATCH) {
        if !matches(&tags, &validators.etag, Comparison::Strong) {
            return Verdict::PreconditionFailed;
        }
    } else if let (Some(limit), Some(modified)) = (date(headers, &IF_UNMODIFIED_SINCE), validators.modified)
        && modified > limit
    {
        return Verdict::PreconditionFailed;
    }
    if let Some(tags) = list(headers, &IF_NONE_MATCH) {
        if matches(&tags, &validators.etag, Comparison::Weak) {
            return Verdict::NotModified;
        }
    } else if let (Some(limit), Some(modified)) = (date(headers, &IF_MODIFIED_SINCE), validators.modified)
        && modified <= limit
    {
        return Verdict::NotModified;
    }
    let range = headers.get(IF_RANGE).is_none_or(|value| value.to_str().is_ok_and(|v| same(v, validators, now)));
    Verdict::Proceed { range }
}

/// True when the value of If-Range names this very version.
fn same(value: &str, validators: &Validators, now: SystemTime) -> bool {
    let value = value.trim();
    if value.starts_with('"') || value.starts_with("W/") {
        return matches(value, &validators.etag, Comparison::Strong) && value != "*";
    }
    // A date is a strong validator only when the file cannot have changed again within that second (8.8.2.2).
    let (Ok(date), Some(modified)) = (httpdate::parse_http_date(value), validators.modified) else { return false };
    date == modified && now.duration_since(modified).is_ok_and(|age| age >= Duration::from_secs(1))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Strong,
    Weak,
}

/// True when a list of entity tags, or `*`, holds `etag`. A malformed rest of a list matches nothing.
fn matches(list: &str, etag: &str, comparison: Comparison) -> bool {
    let mut rest = list.trim();
    if rest == "*" {
        return true;
    }
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (weak, quoted) = match rest.strip_prefix("W/") {
            Some(quoted) => (true, quoted),
            None => (false, rest),
        };
        // Commas may stand within a tag, so the list cannot simply be split at them.
        let Some(length) = quoted.strip_prefix('"').and_then(|inner| inner.find('"')).map(|at| at + 2) else {
            return false;
        };
        if quoted[..length] == *etag && !(weak && comparison == Comparison::Strong) {
            return true;
        }
        rest = &quoted[length..];
    }
}

/// All values of a list header as one.
fn list(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let values: Vec<_> = headers.get_all(name).iter().map(|value| value.to_str().unwrap_or_default()).collect();
    (!values.is_empty()).then(|| values.join(","))
}

/// A date header; one that is no date is ignored, as the RFC demands.
fn date(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    headers.get(name)?.to_str().ok().and_then(|value| httpdate::parse_http_date(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GO: Verdict = Verdict::Proceed { range: true };
    const WHOLE: Verdict = Verdict::Proceed { range: false };

    fn verdict(headers: &[(HeaderName, &str)]) -> Verdict {
        let modified = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let validators = Validators { etag: "\"a,b\"".to_owned(), modified: Some(modified) };
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name, value.parse().unwrap());
        }
        judge(&map, &validators, modified + Duration::from_secs(60))
    }

    #[test]
    fn tags() {
        assert_eq!(verdict(&[(IF_NONE_MATCH, "\"x\", \"a,b\"")]), Verdict::NotModified);
        assert_eq!(verdict(&[(IF_NONE_MATCH, "\"x\""), (IF_NONE_MATCH, "\"a,b\"")]), Verdict::NotModified);
        assert_eq!(verdict(&[(IF_NONE_MATCH, "W/\"a,b\"")]), Verdict::NotModified);
        assert_eq!(verdict(&[(IF_NONE_MATCH, "*")]), Verdict::NotModified);
        assert_eq!(verdict(&[(IF_NONE_MATCH, "\"a\", \"b\"")]), GO);
        assert_eq!(verdict(&[(IF_NONE_MATCH, "a,b")]), GO);
        assert_eq!(verdict(&[(IF_MATCH, "\"a,b\"")]), GO);
        assert_eq!(verdict(&[(IF_MATCH, "W/\"a,b\"")]), Verdict::PreconditionFailed);
        assert_eq!(verdict(&[(IF_MATCH, "\"x\"")]), Verdict::PreconditionFailed);
    }

    #[test]
    fn dates() {
        let (before, same) = ("Sun, 06 Nov 1994 08:49:36 GMT", "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(verdict(&[(IF_MODIFIED_SINCE, same)]), Verdict::NotModified);
        assert_eq!(verdict(&[(IF_MODIFIED_SINCE, before)]), GO);
        assert_eq!(verdict(&[(IF_MODIFIED_SINCE, "yesterday")]), GO);
        assert_eq!(verdict(&[(IF_UNMODIFIED_SINCE, same)]), GO);
        assert_eq!(verdict(&[(IF_UNMODIFIED_SINCE, before)]), Verdict::PreconditionFailed);
    }

    #[test]
    fn tags_go_before_dates() {
        let same = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(verdict(&[(IF_NONE_MATCH, "\"x\""), (IF_MODIFIED_SINCE, same)]), GO);
        assert_eq!(verdict(&[(IF_MATCH, "\"a,b\""), (IF_UNMODIFIED_SINCE, "Sun, 06 Nov 1994 00:00:00 GMT")]), GO);
    }

    #[test]
    fn if_range_holds_for_the_same_version_only() {
        assert_eq!(verdict(&[(IF_RANGE, "\"a,b\"")]), GO);
        for other in ["\"x\"", "W/\"a,b\"", "*", "Sun, 06 Nov 1994 08:49:36 GMT", "Mon, 07 Nov 1994 08:49:37 GMT", ""] {
            assert_eq!(verdict(&[(IF_RANGE, other)]), WHOLE, "{other}");
        }
        assert_eq!(verdict(&[(IF_RANGE, "Sun, 06 Nov 1994 08:49:37 GMT")]), GO);
    }

    #[test]
    fn a_date_within_the_second_of_the_change_is_no_strong_validator() {
        let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let validators = Validators { etag: "\"e\"".to_owned(), modified: Some(modified) };
        let date = httpdate::fmt_http_date(modified);
        assert!(!same(&date, &validators, modified + Duration::from_millis(900)));
        assert!(same(&date, &validators, modified + Duration::from_secs(1)));
    }
}

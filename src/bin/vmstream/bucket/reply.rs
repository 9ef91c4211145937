//! Answers of a service that are no success: what they mean, whether they may pass, and what a person can do.

use std::fmt;
use std::io::Read;

use ureq::Body;
use ureq::http::{Response, StatusCode};
use vmstream::error::{Error, errno};

/// Longest text of a refusal that is looked at, in bytes: such texts have a few hundred.
const TEXT_BYTES_MAX: u64 = 16 << 10;

/// Why something did not come about.
#[derive(Debug)]
pub(super) struct Refusal {
    /// The object.
    what: String,
    /// `None` when there was no answer.
    status: Option<StatusCode>,
    /// The service's own word for it, such as `NoSuchBucket`; a cut link's error.
    code: String,
    /// May pass by itself.
    passing: bool,
}

impl Refusal {
    /// What an answer that is no success says.
    pub fn of(what: &str, answer: Response<Body>) -> Self {
        let status = answer.status();
        let mut text = String::new();
        // What cannot be read leaves the status to speak for itself.
        let _ = answer.into_body().into_reader().take(TEXT_BYTES_MAX).read_to_string(&mut text);
        let code = code(&text).unwrap_or_default().to_owned();
        let busy = matches!(code.as_str(), "SlowDown" | "RequestTimeout" | "InternalError" | "ServiceUnavailable");
        let passing = busy || status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
        Self { what: what.to_owned(), status: Some(status), code, passing }
    }

    /// The link did not hold.
    pub fn cut(what: &str, error: &ureq::Error) -> Self {
        // A name that does not exist, or a certificate, is no link that comes back.
        let passing = matches!(error, ureq::Error::Io(_) | ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed);
        Self { what: what.to_owned(), status: None, code: error.to_string(), passing }
    }

    /// Somebody wanted to end before it was asked.
    pub fn ended(what: &str) -> Self {
        Self { what: what.to_owned(), status: None, code: "ended before it was asked".to_owned(), passing: false }
    }

    /// There is no such request.
    pub fn unsendable(what: &str, error: &ureq::http::Error) -> Self {
        Self { what: what.to_owned(), status: None, code: error.to_string(), passing: false }
    }

    /// True when nothing lies there.
    pub fn is_missing(&self) -> bool {
        self.status == Some(StatusCode::NOT_FOUND)
    }

    /// True when it is worth another try.
    pub fn may_pass(&self) -> bool {
        self.passing
    }
}

/// The service's word for what is wrong: the text of the first `Code` of an answer in XML.
fn code(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("<Code>")?;
    let (code, _) = rest.split_once("</Code>")?;
    let good = code.len() < 64 && code.bytes().all(|byte| byte.is_ascii_alphanumeric());
    good.then_some(code)
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, status, code, .. } = self;
        let Some(status) = status else {
            return write!(f, "{what}: no answer: {code}: check the link and AWS_ENDPOINT_URL");
        };
        let advice = match (status.as_u16(), code.as_str()) {
            (404, "NoSuchBucket") => "there is no such bucket: make it, or check its name and AWS_REGION",
            (404, _) => "nothing lies there: check the bucket's name and AWS_ENDPOINT_URL",
            (401 | 403, "InvalidAccessKeyId" | "SignatureDoesNotMatch") => {
                "the credentials are wrong: check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            }
            (401 | 403, _) => "access denied: these credentials may not do that",
            (301 | 307 | 400, _) => "refused: check AWS_REGION and AWS_ENDPOINT_URL",
            (500.., _) => "the service has trouble: try again later, what is there already is not sent again",
            _ => "refused",
        };
        let code = if code.is_empty() { String::new() } else { format!(" {code}") };
        write!(f, "{what}: {advice} ({}{code})", status.as_u16())
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        let number = match refusal.status.map(|status| status.as_u16()) {
            None => errno::EHOSTUNREACH,
            Some(401 | 403) => errno::EACCES,
            Some(404) => errno::ENOENT,
            Some(500..) => errno::EAGAIN,
            Some(_) => errno::EPROTO,
        };
        Error::new(number, refusal.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(status: u16, body: &str) -> (String, bool) {
        let answer = Response::builder().status(status).body(Body::builder().data(body.to_owned())).unwrap();
        let refusal = Refusal::of("s3://b/x", answer);
        (refusal.to_string(), refusal.may_pass())
    }

    #[test]
    fn a_refusal_says_what_to_do_and_whether_it_may_pass() {
        let (text, passing) = told(404, "<?xml version='1.0'?><Error><Code>NoSuchBucket</Code></Error>");
        assert!(text.contains("s3://b/x: there is no such bucket") && text.ends_with("(404 NoSuchBucket)"), "{text}");
        assert!(!passing);
        let (text, passing) = told(403, "<Error><Code>InvalidAccessKeyId</Code></Error>");
        assert!(text.contains("AWS_ACCESS_KEY_ID") && !passing, "{text}");
        let (text, passing) = told(503, "<Error><Code>SlowDown</Code></Error>");
        assert!(text.contains("later") && passing, "{text}");
        // A service that speaks nonsense gets no say in what a terminal shows.
        let (text, passing) = told(403, "<Code>\x1b[2J</Code>");
        assert!(text.ends_with("may not do that (403)") && !passing, "{text:?}");
        assert!(told(500, "").1);
    }
}

//! What the options of a web source become: constant headers and TLS settings, made once at opening.

use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ureq::http::{HeaderMap, HeaderName, HeaderValue, header};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

use super::target::Credentials;
use crate::config::HttpOptions;
use crate::error::Error;

/// The value of an `Authorization` header; marked so that nothing prints it.
pub(super) fn basic(name: &str, password: &str) -> HeaderValue {
    let text = format!("Basic {}", BASE64_STANDARD.encode(format!("{name}:{password}")));
    let mut value = HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(""));
    value.set_sensitive(true);
    value
}

/// The constant headers of requests to the origin and to others.
pub(super) fn request_headers(
    options: &HttpOptions,
    credentials: Option<Credentials>,
) -> Result<(HeaderMap, HeaderMap), Error> {
    let mut other = HeaderMap::new();
    other.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
    // A compressed body has other offsets than the image.
    other.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    other.insert(header::USER_AGENT, HeaderValue::from_static(concat!("vmstream/", env!("CARGO_PKG_VERSION"))));
    let mut origin = other.clone();
    let credentials = match &options.user {
        Some(user) => {
            let (name, password) = user.split_once(':').unwrap_or((user, ""));
            Some(Credentials { name: name.to_owned(), password: password.to_owned() })
        }
        None => credentials,
    };
    if let Some(Credentials { name, password }) = credentials {
        origin.insert(header::AUTHORIZATION, basic(&name, &password));
    }
    for (name, value) in &options.headers {
        // The value is not repeated: it may be a token.
        let bad = |reason| Error::option("header", name, reason);
        let key = HeaderName::try_from(name.as_str()).map_err(|_| bad("is no valid header name"))?;
        const OURS: [HeaderName; 7] = [
            header::RANGE,
            header::IF_RANGE,
            header::ACCEPT_ENCODING,
            header::CONNECTION,
            header::CONTENT_LENGTH,
            header::TRANSFER_ENCODING,
            header::EXPECT,
        ];
        if OURS.contains(&key) {
            return Err(bad("is set by vmstream itself"));
        }
        let mut value = HeaderValue::from_str(value).map_err(|_| bad("has a value that no header can hold"))?;
        value.set_sensitive(true);
        origin.insert(key, value);
    }
    Ok((origin, other))
}

/// TLS settings: the built-in authorities, or those of a PEM file.
pub(super) fn tls_config(cacert: Option<&Path>) -> Result<TlsConfig, Error> {
    let Some(path) = cacert else { return Ok(TlsConfig::default()) };
    let shown = path.display().to_string();
    let pem = std::fs::read(path).map_err(|error| Error::io(format_args!("cannot read cacert={shown}"), error))?;
    let mut certificates = Vec::new();
    for item in parse_pem(&pem) {
        if let PemItem::Certificate(certificate) =
            item.map_err(|error| Error::option("cacert", &shown, format_args!("not a PEM file: {error}")))?
        {
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() {
        return Err(Error::option("cacert", &shown, "holds no certificate in PEM form"));
    }
    Ok(TlsConfig::builder().root_certs(RootCerts::new_with_certs(&certificates)).build())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn options(option: &str) -> HttpOptions {
        Config::parse(["source=http://h/x", option]).unwrap().http
    }

    #[test]
    fn credentials_and_extra_headers_are_for_the_origin_only() {
        let (origin, other) = request_headers(&options("header=X-Token: abc"), None).unwrap();
        assert!(origin.contains_key("x-token") && !other.contains_key("x-token"));
        let (origin, other) = request_headers(&options("user=me:secret"), None).unwrap();
        assert_eq!(origin[header::AUTHORIZATION].as_bytes(), b"Basic bWU6c2VjcmV0");
        assert!(!other.contains_key(header::AUTHORIZATION));
        assert!(!format!("{origin:?}").contains("bWU6"));
    }

    #[test]
    fn headers_that_would_break_the_transfer_are_refused() {
        for header in ["Range: bytes=0-", "accept-encoding: gzip", "Bad Name: x", "X: a\u{7f}b"] {
            let refused = request_headers(&options(&format!("header={header}")), None);
            assert!(refused.is_err(), "{header}");
        }
    }

    #[test]
    fn an_authority_file_must_hold_certificates() {
        assert!(tls_config(Some(Path::new("/no/such.pem"))).unwrap_err().to_string().contains("/no/such.pem"));
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(tls_config(Some(file.path())).unwrap_err().to_string().contains("no certificate"));
    }
}

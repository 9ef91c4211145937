//! Targets: where a request goes, and what may be shown and sent there.
//!
//! A URL from a user or from a `Location` header becomes a [`Target`]: credentials are cut off at once, so that
//! no later message can print them, and the origin (scheme, host, port) is kept beside the address, because
//! credentials and extra headers go to the origin they were given for and nowhere else.

use ureq::http::Uri;

use crate::source::percent_decoded;

/// Scheme, host and port: what credentials are bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    pub https: bool,
    host: String,
    port: u16,
}

/// Name and password, percent-decoded.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Credentials {
    pub name: String,
    pub password: String,
}

/// An absolute `http` or `https` address without credentials.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub uri: Uri,
    pub origin: Origin,
    /// The address for messages: the query is cut off, for signed addresses carry their secret there.
    pub shown: String,
}

impl Target {
    /// Reads an absolute URL. The error is a reason in words and repeats nothing of the URL.
    pub fn parse(url: &str) -> Result<(Self, Option<Credentials>), &'static str> {
        let (https, rest) = match split_scheme(url) {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
            _ => return Err("must begin with http:// or https://"),
        };
        let rest = rest.strip_prefix("//").ok_or("must begin with http:// or https://")?;
        let rest = rest.split('#').next().unwrap_or(rest);
        let authority_end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(authority_end);
        let (userinfo, host) = match authority.rsplit_once('@') {
            Some((userinfo, host)) => (Some(userinfo), host),
            None => (None, authority),
        };
        let scheme = if https { "https" } else { "http" };
        let slash = if path.starts_with('/') { "" } else { "/" };
        let text = format!("{scheme}://{host}{slash}{}", escape(path));
        let uri: Uri = text.parse().map_err(|_| "is not a valid URL")?;
        let name = uri.host().filter(|h| !h.is_empty()).ok_or("names no host")?.to_ascii_lowercase();
        let port = match host.strip_prefix(uri.host().unwrap_or_default()) {
            Some("" | ":") => [80, 443][usize::from(https)],
            Some(port) => port[1..].parse().map_err(|_| "has no valid port")?,
            None => return Err("is not a valid URL"),
        };
        let shown = match text.split_once('?') {
            Some((plain, _)) => format!("{plain}?..."),
            None => text,
        };
        let credentials = userinfo.map(|userinfo| {
            let (name, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
            Credentials { name: unescape(name), password: unescape(password) }
        });
        Ok((Self { uri, origin: Origin { https, host: name, port }, shown }, credentials))
    }

    /// Resolves what a `Location` header says against this address (RFC 3986, section 5.2). Credentials in it
    /// are dropped: nobody but the user gives us any.
    pub fn join(&self, location: &str) -> Result<Self, &'static str> {
        if split_scheme(location).is_some() {
            return Self::parse(location).map(|(target, _)| target);
        }
        let scheme = if self.origin.https { "https" } else { "http" };
        if location.starts_with("//") {
            return Self::parse(&format!("{scheme}:{location}")).map(|(target, _)| target);
        }
        let location = location.split('#').next().unwrap_or(location);
        let (path, query) = match location.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (location, None),
        };
        let base = self.uri.path();
        let (path, query) = if path.is_empty() {
            (base.to_owned(), query.or(self.uri.query()))
        } else if path.starts_with('/') {
            (without_dots(path), query)
        } else {
            let folder = base.rfind('/').map_or("/", |at| &base[..=at]);
            (without_dots(&format!("{folder}{path}")), query)
        };
        let authority = self.uri.authority().map_or("", |a| a.as_str());
        let query = query.map(|q| format!("?{q}")).unwrap_or_default();
        Self::parse(&format!("{scheme}://{authority}{path}{query}")).map(|(target, _)| target)
    }
}

fn split_scheme(url: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = url.split_once(':')?;
    let valid = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    valid.then_some((scheme, rest))
}

/// Removes `.` and `..` from an absolute path; `..` never climbs above the root.
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut parts = path.split('/').skip(1).peekable();
    while let Some(part) = parts.next() {
        let last = parts.peek().is_none();
        match part {
            "." | ".." => {
                if part == ".." {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            _ => kept.push(part),
        }
    }
    format!("/{}", kept.join("/"))
}

/// Percent-encodes what people leave raw in paths although no URL may hold it: spaces, controls, non-ASCII.
fn escape(path: &str) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_graphic() && !matches!(byte, b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}') {
            out.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

fn unescape(text: &str) -> String {
    String::from_utf8_lossy(&percent_decoded(text)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> Target {
        Target::parse(url).unwrap().0
    }

    #[test]
    fn credentials_and_query_never_show() {
        let (t, c) = Target::parse("HTTPS://me:p%40ss@Example.org/a b.img?sig=secret#part").unwrap();
        assert_eq!(t.shown, "https://Example.org/a%20b.img?...");
        assert_eq!(t.uri.to_string(), "https://Example.org/a%20b.img?sig=secret");
        let c = c.unwrap();
        assert_eq!((c.name.as_str(), c.password.as_str()), ("me", "p@ss"));
    }

    #[test]
    fn origins_are_equal_by_scheme_host_and_port() {
        assert_eq!(target("http://a/x").origin, target("http://A:80/y").origin);
        assert_eq!(target("https://a/x").origin, target("https://a:443/").origin);
        for other in ["http://a:81/x", "https://a/x", "http://b/x", "https://a:80/"] {
            assert_ne!(target("http://a/x").origin, target(other).origin, "{other}");
        }
        assert_eq!(target("http://[::1]:8080/x").origin.port, 8080);
        assert_eq!(target("http://[::1]/x").origin.port, 80);
    }

    #[test]
    fn locations_resolve_as_browsers_do() {
        let base = target("http://h:81/a/b/c?q");
        for (location, expected) in [
            ("http://x/y", "http://x/y"),
            ("//x/y", "http://x/y"),
            ("/y?z", "http://h:81/y?z"),
            ("y", "http://h:81/a/b/y"),
            ("./y", "http://h:81/a/b/y"),
            ("../y", "http://h:81/a/y"),
            ("../../../../y/.", "http://h:81/y/"),
            ("?k", "http://h:81/a/b/c?k"),
            ("#f", "http://h:81/a/b/c?q"),
            ("http://u:p@x/y", "http://x/y"),
            ("https://x", "https://x/"),
            ("y z", "http://h:81/a/b/y%20z"),
        ] {
            assert_eq!(base.join(location).unwrap().uri.to_string(), expected, "{location}");
        }
    }

    #[test]
    fn what_is_no_http_url_is_refused_without_repeating_it() {
        for url in ["ftp://u:secret@h/x", "http:/x", "http://", "http://u:secret@/x", "http://h:99999/x", "/x", "a b"] {
            let reason = Target::parse(url).err().unwrap();
            assert!(!reason.contains("secret"), "{url}: {reason}");
        }
        assert!(target("http://h/").join("ftp://x/y").is_err());
    }
}

//! Buckets of S3, Amazon's or another's: what the tool needs of them.
//!
//! `rusty-s3` signs, ureq carries; both are small, and ureq is here anyway. Who we are and where the service is comes from
//! the environment variables that all programs for S3 read. Every request is one of a kind that may be repeated - the same
//! bytes under the same name - so what may pass is tried again, a few times and ever later. A wish to end is seen between
//! two tries, in the pauses and between two pieces of what is sent; whoever cannot wait for an answer leaves the thread behind.

mod reply;
pub mod upload;

use std::fmt;
use std::io::{self, Cursor, Read};
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use rusty_s3::actions::ListObjectsV2;
use rusty_s3::{Bucket as Signer, Credentials, Method, S3Action, UrlStyle};
use ureq::http::{Request, header};
use ureq::{Agent, Body, SendBody};
use vmstream::error::{Error, Result, errno};

use crate::publish::stop::Stop;
use reply::Refusal;

/// How long a signed request may be underway.
const SIGNED_FOR: Duration = Duration::from_secs(3600);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For a part of 16 MiB: slower than 28 KB/s a link counts as dead.
const SEND_TIMEOUT: Duration = Duration::from_secs(600);
/// A service may take its time to put the parts of a large object together.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// Pauses before the second try and those that follow: what a service under load asks for.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(8)];
/// Where nobody says which region: the one that services of one's own usually take.
const REGION: &str = "us-east-1";
/// Longest answer that is read, in bytes: a page of a listing of 1000 long names, twice.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// What addresses of places in buckets begin with.
pub const SCHEME: &str = "s3://";

/// A place in a bucket, as a person writes it: `s3://BUCKET` or `s3://BUCKET/PREFIX`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    bucket: String,
    /// Empty, or it ends in a slash.
    prefix: String,
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let rest = text.strip_prefix(SCHEME).ok_or("must be s3://BUCKET or s3://BUCKET/PREFIX")?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
        if !(3..=63).contains(&bucket.len()) || !bucket.chars().all(good) {
            return Err(format!("'{bucket}' is no name of a bucket"));
        }
        let prefix = prefix.trim_matches('/');
        if prefix.chars().any(char::is_control) {
            return Err("a prefix has no control characters".to_owned());
        }
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Self { bucket: bucket.to_owned(), prefix })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.prefix)
    }
}

/// What an object is sent with.
pub struct Label<'a> {
    /// `Cache-Control`.
    pub cache: &'static str,
    /// `Content-Type`.
    pub kind: &'static str,
    /// Of which image it is: kept with the object, so that one can see whether it is there already.
    pub root: Option<&'a str>,
}

/// The header that keeps [`Label::root`].
const ROOT_HEADER: &str = "x-amz-meta-vmstream-root";

/// An object as its service describes it.
#[derive(Debug, PartialEq, Eq)]
pub struct Object {
    pub bytes: u64,
    pub root: Option<String>,
}

/// A part of what lies in a bucket.
pub struct Listing {
    /// Names below the prefix, with their sizes in bytes.
    pub names: Vec<(String, u64)>,
    /// Where the next part begins; `None` behind the last.
    pub next: Option<String>,
}

/// How often a wish to end is looked for in a pause.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How often an object is asked for whose body breaks off.
const BODIES_MAX: usize = 3;

/// A bucket and a prefix in it. May be used from several threads at once.
pub struct Bucket {
    signer: Signer,
    credentials: Credentials,
    agent: Agent,
    address: Address,
    stop: Stop,
}

/// A body that ends early when somebody wants to end.
struct Sent {
    bytes: Cursor<Vec<u8>>,
    stop: Stop,
}

impl Read for Sent {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stop.check().map_err(io::Error::other)?;
        self.bytes.read(buffer)
    }
}

impl Bucket {
    /// The bucket at an address, with what the environment says: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
    /// `AWS_SESSION_TOKEN`, `AWS_REGION` or `AWS_DEFAULT_REGION`, `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`. No contact.
    /// What it does ends early when `stop` says so.
    pub fn open(address: &Address, stop: &Stop) -> Result<Self> {
        let given = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let credentials = Credentials::from_env().filter(|c| !c.key().is_empty() && !c.secret().is_empty());
        let credentials = credentials.ok_or_else(|| {
            let text = format!("{address} needs credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY");
            Error::new(errno::EACCES, text)
        })?;
        let region = given("AWS_REGION").or_else(|| given("AWS_DEFAULT_REGION")).unwrap_or_else(|| REGION.to_owned());
        let own = given("AWS_ENDPOINT_URL_S3").or_else(|| given("AWS_ENDPOINT_URL"));
        // Amazon wants the bucket in the host's name; others seldom have such names in their certificates.
        let style = if own.is_some() { UrlStyle::Path } else { UrlStyle::VirtualHost };
        let endpoint = own.unwrap_or_else(|| format!("https://s3.{region}.amazonaws.com"));
        let bad = |what: &dyn fmt::Display| {
            let text = format!("{endpoint} is no address of a service: {what}; set AWS_ENDPOINT_URL to one");
            Error::new(errno::EINVAL, text)
        };
        let url = endpoint.parse().map_err(|e| bad(&e))?;
        let signer = Signer::new(url, style, address.bucket.clone(), region).map_err(|e| bad(&e))?;
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_send_body(Some(SEND_TIMEOUT))
            .timeout_recv_response(Some(ANSWER_TIMEOUT))
            .timeout_recv_body(Some(SEND_TIMEOUT))
            .build()
            .new_agent();
        Ok(Self { signer, credentials, agent, address: address.clone(), stop: stop.clone() })
    }

    /// What lies under a name; `None` when nothing does, or no such bucket is there.
    pub fn find(&self, name: &str) -> Result<Option<Object>> {
        let key = self.key(name);
        let action = self.signer.head_object(Some(&self.credentials), &key);
        match self.send(&action, &[], &[], name) {
            Ok(answer) => {
                let text = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
                let bytes = text(header::CONTENT_LENGTH.as_str()).and_then(|bytes| bytes.parse().ok());
                Ok(bytes.map(|bytes| Object { bytes, root: text(ROOT_HEADER).map(str::to_owned) }))
            }
            Err(refusal) if refusal.is_missing() => Ok(None),
            Err(refusal) => Err(refusal.into()),
        }
    }

    /// Puts these bytes under a name.
    pub fn put(&self, name: &str, bytes: &[u8], label: &Label<'_>) -> Result<()> {
        let key = self.key(name);
        let mut action = self.signer.put_object(Some(&self.credentials), &key);
        let mut headers = vec![("cache-control", label.cache), ("content-type", label.kind)];
        if let Some(root) = label.root {
            action.headers_mut().insert(ROOT_HEADER, root.to_owned());
            headers.push((ROOT_HEADER, root));
        }
        self.send(&action, &headers, bytes, name).map(drop).map_err(Error::from)
    }

    /// The bytes under a name.
    ///
    /// # Errors
    /// EFBIG when there are more than `bytes_max`.
    pub fn get(&self, name: &str, bytes_max: u64) -> Result<Vec<u8>> {
        let key = self.key(name);
        let action = self.signer.get_object(Some(&self.credentials), &key);
        let mut tries = 0;
        let bytes = loop {
            tries += 1;
            let answer = self.send(&action, &[], &[], name)?;
            let mut bytes = Vec::new();
            match answer.into_body().into_reader().take(bytes_max + 1).read_to_end(&mut bytes) {
                Ok(_) => break bytes,
                Err(error) if tries < BODIES_MAX => log::info!("{}{name}: {error}; trying again", self.address),
                Err(error) => return Err(Error::io(format_args!("cannot read {}{name}", self.address), error)),
            }
        };
        if bytes.len() as u64 > bytes_max {
            let text =
                format!("{}{name} has more than {bytes_max} bytes, so it is not what its name says", self.address);
            return Err(Error::new(errno::EFBIG, text));
        }
        Ok(bytes)
    }

    /// A part of the names below the prefix, a thousand at most; `from` is where the part before says that this one begins.
    pub fn list(&self, from: Option<&str>) -> Result<Listing> {
        let mut action = self.signer.list_objects_v2(Some(&self.credentials));
        action.with_prefix(&*self.address.prefix);
        if let Some(from) = from {
            action.with_continuation_token(from);
        }
        let text = Self::text(self.send(&action, &[], &[], "")?, &self.address.to_string())?;
        let nonsense = |e: &dyn fmt::Display| {
            Error::new(errno::EPROTO, format!("{}: its list cannot be read: {e}: check AWS_ENDPOINT_URL", self.address))
        };
        let listed = ListObjectsV2::parse_response(&text).map_err(|e| nonsense(&e))?;
        let below = |key: &str| key.strip_prefix(&self.address.prefix).map(str::to_owned);
        let names = listed.contents.iter().filter_map(|object| Some((below(&object.key)?, object.size)));
        let next = listed.next_continuation_token.clone().filter(|next| !next.is_empty());
        if next.is_some() && next.as_deref() == from {
            return Err(nonsense(&"it has no end"));
        }
        Ok(Listing { names: names.collect(), next })
    }

    /// Where it is, as a person writes it.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The address of an object for those who read it.
    pub fn url(&self, name: &str) -> String {
        let url = self.signer.object_url(&self.key(name));
        url.map_or_else(|_| format!("{}{name}", self.address), |url| url.to_string())
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.address.prefix)
    }

    /// Sends a request as often as it takes, within reason. `name` is for errors.
    fn send<'a>(
        &self,
        action: &impl S3Action<'a>,
        headers: &[(&str, &str)],
        body: &[u8],
        name: &str,
    ) -> std::result::Result<ureq::http::Response<Body>, Refusal> {
        let mut pauses = PAUSES.iter();
        loop {
            if self.stop.check().is_err() {
                return Err(Refusal::ended(&format!("{}{name}", self.address)));
            }
            match self.send_once(action, headers, body, name) {
                Err(refusal) if refusal.may_pass() => match pauses.next() {
                    Some(pause) => {
                        log::info!("{refusal}; trying again");
                        let end = std::time::Instant::now() + *pause;
                        while std::time::Instant::now() < end && self.stop.signal().is_none() {
                            thread::sleep(LOOK_EVERY);
                        }
                    }
                    None => return Err(refusal),
                },
                answer => return answer,
            }
        }
    }

    fn send_once<'a, A: S3Action<'a>>(
        &self,
        action: &A,
        headers: &[(&str, &str)],
        body: &[u8],
        name: &str,
    ) -> std::result::Result<ureq::http::Response<Body>, Refusal> {
        let what = format!("{}{name}", self.address);
        let method = match A::METHOD {
            Method::Head => "HEAD",
            Method::Get => "GET",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Delete => "DELETE",
        };
        // Signed anew for every try: a signature ages.
        let mut request = Request::builder().method(method).uri(action.sign(SIGNED_FOR).as_str());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let sends = matches!(A::METHOD, Method::Put | Method::Post);
        let answer = if sends {
            // A length that is said beforehand: S3 takes no bodies in chunks.
            let sent = Sent { bytes: Cursor::new(body.to_vec()), stop: self.stop.clone() };
            request
                .header(header::CONTENT_LENGTH, body.len())
                .body(SendBody::from_owned_reader(sent))
                .map_err(|e| Refusal::unsendable(&what, &e))
                .and_then(|request| self.agent.run(request).map_err(|e| Refusal::cut(&what, &e)))?
        } else {
            request
                .body(())
                .map_err(|e| Refusal::unsendable(&what, &e))
                .and_then(|request| self.agent.run(request).map_err(|e| Refusal::cut(&what, &e)))?
        };
        if answer.status().is_success() { Ok(answer) } else { Err(Refusal::of(&what, answer)) }
    }

    /// The whole of a short answer.
    fn text(answer: ureq::http::Response<Body>, name: &str) -> Result<String> {
        let mut text = String::new();
        let read = answer.into_body().into_reader().take(ANSWER_BYTES_MAX).read_to_string(&mut text);
        read.map_err(|e| Error::io(format_args!("cannot read the answer about {name}"), e))?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_bucket_and_perhaps_a_prefix() {
        let parsed = |text: &str| text.parse::<Address>().map(|address| address.to_string());
        assert_eq!(parsed("s3://images"), Ok("s3://images/".to_owned()));
        assert_eq!(parsed("s3://my.images/a/b/"), Ok("s3://my.images/a/b/".to_owned()));
        for bad in ["https://images", "s3://", "s3://ab", "s3://Images/x", "s3://a_b/x", "s3://images/a\nb"] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }
}

//! Dialing: how a lane gets a new connection, and nothing else.
//!
//! ureq asks its resolver for the addresses of the host before *every* request, also when it then uses a
//! connection it already has; with a time limit that look-up even costs a thread. Here the resolver that ureq
//! sees answers nothing at no cost ([`NoLookup`]), and the [`Dialer`] looks the name up when a connection is
//! really made, within the connect limit. The dialer also counts connections, which is how a lane knows that a
//! request failed on an old connection and may be repeated at once on a new one.
//!
//! A plain `http` request through a proxy goes in absolute form (`GET http://host/path`), as RFC 9112 (section
//! 3.2.2) wants it; ureq itself only knows tunnels (CONNECT), which common proxies refuse for port 80.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::time::Duration;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, DefaultConnector, NextTimeout, Transport};

/// The resolver that ureq asks before each request: it has no answer and needs none.
#[derive(Debug)]
pub(super) struct NoLookup;

impl Resolver for NoLookup {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        Ok(self.empty())
    }
}

/// Makes the connections of one lane.
pub(super) struct Dialer {
    /// Shared by all lanes, so that they share the TLS settings and can resume each other's TLS sessions.
    inner: Arc<DefaultConnector>,
    resolver: DefaultResolver,
    /// A proxy that takes plain requests in absolute form.
    forward: Option<Uri>,
    connections: Arc<AtomicU64>,
}

impl Dialer {
    /// A dialer that adds up its connections in `connections`; `forward` is the proxy for requests in absolute
    /// form.
    pub fn new(inner: Arc<DefaultConnector>, forward: Option<Uri>, connections: Arc<AtomicU64>) -> Self {
        Self { inner, resolver: DefaultResolver::default(), forward, connections }
    }

    /// The addresses to connect to; none when a tunnel or SOCKS proxy finds the host itself.
    fn lookup(&self, details: &ConnectionDetails<'_>) -> Result<ResolvedSocketAddrs, Error> {
        if !details.addrs.is_empty() {
            return Ok(details.addrs.clone());
        }
        let tunnel = details.config.proxy().filter(|proxy| !proxy.is_no_proxy(details.uri));
        if tunnel.is_some_and(|proxy| !proxy.resolve_target()) {
            return Ok(self.resolver.empty());
        }
        let uri = self.forward.as_ref().unwrap_or(details.uri);
        if let Some(address) = literal(uri) {
            // An address needs no look-up, and a look-up with a time limit costs a thread.
            let mut addresses = self.resolver.empty();
            addresses.push(address);
            return Ok(addresses);
        }
        self.resolver.resolve(uri, details.config, details.timeout)
    }
}

impl Connector<()> for Dialer {
    type Out = Box<dyn Transport>;

    fn connect(&self, details: &ConnectionDetails<'_>, chained: Option<()>) -> Result<Option<Self::Out>, Error> {
        self.connections.fetch_add(1, Ordering::Relaxed);
        let begun = Instant::now();
        let addrs = self.lookup(details)?;
        // The look-up took its share of the limit.
        let mut timeout = details.timeout;
        if let Duration::Exact(limit) = timeout.after {
            timeout.after = Duration::Exact(limit.saturating_sub(begun.elapsed()));
        }
        let details = ConnectionDetails {
            uri: details.uri,
            addrs,
            config: details.config,
            request_level: details.request_level,
            resolver: &self.resolver,
            now: (details.current_time)(),
            timeout,
            current_time: details.current_time.clone(),
            run_connector: details.run_connector.clone(),
            register_shutdown: details.register_shutdown.clone(),
        };
        let transport = self.inner.connect(&details, chained)?;
        Ok(match (&self.forward, details.uri.authority()) {
            (Some(_), Some(authority)) => transport.map(|inner| {
                let prefix = format!("http://{authority}");
                Box::new(AbsoluteForm { inner, prefix }) as Box<dyn Transport>
            }),
            _ => transport,
        })
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer").finish_non_exhaustive()
    }
}

/// The address in a URI that names its host by address.
fn literal(uri: &Uri) -> Option<SocketAddr> {
    let host = uri.host()?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let port = uri.port_u16().or(match uri.scheme_str() {
        Some("http") => Some(80),
        Some("https") => Some(443),
        _ => None,
    })?;
    Some(SocketAddr::new(host.parse::<IpAddr>().ok()?, port))
}

/// Writes the origin into each request line on its way to a proxy.
#[derive(Debug)]
struct AbsoluteForm {
    inner: Box<dyn Transport>,
    /// `http://host:port`, put before the path.
    prefix: String,
}

impl Transport for AbsoluteForm {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, mut amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        const METHOD: &[u8] = b"GET ";
        let output = self.inner.buffers().output();
        // Only GETs without a body are sent here, and a header line never begins so: this is a request line.
        if output[..amount].starts_with(b"GET /") {
            let more = self.prefix.len();
            if amount + more > output.len() {
                return Err(Error::Other("the request is too long for the proxy".into()));
            }
            output.copy_within(METHOD.len()..amount, METHOD.len() + more);
            output[METHOD.len()..METHOD.len() + more].copy_from_slice(self.prefix.as_bytes());
            amount += more;
        }
        self.inner.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.inner.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_without_a_look_up() {
        for (uri, expected) in [
            ("http://127.0.0.1/x", Some("127.0.0.1:80")),
            ("https://127.0.0.1/x", Some("127.0.0.1:443")),
            ("http://[::1]:8080/x", Some("[::1]:8080")),
            ("http://localhost/x", None),
        ] {
            assert_eq!(literal(&uri.parse().unwrap()), expected.map(|e| e.parse().unwrap()), "{uri}");
        }
    }
}

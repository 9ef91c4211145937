//! Proxies: which one a request goes through.
//!
//! An explicit proxy is used for everything, and `proxy=none` means none whatever the environment says. Without
//! the option the environment decides by the scheme of the target,
//! as most programs do: `http_proxy` (in lower case only: a web server hands any client's `Proxy:` header to
//! its CGI programs as `HTTP_PROXY`), `https_proxy`, then `all_proxy`; hosts in `no_proxy` are reached directly.

use ureq::http::{HeaderValue, Uri};
use ureq::{Proxy, ProxyProtocol};

use super::target::Target;
use crate::error::Error;

/// The way to a target.
#[derive(Clone, Debug, Default)]
pub(super) struct Route {
    /// A proxy that makes a tunnel (CONNECT or SOCKS), which ureq handles.
    pub tunnel: Option<Proxy>,
    /// A proxy that takes requests in absolute form, and the credentials for it.
    pub forward: Option<(Uri, Option<HeaderValue>)>,
}

/// Reads an environment variable; replaced in tests.
type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The routes for plain and for TLS targets.
#[derive(Clone, Debug)]
pub(super) struct Routes {
    plain: Route,
    tls: Route,
    direct: Vec<String>,
}

impl Routes {
    /// Reads the option `proxy=URL` or, without one, the environment.
    pub fn new(option: Option<&str>) -> Result<Self, Error> {
        Self::from(option, &|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn from(option: Option<&str>, environment: Environment<'_>) -> Result<Self, Error> {
        let any = |names: &[&str]| names.iter().find_map(|name| environment(name));
        let (plain, tls, direct) = match option {
            Some("none") => (None, None, String::new()),
            Some(url) => (Some(url.to_owned()), Some(url.to_owned()), String::new()),
            None => {
                let all = any(&["all_proxy", "ALL_PROXY"]);
                let plain = environment("http_proxy").or_else(|| all.clone());
                let tls = any(&["https_proxy", "HTTPS_PROXY"]).or(all);
                (plain, tls, any(&["no_proxy", "NO_PROXY"]).unwrap_or_default())
            }
        };
        let direct = direct.split(',').map(|entry| entry.trim().to_ascii_lowercase()).filter(|e| !e.is_empty());
        Ok(Self { plain: route(plain, false)?, tls: route(tls, true)?, direct: direct.collect() })
    }

    /// The way to `target`.
    pub fn to(&self, target: &Target) -> Route {
        let host = target.uri.host().unwrap_or_default().trim_matches(['[', ']']).to_ascii_lowercase();
        if self.direct.iter().any(|entry| covers(entry, &host)) {
            return Route::default();
        }
        if target.origin.https { self.tls.clone() } else { self.plain.clone() }
    }
}

/// True when a `no_proxy` entry covers `host`: `*`, the name itself, or a domain it lies in.
fn covers(entry: &str, host: &str) -> bool {
    let name = entry.strip_prefix("*.").or(entry.strip_prefix('.')).unwrap_or(entry);
    entry == "*" || name == host || host.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'))
}

fn route(url: Option<String>, tls: bool) -> Result<Route, Error> {
    let Some(url) = url else { return Ok(Route::default()) };
    // The value is not repeated: it may hold a password.
    let proxy = Proxy::new(&url)
        .map_err(|_| Error::option("proxy", "...", "must be a URL such as http://HOST:PORT or socks5://HOST:PORT"))?;
    if tls || proxy.protocol() != ProxyProtocol::Http {
        return Ok(Route { tunnel: Some(proxy), forward: None });
    }
    let credentials = proxy.username().map(|name| super::settings::basic(name, proxy.password().unwrap_or_default()));
    let uri = format!("http://{}:{}/", proxy.host(), proxy.port());
    let uri = uri.parse().map_err(|_| Error::option("proxy", "...", "must name a host"))?;
    Ok(Route { tunnel: None, forward: Some((uri, credentials)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(routes: &Routes, url: &str) -> String {
        let route = routes.to(&Target::parse(url).unwrap().0);
        match (route.tunnel, route.forward) {
            (Some(proxy), None) => format!("tunnel {}:{}", proxy.host(), proxy.port()),
            (None, Some((uri, _))) => format!("forward {}", uri.authority().unwrap()),
            _ => "direct".into(),
        }
    }

    #[test]
    fn the_environment_decides_by_scheme_and_no_proxy_exempts() {
        let environment = |name: &str| {
            let value = match name {
                "http_proxy" => "http://p1:3128",
                "https_proxy" => "p2:3129",
                "HTTP_PROXY" => "http://evil:1",
                "no_proxy" => "localhost, .example.org,10.0.0.1",
                _ => return None,
            };
            Some(value.to_owned())
        };
        let routes = Routes::from(None, &environment).unwrap();
        assert_eq!(way(&routes, "http://a/x"), "forward p1:3128");
        assert_eq!(way(&routes, "https://a/x"), "tunnel p2:3129");
        for direct in ["http://localhost:8080/x", "https://www.Example.org/", "http://example.org/", "http://10.0.0.1/"]
        {
            assert_eq!(way(&routes, direct), "direct", "{direct}");
        }
        assert_eq!(way(&routes, "http://badexample.org/"), "forward p1:3128");
    }

    #[test]
    fn the_option_beats_the_environment_even_for_exempt_hosts() {
        let environment = |_: &str| Some("*".to_owned());
        let routes = Routes::from(Some("socks5://p:1080"), &environment).unwrap();
        assert_eq!(way(&routes, "http://a/x"), "tunnel p:1080");
    }

    #[test]
    fn none_means_none() {
        let routes = Routes::from(Some("none"), &|_| Some("http://p:1".to_owned())).unwrap();
        assert_eq!((way(&routes, "http://a/"), way(&routes, "https://a/")), ("direct".into(), "direct".into()));
    }

    #[test]
    fn a_bad_proxy_is_refused_without_printing_its_password() {
        let text = Routes::from(Some("gopher://u:secret@p"), &|_| None).unwrap_err().to_string();
        assert!(text.contains("proxy") && !text.contains("secret"), "{text}");
    }
}

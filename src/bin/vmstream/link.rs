//! Links to published images as people give them to a command: those of `vmstream publish`, and `vmstream://` ones, which a desktop
//! hands to this tool and people copy from pages.

use vmstream::error::{Error, Result, errno};

/// The scheme of links that are for this tool.
const SCHEME: &str = "vmstream://";

/// The `source=` that a link means; what is no link of ours is one already. `vmstream://` is https, and http where the host is this machine: there nobody can listen,
/// and nobody has a certificate.
pub fn source(link: &str) -> Result<String> {
    let Some((_, rest)) = link.split_at_checked(SCHEME.len()).filter(|(scheme, _)| scheme.eq_ignore_ascii_case(SCHEME))
    else {
        return Ok(link.to_owned());
    };
    let authority = rest.split(['/', '#', '?']).next().unwrap_or_default();
    if authority.is_empty() || authority.contains('@') {
        let text = format!("'{link}' names no host or a user: a link is vmstream://HOST/PATH.vmp#HASH");
        return Err(Error::new(errno::EINVAL, text));
    }
    let scheme = if is_loopback(authority) { "http" } else { "https" };
    Ok(format!("{scheme}://{rest}"))
}

fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host.eq_ignore_ascii_case("localhost") || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_of_ours_is_https_but_at_home() {
        for (link, expected) in [
            ("vmstream://h.example/a/b.vmp#12", "https://h.example/a/b.vmp#12"),
            ("VMstream://h:8443/b.vmp", "https://h:8443/b.vmp"),
            ("vmstream:/h/b.vmp", "vmstream:/h/b.vmp"),
            ("vmstream://127.0.0.1:8080/b.vmp#12", "http://127.0.0.1:8080/b.vmp#12"),
            ("vmstream://localhost/b.vmp", "http://localhost/b.vmp"),
            ("vmstream://[::1]:80/b.vmp", "http://[::1]:80/b.vmp"),
            ("vmstream://localhost.evil.example/b.vmp", "https://localhost.evil.example/b.vmp"),
            ("https://h/b.vmp#12", "https://h/b.vmp#12"),
            ("site/b.vmp#12", "site/b.vmp#12"),
        ] {
            assert_eq!(source(link).unwrap(), expected);
        }
        for wrong in ["vmstream://", "vmstream:///b.vmp", "vmstream://user@h/b.vmp"] {
            assert!(source(wrong).is_err(), "{wrong}");
        }
    }
}

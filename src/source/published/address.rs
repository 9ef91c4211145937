//! Links to published images: where the pointer lies, and what must be found there.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::source::file::path_of;
use crate::source::percent_decoded;
use crate::tree::Root;

/// What the path of every pointer ends in.
pub const POINTER_ENDING: &str = ".vmp";

/// Where a published image lies: the link without its root hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// The pointer's URL, `http` or `https`, with query and credentials.
    Web(String),
    /// The pointer's path.
    File(PathBuf),
}

impl Address {
    /// Reads the value of a `source` option; `None` when it is no link to a published image. The root hash is there
    /// when the link has one.
    ///
    /// # Errors
    /// EINVAL when what stands behind `#` is no root hash.
    pub fn parse(source: &str) -> Result<Option<(Self, Option<Root>)>> {
        // A path may hold a # of its own, but none ends in a pointer's ending and a # after it.
        let (place, fragment) = match source.rsplit_once('#') {
            Some((place, fragment)) if is_pointer(place) => (place, Some(fragment)),
            _ => (source, None),
        };
        if !is_pointer(place) {
            return Ok(None);
        }
        let root = fragment.map(str::parse).transpose();
        let root =
            root.map_err(|error: Error| Error::option("source", &format!("...#{}", fragment.unwrap_or("")), error))?;
        let address = if is_web(place) { Self::Web(place.to_owned()) } else { Self::File(path_of(place)?) };
        Ok(Some((address, root)))
    }

    /// The source option of a file beside the pointer, `name` being a good one (`is_name`). A query, which may be a
    /// signature, goes along.
    pub fn beside(&self, name: &str) -> String {
        match self {
            Self::Web(url) => {
                let (path, query) =
                    url.split_once('?').map_or((url.as_str(), None), |(path, query)| (path, Some(query)));
                let folder = path.rfind('/').map_or(path, |at| &path[..=at]);
                let query = query.map(|query| format!("?{query}")).unwrap_or_default();
                format!("{folder}{name}{query}")
            }
            Self::File(path) => {
                use std::os::unix::ffi::OsStringExt;
                let name = std::ffi::OsString::from_vec(percent_decoded(name));
                file_url(&path.parent().unwrap_or(Path::new("")).join(name))
            }
        }
    }
}

/// The name of a place that is no web server: what its option says, without a root hash. The path of a pointer is absolute
/// in it, as a cache keeps it, to be found from everywhere.
pub fn shown(source: &str) -> Result<String> {
    match Address::parse(source)? {
        Some((Address::File(path), _)) => Ok(file_url(&std::path::absolute(&path).unwrap_or(path))),
        _ => Ok(unpinned(source).to_owned()),
    }
}

/// A path as a source option. Only a URL in earnest can hold any path: one that is no text, and one that begins with two
/// slashes, which would name a host. Both are absolute.
fn file_url(path: &Path) -> String {
    match path.to_str() {
        Some(text) if !text.starts_with("//") => format!("file:{text}"),
        _ => format!("file://{}", percent_encoded(path)),
    }
}

/// A path as that of a URL.
fn percent_encoded(path: &Path) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte);
    let encoded = |&byte: &u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    path.as_os_str().as_encoded_bytes().iter().map(encoded).collect()
}

/// A link to a published image without its root hash; anything else as it is.
pub fn unpinned(source: &str) -> &str {
    match source.rsplit_once('#') {
        Some((place, _)) if is_pointer(place) => place,
        _ => source,
    }
}

fn is_web(source: &str) -> bool {
    let scheme = |scheme: &&str| source.get(..scheme.len()).is_some_and(|head| head.eq_ignore_ascii_case(scheme));
    ["http:", "https:"].iter().any(scheme)
}

/// True when the path of a source without a fragment is that of a pointer.
fn is_pointer(source: &str) -> bool {
    let path = if is_web(source) { source.split(['?', '#']).next().unwrap_or(source) } else { source };
    path.ends_with(POINTER_ENDING)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    fn parse(source: &str) -> Option<(Address, bool)> {
        Address::parse(source).unwrap().map(|(address, root)| (address, root.is_some()))
    }

    #[test]
    fn the_ending_of_the_path_tells_a_published_image() {
        let web = |url: &str| Address::Web(url.to_owned());
        assert_eq!(parse("https://h/a/disk.vmp"), Some((web("https://h/a/disk.vmp"), false)));
        assert_eq!(parse(&format!("HTTP://h/d.vmp?sig=a/b#{ROOT}")), Some((web("HTTP://h/d.vmp?sig=a/b"), true)));
        assert_eq!(parse(&format!("/a/d.vmp#{ROOT}")), Some((Address::File("/a/d.vmp".into()), true)));
        assert_eq!(parse("file:///a/d%20e.vmp"), Some((Address::File("/a/d e.vmp".into()), false)));
        for plain in ["http://h/disk.img?x=.vmp", "http://h/disk.raw#x.vmp", "/a/disk", "/a.vmp/disk#1", "pattern:1M"] {
            assert_eq!(parse(plain), None, "{plain}");
        }
    }

    #[test]
    fn a_place_is_called_what_leads_there_from_everywhere() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(shown("a/d.vmp").unwrap(), format!("file:{}/a/d.vmp", here.display()));
        assert_eq!(shown(&format!("file:///a/d%FF.vmp#{ROOT}")).unwrap(), "file:///a/d%FF.vmp");
        for plain in ["a/disk.img", "pattern:1M"] {
            assert_eq!(shown(plain).unwrap(), plain);
        }
    }

    #[test]
    fn half_a_root_is_an_error_and_not_a_trust_in_whatever_comes() {
        for bad in ["http://h/d.vmp#", &format!("http://h/d.vmp#{}", &ROOT[1..]), "d.vmp#x"] {
            assert!(Address::parse(bad).unwrap_err().to_string().contains("64"), "{bad}");
        }
    }

    #[test]
    fn files_lie_beside_the_pointer_and_keep_its_query() {
        let beside = |source: &str, name: &str| Address::parse(source).unwrap().unwrap().0.beside(name);
        assert_eq!(beside("http://u:p@h/a/d.vmp?s=/x", "b/d.raw"), "http://u:p@h/a/b/d.raw?s=/x");
        assert_eq!(beside("/a/d.vmp", "b/d%20e.raw"), "file:/a/b/d e.raw");
        assert_eq!(beside("d.vmp", "d.raw"), "file:d.raw");
        for odd in ["//a/d.vmp", "file:////a/d.vmp", "file:///a%FFb/%25/d.vmp", "file:///a/b%20%C3%BC/d.vmp"] {
            let folder = path_of(odd).unwrap().parent().unwrap().to_owned();
            assert_eq!(path_of(&beside(odd, "b/d.raw")).unwrap(), folder.join("b/d.raw"), "{odd}");
        }
    }
}

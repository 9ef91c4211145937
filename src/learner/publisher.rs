//! The publisher's model: beside the image, under its name with `.vmm` behind it.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Error, errno};
use crate::model::FILE_BYTES_MAX as MODEL_BYTES_MAX;
use crate::source::FetchError;

/// Ending of the name of a model.
const ENDING: &str = ".vmm";

/// Where a publisher would have put the model of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Publisher {
    /// At this URL, which may hold credentials.
    Web(String),
    /// In this file.
    Beside(PathBuf),
}

impl Publisher {
    /// The publisher of the image at `source`, spelled as in the option; `None` where nothing can lie beside it.
    pub fn of(source: &str) -> Option<Self> {
        let scheme = source.split_once(':').map(|(scheme, rest)| (scheme.to_ascii_lowercase(), rest));
        let beside = |path: &str| Some(Self::Beside(PathBuf::from(format!("{path}{ENDING}"))));
        match scheme.as_ref().map(|(scheme, rest)| (scheme.as_str(), *rest)) {
            Some(("http" | "https", _)) => {
                // What follows a question mark belongs to the request and not to the name: a signature that the model
                // may need as well.
                let end = source.find(['?', '#']).unwrap_or(source.len());
                Some(Self::Web(format!("{}{ENDING}{}", &source[..end], &source[end..])))
            }
            Some(("file", path)) => beside(path.strip_prefix("//").unwrap_or(path)),
            Some(("pattern", _)) => None,
            _ => beside(source),
        }
    }

    /// The place for messages, without credentials and without what was signed.
    pub fn name(&self) -> String {
        match self {
            Self::Beside(path) => path.display().to_string(),
            Self::Web(url) => {
                let url = &url[..url.find(['?', '#']).unwrap_or(url.len())];
                let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
                let slash = rest.find('/').unwrap_or(rest.len());
                let host = rest[..slash].rsplit_once('@').map_or(&rest[..slash], |(_, host)| host);
                format!("{scheme}://{host}{}", &rest[slash..])
            }
        }
    }
}

/// The bytes of the model at `path`. Errors: ENOENT and others of reading; EFBIG for what is larger than any model.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |e| Error::io(format_args!("cannot read the model {}", path.display()), e);
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(MODEL_BYTES_MAX + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > MODEL_BYTES_MAX {
        let text =
            format!("{} has more than {MODEL_BYTES_MAX} bytes, which no model has: it is not read", path.display());
        return Err(Error::new(errno::EFBIG, text));
    }
    Ok(bytes)
}

/// Why nothing was fetched. It is not tried again before the next opening, so what may pass is an error too.
pub(super) fn refusal(error: FetchError) -> Error {
    match error {
        FetchError::Fatal(error) => error,
        FetchError::Transient { message, .. } => Error::new(errno::EHOSTUNREACH, message),
        FetchError::Stopped => Error::new(errno::ECANCELED, "the image is closing"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_has_the_image_s_name_and_an_ending() {
        let web = |source: &str| match Publisher::of(source) {
            Some(Publisher::Web(url)) => url,
            other => panic!("{source}: {other:?}"),
        };
        assert_eq!(web("http://h/a/disk.img"), "http://h/a/disk.img.vmm");
        assert_eq!(web("HTTPS://u:p@h/disk?sig=a/b#x"), "HTTPS://u:p@h/disk.vmm?sig=a/b#x");
        for source in ["file:/a/disk", "file:///a/disk", "/a/disk"] {
            assert_eq!(Publisher::of(source), Some(Publisher::Beside("/a/disk.vmm".into())), "{source}");
        }
        assert_eq!(Publisher::of("pattern:1M"), None);
    }

    #[test]
    fn no_secret_is_shown() {
        let publisher = Publisher::of("https://user:se@cret@host:8/disk.img?token=secret").unwrap();
        assert_eq!(publisher.name(), "https://host:8/disk.img.vmm");
    }

    #[test]
    fn what_is_too_large_for_a_model_is_not_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(MODEL_BYTES_MAX + 1).unwrap();
        assert_eq!(read(file.path()).unwrap_err().errno(), errno::EFBIG);
        assert_eq!(read(Path::new("/nowhere/at/all")).unwrap_err().errno(), errno::ENOENT);
    }
}

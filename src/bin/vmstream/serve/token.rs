//! Tokens: who may send sessions.
//!
//! A file has one token a line. A token comes as `Authorization: Bearer TOKEN` and is compared by hash, in a time that
//! does not depend on where it differs: with hashes of equal length even the token's own length cannot be felt out.

use std::path::Path;

use vmstream::error::{Error, Result, errno};

/// Shortest token, in bytes: shorter ones can be guessed.
const TOKEN_BYTES_MIN: usize = 16;
/// Most tokens in a file.
const TOKENS_MAX: usize = 1024;

/// The tokens that are let in.
pub struct Tokens(Vec<blake3::Hash>);

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} tokens", self.0.len())
    }
}

impl Tokens {
    /// Reads a file of tokens. Empty lines and lines that begin with `#` count for nothing.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::io(format_args!("cannot read the tokens in {}", path.display()), e))?;
        // The tokens are not repeated: the message may go to a log that others read.
        let bad = |why: &str| Error::new(errno::EINVAL, format!("the tokens in {}: {why}", path.display()));
        let tokens: Vec<_> = text.lines().map(str::trim).filter(|t| !t.is_empty() && !t.starts_with('#')).collect();
        if tokens.is_empty() {
            return Err(bad("there is none; put one on a line of its own"));
        }
        if tokens.len() > TOKENS_MAX {
            return Err(bad(&format!("there are more than {TOKENS_MAX}")));
        }
        if tokens.iter().any(|t| t.len() < TOKEN_BYTES_MIN || !t.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(bad(&format!("each must have at least {TOKEN_BYTES_MIN} characters, without blanks")));
        }
        Ok(Self(tokens.iter().map(|token| blake3::hash(token.as_bytes())).collect()))
    }

    /// Which token the value of an `Authorization` header has; `None` when it is none of ours.
    pub fn find(&self, authorization: Option<&[u8]>) -> Option<usize> {
        let (scheme, token) = authorization?.split_at_checked("Bearer ".len())?;
        let given = blake3::hash(token.trim_ascii());
        // All are compared, whichever it is; comparing hashes takes the same time always.
        let found =
            self.0.iter().enumerate().fold(None, |found, (at, known)| if given == *known { Some(at) } else { found });
        found.filter(|_| scheme.eq_ignore_ascii_case(b"Bearer "))
    }

    /// True when there are several, so that a token tells who somebody is.
    pub fn tell_apart(&self) -> bool {
        self.0.len() > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> Result<Tokens> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, text).unwrap();
        Tokens::load(file.path())
    }

    #[test]
    fn only_whole_tokens_get_in() {
        let two = tokens("# ours\n0123456789abcdef\n\n  fedcba9876543210 \n").unwrap();
        assert!(two.tell_apart());
        assert_eq!(two.find(Some(b"Bearer 0123456789abcdef")), Some(0));
        assert_eq!(two.find(Some(b"bearer  fedcba9876543210")), Some(1));
        for wrong in ["", "Bearer", "Bearer ", "Bearer 0123456789abcde", "Basic 0123456789abcdef", "0123456789abcdef"] {
            assert_eq!(two.find(Some(wrong.as_bytes())), None, "{wrong}");
        }
        assert_eq!(two.find(None), None);
    }

    #[test]
    fn a_file_without_good_tokens_is_refused_and_not_repeated() {
        for bad in ["", "# nothing\n", "short\n", "0123456789 abcdef\n"] {
            let text = tokens(bad).unwrap_err().to_string();
            assert!(text.contains("the tokens in ") && !text.contains("abcdef"), "{text}");
        }
        assert!(Tokens::load(Path::new("/nonexistent")).unwrap_err().to_string().contains("/nonexistent"));
    }
}

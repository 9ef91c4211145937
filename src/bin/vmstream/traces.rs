//! Reading sessions that were given by name, in either form.

use std::path::Path;

use vmstream::error::Result;
use vmstream::session::{self, Session};

/// Reads the session in the file at `path`.
pub fn read(path: &Path) -> Result<Session> {
    Ok(session::load(path)?.session)
}

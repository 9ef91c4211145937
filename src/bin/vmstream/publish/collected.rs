//! What `vmstream serve --collect` has learnt of an image's guests, for all who make models of it.
//!
//! Collected sessions are learnt on top of a *base*, what the publisher knows without them, and always anew; so a session whose
//! file was removed is unlearnt. Two files say what is what: `base.vmm` is the base, and `collected.json` names the sessions in
//! the published model and, by their hashes, the models that were made so. A publisher that adds sessions of its own to such
//! a model adds them to the base as well, and says so here: else what was collected would count for the publisher's own, and
//! once more with the next lesson.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vmstream::error::{Error, Result};
use vmstream::model;

use crate::files;

/// Largest list that is read, in bytes: a few hundred names.
const LEDGER_BYTES_MAX: u64 = 1 << 20;
const LEDGER: &str = "collected.json";
const BASE: &str = "base.vmm";

/// The list.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Collected {
    /// Hashes of the latest models with collected sessions in them, the newest last.
    pub models: Vec<String>,
    /// Names of the sessions in the newest.
    pub sessions: BTreeSet<String>,
    /// How many sessions were learnt in all, those included that are forgotten again.
    pub heard: u64,
}

impl Collected {
    /// The list in an image's private directory. One that cannot be read is none: what it told is found again.
    pub fn load(own: &Path) -> Self {
        let bytes = files::read(&own.join(LEDGER), LEDGER_BYTES_MAX).ok().flatten().unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// Writes it there in one step.
    pub fn save(&self, own: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).map_err(|e| Error::io("cannot write what was learnt", e.into()))?;
        files::replace(&own.join(LEDGER), text)
    }

    /// True for a model that has collected sessions in it.
    pub fn has_made(&self, model: &[u8]) -> bool {
        self.models.contains(&hash(model))
    }

    /// True when a session with this hash (its first 16 digits count) is in the newest model.
    pub fn has_learnt(&self, content: &str) -> bool {
        let of = |name: &String| Some(name.strip_suffix(".vms")?.rsplit_once('-')?.1.to_owned());
        self.sessions.iter().filter_map(of).any(|known| content.starts_with(&known))
    }
}

/// The hash that stands for a model in the list.
pub fn hash(model: &[u8]) -> String {
    blake3::hash(model).to_hex().to_string()
}

/// Where the base lies in an image's private directory.
pub fn base_path(own: &Path) -> PathBuf {
    own.join(BASE)
}

/// The base; `None` when the publisher knew nothing.
pub fn read_base(own: &Path) -> Result<Option<Vec<u8>>> {
    files::read(&base_path(own), model::FILE_BYTES_MAX)
}

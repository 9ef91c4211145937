//! Opening a published image: from links to the places they lead to, all of which know one root.

use std::sync::Arc;

use super::place::Place;
use super::source::root_of;
use super::{Address, Published, PublishedSource};
use crate::config::HttpOptions;
use crate::error::{Error, errno};
use crate::source::{FaultSpec, FetchError, Identity};
use crate::tree::Root;

/// A link to a published image, taken apart.
#[derive(Clone, Debug)]
pub struct Link {
    /// For messages: without credentials, query and root hash.
    pub name: String,
    pub address: Address,
    pub root: Option<Root>,
}

/// The places of one image, all of which must be published.
pub struct Opener<'a> {
    links: Vec<Link>,
    options: &'a HttpOptions,
    faults: Option<&'a FaultSpec>,
    common: Arc<Published>,
    /// A cache was made of this image before.
    bound: bool,
}

impl<'a> Opener<'a> {
    /// Errors: links that cannot mean the same image, or not the `pinned` one.
    pub fn new(
        links: Vec<Link>,
        pinned: Option<&Identity>,
        options: &'a HttpOptions,
        faults: Option<&'a FaultSpec>,
    ) -> Result<Self, Error> {
        let pinned = match pinned {
            None => None,
            Some(identity) => Some(root_of(identity).ok_or_else(|| {
                let text = "this cache was made from an image that was not published; use a new one";
                Error::new(errno::ESTALE, format!("{}: {text}", links[0].name))
            })?),
        };
        let common = Arc::new(Published::new(pinned));
        for Link { name, root, .. } in &links {
            if root.is_some_and(|root| !common.learn_root(root)) {
                let text = match pinned {
                    Some(pinned) => format!(
                        "{name}: the link is of another version than this cache, which is of {pinned}; `vmstream fetch \
                         --reuse` takes over what did not change"
                    ),
                    None => format!("{name}: the links of source and mirrors are of different versions"),
                };
                return Err(Error::new(errno::ESTALE, text));
            }
        }
        Ok(Self { links, options, faults, common, bound: pinned.is_some() })
    }

    /// Opens a place, by its number.
    pub fn open(&self, at: usize, pinned: Option<&Identity>) -> Result<PublishedSource, FetchError> {
        let Link { name, address, .. } = self.links[at].clone();
        let place = Place::new(name, address, self.options, self.faults, self.common.clone(), self.bound)?;
        PublishedSource::open(place, self.common.clone(), pinned)
    }
}

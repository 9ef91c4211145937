//! The image as files, for as long as a run lasts.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

use fuser::SessionUnmounter;
use vmstream::Image;
use vmstream::error::Result;

use super::LOOK_EVERY;
use crate::mount::{self, Access, Parking};
use crate::point::regions::Regions;
use crate::publish::stop::Stop;

/// A mount that goes when it is dropped.
pub struct Mounted {
    unmounter: SessionUnmounter,
    ended: Receiver<std::io::Result<()>>,
    dir: PathBuf,
}

impl Mounted {
    /// Shows the image in `dir`: its regions, or the disk that it is.
    pub fn new(image: &Arc<Image>, parking: Arc<Parking>, dir: &Path, regions: Option<&Regions>) -> Result<Self> {
        mount::check_directory(dir)?;
        let (sender, ended) = channel();
        let tell = move |result| drop(sender.send(result));
        let unmounter = match regions {
            Some(regions) => mount::show_regions(image, parking, dir, Access::default(), regions, tell)?,
            None => mount::show(image, parking, dir, Access { read_only: true, all_users: false }, tell)?,
        };
        Ok(Self { unmounter, ended, dir: dir.to_owned() })
    }

    /// Unmounts, and waits for whoever still has a file open, but not after a signal.
    pub fn end(mut self, stop: &Stop) {
        self.unmount();
        while matches!(self.ended.recv_timeout(LOOK_EVERY), Err(RecvTimeoutError::Timeout)) && stop.signal().is_none() {
        }
    }

    fn unmount(&mut self) {
        if self.unmounter.unmount().is_err() {
            mount::detach(&self.dir);
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.unmount();
    }
}

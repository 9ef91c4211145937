//! A disk that says how to boot it: behind the disk, whatever form it has, lie a few lines about the machine and the table of
//! both.

use std::ops::Range;

use vmstream::error::Result;

use super::image::Input;
use crate::point::boot::Boot;
use crate::point::regions::{Regions, table_bytes};
use crate::point::{DISK, MACHINE};

/// The disk, and what follows it.
pub struct Bootable {
    disk: Box<Input>,
    /// What lies behind it, with its place in the image.
    behind: [(Range<u64>, Vec<u8>); 2],
}

impl Bootable {
    /// Puts the description behind a disk.
    pub fn new(disk: Input, boot: &Boot) -> Self {
        let text = boot.to_string().into_bytes();
        let regions = Regions::of_lengths([Some(disk.size()), None, None, Some(text.len() as u64)]);
        debug_assert_eq!(regions.of(DISK), Some(&(0..disk.size())));
        let table = table_bytes(&regions);
        let machine = regions.of(MACHINE).cloned().unwrap_or_default();
        let place = regions.table()..regions.table() + table.len() as u64;
        Self { disk: Box::new(disk), behind: [(machine, text), (place, table)] }
    }

    /// The disk alone.
    pub fn disk(&self) -> &Input {
        &self.disk
    }

    /// Size of the image, in bytes.
    pub fn size(&self) -> u64 {
        self.behind[1].0.end
    }

    /// Where the table begins.
    pub fn table(&self) -> u64 {
        self.behind[1].0.start
    }

    /// The first range at or behind `at` and before `end` that may hold anything but zeroes.
    pub fn next_data(&self, at: u64, end: u64) -> Result<Option<Range<u64>>> {
        if at < self.disk.size()
            && let Some(found) = self.disk.next_data(at, end)?
        {
            return Ok(Some(found));
        }
        let parts = self.behind.iter().map(|(place, _)| at.max(place.start)..end.min(place.end));
        Ok(parts.into_iter().find(|part| !part.is_empty()))
    }

    /// Reads bytes of the image.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let disk_bytes = self.disk.size().saturating_sub(offset).min(bytes.len() as u64) as usize;
        let (disk, rest) = bytes.split_at_mut(disk_bytes);
        if !disk.is_empty() {
            self.disk.read(offset, disk)?;
        }
        rest.fill(0);
        let (start, end) = (offset + disk_bytes as u64, offset + disk_bytes as u64 + rest.len() as u64);
        for (place, text) in &self.behind {
            let part = start.max(place.start)..end.min(place.end);
            if !part.is_empty() {
                let from = (part.start - place.start) as usize..(part.end - place.start) as usize;
                rest[(part.start - start) as usize..(part.end - start) as usize].copy_from_slice(&text[from]);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::stop::Stop;

    #[test]
    fn what_is_behind_the_disk_is_read_with_it_and_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        // An odd size, with its last bytes used.
        let size = (1 << 20) + 512 * 3;
        let mut image = vec![0; size];
        image[size - 700..].fill(7);
        std::fs::write(&path, &image).unwrap();
        let boot = Boot::option("uml,root=ubda1").unwrap();
        let whole = Bootable::new(Input::open(&path, &Stop::default()).unwrap(), &boot);
        let text = boot.to_string();
        image.resize(2 << 20, 0);
        image.extend_from_slice(text.as_bytes());
        image.resize(3 << 20, 0);
        image.extend_from_slice(
            format!("vmstream regions 1\ndisk 0 {size}\nmachine {} {}\n", 2 << 20, text.len()).as_bytes(),
        );
        image.resize(whole.size() as usize, 0);
        assert_eq!(whole.table(), 3 << 20);
        for (start, end) in
            [(0, image.len()), (size - 3, size + 5), ((2 << 20) - 5, (2 << 20) + 9), (image.len() - 5000, image.len())]
        {
            let mut bytes = vec![1; end - start];
            whole.read(start as u64, &mut bytes).unwrap();
            assert!(bytes == image[start..end], "{start}..{end}");
        }
        // Whatever is not told of is zero.
        let mut at = 0;
        while let Some(data) = whole.next_data(at, whole.size()).unwrap() {
            assert!(image[at as usize..data.start as usize].iter().all(|byte| *byte == 0));
            at = data.end;
        }
        assert!(image[at as usize..].iter().all(|byte| *byte == 0));
    }
}

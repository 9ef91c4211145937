//! The parts of a restore point as one image: disk, memory, state and machine behind each other, and the table of where
//! they lie at the end.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use vmstream::error::{Error, Result, errno};

use super::image::next_data;
use crate::point::machine::{MACHINE_BYTES_MAX, Machine};
use crate::point::regions::{NAMES, Regions, table_bytes};
use crate::point::{MACHINE, MEMORY};

/// The files of a restore point, opened.
pub struct Parts {
    regions: Regions,
    files: Vec<(PathBuf, File, Range<u64>)>,
    table: Vec<u8>,
}

impl Parts {
    /// Opens what lies in a directory that `vmstream snapshot` has filled; answers the paths of its files as well.
    ///
    /// Errors: `EINVAL` when one is missing or they do not fit each other.
    pub fn open(directory: &Path) -> Result<(Self, Vec<PathBuf>)> {
        let mut lengths = [0; NAMES.len()];
        let mut files = Vec::with_capacity(NAMES.len());
        for ((_, name), length) in NAMES.iter().zip(&mut lengths) {
            let path = directory.join(name);
            let what = format!("{} is no restore point of 'vmstream snapshot': {name}", directory.display());
            let file = File::open(&path).map_err(|e| Error::io(&what, e))?;
            *length = file.metadata().map_err(|e| Error::io(&what, e))?.len();
            files.push((path, file));
        }
        let regions = Regions::of_lengths(lengths.map(Some));
        let placed = files.into_iter().zip(regions.iter());
        let files: Vec<_> = placed.map(|((path, file), (_, range))| (path, file, range.clone())).collect();
        let paths = files.iter().map(|(path, _, _)| path.clone()).collect();
        let parts = Self { table: table_bytes(&regions), regions, files };
        parts.check(directory)?;
        Ok((parts, paths))
    }

    /// What nobody could run is not published.
    fn check(&self, directory: &Path) -> Result<()> {
        let empty = 0..0;
        let place = self.regions.of(MACHINE).unwrap_or(&empty);
        let length = place.end - place.start;
        let mut text = vec![0; length.min(MACHINE_BYTES_MAX) as usize];
        self.read(place.start, &mut text)?;
        let machine = Machine::parse(&text)
            .map_err(|e| Error::new(e.errno(), format!("{}: {e}", directory.join(MACHINE).display())))?;
        let memory = self.regions.of(MEMORY).map_or(0, |range| range.end - range.start);
        if length > MACHINE_BYTES_MAX || memory != machine.memory_bytes() {
            let text = format!(
                "the files in {} do not belong together: the machine has {} bytes of memory, the file {memory}",
                directory.display(),
                machine.memory_bytes()
            );
            return Err(Error::new(errno::EINVAL, text));
        }
        Ok(())
    }

    /// Size of the image, in bytes.
    pub fn size(&self) -> u64 {
        self.table() + self.table.len() as u64
    }

    /// Where the table begins.
    pub fn table(&self) -> u64 {
        self.regions.table()
    }

    /// The first range at or behind `at` and before `end` that may hold anything but zeroes.
    pub fn next_data(&self, at: u64, end: u64) -> Result<Option<Range<u64>>> {
        for (path, file, place) in &self.files {
            let within = at.max(place.start)..end.min(place.end);
            if within.is_empty() {
                continue;
            }
            let found = next_data(file, within.start - place.start, within.end - place.start);
            let found = found.map_err(|e| Error::io(format_args!("cannot read {}", path.display()), e))?;
            if let Some(found) = found {
                return Ok(Some(found.start + place.start..found.end + place.start));
            }
        }
        let table = at.max(self.table())..end.min(self.size());
        Ok(Some(table).filter(|table| !table.is_empty()))
    }

    /// Reads bytes of the image.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        bytes.fill(0);
        let end = offset + bytes.len() as u64;
        let part = |place: &Range<u64>| {
            let within = offset.max(place.start)..end.min(place.end);
            (!within.is_empty()).then_some(within)
        };
        for (path, file, place) in &self.files {
            let Some(within) = part(place) else { continue };
            let target = &mut bytes[(within.start - offset) as usize..(within.end - offset) as usize];
            let read = file.read_exact_at(target, within.start - place.start);
            read.map_err(|e| Error::io(format_args!("cannot read {}", path.display()), e))?;
        }
        if let Some(within) = part(&(self.table()..self.size())) {
            let source = (within.start - self.table()) as usize..(within.end - self.table()) as usize;
            bytes[(within.start - offset) as usize..(within.end - offset) as usize]
                .copy_from_slice(&self.table[source]);
        }
        Ok(())
    }
}

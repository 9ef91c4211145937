//! How the machine of an image starts: where it was when its restore point was taken, or from the beginning.

use vmstream::Image;
use vmstream::error::{Error, Result, errno};

use super::boot::{self, Boot};
use super::machine::{MACHINE_BYTES_MAX, Machine};
use super::regions::Regions;
use super::{MACHINE, MEMORY};

/// What an image says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// This machine goes on.
    Restore(Box<Machine>),
    /// One is booted.
    Boot(Boot),
}

impl Start {
    /// What the image says, whose regions are these. Blocks until that has come.
    ///
    /// Errors: `EPROTO` for what cannot be; those of the image.
    pub fn of_image(image: &Image, regions: Option<&Regions>) -> Result<Self> {
        let Some(regions) = regions else { return Ok(Self::Boot(Boot::default())) };
        let range = regions.of(MACHINE).cloned().unwrap_or_default();
        let mut text = vec![0; (range.end - range.start).min(MACHINE_BYTES_MAX + 1) as usize];
        image.read_at(range.start, &mut text)?;
        Self::parse(&text, regions)
    }

    fn parse(text: &[u8], regions: &Regions) -> Result<Self> {
        let boots = text.starts_with(boot::FIRST_LINE.as_bytes());
        let memory = regions.of(MEMORY).map(|range| range.end - range.start);
        match memory {
            None if boots => Boot::parse(text).map(Self::Boot),
            Some(bytes) if !boots => {
                let machine = Machine::parse(text)?;
                if machine.memory_bytes() != bytes {
                    return Err(Error::new(errno::EPROTO, "the machine and its memory do not belong together"));
                }
                Ok(Self::Restore(Box::new(machine)))
            }
            _ => Err(Error::new(
                errno::EPROTO,
                "the image says how to boot, and has a memory, or neither: it cannot be run",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_memory_does_not_go_on_and_one_with_it_does_not_boot() {
        let boot = b"vmstream boot 1\nmonitor uml\nmemory 67108864\nroot ubda\n";
        let machine = b"vmstream machine 1\nqemu 7.2.22\nsystem x86_64\nmachine pc-q35-7.2\naccelerator tcg\n\
            memory ram 1048576\ndrive virtio\n";
        let disk = Regions::of_lengths([Some(512), None, None, Some(60)]);
        let point = Regions::of_lengths([Some(512), Some(1 << 20), Some(5), Some(60)]);
        let other = Regions::of_lengths([Some(512), Some(2 << 20), Some(5), Some(60)]);
        assert!(matches!(Start::parse(boot, &disk), Ok(Start::Boot(_))));
        assert!(matches!(Start::parse(machine, &point), Ok(Start::Restore(_))));
        for (text, regions) in [(&boot[..], &point), (&machine[..], &disk), (&machine[..], &other)] {
            assert_eq!(Start::parse(text, regions).unwrap_err().errno(), errno::EPROTO);
        }
    }
}

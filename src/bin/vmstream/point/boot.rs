//! How an image wants to be booted that is a disk and no restore point.
//!
//! It stands where a restore point has its machine, and is a list of facts as well, fewer of them: which monitor, how much memory,
//! and for User-Mode Linux, which has no boot loader, where the root is. It comes to a user with a link, so nothing of it
//! may reach further than its guest does; what becomes of a command line here is a number and a name out of a few.

use std::fmt;

use vmstream::config::parse_size;
use vmstream::error::{Error, Result, errno};

use super::machine::MEMORY_BYTES_MAX;

/// First line of every such description.
pub const FIRST_LINE: &str = "vmstream boot 1";
/// Memory of a machine of QEMU unless it is said, in bytes: enough for a desktop.
const MEMORY_QEMU: u64 = 1 << 30;
/// The same for User-Mode Linux, where it is a file in /dev/shm as far as it is used.
const MEMORY_UML: u64 = 512 << 20;
/// Least memory, in bytes: no Linux boots in less.
const MEMORY_BYTES_MIN: u64 = 16 << 20;
/// The first disk of User-Mode Linux.
const ROOT_DEFAULT: &str = "ubda";
/// Partitions that it sees of a disk.
const PARTITIONS_MAX: u8 = 15;

/// What a guest runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Monitor {
    /// QEMU, from the boot loader on the disk.
    Qemu,
    /// User-Mode Linux, whose kernel is a program of the host; it holds the name of the root's device.
    Uml(Root),
}

/// The device of a root: the first disk or a partition of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root(Option<u8>);

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str(ROOT_DEFAULT),
            Some(partition) => write!(f, "{ROOT_DEFAULT}{partition}"),
        }
    }
}

/// How to boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// In what.
    pub monitor: Monitor,
    memory_bytes: u64,
}

impl Default for Boot {
    /// For an image that says nothing.
    fn default() -> Self {
        Self { monitor: Monitor::Qemu, memory_bytes: MEMORY_QEMU }
    }
}

impl Boot {
    /// Reads `uml[,root=ubda1][,memory=512M]` or `qemu[,memory=2G]`; for clap.
    pub fn option(text: &str) -> std::result::Result<Self, String> {
        let (monitor, rest) = text.split_once(',').unwrap_or((text, ""));
        let mut boot = Self::of(monitor)?;
        for part in rest.split(',').filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                Some(("memory", value)) => {
                    boot.set_memory(parse_size("memory", value).map_err(|error| error.to_string())?)?;
                }
                Some((key, value)) => boot.take(key, value)?,
                None => return Err(format!("'{part}': must be root= or memory= and a value")),
            }
        }
        Ok(boot)
    }

    /// Reads a description. Errors: `EPROTO`, naming the line that cannot be.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let wrong = |what: String| Error::new(errno::EPROTO, format!("the description of the machine {what}"));
        let text = std::str::from_utf8(bytes).map_err(|_| wrong("is no text".to_owned()))?;
        let mut lines = text.lines();
        let monitor =
            lines.next().filter(|line| *line == FIRST_LINE).and_then(|_| lines.next()?.strip_prefix("monitor "));
        let monitor = monitor.ok_or_else(|| wrong("does not say what to boot in".to_owned()))?;
        let mut boot = Self::of(monitor).map_err(wrong)?;
        for line in lines {
            let (key, value) = line.split_once(' ').unwrap_or((line, ""));
            boot.take(key, value).map_err(|why| wrong(format!("says '{}': {why}", line.escape_default())))?;
        }
        Ok(boot)
    }

    /// Its memory, in bytes: whole MiB.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    fn of(monitor: &str) -> std::result::Result<Self, String> {
        match monitor {
            "qemu" => Ok(Self::default()),
            "uml" => Ok(Self { monitor: Monitor::Uml(Root(None)), memory_bytes: MEMORY_UML }),
            _ => Err(format!("names the monitor '{}': known are qemu and uml", monitor.escape_default())),
        }
    }

    fn take(&mut self, key: &str, value: &str) -> std::result::Result<(), String> {
        match (key, &mut self.monitor) {
            ("memory", _) => self.set_memory(value.parse().map_err(|_| "no number of bytes".to_owned())?),
            ("root", Monitor::Uml(root)) => {
                let partition =
                    value.strip_prefix(ROOT_DEFAULT).ok_or("the root is ubda or a partition of it, such as ubda1")?;
                let number = partition.parse().ok().filter(|number| (1..=PARTITIONS_MAX).contains(number));
                // One way to write each.
                let plain = number.is_none_or(|number: u8| number.to_string() == partition);
                if !partition.is_empty() && (number.is_none() || !plain) {
                    return Err(format!("a disk has partitions from 1 to {PARTITIONS_MAX}"));
                }
                *root = Root(number);
                Ok(())
            }
            ("root", Monitor::Qemu) => {
                Err("root= is for uml; with QEMU the boot loader on the disk knows it".to_owned())
            }
            _ => Err(format!("'{key}' is not known; a newer vmstream may know it")),
        }
    }

    fn set_memory(&mut self, bytes: u64) -> std::result::Result<(), String> {
        if !bytes.is_multiple_of(1 << 20) || !(MEMORY_BYTES_MIN..=MEMORY_BYTES_MAX).contains(&bytes) {
            return Err("the memory must be whole MiB, from 16 MiB to 16 TiB".to_owned());
        }
        self.memory_bytes = bytes;
        Ok(())
    }
}

impl fmt::Display for Boot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{FIRST_LINE}")?;
        match self.monitor {
            Monitor::Qemu => writeln!(f, "monitor qemu\nmemory {}", self.memory_bytes),
            Monitor::Uml(root) => writeln!(f, "monitor uml\nmemory {}\nroot {root}", self.memory_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_written_and_read_back() {
        for (option, text) in [
            ("uml", "monitor uml\nmemory 536870912\nroot ubda\n"),
            ("uml,root=ubda1,memory=64M", "monitor uml\nmemory 67108864\nroot ubda1\n"),
            ("qemu", "monitor qemu\nmemory 1073741824\n"),
            ("qemu,memory=2G", "monitor qemu\nmemory 2147483648\n"),
        ] {
            let boot = Boot::option(option).unwrap();
            assert_eq!(boot.to_string(), format!("{FIRST_LINE}\n{text}"));
            assert_eq!(Boot::parse(boot.to_string().as_bytes()).unwrap(), boot);
        }
    }

    #[test]
    fn a_link_cannot_bring_words_of_a_command_line_along() {
        for (option, part) in [
            ("xen", "known are qemu and uml"),
            ("uml,root=/dev/sda", "ubda or a partition"),
            ("uml,root=ubda1 ubd1=/etc/shadow", "from 1 to 15"),
            ("uml,root=ubda01", "from 1 to 15"),
            ("uml,root=ubda16", "from 1 to 15"),
            ("uml,root=ubdb", "ubda or a partition"),
            ("uml,init=/bin/sh", "not known"),
            ("uml,memory=1M", "from 16 MiB"),
            ("uml,memory=17000000", "whole MiB"),
            ("uml,memory=much", "must be a size"),
            ("uml,quiet", "root= or memory="),
            ("qemu,root=ubda", "root= is for uml"),
        ] {
            let error = Boot::option(option).unwrap_err();
            assert!(error.contains(part), "{option}: {error}");
        }
        for (text, part) in [
            ("vmstream boot 2\nmonitor uml\n", "what to boot in"),
            ("vmstream boot 1\n", "what to boot in"),
            ("vmstream boot 1\nmonitor uml\nroot ubda1,/etc/shadow\n", "says 'root ubda1,/etc/shadow'"),
            ("vmstream boot 1\nmonitor uml\nmemory 64M\n", "no number"),
            ("vmstream boot 1\nmonitor uml\ncon0 xterm\n", "not known"),
        ] {
            let error = Boot::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}

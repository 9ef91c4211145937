//! The machine that a restore point was taken of, in as many words as it takes to build one like it.
//!
//! The state of the devices fits only a machine with the same devices in the same places, so what matters of QEMU's
//! command line is recorded. It comes to a user with a link, and following a link must not be able to do to his computer what
//! a QEMU command line can: open any file, start scripts, listen on the network. So the description is no command line
//! but a list of facts, each with few forms, and reading it ([`Machine::parse`]) is where they are enforced, for the
//! publisher as well: devices are of a list of those that touch nothing but the guest, properties are plain words, and what is
//! behind devices - files, networks, terminals - is not in it at all; the one who runs the machine decides that.

use std::fmt;

use vmstream::error::{Error, Result, errno};

/// Longest description, in bytes: far more than a machine with every slot filled needs.
pub const MACHINE_BYTES_MAX: u64 = 64 << 10;
/// First line of every description.
const FIRST_LINE: &str = "vmstream machine 1";
/// Most memory that is believed, in bytes.
pub const MEMORY_BYTES_MAX: u64 = 16 << 40;

/// Devices that only the guest sees; what a name here begins with, up to a star.
const DEVICES: [&str; 40] = [
    "virtio-blk-pci*",
    "virtio-scsi-pci*",
    "scsi-hd",
    "ide-hd",
    "ahci",
    "ich9-ahci",
    "virtio-net-pci*",
    "e1000",
    "e1000e",
    "rtl8139",
    "virtio-balloon-pci*",
    "virtio-rng-pci*",
    "virtio-serial-pci*",
    "virtserialport",
    "virtconsole",
    "isa-serial",
    "pci-serial",
    "VGA",
    "cirrus-vga",
    "bochs-display",
    "virtio-vga",
    "virtio-gpu-pci*",
    "virtio-keyboard-pci*",
    "virtio-mouse-pci*",
    "virtio-tablet-pci*",
    "usb-tablet",
    "usb-kbd",
    "usb-mouse",
    "qemu-xhci",
    "nec-usb-xhci",
    "usb-ehci",
    "ich9-usb-ehci1",
    "ich9-usb-uhci1",
    "ich9-usb-uhci2",
    "ich9-usb-uhci3",
    "piix3-usb-uhci",
    "pcie-root-port",
    "pci-bridge",
    "pvpanic",
    "i6300esb",
];
/// Interfaces of `-drive` that are known.
const INTERFACES: [&str; 4] = ["none", "virtio", "ide", "scsi"];

/// One fact of a machine that stands in the order of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// The disk: what `-drive` calls its interface, and its id, empty when it has none.
    Drive { interface: String, id: String },
    /// A `-device`, as QEMU takes it.
    Device(String),
    /// A network that devices name by this id.
    Net(String),
    /// Something that characters go to and come from, by its id.
    Chardev(String),
    /// A source of random numbers, by its id.
    Random(String),
}

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Version of QEMU, as it says it itself.
    pub qemu: String,
    /// The system that is emulated: `qemu-system-` and this is the program.
    pub system: String,
    /// Its type, a versioned one, with properties that are switches.
    pub kind: String,
    /// `tcg` or `kvm`.
    pub accelerator: String,
    /// Model of the processor; `None` for that of the type.
    pub cpu: Option<String>,
    /// How many processors, as QEMU takes it; `None` for one.
    pub smp: Option<String>,
    /// The id of the memory's object, which the state of the devices names.
    pub memory_id: String,
    /// Its size.
    memory_bytes: u64,
    /// Number of serial lines made by `-serial`.
    pub serial_lines: usize,
    /// What `-vga` said.
    pub vga: Option<String>,
    /// It has a USB controller made by `-usb`.
    pub usb: bool,
    /// The kernel was handed over by QEMU, whose helper for that is a part of the machine.
    pub kernel: bool,
    /// The rest, in order.
    pub parts: Vec<Part>,
}

impl Machine {
    /// A machine of which only this is known yet.
    pub fn new(qemu: &str, system: &str, memory_id: &str, memory_bytes: u64) -> Self {
        Self {
            qemu: qemu.to_owned(),
            system: system.to_owned(),
            kind: String::new(),
            accelerator: "tcg".to_owned(),
            cpu: None,
            smp: None,
            memory_id: memory_id.to_owned(),
            memory_bytes,
            serial_lines: 0,
            vga: None,
            usb: false,
            kernel: false,
            parts: Vec::new(),
        }
    }

    /// Its memory, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// Major and minor version of its QEMU.
    pub fn version(&self) -> Option<(u32, u32)> {
        version(&self.qemu)
    }

    /// True when it has a device that gives memory back.
    pub fn has_balloon(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Device(words) if words.starts_with("virtio-balloon")))
    }

    /// True when its guest tells what memory is free.
    pub fn reports_free_pages(&self) -> bool {
        let reports = |word: &str| matches!(word, "free-page-reporting=on" | "free-page-reporting=true");
        self.parts.iter().any(|part| matches!(part, Part::Device(words) if words.split(',').any(reports)))
    }

    /// Reads a description. Errors: `EPROTO`, naming the line that cannot be.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let wrong = |what: String| Error::new(errno::EPROTO, format!("the description of the machine {what}"));
        let text = std::str::from_utf8(bytes).map_err(|_| wrong("is no text".to_owned()))?;
        let mut lines = text.lines();
        if bytes.len() as u64 > MACHINE_BYTES_MAX || lines.next() != Some(FIRST_LINE) {
            return Err(wrong("is of a version that this vmstream does not know, or damaged".to_owned()));
        }
        let mut machine = Self::new("", "", "", 0);
        for line in lines {
            let (key, value) = line.split_once(' ').unwrap_or((line, ""));
            machine.take(key, value).map_err(|why| wrong(format!("says '{}': {why}", line.escape_default())))?;
        }
        machine.check().map_err(|why| wrong(format!("is not whole: {why}")))?;
        Ok(machine)
    }

    fn take(&mut self, key: &str, value: &str) -> std::result::Result<(), String> {
        let word = |value: &str| if is_word(value) { Ok(value.to_owned()) } else { Err("no plain word".to_owned()) };
        let among = |value: &str, known: &[&str]| {
            if known.contains(&value) { Ok(value.to_owned()) } else { Err(format!("'{value}' is not known")) }
        };
        match key {
            "qemu" => self.qemu = word(value)?,
            "system" => self.system = word(value)?,
            "machine" => {
                let (kind, switches) = value.split_once(',').unwrap_or((value, ""));
                let good = |switch: &str| {
                    switch.split_once('=').is_some_and(|(k, v)| is_word(k) && matches!(v, "on" | "off" | "auto"))
                };
                if !is_versioned(kind) {
                    return Err("no versioned machine type such as pc-q35-7.2".to_owned());
                }
                if !switches.is_empty() && !switches.split(',').all(good) {
                    return Err("only switches (on, off, auto) can be recorded".to_owned());
                }
                self.kind = value.to_owned();
            }
            "accelerator" => self.accelerator = among(value, &["tcg", "kvm"])?,
            "cpu" if value.starts_with("host") => return Err("the host's own processor is not everybody's".to_owned()),
            "cpu" => self.cpu = Some(words(value)?),
            "smp" => self.smp = Some(words(value)?),
            "memory" => {
                let (id, bytes) = value.split_once(' ').unwrap_or((value, ""));
                self.memory_id = word(id)?;
                let good = |bytes: &u64| *bytes > 0 && *bytes <= MEMORY_BYTES_MAX && bytes.is_multiple_of(1 << 20);
                let bytes = bytes.parse().ok().filter(good);
                self.memory_bytes = bytes.ok_or("no whole number of MiB, in bytes")?;
            }
            "serial" => {
                let lines = value.parse().ok().filter(|&lines| lines <= 4);
                self.serial_lines = lines.ok_or("there may be up to 4")?;
            }
            "vga" => self.vga = Some(among(value, &["std", "cirrus", "virtio", "none"])?),
            "usb" => self.usb = true,
            "kernel" => self.kernel = true,
            "drive" => {
                let (interface, id) = value.split_once(' ').unwrap_or((value, ""));
                let id = if id.is_empty() { String::new() } else { word(id)? };
                self.parts.push(Part::Drive { interface: among(interface, &INTERFACES)?, id });
            }
            "device" => self.parts.push(Part::Device(device(value)?)),
            "net" => self.parts.push(Part::Net(word(value)?)),
            "chardev" => self.parts.push(Part::Chardev(word(value)?)),
            "random" => self.parts.push(Part::Random(word(value)?)),
            _ => return Err("not known; a newer vmstream may know it".to_owned()),
        }
        Ok(())
    }

    fn check(&self) -> std::result::Result<(), &'static str> {
        if self.version().is_none() {
            return Err("the version of QEMU is missing");
        }
        if self.system.is_empty() || self.kind.is_empty() || self.memory_bytes == 0 {
            return Err("system, machine and memory must be there");
        }
        match self.parts.iter().filter(|part| matches!(part, Part::Drive { .. })).count() {
            1 => Ok(()),
            _ => Err("there must be exactly one disk"),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{FIRST_LINE}\nqemu {}\nsystem {}\nmachine {}", self.qemu, self.system, self.kind)?;
        writeln!(f, "accelerator {}", self.accelerator)?;
        for (key, value) in [("cpu", &self.cpu), ("smp", &self.smp), ("vga", &self.vga)] {
            value.iter().try_for_each(|value| writeln!(f, "{key} {value}"))?;
        }
        writeln!(f, "memory {} {}", self.memory_id, self.memory_bytes)?;
        if self.serial_lines > 0 {
            writeln!(f, "serial {}", self.serial_lines)?;
        }
        for (key, set) in [("usb", self.usb), ("kernel", self.kernel)] {
            if set {
                writeln!(f, "{key}")?;
            }
        }
        self.parts.iter().try_for_each(|part| match part {
            Part::Drive { interface, id } if id.is_empty() => writeln!(f, "drive {interface}"),
            Part::Drive { interface, id } => writeln!(f, "drive {interface} {id}"),
            Part::Device(words) => writeln!(f, "device {words}"),
            Part::Net(id) => writeln!(f, "net {id}"),
            Part::Chardev(id) => writeln!(f, "chardev {id}"),
            Part::Random(id) => writeln!(f, "random {id}"),
        })
    }
}

/// The first two numbers in a version such as `7.2.22 (Debian ...)`.
pub fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// A name, a number, an address: nothing that could be a path, nor more than one word of an option.
fn is_word(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._:+-".contains(&byte);
    !text.is_empty() && text.len() <= 255 && text.bytes().all(plain)
}

/// Words with commas between, some of them `key=value`.
fn words(text: &str) -> std::result::Result<String, String> {
    let good = |part: &str| match part.split_once('=') {
        Some((key, value)) => is_word(key) && is_word(value),
        None => is_word(part),
    };
    if text.split(',').all(good) { Ok(text.to_owned()) } else { Err("only plain words can be recorded".to_owned()) }
}

/// A device of those that are known, with properties that name no file.
fn device(text: &str) -> std::result::Result<String, String> {
    let (driver, properties) = text.split_once(',').unwrap_or((text, ""));
    let known = |known: &&str| known.strip_suffix('*').map_or(driver == *known, |start| driver.starts_with(start));
    if !is_word(driver) || !DEVICES.iter().any(known) {
        return Err(format!("the device '{driver}' is not among those that can be a part of a restore point"));
    }
    for property in properties.split(',').filter(|property| !property.is_empty()) {
        match property.split_once('=') {
            Some(("romfile", "")) => {}
            Some(("romfile", _)) => return Err("romfile= is a file of the host".to_owned()),
            Some((key, value)) if is_word(key) && is_word(value) => {}
            _ => return Err(format!("the property '{property}' is no key=word")),
        }
    }
    Ok(text.to_owned())
}

/// True for a type that is the same machine in every later version of QEMU.
fn is_versioned(kind: &str) -> bool {
    let version = kind.rsplit_once('-').map(|(_, version)| version);
    let numbers =
        |version: &str| version.split('.').count() >= 2 && version.split('.').all(|n| n.parse::<u32>().is_ok());
    is_word(kind) && version.is_some_and(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "vmstream machine 1\nqemu 7.2.22\nsystem x86_64\nmachine pc-q35-7.2,usb=off\naccelerator tcg\n\
        cpu qemu64,+aes\nsmp 2,sockets=1\nvga std\nmemory ram 268435456\nserial 1\nkernel\ndrive none disk\n\
        device virtio-blk-pci,drive=disk,bus=pcie.0,addr=0x3\nnet n0\ndevice e1000,netdev=n0,mac=52:54:00:12:34:56,romfile=\n\
        random r\nchardev c\n";

    #[test]
    fn what_is_written_is_read() {
        let machine = Machine::parse(TEXT.as_bytes()).unwrap();
        assert_eq!(machine.to_string(), TEXT);
        assert_eq!((machine.version(), machine.memory_bytes()), (Some((7, 2)), 256 << 20));
        assert!(!machine.has_balloon() && !machine.reports_free_pages());
        let reporting = format!("{TEXT}device virtio-balloon-pci,free-page-reporting=on\n");
        let machine = Machine::parse(reporting.as_bytes()).unwrap();
        assert!(machine.has_balloon() && machine.reports_free_pages());
    }

    #[test]
    fn a_link_cannot_bring_a_command_line_along() {
        let refused = |line: &str, part: &str| {
            let error = Machine::parse(format!("{TEXT}{line}\n").as_bytes()).unwrap_err().to_string();
            assert!(error.contains(part), "{line}: {error}");
        };
        refused("device vfio-pci,host=01:00.0", "not among those");
        refused("device e1000,romfile=/etc/shadow", "file of the host");
        refused("device e1000,romfile=x", "file of the host");
        refused("device VGA,x=/etc/shadow", "no key=word");
        refused("device VGA,x=a\u{2c}\u{2c}b=c/d", "no key=word");
        refused("device isa-debugcon", "not among those");
        refused("machine pc-q35-7.2,firmware=x", "only switches");
        refused("machine pc-q35-7.2,kernel=/etc/shadow", "only switches");
        refused("machine q35", "versioned");
        refused("machine -monitor", "versioned");
        refused("drive none disk,file=/etc/shadow", "plain word");
        refused("drive pflash", "not known");
        refused("net tap,script=/bin/x", "plain word");
        refused("cpu host", "not everybody's");
        refused("cpu a b", "plain words");
        refused("memory ram 1000", "whole number of MiB");
        refused("monitor stdio", "not known");
        refused("drive none other", "exactly one disk");
    }

    #[test]
    fn half_a_description_is_none() {
        for line in ["qemu", "system", "machine", "memory", "drive"] {
            let text: String =
                TEXT.lines().filter(|l| !l.starts_with(&format!("{line} "))).map(|l| format!("{l}\n")).collect();
            assert!(Machine::parse(text.as_bytes()).is_err(), "{line}");
        }
        assert!(Machine::parse(b"vmstream machine 2\n").is_err());
    }
}

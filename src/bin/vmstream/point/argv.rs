//! From the command line of a running QEMU to the machine it is.
//!
//! Options fall into three kinds: those that make the machine, which are recorded; those that only say how this one is
//! watched, named or started, which are left out; and all others, which are refused, because nobody knows whether the machine
//! could be built again without them.

use vmstream::error::{Error, Result, errno};

use super::machine::{Machine, Part};

/// Options with a value that do not make the machine. The kernel's files are in the guest's memory since it booted.
const PASSING: [&str; 24] = [
    "name",
    "display",
    "vnc",
    "monitor",
    "mon",
    "qmp",
    "qmp-pretty",
    "pidfile",
    "D",
    "d",
    "msg",
    "boot",
    "rtc",
    "sandbox",
    "initrd",
    "append",
    "L",
    "k",
    "m",
    "uuid",
    "trace",
    "nic",
    "parallel",
    "blockdev",
];
/// The same without a value.
const PASSING_SWITCHES: [&str; 7] =
    ["no-reboot", "no-shutdown", "S", "daemonize", "no-user-config", "snapshot", "only-migratable"];

/// What the command line says goes into `machine`.
///
/// Errors: `EINVAL`, naming what cannot be recorded and what to do about it.
pub fn read(arguments: &[String], machine: &mut Machine) -> Result<()> {
    let mut words = arguments.iter();
    let (mut bare, mut drives) = (false, 0);
    while let Some(word) = words.next() {
        let option = word.strip_prefix("--").or_else(|| word.strip_prefix('-'));
        let option = option.ok_or_else(|| refused(word, "give disks with -drive or -blockdev"))?;
        if PASSING_SWITCHES.contains(&option) {
            continue;
        }
        match option {
            "nodefaults" => bare = true,
            "nographic" => {}
            "enable-kvm" => machine.accelerator = "kvm".to_owned(),
            "usb" => machine.usb = true,
            _ => {
                let value = words.next().map(String::as_str).unwrap_or_default();
                drives += usize::from(option == "drive");
                take(option, value, machine)?;
            }
        }
    }
    if !bare {
        return Err(refused("", "start QEMU with -nodefaults and name each device with -device"));
    }
    if drives == 0 {
        name_the_disk(machine);
    }
    Ok(())
}

fn take(option: &str, value: &str, machine: &mut Machine) -> Result<()> {
    let shown = || format!("-{option} {value}");
    match option {
        _ if PASSING.contains(&option) => {
            // A parallel port and a network card are devices.
            let device = matches!(option, "nic" | "parallel") && value != "none";
            return if device { Err(refused(&shown(), "use -device")) } else { Ok(()) };
        }
        "kernel" => machine.kernel = true,
        "machine" | "M" => take_type(value, machine),
        "accel" => machine.accelerator = value.split([',', ':']).next().unwrap_or_default().to_owned(),
        "cpu" => machine.cpu = Some(value.to_owned()),
        "smp" => machine.smp = Some(value.to_owned()),
        "vga" => machine.vga = Some(value.to_owned()),
        "serial" => machine.serial_lines += usize::from(value != "none"),
        "device" => machine.parts.push(Part::Device(value.to_owned())),
        "drive" => {
            let of = |key| property(value, key).unwrap_or_default().to_owned();
            let interface = property(value, "if").unwrap_or("ide").to_owned();
            if interface == "pflash" || of("media") == "cdrom" {
                return Err(refused(&shown(), "a restore point has one disk and nothing else to read from"));
            }
            machine.parts.push(Part::Drive { interface, id: of("id") });
        }
        // What a network leads to is up to whoever restores the machine.
        "netdev" => machine.parts.push(Part::Net(property(value, "id").unwrap_or_default().to_owned())),
        "chardev" => machine.parts.push(Part::Chardev(property(value, "id").unwrap_or_default().to_owned())),
        "object" => match value.split(',').next() {
            Some("memory-backend-file") => {}
            Some("rng-random" | "rng-builtin") => {
                machine.parts.push(Part::Random(property(value, "id").unwrap_or_default().to_owned()));
            }
            _ => return Err(refused(&shown(), "leave it out")),
        },
        _ => return Err(refused(&shown(), "leave it out")),
    }
    Ok(())
}

/// `-machine`, which may be given in pieces: the type and its switches, and apart from them the accelerator; the memory's
/// object is known already.
fn take_type(value: &str, machine: &mut Machine) {
    let mut kind: Vec<_> = machine.kind.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect();
    for word in value.split(',') {
        match word.split_once('=') {
            Some(("accel", names)) => machine.accelerator = names.split(':').next().unwrap_or_default().to_owned(),
            Some(("memory-backend", _)) => {}
            Some(("type", name)) => kind.insert(0, name.to_owned()),
            None => kind.insert(0, word.to_owned()),
            Some(_) => kind.push(word.to_owned()),
        }
    }
    machine.kind = kind.join(",");
}

/// Disks of `-blockdev` have no interface; the device says what its node is called.
fn name_the_disk(machine: &mut Machine) {
    let of = |part: &Part| match part {
        Part::Device(words) => property(words, "drive").map(str::to_owned),
        _ => None,
    };
    let nodes: Vec<_> = machine.parts.iter().filter_map(of).collect();
    for id in nodes.into_iter().rev() {
        machine.parts.insert(0, Part::Drive { interface: "none".to_owned(), id });
    }
}

/// The value of a property in `word,key=value,...`.
fn property<'a>(words: &'a str, key: &str) -> Option<&'a str> {
    words.split(',').find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

fn refused(what: &str, remedy: &str) -> Error {
    let what = if what.is_empty() { String::new() } else { format!(" '{what}' in it") };
    let text = format!("this QEMU's command line makes no machine that can be restored elsewhere{what}: {remedy}");
    Error::new(errno::EINVAL, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_line(line: &str) -> Result<Machine> {
        let arguments: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        let mut machine = Machine::new("7.2.22", "x86_64", "ram", 256 << 20);
        read(&arguments, &mut machine)?;
        Machine::parse(machine.to_string().as_bytes())
    }

    #[test]
    fn what_makes_the_machine_is_kept_and_the_host_is_left_out() {
        let machine = read_line(
            "-nodefaults -no-reboot -display none -machine pc-q35-7.2,accel=tcg,memory-backend=ram -m 256M \
             -object memory-backend-file,id=ram,size=256M,mem-path=/d/ram,share=on -chardev socket,id=s,path=/d/s \
             -serial chardev:s -qmp unix:/d/qmp,server=on -blockdev raw,node-name=disk,file.filename=/d/disk \
             -device virtio-blk-pci,drive=disk -device virtio-balloon-pci -netdev user,id=n,hostfwd=tcp::22-:22 \
             -device e1000,netdev=n -kernel /d/vmlinuz -initrd /d/initrd -append x",
        );
        let text = "vmstream machine 1\nqemu 7.2.22\nsystem x86_64\nmachine pc-q35-7.2\naccelerator tcg\n\
            memory ram 268435456\nserial 1\nkernel\ndrive none disk\nchardev s\ndevice virtio-blk-pci,drive=disk\n\
            device virtio-balloon-pci\nnet n\ndevice e1000,netdev=n\n";
        assert_eq!(machine.unwrap().to_string(), text);
    }

    #[test]
    fn a_disk_of_the_short_form_is_one_too() {
        let machine =
            read_line("-nodefaults -M usb=off -machine type=pc-i440fx-7.2,memory-backend=ram -enable-kvm -drive file=/d/x,if=virtio").unwrap();
        assert_eq!((machine.kind.as_str(), machine.accelerator.as_str()), ("pc-i440fx-7.2,usb=off", "kvm"));
        assert_eq!(machine.parts, [Part::Drive { interface: "virtio".to_owned(), id: String::new() }]);
    }

    #[test]
    fn what_cannot_be_restored_elsewhere_is_refused() {
        let disk = "-drive file=/d/x,if=virtio";
        for (line, part) in [
            (format!("-M pc-q35-7.2 {disk}"), "-nodefaults"),
            (format!("-nodefaults -M q35 {disk}"), "versioned"),
            (format!("-nodefaults -M pc-q35-7.2 {disk} {disk}"), "exactly one disk"),
            ("-nodefaults -M pc-q35-7.2".to_owned(), "exactly one disk"),
            (format!("-nodefaults -M pc-q35-7.2 {disk} -device vfio-pci,host=1:0.0"), "vfio-pci"),
            (format!("-nodefaults -M pc-q35-7.2 {disk} -cpu host"), "not everybody's"),
            (format!("-nodefaults -M pc-q35-7.2 {disk} -virtfs local"), "-virtfs"),
            ("-nodefaults -M pc-q35-7.2 disk.img".to_owned(), "disk.img"),
        ] {
            let error = read_line(&line).unwrap_err().to_string();
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}

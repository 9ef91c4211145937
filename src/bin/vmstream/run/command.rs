//! The command line of QEMU for a machine that is described, and what has to be there for it.

use std::path::Path;
use std::process::Command;

use vmstream::error::{Error, Result, errno};

use super::qemu::What;
use crate::point::MEMORY;
use crate::point::machine::{Machine, Part, version};

/// The program for an image that does not say what machine it wants.
pub const PROGRAM: &str = "qemu-system-x86_64";
/// What QEMU adds to a machine whose kernel it hands over: a program in a ROM. The kernel itself is needed no more.
const KERNEL_ROM: &str = "linuxboot_dma.bin";
/// Options that say where the screen is.
const DISPLAYS: [&str; 7] = ["display", "vnc", "nographic", "spice", "sdl", "curses", "full-screen"];

/// The files that the command line names.
pub struct Paths<'a> {
    /// What the guest writes to its disk, with the image under it.
    pub overlay: &'a Path,
    /// Where the regions are shown.
    pub mount: &'a Path,
    /// The monitor's socket.
    pub socket: &'a str,
}

/// Finds the program for a machine and makes sure that it can be one like it.
///
/// Errors: `ENOENT` when QEMU is not installed, `ENOTSUP` when it is too old or has no KVM.
pub fn check(machine: &Machine) -> Result<String> {
    let program = format!("qemu-system-{}", machine.system);
    let output = Command::new(&program).arg("-version").output().map_err(|e| {
        Error::io(format_args!("this machine cannot run it: no {program} (install Debian's qemu-system-x86)"), e)
    })?;
    let text = String::from_utf8_lossy(&output.stdout);
    let found = text.split("version ").nth(1).and_then(version);
    let (Some(found), Some(needed)) = (found, machine.version()) else {
        return Err(Error::new(errno::ENOTSUP, format!("{program} does not say which version it is")));
    };
    if found < needed {
        let text = format!(
            "this machine cannot run it: the restore point is of QEMU {}.{}, and {program} is {}.{}; install a newer one",
            needed.0, needed.1, found.0, found.1
        );
        return Err(Error::new(errno::ENOTSUP, text));
    }
    if machine.accelerator == "kvm"
        && let Err(e) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm")
    {
        let what = "this machine cannot run it: the restore point was taken with KVM, and /dev/kvm cannot be opened";
        return Err(Error::io(what, e));
    }
    Ok(program)
}

/// The command line. Of several `-m` the last counts, which is the user's.
pub fn words(what: What<'_>, paths: &Paths<'_>) -> Vec<String> {
    let mut words = Vec::new();
    let mut add = |option: &str, value: String| words.extend([option.to_owned(), value]);
    let file = format!("file={},format=qcow2,discard=unmap", comma(paths.overlay));
    add("-qmp", format!("unix:{},server=on,wait=off", paths.socket));
    let machine = match what {
        What::Restored(machine) => machine,
        What::Booted(memory_bytes) => {
            add("-machine", "q35,accel=kvm:tcg".to_owned());
            add("-m", format!("{}M", memory_bytes >> 20));
            add("-drive", format!("if=virtio,{file}"));
            words.push("-S".to_owned());
            return words;
        }
    };
    let id = &machine.memory_id;
    add("-machine", format!("{},accel={},memory-backend={id}", machine.kind, machine.accelerator));
    add("-m", format!("{}M", machine.memory_bytes() >> 20));
    let memory = comma(&paths.mount.join(MEMORY));
    // Private: what the guest writes is nobody's but this process's, and ends with it.
    let size = machine.memory_bytes();
    add("-object", format!("memory-backend-file,id={id},size={size},mem-path={memory},share=off"));
    for (option, value) in [("-cpu", &machine.cpu), ("-smp", &machine.smp), ("-vga", &machine.vga)] {
        if let Some(value) = value {
            add(option, value.clone());
        }
    }
    if machine.kernel {
        add("-option-rom", KERNEL_ROM.to_owned());
    }
    for part in &machine.parts {
        match part {
            Part::Drive { interface, id } if id.is_empty() => add("-drive", format!("if={interface},{file}")),
            Part::Drive { interface, id } => add("-drive", format!("if={interface},id={id},{file}")),
            Part::Device(device) => add("-device", device.clone()),
            // Nothing can reach in; what the guest reaches is up to the user's own options.
            Part::Net(id) => add("-netdev", format!("user,id={id}")),
            Part::Chardev(id) => add("-chardev", format!("null,id={id}")),
            Part::Random(id) => add("-object", format!("rng-builtin,id={id}")),
        }
    }
    add("-incoming", "defer".to_owned());
    words.extend(["-nodefaults", "-no-user-config", "-S"].map(str::to_owned));
    if machine.usb {
        words.push("-usb".to_owned());
    }
    words
}

/// The serial lines that a machine has beyond those that the user's options say something of.
pub fn serial_lines(machine: &Machine, extra: &[String]) -> Vec<String> {
    let given = extra.iter().filter(|word| matches!(word.as_str(), "-serial" | "--serial")).count();
    let missing = machine.serial_lines.saturating_sub(given);
    (0..missing).flat_map(|_| ["-serial".to_owned(), "null".to_owned()]).collect()
}

/// What to add when the user's options do not say where the screen is: nothing where QEMU finds one, else VNC on a free port
/// that only this computer reaches.
pub fn display(extra: &[String]) -> &'static [&'static str] {
    let given = |word: &String| DISPLAYS.contains(&word.trim_start_matches('-'));
    let screen = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if extra.iter().any(given) || screen("DISPLAY") || screen("WAYLAND_DISPLAY") {
        &[]
    } else {
        &["-vnc", "127.0.0.1:0,to=99"]
    }
}

/// Makes the overlay: an empty one over the disk that is shown.
pub fn overlay(disk: &Path, bytes: u64, overlay: &Path) -> Result<()> {
    // Unsafe (-u) means that the disk is not looked at, which would only cost time: its size is known.
    let output = Command::new("qemu-img")
        .args(["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b"])
        .args([disk, overlay])
        .arg(bytes.to_string())
        .output()
        .map_err(|e| Error::io("cannot run qemu-img (Debian package qemu-utils)", e))?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    Err(Error::new(errno::EIO, format!("qemu-img cannot make {}: {}", overlay.display(), why.trim())))
}

/// A path in one of QEMU's options, where a comma would end it.
fn comma(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: &str = "vmstream machine 1\nqemu 7.2.22\nsystem x86_64\nmachine pc-q35-7.2\naccelerator tcg\n\
        memory ram 268435456\nserial 2\nkernel\ndrive none disk\nchardev c\nnet n\ndevice virtio-blk-pci,drive=disk\n";

    fn paths() -> Paths<'static> {
        Paths { overlay: Path::new("/c,d/o"), mount: Path::new("/c,d/m"), socket: "/s" }
    }

    #[test]
    fn a_machine_becomes_a_command_line() {
        let machine = Machine::parse(MACHINE.as_bytes()).unwrap();
        let line = words(What::Restored(&machine), &paths()).join(" ");
        for part in [
            "-machine pc-q35-7.2,accel=tcg,memory-backend=ram -m 256M",
            "mem-path=/c,,d/m/memory.raw,share=off",
            "-drive if=none,id=disk,file=/c,,d/o,format=qcow2,discard=unmap -chardev null,id=c -netdev user,id=n -device",
            "-option-rom linuxboot_dma.bin",
            "-incoming defer -nodefaults",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert!(words(What::Booted(1 << 30), &paths()).join(" ").contains("-m 1024M -drive if=virtio,file=/c,,d/o"));
    }

    #[test]
    fn the_user_decides_where_lines_and_screens_lead() {
        let machine = Machine::parse(MACHINE.as_bytes()).unwrap();
        let extra = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(serial_lines(&machine, &extra("-serial stdio")), ["-serial", "null"]);
        assert!(serial_lines(&machine, &extra("-serial stdio --serial null")).is_empty());
        assert!(display(&extra("-m 1G -vnc :1")).is_empty() && display(&extra("--display none")).is_empty());
    }

    #[test]
    fn what_this_computer_cannot_run_is_said() {
        let with = |old: &str, new: &str| Machine::parse(MACHINE.replace(old, new).as_bytes()).unwrap();
        let none = check(&with("system x86_64", "system pdp11")).unwrap_err().to_string();
        assert!(none.contains("no qemu-system-pdp11"), "{none}");
        if Command::new(PROGRAM).arg("-version").output().is_ok() {
            let old = check(&with("7.2.22", "4096.0.0")).unwrap_err().to_string();
            assert!(old.contains("QEMU 4096.0") && old.contains("newer"), "{old}");
            assert_eq!(check(&with("7.2.22", "1.0.0")).unwrap(), PROGRAM);
        }
    }
}

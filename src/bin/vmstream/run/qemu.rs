//! A machine of QEMU: restored from a restore point, or booted.

use std::path::Path;

use serde_json::json;
use vmstream::Image;
use vmstream::error::{Error, Result, errno};

use super::command::{self, Paths};
use super::guest::{Guest, Manner};
use super::place::{self, Work};
use super::{LOOK_EVERY, Scene, say};
use crate::mount::NAME;
use crate::point::machine::Machine;
use crate::point::qmp::Qmp;
use crate::point::regions::Regions;
use crate::point::{DISK, STATE};
use crate::publish::stop::Stop;

/// Bytes of the devices' state that are fetched at a time.
const PIECE_BYTES: u64 = 1 << 20;
/// Most state of devices that is believed, in bytes: video memory and the like, not the guest's.
const STATE_BYTES_MAX: u64 = 1 << 30;

/// What is started: restored, or booted with so many bytes of memory.
#[derive(Clone, Copy)]
pub enum What<'a> {
    /// As it was.
    Restored(&'a Machine),
    /// A plain one.
    Booted(u64),
}

/// Starts `program`; the guest goes on when this returns.
pub fn start(scene: &mut Scene<'_>, program: &str, what: What<'_>) -> Result<Guest> {
    let Scene { args, image, regions, work, stop, .. } = *scene;
    let disk = work.mount.join(if regions.is_some() { DISK } else { NAME });
    let disk_bytes = regions.and_then(|regions| regions.of(DISK)).map_or(image.size(), |range| range.end - range.start);
    command::overlay(&disk, disk_bytes, &work.overlay)?;
    let machine = match what {
        What::Restored(machine) => Some(machine),
        What::Booted(_) => None,
    };
    if let Some(regions) = regions.filter(|_| machine.is_some()) {
        // QEMU reads it on its only thread; it should not stand still there for a link.
        fetch_state(image, regions, stop)?;
    }

    let paths = Paths { overlay: &work.overlay, mount: &work.mount, socket: &work.socket()? };
    let mut words = vec![program.to_owned()];
    words.extend(command::words(what, &paths));
    words.extend(args.extra.iter().cloned());
    if let Some(machine) = machine {
        // Behind the user's: serial lines are numbered in the order in which they are given.
        words.extend(command::serial_lines(machine, &args.extra));
    }
    words.extend(command::display(&args.extra).iter().map(|word| (*word).to_owned()));
    log::debug!("{}", words.join(" "));
    let mut guest = Guest::start(program, &words, Manner::Obeys, |_| ())?;
    let begun = begin(&mut guest, machine, work, stop, &mut || scene.hold().map(|()| scene.goes_on()));
    begun.map_err(|error| stop.check().err().unwrap_or_else(|| guest.explain(error)))?;
    Ok(guest)
}

/// Brings the machine to where the guest goes on; `hold` keeps it there for a while. It may go on before QEMU, which has a single
/// thread for it and may wait for a block, says so.
fn begin(
    guest: &mut Guest,
    machine: Option<&Machine>,
    work: &Work,
    stop: &Stop,
    hold: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    let mut qmp = monitor(guest, &work.directory.join(place::SOCKET), stop)?;
    if machine.is_some() {
        restore(&mut qmp, guest, &work.mount.join(STATE), stop)?;
    }
    tell_screen(&mut qmp);
    hold()?;
    qmp.ask("cont", json!({}))?;
    if let Some(machine) = machine.filter(|machine| machine.has_balloon()) {
        // Before the restore point was taken it may have been squeezed.
        let _ = qmp.ask("balloon", json!({"value": machine.memory_bytes()}));
    }
    Ok(())
}

/// Connects to the monitor as soon as it is there.
fn monitor(guest: &mut Guest, socket: &Path, stop: &Stop) -> Result<Qmp> {
    while !socket.exists() {
        stop.check()?;
        guest.check()?;
        std::thread::sleep(LOOK_EVERY);
    }
    // A path of a socket may have 107 bytes only; that of an open directory is always short.
    let directory = socket.parent().unwrap_or(Path::new("."));
    let open = std::fs::File::open(directory);
    let open = open.map_err(|e| Error::io(format_args!("cannot open {}", directory.display()), e))?;
    let number = std::os::fd::AsRawFd::as_raw_fd(&open);
    let socket = format!("/proc/self/fd/{number}/{}", place::SOCKET);
    loop {
        match Qmp::connect_patiently(Path::new(&socket)) {
            // Its name is there a moment before QEMU listens.
            Err(error) if error.errno() == rustix::io::Errno::CONNREFUSED.raw_os_error() => {
                stop.check()?;
                guest.check()?;
                std::thread::sleep(LOOK_EVERY);
            }
            connected => return connected,
        }
    }
}

/// Has all of the devices' state in the cache.
fn fetch_state(image: &Image, regions: &Regions, stop: &Stop) -> Result<()> {
    let range = regions.of(STATE).cloned().unwrap_or_default();
    if range.end - range.start > STATE_BYTES_MAX {
        return Err(Error::new(errno::EFBIG, "the state of the devices is larger than any can be"));
    }
    let mut at = range.start;
    while at < range.end {
        stop.check()?;
        let length = PIECE_BYTES.min(range.end - at);
        image.block_wait(vmstream::Op::Read, at, length)?;
        at += length;
    }
    Ok(())
}

/// Gives the devices their state; the guest stands still afterwards.
fn restore(qmp: &mut Qmp, guest: &mut Guest, state: &Path, stop: &Stop) -> Result<()> {
    let unreadable = |e| Error::io(format_args!("cannot open {}", state.display()), e);
    let file = std::fs::File::open(state).map_err(unreadable)?;
    qmp.ask("migrate-set-capabilities", json!({"capabilities": [{"capability": "x-ignore-shared", "state": true}]}))?;
    qmp.ask_with("getfd", json!({"fdname": "state"}), Some(std::os::fd::AsFd::as_fd(&file)))?;
    qmp.ask("migrate-incoming", json!({"uri": "fd:state"}))?;
    loop {
        stop.check()?;
        guest.check()?;
        match qmp.migrated(LOOK_EVERY) {
            Err(e) if e.errno() == errno::ETIMEDOUT => {}
            ended => return ended,
        }
    }
}

/// Says where the screen is, when nobody asked for another.
fn tell_screen(qmp: &mut Qmp) {
    if let Ok(vnc) = qmp.ask("query-vnc", json!({}))
        && let (true, Some(host), Some(port)) = (vnc["enabled"] == true, vnc["host"].as_str(), vnc["service"].as_str())
    {
        say(format_args!("the screen is at VNC {host}:{port}"));
    }
}

//! `vmstream snapshot`: a running machine becomes a restore point.
//!
//! The machine must have its memory in a file that it shares (`share=on`): then the memory at an instant is that file, and
//! what QEMU has to write down is the state of its devices. First everything is found out and refused that could fail; then the
//! guest is made small, while it still runs; then it stands still, and disk, memory and state are copied. `disk` and
//! `memory` are one file each.

mod caches;
mod disk;
mod memory;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde_json::json;
use vmstream::error::{Error, Result, errno};

use crate::point::machine::Machine;
use crate::point::qmp::Qmp;
use crate::point::{DISK, MACHINE, MEMORY, STATE, argv};
use crate::{Outcome, progress};
use memory::Memory;

/// How long a balloon may go without growing until it counts as full: a guest gives pages back in steps, and has to write
/// some to its disk first.
const BALLOON_STILL: Duration = Duration::from_secs(2);
/// The same where the guest reports what is free: a Linux does so every two seconds.
const REPORTS_STILL: Duration = Duration::from_secs(5);
/// Between two looks at how much memory is in use.
const LOOK: Duration = Duration::from_millis(250);
/// The state of the devices is small; this is for a host that hardly gets to it.
const STATE_MAX: Duration = Duration::from_secs(120);

/// Take a restore point of a running QEMU: its memory, its devices and its disk at one instant
///
/// QEMU must have been started with '-nodefaults', a versioned machine type, and its memory in a shared file; what is missing
/// is said. 'vmstream publish --restore-point DIR' then publishes it. QEMU ends afterwards unless told otherwise.
#[derive(Args)]
pub struct SnapshotArgs {
    /// The machine's QMP socket (-qmp unix:FILE,server=on,wait=off)
    #[arg(long, value_name = "SOCKET")]
    pub qmp: PathBuf,

    /// The directory to make
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,

    /// Have the guest's caches dropped by its qemu-guest-agent, whose socket this is
    #[arg(long, value_name = "SOCKET")]
    pub agent: Option<PathBuf>,

    /// Squeeze the guest's memory down to so many MiB first, with virtio-balloon
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    pub balloon: Option<u64>,

    /// Let the machine go on afterwards
    #[arg(long)]
    pub keep_running: bool,
}

/// Takes the restore point.
pub fn run(args: &SnapshotArgs) -> Result<Outcome> {
    let mut qmp = Qmp::connect(&args.qmp)?;
    let process = Path::new("/proc").join(qmp.process()?.to_string());
    let memory = Memory::find(&mut qmp, &process)?;
    let machine = describe(&qmp, &process, &memory)?;
    let disk = disk::Disk::find(&mut qmp)?;
    if args.balloon.is_some() && !machine.has_balloon() {
        let text = "--balloon: the machine has no balloon: start QEMU with -device virtio-balloon-pci";
        return Err(Error::new(errno::EINVAL, text));
    }
    let draft = Draft::make(&args.output)?;

    match &args.agent {
        Some(agent) => caches::drop_by(agent)?,
        None => log::info!("the guest's caches are taken as they are, as there is no --agent to drop them"),
    }
    if let Some(mib) = args.balloon {
        squeeze(&mut qmp, mib << 20)?;
    }
    if machine.reports_free_pages() {
        await_reports(&memory)?;
    }
    qmp.ask("stop", json!({}))?;
    let taken = take(&mut qmp, &process, &draft, &memory, &disk, &machine);
    // Whatever came of it, a guest that is to go on goes on.
    if args.keep_running || taken.is_err() {
        let ignored = json!({"capabilities": [{"capability": "x-ignore-shared", "state": false}]});
        let _ = qmp.ask("migrate-set-capabilities", ignored);
        if args.balloon.is_some() {
            let _ = qmp.ask("balloon", json!({"value": machine.memory_bytes()}));
        }
        qmp.ask("cont", json!({}))?;
    }
    let kept_bytes = taken?;
    draft.finish(&args.output)?;
    log::info!(
        "{}: {} of {} of memory are in use",
        args.output.display(),
        progress::size(kept_bytes),
        progress::size(machine.memory_bytes())
    );
    if !args.keep_running {
        qmp.ask("quit", json!({}))?;
    }
    Ok(Outcome::Done)
}

/// Copies all parts of a machine that stands still; answers the bytes of memory that are not zero.
fn take(
    qmp: &mut Qmp,
    process: &Path,
    draft: &Draft,
    memory: &Memory,
    disk: &disk::Disk,
    machine: &Machine,
) -> Result<u64> {
    let state = draft.file(STATE)?;
    qmp.ask("migrate-set-capabilities", json!({"capabilities": [{"capability": "x-ignore-shared", "state": true}]}))?;
    qmp.ask_with("getfd", json!({"fdname": STATE}), Some(state.as_fd()))?;
    qmp.ask("migrate", json!({"uri": format!("fd:{STATE}")}))?;
    qmp.migrated(STATE_MAX)?;
    // Behind the state: that saving it flushes devices into memory and disk is a part of it.
    let kept_bytes = memory.copy(&draft.file(MEMORY)?)?;
    disk.copy(process, &draft.path.join(DISK))?;
    crate::files::replace(&draft.path.join(MACHINE), machine.to_string())?;
    Ok(kept_bytes)
}

/// What kind of machine it is, from the process that it is.
fn describe(qmp: &Qmp, process: &Path, memory: &Memory) -> Result<Machine> {
    let unreadable =
        |e| Error::io(format_args!("cannot learn how QEMU (process {}) was started", process.display()), e);
    let line = fs::read(process.join("cmdline")).map_err(unreadable)?;
    let words = line.split(|&byte| byte == 0).skip(1).map(|word| String::from_utf8_lossy(word).into_owned());
    let mut arguments: Vec<_> = words.collect();
    // The line ends with a zero.
    arguments.pop();
    let program = fs::read_link(process.join("exe")).map_err(unreadable)?;
    let program = program.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some(system) = program.strip_prefix("qemu-system-") else {
        let text = format!("{program} is no qemu-system-...: only machines of QEMU can be taken");
        return Err(Error::new(errno::EINVAL, text));
    };
    let system = system.split(' ').next().unwrap_or_default(); // "(deleted)" after an upgrade
    let mut machine = Machine::new(qmp.version(), system, memory.id(), memory.bytes());
    argv::read(&arguments, &mut machine)?;
    // What nobody could read is not written.
    Machine::parse(machine.to_string().as_bytes()).map_err(|e| Error::new(errno::EINVAL, e.to_string()))
}

/// Blows the balloon up until the guest has `target` bytes left, or does not give more.
fn squeeze(qmp: &mut Qmp, target: u64) -> Result<()> {
    qmp.ask("balloon", json!({"value": target}))?;
    let (mut least, mut since) = (u64::MAX, std::time::Instant::now());
    // Ends by itself: memory is finite, and so is the time for which it does not shrink.
    qmp.poll("query-balloon", json!({}), Duration::MAX, |answer| {
        let actual = answer["actual"].as_u64().unwrap_or(0);
        if actual < least {
            (least, since) = (actual, std::time::Instant::now());
        }
        Ok((actual <= target || since.elapsed() > BALLOON_STILL).then_some(()))
    })?;
    log::info!("the guest has {} left", progress::size(least));
    Ok(())
}

/// Waits until the guest has reported all that is free, which QEMU then takes out of the memory's file.
fn await_reports(memory: &Memory) -> Result<()> {
    let (mut least, mut since) = (u64::MAX, std::time::Instant::now());
    // Ends by itself, as the balloon does.
    while since.elapsed() < REPORTS_STILL {
        let used = memory.used_bytes()?;
        if used < least {
            (least, since) = (used, std::time::Instant::now());
        }
        std::thread::sleep(LOOK);
    }
    log::info!("the guest has reported what is free; {} of its memory are in use", progress::size(least));
    Ok(())
}

/// A directory that gets its name when all of it is there.
struct Draft {
    path: PathBuf,
}

impl Draft {
    fn make(output: &Path) -> Result<Self> {
        if output.exists() {
            let text = format!("{} exists: name a directory that does not", output.display());
            return Err(Error::new(errno::EINVAL, text));
        }
        let mut name = output.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let path = output.with_file_name(name);
        let _ = fs::remove_dir_all(&path); // of one that was killed
        fs::create_dir(&path).map_err(|e| Error::io(format_args!("cannot make {}", path.display()), e))?;
        // QEMU and qemu-img are given it as well.
        let path = path.canonicalize().map_err(|e| Error::io(format_args!("cannot find {}", path.display()), e))?;
        Ok(Self { path })
    }

    fn file(&self, name: &str) -> Result<File> {
        let path = self.path.join(name);
        let opened = File::create_new(&path);
        opened.map_err(|e| Error::io(format_args!("cannot make {}", path.display()), e))
    }

    fn finish(self, output: &Path) -> Result<()> {
        let failed = |e| Error::io(format_args!("cannot rename {} to {}", self.path.display(), output.display()), e);
        fs::rename(&self.path, output).map_err(failed)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // It has another name when it is of use.
        let _ = fs::remove_dir_all(&self.path);
    }
}

//! A disk in memory that knows what a power failure would leave of it.
//!
//! Each file has bytes that programs see (`live`), bytes that are safe (`durable`), and the changes between the two in
//! order; names have the same. A sync applies the changes; a power failure applies a random part of them, torn at
//! sectors or bytes, with garbage where a file grew - among the garbage pieces of other files, as on a real disk whose
//! blocks were used before. The disk stops at any given moment, and fails writes and syncs at random if told to.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use super::medium::{Folder, Medium};
use crate::error::{Error, Result, errno};

/// What a disk writes as a whole, in bytes.
const SECTOR_BYTES: usize = 512;

/// Repeatable random numbers (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// True once in `n` times; never for 0.
    pub fn one_in(&mut self, n: u64) -> bool {
        n > 0 && self.below(n) == 0
    }
}

#[derive(Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

#[derive(Clone)]
enum Naming {
    Create(OsString, usize),
    Rename(OsString, OsString, usize),
    Remove(OsString),
}

impl Naming {
    fn apply(&self, names: &mut BTreeMap<OsString, usize>) {
        match self {
            Self::Create(name, file) => drop(names.insert(name.clone(), *file)),
            Self::Remove(name) => drop(names.remove(name)),
            Self::Rename(from, to, file) => {
                names.remove(from);
                names.insert(to.clone(), *file);
            }
        }
    }
}

#[derive(Clone, Default)]
struct Content {
    live: Vec<u8>,
    durable: Vec<u8>,
    changes: Vec<Change>,
}

/// How often things go wrong: once in so many calls; 0 for never.
#[derive(Clone, Copy, Default)]
pub struct Faults {
    /// Writes to a file that would grow by them fail half done, for want of space.
    pub full_one_in: u64,
    /// Syncs lose a part of what they should make durable, and say so once.
    pub sync_one_in: u64,
}

#[derive(Clone)]
struct State {
    files: Vec<Content>,
    names: BTreeMap<OsString, usize>,
    durable_names: BTreeMap<OsString, usize>,
    namings: Vec<Naming>,
    random: Random,
    faults: Faults,
    /// Moments so far: two for each step, before and after it.
    moments: u64,
    stop_at: Option<u64>,
    stopped: bool,
}

impl State {
    /// What may turn up where a file grew.
    fn garbage(&self) -> Vec<Vec<u8>> {
        self.files.iter().map(|file| file.live.clone()).collect()
    }
}

/// The disk, with one directory.
#[derive(Clone)]
pub struct Disk(Arc<Mutex<State>>);

/// An open file.
#[derive(Clone)]
pub struct File {
    disk: Disk,
    number: usize,
}

impl Disk {
    pub fn new(seed: u64, faults: Faults) -> Self {
        Self(Arc::new(Mutex::new(State {
            files: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            namings: Vec::new(),
            random: Random(seed),
            faults,
            moments: 0,
            stop_at: None,
            stopped: false,
        })))
    }

    /// Everything fails from this moment on.
    pub fn stop_at(&self, moment: u64) {
        self.state().stop_at = Some(moment);
    }

    /// From now on things go wrong as often as this.
    pub fn set_faults(&self, faults: Faults) {
        self.state().faults = faults;
    }

    pub fn moments(&self) -> u64 {
        self.state().moments
    }

    pub fn stopped(&self) -> bool {
        self.state().stopped
    }

    /// Only the process has died: all that was written is still to be seen, and still as little durable.
    pub fn after_kill(&self) -> Self {
        let state = State { stop_at: None, stopped: false, ..self.state().clone() };
        Self(Arc::new(Mutex::new(state)))
    }

    /// What a power failure leaves, one of many ways by `seed`.
    pub fn after_power_failure(&self, seed: u64) -> Self {
        let mut state = self.state().clone();
        let mut random = Random(seed);
        let garbage = state.garbage();
        for file in &mut state.files {
            for change in std::mem::take(&mut file.changes) {
                survive(&change, &mut file.durable, &garbage, &mut random);
            }
            file.live.clone_from(&file.durable);
        }
        for naming in std::mem::take(&mut state.namings) {
            if random.one_in(2) {
                naming.apply(&mut state.durable_names);
            }
        }
        state.names.clone_from(&state.durable_names);
        (state.stop_at, state.stopped, state.faults, state.random) = (None, false, Faults::default(), random);
        Self(Arc::new(Mutex::new(state)))
    }

    /// The file as programs see it; `None` without one.
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.state();
        Some(state.files[*state.names.get(OsStr::new(name))?].live.clone())
    }

    /// Puts a file there, durably.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        let mut state = self.state();
        let number = state.files.len();
        state.files.push(Content { live: bytes.to_vec(), durable: bytes.to_vec(), changes: Vec::new() });
        state.names.insert(name.into(), number);
        state.durable_names.insert(name.into(), number);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// One step that changes something; the disk may stop before or after it.
    fn step<T>(&self, change: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.state();
        let mut done = None;
        for change in [None, Some(change)] {
            if let Some(change) = change {
                done = Some(change(&mut state)?);
            }
            state.stopped |= state.stop_at == Some(state.moments);
            state.moments += 1;
            if state.stopped {
                return Err(io::Error::other("the disk has stopped"));
            }
        }
        Ok(done.unwrap())
    }
}

/// Applies a part of a change: any part.
fn survive(change: &Change, durable: &mut Vec<u8>, garbage: &[Vec<u8>], random: &mut Random) {
    let (offset, bytes) = match change {
        Change::Length(length) => {
            if random.one_in(2) {
                durable.resize(*length, 0);
            }
            return;
        }
        Change::Write(offset, bytes) => (*offset, bytes),
    };
    let end = offset + bytes.len();
    let old = durable.len();
    let kind = random.below(5);
    if kind == 0 {
        return;
    }
    if old < end {
        // The length may be there before the content: zeroes, noise, or what used to be on those sectors.
        durable.resize(end, 0);
        match random.below(3) {
            0 => {}
            1 => durable[old..].fill_with(|| random.next() as u8),
            _ => {
                let other = &garbage[random.below(garbage.len() as u64) as usize];
                for (at, byte) in durable.iter_mut().enumerate().skip(old) {
                    *byte = other.get(at).copied().unwrap_or(0);
                }
            }
        }
    }
    match kind {
        1 => {}
        2 => durable[offset..end].copy_from_slice(bytes),
        3 => {
            let mut cut = offset + random.below(bytes.len() as u64 + 1) as usize;
            if cut < old {
                // A sector that was there is old or new; only in new ones may any byte be the last.
                cut = (cut / SECTOR_BYTES * SECTOR_BYTES).max(offset);
            }
            durable[offset..cut].copy_from_slice(&bytes[..cut - offset]);
        }
        _ => {
            let mut at = offset;
            while at < end {
                let next = ((at / SECTOR_BYTES + 1) * SECTOR_BYTES).min(end);
                if random.one_in(2) {
                    durable[at..next].copy_from_slice(&bytes[at - offset..next - offset]);
                }
                at = next;
            }
        }
    }
}

fn apply(change: &Change, bytes: &mut Vec<u8>) {
    match change {
        Change::Length(length) => bytes.resize(*length, 0),
        Change::Write(offset, new) => {
            if bytes.len() < offset + new.len() {
                bytes.resize(offset + new.len(), 0);
            }
            bytes[*offset..offset + new.len()].copy_from_slice(new);
        }
    }
}

impl File {
    fn change(&self, state: &mut State, change: Change) {
        let file = &mut state.files[self.number];
        apply(&change, &mut file.live);
        file.changes.push(change);
    }
}

impl Medium for File {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let state = self.disk.state();
        let live = &state.files[self.number].live;
        let rest = live.get(offset as usize..).unwrap_or(&[]);
        let got = rest.len().min(bytes.len());
        bytes[..got].copy_from_slice(&rest[..got]);
        Ok(got)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.step(|state| {
            let grows = state.files[self.number].live.len() < offset as usize + bytes.len();
            let one_in = state.faults.full_one_in;
            if grows && state.random.one_in(one_in) {
                let part = state.random.below(bytes.len() as u64) as usize;
                self.change(state, Change::Write(offset as usize, bytes[..part].to_vec()));
                return Err(io::Error::from_raw_os_error(errno::ENOSPC));
            }
            self.change(state, Change::Write(offset as usize, bytes.to_vec()));
            Ok(())
        })
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.disk.state().files[self.number].live.len() as u64)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.disk.step(|state| {
            self.change(state, Change::Length(length as usize));
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.step(|state| {
            let one_in = state.faults.sync_one_in;
            let fails = state.random.one_in(one_in);
            let garbage = if fails { state.garbage() } else { Vec::new() };
            let State { files, random, .. } = state;
            let file = &mut files[self.number];
            for change in std::mem::take(&mut file.changes) {
                if fails {
                    survive(&change, &mut file.durable, &garbage, random);
                } else {
                    apply(&change, &mut file.durable);
                }
            }
            if fails { Err(io::Error::from_raw_os_error(errno::EIO)) } else { Ok(()) }
        })
    }
}

impl Folder for Disk {
    type File = File;

    fn show(&self, name: &OsStr) -> String {
        name.to_string_lossy().into_owned()
    }

    fn open(&self, name: &OsStr) -> Result<Option<File>> {
        Ok(self.state().names.get(name).map(|number| File { disk: self.clone(), number: *number }))
    }

    fn create(&self, name: &OsStr) -> Result<File> {
        self.name(|state| {
            assert!(!state.names.contains_key(name), "{name:?} is created twice");
            state.files.push(Content::default());
            Naming::Create(name.to_owned(), state.files.len() - 1)
        })?;
        let number = self.state().names[name];
        Ok(File { disk: self.clone(), number })
    }

    fn rename(&self, from: &OsStr, to: &OsStr) -> Result<()> {
        self.name(|state| Naming::Rename(from.to_owned(), to.to_owned(), state.names[from]))
    }

    fn remove(&self, name: &OsStr) -> Result<()> {
        self.name(|_| Naming::Remove(name.to_owned()))
    }

    fn sync(&self) -> Result<()> {
        let synced = self.step(|state| {
            let State { namings, durable_names, .. } = state;
            namings.drain(..).for_each(|naming| naming.apply(durable_names));
            Ok(())
        });
        synced.map_err(|e| Error::io("cannot sync the directory", e))
    }
}

impl Disk {
    fn name(&self, naming: impl FnOnce(&mut State) -> Naming) -> Result<()> {
        let named = self.step(|state| {
            let naming = naming(state);
            naming.apply(&mut state.names);
            state.namings.push(naming);
            Ok(())
        });
        named.map_err(|e| Error::io("cannot change a name", e))
    }
}

//! What a disk driver pays for a block that is here: nanoseconds, allocations, system calls.
//!
//! The calls go through function pointers that the compiler cannot see through, as those of a C program through the
//! dynamic linker. The loop around them picks scattered blocks; its own cost is shown and not taken off.
//!
//! That no call enters the kernel is shown by the kernel: a process of its own forbids itself every system call but
//! `write` and `exit_group`, and lives. To see that the filter works it then makes another call, and must die of it.
#![allow(unsafe_code, reason = "calls of the C ABI, and the system call filter")]

use std::ffi::CString;
use std::hint::black_box;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, Stdio};
use std::ptr;
use std::sync::Barrier;
use std::time::Instant;

use vmstream::capi::{
    VMS_READ, VMS_READY, VMS_WRITE, vms_block_done, vms_block_needed, vms_close, vms_image, vms_open,
};
use vmstream::{Answer, Image, Op};

use crate::samples::Samples;
use crate::table::{Table, at_least, at_most, number};
use crate::{allocations, part};

/// Name of the process that lives behind the filter.
pub const FILTERED: &str = "gate-filtered";

const IMAGE_BYTES: u64 = 256 << 20;
const CALLS: u64 = 2_000_000;
const REPETITIONS: usize = 15;

type Needed = unsafe extern "C" fn(*const vms_image, i32, u64, u64, u64) -> i32;
type Done = unsafe extern "C" fn(*const vms_image, i32, u64, u64, i32) -> i32;

/// An open image behind the C ABI, all of it resident and touched.
#[derive(Clone, Copy)]
struct Handle {
    image: *const vms_image,
    needed: Needed,
    done: Done,
}

// SAFETY: the header allows the two calls from any thread at once; closing waits for the threads to end.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Handle {
    fn open() -> Self {
        let options = [format!("source=pattern:{IMAGE_BYTES}"), "fill=off".into(), "prefetch=none".into()];
        let options = options.map(|option| CString::new(option).expect("no NUL inside"));
        let pointers: Vec<_> = options.iter().map(|option| option.as_ptr()).chain([ptr::null()]).collect();
        let mut image = ptr::null_mut();
        // SAFETY: a NULL-terminated array of strings, no callback, and room for the handle.
        assert_eq!(unsafe { vms_open(pointers.as_ptr(), ptr::null(), &mut image) }, 0);
        // SAFETY: just opened; the second call touches what the first brought.
        assert_eq!(unsafe { vmstream::capi::vms_block_wait(image, VMS_READ, 0, IMAGE_BYTES) }, 0);
        let handle = Self { image, needed: black_box(vms_block_needed), done: black_box(vms_block_done) };
        assert_eq!(handle.needed(VMS_READ, 0, IMAGE_BYTES), VMS_READY);
        handle
    }

    fn needed(&self, op: i32, offset: u64, length: u64) -> i32 {
        // SAFETY: open until `close`.
        unsafe { (self.needed)(self.image, op, offset, length, 0) }
    }

    fn done(&self, op: i32, offset: u64, length: u64) -> i32 {
        // SAFETY: open until `close`.
        unsafe { (self.done)(self.image, op, offset, length, 0) }
    }

    fn read(&self, length: u64, calls: u64) {
        for call in 0..calls {
            assert_eq!(self.needed(VMS_READ, place(call, length), length), VMS_READY);
        }
    }

    fn write(&self, length: u64, calls: u64) {
        for call in 0..calls {
            let offset = place(call, length);
            assert_eq!(self.needed(VMS_WRITE, offset, length), VMS_READY);
            assert_eq!(self.done(VMS_WRITE, offset, length), 0);
        }
    }

    fn close(self) {
        // SAFETY: the last use of the handle.
        assert_eq!(unsafe { vms_close(self.image.cast_mut()) }, 0);
    }
}

/// A scattered offset that depends on the number of the call; aligned to `length`, a power of two.
fn place(call: u64, length: u64) -> u64 {
    call.wrapping_mul(0x9E37_79B9_7F4A_7C15) % (IMAGE_BYTES / length) * length
}

/// Nanoseconds a call, by `body` that makes so many.
fn time(calls: u64, body: impl FnOnce(u64)) -> f64 {
    let begun = Instant::now();
    body(calls);
    begun.elapsed().as_secs_f64() * 1e9 / calls as f64
}

pub fn run() {
    let handle = Handle::open();
    let image = Image::open([&format!("source=pattern:{IMAGE_BYTES}"), "fill=off", "prefetch=none"]);
    let image = image.expect("the image opens");
    image.block_wait(Op::Read, 0, IMAGE_BYTES).expect("the blocks come");
    assert_eq!(image.block_needed_raw(Op::Read, 0, IMAGE_BYTES, 0), Ok(Answer::Ready));

    let mut table = Table::new("gate: a resident block, ns a call", &["", "median", "min", "max", "promise"]);
    type Body<'a> = &'a dyn Fn(u64);
    let bodies: [(&str, Option<f64>, Body<'_>); 7] = [
        ("the loop alone", None, &|n| (0..n).for_each(|call| _ = black_box(place(call, 4096)))),
        ("C: needed, read 4 KiB", Some(10.0), &|n| handle.read(4096, n)),
        ("Rust: needed, read 4 KiB", Some(10.0), &|n| {
            for call in 0..n {
                let answer = image.block_needed_raw(Op::Read, black_box(place(call, 4096)), 4096, 0);
                assert_eq!(answer, Ok(Answer::Ready));
            }
        }),
        ("C: needed, read 64 KiB", None, &|n| handle.read(64 << 10, n)),
        ("C: needed, read 1 MiB", None, &|n| handle.read(1 << 20, n)),
        ("C: needed + done, write 4 KiB", None, &|n| handle.write(4096, n)),
        ("C: needed + done, write 64 KiB", None, &|n| handle.write(64 << 10, n)),
    ];
    for (name, promise, body) in bodies {
        let mut times = Samples::default();
        times.extend((0..REPETITIONS).map(|_| time(CALLS / 4, body)));
        table.row(&[
            &name,
            &number(times.median(), 2),
            &number(times.quantile(0.0), 2),
            &number(times.quantile(1.0), 2),
            &promise.map_or(String::new(), |limit| at_most(times.median(), limit)),
        ]);
    }
    drop(table);
    threads(&handle);

    let mut table = Table::new("gate: side effects of a million calls of each kind", &["", "count", "promise"]);
    let calls = 1_000_000;
    let made = allocations::during(|| {
        handle.read(4096, calls);
        handle.read(64 << 10, calls);
        handle.write(4096, calls);
    });
    let works = allocations::during(|| _ = black_box(Box::new(calls)));
    table.row(&[&"allocations", &made, &at_most(made as f64, 0.0)]);
    table.row(&[&"allocations of one Box::new, to check the counter", &works, &at_least(works as f64, 1.0)]);
    for (name, control) in
        [("killed for a system call", false), ("killed for a deliberate getppid, to check the filter", true)]
    {
        let killed = u32::from(is_killed_behind_filter(control));
        let promise = if control { at_least(killed.into(), 1.0) } else { at_most(killed.into(), 0.0) };
        table.row(&[&name, &killed, &promise]);
    }
    handle.close();
}

/// One thread against two, by turns.
///
/// By wall time the ratio also shows what else runs on the machine. By the processor time that the threads were given it
/// shows what they do to each other, which is what the gate is answerable for.
fn threads(handle: &Handle) {
    let mut table =
        Table::new("gate: reads of 4 KiB, million calls a second", &["", "median", "min", "max", "promise"]);
    let mut lines: [Samples; 5] = Default::default();
    for _ in 0..REPETITIONS {
        let [one, two] = [1, 2].map(|threads| rates(handle, threads));
        for (line, value) in lines.iter_mut().zip([one.0, two.0, two.0 / one.0, two.1, two.1 / one.1]) {
            line.add(value);
        }
    }
    let names = ["one thread", "two threads", "ratio", "two threads, by processor time", "ratio, by processor time"];
    for (name, samples) in names.into_iter().zip(&lines) {
        let promised = name == "ratio, by processor time";
        table.row(&[
            &name,
            &number(samples.median(), 2),
            &number(samples.quantile(0.0), 2),
            &number(samples.quantile(1.0), 2),
            &(if promised { at_least(samples.median(), 1.8) } else { String::new() }),
        ]);
    }
}

/// Calls of all threads together, in millions a second of wall time and of processor time.
fn rates(handle: &Handle, threads: u64) -> (f64, f64) {
    let barrier = Barrier::new(threads as usize);
    let times: Vec<(f64, f64)> = std::thread::scope(|scope| {
        let work = || {
            barrier.wait();
            let begun = processor_time();
            let wall = time(CALLS, |n| handle.read(4096, n));
            (wall, (processor_time() - begun) * 1e9 / CALLS as f64)
        };
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        running.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let slowest = times.iter().map(|time| time.0).fold(0.0, f64::max);
    (threads as f64 * 1e3 / slowest, times.iter().map(|time| 1e3 / time.1).sum())
}

/// Seconds of processor time that this thread was given so far.
fn processor_time() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

fn is_killed_behind_filter(control: bool) -> bool {
    let mut command = part(FILTERED);
    if control {
        command.arg("control");
    }
    let status = command.stdout(Stdio::null()).status().expect("the process starts");
    assert!(status.success() || status.signal() == Some(libc::SIGSYS), "{status}");
    !status.success()
}

/// Body of the process behind the filter: ends well when no call entered the kernel.
pub fn run_filtered() -> ExitCode {
    let handle = Handle::open();
    forbid_system_calls();
    handle.read(4096, 100_000);
    handle.read(64 << 10, 100_000);
    handle.write(4096, 100_000);
    if std::env::args().nth(1).is_some() {
        // SAFETY: takes nothing, changes nothing; the filter kills this process here.
        unsafe { libc::getppid() };
    }
    // SAFETY: ends the process without another call.
    unsafe { libc::_exit(0) }
}

/// From here on the calling thread dies of every system call but `write` and `exit_group`, and its process with it.
fn forbid_system_calls() {
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let answer = libc::BPF_RET | libc::BPF_K;
    let line = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    // Word 0 of what the filter sees is the number of the call.
    let mut program = [
        line(load, 0, 0, 0),
        line(equal, 2, 0, libc::SYS_write as u32),
        line(equal, 1, 0, libc::SYS_exit_group as u32),
        line(answer, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
        line(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: both calls take plain numbers but for the filter, which lives until they return.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter), 0);
    }
}

//! Runs the C tests (`tests/c/run.sh`) against the library that cargo built for these tests.

use std::path::Path;
use std::process::Command;

/// Bytes of stack that the I/O path may use where nothing is inlined; the header's promise of 1 KiB is for release
/// builds.
const STACK_BYTES_MAX_DEBUG: &str = "3072";

#[test]
fn c_programs_find_every_promise_of_the_header_kept() {
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    if Command::new(&compiler).arg("--version").output().is_err() {
        println!("SKIPPED: C tests: there is no C compiler named {compiler}; install gcc or set CC");
        return;
    }
    // The test lies beside the libraries: target/PROFILE/deps.
    let test = std::env::current_exe().unwrap();
    let libraries = test.parent().unwrap();
    assert!(libraries.join("libvmstream.so").exists(), "no libvmstream.so in {}", libraries.display());

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c/run.sh");
    let mut run = Command::new(script);
    run.arg(libraries);
    if cfg!(debug_assertions) {
        run.env("VMS_STACK_MAX", STACK_BYTES_MAX_DEBUG);
    }
    let output = run.output().unwrap();
    println!("{}", String::from_utf8_lossy(&output.stdout));
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "some of the C tests failed; the list is above");
}

//! Build script: gives the shared library its name for the dynamic linker.

use std::env;
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");

    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        // Versions that may replace each other share a name: 0.N.x while the major version is 0, then N.x.
        let (major, minor) = (env::var("CARGO_PKG_VERSION_MAJOR")?, env::var("CARGO_PKG_VERSION_MINOR")?);
        let abi = if major == "0" { format!("0.{minor}") } else { major };
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libvmstream.so.{abi}");
        // Lazy binding resolves a function at its first call on the caller's stack, and that may be the 4 KiB stack
        // of a disk thread of User-Mode Linux.
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,now");
    }

    Ok(())
}

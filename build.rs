//! Build script: gives the shared library its name and the way it is bound.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
        return;
    }
    let part = |name: &str| env::var(format!("CARGO_PKG_VERSION_{name}")).unwrap_or_default();
    // Versions that may not replace each other get different names: 0.N while the major version is 0, then N.
    let major = part("MAJOR");
    let abi = if major == "0" { format!("0.{}", part("MINOR")) } else { major };
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libvmstream.so.{abi}");
    // Lazy binding would resolve a function at its first call on the caller's stack, with some 3.5 KiB of it; and that
    // may be the one-page stack of a disk thread of User-Mode Linux.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,now");
}

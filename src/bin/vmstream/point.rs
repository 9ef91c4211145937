//! What a restore point consists of: the files that `vmstream snapshot` leaves, the regions of the one image that
//! `vmstream publish` makes of them, and the machine they belong to.
//!
//! One image for all of it, so that one root hash covers it, one cache holds it, and the predictor weighs pages of memory and
//! blocks of the disk against each other without knowing which is which. `docs/restore.md` tells the rest.

pub mod argv;
pub mod boot;
pub mod machine;
pub mod qmp;
pub mod regions;
pub mod start;

/// What the disk is called: in the directory of a snapshot, and in the directory where an image is shown.
pub const DISK: &str = "disk.raw";
/// The guest's memory.
pub const MEMORY: &str = "memory.raw";
/// The state of the devices, as QEMU migrates it.
pub const STATE: &str = "state.bin";
/// The description of the machine.
pub const MACHINE: &str = "machine";

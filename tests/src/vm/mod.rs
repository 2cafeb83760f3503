//! Virtual machines: guests with another kernel than the development host's, on which the same
//! lab runs.
//!
//! ```text
//! development host                             guest
//! VmHost::spawn --- commands (unix socket) -+
//! VmHost::spawn ----------------------------+ mux === virtio-serial === agent --- the command
//!                                           |                           init (process 1)
//! ```
//!
//! A guest starts from three disks: the test root (written to in a snapshot that goes with the
//! guest), its kernel's modules, and netmig's programs, so that a rebuilt program costs a small
//! image only. The images are kept by content in the cache.

mod cpio;
mod emulator;
mod error;
mod host;
mod kernel;
mod machine;
mod mux;
mod pair;
mod qemu;
mod session;
mod work_directory;

pub mod client;
pub mod frame;
pub mod guest;
pub mod image;
pub mod initramfs;
pub mod stories;

pub use emulator::Emulator;
pub use error::Error;
pub use host::VmHost;
pub use kernel::Kernel;
pub use machine::{Card, INIT, PROGRAMS, Spec, Started, Vm};
pub use pair::Pair;

use std::path::PathBuf;

/// A disk of a guest.
#[derive(Debug, Clone)]
pub struct Disk {
    /// The ext4 image.
    pub image: PathBuf,
    /// Where it is mounted.
    pub mount_point: String,
    /// Writes are possible; they never reach the image.
    pub writable: bool,
}

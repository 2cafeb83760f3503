//! The lab as a library: hosts `a`, `b` and `peer` on one Ethernet segment, on one machine, where netmig can be tried, tested and
//! measured.
//!
//! ```no_run
//! # fn main() -> Result<(), netmig_lab::Error> {
//! use netmig_lab::{Host as _, Lab, Options};
//! let lab = Lab::temporary("story", &Options::default())?;
//! assert_eq!(lab.a().run(&["ssh", "b", "hostname"])?, "b");
//! # Ok(()) }
//! ```
//!
//! A [`Host`] is a trait: here a set of namespaces over the test root file system ([`NamespaceHost`]), elsewhere a virtual machine.
//! A [`Lab`] is held together by one helper process (the keeper); when that ends, nothing of the lab is left running.
mod asked;
pub mod demo;
pub mod error;
pub mod gauge;
pub mod handing;
pub mod host;
pub mod lab;
pub mod peers;
pub mod random;
pub mod root;
pub mod soak;
pub mod vm;
pub mod workload;

pub use error::Error;
pub use host::{Cmd, Host, Input, NamespaceHost, Output, Process};
pub use lab::{Bind, Image, Lab, Options, helper_main, helper_main_if_called};

//! A container whose peers know it by addresses of its host: service addresses (`--service-address`).
//!
//! Its bridge leads nowhere else, and the host translates: to the container what comes for the service address, from the container what it
//! sends. What the host tracks of such a connection moves with it ([`super::conntrack`]), and so does the service address, unless the target
//! has it by itself. [`here`] is the source's look and [`there`] the target's; [`fate`] says which connections survive; [`silence`] keeps the
//! source from speaking for an address that the target has, and [`gone`] from answering for connections that it has no more; [`address`] takes it off and puts it on.
pub mod address;
pub mod fate;
pub mod gone;
pub mod here;
mod rules;
pub mod silence;
pub mod there;

pub use here::{Against, Here};
pub use there::There;

//! Version 1 of the image.
pub mod conntrack;
pub mod filter;
pub mod net;
mod queue;
pub mod sock;

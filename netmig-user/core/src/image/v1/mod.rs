//! Version 1 of the image.
pub mod net;
pub mod sock;

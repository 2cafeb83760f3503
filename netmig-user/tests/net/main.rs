//! The container's network, in namespaces of the test's own: two hosts, a segment between them, containers on it.
mod document;
mod filters;
mod inside;
mod random;
mod round_trip;
mod segment;
mod service;
mod shaping;
mod silence;
mod tracked;
mod undo;
mod where_it_lives;
mod world;

//! Everything that travels. One module a version; a version's types are frozen once released.
pub mod v1;

//! Tests that need a kernel, and root: each has namespaces and a bpffs of its own.
mod drain;
mod hold;
mod keeper;
mod kept;
pub(crate) mod lab;
mod links;
mod live;
mod load;
#[cfg(feature = "aya-log")]
mod log;
mod modes;
mod packets;
mod rewrite;
mod word;

//! Between hosts: pipes to the other agent, what opens them, and the control link that survives them.
pub mod destination;
pub mod dial;
pub mod link;
pub mod measure;
pub mod pipe;
mod ssh;
pub mod tls;

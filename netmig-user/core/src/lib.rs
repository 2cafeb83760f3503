//! What a move is, without any I/O: identifiers, the two state machines, the messages between hosts, the image that
//! travels, the plan and the report. Knows neither tokio nor nix nor aya.
pub mod container;
pub mod frame;
pub mod id;
pub mod image;
pub mod journal;
pub mod link;
pub mod machine;
pub mod plan;
pub mod proto;
pub mod report;
pub mod service;
pub mod socket;

//! netmig: moves a running container with its open connections to another host.
//!
//! Direction: cli -> driver -> {core, gate, sock, net, engine, wire}; gate, sock and net see neither engine nor wire nor each other;
//! engine -> runtime. All of gate, sock, net, engine and runtime block: the driver calls them on blocking threads.
pub mod agent;
pub mod cli;
pub mod driver;
pub mod engine;
pub mod files;
pub mod gate;
pub mod host;
pub mod net;
pub mod runtime;
pub mod sock;
pub mod sys;
pub mod wire;

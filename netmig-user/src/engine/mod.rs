//! What moves the processes: CRIU run by the container's own runtime, or the program itself (handoff).
//!
//! The `criu` engine never calls CRIU. The container's runtime does, through [`criu::shim`]; CRIU calls a hook at its action points, and the
//! hook hands the moment to the agent ([`criu::hook`]). So the engine is only: make ready ([`criu::Kit`]), start a runtime command under a
//! supervisor ([`job`]), answer its hooks, look at its end.
pub mod cgroup;
pub mod criu;
pub mod facts;
pub mod job;
pub mod memory;
pub mod task;

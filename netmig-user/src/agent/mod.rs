//! The resident agent of a host: one process, detached from whoever started it, that holds every move of this host.
//!
//! Everything reaches it through one unix socket ([`paths::socket`]): clients (`migrate`, `recover`, ...), CRIU's hooks, the runtime shims,
//! and the pipes of `agent --stdio` and `agent --listen` behind which another host's agent speaks. Whoever needs it and finds none starts it
//! ([`start::connect`]); while a move is under way somebody always does ([`guard`]).
pub mod guard;
pub mod hook;
pub mod kept;
pub mod listen;
pub mod local;
pub mod pace;
pub mod paths;
pub mod resident;
pub mod start;
pub mod stdio;

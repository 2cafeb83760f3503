//! The two state machines of a move: events in, actions out; no clock, no socket, no file.
//!
//! A driver feeds [`source::Event`]s (or [`target::Event`]s) and performs the actions that come out, in order. An action that takes
//! time is started and its end comes back as an event. What must be durable is `Persist`; what depends on it comes out only after `Persisted`.
pub mod source;
pub mod target;

#[cfg(test)]
mod tests;

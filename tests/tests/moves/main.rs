//! Whole moves between the hosts of a lab: with each runtime, beside other containers, refused ones, and with everything that can break
//! breaking in between.
mod beside;
mod blackout;
mod bundle;
mod catcher;
mod container;
mod content;
mod faults;
mod gate;
mod gauge;
mod going;
mod guardian;
mod handoff;
mod hold;
mod keeper;
mod load;
mod machines;
mod network;
mod orphans;
mod pairs;
mod refusals;
mod restarting;
mod service;
mod soak;
mod story;
mod tls;
mod waiting;

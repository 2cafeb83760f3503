//! The gate: load, attach, pin, modes, lease, grant, counters.

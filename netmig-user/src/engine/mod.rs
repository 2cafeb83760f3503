//! What moves the processes: CRIU run by the container's own runtime, or the program itself (handoff).

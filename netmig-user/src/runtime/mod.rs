//! What the container belongs to: podman, runc, crun.

//! The container's sockets: enumeration, dump and restore.

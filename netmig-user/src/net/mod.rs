//! The container's network: snapshot, creation behind a closed gate, announcement, removal.

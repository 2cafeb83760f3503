//! The container's sockets.
use serde::{Deserialize, Serialize};

/// All sockets of one container, as one dump found them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sockets {}

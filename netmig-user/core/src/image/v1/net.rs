//! The container's network: links, addresses, routes, sysctls.
use serde::{Deserialize, Serialize};

/// The network of one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {}

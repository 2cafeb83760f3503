//! Traffic shaping: queueing disciplines, their classes and the filters on them.
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Parent of a link's outermost discipline.
pub const TC_H_ROOT: u32 = 0xffff_ffff;
/// Parent of `ingress` and `clsact`, which lie beside what a link sends.
pub const TC_H_INGRESS: u32 = 0xffff_fff1;

/// A queueing discipline. Those that the kernel gives to a link or class by itself have no handle, and are not written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Discipline {
    /// Name of the link.
    pub link: String,
    /// Handle: its major number in the upper 16 bits.
    pub handle: u32,
    /// [`TC_H_ROOT`], [`TC_H_INGRESS`], or the class that it lies on.
    pub parent: u32,
    /// Kind: `htb`, `tbf`, `fq_codel`, ...
    pub kind: String,
    /// TCA_OPTIONS as the kernel takes them; numbers are in the order of the architecture. Empty: none.
    pub options: Vec<u8>,
    /// Its classes, sorted, where they do not come with it.
    pub classes: Vec<Class>,
    /// What lies on it and on its classes and can be given back, in the order in which it is asked.
    #[serde(default)]
    pub filters: Vec<Filter>,
}

/// A class of a [`Discipline`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Class {
    /// Its number: the discipline's handle, and its own in the lower 16 bits.
    pub handle: u32,
    /// [`TC_H_ROOT`], or the class that it lies in.
    pub parent: u32,
    /// TCA_OPTIONS as the kernel takes them. Empty: none.
    pub options: Vec<u8>,
}

/// A filter on a [`Discipline`] or one of its classes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Filter {
    /// The discipline, the class, or one of the two sides of `clsact`.
    pub parent: u32,
    /// Chain.
    pub chain: u32,
    /// Lower is asked first.
    pub priority: u16,
    /// ETH_P_* of the packets that it looks at.
    pub protocol: u16,
    /// Its number among those of its priority.
    pub handle: u32,
    /// Kind: `u32`, `flower`, ...
    pub kind: String,
    /// TCA_OPTIONS as the kernel takes them, without the indices of links.
    pub options: Vec<u8>,
    /// Names of the links that its actions lead to, in their order.
    pub devices: Vec<String>,
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            priority,
            handle,
            ..
        } = self;
        write!(f, "{kind} filter {handle:x} of preference {priority}")
    }
}

impl Discipline {
    /// Handle of the discipline whose class it lies on; none: it is the link's outermost.
    pub fn below(&self) -> Option<u32> {
        (!matches!(self.parent, TC_H_ROOT | TC_H_INGRESS)).then_some(self.parent & 0xffff_0000)
    }
}

impl fmt::Display for Discipline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { link, kind, .. } = self;
        write!(
            f,
            "queueing discipline {kind} {:x}: of link {link}",
            self.handle >> 16
        )
    }
}

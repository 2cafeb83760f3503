//! Traffic shaping: queueing disciplines and their classes.
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Parent of a link's outermost discipline.
pub const TC_H_ROOT: u32 = 0xffff_ffff;

/// A queueing discipline. Those that the kernel gives to a link or class by itself have no handle, and are not written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Discipline {
    /// Name of the link.
    pub link: String,
    /// Handle: its major number in the upper 16 bits.
    pub handle: u32,
    /// [`TC_H_ROOT`], or the class that it lies on.
    pub parent: u32,
    /// Kind: `htb`, `tbf`, `fq_codel`, ...
    pub kind: String,
    /// TCA_OPTIONS as the kernel takes them; numbers are in the order of the architecture. Empty: none.
    pub options: Vec<u8>,
    /// Its classes, sorted, where they do not come with it.
    pub classes: Vec<Class>,
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

impl Discipline {
    /// Handle of the discipline whose class it lies on; none: it is the link's outermost.
    pub fn below(&self) -> Option<u32> {
        (self.parent != TC_H_ROOT).then_some(self.parent & 0xffff_0000)
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

//! The packet filters of a namespace: nf_tables, iptables on either of its two grounds, ipsets.
//!
//! They travel as the text that their own tools write and read. nft's JSON would be easier to look into, and loses on the way back what
//! its text keeps: counters and limits of set elements, comments of sets, fractions of a lifetime, in older versions a chain's device.
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// All filters of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Filters {
    /// Sets of ipset, as `ipset save -sorted` writes them, line by line.
    pub ipsets: Vec<String>,
    /// Tables of nf_tables, in the kernel's order, without those in `xtables`.
    pub nft: Vec<Table>,
    /// Tables of iptables and its like, as their `-save` programs write them.
    pub xtables: Vec<XTable>,
    /// The table of arptables on the kernel's own x_tables.
    #[serde(default)]
    pub arptables: Option<ArpTable>,
    /// What there is and cannot be carried, in words: each names its object and what to do.
    pub lost: Vec<String>,
    /// The operator goes on without what cannot be carried or made.
    pub partial: bool,
}

impl Filters {
    /// Whether there is nothing to make.
    pub fn is_empty(&self) -> bool {
        self.ipsets.is_empty()
            && self.nft.is_empty()
            && self.xtables.is_empty()
            && self.arptables.is_none()
    }
}

/// A table of nf_tables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Table {
    /// `ip`, `ip6`, `inet`, `arp`, `bridge`, `netdev`.
    pub family: String,
    /// Name.
    pub name: String,
    /// What `nft list table` writes, line by line: from `table` to the last brace.
    pub lines: Vec<String>,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nft table {} {}", self.family, self.name)
    }
}

/// A table of iptables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct XTable {
    /// Whose it is.
    pub program: XProgram,
    /// Name: `filter`, `nat`, `mangle`, `raw`, `security`, `broute`.
    pub name: String,
    /// What the `-save` program writes with `-c`, line by line: from `*NAME` to `COMMIT`, which those of ARP and bridges do not write.
    pub lines: Vec<String>,
}

impl fmt::Display for XTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} table {}", self.program, self.name)
    }
}

/// A table of arptables as the kernel has it (struct arpt_replace).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ArpTable {
    /// The hooks that it has, as bits: in, out, forward.
    pub hooks: u32,
    /// Where the rules of each hook begin, in bytes.
    pub begins: [u32; 3],
    /// Where the policy of each hook is, in bytes.
    pub policies: [u32; 3],
    /// How many entries there are: rules, policies, heads of chains.
    pub count: u32,
    /// struct arpt_entry, each with its target.
    pub entries: Vec<u8>,
}

impl fmt::Display for ArpTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("arptables-legacy table filter")
    }
}

/// The program that has made a table of iptables, and on what ground.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum XProgram {
    /// IPv4, on nf_tables.
    IptablesNft,
    /// IPv6, on nf_tables.
    Ip6tablesNft,
    /// IPv4, the kernel's own x_tables.
    IptablesLegacy,
    /// IPv6, the kernel's own x_tables.
    Ip6tablesLegacy,
    /// ARP, on nf_tables.
    ArptablesNft,
    /// Bridges, on nf_tables.
    EbtablesNft,
}

impl XProgram {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::IptablesNft,
        Self::Ip6tablesNft,
        Self::IptablesLegacy,
        Self::Ip6tablesLegacy,
        Self::ArptablesNft,
        Self::EbtablesNft,
    ];

    /// Its name; with `-save` and `-restore` behind it, the names of the programs that write and read tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::IptablesNft => "iptables-nft",
            Self::Ip6tablesNft => "ip6tables-nft",
            Self::IptablesLegacy => "iptables-legacy",
            Self::Ip6tablesLegacy => "ip6tables-legacy",
            Self::ArptablesNft => "arptables-nft",
            Self::EbtablesNft => "ebtables-nft",
        }
    }
}

impl fmt::Display for XProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

//! Protocols and states.
use serde::{Deserialize, Serialize};
use std::fmt;

/// Which protocol a socket speaks.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// TCP, over IPv4 or IPv6.
    Tcp,
    /// Multipath TCP.
    Mptcp,
    /// UDP.
    Udp,
    /// UDP-Lite.
    UdpLite,
    /// ICMP datagram socket (`ping`).
    Ping,
    /// Raw IP.
    Raw,
    /// SCTP.
    Sctp,
    /// AF_UNIX.
    Unix,
    /// AF_PACKET.
    Packet,
    /// AF_NETLINK.
    Netlink,
    /// AF_VSOCK.
    Vsock,
    /// AF_XDP.
    Xdp,
    /// AF_SMC.
    Smc,
    /// Any other address family, by its number.
    Family(u16),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Tcp => "tcp",
            Self::Mptcp => "mptcp",
            Self::Udp => "udp",
            Self::UdpLite => "udplite",
            Self::Ping => "ping",
            Self::Raw => "raw",
            Self::Sctp => "sctp",
            Self::Unix => "unix",
            Self::Packet => "packet",
            Self::Netlink => "netlink",
            Self::Vsock => "vsock",
            Self::Xdp => "xdp",
            Self::Smc => "smc",
            Self::Family(n) => return write!(f, "family {n}"),
        };
        f.write_str(name)
    }
}

/// TCP's states (RFC 9293, 3.3.2), which sock_diag uses for the other kinds too: a datagram socket is `Established` when it is
/// connected and `Close` when it is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Connected.
    Established,
    /// SYN sent.
    SynSent,
    /// SYN received: in a listener's SYN queue.
    SynRecv,
    /// FIN sent, not acknowledged.
    FinWait1,
    /// FIN sent and acknowledged.
    FinWait2,
    /// Only its port is still protected.
    TimeWait,
    /// Neither connected nor listening.
    Close,
    /// FIN received.
    CloseWait,
    /// FIN received and sent, not acknowledged.
    LastAck,
    /// Listening.
    Listen,
    /// FIN sent and received, ours not acknowledged.
    Closing,
}

impl fmt::Display for State {
    /// As JSON has it: `close-wait`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

impl State {
    /// From the kernel's number (include/net/tcp_states.h); `TCP_NEW_SYN_RECV` counts as SYN_RECV, `TCP_BOUND_INACTIVE` as CLOSE.
    pub fn from_kernel(n: u8) -> Self {
        match n {
            1 => Self::Established,
            2 => Self::SynSent,
            3 | 12 => Self::SynRecv,
            4 => Self::FinWait1,
            5 => Self::FinWait2,
            6 => Self::TimeWait,
            8 => Self::CloseWait,
            9 => Self::LastAck,
            10 => Self::Listen,
            11 => Self::Closing,
            _ => Self::Close,
        }
    }
}

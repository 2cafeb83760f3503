//! The table: kind of socket x engine, who does what, and what becomes of it.
use serde::{Deserialize, Serialize};
use std::fmt;

use super::Fate;

/// What the rules tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// TCP, connected both ways, with a descriptor.
    TcpEstablished,
    /// TCP whose peer has sent its FIN, with a descriptor.
    TcpCloseWait,
    /// TCP that has sent its FIN, with a descriptor (FIN_WAIT1, FIN_WAIT2, CLOSING, LAST_ACK after shutdown).
    TcpShut,
    /// TCP that was closed by its process, no descriptor: only FINs are under way.
    TcpOrphan,
    /// The same with bytes to send, with its other end in the container, or on a kernel that does not let it be read.
    TcpOrphanStuck,
    /// TCP connection in an accept queue.
    TcpEmbryo,
    /// The same on a kernel that cannot put it back.
    TcpEmbryoStuck,
    /// TCP in TIME_WAIT.
    TcpTimeWait,
    /// The same with its other end in the container: it may end, for none of its segments is left.
    TcpTimeWaitInside,
    /// The same on a kernel that does not let it be read.
    TcpTimeWaitStuck,
    /// TCP whose connect() is under way.
    TcpSynSent,
    /// TCP in a SYN queue.
    TcpSynRecv,
    /// The same with its other end in the container, begun with data (TCP_FASTOPEN), or on a kernel that does not let it be read and put back.
    TcpSynRecvStuck,
    /// TCP listener.
    TcpListen,
    /// TCP neither connected nor listening.
    TcpClosed,
    /// TCP connection that is over while a descriptor holds it.
    TcpOver,
    /// TCP with an upper-layer protocol (kTLS, ...) that the kernel does not let out.
    TcpUlp,
    /// TCP that carries a path of an MPTCP connection.
    MptcpPath,
    /// TCP that no process of the container holds although it has an inode: another process has it, or it is under way in a message.
    TcpElsewhere,
    /// MPTCP, listening or connected.
    Mptcp,
    /// UDP with an empty receive queue.
    Udp,
    /// UDP with datagrams that wait to be read.
    UdpQueued,
    /// UDP with a datagram under construction (UDP_CORK, MSG_MORE).
    UdpCorked,
    /// UDP-Lite.
    UdpLite,
    /// ICMP datagram socket.
    Ping,
    /// Raw IP.
    Raw,
    /// SCTP.
    Sctp,
    /// AF_UNIX, all ends inside the container.
    Unix,
    /// AF_UNIX, connected to a process outside of the container.
    UnixOutside,
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
    /// The kernel's own.
    Kernel,
    /// Not TCP, and no process of the container holds it: a neighbour's in the same namespace, or under way in a message.
    Foreign,
    /// Held by the container, but made in another network namespace.
    OtherNetns,
    /// Any other family.
    Other,
}

impl fmt::Display for Class {
    /// As JSON and `--allow` have it: `tcp-orphan`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// What moves the processes, as far as sockets are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// CRIU, run by the container's runtime.
    Criu,
    /// The program saves and loads itself and hands its descriptors over.
    Handoff,
}

/// Who does a part of the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The engine.
    Engine,
    /// netmig, through a duplicate of the descriptor.
    Netmig,
    /// Nobody.
    Nobody,
}

/// [`Fate`] in a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// [`Fate::Moves`].
    Moves,
    /// [`Fate::MovesWithout`].
    Without(&'static [&'static str]),
    /// [`Fate::Reset`].
    Reset(&'static str),
    /// [`Fate::Refused`].
    Refused(&'static str),
}

impl From<Verdict> for Fate {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Moves => Self::Moves,
            Verdict::Without(what) => {
                Self::MovesWithout(what.iter().map(|&w| w.to_owned()).collect())
            }
            Verdict::Reset(why) => Self::Reset(why.to_owned()),
            Verdict::Refused(why) => Self::Refused(why.to_owned()),
        }
    }
}

/// One class under one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Which sockets.
    pub class: Class,
    /// Under which engine.
    pub engine: Engine,
    /// Who makes the descriptor at the target.
    pub creates: By,
    /// Who sets its options.
    pub options: By,
    /// Who fills its queues and its state.
    pub queues: By,
    /// What comes of it.
    pub verdict: Verdict,
}

const fn rule(class: Class, engine: Engine, by: [By; 3], verdict: Verdict) -> Rule {
    Rule {
        class,
        engine,
        creates: by[0],
        options: by[1],
        queues: by[2],
        verdict,
    }
}

const TRIO: [By; 3] = [By::Engine, By::Netmig, By::Netmig];
const ENGINE: [By; 3] = [By::Engine, By::Engine, By::Engine];
const NOBODY: [By; 3] = [By::Nobody, By::Nobody, By::Nobody];
const SELF_MADE: [By; 3] = [By::Netmig, By::Netmig, By::Netmig];

/// What TCP_REPAIR does not carry; no loss where it was not negotiated.
pub const ECN: &str = "ECN";
/// What a datagram that is delivered again does not keep; no loss where none waits.
pub const ARRIVALS: &str = "arrival times of queued datagrams";

/// Every class under every engine.
pub const RULES: &[Rule] = {
    use Class::*;
    use Engine::{Criu, Handoff};
    use Verdict::{Moves, Refused, Reset, Without};
    const QUEUED: &str = "an accept queue is carried from Linux 6.9 on; move when it is accepted";
    const NO_ECN: Verdict = Without(&[ECN]);
    const NO_NEED: &str = "both its ends are in the container: with the namespace its segments end too, none can be late";
    const NO_PORT: &str = "the port is not protected at the target";
    const CLOSED: &str = "its program has closed it, and its peer is in the container or this kernel does not let it be read; move when it has ended";
    const RETRY: &str = "the peer repeats its SYN";
    const OPAQUE: &str = "the kernel does not let its state out; close it before the move";
    const MPTCP: &str = "CRIU refuses MPTCP descriptors; run the program without MPTCP (Go: GODEBUG=multipathtcp=0)";
    const ANEW: &str =
        "only TCP and UDP descriptors can be handed over; the program makes it anew at the target";
    &[
        rule(TcpEstablished, Criu, TRIO, NO_ECN),
        rule(TcpCloseWait, Criu, TRIO, NO_ECN),
        rule(TcpShut, Criu, TRIO, NO_ECN),
        rule(TcpOrphan, Criu, SELF_MADE, Moves),
        rule(TcpOrphanStuck, Criu, NOBODY, Reset(CLOSED)),
        rule(TcpEmbryo, Criu, SELF_MADE, Moves),
        rule(TcpEmbryoStuck, Criu, NOBODY, Reset(QUEUED)),
        rule(TcpTimeWait, Criu, SELF_MADE, Moves),
        rule(TcpTimeWaitInside, Criu, NOBODY, Reset(NO_NEED)),
        rule(TcpTimeWaitStuck, Criu, NOBODY, Reset(NO_PORT)),
        rule(TcpSynSent, Criu, TRIO, Moves),
        rule(TcpSynRecv, Criu, SELF_MADE, Moves),
        rule(TcpSynRecvStuck, Criu, NOBODY, Reset(RETRY)),
        rule(TcpListen, Criu, ENGINE, Moves),
        rule(TcpClosed, Criu, ENGINE, Moves),
        rule(TcpOver, Criu, TRIO, Moves),
        rule(TcpUlp, Criu, NOBODY, Refused(OPAQUE)),
        rule(MptcpPath, Criu, NOBODY, Refused(MPTCP)),
        rule(
            TcpElsewhere,
            Criu,
            NOBODY,
            Reset("no descriptor of the container's processes holds it"),
        ),
        rule(Mptcp, Criu, NOBODY, Refused(MPTCP)),
        rule(Udp, Criu, TRIO, Moves),
        rule(UdpQueued, Criu, TRIO, Without(&[ARRIVALS])),
        rule(
            UdpCorked,
            Criu,
            NOBODY,
            Refused("CRIU refuses a corked datagram; move when it is sent"),
        ),
        rule(UdpLite, Criu, TRIO, Without(&[ARRIVALS])),
        rule(
            Ping,
            Criu,
            NOBODY,
            Refused("CRIU does not know ICMP datagram sockets; close it before the move"),
        ),
        rule(
            Raw,
            Criu,
            [By::Engine, By::Engine, By::Nobody],
            Without(&["receive queue"]),
        ),
        rule(
            Sctp,
            Criu,
            NOBODY,
            Refused("neither CRIU nor netmig moves SCTP"),
        ),
        rule(Unix, Criu, ENGINE, Moves),
        rule(
            UnixOutside,
            Criu,
            NOBODY,
            Refused(
                "the other end is outside of the container; close the connection before the move",
            ),
        ),
        rule(
            Packet,
            Criu,
            [By::Engine, By::Engine, By::Nobody],
            Without(&["receive queue"]),
        ),
        rule(
            Netlink,
            Criu,
            [By::Engine, By::Engine, By::Nobody],
            Without(&["receive queue"]),
        ),
        rule(
            Vsock,
            Criu,
            NOBODY,
            Refused("a vsock address belongs to its machine"),
        ),
        rule(Xdp, Criu, NOBODY, Refused("CRIU does not know AF_XDP")),
        rule(Smc, Criu, NOBODY, Refused("CRIU does not know AF_SMC")),
        rule(Kernel, Criu, NOBODY, Moves),
        rule(
            Foreign,
            Criu,
            NOBODY,
            Reset("no descriptor of the container's processes holds it"),
        ),
        rule(
            OtherNetns,
            Criu,
            NOBODY,
            Refused("it belongs to another network namespace; close it before the move"),
        ),
        rule(
            Other,
            Criu,
            NOBODY,
            Refused("CRIU does not know this address family"),
        ),
        rule(TcpEstablished, Handoff, SELF_MADE, NO_ECN),
        rule(TcpCloseWait, Handoff, SELF_MADE, NO_ECN),
        rule(TcpShut, Handoff, SELF_MADE, NO_ECN),
        rule(TcpOrphan, Handoff, SELF_MADE, Moves),
        rule(TcpOrphanStuck, Handoff, NOBODY, Reset(CLOSED)),
        rule(TcpEmbryo, Handoff, SELF_MADE, Moves),
        rule(TcpEmbryoStuck, Handoff, NOBODY, Reset(QUEUED)),
        rule(TcpTimeWait, Handoff, SELF_MADE, Moves),
        rule(TcpTimeWaitInside, Handoff, NOBODY, Reset(NO_NEED)),
        rule(TcpTimeWaitStuck, Handoff, NOBODY, Reset(NO_PORT)),
        rule(
            TcpSynSent,
            Handoff,
            NOBODY,
            Reset("its connect() is not carried; the program connects anew at the target"),
        ),
        rule(TcpSynRecv, Handoff, SELF_MADE, Moves),
        rule(TcpSynRecvStuck, Handoff, NOBODY, Reset(RETRY)),
        rule(TcpListen, Handoff, SELF_MADE, Moves),
        rule(TcpOver, Handoff, SELF_MADE, Moves),
        rule(
            TcpClosed,
            Handoff,
            NOBODY,
            Reset("not connected; the program makes it anew at the target"),
        ),
        rule(
            TcpUlp,
            Handoff,
            NOBODY,
            Reset("the kernel does not let its state out, so it cannot be handed over"),
        ),
        rule(
            MptcpPath,
            Handoff,
            NOBODY,
            Reset(
                "MPTCP sockets refuse TCP_REPAIR, so they cannot be handed over (Go: GODEBUG=multipathtcp=0)",
            ),
        ),
        rule(
            TcpElsewhere,
            Handoff,
            NOBODY,
            Reset("no descriptor was handed over for it"),
        ),
        rule(
            Mptcp,
            Handoff,
            NOBODY,
            Reset(
                "MPTCP sockets refuse TCP_REPAIR, so they cannot be handed over (Go: GODEBUG=multipathtcp=0)",
            ),
        ),
        rule(Udp, Handoff, SELF_MADE, Moves),
        rule(UdpQueued, Handoff, SELF_MADE, Without(&[ARRIVALS])),
        rule(
            UdpCorked,
            Handoff,
            NOBODY,
            Refused("a corked datagram is not carried; move when it is sent"),
        ),
        rule(UdpLite, Handoff, NOBODY, Reset(ANEW)),
        rule(Ping, Handoff, NOBODY, Reset(ANEW)),
        rule(Raw, Handoff, NOBODY, Reset(ANEW)),
        rule(Sctp, Handoff, NOBODY, Reset(ANEW)),
        rule(Unix, Handoff, NOBODY, Reset(ANEW)),
        rule(UnixOutside, Handoff, NOBODY, Reset(ANEW)),
        rule(Packet, Handoff, NOBODY, Reset(ANEW)),
        rule(Netlink, Handoff, NOBODY, Reset(ANEW)),
        rule(Vsock, Handoff, NOBODY, Reset(ANEW)),
        rule(Xdp, Handoff, NOBODY, Reset(ANEW)),
        rule(Smc, Handoff, NOBODY, Reset(ANEW)),
        rule(Kernel, Handoff, NOBODY, Moves),
        rule(
            Foreign,
            Handoff,
            NOBODY,
            Reset("no descriptor of the container's processes holds it"),
        ),
        rule(
            OtherNetns,
            Handoff,
            NOBODY,
            Reset("it belongs to another network namespace, so it cannot be handed over"),
        ),
        rule(Other, Handoff, NOBODY, Reset(ANEW)),
    ]
};

/// The rule for a class under an engine; every pair has one.
///
/// # Panics
/// If [`RULES`] lacks the pair; a test holds them all against the table.
pub fn rule_for(class: Class, engine: Engine) -> &'static Rule {
    match RULES
        .iter()
        .find(|r| r.class == class && r.engine == engine)
    {
        Some(rule) => rule,
        None => unreachable!("RULES has every class under every engine"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_class_has_one_rule_under_every_engine() {
        let classes: HashSet<Class> = RULES.iter().map(|r| r.class).collect();
        // schemars knows the variants; a class without a rule shows as a difference.
        let schema = serde_json::to_value(schemars::schema_for!(Class)).expect("a schema is JSON");
        let variants = schema["oneOf"].as_array().map_or(0, Vec::len);
        assert_eq!(classes.len(), variants, "{schema}");
        for class in classes {
            for engine in [Engine::Criu, Engine::Handoff] {
                let found = RULES
                    .iter()
                    .filter(|r| r.class == class && r.engine == engine)
                    .count();
                assert_eq!(found, 1, "{class:?} under {engine:?}");
            }
        }
    }

    #[test]
    fn only_tcp_and_udp_are_handed_over() {
        use Class::{
            TcpCloseWait, TcpEmbryo, TcpEstablished, TcpListen, TcpOrphan, TcpOver, TcpShut,
            TcpSynRecv, TcpTimeWait, Udp, UdpQueued,
        };
        let created: HashSet<Class> = RULES
            .iter()
            .filter(|r| r.engine == Engine::Handoff && r.creates != By::Nobody)
            .map(|r| r.class)
            .collect();
        let portable = [
            TcpEstablished,
            TcpCloseWait,
            TcpShut,
            TcpEmbryo,
            TcpOrphan,
            TcpTimeWait,
            TcpSynRecv,
            TcpListen,
            TcpOver,
            Udp,
            UdpQueued,
        ];
        assert_eq!(created, HashSet::from(portable));
        // No engine of another kind makes a socket where a program hands itself over.
        assert!(
            RULES
                .iter()
                .filter(|r| r.engine == Engine::Handoff)
                .all(|r| [r.creates, r.options, r.queues]
                    .iter()
                    .all(|by| *by != By::Engine))
        );
    }

    #[test]
    fn what_nobody_creates_does_not_move() {
        for r in RULES
            .iter()
            .filter(|r| r.creates == By::Nobody && r.class != Class::Kernel)
        {
            assert!(
                matches!(r.verdict, Verdict::Reset(_) | Verdict::Refused(_)),
                "{r:?}"
            );
        }
    }
}

//! A tracked connection in ctnetlink's messages.
use std::net::{IpAddr, Ipv4Addr};

use netmig_core::image::v1::{
    conntrack::{Adjustment, Connection, Key, TcpState, Tuple},
    net::Family,
};

use crate::net::{
    attr::{self, Attr, Message, af},
    netlink::{self, Reply},
};

// include/uapi/linux/netfilter/nfnetlink_conntrack.h
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_HELP: u16 = 5;
const CTA_NAT_SRC: u16 = 6;
const CTA_TIMEOUT: u16 = 7;
const CTA_MARK: u16 = 8;
const CTA_NAT_DST: u16 = 13;
const CTA_SEQ_ADJ_ORIG: u16 = 15;
const CTA_SEQ_ADJ_REPLY: u16 = 16;
const CTA_ZONE: u16 = 18;
const CTA_LABELS: u16 = 22;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTO_ICMP_ID: u16 = 4;
const CTA_PROTO_ICMP_TYPE: u16 = 5;
const CTA_PROTO_ICMP_CODE: u16 = 6;
/// ICMPv6's attributes have the numbers of ICMP's and three more.
const ICMPV6: u16 = 3;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
const CTA_PROTOINFO_TCP_WSCALE_ORIGINAL: u16 = 2;
const CTA_PROTOINFO_TCP_WSCALE_REPLY: u16 = 3;
const CTA_PROTOINFO_TCP_FLAGS_ORIGINAL: u16 = 4;
const CTA_PROTOINFO_TCP_FLAGS_REPLY: u16 = 5;
const CTA_SEQADJ_CORRECTION_POS: u16 = 1;
const CTA_SEQADJ_OFFSET_BEFORE: u16 = 2;
const CTA_SEQADJ_OFFSET_AFTER: u16 = 3;
const CTA_HELP_NAME: u16 = 1;
const CTA_NAT_V4_MINIP: u16 = 1;
const CTA_NAT_V4_MAXIP: u16 = 2;
const CTA_NAT_PROTO: u16 = 3;
const CTA_NAT_V6_MINIP: u16 = 4;
const CTA_NAT_V6_MAXIP: u16 = 5;
const CTA_PROTONAT_PORT_MIN: u16 = 1;
const CTA_PROTONAT_PORT_MAX: u16 = 2;

const IPS_SEEN_REPLY: u32 = 1 << 1;
const IPS_ASSURED: u32 = 1 << 2;
const IPS_CONFIRMED: u32 = 1 << 3;
const IPS_FIXED_TIMEOUT: u32 = 1 << 10;
/// What ctnetlink_change_status() takes; the others are the kernel's own.
const SETTABLE: u32 = IPS_SEEN_REPLY | IPS_ASSURED | IPS_FIXED_TIMEOUT;

/// IP_CT_TCP_FLAG_BE_LIBERAL: a segment outside of the windows is not invalid. ctnetlink carries no windows: those of an entry that is made
/// begin with the first segment that comes (tcp_in_window), and one that announces window 0 makes the answer to it invalid. What is invalid
/// is not translated, its receiver knows no such connection, and a RST comes back.
const BE_LIBERAL: u8 = 1 << 3;

/// Of its addresses.
pub fn family(tuple: &Tuple) -> Family {
    if tuple.source.is_ipv4() {
        Family::Inet
    } else {
        Family::Inet6
    }
}

/// What names one in a request: struct nfgenmsg, its zone and its original direction.
pub fn question(original: &Tuple, zone: u16) -> Message {
    let message = Message::new(&[af(family(original)), 0, 0, 0]);
    let message = match zone {
        0 => message,
        zone => message.be16(CTA_ZONE, zone),
    };
    message.nested(CTA_TUPLE_ORIG, &tuple(original))
}

/// What names it in a request.
pub fn named(connection: &Connection) -> Message {
    question(&connection.original, connection.zone)
}

/// The request that makes the kernel track it.
pub fn new(connection: &Connection) -> Message {
    let Connection {
        original, reply, ..
    } = connection;
    let status = connection.status & SETTABLE | IPS_CONFIRMED;
    let mut request = named(connection)
        .nested(CTA_TUPLE_REPLY, &tuple(&reversed(original)))
        .be32(CTA_STATUS, status)
        .be32(CTA_TIMEOUT, connection.timeout)
        .be32(CTA_MARK, connection.mark);
    // The source as the other side sees it is where its packets go to; and so for the destination.
    let back = reversed(reply);
    if (back.source, port(&back).0) != (original.source, port(original).0) {
        request = request.nested(CTA_NAT_SRC, &translated(back.source, port(&back).0));
    }
    if (back.destination, port(&back).1) != (original.destination, port(original).1) {
        request = request.nested(CTA_NAT_DST, &translated(back.destination, port(&back).1));
    }
    if !connection.labels.is_empty() {
        request = request.bytes(CTA_LABELS, &connection.labels);
    }
    let adjustment = |a: Adjustment| {
        Message::default()
            .be32(CTA_SEQADJ_CORRECTION_POS, a.position)
            .be32(CTA_SEQADJ_OFFSET_BEFORE, a.before)
            .be32(CTA_SEQADJ_OFFSET_AFTER, a.after)
    };
    request
        .maybe(connection.helper.as_deref(), |m, name| {
            m.nested(CTA_HELP, &Message::default().text(CTA_HELP_NAME, name))
        })
        .maybe(connection.tcp, |m, tcp| {
            let all = 0xff;
            let inner = Message::default()
                .u8(CTA_PROTOINFO_TCP_STATE, tcp.state)
                .u8(CTA_PROTOINFO_TCP_WSCALE_ORIGINAL, tcp.wscale.0)
                .u8(CTA_PROTOINFO_TCP_WSCALE_REPLY, tcp.wscale.1)
                // struct nf_ct_tcp_flags: flags and the mask of those that are meant.
                .bytes(
                    CTA_PROTOINFO_TCP_FLAGS_ORIGINAL,
                    &[tcp.flags.0 | BE_LIBERAL, all],
                )
                .bytes(
                    CTA_PROTOINFO_TCP_FLAGS_REPLY,
                    &[tcp.flags.1 | BE_LIBERAL, all],
                );
            m.nested(
                CTA_PROTOINFO,
                &Message::default().nested(CTA_PROTOINFO_TCP, &inner),
            )
        })
        .maybe(connection.adjusted.0, |m, a| {
            m.nested(CTA_SEQ_ADJ_ORIG, &adjustment(a))
        })
        .maybe(connection.adjusted.1, |m, a| {
            m.nested(CTA_SEQ_ADJ_REPLY, &adjustment(a))
        })
}

/// The request that makes an entry which is there lenient about TCP's windows, or strict again.
pub fn leniency(connection: &Connection, lenient: bool) -> Message {
    // struct nf_ct_tcp_flags: flags and the mask of those that are meant.
    let flags = [if lenient { BE_LIBERAL } else { 0 }, BE_LIBERAL];
    let inner = Message::default()
        .bytes(CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, &flags)
        .bytes(CTA_PROTOINFO_TCP_FLAGS_REPLY, &flags);
    let tcp = Message::default().nested(CTA_PROTOINFO_TCP, &inner);
    named(connection).nested(CTA_PROTOINFO, &tcp)
}

/// Whether either direction of it is lenient.
pub fn is_lenient(connection: &Connection) -> bool {
    let tcp = connection.tcp.as_ref();
    tcp.is_some_and(|tcp| (tcp.flags.0 | tcp.flags.1) & BE_LIBERAL != 0)
}

/// Source and destination of what ports are in a protocol; an ICMP identifier is both.
pub(super) fn port(tuple: &Tuple) -> (Option<u16>, Option<u16>) {
    match tuple.key {
        Key::Ports {
            source,
            destination,
        } => (Some(source), Some(destination)),
        Key::Icmp { id, .. } => (Some(id), Some(id)),
        Key::None => (None, None),
    }
}

fn translated(address: IpAddr, port: Option<u16>) -> Message {
    let (low, high) = if address.is_ipv4() {
        (CTA_NAT_V4_MINIP, CTA_NAT_V4_MAXIP)
    } else {
        (CTA_NAT_V6_MINIP, CTA_NAT_V6_MAXIP)
    };
    Message::default()
        .ip(low, address)
        .ip(high, address)
        .maybe(port, |m, port| {
            let ports = Message::default()
                .be16(CTA_PROTONAT_PORT_MIN, port)
                .be16(CTA_PROTONAT_PORT_MAX, port);
            m.nested(CTA_NAT_PROTO, &ports)
        })
}

/// The other direction, if nothing is translated. The answer to an ICMP question is of another type (icmp_invert_tuple()).
fn reversed(tuple: &Tuple) -> Tuple {
    let key = match tuple.key {
        Key::Ports {
            source,
            destination,
        } => Key::Ports {
            source: destination,
            destination: source,
        },
        Key::Icmp { id, kind, code } => {
            const PAIRS: [(u8, u8); 6] =
                [(8, 0), (13, 14), (15, 16), (17, 18), (128, 129), (139, 140)];
            let kind = PAIRS
                .iter()
                .find_map(|(ask, answer)| match kind {
                    k if k == *ask => Some(*answer),
                    k if k == *answer => Some(*ask),
                    _ => None,
                })
                .unwrap_or(kind);
            Key::Icmp { id, kind, code }
        }
        Key::None => Key::None,
    };
    Tuple {
        source: tuple.destination,
        destination: tuple.source,
        protocol: tuple.protocol,
        key,
    }
}

fn tuple(tuple: &Tuple) -> Message {
    let (source, destination, icmp) = if tuple.source.is_ipv4() {
        (CTA_IP_V4_SRC, CTA_IP_V4_DST, 0)
    } else {
        (CTA_IP_V6_SRC, CTA_IP_V6_DST, ICMPV6)
    };
    let ip = Message::default()
        .ip(source, tuple.source)
        .ip(destination, tuple.destination);
    let proto = Message::default().u8(CTA_PROTO_NUM, tuple.protocol);
    let proto = match tuple.key {
        Key::Ports {
            source,
            destination,
        } => proto
            .be16(CTA_PROTO_SRC_PORT, source)
            .be16(CTA_PROTO_DST_PORT, destination),
        Key::Icmp { id, kind, code } => proto
            .be16(CTA_PROTO_ICMP_ID + icmp, id)
            .u8(CTA_PROTO_ICMP_TYPE + icmp, kind)
            .u8(CTA_PROTO_ICMP_CODE + icmp, code),
        Key::None => proto,
    };
    Message::default()
        .nested(CTA_TUPLE_IP, &ip)
        .nested(CTA_TUPLE_PROTO, &proto)
}

/// Reads one; none if it is of a family that no image carries.
pub fn parse(reply: &Reply) -> Result<Option<Connection>, netlink::Error> {
    let (header, attrs) = reply.split::<4>()?;
    if attr::family(header[0]).is_none() {
        return Ok(None);
    }
    let (mut original, mut back) = (None, None);
    let mut connection = Connection {
        original: nowhere(),
        reply: nowhere(),
        status: 0,
        timeout: 0,
        mark: 0,
        zone: 0,
        labels: Vec::new(),
        helper: None,
        tcp: None,
        adjusted: (None, None),
    };
    for attr in attrs {
        let attr = attr?;
        match attr.kind {
            CTA_TUPLE_ORIG => original = Some(parse_tuple(attr)?),
            CTA_TUPLE_REPLY => back = Some(parse_tuple(attr)?),
            CTA_STATUS => connection.status = attr.be32()? & SETTABLE,
            CTA_TIMEOUT => connection.timeout = attr.be32()?,
            CTA_MARK => connection.mark = attr.be32()?,
            CTA_ZONE => connection.zone = attr.be16()?,
            CTA_LABELS if attr.value.iter().any(|b| *b != 0) => {
                connection.labels = attr.value.to_vec()
            }
            CTA_HELP => {
                for inner in attr.nested() {
                    let inner = inner?;
                    if inner.kind == CTA_HELP_NAME {
                        connection.helper = Some(inner.text());
                    }
                }
            }
            CTA_PROTOINFO => connection.tcp = parse_tcp(attr)?,
            CTA_SEQ_ADJ_ORIG => connection.adjusted.0 = Some(parse_adjustment(attr)?),
            CTA_SEQ_ADJ_REPLY => connection.adjusted.1 = Some(parse_adjustment(attr)?),
            _ => {}
        }
    }
    let (Some(original), Some(back)) = (original, back) else {
        return Err(netlink::Error::Malformed(
            "a tracked connection without its two directions".into(),
        ));
    };
    (connection.original, connection.reply) = (original, back);
    Ok(Some(connection))
}

fn nowhere() -> Tuple {
    Tuple {
        source: Ipv4Addr::UNSPECIFIED.into(),
        destination: Ipv4Addr::UNSPECIFIED.into(),
        protocol: 0,
        key: Key::None,
    }
}

/// Reads one direction.
pub fn parse_tuple(attr: Attr<'_>) -> Result<Tuple, netlink::Error> {
    let mut tuple = nowhere();
    let (mut ports, mut icmp) = ((None, None), (None, 0, 0));
    for part in attr.nested() {
        let part = part?;
        for inner in part.nested() {
            let inner = inner?;
            match (part.kind, inner.kind) {
                (CTA_TUPLE_IP, CTA_IP_V4_SRC | CTA_IP_V6_SRC) => tuple.source = inner.ip()?,
                (CTA_TUPLE_IP, CTA_IP_V4_DST | CTA_IP_V6_DST) => tuple.destination = inner.ip()?,
                (CTA_TUPLE_PROTO, CTA_PROTO_NUM) => tuple.protocol = inner.u8()?,
                (CTA_TUPLE_PROTO, CTA_PROTO_SRC_PORT) => ports.0 = Some(inner.be16()?),
                (CTA_TUPLE_PROTO, CTA_PROTO_DST_PORT) => ports.1 = Some(inner.be16()?),
                (CTA_TUPLE_PROTO, kind) => match if kind > CTA_PROTO_ICMP_CODE {
                    kind - ICMPV6
                } else {
                    kind
                } {
                    CTA_PROTO_ICMP_ID => icmp.0 = Some(inner.be16()?),
                    CTA_PROTO_ICMP_TYPE => icmp.1 = inner.u8()?,
                    CTA_PROTO_ICMP_CODE => icmp.2 = inner.u8()?,
                    _ => {}
                },
                _ => {}
            }
        }
    }
    tuple.key = match (ports, icmp) {
        ((Some(source), Some(destination)), _) => Key::Ports {
            source,
            destination,
        },
        (_, (Some(id), kind, code)) => Key::Icmp { id, kind, code },
        _ => Key::None,
    };
    Ok(tuple)
}

fn parse_tcp(attr: Attr<'_>) -> Result<Option<TcpState>, netlink::Error> {
    for proto in attr.nested() {
        let proto = proto?;
        if proto.kind != CTA_PROTOINFO_TCP {
            continue;
        }
        let mut tcp = TcpState {
            state: 0,
            wscale: (0, 0),
            flags: (0, 0),
        };
        for inner in proto.nested() {
            let inner = inner?;
            let flags = inner.value.first().copied().unwrap_or_default();
            match inner.kind {
                CTA_PROTOINFO_TCP_STATE => tcp.state = inner.u8()?,
                CTA_PROTOINFO_TCP_WSCALE_ORIGINAL => tcp.wscale.0 = inner.u8()?,
                CTA_PROTOINFO_TCP_WSCALE_REPLY => tcp.wscale.1 = inner.u8()?,
                CTA_PROTOINFO_TCP_FLAGS_ORIGINAL => tcp.flags.0 = flags,
                CTA_PROTOINFO_TCP_FLAGS_REPLY => tcp.flags.1 = flags,
                _ => {}
            }
        }
        return Ok(Some(tcp));
    }
    Ok(None)
}

fn parse_adjustment(attr: Attr<'_>) -> Result<Adjustment, netlink::Error> {
    let mut adjustment = Adjustment {
        position: 0,
        before: 0,
        after: 0,
    };
    for inner in attr.nested() {
        let inner = inner?;
        match inner.kind {
            CTA_SEQADJ_CORRECTION_POS => adjustment.position = inner.be32()?,
            CTA_SEQADJ_OFFSET_BEFORE => adjustment.before = inner.be32()?,
            CTA_SEQADJ_OFFSET_AFTER => adjustment.after = inner.be32()?,
            _ => {}
        }
    }
    Ok(adjustment)
}

//! The few questions that the gate has for rtnetlink, in the namespace of the calling thread.
use std::io;

use aya::programs::TcAttachType;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, Nla as _,
    NlasIterator,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage},
    tc::{TcAttribute, TcHandle, TcMessage, TcOption},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;

/// A device as it is now.
pub(super) struct Device {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) kind: LinkLayerType,
}

/// The device with this index, if there is one.
pub(super) fn device(index: u32) -> io::Result<Option<Device>> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let answers = match request(RouteNetlinkMessage::GetLink(message), 0) {
        Err(e) if e.raw_os_error() == Some(Errno::ENODEV as i32) => return Ok(None),
        answers => answers?,
    };
    Ok(answers.into_iter().find_map(|answer| {
        let RouteNetlinkMessage::NewLink(link) = answer else {
            return None;
        };
        let name = link.attributes.into_iter().find_map(|a| match a {
            LinkAttribute::IfName(name) => Some(name),
            _ => None,
        })?;
        Some(Device {
            index,
            name,
            kind: link.header.link_layer_type,
        })
    }))
}

/// Sets the length of the device's queue and the device up; no ARP is spoken there.
pub(super) fn raise(index: u32, queue: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up | LinkFlags::Noarp;
    message.header.change_mask = LinkFlags::Up | LinkFlags::Noarp;
    message.attributes.push(LinkAttribute::TxQueueLen(queue));
    request(RouteNetlinkMessage::SetLink(message), NLM_F_ACK).map(drop)
}

/// Whether the device has a clsact qdisc.
pub(super) fn has_clsact(index: u32) -> io::Result<bool> {
    // The kernel dumps the qdiscs of all devices, whatever the request names.
    let answers = request(
        RouteNetlinkMessage::GetQueueDiscipline(tc(index)?),
        NLM_F_DUMP,
    )?;
    Ok(answers.iter().any(|answer| {
        let RouteNetlinkMessage::NewQueueDiscipline(qdisc) = answer else {
            return false;
        };
        qdisc.header.index.unsigned_abs() == index && kind(qdisc) == Some("clsact")
    }))
}

/// Ids of the programs of the BPF filters at one side of the device's clsact qdisc; none without one.
pub(super) fn bpf_filters(index: u32, at: TcAttachType) -> io::Result<Vec<u32>> {
    let mut message = tc(index)?;
    message.header.parent = TcHandle {
        major: TcHandle::CLSACT.major,
        minor: match at {
            TcAttachType::Egress => TcHandle::MIN_EGRESS,
            _ => TcHandle::MIN_INGRESS,
        },
    };
    let answers = match request(RouteNetlinkMessage::GetTrafficFilter(message), NLM_F_DUMP) {
        // No qdisc at this parent.
        Err(e)
            if matches!(
                e.raw_os_error().map(Errno::from_raw),
                Some(Errno::EINVAL | Errno::ENOENT)
            ) =>
        {
            return Ok(Vec::new());
        }
        answers => answers?,
    };
    let program = |answer| {
        let RouteNetlinkMessage::NewTrafficFilter(filter) = answer else {
            return None;
        };
        if kind(&filter) != Some("bpf") {
            return None;
        }
        filter.attributes.iter().find_map(|a| match a {
            TcAttribute::Options(options) => options.iter().find_map(program_id),
            _ => None,
        })
    };
    Ok(answers.into_iter().filter_map(program).collect())
}

/// The options of a kind that the parser does not know come as one attribute with the others in it.
fn program_id(option: &TcOption) -> Option<u32> {
    /// include/uapi/linux/pkt_cls.h
    const TCA_BPF_ID: u16 = 11;
    let TcOption::Other(options) = option else {
        return None;
    };
    let mut nested = vec![0; options.value_len()];
    options.emit_value(&mut nested);
    let id = NlasIterator::new(&nested)
        .flatten()
        .find(|nla| nla.kind() == TCA_BPF_ID)?;
    Some(u32::from_ne_bytes(id.value().try_into().ok()?))
}

/// Removes the clsact qdisc of the device unless somebody has a filter there.
pub(super) fn remove_empty_clsact(index: u32) -> io::Result<()> {
    for minor in [TcHandle::MIN_INGRESS, TcHandle::MIN_EGRESS] {
        let mut message = tc(index)?;
        message.header.parent = TcHandle {
            major: TcHandle::CLSACT.major,
            minor,
        };
        match request(RouteNetlinkMessage::GetTrafficFilter(message), NLM_F_DUMP) {
            Ok(filters) if !filters.is_empty() => return Ok(()),
            Err(e) if e.raw_os_error() != Some(Errno::EINVAL as i32) => return Err(e),
            _ => {}
        }
    }
    let mut message = tc(index)?;
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = TcHandle {
        major: TcHandle::CLSACT.major,
        minor: 0,
    };
    match request(RouteNetlinkMessage::DelQueueDiscipline(message), NLM_F_ACK) {
        Err(e)
            if !matches!(
                e.raw_os_error().map(Errno::from_raw),
                Some(Errno::ENOENT | Errno::EINVAL)
            ) =>
        {
            Err(e)
        }
        _ => Ok(()),
    }
}

fn tc(index: u32) -> io::Result<TcMessage> {
    Ok(TcMessage::with_index(
        i32::try_from(index).map_err(io::Error::other)?,
    ))
}

fn kind(message: &TcMessage) -> Option<&str> {
    message.attributes.iter().find_map(|a| match a {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    })
}

fn request(message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = 1;
    let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    let mut answers = Vec::new();
    loop {
        let (received, _) = socket.recv_from_full()?;
        let mut rest = received.as_slice();
        while !rest.is_empty() {
            let answer: NetlinkMessage<RouteNetlinkMessage> =
                NetlinkMessage::deserialize(rest).map_err(io::Error::other)?;
            let length = usize::try_from(answer.header.length).map_err(io::Error::other)?;
            match answer.payload {
                NetlinkPayload::Done(_) => return Ok(answers),
                NetlinkPayload::Error(e) => {
                    return match e.code {
                        None => Ok(answers),
                        Some(_) => Err(e.to_io()),
                    };
                }
                NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                _ => {}
            }
            // Messages are aligned to 4 bytes.
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        if flags & (NLM_F_DUMP | NLM_F_ACK) == 0 {
            return Ok(answers);
        }
    }
}

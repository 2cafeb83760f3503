//! Addresses: dump, and bringing a link's addresses to what the image says.
use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use netmig_core::image::v1::net::{Address, Family, Prefix};

use super::{
    Doing, Error,
    attr::{Message, af, family, u32_at},
    link,
    netlink::{self, Netlink, Reply},
    open,
    uapi::*,
};

/// What inet6_rtm_newaddr() and rtm_to_ifaddr() take from a request; the other flags are states.
const SETTABLE: u32 =
    IFA_F_NODAD | IFA_F_HOMEADDRESS | IFA_F_MANAGETEMPADDR | IFA_F_NOPREFIXROUTE | IFA_F_MCAUTOJOIN;

/// All addresses, link by link, in the kernel's order within a link; and what of them cannot be carried.
pub fn dump(
    nl: &mut Netlink,
    names: &HashMap<u32, String>,
) -> Result<(Vec<Address>, Vec<String>), Error> {
    let mut found = Vec::new();
    let mut lost = Vec::new();
    for wanted in [Family::Inet, Family::Inet6] {
        let request = Message::new(&[af(wanted), 0, 0, 0, 0, 0, 0, 0]);
        let replies = nl
            .dump(libc::RTM_GETADDR, &request)
            .doing(|| format!("reading the addresses of {wanted:?}"))?;
        for reply in &replies {
            let Some((index, address)) =
                parse(reply, wanted, names, &mut lost).doing(|| "reading an address".to_owned())?
            else {
                continue;
            };
            found.push((index, address));
        }
    }
    // Stable: the kernel's order within a link and family stays.
    found.sort_by_key(|(index, a)| (*index, a.local.address.is_ipv6()));
    Ok((found.into_iter().map(|(_, a)| a).collect(), lost))
}

/// This host's own addresses: all of the calling thread's namespace.
///
/// # Errors
/// If they cannot be read.
pub fn own() -> Result<Vec<IpAddr>, Error> {
    let mut nl = open()?;
    let names = link::names(&link::dump(&mut nl)?);
    let (addresses, _) = dump(&mut nl, &names)?;
    Ok(addresses.iter().map(|a| a.local.address).collect())
}

/// Whether duplicate address detection still holds back an IPv6 address of one of these links. On one without carrier it does not begin.
pub fn any_tentative(nl: &mut Netlink, links: &BTreeSet<u32>) -> Result<bool, Error> {
    // struct ifaddrmsg: family, prefixlen, flags, scope, index.
    let request = Message::new(&[af(Family::Inet6), 0, 0, 0, 0, 0, 0, 0]);
    let replies = nl
        .dump(libc::RTM_GETADDR, &request)
        .doing(|| "reading the IPv6 addresses".to_owned())?;
    for reply in &replies {
        let (header, _) = reply
            .split::<8>()
            .doing(|| "reading an address".to_owned())?;
        let index = u32_at(&header, 4);
        if u32::from(header[2]) & libc::IFA_F_TENTATIVE != 0 && links.contains(&index) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Makes the addresses of the namespace those of `wanted`, in its order.
pub fn converge(
    nl: &mut Netlink,
    names: &HashMap<u32, String>,
    indices: &HashMap<String, u32>,
    wanted: &[Address],
) -> Result<(), Error> {
    let (existing, _) = dump(nl, names)?;
    for address in existing.iter().filter(|a| !wanted.contains(a)) {
        let index = index_of(indices, address)?;
        delete(nl, index, address).doing(|| {
            format!(
                "removing address {} of link {}",
                address.local, address.link
            )
        })?;
    }
    let missing: Vec<_> = wanted.iter().filter(|a| !existing.contains(a)).collect();
    // IPv4 appends; IPv6 puts a new address before those of its scope (ipv6_link_dev_addr()), so the last comes first.
    let (v4, v6): (Vec<_>, Vec<_>) = missing.into_iter().partition(|a| a.local.address.is_ipv4());
    for address in v4.into_iter().chain(v6.into_iter().rev()) {
        let index = index_of(indices, address)?;
        add(nl, index, address)
            .doing(|| format!("adding address {} to link {}", address.local, address.link))?;
    }
    Ok(())
}

fn index_of(indices: &HashMap<String, u32>, address: &Address) -> Result<u32, Error> {
    indices.get(&address.link).copied().ok_or_else(|| {
        Error::Refused(vec![format!(
            "address {} is on link {}, which is not there",
            address.local, address.link
        )])
    })
}

fn header(index: u32, address: &Address) -> Message {
    let family = if address.local.address.is_ipv4() {
        Family::Inet
    } else {
        Family::Inet6
    };
    let mut header = [af(family), address.local.len, 0, address.scope, 0, 0, 0, 0];
    header[4..].copy_from_slice(&index.to_ne_bytes());
    Message::new(&header)
}

/// IFA_LOCAL is the own address and IFA_ADDRESS the peer's, or the own one again without a peer.
fn ends(message: Message, address: &Address) -> Message {
    let own = address.local.address;
    message
        .ip(IFA_LOCAL, own)
        .ip(IFA_ADDRESS, address.peer.unwrap_or(own))
}

/// Adds one to the link `index`, whatever link it names.
pub(super) fn add(nl: &mut Netlink, index: u32, address: &Address) -> Result<(), netlink::Error> {
    let mut lifetimes = [0; 16];
    lifetimes[..4].copy_from_slice(
        &address
            .preferred
            .unwrap_or(INFINITY_LIFE_TIME)
            .to_ne_bytes(),
    );
    lifetimes[4..8].copy_from_slice(&address.valid.unwrap_or(INFINITY_LIFE_TIME).to_ne_bytes());
    let mut request = ends(header(index, address), address)
        .bytes(IFA_CACHEINFO, &lifetimes)
        .u32(IFA_FLAGS, address.flags)
        .maybe(address.broadcast, |m, ip| m.ip(IFA_BROADCAST, ip))
        .maybe(address.metric, |m, v| m.u32(IFA_RT_PRIORITY, v));
    if address.protocol != 0 {
        request = request.u8(IFA_PROTO, address.protocol);
    }
    if address.local.address.is_ipv4() {
        request = request.text(IFA_LABEL, address.label.as_deref().unwrap_or(&address.link));
    }
    nl.request(
        libc::RTM_NEWADDR,
        libc::NLM_F_CREATE | libc::NLM_F_EXCL,
        request,
    )
}

/// Removes one from the link `index`. One that is not there is no error.
pub(super) fn delete(
    nl: &mut Netlink,
    index: u32,
    address: &Address,
) -> Result<(), netlink::Error> {
    match nl.request(libc::RTM_DELADDR, 0, ends(header(index, address), address)) {
        // A secondary went with its primary.
        Err(e) if e.errno() == Some(libc::EADDRNOTAVAIL) => Ok(()),
        other => other,
    }
}

fn parse(
    reply: &Reply,
    wanted: Family,
    names: &HashMap<u32, String>,
    lost: &mut Vec<String>,
) -> Result<Option<(u32, Address)>, netlink::Error> {
    let (header, attrs) = reply.split::<8>()?;
    // Asked for a family that it does not have, the kernel dumps all the others (rtnetlink_rcv_msg()).
    if family(header[0]) != Some(wanted) {
        return Ok(None);
    }
    let index = u32_at(&header, 4);
    let Some(link) = names.get(&index) else {
        return Ok(None);
    };
    let (mut own, mut other): (Option<IpAddr>, Option<IpAddr>) = (None, None);
    let mut flags = u32::from(header[2]);
    let mut address = Address {
        link: link.clone(),
        local: Prefix {
            address: std::net::Ipv4Addr::UNSPECIFIED.into(),
            len: header[1],
        },
        peer: None,
        broadcast: None,
        label: None,
        scope: header[3],
        flags: 0,
        valid: None,
        preferred: None,
        metric: None,
        protocol: 0,
    };
    for attr in attrs {
        let attr = attr?;
        match attr.kind {
            IFA_LOCAL => own = Some(attr.ip()?),
            IFA_ADDRESS => other = Some(attr.ip()?),
            IFA_BROADCAST => address.broadcast = Some(attr.ip()?),
            IFA_LABEL => address.label = Some(attr.text()).filter(|l| l != link),
            IFA_FLAGS => flags = attr.u32()?,
            IFA_RT_PRIORITY => address.metric = Some(attr.u32()?),
            IFA_PROTO => address.protocol = attr.u8()?,
            IFA_CACHEINFO if attr.value.len() >= 8 => {
                let finite = |at| Some(u32_at(attr.value, at)).filter(|v| *v != INFINITY_LIFE_TIME);
                (address.preferred, address.valid) = (finite(0), finite(4));
            }
            _ => {}
        }
    }
    let Some(local) = own.or(other) else {
        return Err(netlink::Error::Malformed(format!(
            "an address of link {link} without an address"
        )));
    };
    address.local.address = local;
    address.peer = other.filter(|ip| own.is_some() && *ip != local);
    address.flags = flags & SETTABLE;
    if local.is_ipv6() && flags & IFA_F_DADFAILED != 0 {
        lost.push(format!("address {local} of link {link} is a duplicate of another host's (DAD failed): not carried"));
        return Ok(None);
    }
    if local.is_ipv6() && flags & IFA_F_TEMPORARY != 0 {
        lost.push(format!("address {local} of link {link} is temporary (RFC 8981): it keeps its lifetimes and loses its renewal"));
    }
    Ok(Some((index, address)))
}

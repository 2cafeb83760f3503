//! Policy rules: dump, and bringing a namespace to the image's.
use netmig_core::image::v1::net::{Family, Prefix, Rule};

use super::{
    Doing, Error,
    attr::{Message, af, family, u32_at, unspecified},
    netlink::{self, Netlink, Reply},
    uapi::*,
};

/// The kernel writes a mask for every port and DSCP; one of all bits need not be given, and older kernels do not take it.
const ALL_PORT: u16 = u16::MAX;
const ALL_DSCP: u8 = 0x3f;

/// All rules, the default ones too, in the kernel's order, and what of them cannot be carried.
pub fn dump(nl: &mut Netlink) -> Result<(Vec<Rule>, Vec<String>), Error> {
    let mut all = Vec::new();
    let mut lost = Vec::new();
    for wanted in [Family::Inet, Family::Inet6] {
        let mut header = [0; 12];
        header[0] = af(wanted);
        let replies = match nl.dump(libc::RTM_GETRULE, &Message::new(&header)) {
            // No rules in this kernel, or no IPv6.
            Err(e) if matches!(e.errno(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => continue,
            other => other.doing(|| format!("reading the rules of {wanted:?}"))?,
        };
        for reply in &replies {
            all.extend(parse(reply, &mut lost).doing(|| "reading a rule".to_owned())?);
        }
    }
    Ok((all, lost))
}

/// Makes the rules of the namespace those of `wanted`, without a moment in which none of them is there: what is missing is added first.
pub fn converge(nl: &mut Netlink, wanted: &[Rule]) -> Result<(), Error> {
    let (existing, _) = dump(nl)?;
    let mut spare = existing;
    for rule in wanted {
        if let Some(at) = spare.iter().position(|e| e == rule) {
            spare.remove(at);
            continue;
        }
        // Without NLM_F_EXCL: two equal rules are two rules.
        nl.request(libc::RTM_NEWRULE, libc::NLM_F_CREATE, message(rule))
            .doing(|| format!("adding rule {rule}"))?;
    }
    for rule in &spare {
        nl.request(libc::RTM_DELRULE, 0, message(rule))
            .doing(|| format!("removing rule {rule}"))?;
    }
    Ok(())
}

fn message(rule: &Rule) -> Message {
    let mut header = [0; 12];
    header[0] = af(rule.family);
    header[1] = rule.destination.map_or(0, |p| p.len);
    header[2] = rule.source.map_or(0, |p| p.len);
    header[3] = rule.tos;
    header[4] = u8::try_from(rule.table).unwrap_or_default(); // RT_TABLE_UNSPEC: see FRA_TABLE
    header[7] = rule.action;
    header[8..].copy_from_slice(&if rule.invert { FIB_RULE_INVERT } else { 0 }.to_ne_bytes());
    let pair16 = |(a, b): (u16, u16)| [a.to_ne_bytes(), b.to_ne_bytes()].concat();
    let pair32 = |(a, b): (u32, u32)| [a.to_ne_bytes(), b.to_ne_bytes()].concat();
    let mut request = Message::new(&header)
        .u32(FRA_PRIORITY, rule.priority)
        .u8(FRA_PROTOCOL, rule.protocol)
        .maybe(rule.source, |m, p| m.ip(FRA_SRC, p.address))
        .maybe(rule.destination, |m, p| m.ip(FRA_DST, p.address))
        .maybe(rule.iif.as_deref(), |m, v| m.text(FRA_IIFNAME, v))
        .maybe(rule.oif.as_deref(), |m, v| m.text(FRA_OIFNAME, v))
        .maybe(rule.fwmark, |m, (mark, mask)| {
            m.u32(FRA_FWMARK, mark).u32(FRA_FWMASK, mask)
        })
        .maybe(rule.uids, |m, v| m.bytes(FRA_UID_RANGE, &pair32(v)))
        .maybe(rule.ip_protocol, |m, v| m.u8(FRA_IP_PROTO, v))
        .maybe(rule.sports, |m, v| m.bytes(FRA_SPORT_RANGE, &pair16(v)))
        .maybe(rule.dports, |m, v| m.bytes(FRA_DPORT_RANGE, &pair16(v)))
        .maybe(rule.sport_mask, |m, v| m.u16(FRA_SPORT_MASK, v))
        .maybe(rule.dport_mask, |m, v| m.u16(FRA_DPORT_MASK, v))
        .maybe(rule.dscp, |m, v| m.u8(FRA_DSCP, v))
        .maybe(rule.dscp_mask, |m, v| m.u8(FRA_DSCP_MASK, v))
        .maybe(rule.flowlabel, |m, (label, mask)| {
            m.be32(FRA_FLOWLABEL, label).be32(FRA_FLOWLABEL_MASK, mask)
        })
        .maybe(rule.goto, |m, v| m.u32(FRA_GOTO, v))
        .maybe(rule.suppress_prefixlen, |m, v| {
            m.u32(FRA_SUPPRESS_PREFIXLEN, v)
        })
        .maybe(rule.suppress_ifgroup, |m, v| m.u32(FRA_SUPPRESS_IFGROUP, v))
        .maybe(rule.tun_id, |m, v| m.bytes(FRA_TUN_ID, &v.to_be_bytes()))
        .maybe(rule.realm, |m, v| m.u32(FRA_FLOW, v));
    if rule.table != 0 {
        request = request.u32(FRA_TABLE, rule.table);
    }
    if rule.l3mdev {
        request.u8(FRA_L3MDEV, 1)
    } else {
        request
    }
}

fn parse(reply: &Reply, lost: &mut Vec<String>) -> Result<Option<Rule>, netlink::Error> {
    let (header, attrs) = reply.split::<12>()?;
    let Some(family) = family(header[0]) else {
        return Ok(None);
    };
    let prefix = |len| {
        (len > 0).then_some(Prefix {
            address: unspecified(family),
            len,
        })
    };
    let mut rule = Rule {
        family,
        priority: 0,
        action: header[7],
        table: header[4].into(),
        invert: u32_at(&header, 8) & FIB_RULE_INVERT != 0,
        source: prefix(header[2]),
        destination: prefix(header[1]),
        tos: header[3],
        iif: None,
        oif: None,
        fwmark: None,
        uids: None,
        ip_protocol: None,
        sports: None,
        dports: None,
        sport_mask: None,
        dport_mask: None,
        dscp: None,
        dscp_mask: None,
        flowlabel: None,
        goto: None,
        suppress_prefixlen: None,
        suppress_ifgroup: None,
        tun_id: None,
        l3mdev: false,
        realm: None,
        protocol: 0,
    };
    let set = |value: u32| Some(value).filter(|v| *v != u32::MAX);
    let mut strange = Vec::new();
    for attr in attrs {
        let attr = attr?;
        match attr.kind {
            FRA_PRIORITY => rule.priority = attr.u32()?,
            FRA_TABLE => rule.table = attr.u32()?,
            FRA_SRC => {
                rule.source = Some(Prefix {
                    address: attr.ip()?,
                    len: header[2],
                })
            }
            FRA_DST => {
                rule.destination = Some(Prefix {
                    address: attr.ip()?,
                    len: header[1],
                })
            }
            FRA_IIFNAME => rule.iif = Some(attr.text()),
            FRA_OIFNAME => rule.oif = Some(attr.text()),
            FRA_FWMARK => {
                rule.fwmark = Some((attr.u32()?, rule.fwmark.map_or(u32::MAX, |(_, mask)| mask)))
            }
            FRA_FWMASK => {
                rule.fwmark = Some((rule.fwmark.map_or(0, |(mark, _)| mark), attr.u32()?))
            }
            FRA_UID_RANGE => rule.uids = Some(attr.pair32()?),
            FRA_IP_PROTO => rule.ip_protocol = Some(attr.u8()?),
            FRA_SPORT_RANGE => rule.sports = Some(attr.pair16()?),
            FRA_DPORT_RANGE => rule.dports = Some(attr.pair16()?),
            FRA_SPORT_MASK => rule.sport_mask = Some(attr.u16()?).filter(|m| *m != ALL_PORT),
            FRA_DPORT_MASK => rule.dport_mask = Some(attr.u16()?).filter(|m| *m != ALL_PORT),
            FRA_DSCP => rule.dscp = Some(attr.u8()?),
            FRA_DSCP_MASK => rule.dscp_mask = Some(attr.u8()?).filter(|m| *m != ALL_DSCP),
            FRA_FLOWLABEL => {
                rule.flowlabel = Some((attr.be32()?, rule.flowlabel.map_or(0, |(_, mask)| mask)))
            }
            FRA_FLOWLABEL_MASK => {
                rule.flowlabel = Some((rule.flowlabel.map_or(0, |(label, _)| label), attr.be32()?))
            }
            FRA_GOTO => rule.goto = Some(attr.u32()?),
            FRA_SUPPRESS_PREFIXLEN => rule.suppress_prefixlen = set(attr.u32()?),
            FRA_SUPPRESS_IFGROUP => rule.suppress_ifgroup = set(attr.u32()?),
            FRA_TUN_ID => rule.tun_id = Some(attr.be64()?),
            FRA_L3MDEV => rule.l3mdev = attr.u8()? != 0,
            FRA_FLOW => rule.realm = Some(attr.u32()?).filter(|r| *r != 0),
            FRA_PROTOCOL => rule.protocol = attr.u8()?,
            FRA_PAD => {}
            kind => strange.push(kind),
        }
    }
    lost.extend(
        strange
            .iter()
            .map(|kind| format!("rule {rule}: attribute {kind} is unknown and not carried")),
    );
    Ok(Some(rule))
}

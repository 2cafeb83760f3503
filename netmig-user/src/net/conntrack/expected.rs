//! Expectations: connections that a helper has seen announced inside of others (the data of FTP, the media of SIP).
use std::net::IpAddr;

use netmig_core::image::v1::{
    conntrack::{Expectation, Tuple},
    net::Setting,
};

use super::{entry, is_absent, reaches};
use crate::net::{
    Doing, Error,
    attr::{self, Message, af},
    netlink::{self, Netlink, Reply},
};

// include/uapi/linux/netfilter/nfnetlink_conntrack.h
const EXP_NEW: u16 = 2 << 8;
const EXP_GET: u16 = 2 << 8 | 1;
const CTA_EXPECT_MASTER: u16 = 1;
const CTA_EXPECT_ID: u16 = 5;

/// What is expected in the calling thread's namespace.
///
/// # Errors
/// If the table cannot be read.
pub fn expectations() -> Result<Vec<Expectation>, Error> {
    if super::count()? == Some(0) {
        return Ok(Vec::new());
    }
    // struct nfgenmsg: every family.
    let asked = Netlink::netfilter().and_then(|mut nl| nl.dump(EXP_GET, &Message::new(&[0; 4])));
    let replies = match asked {
        Err(e) if is_absent(&e) => return Ok(Vec::new()),
        other => other.doing(|| "reading the expectations of conntrack helpers".to_owned())?,
    };
    replies
        .iter()
        .filter_map(|reply| parse(reply).transpose())
        .collect::<Result<_, _>>()
        .doing(|| "reading an expectation".to_owned())
}

/// Those of connections with one of `addresses` on either side that neither begin nor end at this host itself.
///
/// # Errors
/// As [`expectations`].
pub fn passing_expected(addresses: &[IpAddr], own: &[IpAddr]) -> Result<Vec<Expectation>, Error> {
    let mut all = expectations()?;
    all.retain(|e| reaches(&[e.master.source, e.master.destination], addresses, own));
    Ok(all)
}

/// Makes the calling thread's namespace expect `all`; the connections that they were announced in are tracked there already. What could not
/// be made, in words.
///
/// # Errors
/// If the kernel cannot be asked at all.
pub fn expect(all: &[Expectation]) -> Result<Vec<String>, Error> {
    let mut failed = Vec::new();
    if all.is_empty() {
        return Ok(failed);
    }
    let mut nl = Netlink::netfilter().doing(|| "opening a socket for conntrack".to_owned())?;
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    for expectation in all {
        match nl.request(EXP_NEW, flags, request(expectation)) {
            Err(e) if e.errno() == Some(libc::EEXIST) => {}
            Err(e) => failed.push(format!(
                "an expectation {expectation}: {e}; the connection that it announces is not known as related"
            )),
            Ok(()) => {}
        }
    }
    Ok(failed)
}

fn request(expectation: &Expectation) -> Message {
    let head = Message::new(&[af(entry::family(&expectation.master)), 0, 0, 0]);
    expectation
        .settings
        .iter()
        .fold(head, |m, setting| m.bytes(setting.number, &setting.value))
}

/// None if it is of a family that no image carries.
fn parse(reply: &Reply) -> Result<Option<Expectation>, netlink::Error> {
    let (header, attrs) = reply.split::<4>()?;
    if attr::family(header[0]).is_none() {
        return Ok(None);
    }
    let mut master: Option<Tuple> = None;
    let mut settings = Vec::new();
    for attr in attrs {
        let attr = attr?;
        match attr.kind {
            CTA_EXPECT_MASTER => master = Some(entry::parse_tuple(attr)?),
            // The kernel's own name for it.
            CTA_EXPECT_ID => continue,
            _ => {}
        }
        settings.push(Setting {
            number: attr.kind,
            value: attr.value.to_vec(),
        });
    }
    let missing = || netlink::Error::Malformed("an expectation without its connection".into());
    Ok(Some(Expectation {
        master: master.ok_or_else(missing)?,
        settings,
    }))
}

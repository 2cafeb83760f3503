//! Traffic shaping: not carried, named.
use std::collections::HashMap;

use super::{
    Doing, Error,
    attr::{Message, u32_at},
    netlink::{self, Netlink, Reply},
    uapi::TCA_KIND,
};

/// What somebody has set up on the links of the namespace, in words for the report. Queues that the kernel gives to a link by itself have
/// no handle (dev_activate()).
pub fn named(nl: &mut Netlink, names: &HashMap<u32, String>) -> Result<Vec<String>, Error> {
    // struct tcmsg: all links.
    let replies = match nl.dump(libc::RTM_GETQDISC, &Message::new(&[0; 20])) {
        // A kernel without traffic control shapes nothing.
        Err(e) if e.errno() == Some(libc::EOPNOTSUPP) => return Ok(Vec::new()),
        other => other.doing(|| "reading the queueing disciplines".to_owned())?,
    };
    let mut found = replies
        .iter()
        .filter_map(|reply| parse(reply, names).transpose())
        .collect::<Result<Vec<_>, _>>()
        .doing(|| "reading a queueing discipline".to_owned())?;
    found.sort();
    Ok(found)
}

fn parse(reply: &Reply, names: &HashMap<u32, String>) -> Result<Option<String>, netlink::Error> {
    let (header, attrs) = reply.split::<20>()?;
    let (index, handle) = (u32_at(&header, 4), u32_at(&header, 8));
    let Some(link) = names.get(&index).filter(|_| handle != 0) else {
        return Ok(None);
    };
    for attr in attrs {
        let attr = attr?;
        if attr.kind == TCA_KIND {
            return Ok(Some(format!(
                "link {link} has a queueing discipline {} {:x}: (with its classes and filters): not carried, set it up at the target",
                attr.text(),
                handle >> 16,
            )));
        }
    }
    Ok(None)
}

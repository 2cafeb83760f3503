//! Expectations: connections that a helper has seen announced inside of others (the data of FTP, the media of SIP).
use std::collections::BTreeMap;

use super::is_absent;
use crate::net::{
    Doing, Error,
    attr::Message,
    netlink::{self, Netlink, Reply},
};

// include/uapi/linux/netfilter/nfnetlink_conntrack.h
const EXP_GET: u16 = 2 << 8 | 1;
const CTA_EXPECT_HELP_NAME: u16 = 6;

/// The calling thread's namespace's, which are not carried, in words: one line for each helper.
///
/// # Errors
/// If the table cannot be read.
pub fn expected() -> Result<Vec<String>, Error> {
    // struct nfgenmsg: every family.
    let asked = Netlink::netfilter().and_then(|mut nl| nl.dump(EXP_GET, &Message::new(&[0; 4])));
    let replies = match asked {
        Err(e) if is_absent(&e) => return Ok(Vec::new()),
        other => other.doing(|| "reading the expectations of conntrack helpers".to_owned())?,
    };
    let mut helpers = BTreeMap::<String, usize>::new();
    for reply in &replies {
        let helper = helper(reply).doing(|| "reading an expectation".to_owned())?;
        *helpers.entry(helper).or_default() += 1;
    }
    Ok(helpers
        .iter()
        .map(|(helper, n)| named(helper, *n))
        .collect())
}

fn helper(reply: &Reply) -> Result<String, netlink::Error> {
    let (_, attrs) = reply.split::<4>()?;
    for attr in attrs {
        let attr = attr?;
        if attr.kind == CTA_EXPECT_HELP_NAME {
            return Ok(attr.text());
        }
    }
    // One that a ruleset makes (ct expectation) has no helper of a name.
    Ok(String::new())
}

fn named(helper: &str, count: usize) -> String {
    let whose = match helper {
        "" => "without a helper's name".to_owned(),
        helper => format!("of helper {helper}"),
    };
    format!(
        "expectations {whose}: {count}; a connection that one of them announces and that begins after the move is not known as related"
    )
}

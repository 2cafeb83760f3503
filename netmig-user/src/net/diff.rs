//! What is different between two networks, object by object.
use std::fmt;

use netmig_core::image::v1::{filter::Filters, net::Network};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::filter;

/// Name and version of the list's form.
pub const SCHEMA: &str = "netmig.net-diff/1";

/// One difference.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Difference {
    /// Kind of object: the name of its list in the document.
    pub what: &'static str,
    /// Which one, in words; empty for the order of all.
    pub which: String,
    /// How it is in the first network; none if it is not there.
    pub before: Option<Value>,
    /// How it is in the second; none if it is not there.
    pub after: Option<Value>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            what,
            which,
            before,
            after,
        } = self;
        match (before, after) {
            (Some(before), Some(after)) => {
                write!(f, "{what} {which}:")?;
                changes(f, "", before, after)
            }
            (Some(_), None) => write!(f, "{what} {which}: only in the first"),
            (None, Some(_)) => write!(f, "{what} {which}: only in the second"),
            (None, None) => write!(f, "{what}: the same ones in another order"),
        }
    }
}

/// Everything that is different. What changes by itself (lifetimes, counters of filters) counts only if `exact`.
///
/// # Errors
/// None in practice: a network is always JSON.
pub fn diff(
    before: &Network,
    after: &Network,
    exact: bool,
) -> Result<Vec<Difference>, serde_json::Error> {
    let settled = |network: &Network| {
        if exact {
            return network.clone();
        }
        Network {
            filters: filter::settled(&network.filters),
            ..network.clone().timeless()
        }
    };
    let (before, after) = (settled(before), settled(after));
    let mut all = Vec::new();
    list(&mut all, "links", &before.links, &after.links, |l| {
        (l.name.clone(), true)
    })?;
    list(
        &mut all,
        "addresses",
        &before.addresses,
        &after.addresses,
        |a| (format!("{} of {}", a.local, a.link), true),
    )?;
    list(
        &mut all,
        "nexthops",
        &before.nexthops,
        &after.nexthops,
        |object| (object.id.to_string(), true),
    )?;
    list(&mut all, "routes", &before.routes, &after.routes, |r| {
        (r.to_string(), false)
    })?;
    list(&mut all, "rules", &before.rules, &after.rules, |r| {
        (r.to_string(), false)
    })?;
    list(
        &mut all,
        "neighbours",
        &before.neighbours,
        &after.neighbours,
        |n| {
            let link = n.link.as_deref().unwrap_or("every link");
            (format!("{} on {link}", n.address), false)
        },
    )?;
    list(
        &mut all,
        "forwarding",
        &before.forwarding,
        &after.forwarding,
        |f| (format!("{} on {}", f.mac, f.link), false),
    )?;
    list(&mut all, "sysctls", &before.sysctls, &after.sysctls, |s| {
        (format!("net/{}", s.path), true)
    })?;
    list(&mut all, "shaping", &before.shaping, &after.shaping, |d| {
        (d.to_string(), true)
    })?;
    let (old, new) = (&before.filters, &after.filters);
    list(&mut all, "ipsets", &old.ipsets, &new.ipsets, |line| {
        (line.clone(), false)
    })?;
    list(&mut all, "nft", &old.nft, &new.nft, |t| {
        (format!("{} {}", t.family, t.name), true)
    })?;
    list(&mut all, "xtables", &old.xtables, &new.xtables, |t| {
        (format!("{} {}", t.program, t.name), true)
    })?;
    let arptables = |filters: &Filters| filters.arptables.iter().cloned().collect::<Vec<_>>();
    list(
        &mut all,
        "arptables",
        &arptables(old),
        &arptables(new),
        |t| (t.to_string(), true),
    )?;
    list(&mut all, "lost", &old.lost, &new.lost, |text| {
        (text.clone(), false)
    })?;
    list(
        &mut all,
        "not_carried",
        &before.not_carried,
        &after.not_carried,
        |text| (text.clone(), false),
    )?;
    Ok(all)
}

/// Objects with a name of their own are compared by it; of the others there are more or fewer.
fn list<T: PartialEq + Serialize>(
    all: &mut Vec<Difference>,
    what: &'static str,
    before: &[T],
    after: &[T],
    name: impl Fn(&T) -> (String, bool),
) -> Result<(), serde_json::Error> {
    let mut spare: Vec<&T> = after.iter().collect();
    let mut gone: Vec<&T> = Vec::new();
    for object in before {
        match spare.iter().position(|o| *o == object) {
            Some(at) => drop(spare.remove(at)),
            None => gone.push(object),
        }
    }
    if gone.is_empty() && spare.is_empty() {
        if before != after {
            all.push(Difference {
                what,
                which: String::new(),
                before: None,
                after: None,
            });
        }
        return Ok(());
    }
    for object in gone {
        let (which, own) = name(object);
        let now = spare.iter().position(|o| own && name(o).0 == which);
        let after = now.map(|at| serde_json::to_value(spare.remove(at)));
        all.push(Difference {
            what,
            which,
            before: Some(serde_json::to_value(object)?),
            after: after.transpose()?,
        });
    }
    for object in spare {
        all.push(Difference {
            what,
            which: name(object).0,
            before: None,
            after: Some(serde_json::to_value(object)?),
        });
    }
    Ok(())
}

/// A line for each place in which two values differ.
fn changes(f: &mut fmt::Formatter<'_>, at: &str, before: &Value, after: &Value) -> fmt::Result {
    match (before, after) {
        (Value::Object(old), Value::Object(new)) => {
            for (key, old) in old {
                if let Some(new) = new.get(key).filter(|new| *new != old) {
                    changes(f, &format!("{at} {key}"), old, new)?;
                }
            }
            Ok(())
        }
        (Value::Array(old), Value::Array(new)) if lines(old) && lines(new) => {
            let (old, new): (Vec<_>, Vec<_>) = (text(old).collect(), text(new).collect());
            for line in old.iter().filter(|line| !new.contains(line)) {
                write!(f, "\n  - {}", line.trim())?;
            }
            for line in new.iter().filter(|line| !old.contains(line)) {
                write!(f, "\n  + {}", line.trim())?;
            }
            Ok(())
        }
        _ => write!(f, "{at} {before} -> {after}"),
    }
}

fn lines(array: &[Value]) -> bool {
    array.iter().all(Value::is_string)
}

fn text(array: &[Value]) -> impl Iterator<Item = &str> {
    array.iter().filter_map(Value::as_str)
}

#[cfg(test)]
mod tests {
    use netmig_core::image::v1::{
        filter::{Filters, Table},
        net::Sysctl,
    };

    use super::*;

    fn network(sysctl: &str, rule: &str) -> Network {
        Network {
            sysctls: vec![Sysctl {
                path: "ipv4/ip_forward".into(),
                value: sysctl.into(),
                inherited: false,
            }],
            filters: Filters {
                nft: vec![Table {
                    family: "inet".into(),
                    name: "f".into(),
                    lines: vec!["table inet f {".into(), rule.into(), "}".into()],
                }],
                ..Filters::default()
            },
            ..Network::default()
        }
    }

    fn told(before: &Network, after: &Network, exact: bool) -> Vec<String> {
        diff(before, after, exact)
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn a_change_is_told_with_both_values_and_counters_only_if_asked_for() {
        let one = network("0", "counter packets 1 bytes 2");
        let counted = network("0", "counter packets 9 bytes 9");
        assert_eq!(told(&one, &one, true), [] as [&str; 0]);
        assert_eq!(told(&one, &counted, false), [] as [&str; 0]);
        assert_eq!(
            told(&one, &counted, true),
            ["nft inet f:\n  - counter packets 1 bytes 2\n  + counter packets 9 bytes 9"]
        );
        assert_eq!(
            told(&one, &network("1", "counter packets 1 bytes 2"), false),
            ["sysctls net/ipv4/ip_forward: value \"0\" -> \"1\""]
        );
        let gone = Network {
            sysctls: Vec::new(),
            ..one.clone()
        };
        assert_eq!(
            told(&one, &gone, false),
            ["sysctls net/ipv4/ip_forward: only in the first"]
        );
    }

    #[test]
    fn another_order_is_a_difference() {
        let mut one = network("0", "drop");
        one.sysctls.push(Sysctl {
            path: "ipv4/tcp_sack".into(),
            value: "1".into(),
            inherited: false,
        });
        let mut other = one.clone();
        other.sysctls.reverse();
        assert_eq!(
            told(&one, &other, false),
            ["sysctls: the same ones in another order"]
        );
    }
}

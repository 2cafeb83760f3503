//! A network without what cannot be made.
use super::{LinkKind, Network, Way};

impl Network {
    /// Leaves out the links for which `unfit` has a reason, and everything that needs a link or a next hop object that is not there. Each is named, with why.
    pub fn leave_out(&mut self, unfit: impl Fn(&super::Link) -> Option<String>) -> Vec<String> {
        let mut left = Vec::new();
        let mut out = |what: String, why: &str| left.push(format!("{what} is left out: {why}"));
        self.links.retain(|link| match unfit(link) {
            Some(why) => {
                out(format!("link {}", link.name), &why);
                false
            }
            None => true,
        });
        // What lay on one that has gone may carry others.
        loop {
            let names: Vec<_> = self.links.iter().map(|l| l.name.clone()).collect();
            let before = self.links.len();
            self.links.retain(|link| {
                let on = match &link.kind {
                    LinkKind::Virtual { parent, .. } => parent.as_ref(),
                    LinkKind::Pair { other } => Some(other),
                    _ => None,
                };
                let missing = on.filter(|on| !names.contains(on));
                if let Some(on) = missing {
                    out(format!("link {}", link.name), &needs(on));
                }
                missing.is_none()
            });
            if self.links.len() == before {
                break;
            }
        }
        let names: Vec<_> = self.links.iter().map(|l| l.name.clone()).collect();
        let missing = |link: &String| !names.contains(link);
        for link in &mut self.links {
            if let Some(master) = link.master.take_if(|master| missing(master)) {
                link.port.clear();
                out(format!("link {} as a port", link.name), &needs(&master));
            }
        }
        self.addresses.retain(|address| {
            let gone = missing(&address.link);
            if gone {
                out(format!("address {}", address.local), &needs(&address.link));
            }
            !gone
        });
        self.nexthops.retain(|object| match &object.way {
            Way::Single {
                link: Some(link), ..
            } if missing(link) => {
                out(format!("next hop object {object}"), &needs(link));
                false
            }
            _ => true,
        });
        loop {
            let ids: Vec<_> = self.nexthops.iter().map(|o| o.id).collect();
            let before = ids.len();
            self.nexthops.retain(|object| {
                let Way::Group { members, .. } = &object.way else {
                    return true;
                };
                let gone = members.iter().find(|(id, _)| !ids.contains(id));
                if let Some((id, _)) = gone {
                    out(format!("next hop object {object}"), &needs_object(*id));
                }
                gone.is_none()
            });
            if self.nexthops.len() == before {
                break;
            }
        }
        let ids: Vec<_> = self.nexthops.iter().map(|o| o.id).collect();
        self.routes.retain(|route| {
            let mut links = route.next_hops.iter().filter_map(|hop| hop.link.as_ref());
            let why = match (links.find(|l| missing(l)), route.nexthop) {
                (Some(link), _) => needs(link),
                (None, Some(id)) if !ids.contains(&id) => needs_object(id),
                _ => return true,
            };
            out(format!("route {route}"), &why);
            false
        });
        self.neighbours.retain(|neighbour| {
            let gone = neighbour.link.as_ref().filter(|link| missing(link));
            if let Some(link) = gone {
                out(format!("neighbour {}", neighbour.address), &needs(link));
            }
            gone.is_none()
        });
        self.forwarding.retain(|entry| {
            let gone = [Some(&entry.link), entry.via.as_ref()];
            let gone = gone.into_iter().flatten().find(|link| missing(link));
            if let Some(link) = gone {
                out(format!("forwarding entry {}", entry.mac), &needs(link));
            }
            gone.is_none()
        });
        self.shaping.retain(|discipline| {
            let gone = missing(&discipline.link);
            if gone {
                let what = format!(
                    "queueing discipline {} of link {}",
                    discipline.kind, discipline.link
                );
                out(what, &needs(&discipline.link));
            }
            !gone
        });
        self.learnt
            .retain(|neighbour| !neighbour.link.as_ref().is_some_and(missing));
        left
    }
}

fn needs(link: &str) -> String {
    format!("it needs link {link}, which is not there")
}

fn needs_object(id: u32) -> String {
    format!("it needs next hop object {id}, which is not there")
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Address, Family, Link, NextHop, NextHopObject, Prefix, Route, Setting},
        *,
    };

    fn lying_on(name: &str, index: u32, parent: &str) -> Link {
        let kind = LinkKind::Virtual {
            kind: "vlan".into(),
            parent: Some(parent.into()),
            settings: Vec::new(),
        };
        Link::new(name, index, kind)
    }

    fn route(to: &str, link: Option<&str>, nexthop: Option<u32>) -> Route {
        let hop = |link: &str| NextHop {
            link: Some(link.into()),
            gateway: None,
            hops: 0,
            onlink: false,
            realm: None,
        };
        Route {
            family: Family::Inet,
            table: 254,
            kind: 1,
            destination: Prefix {
                address: to.parse().unwrap(),
                len: 24,
            },
            source: None,
            tos: 0,
            scope: 0,
            protocol: 3,
            priority: None,
            prefsrc: None,
            preference: None,
            expires: None,
            metrics: Vec::new(),
            next_hops: link.map(hop).into_iter().collect(),
            nexthop,
        }
    }

    fn object(id: u32, way: Way) -> NextHopObject {
        NextHopObject {
            id,
            family: Some(Family::Inet),
            protocol: 3,
            fdb: false,
            way,
        }
    }

    #[test]
    fn what_needs_a_link_goes_with_it_and_the_rest_stays() {
        let strange = Link::new("odd", 3, LinkKind::Other("nlmon".into()));
        let port = Link {
            master: Some("odd".into()),
            port: vec![Setting {
                number: 1,
                value: vec![1],
            }],
            ..Link::new("p1", 6, LinkKind::Dummy)
        };
        let on_link = |id, link: &str| {
            let way = Way::Single {
                link: Some(link.into()),
                gateway: None,
                onlink: false,
            };
            object(id, way)
        };
        let group = |id, member| {
            let way = Way::Group {
                members: vec![(member, 0)],
                resilient: None,
            };
            object(id, way)
        };
        let local = |address: &str| Prefix {
            address: address.parse().unwrap(),
            len: 24,
        };
        let mut network = Network {
            links: vec![
                Link::new("eth0", 2, LinkKind::Veth),
                strange,
                lying_on("odd.5", 4, "odd"),
                lying_on("odd.5.6", 5, "odd.5"),
                port,
            ],
            addresses: vec![
                Address::new("eth0", local("192.0.2.10")),
                Address::new("odd.5.6", local("10.5.6.1")),
            ],
            nexthops: vec![
                on_link(1, "eth0"),
                on_link(2, "odd"),
                group(3, 2),
                group(4, 1),
            ],
            routes: vec![
                route("10.1.0.0", Some("eth0"), None),
                route("10.2.0.0", Some("odd.5"), None),
                route("10.3.0.0", None, Some(3)),
                route("10.4.0.0", None, Some(4)),
            ],
            ..Network::default()
        };
        let unfit = |link: &Link| {
            matches!(link.kind, LinkKind::Other(_)).then(|| "nobody can make it".to_owned())
        };
        let left = network.leave_out(unfit);
        assert_eq!(
            left,
            [
                "link odd is left out: nobody can make it",
                "link odd.5 is left out: it needs link odd, which is not there",
                "link odd.5.6 is left out: it needs link odd.5, which is not there",
                "link p1 as a port is left out: it needs link odd, which is not there",
                "address 10.5.6.1/24 is left out: it needs link odd.5.6, which is not there",
                "next hop object 2 dev odd is left out: it needs link odd, which is not there",
                "next hop object 3 group 2 is left out: it needs next hop object 2, which is not there",
                "route 10.2.0.0/24 dev odd.5 table 254 is left out: it needs link odd.5, which is not there",
                "route 10.3.0.0/24 nhid 3 table 254 is left out: it needs next hop object 3, which is not there",
            ]
        );
        let names: Vec<_> = network.links.iter().map(|l| l.name.as_str()).collect();
        assert_eq!(names, ["eth0", "p1"]);
        assert!(network.links[1].master.is_none() && network.links[1].port.is_empty());
        assert_eq!((network.addresses.len(), network.routes.len()), (1, 2));
        assert_eq!(network.leave_out(unfit), [] as [&str; 0]);
    }
}

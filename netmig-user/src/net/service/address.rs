//! Service addresses on a host's own devices, and the container's neighbour entries there.
use std::{
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use netmig_core::{
    image::v1::net::{Address, Network},
    service::{Behind, Service},
};

use super::super::{
    Doing, Error, addr,
    announce::Own,
    link::{self, Seen},
    neigh,
    netlink::{self, Netlink},
    open, route,
    uapi::{IFA_F_NODAD, NUD_PERMANENT, NUD_STALE},
};

/// How long the kernel may take to lead to an address that it has.
const LEADING: Duration = Duration::from_millis(500);
/// Between two looks at that.
const GLANCE: Duration = Duration::from_micros(500);

/// Puts each address onto its device of the calling thread's namespace, as the source's device had it. One that is there stays. What failed, in
/// words: the others are put on.
///
/// By then what comes for the addresses is this host's own. An IPv6 address is on its device at once, but packets for it are led here only once a
/// workqueue of the kernel has run (addrconf_dad_work()). Until then this host asks for its neighbours from the address and forwards their answers:
/// it asks again after a second, and of what waits for that the queue takes some 200 KB (unres_qlen_bytes).
pub fn put(services: &[Service]) -> Vec<String> {
    let mut left = put_on(services);
    left.extend(lead_here(services));
    left
}

fn lead_here(services: &[Service]) -> Vec<String> {
    let until = Instant::now() + LEADING;
    let led = |nl: &mut Netlink, address| loop {
        match route::is_local(nl, address) {
            Ok(true) => return None,
            Ok(false) if Instant::now() < until => thread::sleep(GLANCE),
            Ok(false) => {
                return Some(format!(
                    "service address {address} is on this host, but what comes for it is not led here yet, {LEADING:?} later: peers may have to ask for it again"
                ));
            }
            Err(e) => return Some(format!("looking where {address} leads: {e}")),
        }
    };
    let addresses = services.iter().map(|service| service.address.local.address);
    let v6: Vec<_> = addresses.filter(IpAddr::is_ipv6).collect();
    if v6.is_empty() {
        return Vec::new();
    }
    match open() {
        Ok(mut nl) => v6.into_iter().filter_map(|a| led(&mut nl, a)).collect(),
        Err(e) => vec![e.to_string()],
    }
}

fn put_on(services: &[Service]) -> Vec<String> {
    each(
        services,
        |service| &service.device,
        |nl, device, service| {
            let mut address = Address {
                link: device.name.clone(),
                ..service.address.clone()
            };
            // A label begins with the name of its device.
            let suffix =
                |label: String| Some(label.strip_prefix(&service.address.link)?.to_owned());
            address.label = address
                .label
                .and_then(suffix)
                .map(|suffix| device.name.clone() + &suffix);
            if address.local.address.is_ipv6() {
                // Its owner is the same: nobody is to be asked first.
                address.flags |= IFA_F_NODAD;
            }
            match addr::add(nl, device.index, &address) {
                Err(e) if e.errno() == Some(libc::EEXIST) => Ok(()),
                other => other,
            }
            .doing(|| {
                format!(
                    "adding service address {} to {}",
                    address.local, device.name
                )
            })
        },
    )
}

/// Takes each address off the device of the calling thread's namespace that has it at the source. One that is not there is no error. What
/// failed, in words.
pub fn take(services: &[Service]) -> Vec<String> {
    each(
        services,
        |service| &service.address.link,
        |nl, device, service| {
            addr::delete(nl, device.index, &service.address).doing(|| {
                format!(
                    "removing service address {} from {}",
                    service.address.local, device.name
                )
            })
        },
    )
}

fn each<'a>(
    services: &'a [Service],
    name: impl Fn(&'a Service) -> &'a String,
    work: impl Fn(&mut Netlink, &Seen, &'a Service) -> Result<(), Error>,
) -> Vec<String> {
    if services.is_empty() {
        return Vec::new();
    }
    let mut nl = match open() {
        Ok(nl) => nl,
        Err(e) => return vec![e.to_string()],
    };
    let mut left = Vec::new();
    for service in services {
        let step = link::find(&mut nl, name(service)).and_then(|device| match device {
            Some(device) => work(&mut nl, &device, service),
            None => Err(Error::Refused(vec![format!(
                "there is no {} for service address {}",
                name(service),
                service.address.local
            )])),
        });
        left.extend(step.err().map(|e| e.to_string()));
    }
    left
}

/// Where and what to announce of services that were put on here.
pub fn at_target(services: &[Service]) -> Vec<Own> {
    own(services, |service| &service.device)
}

/// Where and what to announce of services that stay at the source.
pub fn at_source(services: &[Service]) -> Vec<Own> {
    own(services, |service| &service.address.link)
}

fn own<'a>(services: &'a [Service], device: impl Fn(&'a Service) -> &'a String) -> Vec<Own> {
    services
        .iter()
        .map(|service| Own {
            device: device(service).clone(),
            address: service.address.local.address,
        })
        .collect()
}

/// The host remembers the container's MACs by itself from now on. It forwards what is for the container as long as that comes here, and to a
/// question that the closed gate does not let out it would answer in the container's place: unreachable.
///
/// # Errors
/// An entry cannot be made.
pub fn pin(behind: &Behind, network: &Network) -> Result<(), Error> {
    neighbours(behind, network, NUD_PERMANENT)
}

/// The opposite of [`pin`]: the entries are as learnt ones again.
///
/// # Errors
/// As there.
pub fn unpin(behind: &Behind, network: &Network) -> Result<(), Error> {
    neighbours(behind, network, NUD_STALE)
}

fn neighbours(behind: &Behind, network: &Network, state: u16) -> Result<(), Error> {
    let mut nl = open()?;
    for subnet in &behind.subnets {
        let Some(mac) = network.link(&subnet.link).and_then(|l| l.mac) else {
            continue;
        };
        let Some(bridge) = link::find(&mut nl, &subnet.parent)? else {
            continue;
        };
        let addresses = network.addresses_of(&subnet.link).map(|a| a.local.address);
        for address in addresses.collect::<Vec<IpAddr>>() {
            let set: Result<(), netlink::Error> =
                neigh::set(&mut nl, bridge.index, address, mac, state);
            set.doing(|| format!("remembering {address} at {mac} on {}", subnet.parent))?;
        }
    }
    Ok(())
}

//! The networks that a container of podman is connected to.
use netmig_core::container::PodmanNetwork;

use super::record::{NetworkRecord, Record};
use crate::runtime::{Error, tool};

/// The record of a network; none if podman knows none.
pub fn record(name: &str) -> Result<Option<NetworkRecord>, Error> {
    match tool::json::<Vec<NetworkRecord>>(&["podman", "network", "inspect", "--", name]) {
        Ok(records) => Ok(records.into_iter().next()),
        Err(tool::Error::Failed { stderr, .. })
            if stderr.contains("not found") || stderr.contains("no such network") =>
        {
            Ok(None)
        }
        Err(e) => Err(e.into()),
    }
}

/// `lan:ip=192.0.2.10,mac=02:00:00:00:00:10,interface_name=eth0`: addresses are pinned, so that the record is the same and stays so.
pub fn argument(network: &PodmanNetwork) -> String {
    let mut options: Vec<String> = network
        .addresses
        .iter()
        .map(|address| {
            let ip = address.split('/').next().unwrap_or_default();
            format!("{}={ip}", if ip.contains(':') { "ip6" } else { "ip" })
        })
        .collect();
    options.extend((!network.mac.is_empty()).then(|| format!("mac={}", network.mac)));
    options.extend(
        (!network.interface.is_empty()).then(|| format!("interface_name={}", network.interface)),
    );
    options.extend(network.aliases.iter().map(|alias| format!("alias={alias}")));
    if options.is_empty() {
        network.name.clone()
    } else {
        format!("{}:{}", network.name, options.join(","))
    }
}

pub fn endpoint(
    container: &Record,
    network: &NetworkRecord,
    interfaces: &[(String, String)],
) -> PodmanNetwork {
    let endpoint = container
        .network_settings
        .networks
        .get(&network.name)
        .cloned()
        .unwrap_or_default();
    let addresses = [
        (endpoint.ip_address, endpoint.ip_prefix_len),
        (endpoint.ipv6_address, endpoint.ipv6_prefix_len),
    ];
    let short_id = container.id.get(..12).unwrap_or(&container.id);
    PodmanNetwork {
        name: network.name.clone(),
        interface: interfaces
            .iter()
            .find(|(_, mac)| *mac == endpoint.mac_address)
            .map(|(name, _)| name.clone())
            .unwrap_or_default(),
        parent: network.network_interface.clone(),
        addresses: addresses
            .iter()
            .filter(|(ip, _)| !ip.is_empty())
            .map(|(ip, prefix)| format!("{ip}/{prefix}"))
            .collect(),
        mac: endpoint.mac_address,
        // podman adds the short id by itself, and the target's is another one.
        aliases: endpoint
            .aliases
            .into_iter()
            .filter(|alias| alias != short_id && *alias != container.name)
            .collect(),
    }
}

/// What stands against a network, and what is to be known of it.
pub fn findings(network: &NetworkRecord) -> (Option<String>, Option<String>) {
    let name = &network.name;
    let mode = network
        .options
        .as_ref()
        .and_then(|options| options.get("mode"))
        .map_or("", String::as_str);
    let against = match network.driver.as_str() {
        "bridge" if mode != "unmanaged" && !network.internal => Some(format!(
            "network {name} is NATed behind this host ({}), so its addresses mean nothing elsewhere: connect the container to a bridge that carries \
             the hosts' own segment (podman network create --interface-name BRIDGE -o mode=unmanaged --subnet SUBNET --disable-dns NAME); or to such a bridge behind \
             both hosts, with rules of your own that translate, and move the address by which peers know it (--service-address)",
            network
                .subnets
                .iter()
                .flatten()
                .map(|s| s.subnet.as_str())
                .collect::<Vec<_>>()
                .join(", "),
        )),
        "bridge" | "macvlan" => None,
        driver => Some(format!(
            "network {name} is of driver {driver}: only bridge (unmanaged) and macvlan networks can be moved"
        )),
    };
    let about = network.dns_enabled.then(|| format!("network {name} has DNS by aardvark: names of containers left behind do not resolve at the target"));
    (against, about)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETWORK: &str = include_str!("fixtures/network.json");

    #[test]
    fn nat_network_is_refused_and_dns_is_said() {
        let mut network = serde_json::from_str::<Vec<NetworkRecord>>(NETWORK)
            .unwrap()
            .remove(0);
        assert_eq!(findings(&network), (None, None));
        network.options = None;
        network.dns_enabled = true;
        let (against, about) = findings(&network);
        assert!(against.unwrap().contains("192.0.2.0/24") && about.unwrap().contains("aardvark"));
    }
}

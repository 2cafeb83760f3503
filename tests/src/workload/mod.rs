//! Clients in the host `peer` that load the demo's container: started together, warm together, stopped together.
mod running;

pub use running::Running;

use std::net::SocketAddr;

use crate::demo;

/// A client to start: a row's name and the arguments of `netmig-peer`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// The row's name.
    pub name: String,
    /// Arguments of `netmig-peer`, the name and the server included.
    pub args: Vec<String>,
}

/// Over which protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Families {
    /// IPv4 alone.
    Ipv4,
    /// Half of the connections each.
    Both,
}

/// How much load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Over which protocols.
    pub families: Families,
    /// Redis connections in all.
    pub redis: usize,
    /// Between a redis connection's operations, ms.
    pub redis_every_ms: u64,
    /// Silent connections in all.
    pub idle: usize,
    /// Bytes a second of each bulk stream (one a family and direction), 0 for as fast as it goes; none for no streams.
    pub bulk_rate: Option<u64>,
    /// An iperf3 client, as fast as a bulk stream.
    pub iperf3: bool,
    /// Datagrams a second of each UDP client (one a family), 0 for none.
    pub udp_per_second: u32,
}

impl Default for Load {
    /// What the demo shows. The streams are paced, for on a machine of two processors unbounded ones would measure its scheduler.
    fn default() -> Self {
        Self {
            families: Families::Both,
            redis: 50,
            redis_every_ms: 0,
            idle: 10,
            bulk_rate: Some(10_000_000),
            iperf3: true,
            udp_per_second: 1000,
        }
    }
}

impl Load {
    /// The clients of this load.
    #[must_use]
    pub fn clients(&self) -> Vec<Client> {
        let mut clients = Vec::new();
        for &v6 in self.families.versions() {
            let family = if v6 { "v6" } else { "v4" };
            let half = |n: usize| self.families.share(n, v6);
            if half(self.redis) > 0 {
                let more = [
                    "--every".to_owned(),
                    self.redis_every_ms.to_string(),
                    "--connections".to_owned(),
                    half(self.redis).to_string(),
                ];
                clients.push(client(
                    format!("redis-{family}"),
                    "redis",
                    demo::redis(v6),
                    more,
                ));
            }
            if half(self.idle) > 0 {
                let more = ["--connections".to_owned(), half(self.idle).to_string()];
                clients.push(client(
                    format!("idle-{family}"),
                    "idle",
                    demo::redis(v6),
                    more,
                ));
            }
            if let Some(rate) = self.bulk_rate {
                for direction in ["inbound", "outbound"] {
                    let more = [
                        "--direction".to_owned(),
                        direction.to_owned(),
                        "--rate".to_owned(),
                        rate.to_string(),
                    ];
                    clients.push(client(
                        format!("bulk-{direction}-{family}"),
                        "bulk",
                        demo::bulk_server(v6),
                        more,
                    ));
                }
            }
            if self.iperf3 && !v6 {
                let more = [
                    "--rate".to_owned(),
                    self.bulk_rate.unwrap_or_default().to_string(),
                ];
                clients.push(client(
                    "iperf3-v4".to_owned(),
                    "iperf3",
                    demo::iperf3(v6),
                    more,
                ));
            }
            if self.udp_per_second > 0 {
                let more = ["--per-second".to_owned(), self.udp_per_second.to_string()];
                clients.push(client(
                    format!("udp-{family}"),
                    "udp",
                    demo::udp_echo(v6),
                    more,
                ));
            }
        }
        clients
    }
}

impl Families {
    fn versions(self) -> &'static [bool] {
        match self {
            Self::Ipv4 => &[false],
            Self::Both => &[false, true],
        }
    }

    fn share(self, n: usize, v6: bool) -> usize {
        match self {
            Self::Ipv4 => n,
            Self::Both if v6 => n / 2,
            Self::Both => n.div_ceil(2),
        }
    }
}

fn client(
    name: String,
    kind: &str,
    to: SocketAddr,
    more: impl IntoIterator<Item = String>,
) -> Client {
    let mut args = vec![
        kind.to_owned(),
        "--name".to_owned(),
        name.clone(),
        "--to".to_owned(),
        to.to_string(),
    ];
    args.extend(more);
    Client { name, args }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_counts_are_kept_and_none_means_none() {
        let load = Load {
            families: Families::Both,
            redis: 7,
            redis_every_ms: 0,
            idle: 1,
            bulk_rate: None,
            iperf3: false,
            udp_per_second: 0,
        };
        let told: Vec<_> = load
            .clients()
            .iter()
            .map(|c| (c.name.clone(), c.args.last().cloned()))
            .collect();
        let expected = [("redis-v4", "4"), ("idle-v4", "1"), ("redis-v6", "3")];
        assert_eq!(
            told,
            expected.map(|(name, n)| (name.to_owned(), Some(n.to_owned())))
        );
    }

    #[test]
    fn the_demo_has_both_families_and_both_directions() {
        let names: Vec<_> = Load::default()
            .clients()
            .into_iter()
            .map(|c| c.name)
            .collect();
        for name in [
            "redis-v4",
            "redis-v6",
            "bulk-inbound-v4",
            "bulk-outbound-v6",
            "iperf3-v4",
            "idle-v6",
            "udp-v4",
            "udp-v6",
        ] {
            assert!(names.iter().any(|n| n == name), "{name} in {names:?}");
        }
    }
}

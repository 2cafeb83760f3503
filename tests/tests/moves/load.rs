//! Clients at work on a container while it moves.
use std::time::Duration;

use netmig_lab::{
    peers::Outcome,
    workload::{Client, Running},
};

use crate::{
    container::Container,
    story::{PATIENCE, PEER_PROGRAM, Story},
};

/// How long a client waits for a reply.
pub const PEERS_PATIENCE: Duration = Duration::from_secs(30);
/// The same where the hosts are emulated.
const EMULATED_PATIENCE: Duration = Duration::from_secs(240);

impl Story {
    /// A few verified clients and idle connections, warm, over both protocols.
    pub fn load(&self, container: &Container) -> Loaded<'_> {
        self.load_patient(container, PEERS_PATIENCE)
    }

    /// As [`Story::load`], for a blackout of up to `patience`.
    pub fn load_patient(&self, container: &Container, patience: Duration) -> Loaded<'_> {
        let patience = if self.emulated {
            EMULATED_PATIENCE.max(patience)
        } else {
            patience
        };
        let patience = patience.as_secs().to_string();
        let mut clients = Vec::new();
        for (kind, v6, connections) in [
            ("redis", false, 3),
            ("redis", true, 2),
            ("idle", false, 2),
            ("idle", true, 1),
        ] {
            let name = format!("{kind}-{}-{}", container.name, if v6 { "v6" } else { "v4" });
            let to = container.redis(v6).to_string();
            let connections = connections.to_string();
            let mut args = vec![
                kind,
                "--name",
                &name,
                "--to",
                &to,
                "--connections",
                &connections,
                "--limit",
                "900",
            ];
            if kind == "redis" {
                // Without a pause between two requests the clients would leave nothing of the processors to the move.
                let every = if self.emulated { "250" } else { "1" };
                args.extend(["--patience", &patience, "--every", every]);
            }
            clients.push(Client {
                args: args.into_iter().map(ToOwned::to_owned).collect(),
                name,
            });
        }
        self.load_with(container, &clients)
    }

    /// As [`Story::load`], with these clients.
    pub fn load_with(&self, container: &Container, clients: &[Client]) -> Loaded<'_> {
        let running = Running::start(self.peer(), PEER_PROGRAM, clients).expect("clients");
        running.wait_warm(PATIENCE).expect("warm clients");
        Loaded {
            story: self,
            container: *container,
            connections: self.connections(container),
            running,
        }
    }

    /// The connections of `peer` with the container as `local remote`, sorted.
    fn connections(&self, container: &Container) -> Vec<String> {
        let filter = format!("dst {} or dst [{}]", container.ipv4(), container.ipv6());
        let table = self
            .peer()
            .run(&["ss", "-Htn", "state", "established", &filter])
            .expect("ss");
        let ends = |line: &str| {
            let mut words = line.split_whitespace().skip(2);
            Some(format!("{} {}", words.next()?, words.next()?))
        };
        let mut all: Vec<_> = table.lines().filter_map(ends).collect();
        all.sort();
        all
    }
}

/// A container with clients at work.
pub struct Loaded<'a> {
    story: &'a Story,
    container: Container,
    connections: Vec<String>,
    running: Running,
}

impl Loaded<'_> {
    /// Stops the clients: no error, no reset, nothing corrupt, and the connections are the ones from the beginning.
    pub fn end_clean(self) -> Vec<Outcome> {
        let now = self.story.connections(&self.container);
        let outcomes = self.running.stop(PATIENCE).expect("outcomes");
        let dirty: Vec<_> = outcomes.iter().filter(|o| !o.clean()).collect();
        assert!(dirty.is_empty(), "{dirty:#?}\n{}", self.story.logs());
        assert_eq!(
            now, self.connections,
            "connections of {}",
            self.container.name
        );
        assert!(
            outcomes
                .iter()
                .any(|o| o.row.operations.is_some_and(|n| n > 0)),
            "nothing was asked: {outcomes:#?}"
        );
        outcomes
    }
}

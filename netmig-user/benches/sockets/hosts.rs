//! Source, target and peer as network namespaces at a bridge.
use std::{
    io::Write as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};

/// A network namespace that lives as long as the process in it, which ends with its input, and so with the bench.
pub struct Namespace(Child);

impl Namespace {
    fn new() -> anyhow::Result<Self> {
        let child = Command::new("unshare")
            .args(["-n", "cat"])
            .stdin(Stdio::piped())
            .spawn()
            .context("starting unshare")?;
        let ns = Self(child);
        let own = std::fs::read_link("/proc/self/ns/net")?;
        let until = Instant::now() + Duration::from_secs(5);
        while std::fs::read_link(ns.path()).is_ok_and(|n| n == own) {
            ensure!(Instant::now() < until, "unshare made no namespace");
            thread::sleep(Duration::from_millis(1));
        }
        Ok(ns)
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.0.id()))
    }

    fn ip(&self, batch: &str) -> anyhow::Result<()> {
        let net = format!("--net={}", self.path().display());
        let mut ip = Command::new("nsenter")
            .args([&net, "ip", "-batch", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .context("starting nsenter")?;
        let mut input = ip.stdin.take().context("ip has no input")?;
        input.write_all(batch.as_bytes())?;
        drop(input);
        ensure!(ip.wait()?.success(), "ip: {batch}");
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(e) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("ending the process of a namespace: {e}");
        }
    }
}

/// The address of the container, at both hosts.
pub const CONTAINER: [&str; 2] = ["192.0.2.10", "2001:db8::10"];

pub struct Hosts {
    world: Namespace,
    pub source: Namespace,
    pub target: Namespace,
    pub peer: Namespace,
}

impl Hosts {
    /// The source's port is in the bridge, the target's is not.
    pub fn up() -> anyhow::Result<Self> {
        const HERE: &str = "02:00:00:00:00:10";
        const THERE: &str = "02:00:00:00:00:01";
        let hosts = Self {
            world: Namespace::new()?,
            source: Namespace::new()?,
            target: Namespace::new()?,
            peer: Namespace::new()?,
        };
        hosts
            .world
            .ip("link add br0 type bridge\nlink set br0 up\n")?;
        for (port, ns, mac) in [
            ("vs", &hosts.source, HERE),
            ("vt", &hosts.target, HERE),
            ("vp", &hosts.peer, THERE),
        ] {
            hosts.world.ip(&format!(
                "link add {port} type veth peer name eth0 address {mac} netns {}\nlink set {port} up\n",
                ns.0.id()
            ))?;
        }
        hosts
            .world
            .ip("link set vp master br0\nlink set vs master br0\n")?;
        for ns in [&hosts.source, &hosts.target] {
            ns.ip(&link(CONTAINER))?;
            // As net/ carries them: nobody asks for a link address behind a closed gate.
            ns.ip(&neighbours(["192.0.2.1", "2001:db8::1"], THERE))?;
        }
        hosts.peer.ip(&link(["192.0.2.1", "2001:db8::1"]))?;
        hosts.peer.ip(&neighbours(CONTAINER, HERE))?;
        // A bridge port takes a moment to forward.
        thread::sleep(Duration::from_millis(50));
        Ok(hosts)
    }

    pub fn close_source(&self) -> anyhow::Result<()> {
        self.world.ip("link set vs nomaster\n")
    }

    pub fn open_target(&self) -> anyhow::Result<()> {
        self.world.ip("link set vt master br0\n")
    }
}

fn link([v4, v6]: [&str; 2]) -> String {
    format!(
        "link set lo up\nlink set eth0 up\naddr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\n"
    )
}

fn neighbours(of: [&str; 2], mac: &str) -> String {
    of.map(|ip| format!("neigh replace {ip} lladdr {mac} dev eth0 nud permanent\n"))
        .concat()
}

//! The segment that joins the hosts, and each host's end of it.
use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

use super::{
    link::{self, Line},
    options::HostSpec,
};

/// Makes the switch in this process's network namespace: a bridge that learns, one link to each of `hosts`, which is `eth0` there,
/// and a TAP device for each of `guests`, of its name.
///
/// With a line, the hosts that are no place for containers hang at it.
pub(super) fn make_switch<'a>(
    hosts: impl Iterator<Item = (&'a HostSpec, i32)>,
    guests: impl Iterator<Item = &'a HostSpec>,
    line: Option<(Line, &Path)>,
) -> anyhow::Result<()> {
    // A switch does not speak on the segment: no router solicitation, no MLD report.
    sysctl("net/ipv6/conf/all/disable_ipv6", "1")?;
    sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
    let mut batch =
        String::from("link add sw0 type bridge stp_state 0 mcast_snooping 0\nlink set sw0 up\n");
    for (host, pid) in hosts {
        let (name, mac) = (&host.name, host.mac());
        if let Some((line, counts)) = line.filter(|_| !host.full) {
            let far = format!("{name}-end");
            // The process that joins them is the keeper's child and ends with it.
            link::Ends::make(&far, name, line)?.join(line, counts)?;
            batch += &link::places(&far, name, &mac, pid, "sw0");
            continue;
        }
        writeln!(
            batch,
            "link add name {name} type veth peer name eth0 address {mac} netns {pid}"
        )?;
        writeln!(batch, "link set dev {name} master sw0 up")?;
    }
    for HostSpec { name, .. } in guests {
        writeln!(batch, "tuntap add dev {name} mode tap")?;
        writeln!(batch, "link set dev {name} master sw0 up")?;
    }
    ip(&batch).context("making the switch")
}

/// Gives the host its addresses: on `br0` with the uplink in it, or on the uplink itself.
pub(super) fn configure(host: &HostSpec) -> anyhow::Result<()> {
    // The addresses are ours by construction: nobody waits a second for each to be found so. Devices made later look as usual.
    for device in ["eth0", "default"] {
        sysctl(&format!("net/ipv6/conf/{device}/accept_dad"), "0")?;
    }
    let (ipv4, ipv6, mac) = (host.ipv4(), host.ipv6(), host.mac());
    let mut batch = String::from("link set lo up\n");
    let device = if host.full { "br0" } else { "eth0" };
    if host.full {
        writeln!(
            batch,
            "link add br0 address {mac} type bridge stp_state 0\nlink set eth0 master br0 addrgenmode none"
        )?;
        writeln!(batch, "link set br0 up")?;
    }
    writeln!(
        batch,
        "link set eth0 up\naddr add {ipv4}/24 brd + dev {device}\naddr add {ipv6}/64 dev {device}"
    )?;
    ip(&batch).with_context(|| format!("giving host {} its addresses", host.name))?;
    sysctl("net/ipv6/conf/default/accept_dad", "1")
}

fn sysctl(name: &str, value: &str) -> anyhow::Result<()> {
    fs::write(format!("/proc/sys/{name}"), value)
        .with_context(|| format!("setting {name} to {value}"))
}

fn ip(batch: &str) -> anyhow::Result<()> {
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting ip")?;
    if let Some(mut stdin) = ip.stdin.take() {
        stdin.write_all(batch.as_bytes()).context("talking to ip")?;
    }
    let output = ip.wait_with_output().context("waiting for ip")?;
    if !output.status.success() {
        bail!("ip: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(())
}

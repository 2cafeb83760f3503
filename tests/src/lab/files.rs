//! What is written into a host: names, ssh, podman.
use std::{fmt::Write as _, fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::Context as _;

use super::{
    keys::Keys,
    options::{HostSpec, Spec},
};

const SSHD: &str = "\
HostKey /etc/ssh/lab_host_key
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
PrintMotd no
MaxStartups 100
MaxSessions 100
";

const SSH: &str = "\
Host *
User root
IdentityFile /root/.ssh/id_ed25519
IdentitiesOnly yes
StrictHostKeyChecking yes
LogLevel ERROR
";

/// No systemd runs here, so groups and events are podman's own; without the pids controller a limit would be an error.
const CONTAINERS: &str = "\
[engine]
cgroup_manager = \"cgroupfs\"
events_logger = \"file\"
[network]
firewall_driver = \"nftables\"
[containers]
log_driver = \"k8s-file\"
pids_limit = 0
";

const STORAGE: &str = "\
[storage]
driver = \"overlay\"
graphroot = \"/var/lib/containers/storage\"
runroot = \"/run/containers/storage\"
";

const POLICY: &str = r#"{"default":[{"type":"insecureAcceptAnything"}]}"#;

/// A podman network on the hosts' segment: containers of all hosts are neighbours of the peer, as on a bridge of a real site, which is
/// not podman's to manage. Written here since `podman network create` refuses a subnet that the host itself has an address in.
const NETWORK: &str = r#"{
  "name": "lab",
  "id": "24ce3b0f29d35c9b183d031cb86691155e6bce21f92d4ce5b65c2041ccdb620a",
  "driver": "bridge",
  "network_interface": "br0",
  "created": "2025-01-01T00:00:00Z",
  "subnets": [
    {"subnet": "192.0.2.0/24", "gateway": "192.0.2.100"},
    {"subnet": "2001:db8::/64", "gateway": "2001:db8::100"}
  ],
  "ipv6_enabled": true,
  "internal": false,
  "dns_enabled": false,
  "options": {"mode": "unmanaged"},
  "ipam_options": {"driver": "host-local"}
}
"#;

/// Writes them; this process's root is the host's.
pub(super) fn write(spec: &Spec, host: &HostSpec, keys: &Keys) -> anyhow::Result<()> {
    file("/etc/hostname", &format!("{}\n", host.name), 0o644)?;
    file("/etc/hosts", &names(spec)?, 0o644)?;
    file("/etc/resolv.conf", "", 0o644)?;
    let id =
        fs::read_to_string("/proc/sys/kernel/random/uuid").context("asking for a machine id")?;
    file("/etc/machine-id", &id.replace('-', ""), 0o444)?;

    file("/etc/containers/containers.conf", CONTAINERS, 0o644)?;
    file("/etc/containers/storage.conf", STORAGE, 0o644)?;
    file("/etc/containers/policy.json", POLICY, 0o644)?;

    file("/etc/containers/networks/lab.json", NETWORK, 0o644)?;

    file("/root/.ssh/config", SSH, 0o600)?;
    file("/root/.ssh/id_ed25519", &keys.user.private, 0o600)?;
    file("/root/.ssh/known_hosts", &known_hosts(spec, keys)?, 0o600)?;
    if let Some(own) = keys.hosts.iter().find(|key| key.name == host.name) {
        file("/root/.ssh/authorized_keys", &keys.user.public, 0o600)?;
        file("/etc/ssh/lab_host_key", &own.private, 0o600)?;
        file("/etc/ssh/sshd_config.d/lab.conf", SSHD, 0o644)?;
    }
    fs::set_permissions("/root/.ssh", fs::Permissions::from_mode(0o700))
        .context("setting the permissions of /root/.ssh")
}

fn names(spec: &Spec) -> anyhow::Result<String> {
    let mut text = String::from("127.0.0.1 localhost\n::1 localhost\n");
    for host in &spec.hosts {
        writeln!(
            text,
            "{} {}\n{} {}",
            host.ipv4(),
            host.name,
            host.ipv6(),
            host.name
        )?;
    }
    Ok(text)
}

fn known_hosts(spec: &Spec, keys: &Keys) -> anyhow::Result<String> {
    let mut text = String::new();
    for key in &keys.hosts {
        if let Some(host) = spec.hosts.iter().find(|host| host.name == key.name) {
            writeln!(
                text,
                "{},{},{} {}",
                host.name,
                host.ipv4(),
                host.ipv6(),
                key.public
            )?;
        }
    }
    Ok(text)
}

fn file(path: &str, contents: &str, mode: u32) -> anyhow::Result<()> {
    let at = Path::new(path);
    if let Some(directory) = at.parent() {
        fs::create_dir_all(directory)
            .with_context(|| format!("creating {}", directory.display()))?;
    }
    fs::write(at, contents).with_context(|| format!("writing {path}"))?;
    fs::set_permissions(at, fs::Permissions::from_mode(mode))
        .with_context(|| format!("setting the permissions of {path}"))
}

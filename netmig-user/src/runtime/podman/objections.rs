//! What stands against moving a container of podman, by its record alone.
use super::record::Record;

/// Each with the way out.
pub fn of(record: &Record) -> Vec<String> {
    let host = &record.host_config;
    let mut found = Vec::new();
    let mut object = |condition: bool, text: &str| found.extend(condition.then(|| text.to_owned()));
    object(
        !record.pod.is_empty() || record.is_infra,
        "it belongs to a pod: pods are not moved; run it as a container of its own",
    );
    let mode = host.network_mode.as_str();
    object(
        mode == "host",
        "it uses the host's network, which stays with the host: give it a network of its own (--network NAME of an unmanaged bridge, or --network ns:PATH)",
    );
    object(
        mode.starts_with("container:"),
        "it shares the network namespace of another container: give it a network of its own",
    );
    object(
        mode.starts_with("slirp4netns") || mode.starts_with("pasta"),
        "its network is a user-mode one (pasta, slirp4netns), whose connections end in a process of this host: connect it to an unmanaged bridge",
    );
    object(
        !host.port_bindings.is_empty(),
        "it has published ports, and peers know the host's address: give it an address of its own on the segment and do without --publish; or translate by rules of your own on both \
         hosts to a container on an unmanaged bridge behind them, and move the host's address too (--service-address)",
    );
    for (mode, name, option) in [
        (&host.ipc_mode, "IPC", "--ipc"),
        (&host.pid_mode, "pid", "--pid"),
        (&host.uts_mode, "UTS", "--uts"),
        (&host.cgroup_mode, "cgroup", "--cgroupns"),
    ] {
        let shared = mode.starts_with("container:")
            || mode.starts_with("ns:")
            || (mode == "host" && option != "--cgroupns" && option != "--uts");
        object(
            shared,
            &format!("it shares a {name} namespace ({option}={mode}): give it one of its own"),
        );
    }
    object(
        !matches!(host.userns_mode.as_str(), "" | "host") || host.id_mappings.is_some(),
        "it has a user namespace: run it without --userns, --uidmap and --gidmap",
    );
    object(
        record.config.tty,
        "it has a terminal (--tty), which cannot follow it: create it without -t",
    );
    object(
        !record.exec_ids.is_empty(),
        "`podman exec` sessions are open in it: end them first",
    );
    object(
        !record.rootfs.is_empty(),
        "it was made with --rootfs: make it from an image",
    );
    object(
        !host.devices.is_empty(),
        "it has devices of this host (--device): their state cannot be moved",
    );
    object(
        !record.dependencies.is_empty(),
        "it depends on other containers of this host: remove the dependency (--requires, --volumes-from)",
    );
    object(
        record.driver != "overlay",
        "its storage driver is not overlay, so it has no writable layer of its own that could be copied: set driver=\"overlay\" in storage.conf",
    );
    object(
        record.oci_runtime.contains('/'),
        "its OCI runtime was given as a path: create it with --runtime runc or --runtime crun, so that it can be told apart for the move",
    );
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSPECT: &str = include_str!("fixtures/inspect.json");

    #[test]
    fn each_refusal_names_its_reason_and_a_way_out() {
        type Change = fn(&mut serde_json::Value);
        let cases: [(Change, &str); 10] = [
            (
                |v| v["HostConfig"]["NetworkMode"] = "host".into(),
                "host's network",
            ),
            (
                |v| v["HostConfig"]["NetworkMode"] = "container:4711".into(),
                "network namespace of another container",
            ),
            (
                |v| v["HostConfig"]["NetworkMode"] = "pasta".into(),
                "user-mode",
            ),
            (
                |v| {
                    v["HostConfig"]["PortBindings"] =
                        serde_json::json!({"80/tcp": [{"HostPort": "8080"}]})
                },
                "published ports",
            ),
            (|v| v["Pod"] = "4711".into(), "pod"),
            (|v| v["HostConfig"]["IpcMode"] = "host".into(), "--ipc=host"),
            (
                |v| v["HostConfig"]["UsernsMode"] = "private".into(),
                "user namespace",
            ),
            (|v| v["Config"]["Tty"] = true.into(), "without -t"),
            (|v| v["ExecIDs"] = serde_json::json!(["1"]), "podman exec"),
            (|v| v["Driver"] = "vfs".into(), "overlay"),
        ];
        for (change, reason) in cases {
            let mut value = serde_json::from_str::<serde_json::Value>(INSPECT).unwrap()[0].take();
            change(&mut value);
            let found = of(&serde_json::from_value(value).unwrap());
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].contains(reason), "{reason}: {found:?}");
        }
    }
}

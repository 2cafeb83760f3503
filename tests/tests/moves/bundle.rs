//! A bundle of runc or crun with its network namespace on the segment, as an administrator makes it by hand.
use netmig_lab::{Cmd, Host};

use crate::container::Container;

/// A link on the segment.
const NETWORK: &str = r#"
ip netns add "$NAME"
ip link add "$NAME-br" type veth peer name eth0 address "$MAC" netns "$NAME"
ip link set "$NAME-br" master br0 up
ip -n "$NAME" link set lo up
ip -n "$NAME" link set eth0 up
ip -n "$NAME" addr add "$IPV4/24" brd + dev eth0
ip -n "$NAME" addr add "$IPV6/64" dev eth0 nodad
ip -n "$NAME" route add default via 192.0.2.100
"#;

/// Unpacks the image, has the runtime write its default config.json and changes there what a service needs.
const MAKE: &str = r#"
mkdir -p "$BUNDLE/rootfs"
made=$(podman create "$IMAGE")
podman export "$made" | tar -C "$BUNDLE/rootfs" -x
podman rm "$made" >/dev/null
cd "$BUNDLE"
"$RUNTIME" spec
python3 - <<'PYTHON'
import json, os
config = json.load(open("config.json"))
config["process"]["terminal"] = False
config["process"]["args"] = os.environ["COMMAND"].split()
config["process"]["env"] = ["PATH=/bin"]
config["root"]["readonly"] = False
for namespace in config["linux"]["namespaces"]:
    if namespace["type"] == "network":
        namespace["path"] = "/run/netns/" + os.environ["NAME"]
json.dump(config, open("config.json", "w"))
PYTHON
"$RUNTIME" run --detach --bundle "$BUNDLE" "$NAME" </dev/null >/dev/null 2>&1 || "$RUNTIME" state "$NAME"
"#;

/// Makes it on `host` and runs redis in it.
pub fn start(host: &dyn Host, container: &Container, image: &str) {
    let link = Cmd::sh(NETWORK)
        .env("NAME", container.name)
        .env("MAC", container.mac())
        .env("IPV4", container.ipv4())
        .env("IPV6", container.ipv6());
    host.run_cmd(&link).expect("a link on the segment");
    run(
        host,
        container,
        image,
        &["/bin/redis-server", "/etc/redis.conf"],
    );
}

/// Makes it on `host` in the network namespace of its name, and runs `command` in it.
pub fn run(host: &dyn Host, container: &Container, image: &str, command: &[&str]) {
    let make = Cmd::sh(MAKE)
        .env("IMAGE", image)
        .env("NAME", container.name)
        .env("BUNDLE", format!("/srv/{}", container.name))
        .env("RUNTIME", container.tool())
        .env("COMMAND", command.join(" "));
    host.run_cmd(&make).expect("a bundle that runs");
}

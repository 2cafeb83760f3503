//! The agent is killed before the grant, and whatever else there is of netmig on the host with it.
use std::{
    thread,
    time::{Duration, Instant},
};

use netmig_lab::Host;
use serde_json::Value;

use crate::going::{AGENT, Going, kill};
use crate::keeper::{Impatient, Kept};

const GUARDED: &str = include_str!("guarded.py");
const LEFTOVER: &str = include_str!("leftover.py");

/// Kills all that runs netmig's program, under whatever name, but for what `$1` finds in its command line. They are stopped first, so that none
/// starts another. One may end by itself meanwhile.
const KILL: &str = r#"all() { for p in /proc/[0-9]*; do
        [ "$(readlink $p/exe)" = /usr/bin/netmig-user ] && ! tr '\0' ' ' < $p/cmdline | grep -q -- "$1" && echo ${p#/proc/}
    done; true; }
    while found=$(all "$1"); [ -n "$found" ]; do kill -STOP $found || :; kill -KILL $found || :; sleep 0.01; done"#;

/// As the process's command line begins; the brackets keep the pattern from finding its own shell.
const GUARDIAN: &str = "[n]etmig-user guard ";

/// A move whose blackout waits for its target, and peers that give up after three seconds without a word.
struct Guarded<'a> {
    kept: &'a Kept,
    peers: Impatient,
}

impl<'a> Guarded<'a> {
    fn waiting(kept: &'a Kept) -> Self {
        let source = kept.story.a();
        let peers = Impatient::running(kept, GUARDED);
        thread::sleep(Duration::from_millis(500));
        let mut going = Going::start(&kept.story, source, &kept.container, &["--lease", "1000"]);
        going.until("dump");
        kill(kept.story.b(), "STOP", AGENT);
        thread::sleep(Duration::from_millis(300));
        let closed = gate(source);
        assert_eq!(closed["mode"], "closed", "{closed}");
        assert!(closed["owned"].as_u64() > Some(0), "{closed}");
        Self { kept, peers }
    }

    fn kill_all_but(&self, spared: &str) {
        let script = format!("set -- '{spared}'; {KILL}");
        self.kept.story.a().sh(&script).expect("killed");
    }

    /// `frozen` or `runs`, and the number of its sockets in repair; with `repair` one is put there.
    fn container(&self, more: &str) -> String {
        let look = format!("python3 /tmp/leftover.py $(pgrep -x redis-server) {more}");
        let said = self.kept.story.a().sh(&look).expect("looked");
        said.trim().to_owned()
    }

    fn lives_on(self) {
        let Self { kept, peers } = self;
        kill(kept.story.b(), "CONT", AGENT);
        kept.story.no_move_is_left();
        kept.story.lives_only_on(kept.story.a(), &kept.container);
        peers.end();
        kept.story.nothing_is_left();
    }
}

fn gate(host: &dyn Host) -> Value {
    let status = host.run(&["netmig-user", "gate", "status", "--json"]);
    let status: Value = serde_json::from_str(&status.expect("told")).expect("JSON");
    status["gates"][0].clone()
}

#[test]
fn an_agent_that_is_killed_has_a_guardian_and_without_one_peers_are_kept() {
    let kept = Kept::up("guardian");
    let source = kept.story.a();
    source
        .write("/tmp/leftover.py", LEFTOVER.as_bytes(), 0o755)
        .expect("written");

    let guarded = Guarded::waiting(&kept);
    kill(source, "KILL", GUARDIAN);
    let begun = Instant::now();
    while source.sh(&format!("pgrep -f '{GUARDIAN}'")).is_err() {
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "it is not replaced"
        );
        thread::sleep(Duration::from_millis(20));
    }
    guarded.kill_all_but("netmig-user guard ");
    let begun = Instant::now();
    while guarded.container("") != "runs 0" {
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "nobody takes it up\n{}",
            kept.story.logs()
        );
        thread::sleep(Duration::from_millis(50));
    }
    println!("runs again after {:?}", begun.elapsed());
    guarded.lives_on();
    let log = source
        .run(&["cat", "/run/netmig/agent.log"])
        .expect("the agents' log");
    let delivered = "delivering what an earlier agent has acknowledged";
    assert!(log.contains(delivered), "{log}");

    let guarded = Guarded::waiting(&kept);
    guarded.kill_all_but("^$");
    thread::sleep(Duration::from_secs(5));
    let gate = gate(source);
    assert_eq!(gate["mode"], "expired", "{gate}");
    // Keepalives of who was told that its request is here, and probes of who has more to send.
    assert!(gate["inbound"]["answered"].as_u64() > Some(3), "{gate}");
    assert_eq!(guarded.container(""), "frozen 0");
    // As if an agent had been killed while it read this socket.
    assert_eq!(guarded.container("repair"), "frozen 1");
    source.run(&["netmig-user", "recover"]).expect("asked");
    guarded.lives_on();
}

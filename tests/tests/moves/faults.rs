//! Whatever breaks during a move: in the end one live copy with its connections, nothing left over, and the clients saw a pause.
use std::{
    thread,
    time::{Duration, Instant},
};

use netmig_lab::{Cmd, Host, peers::Outcome};

use crate::{
    catcher::Catcher,
    container::{Container, How},
    going::{AGENT, Going, SETTLED, kill},
    load::PEERS_PATIENCE,
    story::Story,
};

/// How long a hook is blocked.
const BLOCKED: Duration = Duration::from_secs(60);

/// A stage on which one fault follows another: the container goes on from where the last one left it.
struct Faults {
    story: Story,
    container: Container,
    /// How long its clients wait for a reply.
    patience: Duration,
}

/// Where a fault's container is to be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    /// It was taken back.
    Source,
    /// It was moved.
    Target,
    /// Either, by where exactly the fault hit.
    Anywhere,
}

impl Faults {
    fn up(name: &str) -> Self {
        let story = Story::up(name);
        let container = Container::new(How::Podman("crun"));
        story.start(story.a(), &container);
        Self {
            story,
            container,
            patience: PEERS_PATIENCE,
        }
    }

    /// One for a blackout of [`BLOCKED`].
    fn patient(name: &str) -> Self {
        Self {
            patience: 2 * BLOCKED,
            ..Self::up(name)
        }
    }

    /// Where the container lives.
    fn home(&self) -> &dyn Host {
        let (a, b) = (self.story.a(), self.story.b());
        if self.container.runs_on(a) { a } else { b }
    }

    /// One move under load in which `fault` breaks something, given the move, its source and its target. Gives what the clients say.
    fn one(
        &self,
        what: &str,
        more: &[&str],
        ends: Ends,
        fault: impl FnOnce(&mut Going, &dyn Host, &dyn Host),
    ) -> Vec<Outcome> {
        let began = Instant::now();
        let source = self.home();
        let target = self.story.other(source);
        let loaded = self.story.load_patient(&self.container, self.patience);
        let mut going = Going::start(&self.story, source, &self.container, more);
        fault(&mut going, source, target);
        if let Err(said) = going.ends() {
            panic!("{what}: the client hangs: {said}\n{}", self.story.logs());
        }
        self.settles(what);
        let home = self.home();
        self.story.lives_only_on(home, &self.container);
        let outcomes = loaded.end_clean();
        self.story.nothing_is_left();
        let found = if home.name() == source.name() {
            Ends::Source
        } else {
            Ends::Target
        };
        assert!(
            ends == Ends::Anywhere || ends == found,
            "{what}: lives at {found:?}, not {ends:?}\n{}",
            self.story.logs()
        );
        println!(
            "{what}: {found:?} after {:.1} s",
            began.elapsed().as_secs_f32()
        );
        outcomes
    }

    /// Waits until no move is under way on either host. Asking starts an agent where one was killed, as any netmig-user does.
    fn settles(&self, what: &str) {
        let end = Instant::now() + SETTLED;
        loop {
            let asked = [self.story.a(), self.story.b()]
                .map(|host| host.run(&["netmig-user", "recover"]).expect("recover"));
            if asked
                .iter()
                .all(|told| told.contains("no move is under way"))
            {
                return;
            }
            assert!(
                Instant::now() < end,
                "{what}: {asked:?}\n{}",
                self.story.logs()
            );
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// The host that CRIU's `moment` comes on: the source for those of a dump, else the target.
    fn host_of(&self, moment: &str) -> &dyn Host {
        let source = self.home();
        if matches!(moment, "pre-dump" | "network-lock" | "post-dump") {
            source
        } else {
            self.story.other(source)
        }
    }

    /// As [`Faults::one`]: the hook of CRIU's `moment` does nothing for [`BLOCKED`]. Gives the longest pause that a client saw, in ms.
    fn hook_blocked(&self, moment: &str, more: &[&str]) -> f64 {
        let mut catcher = Catcher::stopping(self.host_of(moment), moment, "hook", BLOCKED);
        let outcomes = self.one(
            &format!("hook blocked at {moment} {}", more.join(" ")),
            more,
            Ends::Anywhere,
            |going, _, _| going.is_caught_by(&mut catcher),
        );
        // Where the move has ended before, there is nothing to wait for.
        catcher.kill();
        let pauses = outcomes.iter().map(|o| o.row.longest_pause_ms);
        pauses.fold(0.0, f64::max)
    }

    /// As [`Faults::one`]: `victim` is killed at CRIU's `moment`.
    fn killed_at(&self, moment: &str, victim: &str, ends: Ends) {
        let mut catcher = Catcher::set(self.host_of(moment), moment, victim);
        self.one(
            &format!("{victim} killed at {moment}"),
            &[],
            ends,
            |going, _, _| {
                going.is_caught_by(&mut catcher);
                catcher.ends();
            },
        );
    }
}

#[test]
fn source_agent_killed() {
    let faults = Faults::up("kill-source");
    for phase in ["move ", "attach", "precopy"] {
        faults.one(
            &format!("source agent killed after `{phase}`"),
            &[],
            Ends::Source,
            |going, source, _| {
                going.until(phase);
                kill(source, "KILL", AGENT);
            },
        );
    }
    for moment in ["network-lock", "post-dump"] {
        faults.killed_at(moment, "agent", Ends::Anywhere);
    }
    // About the grant: the next agent takes the container back, or asks the target for its word.
    faults.one(
        "source agent killed after `rebuild`",
        &[],
        Ends::Anywhere,
        |going, source, _| {
            going.until("rebuild");
            kill(source, "KILL", AGENT);
        },
    );
}

/// A hook that finds no agent starts one, with the environment that podman has given it for that one move; and whoever starts it may have
/// blocked signals.
#[test]
fn an_agent_is_the_same_whoever_starts_it() {
    let story = Story::up("starter");
    let container = Container::new(How::Podman("crun"));
    let (a, b) = (story.a(), story.b());
    story.start(a, &container);
    let blocking = "import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
os.execvp('netmig-user', ['netmig-user', 'recover'])";
    let ask = Cmd::new(["python3", "-c", blocking])
        .env("CONTAINERS_CONF_OVERRIDE", "/no/such.conf")
        .env("CONTAINERS_HELPER_BINARY_DIR", "/no/such");
    for host in [a, b] {
        let asked = host.exec(&ask).expect("an agent");
        assert!(asked.status.success(), "{}", asked.errors());
        let blocked = host
            .sh(&format!(
                "grep SigBlk /proc/$(pgrep -of '{AGENT}')/task/*/status"
            ))
            .expect("its tasks");
        assert!(
            blocked
                .lines()
                .all(|line| line.ends_with("\t0000000000000000")),
            "{blocked}"
        );
    }
    let planned = a.exec(&story.command(a, &container).arg("--dry-run"));
    let planned = planned.expect("a plan");
    assert!(
        planned.status.success(),
        "{}{}",
        planned.errors(),
        planned.text()
    );
}

#[test]
fn target_agent_killed() {
    let faults = Faults::up("kill-target");
    for phase in ["plan", "precopy", "transfer"] {
        faults.one(
            &format!("target agent killed after `{phase}`"),
            &[],
            Ends::Anywhere,
            |going, _, target| {
                going.until(phase);
                kill(target, "KILL", AGENT);
            },
        );
    }
}

#[test]
fn criu_killed() {
    let faults = Faults::up("kill-criu");
    for moment in ["network-lock", "post-dump"] {
        faults.killed_at(moment, "criu", Ends::Source);
    }
    faults.killed_at("post-restore", "criu", Ends::Source);
}

#[test]
fn hook_killed() {
    let faults = Faults::up("kill-hook");
    for moment in ["network-lock", "post-dump"] {
        faults.killed_at(moment, "hook", Ends::Source);
    }
}

/// Unless a limit ends the move, the blackout is as long as the block, which is about how long the two sides wait for each other. With a limit
/// it is not much longer than that. Each in a lab of its own: they wait for the most part.
#[test]
fn hook_blocked() {
    thread::scope(|scope| {
        scope.spawn(|| {
            Faults::patient("hook-dump").hook_blocked("network-lock", &[]);
        });
        scope.spawn(|| {
            Faults::patient("hook-restore").hook_blocked("post-restore", &[]);
        });
        scope.spawn(|| {
            let faults = Faults::up("hook-limited");
            for moment in ["post-dump", "post-restore"] {
                let pause = faults.hook_blocked(moment, &["--max-blackout", "10000"]);
                // It takes a few seconds more until the hook is killed. One that is stopped after it has said its word holds up nothing.
                assert!(pause < 20_000.0, "{moment}: {pause} ms");
            }
        });
    });
}

#[test]
fn ssh_killed() {
    let faults = Faults::up("kill-ssh");
    for phase in ["plan", "attach", "dump", "rebuild"] {
        faults.one(
            &format!("ssh killed after `{phase}`"),
            &[],
            Ends::Anywhere,
            |going, source, _| {
                going.until(phase);
                source.sh("pkill -KILL -x ssh || true").expect("a shell");
            },
        );
    }
}

#[test]
fn client_gone_or_asking_back() {
    let faults = Faults::up("client");
    faults.one(
        "SIGHUP, then --attach",
        &[],
        Ends::Target,
        |going, source, _| {
            let id = going.id();
            going.until("attach");
            going.signal(libc::SIGHUP);
            going.end();
            let attached = source
                .exec(&Cmd::new(["netmig-user", "migrate", "--attach", &id]))
                .expect("attached");
            assert_eq!(
                attached.status.code(),
                Some(0),
                "{}{}",
                attached.errors(),
                attached.text()
            );
        },
    );
    faults.one("^C in precopy", &[], Ends::Source, |going, _, _| {
        going.until("attach");
        going.signal(libc::SIGINT);
        assert_eq!(going.code(), Some(1), "{}", going.said);
    });
}

#[test]
fn link_cut_around_the_grant() {
    let faults = Faults::up("link");
    faults.one("ssh between the hosts cut for 3 s", &[], Ends::Anywhere, |going, source, _| {
        going.until("transfer");
        source.sh("nft add table inet cut; nft add chain inet cut in '{ type filter hook input priority 0; }'; nft add chain inet cut out '{ type filter hook output priority 0; }'
            nft add rule inet cut in tcp sport 22 drop; nft add rule inet cut out tcp dport 22 drop").expect("cut");
        thread::sleep(Duration::from_secs(3));
        source.sh("nft delete table inet cut").expect("joined");
    });
}

#[test]
fn source_agent_stopped_across_its_lease() {
    let faults = Faults::up("stopped");
    faults.one(
        "source agent stopped for 3 s",
        &["--lease", "1000"],
        Ends::Anywhere,
        |going, source, _| {
            going.until("freeze");
            kill(source, "STOP", AGENT);
            thread::sleep(Duration::from_secs(3));
            kill(source, "CONT", AGENT);
        },
    );
}

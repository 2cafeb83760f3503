//! A killer in a host: it catches a process of netmig's, or CRIU, at one of CRIU's moments.
use std::{
    io::{BufRead as _, BufReader, PipeReader},
    time::Duration,
};

use netmig_lab::{Cmd, Host, Process};

const CATCH: &str = include_str!("catch.py");

/// One.
pub struct Catcher {
    process: Process,
    lines: BufReader<PipeReader>,
}

impl Catcher {
    /// One that kills `victim` at CRIU's `moment` on `host`, before a move begins.
    pub fn set(host: &dyn Host, moment: &str, victim: &str) -> Self {
        Self::start(host, &[moment, victim])
    }

    /// One that stops it for `time` instead.
    pub fn stopping(host: &dyn Host, moment: &str, victim: &str, time: Duration) -> Self {
        Self::start(host, &[moment, victim, &time.as_secs().to_string()])
    }

    fn start(host: &dyn Host, args: &[&str]) -> Self {
        host.write("/tmp/catch.py", CATCH.as_bytes(), 0o755)
            .expect("written");
        let mut process = host
            .spawn(&Cmd::new(["python3", "/tmp/catch.py"]).args(args.iter().copied()))
            .expect("a catcher");
        let mut lines = BufReader::new(process.stdout.take().expect("its output"));
        let mut line = String::new();
        lines.read_line(&mut line).expect("a line");
        assert_eq!(line.trim(), "ready");
        Self { process, lines }
    }

    /// Waits until it has done its work.
    pub fn caught(&mut self) {
        self.has_caught()
            .unwrap_or_else(|said| panic!("the moment did not come: {said}"));
        self.ends();
    }

    /// Waits until the process is dead or stopped; an error: it never came.
    pub fn has_caught(&mut self) -> Result<(), String> {
        let mut said = String::new();
        self.lines.read_line(&mut said).expect("a line");
        if said.starts_with("caught") {
            Ok(())
        } else {
            Err(said)
        }
    }

    pub fn ends(&mut self) {
        let status = self
            .process
            .wait_for(Duration::from_secs(60))
            .expect("the host answers");
        assert!(status.is_some_and(|status| status.success()), "{status:?}");
    }

    /// It need not wait any longer.
    pub fn kill(&mut self) {
        self.process
            .signal(libc::SIGKILL)
            .expect("the host answers");
        self.process.wait().expect("its end");
    }
}

//! A move under way, and who is killed meanwhile.
use std::{
    io::{BufRead as _, BufReader, PipeReader, Read as _},
    time::Duration,
};

use netmig_lab::{Host, Process};

use crate::{catcher::Catcher, container::Container, story::Story};

/// How long a move that broke may take to settle.
pub const SETTLED: Duration = Duration::from_secs(90);

/// A `migrate` under way.
pub struct Going {
    process: Process,
    lines: BufReader<PipeReader>,
    pub said: String,
}

impl Going {
    pub fn start(story: &Story, from: &dyn Host, container: &Container, more: &[&str]) -> Self {
        let command = story.command(from, container).args(more.iter().copied());
        let mut process = from.spawn(&command).expect("migrate");
        let lines = BufReader::new(process.stderr.take().expect("its lines"));
        Self {
            process,
            lines,
            said: String::new(),
        }
    }

    /// Reads until it has said `word`: the name of a phase is said at its end.
    pub fn until(&mut self, word: &str) {
        let mut line = String::new();
        loop {
            line.clear();
            let n = self.lines.read_line(&mut line).expect("a line");
            assert!(n > 0, "it ended before `{word}`: {}", self.ended());
            self.said.push_str(&line);
            if line.contains(word) {
                return;
            }
        }
    }

    /// Waits until the move comes to the catcher's moment.
    pub fn is_caught_by(&mut self, catcher: &mut Catcher) {
        if let Err(said) = catcher.has_caught() {
            self.end();
            panic!("the moment did not come: {said}{}", self.ended());
        }
    }

    /// All that a client that has ended said, its report too.
    fn ended(&mut self) -> String {
        let mut said = std::mem::take(&mut self.said);
        self.lines.read_to_string(&mut said).expect("its lines");
        if let Some(mut report) = self.process.stdout.take() {
            report.read_to_string(&mut said).expect("its report");
        }
        said
    }

    /// The move's id.
    pub fn id(&mut self) -> String {
        self.until("move ");
        self.said
            .lines()
            .find_map(|line| line.split_once("move "))
            .expect("an id")
            .1
            .trim()
            .to_owned()
    }

    /// Waits until the client has ended, however it did.
    pub fn end(&mut self) {
        self.ends()
            .unwrap_or_else(|said| panic!("the client hangs: {said}"));
    }

    pub fn signal(&mut self, signal: i32) {
        self.process.signal(signal).expect("the host answers");
    }

    /// Its exit code, once it has ended.
    pub fn code(&mut self) -> Option<i32> {
        let status = self.process.wait_for(SETTLED).expect("the host answers");
        status.and_then(|status| status.code())
    }

    /// As [`Going::end`]; an error is what a client said that does not end.
    pub fn ends(&mut self) -> Result<(), String> {
        if self
            .process
            .wait_for(SETTLED)
            .expect("the host answers")
            .is_some()
        {
            return Ok(());
        }
        self.process
            .signal(libc::SIGKILL)
            .expect("the host answers");
        self.process.wait().expect("its end");
        Err(self.ended())
    }
}

pub fn kill(host: &dyn Host, signal: &str, pattern: &str) {
    host.sh(&format!("pkill -{signal} -f '{pattern}'"))
        .unwrap_or_else(|e| panic!("{e}"));
}

/// As the process's command line begins and ends; the brackets keep the pattern from finding its own shell.
pub const AGENT: &str = "[a]gent --resident$";

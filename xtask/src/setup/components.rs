//! What cargo checks the source's form with.
use std::process::{Command, Stdio};

use super::{Step, command};

pub struct Components;

const NAMES: [(&str, &str); 2] = [("rustfmt", "fmt"), ("clippy", "clippy")];

impl Step for Components {
    fn what(&self) -> String {
        "rustfmt and clippy".to_owned()
    }

    fn why(&self) -> String {
        "the source's form is checked".to_owned()
    }

    fn missing(&self) -> anyhow::Result<Option<String>> {
        let works = |verb: &str| {
            Command::new("cargo")
                .args([verb, "--version"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success())
        };
        let absent = NAMES
            .iter()
            .filter(|(_, verb)| !works(verb))
            .map(|(name, _)| *name);
        let absent = absent.collect::<Vec<_>>().join(" and ");
        Ok((!absent.is_empty()).then(|| format!("no {absent}")))
    }

    fn make(&self) -> anyhow::Result<()> {
        let names = NAMES.map(|(name, _)| name);
        command::run(
            "rustup",
            Command::new("rustup")
                .args(["component", "add"])
                .args(names),
        )
    }
}

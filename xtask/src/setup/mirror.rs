//! Where this machine takes Debian from.
use std::{env, process::Command};

use anyhow::bail;

use super::command;

/// A mirror of the user's choice.
const CHOICE: &str = "NETMIG_MIRROR";

/// The mirror: NETMIG_MIRROR, else that of apt's own sources.
pub fn mirror() -> anyhow::Result<String> {
    if let Ok(mirror) = env::var(CHOICE) {
        return Ok(mirror);
    }
    let format = "$(ORIGIN)|$(LABEL)|$(SITE)|$(REPO_URI)";
    let told = command::output(Command::new("apt-get").args(["indextargets", "--format", format]));
    match told.ok().as_deref().and_then(pick) {
        Some(mirror) => Ok(mirror),
        None => {
            bail!("apt has no source of Debian here: set {CHOICE} to the URL of a Debian mirror")
        }
    }
}

/// Debian proper among apt's sources: not its security updates, nor other vendors.
fn pick(targets: &str) -> Option<String> {
    let mut known = targets.lines().filter_map(|line| {
        let mut fields = line.split('|');
        let (origin, label) = (fields.next()?, fields.next()?);
        let uri = fields.nth(1)?.trim_end_matches('/');
        Some((origin, label, uri))
    });
    // Without package lists apt does not know an origin yet: then Debian's is told by how its mirrors are laid out.
    let debian = |(origin, label, uri): &(&str, &str, &str)| {
        (*origin == "Debian" && *label == "Debian")
            || (origin.is_empty() && uri.ends_with("/debian"))
    };
    known.find(debian).map(|(_, _, uri)| uri.to_owned())
}

#[cfg(test)]
mod tests {
    use super::pick;

    #[test]
    fn debian_proper_is_picked() {
        let targets = "Vendor|Vendor|x|https://packages.example/apt/\n\
                       Debian|Debian-Security|x|http://mirror.example/debian-security/\n\
                       Debian|Debian|x|http://mirror.example/debian/\n";
        assert_eq!(
            pick(targets).as_deref(),
            Some("http://mirror.example/debian")
        );
        assert_eq!(
            pick("||x|http://mirror.example/debian/\n").as_deref(),
            Some("http://mirror.example/debian")
        );
        assert_eq!(
            pick("Ubuntu|Ubuntu|x|http://mirror.example/ubuntu/\n"),
            None
        );
    }
}

//! Versions as programs and kernels print them.
use std::{fmt, str::FromStr};

/// The first three numbers of a version; missing ones are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

/// A text without a version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} holds no version")]
pub struct BadVersion(pub String);

impl Version {
    /// Without the third number.
    pub fn series(self) -> Self {
        Self(self.0, self.1, 0)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)?;
        if self.2 > 0 {
            write!(f, ".{}", self.2)
        } else {
            Ok(())
        }
    }
}

impl FromStr for Version {
    type Err = BadVersion;

    /// The first word that begins with a digit and has a dot: `6.12.48+deb13-amd64`, `crun version 1.21`, `v4.2`.
    fn from_str(text: &str) -> Result<Self, BadVersion> {
        let words = text
            .split_whitespace()
            .map(|word| word.trim_start_matches('v'));
        let word = words
            .into_iter()
            .find(|word| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.'));
        let mut numbers = word.unwrap_or_default().split('.').map_while(|part| {
            let digits = part
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(part.len());
            part[..digits].parse().ok()
        });
        match (numbers.next(), numbers.next()) {
            (Some(major), Some(minor)) => Ok(Self(major, minor, numbers.next().unwrap_or(0))),
            _ => Err(BadVersion(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_they_are_printed() {
        for (text, version) in [
            ("6.12.48+deb13-amd64", Version(6, 12, 48)),
            ("7.2-rc1-cloud-amd64", Version(7, 2, 0)),
            ("crun version 1.21\ncommit: 10", Version(1, 21, 0)),
            ("runc version 1.1.15+ds1", Version(1, 1, 15)),
            ("v4.2", Version(4, 2, 0)),
            ("4.2.1", Version(4, 2, 1)),
        ] {
            assert_eq!(text.parse(), Ok(version), "{text}");
        }
        assert!("command not found".parse::<Version>().is_err());
        assert!(Version(6, 9, 9) < Version(6, 16, 0));
    }
}

//! Paths that come from the other host.
use serde::{Deserialize, Serialize};
use std::{fmt, path::Path, str::FromStr};

/// A relative path of plain names: never absolute, never up. Joined to a directory it stays below it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RelativePath(String);

/// A path that could lead elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a relative path of plain names")]
pub struct BadPath(pub String);

/// PATH_MAX of Linux, with its end.
const LIMIT: usize = 4095;
/// NAME_MAX of Linux.
const NAME_LIMIT: usize = 255;

impl RelativePath {
    /// As text, names separated by `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<Path> for RelativePath {
    fn as_ref(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl fmt::Display for RelativePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for RelativePath {
    type Error = BadPath;

    fn try_from(text: String) -> Result<Self, BadPath> {
        let plain = |name: &str| {
            !matches!(name, "" | "." | "..") && name.len() <= NAME_LIMIT && !name.contains('\0')
        };
        if text.len() <= LIMIT && text.split('/').all(plain) {
            Ok(Self(text))
        } else {
            Err(BadPath(text))
        }
    }
}

impl FromStr for RelativePath {
    type Err = BadPath;

    fn from_str(text: &str) -> Result<Self, BadPath> {
        text.to_owned().try_into()
    }
}

impl From<RelativePath> for String {
    fn from(path: RelativePath) -> Self {
        path.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Component;

    #[test]
    fn only_plain_names_pass() {
        for good in [
            "pages-1.img",
            "upper/etc/.wh.passwd",
            "a/b/c",
            "..hidden",
            "a..b",
            "\u{fc}ber",
        ] {
            assert_eq!(good.parse::<RelativePath>().unwrap().as_str(), good);
        }
        let long = "x".repeat(NAME_LIMIT + 1);
        for bad in [
            "",
            "/",
            "/etc/passwd",
            "..",
            "a/../b",
            "a/..",
            "./a",
            "a/.",
            "a//b",
            "a/",
            "a\0b",
            &long,
            &"a/".repeat(3000),
        ] {
            assert_eq!(bad.parse::<RelativePath>(), Err(BadPath(bad.to_owned())));
        }
    }

    #[test]
    fn a_bad_path_is_refused_on_the_wire_too() {
        let bytes = postcard::to_stdvec("../../etc/passwd").unwrap();
        assert!(postcard::from_bytes::<RelativePath>(&bytes).is_err());
    }

    proptest! {
        #[test]
        fn joined_it_stays_below(text in "[a./\\\\]{0,12}") {
            if let Ok(path) = text.parse::<RelativePath>() {
                let normal = |c: Component<'_>| matches!(c, Component::Normal(_));
                prop_assert!(path.as_ref().components().all(normal));
                prop_assert!(Path::new("/base").join(&path).starts_with("/base"));
            }
        }
    }
}

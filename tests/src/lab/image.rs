//! Container images made of programs that the hosts have: nothing is downloaded.
use std::fmt::Write as _;

use crate::{Cmd, Error, Host};

/// What a container image holds.
#[derive(Debug, Clone, Default)]
pub struct Image {
    /// Its name, such as `localhost/story:1`.
    pub name: String,
    /// Programs of the host, by path or by name; their libraries come along.
    pub programs: Vec<String>,
    /// Further files: path and contents.
    pub files: Vec<(String, String)>,
    /// What a container of it runs.
    pub command: Vec<String>,
}

/// Copies each program and the libraries that ldd(1) names for it, then packs all of it in a way that does not depend on when.
const PACK: &str = r#"
cd "$(mktemp -d)"
mkdir -p usr/bin usr/sbin usr/lib usr/lib64 etc tmp data run
for name in bin sbin lib lib64; do ln -s usr/$name $name; done
chmod 1777 tmp
for program in $PROGRAMS; do
    path=$(command -v "$program")
    mkdir -p ".$(dirname "$path")"
    cp -L "$path" ".$path"
    for library in $(ldd "$path" | grep -o '/[^ ]*' || true); do
        [ -e ".$library" ] || { mkdir -p ".$(dirname "$library")"; cp -L "$library" ".$library"; }
    done
done
eval "$FILES"
tar --create --sort=name --mtime=@0 . | podman import --quiet --change "CMD $COMMAND" - "$NAME" >/dev/null
rm -rf "$PWD"
"#;

impl Image {
    /// An image of this name.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..Self::default()
        }
    }

    /// Adds a program, by path or by name.
    #[must_use]
    pub fn program(mut self, program: &str) -> Self {
        self.programs.push(program.to_owned());
        self
    }

    /// Adds a file.
    #[must_use]
    pub fn file(mut self, path: &str, contents: &str) -> Self {
        self.files.push((path.to_owned(), contents.to_owned()));
        self
    }

    /// Says what a container of it runs.
    #[must_use]
    pub fn command(mut self, command: &[&str]) -> Self {
        self.command = command.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Makes it on a host and gives it to podman there. On two hosts of a lab it is the same down to its digest.
    ///
    /// # Errors
    /// As [`Host::run`]: a program is not there, or podman refuses.
    pub fn import(&self, host: &dyn Host) -> Result<(), Error> {
        let mut files = String::new();
        for (path, contents) in &self.files {
            let (path, contents) = (quoted(&format!(".{path}")), quoted(contents));
            writeln!(
                files,
                "mkdir -p \"$(dirname {path})\"; printf %s {contents} >{path}"
            )
            .expect("a string takes everything");
        }
        let words = self.command.iter().map(|word| format!("{word:?}"));
        let command = format!("[{}]", words.collect::<Vec<_>>().join(","));
        let pack = Cmd::sh(PACK)
            .env("PROGRAMS", self.programs.join(" "))
            .env("FILES", files)
            .env("COMMAND", command)
            .env("NAME", &self.name);
        host.run_cmd(&pack).map(drop)
    }
}

/// One word for a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

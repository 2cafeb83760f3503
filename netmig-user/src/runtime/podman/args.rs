//! The command line that created a container (`CreateCommand`), made into one that creates it again elsewhere.
use std::path::Path;

/// Options of `podman create` and `podman run` without a value (podman 4.9 to 5.8). All others take one.
const FLAGS: &[&str] = &[
    "--detach",
    "--disable-content-trust",
    "--env-host",
    "--help",
    "--http-proxy",
    "--init",
    "--interactive",
    "--no-healthcheck",
    "--no-hostname",
    "--no-hosts",
    "--oom-kill-disable",
    "--passwd",
    "--privileged",
    "--publish-all",
    "--quiet",
    "--read-only",
    "--read-only-tmpfs",
    "--replace",
    "--rm",
    "--rmi",
    "--rootfs",
    "--sig-proxy",
    "--tls-verify",
    "--tty",
    "--unsetenv-all",
];

/// One-letter options with their long names.
const SHORT: &[(char, &str)] = &[
    ('a', "--attach"),
    ('c', "--cpu-shares"),
    ('d', "--detach"),
    ('e', "--env"),
    ('h', "--hostname"),
    ('i', "--interactive"),
    ('l', "--label"),
    ('m', "--memory"),
    ('p', "--publish"),
    ('P', "--publish-all"),
    ('q', "--quiet"),
    ('t', "--tty"),
    ('u', "--user"),
    ('v', "--volume"),
    ('w', "--workdir"),
];

/// Options that are about the command itself, about the moment or the place of creation, or that are set anew from the record.
const DROPPED: &[&str] = &[
    // About the command.
    "--detach",
    "--detach-keys",
    "--attach",
    "--sig-proxy",
    "--replace",
    "--quiet",
    "--rmi",
    "--preserve-fds",
    "--preserve-fd",
    "--help",
    // About getting the image, which is there.
    "--pull",
    "--authfile",
    "--creds",
    "--cert-dir",
    "--tls-verify",
    "--decryption-key",
    "--signature-policy",
    "--retry",
    "--retry-delay",
    "--disable-content-trust",
    "--arch",
    "--os",
    "--variant",
    "--platform",
    // Files and supervisors of the source host.
    "--cidfile",
    "--pidfile",
    "--conmon-pidfile",
    "--cgroups",
    "--sdnotify",
    // Set anew.
    "--name",
    "--hostname",
    "--restart",
    "--network",
    "--net",
    "--ip",
    "--ip6",
    "--mac-address",
    "--network-alias",
];

/// Options whose value comes from the environment or a file of the source host; their result is in the record.
const ENVIRONMENT: &[&str] = &["--env-file", "--env-host", "--http-proxy"];

/// One option as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opt {
    /// Long name with dashes.
    pub name: String,
    /// Its value, if it has one.
    pub value: Option<String>,
}

/// A command line taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// All options in order.
    pub options: Vec<Opt>,
    /// The image as it was named.
    pub image: String,
    /// What follows the image.
    pub command: Vec<String>,
}

/// Takes `CreateCommand` apart. None if it is not a `podman run` or `podman create` command line (a container made over the API has none at all, or
/// that of another program).
#[must_use]
pub fn parse(command: &[String]) -> Option<Parsed> {
    let verb = command
        .iter()
        .position(|word| word == "run" || word == "create")?;
    let mut options = Vec::new();
    let mut rest = command[verb + 1..].iter();
    while let Some(word) = rest.next() {
        if word == "--" {
            break;
        }
        if let Some(long) = word.strip_prefix("--") {
            let (name, value) = match long.split_once('=') {
                Some((name, value)) => (format!("--{name}"), Some(value.to_owned())),
                None if FLAGS.contains(&word.as_str()) => (word.clone(), None),
                None => (word.clone(), Some(rest.next()?.clone())),
            };
            options.push(Opt { name, value });
        } else if let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) {
            short(letters, &mut rest, &mut options)?;
        } else {
            return Some(Parsed {
                options,
                image: word.clone(),
                command: rest.cloned().collect(),
            });
        }
    }
    let image = rest.next()?.clone();
    Some(Parsed {
        options,
        image,
        command: rest.cloned().collect(),
    })
}

/// `-dit`, `-p80:80`, `-e A=B`.
fn short<'a>(
    letters: &str,
    rest: &mut impl Iterator<Item = &'a String>,
    options: &mut Vec<Opt>,
) -> Option<()> {
    for (at, letter) in letters.char_indices() {
        let name = SHORT.iter().find(|(l, _)| *l == letter)?.1;
        if FLAGS.contains(&name) {
            options.push(Opt {
                name: name.to_owned(),
                value: None,
            });
            continue;
        }
        let attached = &letters[at + letter.len_utf8()..];
        let value = if attached.is_empty() {
            rest.next()?.clone()
        } else {
            attached.trim_start_matches('=').to_owned()
        };
        options.push(Opt {
            name: name.to_owned(),
            value: Some(value),
        });
        return Some(());
    }
    Some(())
}

/// What the record says that goes over what the command line said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its host name.
    pub hostname: &'a str,
    /// Its restart policy, `no` or as `--restart` takes it.
    pub restart: &'a str,
    /// Its environment, `A=B`.
    pub env: &'a [String],
    /// `--network` values, one each.
    pub networks: Vec<String>,
    /// Bind mounts: destination and absolute source.
    pub binds: Vec<(String, String)>,
}

/// Arguments for `podman create` that make the same container again, up to and without the image; the image and the command follow them.
#[must_use]
pub fn again(parsed: &Parsed, record: &Record) -> Vec<String> {
    let mut args = vec![format!("--name={}", record.name)];
    // A container in the host's UTS namespace, or one without a name, has none to set.
    if !record.hostname.is_empty() {
        args.push(format!("--hostname={}", record.hostname));
    }
    if record.restart != "no" && !record.restart.is_empty() {
        args.push(format!("--restart={}", record.restart));
    }
    args.extend(
        record
            .networks
            .iter()
            .map(|network| format!("--network={network}")),
    );
    let from_elsewhere = parsed.options.iter().any(|option| {
        let inherited = option.name == "--env"
            && option
                .value
                .as_ref()
                .is_some_and(|value| !value.contains('='));
        inherited || ENVIRONMENT.contains(&option.name.as_str())
    });
    if from_elsewhere {
        let own = |var: &&String| {
            !["container=", "HOSTNAME=", "HOME="]
                .iter()
                .any(|own| var.starts_with(own))
        };
        args.extend(
            record
                .env
                .iter()
                .filter(own)
                .map(|var| format!("--env={var}")),
        );
    }
    for option in &parsed.options {
        let name = option.name.as_str();
        if DROPPED.contains(&name)
            || ENVIRONMENT.contains(&name)
            || (from_elsewhere && name == "--env")
        {
            continue;
        }
        args.push(match (&option.value, name) {
            (None, _) => name.to_owned(),
            (Some(value), "--volume") => {
                format!("{name}={}", absolute_volume(value, &record.binds))
            }
            (Some(value), "--mount") => format!("{name}={}", absolute_mount(value, &record.binds)),
            (Some(value), _) => format!("{name}={value}"),
        });
    }
    args
}

/// `./data:/data:rw` with the source that the record names.
fn absolute_volume(value: &str, binds: &[(String, String)]) -> String {
    let mut parts = value.splitn(3, ':');
    let (Some(source), Some(destination)) = (parts.next(), parts.next()) else {
        return value.to_owned();
    };
    if !source.starts_with('.') {
        return value.to_owned();
    }
    let Some(absolute) = source_of(destination, binds) else {
        return value.to_owned();
    };
    let options = parts
        .next()
        .map(|options| format!(":{options}"))
        .unwrap_or_default();
    format!("{absolute}:{destination}{options}")
}

/// `type=bind,src=data,dst=/data` with the source that the record names.
fn absolute_mount(value: &str, binds: &[(String, String)]) -> String {
    let pairs: Vec<(&str, Option<&str>)> = value
        .split(',')
        .map(|part| {
            part.split_once('=')
                .map_or((part, None), |(k, v)| (k, Some(v)))
        })
        .collect();
    let find = |names: &[&str]| {
        pairs
            .iter()
            .find(|(k, _)| names.contains(k))
            .and_then(|(_, v)| *v)
    };
    let bind = find(&["type"]) == Some("bind");
    let source = find(&["src", "source"]).filter(|source| !Path::new(source).is_absolute());
    let absolute = find(&["dst", "destination", "target"])
        .and_then(|destination| source_of(destination, binds));
    let (true, Some(_), Some(absolute)) = (bind, source, absolute) else {
        return value.to_owned();
    };
    let part = |(k, v): &(&str, Option<&str>)| match v {
        Some(_) if ["src", "source"].contains(k) => format!("{k}={absolute}"),
        Some(v) => format!("{k}={v}"),
        None => (*k).to_owned(),
    };
    pairs.iter().map(part).collect::<Vec<_>>().join(",")
}

fn source_of<'a>(destination: &str, binds: &'a [(String, String)]) -> Option<&'a str> {
    binds
        .iter()
        .find(|(d, _)| d == destination)
        .map(|(_, source)| source.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(ToOwned::to_owned).collect()
    }

    fn again_of(line: &str, record: &Record) -> (String, Parsed) {
        let parsed = parse(&words(line)).unwrap();
        (again(&parsed, record).join(" "), parsed)
    }

    #[test]
    fn run_becomes_create() {
        let record = Record {
            name: "web",
            hostname: "c85ee652e3f7",
            restart: "always",
            networks: vec!["lan:ip=192.0.2.10".into()],
            ..Record::default()
        };
        let (args, parsed) = again_of(
            "podman --log-level=debug run -d --restart=always --name web -p8080:80 --network lan -e A=B -v data:/data --rm img /bin/x -d --rm",
            &record,
        );
        assert_eq!(
            args,
            "--name=web --hostname=c85ee652e3f7 --restart=always --network=lan:ip=192.0.2.10 --publish=8080:80 --env=A=B --volume=data:/data --rm"
        );
        assert_eq!(
            (parsed.image.as_str(), parsed.command),
            ("img", words("/bin/x -d --rm"))
        );
    }

    /// The target's `CreateCommand` is netmig's own; the way back starts from that.
    #[test]
    fn what_was_made_once_is_made_the_same_again() {
        let networks =
            || vec!["lan:ip=192.0.2.10,mac=02:00:00:00:00:10,interface_name=eth0".to_owned()];
        let record = Record {
            name: "web",
            hostname: "h",
            restart: "always",
            networks: networks(),
            ..Record::default()
        };
        let (first, parsed) = again_of(
            "podman run -d --rm -v data:/data img /bin/x --flag",
            &record,
        );
        let line = format!(
            "podman --runtime crun create --pull=never {first} -- {} {}",
            parsed.image,
            parsed.command.join(" ")
        );
        let (second, back) = again_of(&line, &record);
        assert_eq!(
            (second, back.image, back.command),
            (first, parsed.image, parsed.command)
        );
    }

    #[test]
    fn clustered_and_attached_short_options() {
        let parsed = parse(&words(
            "podman container run -dit -uroot -w /srv -e=A=B -- img",
        ))
        .unwrap();
        let names: Vec<_> = parsed
            .options
            .iter()
            .map(|o| (o.name.as_str(), o.value.as_deref()))
            .collect();
        assert_eq!(
            names,
            [
                ("--detach", None),
                ("--interactive", None),
                ("--tty", None),
                ("--user", Some("root")),
                ("--workdir", Some("/srv")),
                ("--env", Some("A=B"))
            ]
        );
        assert_eq!(parsed.image, "img");
    }

    #[test]
    fn environment_from_elsewhere_is_taken_from_the_record() {
        let env = words("PATH=/bin container=podman TOKEN=x HOSTNAME=h A=1");
        let record = Record {
            name: "n",
            env: &env,
            ..Record::default()
        };
        let (args, _) = again_of(
            "podman create --env-file ./vars -e TOKEN -e A=1 img",
            &record,
        );
        assert_eq!(args, "--name=n --env=PATH=/bin --env=TOKEN=x --env=A=1");
    }

    #[test]
    fn relative_binds_become_absolute() {
        let binds = vec![("/data".to_owned(), "/srv/app/data".to_owned())];
        let record = Record {
            name: "n",
            binds,
            ..Record::default()
        };
        let (args, _) = again_of(
            "podman create -v ./data:/data:ro,Z -v vol:/vol --mount type=bind,src=data,dst=/data,ro img",
            &record,
        );
        assert_eq!(
            args,
            "--name=n --volume=/srv/app/data:/data:ro,Z --volume=vol:/vol --mount=type=bind,src=/srv/app/data,dst=/data,ro"
        );
    }

    #[test]
    fn what_is_no_command_line_of_podman_is_none() {
        assert_eq!(parse(&[]), None);
        assert_eq!(parse(&words("podman system service")), None);
        assert_eq!(parse(&words("podman run --name")), None);
        assert_eq!(parse(&words("podman run -x img")), None);
    }
}

//! Sysctls under net/: what a namespace needs to be the same on another host, and setting it.
//!
//! A fresh namespace does not begin with the kernel's defaults everywhere: the settings of links, of neighbours and some of TCP are its
//! host's (devinet_init_net(), tcp_sk_init()). Those are carried whatever they are, so that they do not change with the host.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use netmig_core::image::v1::net::{Link, Sysctl};

use super::{Doing, Error, namespace};

const ROOT: &str = "/proc/sys/net";

/// Not state: commands, or (addr_gen_mode of a link) part of the link.
const SKIPPED: [&str; 2] = ["ipv4/route/flush", "ipv6/route/flush"];

/// Where a sysctl exists once for the namespace, once as default for new links, and once for each link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place<'a> {
    Whole,
    /// `conf/all`.
    All,
    /// `conf/default`, `neigh/default`.
    Default,
    Link(&'a str),
}

/// What tcp_sk_init() copies from the host.
const INHERITED: [&str; 3] = [
    "ipv4/tcp_congestion_control",
    "ipv4/tcp_rmem",
    "ipv4/tcp_wmem",
];

/// Reads every sysctl of the namespace of the calling thread, and of a scratch one; gives what must be carried.
pub fn carried() -> Result<Vec<Sysctl>, Error> {
    let here = read_all()?;
    let fresh = namespace::scratch(read_all)?;
    Ok(select(&here, &fresh))
}

fn select(here: &BTreeMap<String, String>, fresh: &BTreeMap<String, String>) -> Vec<Sysctl> {
    let row = |(path, value): (&String, &String)| {
        let as_fresh = |path: &str| fresh.get(path) == Some(value);
        let (carried, inherited) = match place(path) {
            Place::Link(_) if path.ends_with("/addr_gen_mode") => (false, false),
            Place::All | Place::Default | Place::Link("lo") => (true, as_fresh(path)),
            // Those of neighbours have no default in the namespace: a new link, like `lo`, takes the host's.
            Place::Link(_) if is_neigh(path) => (true, as_fresh(&sibling(path, "lo"))),
            // A new link begins with the default, which is set before.
            Place::Link(_) => (here.get(&sibling(path, "default")) != Some(value), false),
            Place::Whole => (
                !as_fresh(path) || INHERITED.contains(&path.as_str()),
                as_fresh(path),
            ),
        };
        carried.then(|| Sysctl {
            path: path.clone(),
            value: value.clone(),
            inherited,
        })
    };
    here.iter().filter_map(row).collect()
}

/// What of `sysctls` this host's kernel does not have, and what it has besides where all of them travel (`conf/all`), in words: each that the
/// container has set, and in one line each those that are as in a fresh namespace, whose absence or presence is the kernel's matter.
///
/// # Errors
/// If a scratch namespace cannot be made or read.
pub fn lacking(sysctls: &[Sysctl]) -> Result<Vec<String>, Error> {
    if sysctls.is_empty() {
        return Ok(Vec::new());
    }
    let here = namespace::scratch(read_all)?;
    Ok(one_sided(sysctls, &here))
}

fn one_sided(sysctls: &[Sysctl], here: &BTreeMap<String, String>) -> Vec<String> {
    // Those of a link are known by those of `lo`, which every namespace has.
    let general = |path: &str| match place(path) {
        Place::Link(_) => sibling(path, "lo"),
        _ => path.to_owned(),
    };
    let is_here = |path: &str| {
        // Not among those that can be listed: it is there, and nothing is set (stable_secret).
        here.contains_key(path) || path.ends_with("/stable_secret")
    };
    let mut found = Vec::new();
    let mut defaults = BTreeSet::new();
    for sysctl in sysctls.iter().filter(|s| !is_here(&general(&s.path))) {
        if sysctl.inherited {
            defaults.insert(general(&sysctl.path));
        } else {
            found.push(absent(&sysctl.path, &sysctl.value));
        }
    }
    let listed = |paths: BTreeSet<String>| {
        let paths: Vec<_> = paths
            .into_iter()
            .map(|path| format!("net/{path}"))
            .collect();
        paths.join(", ")
    };
    if !defaults.is_empty() {
        found.push(format!(
            "sysctls that the source's kernel has and this one lacks, each at its default there: {}",
            listed(defaults)
        ));
    }
    let travels: BTreeSet<_> = sysctls.iter().map(|s| s.path.as_str()).collect();
    let others: BTreeSet<_> = here
        .keys()
        .filter(|path| place(path) == Place::All && !travels.contains(path.as_str()))
        .cloned()
        .collect();
    if !others.is_empty() && travels.iter().any(|path| place(path) == Place::All) {
        found.push(format!(
            "sysctls that this kernel has and the source's lacks, at their defaults: {}",
            listed(others)
        ));
    }
    found
}

fn absent(path: &str, value: &str) -> String {
    format!(
        "sysctl net/{path} cannot be {value:?} on this host: it, or what it names, does not exist"
    )
}

/// Lowers the IPv6 MTU of each link to its MTU. A link that is down may show more (addrconf_notify() follows those alone that are up); that is
/// never used, and never taken (addrconf_sysctl_mtu()).
pub fn cap(sysctls: &mut [Sysctl], links: &[Link]) {
    for sysctl in sysctls {
        let Place::Link(name) = place(&sysctl.path) else {
            continue;
        };
        let mtu = links.iter().find(|l| l.name == name).map(|l| l.mtu);
        if sysctl.path == format!("ipv6/conf/{name}/mtu")
            && let (Some(mtu), Ok(shown)) = (mtu, sysctl.value.parse::<u32>())
        {
            sysctl.value = shown.min(mtu).to_string();
        }
    }
}

/// Sets what holds for the whole namespace and for links to come. `all` first: it changes every link and the default.
///
/// Gives back what could not be set because it does not exist here.
pub fn set_whole(sysctls: &[Sysctl]) -> Result<Vec<String>, Error> {
    let whole = |order: u8| {
        sysctls.iter().filter(move |s| {
            order
                == match place(&s.path) {
                    // It changes forwarding of all links.
                    Place::Whole if s.path == "ipv4/ip_forward" => 0,
                    Place::All => 1,
                    Place::Default => 2,
                    Place::Whole => 3,
                    Place::Link(_) => 4,
                }
        })
    };
    write_all((0..=3).flat_map(whole))
}

/// Sets what belongs to one link. Gives back what does not exist here.
pub fn set_link(sysctls: &[Sysctl], link: &str) -> Result<Vec<String>, Error> {
    write_all(
        sysctls
            .iter()
            .filter(|s| place(&s.path) == Place::Link(link)),
    )
}

/// The value of one, if it exists.
pub fn read(path: &str) -> Result<Option<String>, Error> {
    match fs::read_to_string(file(path)?) {
        Ok(value) => Ok(Some(value.trim_end_matches('\n').to_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        // Nothing is set (stable_secret).
        Err(e) if e.raw_os_error() == Some(libc::EIO) => Ok(Some(String::new())),
        Err(e) => Err(e).doing(|| format!("reading sysctl net/{path}")),
    }
}

/// Sets one; false if it does not exist.
pub fn write(path: &str, value: &str) -> Result<bool, Error> {
    match fs::write(file(path)?, value) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e).doing(|| format!("setting sysctl net/{path} to {value:?}")),
    }
}

fn write_all<'a>(sysctls: impl Iterator<Item = &'a Sysctl>) -> Result<Vec<String>, Error> {
    let mut missing = Vec::new();
    for Sysctl {
        path,
        value,
        inherited,
    } in sysctls
    {
        match read(path)? {
            // Writing has effects beyond the value (forwarding, disable_ipv6), and most are the same already.
            Some(present) if present == *value => {}
            None if *inherited => {}
            _ => match write(path, value) {
                Ok(true) => {}
                Ok(false) => missing.push(absent(path, value)),
                // Another kernel may allow less of what is not the container's own wish.
                Err(e) if *inherited => missing.push(e.to_string()),
                Err(e) => return Err(e),
            },
        }
    }
    Ok(missing)
}

/// The file of a sysctl; a path of an image must stay below net/.
fn file(path: &str) -> Result<PathBuf, Error> {
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(Error::Refused(vec![format!(
            "sysctl net/{path} is no path below net/"
        )]));
    }
    Ok(Path::new(ROOT).join(path))
}

/// `ipv4/conf/eth0/rp_filter` is of a link, `ipv4/tcp_rmem` is not.
fn place(path: &str) -> Place<'_> {
    let mut parts = path.split('/');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some("ipv4" | "ipv6"), Some("conf" | "neigh"), Some(name), Some(_)) => match name {
            "all" => Place::All,
            "default" => Place::Default,
            link => Place::Link(link),
        },
        _ => Place::Whole,
    }
}

fn is_neigh(path: &str) -> bool {
    path.split('/').nth(1) == Some("neigh")
}

/// The same sysctl in another place.
fn sibling(path: &str, name: &str) -> String {
    path.split('/')
        .enumerate()
        .map(|(i, part)| if i == 2 { name } else { part })
        .collect::<Vec<_>>()
        .join("/")
}

fn read_all() -> Result<BTreeMap<String, String>, Error> {
    let mut all = BTreeMap::new();
    let mut directories = BTreeSet::from([String::new()]);
    while let Some(directory) = directories.pop_first() {
        let at = Path::new(ROOT).join(&directory);
        let entries = match fs::read_dir(&at) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue, // a link went meanwhile
            other => other.doing(|| format!("reading {}", at.display()))?,
        };
        for entry in entries {
            let entry = entry.doing(|| format!("reading {}", at.display()))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = if directory.is_empty() {
                name
            } else {
                format!("{directory}/{name}")
            };
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                directories.insert(path);
            } else if meta.permissions().mode() & 0o200 != 0
                && !SKIPPED.contains(&path.as_str())
                // Some cannot be read while they are not set (stable_secret: EIO).
                && let Ok(value) = fs::read_to_string(entry.path())
            {
                all.insert(path, value.trim_end_matches('\n').to_owned());
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(rows: &[(&str, &str)]) -> BTreeMap<String, String> {
        rows.iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn what_a_fresh_namespace_takes_from_its_host_is_carried_and_a_links_own_too() {
        let fresh = map(&[
            ("ipv4/conf/all/a", "0"),
            ("ipv4/conf/default/a", "2"),
            ("ipv4/conf/lo/a", "2"),
            ("ipv4/neigh/lo/n", "3"),
            ("ipv4/tcp_rmem", "1 2 3"),
            ("ipv4/tcp_sack", "1"),
            ("ipv4/ip_forward", "0"),
        ]);
        let here = map(&[
            ("ipv4/conf/all/a", "0"),
            ("ipv4/conf/default/a", "1"),
            ("ipv4/conf/eth0/a", "2"),
            ("ipv4/conf/eth1/a", "1"),
            ("ipv4/conf/lo/a", "2"),
            ("ipv4/ip_forward", "1"),
            ("ipv4/neigh/eth0/n", "3"),
            ("ipv4/neigh/eth1/n", "4"),
            ("ipv4/tcp_rmem", "1 2 3"),
            ("ipv4/tcp_sack", "1"),
        ]);
        let carried: Vec<_> = select(&here, &fresh)
            .into_iter()
            .map(|s| (s.path, s.inherited))
            .collect();
        let expected = [
            ("ipv4/conf/all/a", true),
            ("ipv4/conf/default/a", false),
            ("ipv4/conf/eth0/a", false),
            ("ipv4/conf/lo/a", true),
            ("ipv4/ip_forward", false),
            ("ipv4/neigh/eth0/n", true),
            ("ipv4/neigh/eth1/n", false),
            ("ipv4/tcp_rmem", true),
        ];
        assert_eq!(
            carried,
            expected.map(|(path, inherited)| (path.to_owned(), inherited))
        );
    }

    #[test]
    fn a_link_with_a_dot_in_its_name_is_one_link() {
        assert_eq!(place("ipv6/conf/eth0.5/mtu"), Place::Link("eth0.5"));
        assert_eq!(place("ipv4/tcp_rmem"), Place::Whole);
        assert_eq!(sibling("ipv6/conf/eth0.5/mtu", "all"), "ipv6/conf/all/mtu");
    }

    #[test]
    fn what_one_end_alone_has_is_named() {
        let here = map(&[
            ("ipv4/conf/all/a", "0"),
            ("ipv4/conf/all/new", "0"),
            ("ipv4/conf/lo/a", "0"),
            ("ipv4/conf/lo/new", "0"),
            ("ipv4/tcp_sack", "1"),
            ("ipv4/tcp_new", "1"),
        ]);
        let of = |path: &str, inherited| Sysctl {
            path: path.into(),
            value: "7".into(),
            inherited,
        };
        let same = [of("ipv4/tcp_sack", false), of("ipv4/conf/eth0/a", false)];
        assert_eq!(one_sided(&same, &here), [] as [&str; 0]);
        let all = [
            of("ipv4/conf/all/a", true),
            of("ipv4/conf/all/old", true),
            of("ipv4/conf/eth0/old", true),
            of("ipv4/conf/eth1/old", true),
            of("ipv4/conf/eth1/older", false),
            of("ipv4/tcp_old", false),
        ];
        assert_eq!(
            one_sided(&all, &here),
            [
                "sysctl net/ipv4/conf/eth1/older cannot be \"7\" on this host: it, or what it names, does not exist",
                "sysctl net/ipv4/tcp_old cannot be \"7\" on this host: it, or what it names, does not exist",
                "sysctls that the source's kernel has and this one lacks, each at its default there: net/ipv4/conf/all/old, net/ipv4/conf/lo/old",
                "sysctls that this kernel has and the source's lacks, at their defaults: net/ipv4/conf/all/new",
            ]
        );
    }

    #[test]
    fn a_path_out_of_net_is_refused() {
        let evil = [Sysctl {
            path: "../kernel/core_pattern".into(),
            value: "x".into(),
            inherited: false,
        }];
        assert!(matches!(set_whole(&evil), Err(Error::Refused(_))));
    }
}

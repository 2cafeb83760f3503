//! `netmig-user net`: the network of a namespace as a document: written, made, compared.
use std::{
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use netmig_core::id::MoveId;

use super::args;
use crate::net::{
    check,
    diff::{self, diff},
    document::Document,
    namespace,
    times::Times,
};

/// Runs one of its verbs.
///
/// # Errors
/// What failed, on which object.
pub fn run(args: &args::Net) -> Result<ExitCode> {
    match &args.verb {
        args::NetVerb::Dump(args) => dump(args).map(|()| ExitCode::SUCCESS),
        args::NetVerb::Restore(args) => restore(args),
        // As diff(1): 1 is an answer.
        args::NetVerb::Diff(args) => Ok(compare(args).unwrap_or_else(|e| {
            eprintln!("netmig-user: {e:#}");
            ExitCode::from(TROUBLE)
        })),
        args::NetVerb::Schema => schema().map(|()| ExitCode::SUCCESS),
    }
}

fn dump(args: &args::NetDump) -> Result<()> {
    let netns = namespace_at(&args.netns)?;
    let mut times = Times::default();
    let mut found = Document::dump(&netns, args.connections, &mut times)?;
    if !args.keys {
        let without = found.without_keys();
        found.network.not_carried.extend(without.iter().map(|link| {
            format!(
                "the keys of WireGuard device {link} are not in this document (--keys writes them)"
            )
        }));
    }
    for what in found
        .network
        .filters
        .lost
        .iter()
        .chain(&found.network.not_carried)
    {
        eprintln!("not carried: {what}");
    }
    let mut text = serde_json::to_string_pretty(&found)?;
    text.push('\n');
    match &args.out {
        Some(path) => fs::write(path, text).with_context(|| format!("writing {}", path.display())),
        None => std::io::stdout()
            .write_all(text.as_bytes())
            .context("writing the document"),
    }?;
    write_times(args.times.as_deref(), &times)
}

fn write_times(file: Option<&Path>, times: &Times) -> Result<()> {
    let Some(file) = file else {
        return Ok(());
    };
    let mut text = serde_json::to_string_pretty(times)?;
    text.push('\n');
    fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}

fn restore(args: &args::NetRestore) -> Result<ExitCode> {
    let netns = path(&args.netns);
    if netns.starts_with("/proc") {
        namespace_at(&args.netns)?;
    }
    if namespace::exists(&netns)? && namespace::same(&netns, Path::new(namespace::OWN))? {
        bail!(
            "{} is the network that this host itself uses, which is not made anew; name another one",
            netns.display()
        );
    }
    let mut wanted = read(&args.file)?;
    wanted.network.filters.partial = args.partial;
    let left_out = if args.partial {
        check::leave_out(&mut wanted.network)
    } else {
        Vec::new()
    };
    // A document is no move; what is made carries an id all the same, so that it is known on the host.
    let mut id = [0; 16];
    fs::File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut id))
        .context("drawing an id from /dev/urandom")?;
    let id = MoveId(id);
    let attach = [&args.attach[..], &args.map_links].concat();
    if args.check {
        let found = wanted.objections(&netns, &attach, id)?;
        for text in &found.objections {
            println!("against  {text}");
        }
        for text in left_out.iter().chain(&found.warnings) {
            println!("note     {text}");
        }
        return Ok(if found.objections.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(REFUSED)
        });
    }
    let mut times = Times::default();
    match wanted.restore(&netns, &attach, id, &mut times) {
        Ok(created) => {
            let unheard = if args.announce {
                wanted.announce(&created, &mut times)?
            } else {
                Vec::new()
            };
            for text in left_out.iter().chain(&created.warnings).chain(&unheard) {
                eprintln!("note: {text}");
            }
            write_times(args.times.as_deref(), &times)?;
            Ok(ExitCode::SUCCESS)
        }
        Err(crate::net::Error::Refused(why)) => {
            for text in why {
                eprintln!("against: {text}");
            }
            Ok(ExitCode::from(REFUSED))
        }
        Err(e) => {
            Err(e).with_context(|| format!("restoring the network of {}", args.file.display()))
        }
    }
}

fn compare(args: &args::NetDiff) -> Result<ExitCode> {
    let (before, after) = (either(&args.before)?, either(&args.after)?);
    let found = diff(&before.network, &after.network, args.exact)?;
    if args.json {
        let all = serde_json::json!({"schema": diff::SCHEMA, "differences": found});
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        for difference in &found {
            println!("{difference}");
        }
    }
    Ok(if found.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn schema() -> Result<()> {
    println!(
        "{}",
        serde_json::to_string_pretty(&schemars::schema_for!(Document))?
    );
    Ok(())
}

/// As `migrate` does for a plan that refuses.
const REFUSED: u8 = 3;
const TROUBLE: u8 = 2;

/// A document's file, or the namespace behind `netns:`.
fn either(given: &str) -> Result<Document> {
    let mut found = match given.strip_prefix("netns:") {
        Some(netns) => Document::dump(&namespace_at(netns)?, false, &mut Times::default())?,
        None => read(Path::new(given))?,
    };
    // A difference is printed.
    found.without_keys();
    Ok(found)
}

fn read(file: &Path) -> Result<Document> {
    let (text, name) = if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .context("reading standard input")?;
        (text, "standard input".to_owned())
    } else {
        let name = file.display().to_string();
        (
            fs::read_to_string(file).with_context(|| format!("reading {name}"))?,
            name,
        )
    };
    Ok(Document::parse(&text, &name)?)
}

/// A path, a process or a name as `ip netns` has it.
fn path(given: &str) -> PathBuf {
    if given.contains('/') {
        PathBuf::from(given)
    } else if given.bytes().all(|b| b.is_ascii_digit()) {
        Path::new("/proc").join(given).join("ns/net")
    } else {
        Path::new("/run/netns").join(given)
    }
}

fn namespace_at(given: &str) -> Result<PathBuf> {
    let path = path(given);
    if !namespace::exists(&path)? {
        bail!(
            "there is no network namespace {}; give a path, the id of a process in it, or a name that `ip netns` lists",
            path.display()
        );
    }
    Ok(path)
}

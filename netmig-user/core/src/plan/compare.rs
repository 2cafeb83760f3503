//! Two hosts side by side.
use super::{Objection, Version};
use crate::{
    container::{Container, Manager, Recipe},
    plan::predict::Bytes,
    proto::{Answer, HostFacts, Question},
    socket::Engine,
};

/// First kernel on which CRIU before 4.2 lies: `criu check` says "Looks good", and no TCP socket can be dumped (`Can't get 1:16 opt`).
const NEW_SOCKOPT: Version = Version(6, 16, 0);

/// CPU flags of x86 that change what a running program may have found out about its CPU (instructions, and the layout of its saved state).
/// The others in /proc/cpuinfo are about speed, power, virtualisation and mitigations.
const X86_FLAGS: [&str; 25] = [
    "sse",
    "ssse3",
    "avx",
    "amx",
    "aes",
    "vaes",
    "sha",
    "gfni",
    "fma",
    "bmi",
    "abm",
    "popcnt",
    "f16c",
    "movbe",
    "movdir",
    "pclmulqdq",
    "vpclmulqdq",
    "adx",
    "rdrand",
    "rdseed",
    "rdtscp",
    "xsave",
    "pku",
    "cx16",
    "fsgsbase",
];

/// The programs that a move of this container needs on both hosts.
pub fn needs(container: &Container, engine: Engine) -> Vec<&str> {
    let mut needs = match engine {
        Engine::Criu => vec!["criu"],
        Engine::Handoff => Vec::new(),
    };
    match (&container.manager, &container.recipe) {
        (Manager::Podman, Recipe::Podman { oci_runtime, .. }) => {
            needs.extend(["podman", oci_runtime])
        }
        (Manager::Podman, _) => needs.push("podman"),
        (Manager::Runc, _) => needs.push("runc"),
        (Manager::Crun, _) => needs.push("crun"),
        (Manager::Bare, _) => {}
    }
    needs
}

/// Why a program of this version is of no use on this kernel, if so. Programs that no move needs are none.
pub fn too_old(program: &str, version: Version, kernel: Version) -> Option<String> {
    let (least, why) = match program {
        "criu" if kernel >= NEW_SOCKOPT => (
            Version(4, 2, 0),
            "older ones cannot dump TCP sockets on kernels from 6.16 on, whatever `criu check` says",
        ),
        "criu" => (
            Version(3, 17, 0),
            "older ones lack action scripts that netmig needs",
        ),
        "podman" => (
            Version(5, 1, 0),
            "older ones cannot change a restart policy",
        ),
        "crun" => (Version(1, 14, 0), "nothing older was tried"),
        "runc" => (Version(1, 1, 12), "nothing older was tried"),
        _ => return None,
    };
    (version < least)
        .then(|| format!("{program} {version} is too old, at least {least} is needed: {why}"))
}

/// Objections and warnings that come from the two hosts' facts alone.
pub(super) fn compare(
    question: &Question,
    answer: &Answer,
    engine: Engine,
) -> (Vec<Objection>, Vec<String>) {
    let (source, target) = (&question.facts, &answer.facts);
    let mut objections = Vec::new();
    let mut warnings = Vec::new();
    objections.extend(arch(source, target));
    if engine == Engine::Criu {
        // A program that is started anew finds out about its CPU anew.
        objections.extend(cpu(source, target));
    }
    objections.extend(cgroup("source", source).or_else(|| cgroup("target", target)));
    objections.extend(lsm(source, target));
    for program in needs(&question.container, engine) {
        let of = [("source", source), ("target", target)];
        objections.extend(
            of.into_iter()
                .filter_map(|(side, facts)| unfit(program, side, facts)),
        );
    }
    if engine == Engine::Criu {
        objections.extend(criu_images(source, target));
    }
    objections.extend(room(question, answer));
    for (side, facts) in [("source", source), ("target", target)] {
        objections.extend(run_room(question.memory_bytes, side, facts));
    }
    objections.extend(memory(question.memory_bytes, 1, "source", source));
    objections.extend(memory(question.memory_bytes, 2, "target", target));
    warnings.extend(kernel(source, target));
    (objections, warnings)
}

fn arch(source: &HostFacts, target: &HostFacts) -> Option<Objection> {
    let reason = || {
        format!(
            "{} is {}, {} is {}",
            source.hostname, source.arch, target.hostname, target.arch
        )
    };
    (source.arch != target.arch).then(|| {
        Objection::new(
            "arch",
            reason(),
            "processes move between hosts of one architecture only",
            false,
        )
    })
}

fn cpu(source: &HostFacts, target: &HostFacts) -> Option<Objection> {
    if source.arch != target.arch {
        return None;
    }
    let counts = |flag: &str| {
        !source.arch.starts_with("x86") || X86_FLAGS.iter().any(|known| flag.starts_with(known))
    };
    let lacks: Vec<_> = source
        .cpu_flags
        .iter()
        .filter(|flag| counts(flag) && !target.cpu_flags.contains(flag))
        .map(String::as_str)
        .collect();
    let reason = format!(
        "the CPU of {} lacks {}: a program that has found them will use them",
        target.hostname,
        lacks.join(" ")
    );
    (!lacks.is_empty())
        .then(|| Objection::new("cpu", reason, "choose a target whose CPU has them", true))
}

fn cgroup(side: &str, facts: &HostFacts) -> Option<Objection> {
    let reason = format!("the {side} {} has cgroup v{}", facts.hostname, facts.cgroup);
    let help = "netmig freezes by cgroup v2: boot with systemd.unified_cgroup_hierarchy=1";
    (facts.cgroup != 2).then(|| Objection::new("cgroup", reason, help, false))
}

fn lsm(source: &HostFacts, target: &HostFacts) -> Option<Objection> {
    let confines = |lsm: &&String| matches!(lsm.as_str(), "apparmor" | "selinux" | "smack");
    let missing: Vec<_> = source
        .lsm
        .iter()
        .filter(confines)
        .filter(|lsm| !target.lsm.contains(lsm))
        .map(String::as_str)
        .collect();
    let reason = format!(
        "{} confines by {}, {} does not: a confined process cannot be restored there",
        source.hostname,
        missing.join(", "),
        target.hostname
    );
    (!missing.is_empty()).then(|| {
        Objection::new(
            "lsm",
            reason,
            "if the container is not confined, allow it",
            true,
        )
    })
}

fn unfit(program: &str, side: &str, facts: &HostFacts) -> Option<Objection> {
    let tool = || {
        facts
            .tools
            .iter()
            .find(|(name, _)| name == program)
            .map(|(_, version)| version)
    };
    let version = if program == "criu" {
        facts.criu.as_ref()
    } else {
        tool()
    };
    let on = format!("on the {side} {}", facts.hostname);
    let Some(version) = version else {
        return Some(Objection::new(
            program,
            format!("{program} is not there {on}"),
            format!("install {program}"),
            false,
        ));
    };
    // A version that nobody can read is no reason to refuse.
    let (version, kernel) = (
        version.parse().ok()?,
        facts.kernel.parse().unwrap_or(Version(0, 0, 0)),
    );
    let reason = too_old(program, version, kernel)?;
    Some(Objection::new(
        program,
        format!("{on}: {reason}"),
        format!("install a newer {program}"),
        false,
    ))
}

/// A CRIU does not promise to read the images of a newer one.
fn criu_images(source: &HostFacts, target: &HostFacts) -> Option<Objection> {
    let version = |facts: &HostFacts| {
        facts
            .criu
            .as_ref()?
            .parse::<Version>()
            .ok()
            .map(Version::series)
    };
    let (from, to) = (version(source)?, version(target)?);
    let reason = format!(
        "CRIU {to} of {} may not read the images of CRIU {from} of {}",
        target.hostname, source.hostname
    );
    (to < from).then(|| {
        Objection::new(
            "criu-images",
            reason,
            "install the same CRIU on both hosts",
            true,
        )
    })
}

fn room(question: &Question, answer: &Answer) -> Option<Objection> {
    let target = &answer.facts;
    let image = if answer.lacks_image {
        question.image_bytes
    } else {
        0
    };
    let needed = tenth_more(question.file_bytes.saturating_add(image));
    let reason = format!(
        "{} has {} free on disk, the move needs {}",
        target.hostname,
        Bytes(target.free_bytes),
        Bytes(needed)
    );
    (target.free_bytes < needed).then(|| {
        Objection::new(
            "room",
            reason,
            "make room under /var/lib/netmig and the runtime's storage",
            false,
        )
    })
}

/// File systems round up, and what is written after the plan comes on top.
fn tenth_more(bytes: u64) -> u64 {
    bytes.saturating_mul(11) / 10
}

/// The engine writes its images to a file system in memory, and the target's reads them there.
fn run_room(memory_bytes: u64, side: &str, facts: &HostFacts) -> Option<Objection> {
    let needed = tenth_more(memory_bytes);
    let reason = format!(
        "the {side} {} has {} free under /run/netmig, the images of the container's memory need {}",
        facts.hostname,
        Bytes(facts.run_free_bytes),
        Bytes(needed)
    );
    (facts.run_free_bytes < needed).then(|| {
        Objection::new(
            "run-room",
            reason,
            "enlarge that tmpfs (mount -o remount,size=SIZE /run)",
            false,
        )
    })
}

/// Beside the images the target holds the pages that went ahead, and the restored processes after that: so many times the container's memory.
fn memory(memory_bytes: u64, times: u64, side: &str, facts: &HostFacts) -> Option<Objection> {
    let needed = memory_bytes.saturating_mul(times);
    let reason = format!(
        "the {side} {} has {} of memory available, moving a container of {} takes {} there",
        facts.hostname,
        Bytes(facts.memory_available_bytes),
        Bytes(memory_bytes),
        Bytes(needed)
    );
    (facts.memory_available_bytes < needed).then(|| {
        Objection::new(
            "memory",
            reason,
            "free memory there; where there is swap for it, allow it",
            true,
        )
    })
}

fn kernel(source: &HostFacts, target: &HostFacts) -> Option<String> {
    let series = |facts: &HostFacts| facts.kernel.parse::<Version>().ok().map(Version::series);
    let (from, to) = (series(source)?, series(target)?);
    (to < from).then(|| {
        format!("the target's kernel {} is older than the source's {}: what only the newer one has is lost", target.kernel, source.kernel)
    })
}

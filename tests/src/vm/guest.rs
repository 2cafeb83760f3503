//! What runs inside a guest, in the program `netmig-lab-init`: process 1, which makes the machine
//! usable and reaps, and its child, which runs the commands that come over the control channel.
//! They are two so that the one who waits for any child never takes the status of a command.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::wait::wait;
use nix::unistd::Pid;

use super::frame::{Frame, Hello, Kind, PORT};
use super::session::Sessions;

/// The argument by which process 1 starts the program again as the one that runs commands.
pub const AGENT: &str = "agent";

pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Modules that nothing loads by itself: no udev runs here, and device nodes exist only once their module is there.
const DEVICES: [&str; 3] = ["fuse", "tun", "virtio_net"];

/// Process 1. Comes back only if the machine cannot be made usable; the kernel then panics, which
/// ends QEMU.
pub fn init() -> io::Result<()> {
    mounts()?;
    commands()?;
    // The kernel's own limit for process 1 (4096) is too low for CRIU and for many connections.
    setrlimit(Resource::RLIMIT_NOFILE, 1 << 20, 1 << 20)?;
    tool(&["ip", "link", "set", "lo", "up"])?;
    let modprobe = ["modprobe", "--all"];
    tool(&[&modprobe[..], &DEVICES].concat())?;
    let this = std::env::current_exe()?;
    let agent = Command::new(this)
        .arg(AGENT)
        .env_clear()
        .env("PATH", PATH)
        .current_dir("/")
        .spawn()?;
    let agent = Pid::from_raw(agent.id().cast_signed());
    while wait()?.pid() != Some(agent) {}
    // Without it nobody can be heard any more. QEMU runs with -no-reboot and ends.
    match reboot(RebootMode::RB_AUTOBOOT)? {}
}

/// Runs commands for the development host until that closes the channel.
pub fn agent() -> io::Result<()> {
    let mut port = open_port(Instant::now() + Duration::from_secs(10))?;
    let to_host = Arc::new(Mutex::new(port.try_clone()?));
    let sessions = Sessions::new(move |frame| {
        let mut to_host = to_host.lock().unwrap_or_else(PoisonError::into_inner);
        frame.write(&mut *to_host)
    });
    sessions.send(&Frame::new(0, Kind::Hello, serde_json::to_vec(&hello()?)?))?;
    while let Some(frame) = Frame::read(&mut port)? {
        sessions.handle(frame)?;
    }
    Ok(())
}

fn hello() -> io::Result<Hello> {
    let uptime = fs::read_to_string("/proc/uptime")?;
    let seconds: f64 = uptime
        .split_whitespace()
        .next()
        .and_then(|word| word.parse().ok())
        .ok_or_else(|| io::Error::other(format!("/proc/uptime says {uptime:?}")))?;
    Ok(Hello {
        release: fs::read_to_string("/proc/sys/kernel/osrelease")?
            .trim()
            .to_owned(),
        uptime_ms: (seconds * 1000.0) as u64,
    })
}

/// The programs beside this one become commands, where ssh and the engines look for them too. Not by links: in an overlay of this
/// root, as the hosts of a lab in the guest have, those would lead nowhere.
fn commands() -> io::Result<()> {
    let own = std::env::current_exe()?;
    let Some(directory) = own.parent() else {
        return Ok(());
    };
    for program in fs::read_dir(directory)? {
        let program = program?;
        let command = Path::new("/usr/bin").join(program.file_name());
        if program.file_type()?.is_file() {
            File::create(&command)?;
            let none = None::<&str>;
            mount(
                Some(&program.path()),
                &command,
                none,
                MsFlags::MS_BIND,
                none,
            )?;
        }
    }
    Ok(())
}

fn mounts() -> io::Result<()> {
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let tmp = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    for (kind, at, flags, data) in [
        ("proc", "/proc", quiet, ""),
        ("sysfs", "/sys", quiet, ""),
        ("cgroup2", "/sys/fs/cgroup", quiet, ""),
        ("bpf", "/sys/fs/bpf", quiet, "mode=0700"),
        (
            "devpts",
            "/dev/pts",
            MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
            "mode=0620,ptmxmode=0666",
        ),
        ("tmpfs", "/dev/shm", tmp, "mode=1777"),
        ("tmpfs", "/run", tmp, "mode=0755"),
        ("tmpfs", "/tmp", tmp, "mode=1777"),
    ] {
        fs::create_dir_all(at)?;
        mount(Some(kind), at, Some(kind), flags, Some(data)).map_err(|errno| {
            io::Error::new(
                io::Error::from(errno).kind(),
                format!("cannot mount {kind} on {at}: {errno}"),
            )
        })?;
    }
    for directory in ["/run/netns", "/run/lock", "/var/lib/netmig"] {
        fs::create_dir_all(directory)?;
    }
    // As an init system leaves it.
    let shared = MsFlags::MS_SHARED | MsFlags::MS_REC;
    Ok(mount(
        None::<&str>,
        "/",
        None::<&str>,
        shared,
        None::<&str>,
    )?)
}

fn tool(line: &[&str]) -> io::Result<()> {
    let status = Command::new(line[0])
        .args(&line[1..])
        .env("PATH", PATH)
        .status()
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", line.join(" "))))?;
    if status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{}: {status}", line.join(" "))))
}

/// Opens the control port as soon as the host has named it and opened its end: before that a read
/// gives an end of file (port_fops_read in drivers/char/virtio_console.c).
fn open_port(until: Instant) -> io::Result<File> {
    let path = loop {
        if let Some(path) = find_port()? {
            break path;
        }
        patience(until, "no port of that name")?;
    };
    let file = File::options().read(true).write(true).open(&path)?;
    while hung_up(file.as_fd())? {
        patience(until, "the host has not opened its end")?;
    }
    Ok(file)
}

fn patience(until: Instant, why: &str) -> io::Result<()> {
    if Instant::now() > until {
        return Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("{PORT}: {why}"),
        ));
    }
    thread::sleep(Duration::from_millis(5));
    Ok(())
}

fn hung_up(port: BorrowedFd<'_>) -> io::Result<bool> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut polled = [PollFd::new(port, PollFlags::POLLOUT)];
    poll(&mut polled, PollTimeout::ZERO)?;
    let events = polled[0].revents().unwrap_or(PollFlags::empty());
    Ok(events.contains(PollFlags::POLLHUP))
}

fn find_port() -> io::Result<Option<PathBuf>> {
    let ports = match fs::read_dir("/sys/class/virtio-ports") {
        Ok(ports) => ports,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    for port in ports {
        let port = port?;
        // The name comes in a message of its own, after the port.
        let named = fs::read_to_string(port.path().join("name"));
        if named.is_ok_and(|name| name.trim() == PORT) {
            return Ok(Some(Path::new("/dev").join(port.file_name())));
        }
    }
    Ok(None)
}

//! QEMU: its command line, and the thread that it is started from.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Mutex, PoisonError};
use std::thread;

use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::frame::PORT;
use super::{Card, Disk, Emulator, Error, Spec};

/// What the guest's kernel writes on its serial line.
const CONSOLE: &str = "console";

/// What QEMU says.
const LOG: &str = "qemu.log";

/// A running QEMU, killed when it is dropped.
#[derive(Debug)]
pub struct Qemu {
    pid: Pid,
    directory: PathBuf,
    /// Holds how it ended once it has.
    end: Mutex<Receiver<io::Result<ExitStatus>>>,
}

impl Qemu {
    /// Starts it, from a thread that waits for it: the signal that ends it with us comes when the thread that started it ends
    /// (PR_SET_PDEATHSIG in prctl(2)), so that must not be a short-lived one.
    pub fn start(spec: &Spec, directory: &Path, disks: &[Disk]) -> Result<Self, Error> {
        let mut command = command(spec, directory, disks);
        let log = directory.join(LOG);
        let output = File::create(&log).map_err(Error::io("create", &log))?;
        let errors = output.try_clone().map_err(Error::io("duplicate", &log))?;
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let netns = spec.netns.as_deref();
        let netns = netns.map(|path| File::open(path).map_err(Error::io("open", path)));
        prepare(&mut command, netns.transpose()?);

        let (started, start) = mpsc::channel();
        let (ended, end) = mpsc::channel();
        thread::spawn(move || match command.spawn() {
            Ok(mut qemu) => {
                // Whoever asked waits for this, and may be gone by the end.
                drop(started.send(Ok(Pid::from_raw(qemu.id().cast_signed()))));
                drop(ended.send(qemu.wait()));
            }
            Err(error) => drop(started.send(Err(error))),
        });
        let died = |_| Err(io::ErrorKind::BrokenPipe.into());
        let pid = start.recv().unwrap_or_else(died);
        let tool = "qemu-system-x86_64";
        Ok(Self {
            pid: pid.map_err(|source| Error::Tool { tool, source })?,
            directory: directory.to_owned(),
            end: Mutex::new(end),
        })
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// How it ended, if it has; told once.
    pub fn ended(&self) -> Option<String> {
        let end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        match end.try_recv().ok()? {
            Ok(status) => Some(status.to_string()),
            Err(error) => Some(error.to_string()),
        }
    }

    /// The last lines of the guest's console.
    pub fn console(&self) -> String {
        tail(&self.directory.join(CONSOLE), 200)
    }

    /// The last of what QEMU itself said.
    pub fn log(&self) -> String {
        tail(&self.directory.join(LOG), 10)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Until its thread has waited for it the pid stays its own. ESRCH: it has ended by itself.
        if self.ended().is_none() && kill(self.pid, Signal::SIGKILL).is_ok() {
            let end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
            // Its files may only go after it; how it ended does not matter.
            drop(end.recv());
        }
    }
}

/// The command line of a machine whose files are in `directory`.
fn command(spec: &Spec, directory: &Path, disks: &[Disk]) -> Command {
    let at = |name: &str| directory.join(name).display().to_string();
    // A development host with working KVM is ten times as fast, but that KVM is there does not
    // say that it works: it has to be asked for.
    let accelerator = std::env::var("NETMIG_VM_ACCEL");
    let accelerator = accelerator.as_deref().unwrap_or("tcg,thread=multi");
    let mut command = Emulator::cached().command();
    command
        .args(["-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-display", "none", "-monitor", "none"])
        .args(["-name", &spec.name])
        .args(["-accel", accelerator, "-cpu", "max"])
        .args(["-smp", &spec.processors.to_string()])
        .args(["-m", &format!("{}M", spec.memory)])
        .arg("-kernel")
        .arg(&spec.kernel.vmlinuz)
        .args(["-initrd", &at("initramfs")])
        .args(["-append", &arguments(spec)])
        .args(["-serial", &format!("file:{}", at(CONSOLE))])
        .args(["-device", "virtio-serial-pci"])
        .args([
            "-chardev",
            &format!("socket,id=control,path={}", at("port")),
        ])
        .args([
            "-device",
            &format!("virtserialport,chardev=control,name={PORT}"),
        ])
        .args(["-object", "rng-random,id=rng,filename=/dev/urandom"])
        .args(["-device", "virtio-rng-pci,rng=rng"]);
    for disk in disks {
        // What is written to a snapshot goes to an unnamed file in TMPDIR.
        let access = if disk.writable {
            "snapshot=on"
        } else {
            "readonly=on"
        };
        let image = disk.image.display();
        command.args([
            "-drive",
            &format!("file={image},if=virtio,format=raw,{access}"),
        ]);
    }
    for (index, card) in spec.cards.iter().enumerate() {
        let Card { tap, mac } = card;
        command
            .args([
                "-netdev",
                &format!("tap,id=n{index},ifname={tap},script=no,downscript=no"),
            ])
            .args([
                "-device",
                &format!("virtio-net-pci,netdev=n{index},mac={mac},romfile="),
            ]);
    }
    command.env("TMPDIR", directory).current_dir(directory);
    command
}

fn arguments(spec: &Spec) -> String {
    // A panic ends QEMU at once. Emulation has no use for the mitigations, and names of network
    // cards are to be the kernel's.
    format!(
        "console=ttyS0 quiet panic=-1 mitigations=off net.ifnames=0 hostname={}",
        spec.name
    )
}

/// In the new process: it ends with us, and is in the network namespace `netns`.
fn prepare(command: &mut Command, netns: Option<File>) {
    // SAFETY: between fork and exec only prctl and setns are called, which are async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            set_pdeathsig(Signal::SIGKILL)?;
            if let Some(netns) = &netns {
                setns(netns, CloneFlags::CLONE_NEWNET)?;
            }
            Ok(())
        });
    }
}

fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).replace('\r', "");
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

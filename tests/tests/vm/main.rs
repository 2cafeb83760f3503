//! Guests with other kernels: they come up, and take commands as any host does. What moves in them is told by `moves/machines.rs`.
//!
//! Each test boots emulated machines, so they only run when asked for: `cargo xtask test --only vm`.
use std::{
    io::{Read as _, Write as _},
    path::Path,
    time::{Duration, Instant},
};

use netmig_lab::{
    Cmd, Error, Host, Input,
    vm::{self, Spec, VmHost},
};

mod links;
mod physical;

const KERNELS: [&str; 3] = ["6.1", "6.12", "newest"];

/// Where cargo put the guest's init; the other programs lie beside it.
fn programs() -> &'static Path {
    let init = Path::new(env!("CARGO_BIN_EXE_netmig-lab-init"));
    init.parent().expect("a directory of programs")
}

fn spec(kernel: &str) -> Spec {
    Spec::new("guest", kernel, programs()).expect("a kernel, which set-up fetches")
}

fn boot(kernel: &str) -> VmHost {
    VmHost::boot(&spec(kernel)).unwrap_or_else(|error| panic!("{kernel}: {error}"))
}

#[test]
#[ignore = "boots virtual machines"]
fn each_kernel_comes_up_with_what_a_move_needs() {
    for kernel in KERNELS {
        let guest = boot(kernel);
        let release = guest.run(&["uname", "-r"]).expect("uname");
        assert_eq!(release, guest.vm().started().hello.release);
        assert_eq!(guest.run(&["hostname"]).expect("hostname"), "guest");
        guest
            .run(&["criu", "check"])
            .expect("CRIU finds what it needs");
        // Each is a module in these kernels, and is loaded when it is asked for.
        guest
            .sh("ip link add v0 type veth peer name v1; ip link add br0 type bridge; tc qdisc add dev v0 clsact; \
                 nft add table inet t; nft add chain inet t c '{ type filter hook input priority 0; }'; \
                 nft add rule inet t c ct state established accept; ip tuntap add t0 mode tap; conntrack -L; ss -tunapwx")
            .unwrap_or_else(|error| panic!("{release}: {error}"));
        guest
            .sh("test -r /sys/kernel/btf/vmlinux; mount | grep -q 'on /sys/fs/bpf type bpf'; test -w /dev/net/tun")
            .unwrap_or_else(|error| panic!("{release}: {error}"));
    }
}

#[test]
#[ignore = "boots virtual machines"]
fn a_guest_takes_commands_as_any_host_does() {
    let guest = boot("6.12");
    let host: &dyn Host = &guest;

    let failed = host
        .exec(&Cmd::sh("echo out; echo err >&2; exit 7"))
        .expect("it runs");
    assert_eq!(failed.status.code(), Some(7));
    assert_eq!(
        (failed.stdout.as_slice(), failed.stderr.as_slice()),
        (&b"out\n"[..], &b"err\n"[..])
    );

    let missing = host.run(&["no-such-program"]).expect_err("there is none");
    assert!(matches!(missing, Error::Spawn { .. }), "{missing:?}");

    let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| (i * 7 / 3) as u8).collect();
    host.write("/tmp/deep/file", &bytes, 0o640)
        .expect("written");
    assert!(
        host.read("/tmp/deep/file").expect("read") == bytes,
        "3 MB come back as they went"
    );
    assert_eq!(
        host.run(&["stat", "-c%a", "/tmp/deep/file"]).expect("stat"),
        "640"
    );

    let began = Instant::now();
    let long = Cmd::new(["sleep", "1000"]).limit(Duration::from_secs(1));
    let limited = host.exec(&long).expect_err("too long");
    assert!(matches!(limited, Error::Timeout { .. }), "{limited:?}");
    assert!(began.elapsed() < Duration::from_secs(20));

    let mut cat = host
        .spawn(&Cmd::new(["cat"]).stdin(Input::Pipe))
        .expect("cat");
    let mut stdin = cat.stdin.take().expect("its input");
    stdin.write_all(b"ping").expect("written");
    let mut answer = [0; 4];
    cat.stdout
        .as_mut()
        .expect("its output")
        .read_exact(&mut answer)
        .expect("an answer");
    assert_eq!(&answer, b"ping");
    drop(stdin);
    assert!(cat.wait().expect("its end").success());

    let two = |seconds: &str| host.spawn(&Cmd::new(["sleep", seconds])).expect("sleep");
    let (mut signalled, dropped) = (two("1001"), two("1002"));
    signalled.signal(libc::SIGTERM).expect("signalled");
    assert_eq!(
        signalled.wait().expect("its end").to_string(),
        "signal: 15 (SIGTERM)"
    );
    drop(dropped);
    host.spawn(&Cmd::new(["sleep", "1003"]).detached())
        .expect("sleep");
    host.wait_for("! pgrep -f '[s]leep 1002'", Duration::from_secs(10))
        .expect("a dropped command is killed");
    host.run(&["pgrep", "-f", "sleep 1003"])
        .expect("a detached one goes on");
}

#[test]
#[ignore = "boots virtual machines"]
fn a_guest_leaves_nothing_and_its_image_as_it_was() {
    let guest = boot("newest");
    guest
        .run(&["touch", "/root/trace"])
        .expect("the root can be written to");
    let qemu = guest.vm().pid();
    let socket = guest.vm().socket();
    drop(guest);
    assert!(
        !Path::new("/proc").join(qemu.to_string()).exists(),
        "QEMU has ended"
    );
    assert!(!socket.exists());
    let again = boot("newest");
    again
        .run(&["test", "!", "-e", "/root/trace"])
        .expect("nothing was kept");
}

#[test]
#[ignore = "boots virtual machines"]
fn a_guest_that_cannot_come_up_says_why() {
    let mut broken = spec("6.12");
    broken.programs.retain(|(name, _)| name != vm::INIT);
    let error = VmHost::boot(&broken).expect_err("there is no init");
    let said = error.to_string();
    assert!(matches!(error, vm::Error::Boot { .. }), "{said}");
    assert!(
        said.contains("netmig-lab-init"),
        "the console tells: {said}"
    );

    let unknown = Spec::new("guest", "9.99", programs()).expect_err("no such kernel");
    assert!(
        unknown.to_string().contains("cargo xtask setup"),
        "{unknown}"
    );
}

use super::*;
use netmig_core::container::{Manager, Mount};
use std::os::unix::fs::PermissionsExt;

fn mount(destination: &str, source: &str, fate: MountFate) -> Mount {
    Mount {
        destination: destination.into(),
        source: Some(source.into()),
        file: false,
        kind: "bind".into(),
        volume: None,
        fate,
    }
}

fn container(dir: &Path) -> Container {
    Container {
        manager: Manager::Crun,
        id: "r1".into(),
        name: "r1".into(),
        init_pid: 1,
        netns: None,
        cgroup: None,
        mounts: vec![
            mount("/shared", "/srv/nfs", MountFate::Shared),
            mount(
                "/data",
                &dir.join("data").display().to_string(),
                MountFate::Copy,
            ),
        ],
        upper: None,
        resurrectors: Vec::new(),
        recipe: Recipe::Bundle {
            config: String::new(),
            bundle: dir.into(),
            rootfs: dir.join("rootfs"),
        },
    }
}

fn created(dir: &Path) -> CreatedContainer {
    CreatedContainer {
        manager: Manager::Crun,
        id: "r1".into(),
        name: "r1".into(),
        static_dir: None,
        upper: None,
        rootfs: Some(dir.join("rootfs")),
        log: None,
        mounts: container(dir).mounts,
        cgroup_from: None,
        cgroup_to: None,
        netns: None,
        made_volumes: Vec::new(),
        made_dirs: Vec::new(),
    }
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(ToOwned::to_owned).collect()
}

#[test]
fn shared_mounts_do_not_travel() {
    let places = sources(&container(Path::new("/srv/r1")));
    let names: Vec<_> = places
        .iter()
        .map(|p| (p.tree.name(), p.path.display().to_string()))
        .collect();
    assert_eq!(
        names,
        [
            ("rootfs".into(), "/srv/r1/rootfs".into()),
            ("mount-1".into(), "/srv/r1/data".to_owned())
        ]
    );
    for place in places {
        assert_eq!(place.tree.name().parse(), Ok(place.tree));
    }
}

#[test]
fn server_writes_where_the_target_says() {
    let target = created(Path::new("/var/r1"));
    let asked = words("rsync --server -lHogDtpAXrSe.iLsfxCIvu --delete --numeric-ids . mount-1");
    let Ok(command) = server_command(&asked, &target) else {
        // Without rsync on this machine there is nothing to command.
        assert!(tool::find("rsync").is_err());
        return;
    };
    assert!(command.argv[0].ends_with("/rsync"));
    assert_eq!(
        command.argv[1..].join(" "),
        "--server -lHogDtpAXrSe.iLsfxCIvu --delete --numeric-ids . /var/r1/data/"
    );
}

#[test]
fn server_refuses_what_is_no_part_of_a_move() {
    let target = created(Path::new("/var/r1"));
    for (asked, named) in [
        ("sh -c x . upper", "sh -c x . upper"),
        ("rsync --server --sender -r . mount-1", "--sender"),
        (
            "rsync --server -r --log-file=/etc/passwd . mount-1",
            "--log-file=/etc/passwd",
        ),
        ("rsync --server -r . /etc", "/etc"),
        ("rsync --server -r . mount-0", "mount-0"),
        ("rsync --server -r . upper", "upper"),
        ("rsync --daemon", "rsync --daemon"),
    ] {
        let error = server_command(&words(asked), &target)
            .unwrap_err()
            .to_string();
        assert!(error.contains(&format!("{named:?}")), "{asked}: {error}");
    }
}

#[test]
fn codes_of_a_running_container() {
    assert!(acceptable(&Pass::Precopy, 24) && !acceptable(&Pass::Final, 24));
    assert!(acceptable(&Pass::Final, 0) && !acceptable(&Pass::Precopy, 12));
}

#[test]
fn estimate_counts_a_hard_link_once_and_no_hole() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a");
    fs::write(&file, vec![1; 1 << 20]).unwrap();
    fs::hard_link(&file, dir.path().join("b")).unwrap();
    fs::File::create(dir.path().join("hole"))
        .unwrap()
        .set_len(1 << 30)
        .unwrap();
    let place = Place {
        tree: Tree::Upper,
        path: dir.path().to_owned(),
        file: false,
    };
    let bytes = estimate(&place).unwrap();
    assert!((1 << 20..2 << 20).contains(&bytes), "{bytes}");
    let gone = Place {
        path: dir.path().join("gone"),
        ..place
    };
    assert!(estimate(&gone).unwrap_err().to_string().contains("/gone"));
}

fn script(path: &Path, text: &str) -> String {
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

/// The real rsync against itself: once to see what it asks the other end for, once with what the target makes of that.
fn copy(dir: &Path, place: &Place, pass: &Pass, target: &CreatedContainer) {
    let asking = script(
        &dir.join("asking"),
        &format!("shift\necho \"$@\" > {}/asked", dir.display()),
    );
    let nothing = copy_command(place, pass, &asking).std().output().unwrap();
    assert!(!nothing.status.success(), "nobody answers");
    let asked = fs::read_to_string(dir.join("asked")).unwrap();
    let server = server_command(&words(asked.trim()), target).unwrap();
    let through = script(
        &dir.join("through"),
        &format!("exec {}", server.argv.join(" ")),
    );
    let done = copy_command(place, pass, &through).std().output().unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
}

#[test]
fn copies_a_tree_and_then_its_difference() {
    if tool::find("rsync").is_err() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir_all(from.join("rootfs/sub")).unwrap();
    fs::create_dir_all(to.join("rootfs")).unwrap();
    let file = from.join("rootfs/sub/a");
    fs::write(&file, "new").unwrap();
    fs::hard_link(&file, from.join("rootfs/b")).unwrap();
    fs::write(from.join("rootfs/unmapped"), "same").unwrap();
    fs::write(to.join("rootfs/gone"), "old").unwrap();
    let place = sources(&container(&from)).remove(0);
    let arrived = |name: &str| fs::read_to_string(to.join("rootfs").join(name)).unwrap();

    copy(dir.path(), &place, &Pass::Precopy, &created(&to));
    assert_eq!(
        (arrived("sub/a"), arrived("unmapped")),
        ("new".into(), "same".into())
    );
    assert!(!to.join("rootfs/gone").exists());
    let inode = |path: &str| to.join("rootfs").join(path).metadata().unwrap().ino();
    assert_eq!(inode("sub/a"), inode("b"));

    // Written through a mapping: other content, same size and time.
    let time = fs::metadata(&file).unwrap().modified().unwrap();
    fs::write(&file, "NEW").unwrap();
    fs::File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_modified(time)
        .unwrap();
    copy(dir.path(), &place, &Pass::Final, &created(&to));
    assert_eq!(
        arrived("sub/a"),
        "new",
        "if rsync saw this, Pass::Mapped would not be needed"
    );
    copy(
        dir.path(),
        &place,
        &Pass::Mapped(vec!["sub/a".into()]),
        &created(&to),
    );
    assert_eq!(
        (arrived("sub/a"), arrived("unmapped")),
        ("NEW".into(), "same".into())
    );
    assert_eq!(inode("sub/a"), inode("b"));
}

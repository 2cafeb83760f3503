//! Hosts that do not let each other in by ssh: a container moves over TLS.
use std::time::Duration;

use netmig_lab::{Cmd, Host};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::{
    container::{Container, How},
    story::Story,
};

const DIRECTORY: &str = "/etc/netmig/tls";
const PORT: u16 = 7474;

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::<String>::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority")
}

/// Gives `host` a certificate for its name and its addresses, signed by the authority.
fn introduce(host: &dyn Host, number: u8, authority: &Authority) {
    let names = [
        host.name().to_owned(),
        format!("192.0.2.{number}"),
        format!("2001:db8::{number}"),
    ];
    let key = KeyPair::generate().expect("a key");
    let certificate = CertificateParams::new(names)
        .expect("parameters")
        .signed_by(&key, authority)
        .expect("a certificate");
    host.run(&["mkdir", "-p", DIRECTORY]).expect("a directory");
    for (name, text) in [
        ("ca.pem", authority.pem()),
        ("cert.pem", certificate.pem()),
        ("key.pem", key.serialize_pem()),
    ] {
        host.write(&format!("{DIRECTORY}/{name}"), text.as_bytes(), 0o600)
            .expect("written");
    }
}

#[test]
fn a_container_moves_there_and_back_where_ssh_is_closed() {
    let story = Story::up("tls");
    let container = Container::new(How::Podman("crun"));
    let authority = authority();
    let hosts = [(story.a(), 1), (story.b(), 2)];
    let listening = hosts.map(|(host, number)| {
        introduce(host, number, &authority);
        host.run(&["mv", "/root/.ssh", "/root/gone"])
            .expect("no keys any more");
        let listen = format!("[::]:{PORT}");
        let agent = host
            .spawn(&Cmd::new([
                "netmig-user",
                "agent",
                "--listen",
                listen.as_str(),
            ]))
            .expect("it listens");
        host.wait_for(
            &format!("ss -Htln sport = :{PORT} | grep -q ."),
            Duration::from_secs(10),
        )
        .expect("it listens");
        agent
    });
    story.start(story.a(), &container);

    // Without credentials nothing begins.
    let to_b = format!("tls://b:{PORT}");
    let command = story.command_to(&to_b, &container);
    let refused = story.migrate_by(story.a(), command.args(["--tls-dir", "/root"]));
    assert_eq!(refused.code(), Some(1), "{}", refused.said());
    assert!(
        refused.said().contains("/root/ca.pem"),
        "{}",
        refused.said()
    );

    let loaded = story.load(&container);
    let there = story.migrate_by(story.a(), story.command_to(&to_b, &container));
    story.moved(story.a(), &container, there);
    let to_a = format!("tls://[2001:db8::1]:{PORT}");
    let back = story.migrate_by(story.b(), story.command_to(&to_a, &container));
    story.moved(story.b(), &container, back);
    loaded.end_clean();
    drop(listening);
    story.nothing_is_left();
}

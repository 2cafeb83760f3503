//! TLS 1.3 (RFC 8446) with a certificate at either end: `agent --listen` at the target, `--to tls://host:port` at the source.
//!
//! Both show a certificate that the same authority has signed, and the target's is for the name by which it was called. Whoever has
//! such a certificate may move containers to this host, and is root here by that: the authority signs for netmig's hosts and nobody else.
use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    io::{DuplexStream, copy_bidirectional_with_sizes, duplex, split},
    net::TcpStream,
    sync::oneshot,
    time::timeout,
};
use tokio_rustls::{
    TlsAcceptor, TlsConnector,
    rustls::{
        ClientConfig, RootCertStore, ServerConfig,
        crypto::{CryptoProvider, ring},
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
        server::WebPkiClientVerifier,
        version::TLS13,
    },
    server,
};

use super::{
    destination::Destination,
    dial::{Carrier, Complaints, Connection, Life},
};

/// Where a host keeps its credentials, unless `--tls-dir` says otherwise.
pub const DIRECTORY: &str = "/etc/netmig/tls";

/// The authority's certificate, this host's with those between it and the authority's, and this host's key; all PEM (RFC 7468).
const FILES: [&str; 3] = ["ca.pem", "cert.pem", "key.pem"];

/// For each of: the TCP connection, the handshake.
const PATIENCE: Duration = Duration::from_secs(10);

/// Silence is noticed within so many seconds, as it is under ssh.
const SILENCE_S: u32 = 15;

/// Bytes under way between a connection and who speaks on it.
pub const BLOCK: usize = 256 << 10;

/// What a host shows, and whom it believes.
pub struct Credentials {
    authority: RootCertStore,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Credentials {
    /// Those in `directory`.
    ///
    /// # Errors
    /// A file is missing, is no PEM of its kind, or the key may be read by others than its owner.
    pub fn load(directory: &Path) -> Result<Self> {
        let [authority, chain, key] = FILES.map(|name| directory.join(name));
        let about = |path: &Path| {
            format!(
                "reading {} (a directory for TLS holds {}; --tls-dir names another)",
                path.display(),
                FILES.join(", ")
            )
        };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&authority).with_context(|| about(&authority))? {
            roots.add(certificate).with_context(|| about(&authority))?;
        }
        let chain = certificates(&chain).with_context(|| about(&chain))?;
        let mode = fs::metadata(&key)
            .with_context(|| about(&key))?
            .permissions()
            .mode();
        ensure!(
            mode & 0o077 == 0,
            "{} may be read by others than its owner (mode {:03o}): chmod 600 {0}",
            key.display(),
            mode & 0o777
        );
        Ok(Self {
            authority: roots,
            chain,
            key: PrivateKeyDer::from_pem_file(&key).with_context(|| about(&key))?,
        })
    }

    /// For who calls.
    ///
    /// # Errors
    /// Key and certificate do not belong together.
    fn client(self) -> Result<ClientConfig> {
        ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(self.authority)
            .with_client_auth_cert(self.chain, self.key)
            .context("this host's certificate and key")
    }

    /// For who is called.
    ///
    /// # Errors
    /// Key and certificate do not belong together.
    fn server(self) -> Result<ServerConfig> {
        let callers =
            WebPkiClientVerifier::builder_with_provider(Arc::new(self.authority), provider())
                .build()
                .context("the authority's certificate")?;
        ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(callers)
            .with_single_cert(self.chain, self.key)
            .context("this host's certificate and key")
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let found = CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>()?;
    if found.is_empty() {
        bail!("there is no certificate in it");
    }
    Ok(found)
}

/// Whether the credentials in `directory` can be used to call another host.
///
/// # Errors
/// What is wrong with them.
pub fn check_caller(directory: &Path) -> Result<()> {
    Credentials::load(directory)?.client().map(drop)
}

/// Whether those in `directory` can be used to be called.
///
/// # Errors
/// What is wrong with them.
pub fn check_called(directory: &Path) -> Result<()> {
    Credentials::load(directory)?.server().map(drop)
}

/// Begins to connect. What goes wrong is among the carrier's words, and the connection ends.
pub(super) fn dial(to: &Destination, credentials: &Path) -> Connection {
    let (near, far) = duplex(BLOCK);
    let (hung_up, hang_up) = oneshot::channel();
    let complaints = Complaints::default();
    let carried = carry(to.clone(), credentials.to_owned(), far);
    let heard = complaints.clone();
    tokio::spawn(async move {
        tokio::select! {
            ended = carried => if let Err(e) = ended {
                heard.add(&format!("{e:#}"));
            },
            _ = hang_up => {}
        }
    });
    let (from, to) = split(near);
    Connection {
        to: Box::new(to),
        from: Box::new(from),
        carrier: Carrier::new("TLS", Life::Task { _hung_up: hung_up }, complaints),
    }
}

async fn carry(to: Destination, credentials: PathBuf, mut near: DuplexStream) -> Result<()> {
    let config = Credentials::load(&credentials)?.client()?;
    let name = ServerName::try_from(to.host.clone())
        .with_context(|| format!("{} is no name that a certificate can be for", to.host))?;
    let port = to.port.unwrap_or_default();
    let connecting = TcpStream::connect((to.host.as_str(), port));
    let stream = in_time(connecting).await.with_context(|| {
        format!("connecting to {to} (does `netmig-user agent --listen` run there?)")
    })?;
    watch(&stream).context("setting the connection's options")?;
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
    let mut stream = in_time(connecting)
        .await
        .with_context(|| format!("agreeing with {to}"))?;
    copy_bidirectional_with_sizes(&mut near, &mut stream, BLOCK, BLOCK)
        .await
        .with_context(|| format!("connection to {to}"))?;
    Ok(())
}

/// The called end of a connection.
///
/// # Errors
/// The caller shows no certificate that the authority has signed, or is silent; or this host's credentials cannot be used any more.
pub async fn accept(stream: TcpStream, credentials: &Path) -> Result<server::TlsStream<TcpStream>> {
    let config = Credentials::load(credentials)?.server()?;
    watch(&stream).context("setting the connection's options")?;
    Ok(in_time(TlsAcceptor::from(Arc::new(config)).accept(stream)).await?)
}

async fn in_time<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(PATIENCE, work).await.unwrap_or_else(|_| {
        let why = format!("no answer within {PATIENCE:?}");
        Err(io::Error::new(io::ErrorKind::TimedOut, why))
    })
}

/// Nothing waits for more to send, and a silent other end is noticed.
fn watch(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &(SILENCE_S / 3))?;
    setsockopt(stream, sockopt::TcpKeepInterval, &(SILENCE_S / 3))?;
    setsockopt(stream, sockopt::TcpKeepCount, &2)?;
    setsockopt(stream, sockopt::TcpUserTimeout, &(SILENCE_S * 1000))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    type Authority = CertifiedIssuer<'static, KeyPair>;

    fn authority() -> Authority {
        let mut params = CertificateParams::new(Vec::<String>::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key"))
            .expect("an authority")
    }

    /// A directory of a host that `name` is for, signed by `by`, and which believes `believed`.
    fn host(name: &str, by: &Authority, believed: &Authority) -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a directory");
        let key = KeyPair::generate().expect("a key");
        let certificate = CertificateParams::new([name.to_owned()])
            .expect("parameters")
            .signed_by(&key, by)
            .expect("a certificate");
        for (file, text) in [
            ("ca.pem", believed.pem()),
            ("cert.pem", certificate.pem()),
            ("key.pem", key.serialize_pem()),
        ] {
            let path = directory.path().join(file);
            fs::write(&path, text).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("private");
        }
        directory
    }

    /// What comes back of a word, from an echo that `called` is the host of; and what was said of the connection.
    async fn echo(caller: &Path, called: &Path, name: &str) -> Result<String, String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let called = called.to_owned();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await?;
            let mut stream = accept(stream, &called).await?;
            let mut word = [0; 4];
            stream.read_exact(&mut word).await?;
            stream.write_all(&word).await?;
            stream.shutdown().await?;
            anyhow::Ok(())
        });
        let to = format!("tls://{name}:{port}")
            .parse()
            .expect("a destination");
        let mut connection = dial(&to, caller);
        let spoken = async {
            connection.to.write_all(b"word").await?;
            let mut back = String::new();
            connection.from.read_to_string(&mut back).await?;
            io::Result::Ok(back)
        };
        match spoken.await {
            Ok(back) if !back.is_empty() => Ok(back),
            Ok(_) => Err(connection.carrier.explain("it ended")),
            Err(e) => Err(connection.carrier.explain(e)),
        }
    }

    #[tokio::test]
    async fn hosts_of_one_authority_speak() {
        let own = authority();
        let (a, b) = (host("a", &own, &own), host("127.0.0.1", &own, &own));
        let back = echo(a.path(), b.path(), "127.0.0.1").await;
        assert_eq!(back.as_deref(), Ok("word"));
    }

    #[tokio::test]
    async fn who_is_not_believed_does_not_get_a_word_through() {
        let (own, other) = (authority(), authority());
        let b = host("127.0.0.1", &own, &own);
        // The caller's certificate is of another authority.
        let stranger = host("a", &other, &own);
        let said = echo(stranger.path(), b.path(), "127.0.0.1")
            .await
            .expect_err("refused");
        assert!(said.contains("fatal alert"), "{said}");
        // The called one's is.
        let a = host("a", &own, &other);
        let said = echo(a.path(), b.path(), "127.0.0.1")
            .await
            .expect_err("refused");
        assert!(said.contains("invalid peer certificate"), "{said}");
        // It is of another host.
        let (a, c) = (host("a", &own, &own), host("c", &own, &own));
        let said = echo(a.path(), c.path(), "127.0.0.1")
            .await
            .expect_err("refused");
        assert!(said.contains("not valid for name"), "{said}");
    }

    #[tokio::test]
    async fn a_caller_without_a_certificate_is_refused() {
        let own = authority();
        let b = host("127.0.0.1", &own, &own);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let at = listener.local_addr().expect("an address");
        let anonymous = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .expect("a version")
            .with_root_certificates(Credentials::load(b.path()).expect("credentials").authority)
            .with_no_client_auth();
        let calling = tokio::spawn(async move {
            let stream = TcpStream::connect(at).await?;
            let name = ServerName::try_from("127.0.0.1").expect("a name");
            TlsConnector::from(Arc::new(anonymous))
                .connect(name, stream)
                .await
        });
        let (stream, _) = listener.accept().await.expect("a caller");
        let refused = accept(stream, b.path()).await.expect_err("refused");
        assert!(
            format!("{refused:#}").contains("no certificates"),
            "{refused:#}"
        );
        drop(calling.await.expect("it ends"));
    }

    #[tokio::test]
    async fn hanging_up_ends_the_connection() {
        let own = authority();
        let (a, b) = (host("a", &own, &own), host("127.0.0.1", &own, &own));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let to = format!("tls://127.0.0.1:{port}")
            .parse()
            .expect("a destination");
        let Connection { to, from, carrier } = dial(&to, a.path());
        let (stream, _) = listener.accept().await.expect("a caller");
        let mut stream = accept(stream, b.path()).await.expect("believed");
        drop(carrier);
        let mut byte = [0];
        let ended = in_time(stream.read(&mut byte)).await;
        // A connection that is dropped says no goodbye.
        assert!(
            !matches!(&ended, Ok(1..))
                && !matches!(&ended, Err(e) if e.kind() == io::ErrorKind::TimedOut),
            "{ended:?}"
        );
        drop((to, from));
    }

    #[test]
    fn what_is_wrong_with_credentials_is_said() {
        let (own, other) = (authority(), authority());
        let good = host("a", &own, &own);
        check_caller(good.path()).expect("they can be used");
        check_called(good.path()).expect("they can be used");
        let said =
            |directory: &Path| format!("{:#}", check_caller(directory).expect_err("refused"));

        let open = host("a", &own, &own);
        let key = open.path().join("key.pem");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).expect("changed");
        assert!(
            said(open.path()).contains("chmod 600"),
            "{}",
            said(open.path())
        );

        let swapped = host("a", &own, &own);
        fs::copy(
            host("a", &other, &own).path().join("key.pem"),
            swapped.path().join("key.pem"),
        )
        .expect("copied");
        assert!(
            said(swapped.path()).contains("certificate and key"),
            "{}",
            said(swapped.path())
        );

        for name in FILES {
            let less = host("a", &own, &own);
            fs::write(less.path().join(name), "nothing\n").expect("written");
            assert!(said(less.path()).contains(name), "{}", said(less.path()));
            fs::remove_file(less.path().join(name)).expect("removed");
            assert!(
                said(less.path()).contains("--tls-dir"),
                "{}",
                said(less.path())
            );
        }
    }
}

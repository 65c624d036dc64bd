//! The API server alone, on loopback, and the real clients it is tested with.

use anyhow::{Context, Result, bail, ensure};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use xtask::setup::{self, Clients};

/// Longest time until a started server answers.
const START: Duration = Duration::from_secs(60);

/// `kelp server` with the API server, and the controllers if wanted, as its only components. Dropping it kills the server
/// and removes its state.
#[derive(Debug)]
pub struct ApiServer {
    kelp: PathBuf,
    dir: PathBuf,
    port: u16,
    components: &'static str,
    child: Option<Child>,
}

impl ApiServer {
    /// Starts one whose state is in `target/clients/<name>`, empty at first.
    ///
    /// # Errors
    /// It could not be built or started, or does not answer.
    pub fn start(name: &str, components: &'static str) -> Result<Self> {
        let kelp = match std::env::var_os("KELP_BIN") {
            Some(kelp) => PathBuf::from(kelp),
            None => xtask::build::build_kelp()?,
        };
        let dir = xtask::build::workspace_root().join("target/clients").join(name);
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", dir.display()));
            }
            _ => {}
        }
        std::fs::create_dir_all(dir.join("home"))?;
        // The system picks a free port; it stays free unless someone takes it right now.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let mut server = ApiServer { kelp, dir, port, components, child: None };
        server.restart()?;
        Ok(server)
    }

    /// Starts the server again over the same state, at an address that nobody knows from before; the one that it had.
    ///
    /// # Errors
    /// It could not be started or does not answer.
    pub fn restart_elsewhere(&mut self) -> Result<u16> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let before = std::mem::replace(&mut self.port, port);
        self.restart()?;
        Ok(before)
    }

    /// Starts the server again over the same state, at this port.
    ///
    /// # Errors
    /// It could not be started or does not answer.
    pub fn restart_at(&mut self, port: u16) -> Result<()> {
        self.port = port;
        self.restart()
    }

    /// Forgets the history of the state while no server runs: only the present is left.
    ///
    /// # Errors
    /// The store could not be read or written.
    pub async fn compact(&mut self) -> Result<()> {
        self.kill();
        let dir = self.dir.join("data/store");
        let store = kelp_store::EmbeddedStore::open(&dir, kelp_store::StoreOptions::default())?;
        kelp_store::Store::compact(&store, kelp_store::Store::revision(&store)).await?;
        Ok(())
    }

    /// Starts the server again over the same state.
    ///
    /// # Errors
    /// It could not be started or does not answer.
    pub fn restart(&mut self) -> Result<()> {
        self.kill();
        // The one of before may name another port.
        if let Err(error) = std::fs::remove_file(self.kubeconfig()) {
            ensure!(error.kind() == std::io::ErrorKind::NotFound, "remove the kubeconfig: {error}");
        }
        let log = std::fs::File::options().create(true).append(true).open(self.dir.join("kelp.log"))?;
        let mut command = Command::new(&self.kelp);
        command.args([
            "server",
            "--components",
            self.components,
            "--listen",
            &format!("127.0.0.1:{}", self.port),
        ]);
        command.args([
            "--node-name",
            "apiserver",
            "--node-ip",
            "127.0.0.1",
            "--advertise-address",
            "127.0.0.1",
        ]);
        command.args(["--service-cidr", "10.96.0.0/16", "--node-port-range", "30000-32767"]);
        command.arg("--data-dir").arg(self.dir.join("data"));
        command.arg("--write-kubeconfig").arg(self.kubeconfig());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.child = Some(command.spawn().with_context(|| format!("start {}", self.kelp.display()))?);
        self.wait()
    }

    /// Waits until the port is open and the administrator's kubeconfig is there.
    fn wait(&mut self) -> Result<()> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let begin = Instant::now();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        while TcpStream::connect(address).is_err() || !self.kubeconfig().exists() {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok()).flatten();
            if let Some(status) = ended {
                bail!("the server ended: {status}\n{}", self.log());
            }
            ensure!(begin.elapsed() < START, "the server does not listen\n{}", self.log());
            runtime.block_on(async { tokio::time::sleep(Duration::from_millis(20)).await });
        }
        Ok(())
    }

    /// Kills it with SIGKILL, as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself; then there is nothing to kill.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// The administrator's.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// A directory for files of the test.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the server has written.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("kelp.log")).unwrap_or_default()
    }

    /// Runs a program against the server and returns what it printed.
    ///
    /// # Errors
    /// It failed; the error shows what it said.
    pub fn run(&self, program: &Path, args: &[&str]) -> Result<String> {
        self.feed(program, args, "")
    }

    /// The same with standard input.
    ///
    /// # Errors
    /// It failed; the error shows what it said.
    pub fn feed(&self, program: &Path, args: &[&str], input: &str) -> Result<String> {
        let Output { status, stdout, stderr } = self.try_feed(program, args, input)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if !status.success() {
            bail!("{} {}: {status}\n{}{}", program.display(), args.join(" "), text(&stdout), text(&stderr));
        }
        Ok(text(&stdout))
    }

    /// The same, whatever the program's exit code.
    ///
    /// # Errors
    /// It could not be started.
    pub fn try_feed(&self, program: &Path, args: &[&str], input: &str) -> Result<Output> {
        let mut command = self.command(program, args);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        // A program that reads nothing may end first.
        let _ = child.stdin.take().context("no stdin")?.write_all(input.as_bytes());
        Ok(child.wait_with_output()?)
    }

    /// The command, for what must go on meanwhile.
    pub fn command(&self, program: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(args).env("KUBECONFIG", self.kubeconfig()).env("HOME", self.dir.join("home"));
        for variable in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(variable, self.dir.join("home").join(variable));
        }
        command
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("{}\n(end of the server's log)", self.log());
        }
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            eprintln!("cleaning up {}: {error}", self.dir.display());
        }
    }
}

/// The clients that every test of verbs runs with, by name.
///
/// # Errors
/// One could not be installed.
pub fn clients() -> Result<Vec<(&'static str, Clients)>> {
    Ok(vec![
        ("current", setup::ensure_clients(setup::CURRENT_CLIENTS)?),
        ("old", setup::ensure_clients(setup::OLD_CLIENTS)?),
    ])
}

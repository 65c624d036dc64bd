//! logind over D-Bus: locks that delay a shutdown (org.freedesktop.login1(5)).

use futures::StreamExt;
use std::path::Path;
use std::time::Duration;
use zbus::proxy::SignalStream;
use zbus::wire::OwnedFd;
use zbus::{Connection, Proxy};

/// Longest wait for an answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Drop-in that lets a shutdown be delayed for as long as the pods need.
const DROP_IN: &str = "/etc/systemd/logind.conf.d/99-kelp.conf";

/// A connection to logind.
pub struct Logind {
    connection: Connection,
}

/// A shutdown waits as long as this is kept.
pub struct Lock(#[expect(dead_code, reason = "held open: closing it gives the lock back")] OwnedFd);

/// Beginnings (`true`) and cancellations of shutdowns.
pub struct Signals(SignalStream<'static>);

impl Signals {
    /// The next one; `None` when the bus is gone.
    pub async fn next(&mut self) -> Option<bool> {
        loop {
            // A signal of another shape is none of logind's.
            if let Ok(begins) = self.0.next().await?.body().deserialize::<bool>() {
                return Some(begins);
            }
        }
    }
}

impl Logind {
    /// On a connection that is there.
    #[cfg(test)]
    pub fn on(connection: Connection) -> Self {
        Self { connection }
    }

    /// Connects to the system's bus, and sees to it that a shutdown may be delayed for so long.
    ///
    /// # Errors
    /// There is no bus or no logind, or it does not let a shutdown be delayed for so long.
    pub async fn connect(seconds: i64) -> zbus::Result<Self> {
        let connecting = tokio::time::timeout(ANSWER, zbus::connection::Builder::system().build());
        let connection = connecting.await.map_err(|_| failed("the bus does not answer".into()))??;
        let logind = Self { connection };
        let wanted = u64::try_from(seconds).unwrap_or(0).saturating_mul(1_000_000);
        if logind.longest_delay().await? >= wanted {
            return Ok(logind);
        }
        logind.allow_longer(Path::new(DROP_IN), seconds).await?;
        // The new configuration is read by and by.
        for _ in 0..20 {
            if logind.longest_delay().await? >= wanted {
                return Ok(logind);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err(failed(format!(
            "InhibitDelayMaxSec of logind is less than the {seconds} s of shutdownGracePeriod; set it in logind.conf"
        )))
    }

    async fn manager(&self) -> zbus::Result<Proxy<'static>> {
        Proxy::new_owned(
            self.connection.clone(),
            "org.freedesktop.login1",
            "/org/freedesktop/login1",
            "org.freedesktop.login1.Manager",
        )
        .await
    }

    /// µs.
    async fn longest_delay(&self) -> zbus::Result<u64> {
        self.manager().await?.get_property("InhibitDelayMaxUSec").await
    }

    /// Writes logind's configuration and has it read.
    async fn allow_longer(&self, file: &Path, seconds: i64) -> zbus::Result<()> {
        let write = || -> std::io::Result<()> {
            if let Some(dir) = file.parent() {
                std::fs::create_dir_all(dir)?;
            }
            std::fs::write(
                file,
                format!(
                    "# Written by kelp for shutdownGracePeriod.\n[Login]\nInhibitDelayMaxSec={seconds}\n"
                ),
            )
        };
        write().map_err(|e| failed(format!("cannot write {}: {e}", file.display())))?;
        let systemd = Proxy::new_owned(
            self.connection.clone(),
            "org.freedesktop.systemd1",
            "/org/freedesktop/systemd1",
            "org.freedesktop.systemd1.Manager",
        )
        .await?;
        systemd.call_method("KillUnit", &("systemd-logind.service", "all", libc::SIGHUP)).await.map(|_| ())
    }

    /// A lock that delays shutdowns.
    ///
    /// # Errors
    /// logind does not give one.
    pub async fn delay(&self) -> zbus::Result<Lock> {
        let body = ("shutdown", "kelp", "Kelp needs time to handle node shutdown", "delay");
        self.manager().await?.call("Inhibit", &body).await.map(Lock)
    }

    /// Shutdowns, from now on.
    ///
    /// # Errors
    /// The bus is gone.
    pub async fn signals(&self) -> zbus::Result<Signals> {
        self.manager().await?.receive_signal("PrepareForShutdown").await.map(Signals)
    }
}

fn failed(text: String) -> zbus::Error {
    zbus::Error::Failure(text)
}

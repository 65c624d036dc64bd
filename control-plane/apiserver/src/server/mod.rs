//! The server: shared state, the request path, connections.

mod answer;
mod body;
mod compact;
mod connection;
mod core;
mod health;
mod issuer;
mod metrics;
mod seats;
mod service;
mod stall;
mod tls;
mod warnings;
mod websocket;

pub use answer::AnswerBody;
pub(crate) use core::Core;
pub(crate) use health::paths;
pub(crate) use metrics::WatchCounter;
pub(crate) use seats::Entered;
pub use service::ClientService;

use crate::auth::UserInfo;
use crate::config::Config;
use kelp_store::Store;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Why the server cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A certificate or key is not usable.
    #[error("{what}: {why}")]
    Tls {
        /// Which part of the configuration.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}; choose another address or stop what uses it")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The first objects could not be written.
    #[error("cannot create the first objects: {0}")]
    Bootstrap(crate::error::ApiError),
    /// A range in the configuration is malformed.
    #[error("{0}")]
    Config(String),
}

/// The API server over a store. Cheap to clone.
#[derive(Clone)]
pub struct ApiServer {
    core: Arc<Core>,
}

impl ApiServer {
    /// A server that answers in-process requests at once; [`run`](Self::run) opens the port. Ends its tasks with
    /// `shutdown`.
    ///
    /// # Errors
    /// A malformed address range in the configuration.
    pub fn new(
        config: Config,
        store: Arc<impl Store>,
        shutdown: CancellationToken,
    ) -> Result<Self, ServerError> {
        Ok(ApiServer { core: Core::new(config, store, shutdown)? })
    }

    /// Creates the namespaces, the default roles and the `kubernetes` Service if they are missing. [`run`](Self::run) does it too.
    ///
    /// # Errors
    /// The store's.
    pub async fn bootstrap(&self) -> Result<(), ServerError> {
        crate::bootstrap::run(&self.core).await.map_err(ServerError::Bootstrap)?;
        self.core.started.store(true, std::sync::atomic::Ordering::Release);
        Ok(())
    }

    /// A transport for `kube::Client::new(service, "default")`: requests go to the handlers without a connection.
    pub fn client_service(&self, user: UserInfo) -> ClientService {
        ClientService::new(self.core.clone(), user)
    }

    /// Listens on the configured address and serves until the shutdown token fires.
    ///
    /// # Errors
    /// Unusable certificates, an address in use, a store that cannot be written.
    pub async fn run(&self) -> Result<(), ServerError> {
        let address = self.core.config.listen;
        let listener =
            TcpListener::bind(address).await.map_err(|source| ServerError::Listen { address, source })?;
        self.run_on(listener).await
    }

    /// Serves on a listener that is already bound.
    ///
    /// # Errors
    /// Unusable certificates, a store that cannot be written.
    pub async fn run_on(&self, listener: TcpListener) -> Result<(), ServerError> {
        let certificate = tls::fixed_certificate(&self.core.config.tls)?;
        self.serve(vec![listener], certificate).await
    }

    /// Serves on listeners that are already bound, with a certificate that may be replaced meanwhile (the
    /// configuration's is not used).
    ///
    /// # Errors
    /// Unusable certificates, a store that cannot be written.
    pub async fn serve(
        &self,
        listeners: Vec<TcpListener>,
        certificate: Arc<dyn rustls::server::ResolvesServerCert>,
    ) -> Result<(), ServerError> {
        let tls = tls::server_config(&self.core.config.tls, certificate)?;
        self.bootstrap().await?;
        tokio::spawn(self.core.shutdown.clone().run_until_cancelled_owned(compact::run(self.core.clone())));
        let accepting = listeners
            .into_iter()
            .map(|listener| connection::accept(self.core.clone(), listener, tls.clone()));
        futures::future::join_all(accepting).await;
        Ok(())
    }
}

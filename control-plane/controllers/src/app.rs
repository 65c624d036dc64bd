//! Runs the controllers.

use std::sync::Arc;

use kube::Client;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::context::Context;
use crate::events::Events;
use crate::informer::Informers;
use crate::kinds::Kinds;
use crate::wiring::CONTROLLERS;

/// Runs all controllers that `config` enables until `shutdown`. Reads and writes the API server only; an API server that
/// cannot be reached is waited for.
///
/// # Errors
/// A setting that no controller can work with.
pub async fn run(config: Config, client: Client, shutdown: CancellationToken) -> crate::error::Result<()> {
    let tasks = TaskTracker::new();
    // Ends the tasks also when this future is dropped.
    let stop = shutdown.child_token();
    let _guard = stop.clone().drop_guard();
    let (events, writer) = Events::new(client.clone(), stop.clone());
    tasks.spawn(writer);
    let informers = Arc::new(Informers::new(client.clone(), tasks.clone(), stop.clone()));
    let kinds = Kinds::new(client.clone(), informers.clone());
    let (tasks_of, shutdown) = (tasks.clone(), stop.clone());
    let context = Arc::new(Context { client, config, informers, kinds, events, tasks: tasks_of, shutdown });

    let mut started = Vec::new();
    for controller in CONTROLLERS {
        if context.config.is_enabled(controller.name, controller.on_by_default) {
            (controller.start)(&context)?;
            started.push(controller.name);
        }
    }
    context.informers.start();
    tracing::info!(controllers = ?started, "controllers started");
    stop.cancelled().await;
    tasks.close();
    tasks.wait().await;
    Ok(())
}

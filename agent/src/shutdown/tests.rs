use super::*;
use crate::runtime::fake::FakeRuntime;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use zbus::object_server::SignalEmitter;

/// As much of logind as the agent asks.
struct FakeLogind {
    /// The lock that is given out.
    lock: Option<OwnedFd>,
}

#[zbus::interface(name = "org.freedesktop.login1.Manager")]
impl FakeLogind {
    fn inhibit(
        &mut self,
        what: &str,
        _who: &str,
        _why: &str,
        mode: &str,
    ) -> zbus::fdo::Result<zbus::wire::OwnedFd> {
        assert_eq!((what, mode), ("shutdown", "delay"));
        let lock = self.lock.take().ok_or_else(|| zbus::fdo::Error::Failed("given out".into()))?;
        Ok(lock.into())
    }

    #[zbus(signal)]
    async fn prepare_for_shutdown(emitter: &SignalEmitter<'_>, start: bool) -> zbus::Result<()>;
}

#[tokio::test]
async fn pods_end_by_priority_and_the_lock_is_given_back() {
    let (lock, mut held) = UnixStream::pair().unwrap();
    let (near, far) = UnixStream::pair().unwrap();
    let guid = zbus::Guid::generate();
    let path = "/org/freedesktop/login1";
    let server = zbus::connection::Builder::unix_stream(far)
        .server(guid)
        .p2p()
        .serve_at(path, FakeLogind { lock: Some(lock.into()) });
    let client = zbus::connection::Builder::unix_stream(near).p2p();
    let (server, client) = tokio::try_join!(server.build(), client.build()).unwrap();

    let pods = PodIndex::default();
    for (name, priority) in [("low", 0), ("critical", 2_000_001_000)] {
        let pod = serde_json::json!({"metadata": {"name": name, "namespace": "n", "uid": name},
            "spec": {"priority": priority, "containers": [{"name": "c"}]}});
        let key = ("n".to_owned(), name.to_owned());
        pods.write().insert(key, Arc::new(serde_json::from_value(pod).unwrap()));
    }
    let (orders, mut receiver) = mpsc::channel(8);
    let states = States::default();
    let task = Shutdown {
        config: AgentConfig::new("node1", vec![]),
        runtime: FakeRuntime::default(),
        pods,
        events: Recorder::discarding(),
        states: states.clone(),
        orders,
    };
    let periods = [Period { priority: 0, seconds: 20 }, Period { priority: 2_000_000_000, seconds: 10 }];
    let listening = tokio::spawn(async move { task.listen(&Logind::on(client), &periods).await });

    let begin = async {
        let object = server.object_server().interface::<_, FakeLogind>(path).await.unwrap();
        // The agent listens before it takes its lock.
        while object.get().await.lock.is_some() {
            tokio::task::yield_now().await;
        }
        FakeLogind::prepare_for_shutdown(object.signal_emitter(), true).await.unwrap();
    };
    begin.await;
    let mut told = Vec::new();
    for _ in 0..2 {
        let (uid, order) = receiver.recv().await.unwrap();
        assert_eq!((order.reason.as_str(), order.message.as_str()), (REASON, MESSAGE));
        told.push((uid, order.grace));
    }
    assert_eq!(told, [("low".to_owned(), 20), ("critical".to_owned(), 10)]);
    assert!(states.now().shutting_down);
    // Nothing runs in the fake: the lock goes at once.
    let end = tokio::task::spawn_blocking(move || held.read(&mut [0]).unwrap());
    assert_eq!(end.await.unwrap(), 0);
    listening.abort();
}

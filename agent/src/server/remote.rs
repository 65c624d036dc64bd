//! The client's side of `exec` and `attach`: its streams, whatever protocol they travel in.

use super::spdy;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// How the outcome is told, by protocol version (upstream's `remotecommand` constants).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Before v4: text, and only of errors.
    Text,
    /// v4: a Status.
    Status,
    /// v5: a Status as it arrives where v5 is translated to v4 on its way to the process.
    Translated,
}

/// Where bytes for the client go.
#[derive(Debug, Clone)]
pub enum Output {
    /// To a SPDY stream.
    Spdy(spdy::Writer),
    /// To a channel of a WebSocket.
    Channel(u8, mpsc::Sender<(u8, Bytes)>),
}

impl Output {
    /// Sends bytes. `false` when nobody receives them any more.
    pub async fn write(&self, bytes: Bytes) -> bool {
        match self {
            Self::Spdy(writer) => writer.write(bytes).await,
            Self::Channel(channel, sender) => sender.send((*channel, bytes)).await.is_ok(),
        }
    }

    /// Says that nothing more comes, where the protocol can.
    pub async fn close(&self) {
        if let Self::Spdy(writer) = self {
            writer.close().await;
        }
    }
}

/// Where bytes of the client come from.
#[derive(Debug)]
pub enum Input {
    /// A SPDY stream.
    Spdy(spdy::Stream),
    /// A channel of a WebSocket.
    Channel(mpsc::Receiver<Bytes>),
}

impl Input {
    /// What comes next; `None` after the last.
    pub async fn read(&mut self) -> Option<Bytes> {
        match self {
            Self::Spdy(stream) => stream.read().await,
            Self::Channel(receiver) => receiver.recv().await,
        }
    }
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// With code 0, or nobody asks.
    Success,
    /// With another code.
    Exit {
        /// The code.
        code: i32,
        /// Command and arguments.
        argv: Vec<String>,
    },
    /// It could not be done.
    Failed(String),
}

/// A client's streams.
pub struct Remote {
    /// What the client sends; ends at its end of input.
    pub stdin: Option<Input>,
    /// Takes standard output.
    pub stdout: Option<Output>,
    /// Takes standard error.
    pub stderr: Option<Output>,
    /// JSON documents `{"Width":…,"Height":…}`.
    pub resize: Option<Input>,
    /// Takes the outcome.
    pub error: Output,
    /// Form of the outcome.
    pub dialect: Dialect,
    /// Cancelled when the client is gone.
    pub gone: CancellationToken,
    /// The connection, and the streams of it that are only written: gone, they would count as closed.
    pub _kept: Option<(spdy::Connection, Vec<spdy::Stream>)>,
}

impl Remote {
    /// Tells the outcome, and the end of each stream.
    pub async fn finish(self, outcome: &Outcome) {
        if let Some(bytes) = told(outcome, self.dialect) {
            self.error.write(bytes).await;
        }
        for output in [self.stdout.as_ref(), self.stderr.as_ref(), Some(&self.error)].into_iter().flatten() {
            output.close().await;
        }
    }
}

/// The bytes of the error stream.
fn told(outcome: &Outcome, dialect: Dialect) -> Option<Bytes> {
    let status = status(outcome, dialect);
    if dialect == Dialect::Text {
        let message = status.get("message").and_then(Value::as_str)?;
        return Some(Bytes::from(message.to_owned()));
    }
    Some(Bytes::from(status.to_string()))
}

fn status(outcome: &Outcome, dialect: Dialect) -> Value {
    let translated = dialect == Dialect::Translated;
    match outcome {
        Outcome::Success => json!({"metadata": {}, "status": "Success"}),
        Outcome::Exit { code, argv } => {
            let why = if translated {
                format!("command terminated with exit code {code}")
            } else {
                format!("error executing command [{}], exit code {code}", argv.join(" "))
            };
            json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("command terminated with non-zero exit code: {why}"),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            })
        }
        Outcome::Failed(why) => {
            let cause = if translated { format!("Internal error occurred: {why}") } else { why.clone() };
            json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("Internal error occurred: {cause}"),
                "reason": "InternalError",
                "details": {"causes": [{"message": cause}]},
                "code": 500,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_in_each_dialect() {
        let text = |outcome: &Outcome, dialect| {
            told(outcome, dialect).map(|b| String::from_utf8(b.to_vec()).unwrap()).unwrap_or_default()
        };
        let exit = Outcome::Exit { code: 3, argv: vec!["sh".into(), "-c".into(), "exit 3".into()] };
        let failed = Outcome::Failed("error executing command in container: x".into());
        assert_eq!(text(&Outcome::Success, Dialect::Text), "");
        assert_eq!(text(&Outcome::Success, Dialect::Status), r#"{"metadata":{},"status":"Success"}"#);
        assert!(text(&exit, Dialect::Text).ends_with("error executing command [sh -c exit 3], exit code 3"));
        let status: Value = serde_json::from_str(&text(&exit, Dialect::Translated)).unwrap();
        assert_eq!(status["details"]["causes"][0], json!({"reason": "ExitCode", "message": "3"}));
        let status: Value = serde_json::from_str(&text(&failed, Dialect::Translated)).unwrap();
        assert_eq!(
            status["message"],
            "Internal error occurred: Internal error occurred: error executing command in container: x"
        );
        assert_eq!(
            text(&failed, Dialect::Text),
            "Internal error occurred: error executing command in container: x"
        );
    }
}

//! Requests that a node's kubelet API answers: container logs.

use super::{Context, Reply, connect};
use crate::error::ApiError;
use crate::handlers::reply::ReplyBody;
use crate::object::{list_at, str_at};
use bytes::Bytes;
use futures::StreamExt;
use http_body_util::{BodyExt, BodyStream, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;

/// Parameters of `pods/log` that the node gets.
const PARAMETERS: [&str; 8] =
    ["follow", "previous", "timestamps", "tailLines", "limitBytes", "sinceSeconds", "sinceTime", "stream"];

/// Streams the log of a container from the pod's node.
pub(super) async fn log(context: &Context, pod: &Value) -> Result<Reply, ApiError> {
    let node = str_at(pod, &["spec", "nodeName"]);
    let target = connect::kubelet(context, node).await?;
    let path = log_path(context, pod);
    let failed = |e: &dyn std::fmt::Display| {
        ApiError::internal(format!("Get \"https://{}{path}\": {e}", target.authority()))
    };
    let stream = connect::connect_node(&target, &path).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed(&e))?;
    tokio::spawn(connection);
    let request = http::Request::get(path.as_str())
        .header("Host", node)
        .body(Empty::<Bytes>::new())
        .map_err(|e| failed(&e))?;
    let response = sender.send_request(request).await.map_err(|e| failed(&e))?;
    let code = response.status().as_u16();
    if code >= 400 {
        let text = Limited::new(response.into_body(), 4 << 10).collect().await.map(|b| b.to_bytes());
        let text = String::from_utf8_lossy(&text.unwrap_or_default()).into_owned();
        return Err(match code {
            404 | 400 => ApiError::bad_request(text),
            _ => ApiError::internal(text),
        });
    }
    let frames = BodyStream::new(response.into_body()).filter_map(|frame| async move {
        // A stream that breaks off ends: the client sees what there was.
        frame.ok().and_then(|f| f.into_data().ok())
    });
    // The sender must live as long as the answer is read.
    let body = frames.map(move |bytes| {
        let _ = &sender;
        bytes
    });
    let mut reply = Reply::text(200, "");
    reply.body = ReplyBody::Stream(Box::pin(body));
    Ok(reply)
}

/// Path and query of a log request as the node takes them.
fn log_path(context: &Context, pod: &Value) -> String {
    let asked = context.query.text("container");
    let only = list_at(pod, &["spec", "containers"]).first().map_or("", |c| str_at(c, &["name"]));
    let container = if asked.is_empty() { only } else { asked };
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    for name in PARAMETERS {
        let value = context.query.text(name);
        if !value.is_empty() {
            query.append_pair(name, value);
        }
    }
    format!(
        "/containerLogs/{}/{}/{container}?{}",
        str_at(pod, &["metadata", "namespace"]),
        str_at(pod, &["metadata", "name"]),
        query.finish()
    )
}

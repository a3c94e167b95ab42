//! Answers and notifications as lines, and the right to answer one request.
//!
//! Runs on the control thread. A [`Reply`] is made by `server` for each request and used up by the
//! core; it holds the request's place in its client's bound, so that no client can have more
//! requests open than it may.

use super::client::ClientHandle;
use super::errors::ApiError;
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;

/// The right and the duty to answer one request.
#[derive(Debug)]
pub(crate) struct Reply {
    client: ClientHandle,
    id: Option<Value>,
    _place: OwnedSemaphorePermit,
}

impl Reply {
    pub(crate) fn new(
        client: ClientHandle,
        id: Option<Value>,
        place: OwnedSemaphorePermit,
    ) -> Self {
        Self { client, id, _place: place }
    }

    /// The client that asked.
    pub(crate) fn client(&self) -> &ClientHandle {
        &self.client
    }

    /// Answers. A request without an id wanted no answer.
    pub(crate) fn send(self, outcome: Result<Value, ApiError>) {
        let Some(id) = self.id else { return };
        self.client.send(response_line(&id, outcome));
    }
}

/// An answer as one line.
pub(crate) fn response_line(id: &Value, outcome: Result<Value, ApiError>) -> Vec<u8> {
    line(&match outcome {
        Ok(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
        Err(error) => json!({ "jsonrpc": "2.0", "id": id, "error": error.to_value() }),
    })
}

/// A notification as one line.
pub(crate) fn notification_line(method: &str, params: &Value) -> Vec<u8> {
    line(&json!({ "jsonrpc": "2.0", "method": method, "params": params }))
}

fn line(value: &Value) -> Vec<u8> {
    let mut bytes = value.to_string().into_bytes();
    bytes.push(b'\n');
    bytes
}

//! The target for the lines that clients write to the control socket.
//!
//! Reading a request is pure, but its crate also holds TLS, the database and the runtime. Only the
//! pure modules are compiled here, from the same files, which keeps the build short.

#[path = "../../../control/src/api"]
#[expect(unused, reason = "these modules also serve the parts of their crate that are left out")]
mod api {
    pub(super) mod errors;
    pub(super) mod method;
    mod notification;
    mod request;
    mod schema;
    mod vm;
}

use api::method::{methods, parse_line};
use serde_json::json;

/// A line gives a request of the table, or an error that can be told to the client.
pub fn request(data: &[u8]) {
    let outcome = match parse_line(data) {
        Ok(envelope) => envelope.request,
        Err(error) => Err(error),
    };
    match outcome {
        Ok(request) => assert!(methods().iter().any(|method| method.name == request.method())),
        Err(error) => {
            let told = error.to_value();
            assert!(told["code"].is_i64() && told["message"].is_string(), "{told}");
        }
    }
}

/// A valid line for every method, with its name.
pub fn example_lines() -> impl Iterator<Item = (String, Vec<u8>)> {
    methods().iter().map(|method| {
        let params = (method.example)();
        let line = json!({ "jsonrpc": "2.0", "id": 1, "method": method.name, "params": params });
        (method.name.to_owned(), line.to_string().into_bytes())
    })
}

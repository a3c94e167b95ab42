//! Starts a daemon, fetches its metrics page and has promtool judge it.

use crate::call::{Call, end};
use crate::context::Context;
use crate::error::TaskError;
use crate::scratch::Scratch;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// A daemon on a busy machine is up long before.
const START_SECONDS: u64 = 60;

/// The daemon's name in its certificate.
const HOST: &str = "ci-host";

/// What every metric of ours is named after.
const PREFIX: &str = "dwcp_";

/// The metrics step; the caller has made sure that there is a promtool.
pub(crate) fn run(context: &Context, promtool: &str) -> Result<(), TaskError> {
    let binary = crate::demo::build(context)?;
    let scratch = Scratch::new("metrics")?;
    let page = with_daemon(context, binary, &scratch)?;
    if !page.contains(PREFIX) {
        return Err(TaskError::Metrics { fault: format!("no metric starts with {PREFIX}") });
    }
    let path = scratch.join("page");
    std::fs::write(&path, page)
        .map_err(|source| TaskError::File { path: path.clone().into(), source })?;
    Call::new(&["sh", "-c", "\"$0\" check metrics <\"$1\"", promtool, &path]).run(&context.root)
}

fn with_daemon(context: &Context, binary: &str, scratch: &Scratch) -> Result<String, TaskError> {
    let pki = scratch.join("pki");
    let state = scratch.join("state");
    Call::new(&[binary, "pki", "init", &pki]).run(&context.root)?;
    Call::new(&[binary, "pki", "host", HOST, &pki]).run(&context.root)?;
    let address = free_address()?;
    let daemon = Call::new(&[binary, "daemon", "--listen", "127.0.0.1:0", "--poll", "park"])
        .with(["--socket", &scratch.join("socket"), "--state", &state])
        .with(["--pki", &format!("{pki}/{HOST}"), "--metrics", &address.to_string()]);
    println!("$ {} &", daemon.line());
    let mut child = daemon.start(&context.root, Stdio::inherit(), Stdio::inherit())?;
    let page = fetch(&mut child, address);
    end(&mut child);
    page
}

/// An address that was free a moment ago.
fn free_address() -> Result<SocketAddr, TaskError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let address = listener.and_then(|listener| listener.local_addr());
    address.map_err(|source| TaskError::Start { command: "a listener".to_owned(), source })
}

/// Asks until the daemon answers, ends, or is too slow.
fn fetch(child: &mut Child, address: SocketAddr) -> Result<String, TaskError> {
    let deadline = Instant::now() + Duration::from_secs(START_SECONDS);
    loop {
        let last = match get(address) {
            Ok(page) => return body(&page),
            Err(error) => error.to_string(),
        };
        let has_ended = child.try_wait().is_ok_and(|status| status.is_some());
        if has_ended || Instant::now() > deadline {
            let last = if has_ended { "the daemon ended".to_owned() } else { last };
            return Err(TaskError::NoMetrics { seconds: START_SECONDS, last });
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

fn get(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The page out of an HTTP answer with status 200.
fn body(answer: &str) -> Result<String, TaskError> {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        return Err(TaskError::Metrics { fault: format!("the answer is `{status}`") });
    }
    Ok(body.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_good_answer_has_a_body() {
        let page = body("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na\nb\n");
        assert_eq!(page.unwrap(), "a\nb\n");
        assert!(body("HTTP/1.1 404 Not Found\r\n\r\n").is_err());
        assert!(body("").is_err());
    }
}

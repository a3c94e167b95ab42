//! The smallest HTTP that a scraper needs: `GET /metrics`, one request per connection.
//!
//! Runs on the control thread. Bounded in head bytes, connections and time; a scraper that is slow
//! or wrong affects itself alone.

use crate::error::ControlError;
use crate::limits::{METRICS_CLIENTS_MAX, METRICS_REQUEST_BYTES, METRICS_TIMEOUT};
use crate::network::accept::{Acceptor, bind};
use crate::tally::Tally;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

/// The core is asked for the text; it answers here.
#[derive(Debug)]
pub(crate) struct Scrape(pub(crate) oneshot::Sender<String>);

/// The bound metrics port.
#[derive(Debug)]
pub(crate) struct MetricsServer {
    listener: TcpListener,
}

impl MetricsServer {
    /// Listens on `address`.
    pub(crate) async fn bind(address: SocketAddr) -> Result<Self, ControlError> {
        Ok(Self { listener: bind(address).await? })
    }

    /// The address, with the port that the kernel chose for port 0.
    #[cfg(test)]
    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until the core no longer listens; `failures` counts what could not be accepted.
    pub(crate) async fn serve(self, scrapes: mpsc::Sender<Scrape>, failures: Tally) {
        let places = Rc::new(Semaphore::new(METRICS_CLIENTS_MAX));
        let mut acceptor = Acceptor::new("metrics_port", failures);
        loop {
            let (stream, _) = tokio::select! {
                accepted = acceptor.next(|| self.listener.accept()) => accepted,
                () = scrapes.closed() => return,
            };
            let (places, scrapes) = (Rc::clone(&places), scrapes.clone());
            tokio::task::spawn_local(async move {
                // Without a place the connection just closes: the scraper comes again.
                let Ok(_place) = places.try_acquire() else { return };
                // What fails here the scraper sees and reports itself.
                let _ = timeout(METRICS_TIMEOUT, exchange(stream, &scrapes)).await;
            });
        }
    }
}

async fn exchange(mut stream: TcpStream, scrapes: &mpsc::Sender<Scrape>) -> io::Result<()> {
    let mut head = Vec::with_capacity(1024);
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        if head.len() > METRICS_REQUEST_BYTES {
            return answer(&mut stream, "431 Request Header Fields Too Large", "").await;
        }
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let line = head.split(|b| *b == b'\r').next().unwrap_or_default();
    let mut words = line.split(|b| *b == b' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = path.split(|b| *b == b'?').next().unwrap_or_default();
    if method != b"GET" {
        return answer(&mut stream, "405 Method Not Allowed", "only GET /metrics\n").await;
    }
    if path != b"/metrics" {
        return answer(&mut stream, "404 Not Found", "only GET /metrics\n").await;
    }
    let (sender, receiver) = oneshot::channel();
    if scrapes.send(Scrape(sender)).await.is_err() {
        return answer(&mut stream, "503 Service Unavailable", "stopping\n").await;
    }
    match receiver.await {
        Ok(text) => answer(&mut stream, "200 OK", &text).await,
        Err(_) => answer(&mut stream, "503 Service Unavailable", "stopping\n").await,
    }
}

async fn answer(stream: &mut TcpStream, status: &str, body: &str) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        // A refused request may be answered with a reset after the answer's bytes.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }

    #[test]
    fn scrapes_are_answered_and_everything_else_is_refused() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let server = MetricsServer::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
            let address = server.address().unwrap();
            let (sender, mut scrapes) = mpsc::channel(1);
            tokio::task::spawn_local(server.serve(sender, Tally::default()));
            tokio::task::spawn_local(async move {
                while let Some(Scrape(reply)) = scrapes.recv().await {
                    reply.send("text\n".to_owned()).unwrap();
                }
            });
            let good = ask(address, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
            assert!(good.starts_with("HTTP/1.1 200 OK\r\n") && good.ends_with("\r\n\r\ntext\n"));
            let other = ask(address, b"GET / HTTP/1.1\r\n\r\n").await;
            assert!(other.starts_with("HTTP/1.1 404"));
            let post = ask(address, b"POST /metrics HTTP/1.1\r\n\r\n").await;
            assert!(post.starts_with("HTTP/1.1 405"));
            let huge = vec![b'a'; METRICS_REQUEST_BYTES * 2];
            let huge = ask(address, &huge).await;
            assert!(huge.is_empty() || huge.starts_with("HTTP/1.1 431"));
        });
    }
}

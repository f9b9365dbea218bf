use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

struct Server {
    address: SocketAddr,
    health: Health,
    metrics: Metrics,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (health, metrics, shutdown) = (Health::new(), Metrics::new(), CancellationToken::new());
        let task = tokio::spawn(accept(
            listener,
            health.clone(),
            metrics.clone(),
            shutdown.clone(),
        ));
        Self {
            address,
            health,
            metrics,
            shutdown,
            task,
        }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Status line, headers and body of one request on a connection of its own.
    async fn ask(&self, request: &str) -> (String, String, String) {
        let mut stream = self.connect().await;
        let text = format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(DEADLINE, stream.read_to_string(&mut answer))
            .await
            .unwrap()
            .unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let (status, headers) = head.split_once("\r\n").unwrap();
        (status.to_owned(), headers.to_owned(), body.to_owned())
    }

    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(DEADLINE, self.task)
            .await
            .unwrap()
            .unwrap();
    }
}

#[tokio::test]
async fn health_readiness_and_metrics_are_answered_over_tcp() {
    let server = Server::start().await;
    let status = async |request: &str| {
        let (status, _, body) = server.ask(request).await;
        (status, body)
    };
    let expect = |status: &str, body: &str| (format!("HTTP/1.1 {status}"), body.to_owned());

    assert_eq!(status("GET /healthz").await, expect("200 OK", "ok\n"));
    let unready = expect("503 Service Unavailable", "caches are not loaded\n");
    assert_eq!(status("GET /readyz").await, unready);
    server.health.set_ready(true);
    let standby = expect("200 OK", "ok, standby\n");
    assert_eq!(status("GET /readyz").await, standby);
    assert_eq!(status("GET /readyz?verbose").await, standby);
    server.health.set_leading(true);
    assert_eq!(
        status("GET /readyz").await,
        expect("200 OK", "ok, leading\n")
    );
    assert_eq!(status("HEAD /readyz").await, expect("200 OK", ""));
    let elsewhere = expect("404 Not Found", "/healthz /readyz /metrics\n");
    assert_eq!(status("GET /").await, elsewhere);
    assert_eq!(status("POST /metricsx").await, elsewhere);

    let (code, headers, body) = server.ask("POST /metrics").await;
    assert_eq!(
        (code, body),
        expect("405 Method Not Allowed", "only GET and HEAD\n")
    );
    assert!(headers.contains("allow: GET, HEAD"), "{headers}");

    server.metrics.leader(true);
    let (code, headers, body) = server.ask("GET /metrics").await;
    assert_eq!(code, "HTTP/1.1 200 OK");
    assert!(
        headers
            .contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"),
        "{headers}"
    );
    assert!(body.contains("\nstrata_leader 1\n"), "{body}");
    assert!(body.ends_with("# EOF\n"), "{body}");
    server.stop().await;
}

#[tokio::test]
async fn a_connection_serves_several_requests_and_an_idle_one_does_not_hold_up_the_stop() {
    let server = Server::start().await;
    let mut stream = server.connect().await;
    let mut answer = [0; 1024];
    for _ in 0..2 {
        stream
            .write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        let length = stream.read(&mut answer).await.unwrap();
        assert!(answer[..length].ends_with(b"ok\n"));
    }
    let silent = server.connect().await;
    let begun = Instant::now();
    server.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(stream.read(&mut answer).await.unwrap(), 0);
    drop(silent);
}

#[tokio::test]
async fn more_clients_than_connections_wait_and_are_served_in_turn() {
    let server = Server::start().await;
    let mut silent = Vec::new();
    for _ in 0..CONNECTIONS {
        silent.push(server.connect().await);
    }
    let mut waiting = server.connect().await;
    waiting
        .write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    let early = tokio::time::timeout(
        Duration::from_millis(100),
        waiting.read_to_string(&mut answer),
    );
    assert!(early.await.is_err(), "{answer}");
    silent.pop();
    tokio::time::timeout(DEADLINE, waiting.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert!(answer.ends_with("ok\n"), "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn a_taken_address_is_an_error_that_names_it() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listen = taken.local_addr().unwrap();
    let error = serve(
        listen,
        Health::new(),
        Metrics::new(),
        CancellationToken::new(),
    )
    .await
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("can't listen on {listen} (--listen)")
    );
}

#[test]
fn a_heart_that_has_begun_to_beat_must_go_on() {
    let health = Health::new();
    let start = health.0.born;
    let later = |seconds| start + Duration::from_secs(seconds);
    assert!(health.is_alive(later(100_000)));
    health.beat_at(later(10));
    assert!(health.is_alive(later(130)));
    assert!(!health.is_alive(later(131)));
    assert_eq!(
        health.healthz(later(131)),
        (StatusCode::SERVICE_UNAVAILABLE, "no progress\n")
    );
    health.beat_at(later(131));
    assert!(health.is_alive(later(131)));
}

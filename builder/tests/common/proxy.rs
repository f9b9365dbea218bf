//! A proxy in front of a registry that does harm where a test says so.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// With its query.
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body_bytes: usize,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    pub fn is(&self, method: &str, path: &str) -> bool {
        self.method == method && self.path.contains(path)
    }
}

/// What happens to a request.
#[derive(Clone, Debug)]
pub enum Action {
    Forward,
    /// Status and headers; the registry never sees the request.
    Answer(u16, Vec<(&'static str, String)>, &'static str),
    /// The connection ends without an answer, and the registry never sees the request.
    Drop,
    /// The registry gets so many bytes of the body, then its connection ends as ours does.
    CutRequest(usize),
    /// The same, but both connections are reset.
    ResetRequest(usize),
    /// The registry gets so many bytes of the body, and then nothing happens.
    StallRequest(usize),
    /// One bit of the request's body is another one.
    SpoilRequest,
    /// The client gets so many bytes of the answer's body.
    CutAnswer(usize),
    /// The same, but the connection is reset.
    ResetAnswer(usize),
    /// The client gets so many bytes of the answer's body, and then nothing happens; with none, it doesn't get the answer's head either.
    StallAnswer(usize),
    /// The answer's body comes a byte at a time, with this time between; one without a body never comes to its end.
    Drip(Duration),
    /// The registry does its work, but its answer is lost.
    LoseAnswer,
    /// One bit of the answer's body is another one.
    Spoil,
    /// The answer comes after this time.
    Late(Duration),
    /// Of request and answer 128 KiB pass at a time, with this time between.
    Slow(Duration),
    /// The registry gets the request twice; the second answer is the one that comes.
    Twice,
    /// Location leads here instead: scheme, host and port.
    MoveTo(String),
}

const SLOW_BYTES: usize = 128 << 10;

type Rule = Box<dyn FnMut(&Request, usize) -> Action + Send>;

/// Listens as long as the test's process lives.
#[derive(Clone)]
pub struct Proxy {
    pub host: String,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Proxy {
    /// In front of `127.0.0.1:upstream`. The rule gets each request and how many of its method have come before.
    pub fn start(
        upstream: u16,
        rule: impl FnMut(&Request, usize) -> Action + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let rule: Arc<Mutex<Rule>> = Arc::new(Mutex::new(Box::new(rule)));
        let proxy = Self {
            host: host.clone(),
            seen: Arc::clone(&seen),
        };
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (seen, rule, host) = (Arc::clone(&seen), Arc::clone(&rule), host.clone());
                std::thread::spawn(move || serve(client.unwrap(), upstream, &seen, &rule, &host));
            }
        });
        proxy
    }

    pub fn port(&self) -> u16 {
        self.host.rsplit_once(':').unwrap().1.parse().unwrap()
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }
}

fn serve(
    mut client: TcpStream,
    upstream: u16,
    seen: &Mutex<Vec<Request>>,
    rule: &Mutex<Rule>,
    host: &str,
) -> Option<()> {
    let mut reader = BufReader::new(client.try_clone().ok()?);
    let (first, headers) = head(&mut reader)?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let header = |name: &str| {
        let found = headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.clone())
    };
    // ours says how long a body is
    assert_eq!(header("transfer-encoding"), None);
    let length = header("content-length").map_or(0, |length| length.parse().unwrap());
    let request = Request {
        method: method.clone(),
        path: path.clone(),
        headers: headers.clone(),
        body_bytes: length,
    };
    let before = {
        let mut seen = seen.lock().unwrap();
        let before = seen.iter().filter(|other| other.method == method).count();
        seen.push(request.clone());
        before
    };
    let action = (rule.lock().unwrap())(&request, before);
    match &action {
        Action::Answer(status, headers, text) => {
            reader.read_exact(&mut vec![0; length]).ok()?;
            let mut answer = format!("HTTP/1.1 {status} X\r\n");
            for (name, value) in headers {
                answer += &format!("{name}: {value}\r\n");
            }
            answer += &format!(
                "content-length: {}\r\nconnection: close\r\n\r\n{text}",
                text.len()
            );
            client.write_all(answer.as_bytes()).ok()?;
            return Some(());
        }
        Action::Drop => {
            let _ = client.shutdown(Shutdown::Both);
            return Some(());
        }
        _ => {}
    }
    let mut body = vec![0; length];
    let taken = match action {
        Action::StallRequest(bytes) => bytes.min(length),
        _ => length,
    };
    if let Action::Slow(pause) = action {
        // what waits in buffers would hide how slow it is
        rustix::net::sockopt::set_socket_recv_buffer_size(&client, SLOW_BYTES).ok()?;
        for part in body.chunks_mut(SLOW_BYTES) {
            reader.read_exact(part).ok()?;
            std::thread::sleep(pause);
        }
    } else {
        reader.read_exact(&mut body[..taken]).ok()?;
    }
    if matches!(action, Action::SpoilRequest) && length > 0 {
        body[length / 2] ^= 1;
    }
    let connect = || TcpStream::connect(("127.0.0.1", upstream)).ok();
    let mut server = connect()?;
    let mut forwarded = format!("{method} {path} HTTP/1.1\r\n");
    for (name, value) in &headers {
        let own = [
            "connection",
            "content-length",
            "transfer-encoding",
            "expect",
        ];
        if !own.contains(&name.as_str()) {
            forwarded += &format!("{name}: {value}\r\n");
        }
    }
    forwarded += &format!(
        "content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    server.write_all(forwarded.as_bytes()).ok()?;
    if let Action::CutRequest(bytes) | Action::ResetRequest(bytes) = action {
        server.write_all(&body[..bytes.min(body.len())]).ok()?;
        std::thread::sleep(Duration::from_millis(200));
        if matches!(action, Action::ResetRequest(_)) {
            reset_on_close(&[&server, &client]);
            return Some(());
        }
        let _ = server.shutdown(Shutdown::Both);
        let _ = client.shutdown(Shutdown::Both);
        return Some(());
    }
    server.write_all(&body[..taken]).ok()?;
    if matches!(action, Action::StallRequest(_)) {
        wait_for_end(&client);
        return Some(());
    }
    if matches!(action, Action::Twice) {
        server.read_to_end(&mut Vec::new()).ok()?;
        server = connect()?;
        server.write_all(forwarded.as_bytes()).ok()?;
        server.write_all(&body).ok()?;
    }
    let mut reader = BufReader::new(server);
    let (first, headers) = head(&mut reader)?;
    let mut content = Vec::new();
    // The connection is closed after the answer; a HEAD has none, whatever its length says.
    reader.read_to_end(&mut content).ok()?;
    match &action {
        Action::LoseAnswer => {
            let _ = client.shutdown(Shutdown::Both);
            return Some(());
        }
        Action::StallAnswer(0) => {
            wait_for_end(&client);
            return Some(());
        }
        Action::Drip(pause) if content.is_empty() => {
            // for want of a body its head drips
            for byte in first.as_bytes().iter().cycle() {
                client.write_all(&[*byte]).ok()?;
                std::thread::sleep(*pause);
            }
        }
        Action::Late(time) => std::thread::sleep(*time),
        Action::Spoil if !content.is_empty() => {
            let middle = content.len() / 2;
            content[middle] ^= 1;
        }
        _ => {}
    }
    let mut answer = format!("{first}\r\n");
    for (name, value) in &headers {
        let value = match (&action, name.as_str()) {
            (Action::MoveTo(elsewhere), "location") => {
                let path = value.splitn(4, '/').nth(3).unwrap_or_default();
                format!("{elsewhere}/{path}")
            }
            // The registry names itself as it was asked for.
            (_, "location") => value.replace(&format!("127.0.0.1:{upstream}"), host),
            (_, "connection") => "close".to_owned(),
            _ => value.clone(),
        };
        answer += &format!("{name}: {value}\r\n");
    }
    answer += "connection: close\r\n\r\n";
    client.write_all(answer.as_bytes()).ok()?;
    if let Action::Drip(pause) | Action::Slow(pause) = action {
        let at_once = match action {
            Action::Drip(_) => 1,
            _ => SLOW_BYTES,
        };
        for part in content.chunks(at_once) {
            client.write_all(part).ok()?;
            std::thread::sleep(pause);
        }
        return Some(());
    }
    let length = match action {
        Action::CutAnswer(bytes) | Action::ResetAnswer(bytes) | Action::StallAnswer(bytes) => {
            bytes.min(content.len())
        }
        _ => content.len(),
    };
    client.write_all(&content[..length]).ok()?;
    client.flush().ok()?;
    match action {
        Action::StallAnswer(_) => wait_for_end(&client),
        Action::ResetAnswer(_) => {
            std::thread::sleep(Duration::from_millis(50));
            reset_on_close(&[&client]);
        }
        _ => {
            let _ = client.shutdown(Shutdown::Both);
        }
    }
    Some(())
}

/// Until the other side has had enough.
fn wait_for_end(client: &TcpStream) {
    let mut buffer = [0; 1];
    // What still comes of a request is not taken: it would be no stall.
    while let Ok(1) = client.peek(&mut buffer) {
        let mut polled = [rustix::event::PollFd::new(
            client,
            rustix::event::PollFlags::RDHUP,
        )];
        let second = rustix::event::Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        if rustix::event::poll(&mut polled, Some(&second)).unwrap() > 0 {
            break;
        }
    }
}

fn reset_on_close(connections: &[&TcpStream]) {
    for connection in connections {
        let linger = Some(Duration::ZERO);
        rustix::net::sockopt::set_socket_linger(connection, linger).unwrap();
    }
}

fn head(reader: &mut impl BufRead) -> Option<(String, Vec<(String, String)>)> {
    let mut first = String::new();
    reader.read_line(&mut first).ok()?;
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => {
                headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
            }
            None => break,
        }
    }
    (!first.is_empty()).then(|| (first.trim_end().to_owned(), headers))
}

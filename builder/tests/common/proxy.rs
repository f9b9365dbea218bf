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
    /// The client gets so many bytes of the answer's body.
    CutAnswer(usize),
    /// The registry does its work, but its answer is lost.
    LoseAnswer,
    /// One bit of the answer's body is another one.
    Spoil,
    /// The answer comes after this time.
    Late(Duration),
    /// Location leads here instead: scheme, host and port.
    MoveTo(String),
}

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
    let mut body = Vec::new();
    if header("transfer-encoding").is_some_and(|value| value.contains("chunked")) {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let length = usize::from_str_radix(line.trim(), 16).ok()?;
            let mut chunk = vec![0; length + 2];
            reader.read_exact(&mut chunk).ok()?;
            if length == 0 {
                break;
            }
            body.extend_from_slice(&chunk[..length]);
        }
    } else if let Some(length) = header("content-length") {
        body.resize(length.parse().ok()?, 0);
        reader.read_exact(&mut body).ok()?;
    }
    let request = Request {
        method: method.clone(),
        path: path.clone(),
        headers: headers.clone(),
        body_bytes: body.len(),
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
    let mut server = TcpStream::connect(("127.0.0.1", upstream)).ok()?;
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
    if let Action::CutRequest(bytes) = action {
        server.write_all(&body[..bytes.min(body.len())]).ok()?;
        std::thread::sleep(Duration::from_millis(200));
        let _ = server.shutdown(Shutdown::Both);
        let _ = client.shutdown(Shutdown::Both);
        return Some(());
    }
    server.write_all(&body).ok()?;
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
    let length = match action {
        Action::CutAnswer(bytes) => bytes.min(content.len()),
        _ => content.len(),
    };
    client.write_all(&content[..length]).ok()?;
    client.flush().ok()?;
    let _ = client.shutdown(Shutdown::Both);
    Some(())
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

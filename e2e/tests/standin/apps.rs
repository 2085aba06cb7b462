//! Applications: a server that tells what it saw, and its client.

use crate::lab::{Netns, PATIENCE};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

/// An application: says who called, echoes until the end of the stream, says how much that was.
pub fn echo(pod: &Netns, address: &str) {
    let listener = pod.inside(|| TcpListener::bind(address).expect("bind"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || serve(stream.expect("accept")));
        }
    });
}

fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    writeln!(stream, "from {}", stream.peer_addr()?.ip().to_canonical())?;
    let (mut buffer, mut total) = (vec![0; 65536], 0);
    loop {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            return writeln!(stream, "bye {total}");
        }
        total += n;
        stream.write_all(&buffer[..n])?;
    }
}

/// A client's connection.
pub struct Call(pub BufReader<TcpStream>);

impl Call {
    pub fn open(pod: &Netns, address: &str) -> Self {
        let stream = pod.inside(|| TcpStream::connect(address).expect("connect"));
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Self(BufReader::new(stream))
    }

    /// The address that the application saw.
    pub fn seen_as(&mut self) -> String {
        self.line().strip_prefix("from ").expect("a greeting").trim().to_owned()
    }

    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a line");
        line
    }

    /// Sends and receives the same.
    pub fn echo(&mut self, payload: &[u8]) {
        self.0.get_ref().write_all(payload).expect("write");
        let mut back = vec![0; payload.len()];
        self.0.read_exact(&mut back).expect("the echo");
        assert!(back == payload, "the echo differs");
    }

    /// Closes the client's direction only, and takes the farewell.
    pub fn finish(mut self, total: usize) {
        self.0.get_ref().shutdown(Shutdown::Write).expect("shutdown");
        assert_eq!(self.line(), format!("bye {total}\n"));
        assert_eq!(self.0.read(&mut [0]).expect("the end"), 0);
    }

    /// Whether it fails before anything arrives, and how.
    pub fn failure(mut self) -> ErrorKind {
        match self.0.read(&mut [0]) {
            Ok(0) => ErrorKind::UnexpectedEof,
            Ok(_) => panic!("it did not fail"),
            Err(error) => error.kind(),
        }
    }
}

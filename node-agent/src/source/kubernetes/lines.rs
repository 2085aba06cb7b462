//! A watch's body, cut into lines: one JSON document each.

use super::api::{Failure, with_causes};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use kube::client::Body;

/// The longest line taken, in bytes. etcd takes no object beyond 1.5 MB, unless told otherwise.
const MAX_LINE: usize = 16 * 1024 * 1024;

/// A body that is read line by line.
pub(crate) struct Lines {
    body: Body,
    buffer: BytesMut,
    /// How much of the buffer is known to hold no end of a line.
    searched: usize,
    /// Whether the line that is being read was too long, and its rest is dropped.
    skipping: bool,
}

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// A line without its end.
    Text(Bytes),
    /// A line that was longer than any that is taken; it was passed over.
    TooLong,
}

impl Lines {
    pub(crate) fn new(body: Body) -> Self {
        Self { body, buffer: BytesMut::new(), searched: 0, skipping: false }
    }

    /// The next line; `None` at the body's end, where half a line is dropped. May be cancelled and called again.
    pub(crate) async fn next(&mut self) -> Result<Option<Line>, Failure> {
        loop {
            if let Some(line) = self.take() {
                return Ok(Some(line));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => return Err(Failure::Transport(with_causes(&error))),
                None => return Ok(None),
            }
        }
    }

    fn take(&mut self) -> Option<Line> {
        loop {
            let Some(end) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') else {
                self.searched = self.buffer.len();
                if self.searched > MAX_LINE || self.skipping {
                    self.skipping = true;
                    self.buffer = BytesMut::new();
                    self.searched = 0;
                }
                return None;
            };
            let line = self.buffer.split_to(self.searched + end + 1).freeze();
            self.searched = 0;
            if self.buffer.is_empty() {
                // What a large object needed is not kept for the small ones.
                self.buffer = BytesMut::new();
            }
            if std::mem::take(&mut self.skipping) || line.len() > MAX_LINE {
                return Some(Line::TooLong);
            }
            let text = line.slice(..line.len() - 1);
            if !text.iter().all(u8::is_ascii_whitespace) {
                return Some(Line::Text(text));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines_of(chunks: &[&[u8]]) -> Vec<Line> {
        let mut lines = Lines::new(Body::empty());
        let mut found = Vec::new();
        for chunk in chunks {
            lines.buffer.extend_from_slice(chunk);
            while let Some(line) = lines.take() {
                found.push(line);
            }
        }
        assert_eq!(lines.next().await, Ok(None));
        found
    }

    #[tokio::test]
    async fn lines_are_found_however_they_arrive() {
        let text = |text: &'static str| Line::Text(Bytes::from_static(text.as_bytes()));
        assert_eq!(
            lines_of(&[b"{\"a\":1}\n{\"b\"", b":2}\r\n\n \n", b"half"]).await,
            [text("{\"a\":1}"), text("{\"b\":2}\r")]
        );
        let long = vec![b'x'; MAX_LINE];
        assert_eq!(
            lines_of(&[b"a\n", &long, b"x", &long, b"xx\nb\n"]).await,
            [text("a"), Line::TooLong, text("b")]
        );
    }
}

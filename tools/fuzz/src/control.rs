//! Targets for what clients write to the control socket: its framing, and the lines themselves.
//!
//! Both are pure, but their crate also holds TLS, the database and the runtime. Only the
//! pure modules are compiled here, from the same files, which keeps the build short.

#[path = "../../../control/src/api"]
#[expect(unused, reason = "these modules also serve the parts of their crate that are left out")]
mod api {
    pub(super) mod errors;
    pub(super) mod framing;
    pub(super) mod method;
    mod notification;
    mod request;
    mod schema;
    mod vm;
}

use crate::limits::REQUEST_DESCRIPTORS_MAX;
use api::framing::{FramingError, Line, LineBuffer};
use api::method::{methods, parse_line};
use serde_json::json;
use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::OwnedFd;

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

/// Bytes of one read at most: its size and its descriptors share a byte of the input.
const READ_BYTES_MAX: usize = 63;

/// What one read of the socket brings.
#[derive(Clone, Copy, Debug)]
pub struct Read<'a> {
    /// At most 63 bytes; a read without bytes is the end of a client and never gets this far.
    pub bytes: &'a [u8],
    /// At most three; one line may still gather more than it may have.
    pub descriptors: usize,
}

/// The input of [`framing`] that brings these reads.
#[must_use]
pub fn framing_input(bytes_max: u8, reads: &[Read<'_>]) -> Vec<u8> {
    let mut input = vec![bytes_max];
    for read in reads {
        let head = read.bytes.len() + read.descriptors * (READ_BYTES_MAX + 1);
        input.push(u8::try_from(head).expect("a read is short and has few descriptors"));
        input.extend(read.bytes);
    }
    input
}

/// Any bytes in any pieces give the lines that the bytes alone say, each with the descriptors of
/// the reads that ended in it, until a bound is passed; and a line's memory is bounded.
pub fn framing(data: &[u8]) {
    let Some((bytes_max, mut rest)) = data.split_first() else { return };
    let bytes_max = usize::from(*bytes_max);
    let mut buffer = LineBuffer::new(bytes_max);
    let (mut lines, mut expected) = (VecDeque::new(), Expected::new(bytes_max));
    while let Some((head, behind)) = rest.split_first() {
        let size = (usize::from(*head) % (READ_BYTES_MAX + 1)).min(behind.len());
        let descriptors = usize::from(*head) / (READ_BYTES_MAX + 1);
        let (bytes, behind) = behind.split_at(size);
        rest = behind;
        if bytes.is_empty() {
            continue;
        }
        let outcome = buffer.push(bytes, some_descriptors(descriptors), &mut lines);
        assert_eq!(outcome, expected.push(Read { bytes, descriptors }));
        // A vector grows to twice of what it holds, and to eight bytes at first.
        assert!(buffer.partial_bytes() <= (2 * bytes_max).max(8));
        if outcome.is_err() {
            return;
        }
    }
    let lines: Vec<_> =
        lines.into_iter().map(|Line { bytes, descriptors }| (bytes, descriptors.len())).collect();
    assert_eq!(lines, expected.whole());
}

fn some_descriptors(count: usize) -> Vec<OwnedFd> {
    let open = |_| File::open("/dev/null").expect("the system has a null device").into();
    (0..count).map(open).collect()
}

/// What framing must say, found byte by byte: all lines so far, the last of them not yet whole.
struct Expected {
    lines: Vec<(Vec<u8>, usize)>,
    bytes_max: usize,
}

impl Expected {
    fn new(bytes_max: usize) -> Self {
        Self { lines: vec![(Vec::new(), 0)], bytes_max }
    }

    fn push(&mut self, read: Read<'_>) -> Result<(), FramingError> {
        let mut owner = 0;
        for byte in read.bytes {
            owner = self.lines.len() - 1;
            if *byte == b'\n' {
                self.lines.push((Vec::new(), 0));
                continue;
            }
            let line = &mut self.lines[owner].0;
            line.push(*byte);
            if line.len() > self.bytes_max {
                return Err(FramingError::TooLong { bytes_max: self.bytes_max });
            }
        }
        let descriptors = &mut self.lines[owner].1;
        *descriptors += read.descriptors;
        if *descriptors > REQUEST_DESCRIPTORS_MAX {
            return Err(FramingError::DescriptorsTooMany);
        }
        Ok(())
    }

    /// The whole lines that hold anything.
    fn whole(mut self) -> Vec<(Vec<u8>, usize)> {
        self.lines.pop();
        self.lines.retain(|(bytes, descriptors)| !bytes.is_empty() || *descriptors > 0);
        self.lines
    }
}

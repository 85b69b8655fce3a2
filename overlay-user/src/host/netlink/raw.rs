//! Requests that the netlink crates have no messages for: they are written and read here as bytes and attributes.
use std::io;

use bytes::{BufMut, BytesMut};
use nix::errno::Errno;
use rtnetlink::{
    packet_core::{NlaBuffer, NlasIterator},
    sys::{Socket, SocketAddr},
};

// From linux/netlink.h.
const NLM_F_REQUEST_ACK: u16 = 1 | 4;
/// The flags of a request for a whole list (`NLM_F_ROOT | NLM_F_MATCH`).
pub(super) const NLM_F_DUMP: u16 = 0x300;
/// The flag of a request to make something that is not there, and to change it if it is (without `NLM_F_EXCL`).
pub(super) const NLM_F_CREATE: u16 = 0x400;
/// The flag of a request to add something behind others of its kind (`NLM_F_APPEND`).
pub(super) const NLM_F_APPEND: u16 = 0x800;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_OVERRUN: u16 = 4;
const NLA_F_NESTED: u16 = 1 << 15;
const HEADER: usize = 16;

/// One message of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Message {
    /// Its type, such as `RTM_NEWLINK`.
    pub(super) kind: u16,
    /// The bytes behind its netlink header.
    pub(super) body: Vec<u8>,
}

/// The kernel's answer to one request.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) messages: Vec<Message>,
    /// Whether the list changed while the kernel sent it, so that entries may be missing or doubled.
    pub(super) interrupted: bool,
}

/// Opens a socket to the kernel, in this thread's network namespace.
fn open(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// Appends a request, padded to four bytes, which the kernel is to acknowledge. Nobody reads its number from the answer.
fn put_request(out: &mut BytesMut, kind: u16, flags: u16, body: &[u8]) {
    out.put_u32_ne((HEADER + body.len()) as u32);
    out.put_u16_ne(kind);
    out.put_u16_ne(NLM_F_REQUEST_ACK | flags);
    out.put_u32_ne(1);
    out.put_u32_ne(0);
    out.put_slice(body);
    out.put_bytes(0, body.len().next_multiple_of(4) - body.len());
}

/// Sends one request on a socket of its own, in this thread's network namespace, and reads the whole answer. The calls do
/// not wait for anybody: the kernel prepares each part of the answer inside the call that reads it.
pub(super) fn ask(protocol: isize, kind: u16, flags: u16, body: &[u8]) -> io::Result<Answer> {
    let socket = open(protocol)?;
    let mut request = BytesMut::with_capacity(HEADER + body.len());
    put_request(&mut request, kind, flags, body);
    socket.send(&request, 0)?;
    let mut answer = Answer::default();
    loop {
        let (piece, _) = socket.recv_from_full()?;
        if answer.take_in(&piece)? {
            return Ok(answer);
        }
    }
}

/// The bodies of an answer that is no list, or of a list that need not be of one moment.
pub(super) fn request(protocol: isize, kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let answer = ask(protocol, kind, flags, body)?;
    Ok(answer.messages.into_iter().map(|message| message.body).collect())
}

/// How many requests go to the kernel in one call. Their acknowledgements fit a socket's receive buffer many times.
const AT_ONCE: usize = 64;

/// Sends many requests of one kind, none of which asks for a list, on one socket in this thread's network namespace. Returns why
/// the kernel refused some.
pub(super) fn requests(
    protocol: isize,
    kind: u16,
    flags: u16,
    bodies: &[BytesMut],
) -> io::Result<Vec<Errno>> {
    if bodies.is_empty() {
        return Ok(Vec::new());
    }
    let socket = open(protocol)?;
    let mut refused = Vec::new();
    for bodies in bodies.chunks(AT_ONCE) {
        let mut datagram = BytesMut::new();
        for body in bodies {
            put_request(&mut datagram, kind, flags, body);
        }
        socket.send(&datagram, 0)?;
        let mut unanswered = bodies.len();
        while unanswered > 0 {
            let (piece, _) = socket.recv_from_full()?;
            // Each acknowledgement is a message of its own; several may come in one piece.
            for body in messages(&piece) {
                unanswered = unanswered.saturating_sub(1);
                if let Some(code) = word(body).map(|code| code as i32).filter(|code| *code != 0) {
                    refused.push(Errno::from_raw(code.saturating_neg()));
                }
            }
        }
    }
    Ok(refused)
}

impl Answer {
    /// Takes in one part of the answer: several messages, each padded to four bytes. Returns whether it was the last part.
    fn take_in(&mut self, mut piece: &[u8]) -> io::Result<bool> {
        let cut_short = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is cut short");
        if piece.is_empty() {
            return Err(cut_short());
        }
        while !piece.is_empty() {
            let length = word(piece).ok_or_else(cut_short)? as usize;
            let message =
                piece.get(..length).filter(|message| message.len() >= HEADER).ok_or_else(cut_short)?;
            let (header, body) = message.split_at(HEADER);
            let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
            // The last message is looked at, too: only there the kernel tells that entries at the end are missing.
            self.interrupted |= half(6) & NLM_F_DUMP_INTR != 0;
            match half(4) {
                NLMSG_DONE | NLMSG_ERROR => match word(body).unwrap_or_default() as i32 {
                    code if code < 0 => return Err(io::Error::from_raw_os_error(code.saturating_neg())),
                    _ => return Ok(true),
                },
                NLMSG_NOOP | NLMSG_OVERRUN => {}
                kind => self.messages.push(Message { kind, body: body.to_vec() }),
            }
            piece = piece.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(false)
    }
}

/// The bodies of the messages in one piece that the kernel sent. They end at a message that is cut short.
pub(super) fn messages(mut piece: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = word(piece)? as usize;
        let body = piece.get(HEADER..length)?;
        piece = piece.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(body)
    })
}

/// Appends an attribute.
pub(super) fn put(out: &mut BytesMut, kind: u16, value: &[u8]) {
    out.put_u16_ne(4 + value.len() as u16);
    out.put_u16_ne(kind);
    out.put_slice(value);
    out.put_bytes(0, value.len().next_multiple_of(4) - value.len());
}

/// Appends an attribute that contains attributes.
pub(super) fn nest(out: &mut BytesMut, kind: u16, fill: impl FnOnce(&mut BytesMut)) {
    let mut inner = BytesMut::new();
    fill(&mut inner);
    put(out, kind | NLA_F_NESTED, &inner);
}

/// The attributes in a message or in an attribute, as kind and value. They end at an attribute that is cut short.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes).map_while(Result::ok).map(|attribute: NlaBuffer<&[u8]>| {
        let length = attribute.value_length();
        let kind = attribute.kind();
        let whole = attribute.into_inner();
        (kind, &whole[4..4 + length])
    })
}

/// The value of the first attribute of this kind.
pub(super) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// The first four bytes as a number in the machine's order.
pub(super) fn word(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// Text, without the zero byte at its end.
pub(super) fn text(bytes: &[u8]) -> &[u8] {
    bytes.strip_suffix(&[0]).unwrap_or(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
        let length = (HEADER + body.len()) as u32;
        let mut message = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes()].concat();
        message.extend_from_slice(&[0; 8]);
        message.extend_from_slice(body);
        message.resize(message.len().next_multiple_of(4), 0);
        message
    }

    fn answer(pieces: &[Vec<u8>]) -> Answer {
        let mut answer = Answer::default();
        for (index, piece) in pieces.iter().enumerate() {
            assert_eq!(answer.take_in(piece).unwrap(), index + 1 == pieces.len());
        }
        answer
    }

    #[test]
    fn pieces_make_one_answer() {
        let (one, done) = (|flags| message(16, flags, b"abcde"), |flags| message(NLMSG_DONE, flags, &[0; 4]));
        let whole = answer(&[[one(0), one(0)].concat(), one(0), done(0)]);
        assert_eq!((whole.messages.len(), whole.interrupted), (3, false));
        assert_eq!(whole.messages[2], Message { kind: 16, body: b"abcde".to_vec() });
        assert!(answer(&[one(0), one(NLM_F_DUMP_INTR), done(0)]).interrupted);
        // The messages before the end were complete, and the end tells that there were more.
        assert!(answer(&[one(0), done(NLM_F_DUMP_INTR)]).interrupted);
        assert!(Answer::default().take_in(&[]).is_err());
        assert!(Answer::default().take_in(&one(0)[..20]).is_err());
        for kind in [NLMSG_ERROR, NLMSG_DONE] {
            let refused = Answer::default().take_in(&message(kind, 0, &(-19_i32).to_ne_bytes()));
            assert_eq!(refused.unwrap_err().raw_os_error(), Some(19));
        }
    }

    #[test]
    fn attributes_are_found_again_and_a_cut_one_ends_them() {
        let mut message = BytesMut::new();
        put(&mut message, 1, b"abc");
        nest(&mut message, 2, |inner| put(inner, 7, &5u32.to_ne_bytes()));
        let kinds: Vec<u16> = attributes(&message).map(|(kind, _)| kind).collect();
        assert_eq!(kinds, [1, 2]);
        assert_eq!(find(&message, 1), Some(b"abc".as_slice()));
        assert_eq!(find(&message, 2).and_then(|inner| find(inner, 7)).and_then(word), Some(5));
        assert_eq!(find(&message[..message.len() - 1], 2), None);
    }
}

//! Requests that the netlink crates have no messages for: bytes out, bytes in, and the attributes in them.
use std::io;

use bytes::{BufMut, BytesMut};
use rtnetlink::{
    packet_core::{NlaBuffer, NlasIterator},
    sys::{Socket, SocketAddr},
};

// From linux/netlink.h.
const NLM_F_REQUEST_ACK: u16 = 1 | 4;
/// Everything there is (`NLM_F_ROOT | NLM_F_MATCH`).
pub(super) const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLA_F_NESTED: u16 = 1 << 15;
const HEADER: usize = 16;

/// Sends one request on a socket of its own, in this thread's network namespace, and returns the answers without their
/// netlink headers. The kernel answers inside the send, hence nothing waits here.
pub(super) fn request(protocol: isize, kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut message = BytesMut::with_capacity(HEADER + body.len());
    message.put_u32_ne((HEADER + body.len()) as u32);
    message.put_u16_ne(kind);
    message.put_u16_ne(NLM_F_REQUEST_ACK | flags);
    message.put_u32_ne(1);
    message.put_u32_ne(0);
    message.put_slice(body);
    socket.send(&message, 0)?;
    let mut answers = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let cut_short = || io::Error::new(io::ErrorKind::InvalidData, "an answer that is cut short");
            let length = word(rest).ok_or_else(cut_short)? as usize;
            let message =
                rest.get(..length).filter(|message| message.len() >= HEADER).ok_or_else(cut_short)?;
            let (kind, body) = (u16::from_ne_bytes([message[4], message[5]]), &message[HEADER..]);
            match kind {
                NLMSG_DONE => return Ok(answers),
                NLMSG_ERROR => match word(body).ok_or_else(cut_short)? as i32 {
                    0 => return Ok(answers),
                    code => return Err(io::Error::from_raw_os_error(code.saturating_neg())),
                },
                _ => answers.push(body.to_vec()),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// Appends an attribute.
pub(super) fn put(out: &mut BytesMut, kind: u16, value: &[u8]) {
    out.put_u16_ne(4 + value.len() as u16);
    out.put_u16_ne(kind);
    out.put_slice(value);
    out.put_bytes(0, value.len().next_multiple_of(4) - value.len());
}

/// Appends an attribute made of attributes.
pub(super) fn nest(out: &mut BytesMut, kind: u16, fill: impl FnOnce(&mut BytesMut)) {
    let mut inner = BytesMut::new();
    fill(&mut inner);
    put(out, kind | NLA_F_NESTED, &inner);
}

/// The attributes of a message or of an attribute: kind and value. What is cut short ends them.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes).map_while(Result::ok).map(|attribute: NlaBuffer<&[u8]>| {
        let length = attribute.value_length();
        let kind = attribute.kind();
        let whole = attribute.into_inner();
        (kind, &whole[4..4 + length])
    })
}

/// The value of the first attribute of that kind.
pub(super) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// The first four bytes.
pub(super) fn word(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// Text without the zero at its end.
pub(super) fn text(bytes: &[u8]) -> &[u8] {
    bytes.strip_suffix(&[0]).unwrap_or(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

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

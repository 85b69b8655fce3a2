//! Lists that the kernel gives in pieces: of one moment, or not at all.
use std::{io, time::Duration};

use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;
use rtnetlink::{
    packet_core::{
        NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_OVERRUN, NetlinkMessage, NetlinkPayload,
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};
use tokio::time::sleep;

use super::NetlinkError;

/// How often a list is asked for that changes each time it is given. A storm of containers pauses sooner.
const ATTEMPTS: u32 = 20;
/// Pause before the second attempt; each later one is longer by as much, about two seconds in all.
const PAUSE: Duration = Duration::from_millis(10);

/// The kernel's answer to a request for a list, as a whole.
///
/// Asked on a socket of its own, in the namespace of the calling thread, and not through rtnetlink's handle: that one
/// hides the flag by which the kernel says that entries may be missing or doubled (`NLM_F_DUMP_INTR`), and a missing link
/// would count as gone. The kernel makes each piece inside the call that reads it, hence nothing waits here.
pub(super) async fn dump(
    action: &str,
    request: RouteNetlinkMessage,
) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
    let mut request = NetlinkMessage::from(request);
    request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    request.header.sequence_number = 1;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    for attempt in 1..=ATTEMPTS {
        let answer = ask(&bytes).map_err(|error| NetlinkError::io(action, &error))?;
        if !answer.interrupted {
            return Ok(answer.messages);
        }
        log::debug!("{action}: changed while it was read, attempt {attempt}");
        sleep(PAUSE * attempt).await;
    }
    Err(NetlinkError {
        action: action.to_owned(),
        detail: format!("it changed while it was read, {ATTEMPTS} times"),
        errno: Errno::EINTR,
    })
}

fn ask(request: &[u8]) -> io::Result<Answer> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(request, 0)?;
    let mut answer = Answer::default();
    while !answer.complete {
        let (piece, _) = socket.recv_from_full()?;
        answer.take_in(&piece)?;
    }
    Ok(answer)
}

/// What has arrived of an answer.
#[derive(Debug, Default)]
struct Answer {
    messages: Vec<RouteNetlinkMessage>,
    /// What is listed changed meanwhile.
    interrupted: bool,
    complete: bool,
}

impl Answer {
    /// Takes in one piece: messages one behind the other, each padded to four bytes.
    fn take_in(&mut self, mut piece: &[u8]) -> io::Result<()> {
        if piece.is_empty() {
            return Err(io::Error::other("the kernel's answer ended before it was complete"));
        }
        while let Some(length) = piece.first_chunk().map(|length| u32::from_ne_bytes(*length) as usize) {
            if length < 16 || length > piece.len() {
                return Err(io::Error::other("the kernel's answer is cut short"));
            }
            self.message(&piece[..length])?;
            piece = piece.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }

    fn message(&mut self, bytes: &[u8]) -> io::Result<()> {
        // On the last message too: what was cut off at the end is only known there.
        self.interrupted |= u16::from_ne_bytes([bytes[6], bytes[7]]) & NLM_F_DUMP_INTR != 0;
        match NetlinkMessage::deserialize(bytes) {
            Ok(message) => match message.payload {
                NetlinkPayload::InnerMessage(message) => self.messages.push(message),
                NetlinkPayload::Done(done) if done.code < 0 => {
                    return Err(io::Error::from_raw_os_error(-done.code));
                }
                NetlinkPayload::Done(_) => self.complete = true,
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            },
            Err(error) if u16::from_ne_bytes([bytes[4], bytes[5]]) <= NLMSG_OVERRUN => {
                return Err(io::Error::other(format!("the kernel's answer is not understood: {error}")));
            }
            // Of a device or route of a kind that the crate misreads: none that the overlay knows.
            Err(error) => log::debug!("a message of the kernel is not understood: {error}"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::{LinkAttribute, LinkMessage};
    use rtnetlink::packet_core::DoneMessage;

    use super::*;

    /// One link, as the kernel sends it. The name makes the length no multiple of four.
    fn link(index: u32, flags: u16) -> Vec<u8> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::IfName("eth0".into()));
        bytes(NetlinkMessage::from(RouteNetlinkMessage::NewLink(message)), flags)
    }

    fn done(flags: u16) -> Vec<u8> {
        let done: NetlinkMessage<RouteNetlinkMessage> =
            NetlinkMessage::new(Default::default(), NetlinkPayload::Done(DoneMessage::default()));
        bytes(done, flags)
    }

    fn bytes(mut message: NetlinkMessage<RouteNetlinkMessage>, flags: u16) -> Vec<u8> {
        message.header.flags = flags;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn answer(pieces: &[Vec<u8>]) -> Answer {
        let mut answer = Answer::default();
        for piece in pieces {
            assert!(!answer.complete);
            answer.take_in(piece).unwrap();
        }
        answer
    }

    #[test]
    fn pieces_make_one_list() {
        let whole = answer(&[[link(1, 0), link(2, 0)].concat(), link(3, 0), done(0)]);
        assert_eq!((whole.messages.len(), whole.complete, whole.interrupted), (3, true, false));
        assert!(Answer::default().take_in(&[]).is_err());
        assert!(Answer::default().take_in(&link(1, 0)[..20]).is_err());
    }

    #[test]
    fn an_interrupted_list_is_known_by_any_of_its_messages() {
        assert!(answer(&[link(1, 0), link(2, NLM_F_DUMP_INTR), done(0)]).interrupted);
        // What came before the end was whole, and the end says that it was not all.
        assert!(answer(&[link(1, 0), done(NLM_F_DUMP_INTR)]).interrupted);
    }
}

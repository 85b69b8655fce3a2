//! Lists that rtnetlink sends in several messages. A list is complete and of one moment, or it is an error.
use std::time::Duration;

use netlink_packet_core::{NetlinkDeserializable as _, NetlinkHeader, NetlinkSerializable as _};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage, neighbour::NeighbourMessage};
use nix::errno::Errno;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use tokio::time::sleep;

use super::{
    error::NetlinkError,
    raw::{self, Answer, NLM_F_DUMP},
};

/// How often a list is asked for if it changes each time while the kernel sends it. Even when many containers start at
/// once, there is a pause before that many attempts are over.
const ATTEMPTS: u32 = 20;
/// Pause before the second attempt. Each later pause is longer by the same time. All pauses together take about two
/// seconds.
const PAUSE: Duration = Duration::from_millis(10);

/// The kernel's complete answer to a request for a list.
///
/// It is not asked for with rtnetlink's handle, because that hides the flag `NLM_F_DUMP_INTR`, by which the kernel tells
/// that entries may be missing or doubled. A missing link would be taken for one that was removed.
pub(super) async fn dump(
    action: &str,
    request: RouteNetlinkMessage,
) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
    let mut body = vec![0; request.buffer_len()];
    request.serialize(&mut body);
    for attempt in 1..=ATTEMPTS {
        let answer = raw::ask(NETLINK_ROUTE, request.message_type(), NLM_F_DUMP, &body)
            .map_err(|error| NetlinkError::io(action, &error))?;
        if !answer.interrupted {
            return Ok(read(&answer));
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

/// A request for all neighbours of a family. For `Bridge` these are the forwarding tables.
pub(super) fn of_family(family: AddressFamily) -> RouteNetlinkMessage {
    let mut request = NeighbourMessage::default();
    request.header.family = family;
    RouteNetlinkMessage::GetNeighbour(request)
}

fn read(answer: &Answer) -> Vec<RouteNetlinkMessage> {
    let mut messages = Vec::with_capacity(answer.messages.len());
    for message in &answer.messages {
        let mut header = NetlinkHeader::default();
        header.message_type = message.kind;
        match RouteNetlinkMessage::deserialize(&header, &message.body) {
            Ok(message) => messages.push(message),
            // The message is about a kind of device or route that the crate misreads. The overlay needs none of those kinds.
            Err(error) => log::debug!("a message of the kernel is not understood: {error}"),
        }
    }
    messages
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::{LinkAttribute, LinkMessage};

    use super::{raw::Message, *};

    #[test]
    fn what_cannot_be_read_hides_nothing_else() {
        let mut link = LinkMessage::default();
        link.header.index = 7;
        link.attributes.push(LinkAttribute::IfName("eth0".into()));
        let link = RouteNetlinkMessage::NewLink(link);
        let mut body = vec![0; link.buffer_len()];
        link.serialize(&mut body);
        let kind = link.message_type();
        let cut_short = Message { kind, body: body[..3].to_vec() };
        let answer = Answer { messages: vec![cut_short, Message { kind, body }], interrupted: false };
        assert_eq!(read(&answer), [link]);
    }
}

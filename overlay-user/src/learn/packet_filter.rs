//! Classic BPF programs for packet sockets, so that packets that say nothing are neither queued nor wake anybody.
use std::io;

use overlay_common::wire;
use socket2::{SockFilter, SockRef};

/// The EtherType of ARP.
pub(super) const ETHERTYPE_ARP: u16 = 0x0806;
/// The EtherType of IPv4, by which ARP names its addresses, too.
pub(super) const ETHERTYPE_IPV4: u16 = u16::from_be_bytes(wire::ETHERTYPE_IPV4);

/// What a program looks at. Offsets count from where the socket's packets begin.
#[derive(Clone, Copy, Debug)]
pub(super) enum Field {
    /// Four bytes.
    Word(u32),
    /// Two bytes.
    Half(u32),
    /// The interface that the packet came from.
    Interface,
    /// To whom the packet was sent, as linux/if_packet.h numbers it.
    PacketType,
}

/// What must hold for a packet.
#[derive(Clone, Copy, Debug)]
pub(super) enum Condition {
    Is(Field, u32),
    IsNot(Field, u32),
    AtMost(Field, u32),
    /// The field has this value under this mask.
    Masked(Field, u32, u32),
    Same(Field, Field),
}

/// An instruction as the kernel has it: code, jumps if true and if false, and operand.
type Instruction = (u16, u8, u8, u32);

// From linux/bpf_common.h and linux/filter.h.
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const AND: u16 = 0x54;
const TO_INDEX: u16 = 0x07;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_EQUAL_INDEX: u16 = 0x1d;
const JUMP_IF_GREATER: u16 = 0x25;
const RETURN: u16 = 0x06;
const PACKET_TYPE: u32 = 0xffff_f004;
const INTERFACE: u32 = 0xffff_f008;

/// Makes a socket take only packets for which all conditions hold.
pub(super) fn attach<'s>(socket: impl Into<SockRef<'s>>, conditions: &[Condition]) -> io::Result<()> {
    let program: Vec<SockFilter> = program(conditions)
        .into_iter()
        .map(|(code, if_true, if_false, operand)| SockFilter::new(code, if_true, if_false, operand))
        .collect();
    socket.into().attach_filter(&program)
}

fn program(conditions: &[Condition]) -> Vec<Instruction> {
    let mut program = Vec::new();
    for condition in conditions {
        // The instruction after the condition drops the packet, and the condition jumps over it if it holds.
        let (equal, unequal) = ((1, 0), (0, 1));
        let (before, code, (if_true, if_false), operand) = match *condition {
            Condition::Is(field, value) => (vec![load(field)], JUMP_IF_EQUAL, equal, value),
            Condition::IsNot(field, value) => (vec![load(field)], JUMP_IF_EQUAL, unequal, value),
            Condition::AtMost(field, value) => (vec![load(field)], JUMP_IF_GREATER, unequal, value),
            Condition::Masked(field, mask, value) => {
                (vec![load(field), (AND, 0, 0, mask)], JUMP_IF_EQUAL, equal, value)
            }
            Condition::Same(one, other) => {
                (vec![load(one), (TO_INDEX, 0, 0, 0), load(other)], JUMP_IF_EQUAL_INDEX, equal, 0)
            }
        };
        program.extend(before);
        program.extend([(code, if_true, if_false, operand), (RETURN, 0, 0, 0)]);
    }
    program.push((RETURN, 0, 0, u32::MAX));
    program
}

fn load(field: Field) -> Instruction {
    let (code, at) = match field {
        Field::Word(at) => (LOAD_WORD, at),
        Field::Half(at) => (LOAD_HALF, at),
        Field::Interface => (LOAD_WORD, INTERFACE),
        Field::PacketType => (LOAD_WORD, PACKET_TYPE),
    };
    (code, 0, 0, at)
}

/// What the kernel does with a packet of this type from this interface, for tests.
#[cfg(test)]
pub(super) fn takes(conditions: &[Condition], packet: &[u8], interface: u32, packet_type: u8) -> bool {
    let program = program(conditions);
    let (mut at, mut value, mut index) = (0, 0_u32, 0);
    loop {
        let (code, if_true, if_false, operand) = program[at];
        let length = if code == LOAD_HALF { 2 } else { 4 };
        let jump = |holds| usize::from(if holds { if_true } else { if_false });
        at += 1;
        match (code, operand) {
            (RETURN, taken) => return taken > 0,
            (LOAD_WORD, INTERFACE) => value = interface,
            (LOAD_WORD, PACKET_TYPE) => value = packet_type.into(),
            (LOAD_WORD | LOAD_HALF, offset) => {
                // A load from behind the end drops the packet.
                let Some(bytes) = packet.get(offset as usize..offset as usize + length) else { return false };
                value = bytes.iter().fold(0, |value, byte| (value << 8) | u32::from(*byte));
            }
            (AND, mask) => value &= mask,
            (TO_INDEX, _) => index = value,
            (JUMP_IF_EQUAL, other) => at += jump(value == other),
            (JUMP_IF_EQUAL_INDEX, _) => at += jump(value == index),
            (JUMP_IF_GREATER, other) => at += jump(value > other),
            other => panic!("{other:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, os::unix::net::UnixDatagram};

    use super::*;

    #[test]
    fn the_kernel_takes_the_programs_and_reads_them_alike() {
        let all = [
            (Condition::Is(Field::Half(1), 0x0203), true),
            (Condition::Is(Field::Half(1), 0x0204), false),
            (Condition::IsNot(Field::Word(0), 0x0102_0304), true),
            (Condition::IsNot(Field::Word(0), 0x0102_0301), false),
            (Condition::AtMost(Field::Half(0), 0x0102), true),
            (Condition::AtMost(Field::Half(0), 0x0101), false),
            (Condition::Masked(Field::Word(0), 0xffff_0000, 0x0102_0000), true),
            (Condition::Masked(Field::Word(0), 0xffff_0000, 0x0103_0000), false),
            (Condition::Same(Field::Half(0), Field::Half(4)), true),
            (Condition::Same(Field::Half(0), Field::Half(2)), false),
            (Condition::Is(Field::Word(3), 0x0101_0200), false),
        ];
        let packet = [1, 2, 3, 1, 1, 2];
        for (condition, holds) in all {
            let (sender, receiver) = UnixDatagram::pair().unwrap();
            receiver.set_nonblocking(true).unwrap();
            let conditions = [Condition::Is(Field::Half(0), 0x0102), condition];
            attach(&receiver, &conditions).unwrap();
            // A filter that drops a packet makes sending it fail, or not, depending on the kernel.
            drop(sender.send(&packet));
            assert_eq!(receiver.recv(&mut [0; 8]).is_ok(), holds, "{condition:?}");
            assert_eq!(takes(&conditions, &packet, 0, 0), holds, "{condition:?}");
        }
        // What a packet has besides its bytes is known on a network only.
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let conditions = [Condition::Is(Field::Interface, 7), Condition::AtMost(Field::PacketType, 2)];
        attach(&socket, &conditions).unwrap();
        assert!(takes(&conditions, &packet, 7, 2));
        assert!(!takes(&conditions, &packet, 8, 2) && !takes(&conditions, &packet, 7, 3));
    }
}
